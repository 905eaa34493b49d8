package manifest

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
)

var update = flag.Bool("update", false, "rewrite the golden files and the reference")

// golden compares with a file, or rewrites it.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is stale; go test ./internal/manifest -update rewrites it:\n%s", file, Diff(string(want), string(got)))
	}
}

// stored is an Existing.
type stored struct {
	resources map[serai.Key]serai.Resource
	holders   map[string]serai.Key
}

func (s stored) Get(key serai.Key) (serai.Resource, bool) {
	r, ok := s.resources[key]
	return r, ok
}

func (s stored) HostHolder(host string) (serai.Key, bool) {
	k, ok := s.holders[host]
	return k, ok
}

func (s stored) Grantees(grant string) []string {
	var names []string
	for k, r := range s.resources {
		if t, ok := r.(*serai.Tenant); ok && slices.Contains(t.Spec.Hosts, grant) {
			names = append(names, k.Name)
		}
	}
	return names
}

func (s stored) SitesOf(tenant string) []serai.Key {
	var keys []serai.Key
	for k := range s.resources {
		if k.Kind == serai.KindSite && k.Tenant == tenant {
			keys = append(keys, k)
		}
	}
	return keys
}

// store makes an Existing of a manifest; all hosts are claimed. Names that end
// with "-going" are being deleted.
func store(t *testing.T, text string) stored {
	t.Helper()
	s := stored{map[serai.Key]serai.Resource{}, map[string]serai.Key{}}
	set, ps := Parse([]File{{"stored.yaml", []byte(text)}}, "")
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	for _, d := range set.Docs {
		s.resources[d.Resource.Key()] = d.Resource
		if strings.HasSuffix(d.Resource.Key().Name, "-going") {
			d.Resource.GetMeta().Deleted = new(time.Time)
		}
		if site, ok := d.Resource.(*serai.Site); ok {
			for _, h := range site.Spec.Hosts {
				s.holders[h] = site.Key()
			}
		}
	}
	return s
}

// TestGolden reads each testdata/*.yaml beside its .golden. A first line
// "# speaker: alice" makes a tenant speak; what testdata/stored/stored.yaml
// holds is stored already.
func TestGolden(t *testing.T) {
	text, err := os.ReadFile("testdata/stored/stored.yaml")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			in, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			speaker := ""
			if rest, ok := strings.CutPrefix(string(in), "# speaker: "); ok {
				speaker, _, _ = strings.Cut(rest, "\n")
			}
			set, ps := Parse([]File{{filepath.Base(file), in}}, speaker)
			ps = ps.With(set.Check(store(t, string(text)), Limits{
				Operator: speaker == "", Zygotes: []string{"standard", "extra"},
				PanelHost: "panel.example.net", Adopt: config.Range{First: 1000, Last: 1999},
			}))
			var out bytes.Buffer
			for _, p := range ps {
				fmt.Fprintln(&out, p)
			}
			for _, d := range set.Docs {
				fmt.Fprintf(&out, "\n# %s %s at %s\n", d.Resource.Key().Kind, d.Resource.Key(), d.Pos)
				if len(ps) > 0 {
					continue // its values are not complete
				}
				text, err := Print(d.Resource)
				if err != nil {
					t.Fatal(err)
				}
				out.Write(text)
				for _, path := range slices.Sorted(maps.Keys(d.at)) {
					fmt.Fprintf(&out, "# %d:%d %s\n", d.at[path].Line, d.at[path].Column, path)
				}
				for _, path := range slices.Sorted(maps.Keys(NotEnforced(d.Resource))) {
					fmt.Fprintf(&out, "# not enforced: %s\n", path)
				}
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", out.Bytes())
		})
	}
}

func TestReference(t *testing.T) {
	golden(t, "../../docs/reference/manifests.md", Reference())
}
