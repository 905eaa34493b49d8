package catalogue

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"serai.dev/serai"
)

// A member of an archive; its text is that of a file.
type member struct {
	name, text string
	kind       byte // of tar; 0 is a file
	mode       int64
	link       string
}

func pack(t testing.TB, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Mode: m.mode, Linkname: m.link}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(m.text))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(m.text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var (
	about  = member{name: "catalogue.yaml", text: "title: Book\nscript: bin/book.cgi\nsettings: {n: {type: number, default: \"3\"}}\n"}
	script = member{name: "bin/book.cgi", text: "#!/usr/bin/perl\n", mode: 0o777}
)

// tree lists what lies beneath a directory: mode, path, text.
func tree(t testing.TB, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, text := strings.TrimPrefix(path, dir), []byte(nil)
		if info.Mode().IsRegular() {
			if text, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		list = append(list, fmt.Sprintf("%v %s %s", info.Mode(), name, text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestPut(t *testing.T) {
	s := Shelf{Dir: t.TempDir()}
	v, err := s.Put("book", bytes.NewReader(pack(t, member{name: "./", kind: tar.TypeDir, mode: 0o700}, about,
		member{name: "bin/", kind: tar.TypeDir, mode: 0}, script, member{name: "./lib/A/B.pm", text: "1;", mode: 0o4600})))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(s.Dir, "book", v.Version)
	if v.Title != "Book" || v.Script != dir+"/bin/book.cgi" || v.Settings["n"] != (serai.Setting{Type: "number", Default: "3"}) {
		t.Errorf("got %+v", v)
	}
	want := []string{
		"drwxr-xr-x  ", "drwxr-xr-x /bin ", "-rwxr-xr-x /bin/book.cgi " + script.text, "-rw-r--r-- /catalogue.yaml " + about.text,
		"drwxr-xr-x /lib ", "drwxr-xr-x /lib/A ", "-rw-r--r-- /lib/A/B.pm 1;",
	}
	if got := tree(t, dir); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	again, err := s.Put("book", bytes.NewReader(pack(t, about, script, member{name: "lib/A/B.pm", text: "1;"})))
	if err != nil || again.Version != v.Version {
		t.Errorf("the same files again: %+v, %v", again, err)
	}
}

// Some versions of before stay, and nothing else does.
func TestVersions(t *testing.T) {
	s := Shelf{Dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(s.Dir, "book", ".new-x"), 0o700); err != nil {
		t.Fatal(err)
	}
	var versions []string
	for i := range 7 {
		v, err := s.Put("book", bytes.NewReader(pack(t, about, script, member{name: "n", text: fmt.Sprint(i % 6)})))
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, v.Version)
	}
	list, err := os.ReadDir(filepath.Join(s.Dir, "book"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, d := range list {
		have[d.Name()] = true
	}
	if !have[versions[5]] || !have[versions[6]] || len(have) != keep {
		t.Errorf("there are %v of %v", have, versions)
	}
	if err := s.Remove("book"); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s.Dir); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
}

func TestWrongArchives(t *testing.T) {
	many := []member{about, script}
	for i := range maxFiles {
		many = append(many, member{name: fmt.Sprint("f", i)})
	}
	whole := pack(t, about, script)
	for _, tt := range []struct {
		name    string
		members []member
		text    []byte
		says    string
	}{
		{name: "up", members: []member{about, script, {name: "../x"}}, says: `"../x" is no name for a file here`},
		{name: "up in the middle", members: []member{about, script, {name: "a/../../x"}}, says: "is no name"},
		{name: "absolute", members: []member{about, script, {name: "/etc/x"}}, says: "is no name"},
		{name: "hidden", members: []member{about, script, {name: ".htaccess"}}, says: "is no name"},
		{name: "an empty part", members: []member{about, script, {name: "a//x"}}, says: "is no name"},
		{name: "a line", members: []member{about, script, {name: "a\nb"}}, says: "is no name"},
		{name: "deep", members: []member{about, script, {name: strings.Repeat("a/", 8) + "x"}}, says: "at most 8 directories deep"},
		{name: "link", members: []member{about, script, {name: "x", kind: tar.TypeSymlink, link: "/etc/passwd"}}, says: "links and devices are not taken"},
		{name: "hard link", members: []member{about, script, {name: "x", kind: tar.TypeLink, link: "catalogue.yaml"}}, says: "links and devices"},
		{name: "device", members: []member{about, script, {name: "x", kind: tar.TypeChar}}, says: "links and devices"},
		{name: "fifo", members: []member{about, script, {name: "x", kind: tar.TypeFifo}}, says: "links and devices"},
		{name: "twice", members: []member{about, script, script}, says: "bin/book.cgi is in the archive twice"},
		{name: "file and directory", members: []member{about, script, {name: "bin"}}, says: "bin is both a file and a directory"},
		{name: "directory and file", members: []member{about, script, {name: "x", kind: tar.TypeDir}, {name: "x"}}, says: "x is both"},
		{name: "large", members: []member{about, script, {name: "x", text: strings.Repeat("x", maxBytes)}}, says: "more than 8Mi in all"},
		{name: "many", members: many, says: "more than 500 files"},
		{name: "no catalogue.yaml", members: []member{script}, says: "the directory has no catalogue.yaml"},
		{name: "no script", members: []member{about}, says: "there is no script bin/book.cgi"},
		{name: "mistakes", members: []member{{name: "catalogue.yaml", text: "title: x\nscrit: y\n"}, script}, says: "catalogue.yaml:2:1: scrit: unknown field, did you mean script?"},
		{name: "no tar", text: []byte("PK\x03\x04" + strings.Repeat("x", 1000)), says: "is no tar, or is cut off"},
		{name: "cut off", text: whole[:1300], says: "cut off"},
		{name: "empty", text: nil, says: "the directory has no catalogue.yaml"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Shelf{Dir: t.TempDir()}
			if tt.members != nil {
				tt.text = pack(t, tt.members...)
			}
			_, err := s.Put("book", bytes.NewReader(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.says) || serai.KindOf(err) != serai.Invalid {
				t.Errorf("got %v, want %q", err, tt.says)
			}
			if got := tree(t, s.Dir); len(got) != 1 {
				t.Errorf("written: %v", got)
			}
		})
	}
}

// Whatever an archive says, files and directories appear beneath the shelf and
// nothing else.
func FuzzPut(f *testing.F) {
	f.Add(pack(f, about, script))
	f.Add(pack(f, about, script, member{name: "../x"}, member{name: "x", kind: tar.TypeSymlink, link: ".."}))
	f.Add(pack(f, about, script, member{name: "lib/x", text: "y"}, member{name: "lib", kind: tar.TypeDir}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		top := t.TempDir()
		s := Shelf{Dir: filepath.Join(top, "shelf")}
		if err := os.Mkdir(s.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		v, err := s.Put("book", bytes.NewReader(archive))
		if err != nil && serai.KindOf(err) != serai.Invalid {
			t.Fatalf("an archive did what only the machine should: %v", err)
		}
		if list, _ := os.ReadDir(top); len(list) != 1 {
			t.Fatalf("beside the shelf: %v", list)
		}
		for _, line := range tree(t, s.Dir) {
			if mode := line[:10]; mode != "drwxr-xr-x" && mode != "-rw-r--r--" && mode != "-rwxr-xr-x" {
				t.Fatalf("on the shelf: %q", line)
			}
		}
		if err != nil {
			return
		}
		if info, err := os.Lstat(v.Script); err != nil || !info.Mode().IsRegular() {
			t.Fatalf("the script %s: %v", v.Script, err)
		}
	})
}
