package catalogue

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// What is shipped can be added.
func TestShipped(t *testing.T) {
	dirs, err := filepath.Glob("../../catalogue/*")
	if err != nil || len(dirs) != 3 {
		t.Fatalf("%v, %v", dirs, err)
	}
	for _, dir := range dirs {
		var members []member
		for _, path := range []string{"catalogue.yaml", filepath.Base(dir) + ".cgi"} {
			text, err := os.ReadFile(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			members = append(members, member{name: path, text: string(text), mode: 0o755})
		}
		v, err := Shelf{Dir: t.TempDir()}.Put(filepath.Base(dir), bytes.NewReader(pack(t, members...)))
		if err != nil || v.Title == "" {
			t.Errorf("%s: %+v, %v", dir, v, err)
		}
	}
}
