package manifest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
)

const site = `kind: Site
metadata: {name: shop, tenant: alice}
spec:
  hosts: [shop.example]
  root: shop
  engine: perl
  perl: {app: app.psgi}
`

func parseOne(t *testing.T, text string) *Doc {
	t.Helper()
	set, ps := Parse([]File{{"a.yaml", []byte(text)}}, "")
	if len(ps) > 0 || len(set.Docs) != 1 {
		t.Fatalf("%d documents, problems:\n%v", len(set.Docs), ps)
	}
	return set.Docs[0]
}

func TestProblemsAsError(t *testing.T) {
	_, ps := Parse([]File{{"b.yaml", []byte("kind: X")}, {"a.yaml", []byte("kind: Site\nspec: {}\nmetadata: {}")}}, "")
	err := fmt.Errorf("apply: %w", ps.Err())
	if serai.KindOf(err) != serai.Invalid || serai.Message(err) != ps.Error() {
		t.Errorf("kind %v, message %q", serai.KindOf(err), serai.Message(err))
	}
	if got, ok := errors.AsType[Problems](err); !ok || len(got) != len(ps) {
		t.Error("the problems are lost in the error")
	}
	if ps[0].File != "a.yaml" || ps[len(ps)-1].File != "b.yaml" {
		t.Errorf("not in order of file:\n%v", ps)
	}
	if Problems(nil).Err() != nil {
		t.Error("no problem is an error")
	}
}

func TestDocAt(t *testing.T) {
	d := parseOne(t, site)
	for path, want := range map[string]string{
		"spec.perl.app":    "a.yaml:7:15",
		"spec.perl.inc[3]": "a.yaml:7:3",
		"spec.workers.max": "a.yaml:3:1",
		"spec.hosts[0]":    "a.yaml:4:11",
		"status":           "a.yaml:1:1",
	} {
		if got := d.At(path).String(); got != want {
			t.Errorf("%s is at %s, want %s", path, got, want)
		}
	}
}

func TestOnto(t *testing.T) {
	old := parseOne(t, site).Resource.(*serai.Site)
	old.Meta.ID, old.Meta.Revision, old.Status.Launch, old.Spec.Stopped = 7, "9", 3, true
	silent := parseOne(t, strings.Replace(site, "root: shop", "root: new", 1)).Onto(old).(*serai.Site)
	if s := silent; s.Meta.ID != 7 || s.Meta.Revision != "9" || s.Status.Launch != 3 || !s.Spec.Stopped || s.Spec.Root != "new" {
		t.Errorf("got %+v", s)
	}
	if s := parseOne(t, site+"  stopped: false\n").Onto(old).(*serai.Site); s.Spec.Stopped {
		t.Error("stopped: false did not start the site")
	}
	if s := parseOne(t, site).Onto(nil); s.Key() != old.Key() {
		t.Errorf("got %v", s)
	}
	plan := parseOne(t, "kind: Plan\nmetadata: {name: p}")
	if p := plan.Onto(plan.Resource); !Same(p, plan.Resource) {
		t.Errorf("got %v", p)
	}
	tenant := parseOne(t, "kind: Tenant\nmetadata: {name: p}\nspec: {plan: p}")
	if p := tenant.Onto(tenant.Resource); !Same(p, tenant.Resource) {
		t.Errorf("got %v", p)
	}
}

func TestHostileTexts(t *testing.T) {
	bomb := "&a0 [x, x]\n"
	for i := range 40 {
		bomb += fmt.Sprintf("  a%d: &a%d [*a%d, *a%d]\n", i+1, i+1, i, i)
	}
	for _, tt := range []struct{ name, text, err string }{
		{"aliases that multiply", "kind: Site\nmetadata:\n  a0: " + bomb + "spec: {hosts: *a40}", "spec.hosts[0]: is a list"},
		{"an alias within itself", "kind: Site\nmetadata: &m {name: *m}\nspec: &s {perl: *s, hosts: &h [*h]}", "is a mapping"},
		{"deep nesting", "kind: " + strings.Repeat("[", 20000), "exceeded max depth"},
		{"a merge bomb", "kind: Plan\nmetadata: &m {name: x, <<: *m}", "merges with <<"},
		{"many problems", "kind: Site\nspec: {hosts: [" + strings.Repeat("a_, ", 5000) + "]}", "at most 256"},
		{"many unknown fields", "kind: Site\nspec:\n" + manyFields(5000), "more problems follow"},
		{"bad UTF-8", "kind: Plan\nmetadata: {name: \xff}", "bad UTF-8:2:18: a byte is no UTF-8"},
		{"a NUL byte", "kind: \x00", "control character '\\x00'"},
		{"UTF-16", "k\x00i\x00", "control character"},
		{"line separator", "kind: Plan\u2028", `'\u2028'`},
		{"carriage returns", "kind: Plan\rmetadata: {}", `'\r'`},
		{"a large file", strings.Repeat("#", MaxFile+1), "larger than 16 MiB"},
		{"a large environment", site + "  env: {A: " + strings.Repeat("x", 65<<10) + "}", "at most 65536, and keep the rest in a file"},
		{"large scripts", strings.Replace(site, "{app: app.psgi}", "{scripts: {"+manyDirs(70)+"}}", 1), "spec.perl: makes the site's settings"},
		{"large files", site + "  files: {" + manyDirs(30) + "}", "bytes of directories"},
		{"a YAML directive", "%YAML 1.2\n---\nkind: Plan\nmetadata: {name: a}", "is no YAML"},
		{"a binary tag", "kind: Plan\nmetadata: {name: !!binary YQ==}", "has the tag !!binary"},
		{"a set of keys", "kind: Plan\nmetadata: {? {a: b} : c}", "a key that is a mapping"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, ps := Parse([]File{{tt.name, []byte(tt.text)}}, "")
			if !strings.Contains(ps.Error(), tt.err) {
				t.Errorf("want %q in:\n%.2000s", tt.err, ps.Error())
			}
			if len(ps) > maxProblems {
				t.Errorf("%d problems", len(ps))
			}
		})
	}
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  field%d: x\n", i)
	}
	return b.String()
}

