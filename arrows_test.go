package serai_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "serai.dev/serai"

// arrows says what a package must not reach, directly or through others. Names
// that begin with "./" are the module's own.
var arrows = []struct {
	of    []string
	never []string
	why   string
}{
	{
		of: []string{"."},
		never: []string{"net/http", "database/sql", "log/slog", "os/exec", "net", "./client", "./internal/config",
			"golang.org/x/sys/unix"},
		why: "the dictionary holds values only",
	},
	{
		of: []string{"./cmd/serai-priv", "./internal/privsep/monitor", "./internal/cgroup", "./internal/isolate", "./internal/account"},
		never: []string{"net/http", "database/sql", "crypto/tls", "./internal/manifest", "./internal/store", "./internal/store/sqlite",
			"./internal/engine", "./internal/reconcile", "./internal/api", "./internal/proxy", "./internal/sitelog", "./internal/mail", "./internal/catalogue", "./client",
			"go.yaml.in/yaml/v3", "github.com/spf13/cobra", "modernc.org/sqlite"},
		why: "what has root power parses nothing of a tenant, and speaks to nobody but its peers",
	},
	{
		of:    []string{"./internal/cgroup", "./internal/isolate", "./internal/account"},
		never: []string{"./internal/privsep", "./internal/privsep/monitor", "./internal/route"},
		why:   "values in, system calls out: they know no tenant",
	},
	{
		of: []string{"./cmd/serai-proxy", "./internal/proxy", "./internal/proxy/worker"},
		never: []string{"database/sql", "modernc.org/sqlite", "./internal/store", "./internal/store/sqlite", "./internal/manifest",
			"./internal/api", "./internal/reconcile", "./internal/mail", "./internal/catalogue", "./internal/privsep/monitor", "./internal/account", "go.yaml.in/yaml/v3"},
		why: "the proxy faces the world: routes, no store, no way into a home",
	},
	{
		of:    []string{"./internal/proxy", "./internal/proxy/worker"},
		never: []string{"os/exec", "./internal/isolate", "./internal/cgroup"},
		why:   "what parses the world's requests starts nothing",
	},
	{
		of:    []string{"./cmd/seraid"},
		never: []string{"./internal/privsep/monitor", "./internal/account", "./internal/proxy", "./cmd/serai"},
		why:   "seraid wants, compares and asks; it has no power and serves no visitor",
	},
	{
		of: []string{"./internal/reconcile", "./internal/engine", "./internal/sitelog"},
		never: []string{"net/http", "database/sql", "os/exec", "./internal/api", "./client", "./internal/store/sqlite", "./internal/privsep/monitor",
			"./internal/isolate", "./internal/cgroup", "./internal/account"},
		why: "the reconciler knows the store and the monitor by their interfaces",
	},
	{
		of:    []string{"./internal/api"},
		never: []string{"os/exec", "database/sql", "./internal/store/sqlite", "./internal/reconcile", "./internal/privsep/monitor", "./internal/proxy"},
		why:   "the API stands on interfaces",
	},
	{
		of: []string{"./internal/catalogue"},
		never: []string{"net/http", "os/exec", "database/sql", "./internal/store", "./internal/api", "./internal/reconcile", "./internal/privsep/monitor",
			"./client"},
		why: "keeps files, and runs nothing of them",
	},
	{
		of: []string{"./internal/mail"},
		never: []string{"net/http", "os/exec", "database/sql", "./internal/store/sqlite", "./internal/manifest", "./internal/api", "./internal/reconcile",
			"./internal/privsep", "./client"},
		why: "takes messages of anybody and speaks SMTP: it has no other way in or out",
	},
	{
		of:    []string{"./internal/manifest"},
		never: []string{"net/http", "database/sql", "os/exec", "./internal/store", "./internal/privsep/monitor", "./internal/api"},
		why:   "text in, values out",
	},
	{
		of:    []string{"./client"},
		never: []string{"database/sql", "os/exec", "./internal/store", "./internal/api", "./internal/privsep", "./internal/manifest"},
		why:   "the client knows the API alone",
	},
	{
		of: []string{"./cmd/serai"},
		never: []string{"database/sql", "modernc.org/sqlite", "./internal/store/sqlite", "./internal/api", "./internal/reconcile",
			"./internal/privsep/monitor"},
		why: "the command line comes through the API like everybody; what it runs itself, by serai dev, has no power",
	},
	{
		of:    []string{"./client", "./internal/api", "./internal/reconcile", "./cmd/seraid", "./cmd/serai-priv", "./cmd/serai-proxy"},
		never: []string{"./internal/dev"},
		why:   "serai dev is for the author's own computer: no server is made of it",
	},
	{
		of: []string{"./internal/dev"},
		never: []string{"database/sql", "./client", "./internal/api", "./internal/store", "./internal/reconcile", "./internal/manifest",
			"./internal/privsep/monitor", "./internal/isolate", "./internal/cgroup", "./internal/account"},
		why: "serai dev runs a site without store, API and privilege",
	},
	{
		of:    []string{"./internal/store"},
		never: []string{"database/sql", "./internal/store/sqlite"},
		why:   "the interface knows no implementation",
	},
	{
		of:    []string{"./internal/store/sqlite"},
		never: []string{"net/http", "./internal/manifest", "./internal/api", "./internal/reconcile", "./internal/privsep"},
		why:   "the store keeps, and asks nobody",
	},
	{
		of:    []string{"./internal/route", "./internal/privsep", "./internal/config", "./internal/peercred"},
		never: []string{"net/http", "database/sql", "os/exec", "./internal/manifest", "./internal/store", "./internal/privsep/monitor", "./client"},
		why:   "what both sides of a wall share is small",
	},
}

