package manifest

import (
	"reflect"
	"strings"
	"testing"

	"serai.dev/serai"
)

func TestParseEntry(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       *Entry
		says       []string
	}{
		{name: "all", text: "title: Guest book\nscript: bin/book.cgi\nsettings:\n  page: {type: number, default: \"20\", meaning: on a page}\n  to: {type: addresses, required: true}\n  title: {}\n",
			want: &Entry{Title: "Guest book", Script: "bin/book.cgi", Settings: map[string]serai.Setting{
				"page": {Type: "number", Default: "20", Meaning: "on a page"}, "to": {Type: "addresses", Required: true}, "title": {Type: "text"}}}},
		{name: "least", text: "{title: x, script: y}", want: &Entry{Title: "x", Script: "y"}},
		{name: "nothing", text: "# nothing\n", says: []string{"catalogue.yaml:1:1: says nothing"}},
		{name: "no script", text: "title: x\n", says: []string{"script: is missing: write a script such as guestbook.cgi"}},
		{name: "two", text: "title: x\nscript: y\n---\ntitle: z\nscript: y\n", says: []string{"catalogue.yaml:4:1: is a second document"}},
		{name: "wrong", text: "title: x\nscript: ../y\nsettings:\n  Page: {}\n  a-b: {}\n  n: {type: nummer}\n  m: {type: number, default: many}\n  b: {type: boolean, default: \"yes\"}\n  to: {type: addresses, default: \"a@b, c d@e\"}\n  t: {default: \"a\\nb\", required: si, size: 3}\n", says: []string{
			`catalogue.yaml:2:9: script: "../y" leads out of the entry's directory`,
			`4:3: settings.Page: "Page" is not a setting`,
			`5:3: settings.a-b: "a-b" is not a setting`,
			`6:13: settings.n.type: "nummer" is no type, did you mean number?`,
			`7:30: settings.m.default: "many" is not a number`,
			`8:31: settings.b.default: "yes" is neither true nor false`,
			`9:34: settings.to.default: "a@b, c d@e" is not a list of mail addresses`,
			`10:16: settings.t.default: "a\nb" is not one line`,
			`10:34: settings.t.required: "si" is neither`,
			`10:38: settings.t.size: unknown field`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseEntry(File{Name: EntryFile, Text: []byte(tt.text)})
			if tt.says == nil {
				if err != nil || !reflect.DeepEqual(got, tt.want) {
					t.Fatalf("got %+v, %v; want %+v", got, err, tt.want)
				}
				return
			}
			if serai.KindOf(err) != serai.Invalid {
				t.Fatalf("got %v", err)
			}
			for _, says := range tt.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("no %q in\n%v", says, err)
				}
			}
		})
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte("title: x\nscript: y\nsettings: {a: {type: number, default: \"1\"}}\n"))
	f.Add([]byte("title: &a x\nscript: *a\nsettings: {a: *a}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := ParseEntry(File{Name: EntryFile, Text: text})
		if err != nil {
			return
		}
		if e.Title == "" || e.Script == "" || strings.HasPrefix(e.Script, "/") || strings.Contains("/"+e.Script+"/", "/../") {
			t.Fatalf("taken: %+v", e)
		}
		for name, s := range e.Settings {
			if _, err := settingName.scalar(name); err != nil || settingTypes[s.Type] == nil || checkSetting(s, s.Default) != nil {
				t.Fatalf("taken: %s: %+v", name, s)
			}
		}
	})
}

// A mount is written in short or whole, and comes out the same.
func TestMounts(t *testing.T) {
	set, ps := Parse([]File{{Name: "site.yaml", Text: []byte(`kind: Site
metadata: {name: shop, tenant: alice}
spec:
  hosts: [x.example]
  root: shop
  engine: perl
  perl: {scripts: {/cgi-bin: cgi}}
  files: {/static: public}
  mount: {/guestbook: guestbook, /: {use: counter, settings: {start: 3, label: ""}}}
`)}}, "")
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	want := map[string]serai.Mount{"/guestbook": {Use: "guestbook"}, "/": {Use: "counter", Settings: map[string]string{"start": "3", "label": ""}}}
	if got := set.Docs[0].Resource.(*serai.Site).Spec.Mount; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	text, err := Print(set.Docs[0].Resource)
	if err != nil {
		t.Fatal(err)
	}
	again, ps := Parse([]File{{Name: "again.yaml", Text: text}}, "")
	if len(ps) > 0 || !Same(set.Docs[0].Resource, again.Docs[0].Resource) {
		t.Errorf("%v\n%s", ps, text)
	}

	_, ps = Parse([]File{{Name: "site.yaml", Text: []byte(`kind: Site
metadata: {name: shop, tenant: alice}
spec:
  hosts: [x.example]
  root: shop
  engine: perl
  perl: {scripts: {/cgi-bin: cgi}}
  files: {/static: public}
  mount:
    /static: guestbook
    /cgi-bin: guestbook
    book: guestbook
    /a: [guestbook]
    /b: {settings: {}}
    /c: {use: Guestbook}
    /d: {use: x, settings: {A: b, c: "d\ne", f: []}}
    /e: Upper
`)}}, "")
	for _, says := range []string{
		`site.yaml:10:14: spec.mount["/static"]: is in spec.files too: keep one of them`,
		`site.yaml:11:15: spec.mount["/cgi-bin"]: is in spec.perl.scripts too: keep one of them`,
		`site.yaml:12:5: spec.mount.book: "book" is no URL prefix`,
		`site.yaml:13:9: spec.mount["/a"]: is a list: write {use: …}`,
		`site.yaml:14:5: spec.mount["/b"].use: is missing: write a name such as alice`,
		`site.yaml:15:15: spec.mount["/c"].use: "Guestbook" is not a name`,
		`site.yaml:16:29: spec.mount["/d"].settings.A: "A" is not a setting`,
		`site.yaml:16:38: spec.mount["/d"].settings.c: "d\ne" is not one line`,
		`site.yaml:16:49: spec.mount["/d"].settings.f: is a list`,
		`site.yaml:17:9: spec.mount["/e"]: "Upper" is not a name`,
	} {
		if !strings.Contains(ps.Err().Error(), says) {
			t.Errorf("no %q in\n%v", says, ps.Err())
		}
	}
}