func manyDirs(n int) string {
	var dirs []string
	for i := range n {
		dirs = append(dirs, fmt.Sprintf("/p%d: %s%d", i, strings.Repeat("d/", 480), i))
	}
	return strings.Join(dirs, ", ")
}

func TestWindowsTexts(t *testing.T) {
	text := "\xef\xbb\xbf" + strings.ReplaceAll(site+"---\n"+site, "\n", "\r\n")
	set, ps := Parse([]File{{"a.yaml", []byte(text)}}, "")
	if len(ps) > 0 || len(set.Docs) != 2 || set.Docs[1].Pos.Line != 9 {
		t.Errorf("%d documents, problems:\n%v", len(set.Docs), ps)
	}
}

// A tenant that is not known, and limits that say operator while a tenant
// speaks, give nothing away.
func TestCheckSpeaker(t *testing.T) {
	set, ps := Parse([]File{{"a.yaml", []byte(site)}}, "alice")
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	x := store(t, "kind: Plan\nmetadata: {name: p}\n---\nkind: Tenant\nmetadata: {name: alice}\nspec: {plan: p}")
	ps = set.Check(x, Limits{Operator: true, Zygotes: []string{"standard"}})
	if len(ps) != 1 || ps[0].Msg != `"shop.example" is not granted to you: ask the operator for a grant, you have none` {
		t.Errorf("got\n%v", ps)
	}
}

func TestCheckHostOfAnother(t *testing.T) {
	x := store(t, `
kind: Plan
metadata: {name: p}
---
kind: Tenant
metadata: {name: alice}
spec: {plan: p, hosts: [shop.example, a.x, b.x, c.x, d.x, e.x]}
---
kind: Site
metadata: {name: secret, tenant: bob}
spec: {hosts: [shop.example], root: x, engine: perl, perl: {app: a}}
`[1:])
	set, _ := Parse([]File{{"a.yaml", []byte(site)}}, "alice")
	ps := set.Check(x, Limits{Zygotes: []string{"standard"}})
	if len(ps) != 1 || strings.Contains(ps.Error(), "bob") || strings.Contains(ps.Error(), "secret") || !strings.Contains(ps.Error(), "somebody else") {
		t.Errorf("got\n%v", ps)
	}
	set, _ = Parse([]File{{"a.yaml", []byte(site)}}, "")
	if ps := set.Check(x, Limits{Operator: true, Zygotes: []string{"standard"}}); !strings.Contains(ps.Error(), "the site bob/secret") {
		t.Errorf("the operator is told\n%v", ps)
	}
}

func TestPrintFull(t *testing.T) {
	s := parseOne(t, site).Resource.(*serai.Site)
	s.Meta.ID, s.Meta.Created = 7, time.Unix(0, 0).UTC()
	s.Status.Conditions.Set(serai.Condition{Type: serai.Ready, Status: serai.True, Message: "serves"}, time.Unix(1, 0).UTC())
	s.Status.Conditions.Set(serai.Condition{Type: serai.Routed, Status: serai.False}, time.Unix(1, 0).UTC())
	got, err := PrintFull(s)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("testdata", "full.golden"), got)
	plain, err := Print(s)
	if err != nil || strings.Contains(string(plain), "status") || strings.Contains(string(plain), "created") {
		t.Errorf("printed %s, %v", plain, err)
	}
}

// FuzzParse: every problem has a position within the file and says something;
// what has no problem prints, and reads back as the same.
func FuzzParse(f *testing.F) {
	for _, glob := range []string{"testdata/*.yaml", "testdata/stored/*.yaml"} {
		files, _ := filepath.Glob(glob)
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text, "")
			f.Add(text, "alice")
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, speaker string) {
		if _, err := nameType.scalar(speaker); err != nil {
			speaker = ""
		}
		set, ps := Parse([]File{{"f", text}}, speaker)
		positioned(t, ps, text)
		_ = set.Check(stored{}, Limits{Operator: speaker == ""})
		if len(ps) > 0 {
			return
		}
		for _, d := range set.Docs {
			out, err := Print(d.Resource)
			if err != nil {
				t.Fatal(err)
			}
			again, ps := Parse([]File{{"printed", out}}, speaker)
			if len(ps) > 0 || len(again.Docs) != 1 {
				t.Fatalf("%d documents in what was printed, problems:\n%v\n%s", len(again.Docs), ps, out)
			}
			r := again.Docs[0].Resource
			if r.Key() != d.Resource.Key() || !Same(r, d.Resource) {
				second, _ := Print(r)
				t.Fatalf("printed and read back it is another:\n%s", Diff(string(out), string(second)))
			}
		}
	})
}

func positioned(t *testing.T, ps Problems, text []byte) {
	t.Helper()
	last := strings.Count(string(text), "\n") + 1
	for _, p := range ps {
		whole := strings.HasPrefix(p.Msg, "holds no document") || strings.HasPrefix(p.Msg, "more problems follow")
		if p.File == "" || p.Msg == "" || !whole && (p.Line < 1 || p.Column < 1 || p.Line > last) {
			t.Fatalf("problem %+v", p)
		}
	}
}