type pkg struct {
	ImportPath string
	Name       string
	Doc        string
	GoFiles    []string
	Deps       []string
	Module     *struct{ Path string }
}

// packages is the module's packages and all that they need.
func packages(t *testing.T) map[string]pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Name,Doc,GoFiles,Deps,Module", "./...").Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %s", e.Stderr)
		}
		t.Fatal(err)
	}
	found := make(map[string]pkg)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		found[p.ImportPath] = p
	}
}

func full(name string) string {
	if name == "." {
		return module
	}
	if rel, ok := strings.CutPrefix(name, "./"); ok {
		return module + "/" + rel
	}
	return name
}

func TestArrows(t *testing.T) {
	all := packages(t)
	for _, a := range arrows {
		for _, of := range a.of {
			p, ok := all[full(of)]
			if !ok {
				t.Errorf("%s is in the table of arrows, but does not exist", of)
				continue
			}
			for _, never := range a.never {
				if _, ok := all[full(never)]; !ok {
					t.Errorf("%s must not reach %s, which does not exist: the name is wrong or old", of, never)
				}
				if slices.Contains(p.Deps, full(never)) {
					t.Errorf("%s must not reach %s: %s", of, never, a.why)
				}
			}
		}
	}
}

// Every package says what it holds.
func TestPackageComments(t *testing.T) {
	for path, p := range packages(t) {
		if p.Module == nil || p.Module.Path != module || len(p.GoFiles) == 0 {
			continue
		}
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "" // a command's comment begins with its name
		}
		if p.Doc == "" || !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s has no package comment that begins with %q", path, want)
		}
	}
}

// Names that mean nothing attract what belongs elsewhere.
func TestNoDrawers(t *testing.T) {
	for path := range packages(t) {
		if rel, ok := strings.CutPrefix(path, module+"/"); ok {
			for _, part := range strings.Split(rel, "/") {
				if slices.Contains([]string{"util", "utils", "common", "helpers", "types", "misc", "pkg"}, part) {
					t.Errorf("%s: find it a home, or its noun is missing", path)
				}
			}
		}
	}
}
