// Package catalogue keeps the files of the operator's catalogue: a directory
// for each version of each entry, which is written once and never changed.
//
//	DIR/guestbook/3f2a91c04d7e/catalogue.yaml
//	DIR/guestbook/3f2a91c04d7e/guestbook.cgi
//
// They belong to seraid's account and can be read by all; tenants, the
// catalogue's own among them, see them on a mount that is read-only. Nothing
// in them is run here.
package catalogue

import (
	"archive/tar"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/manifest"
)

// Limits of an entry.
const (
	maxFiles = 500
	maxBytes = 8 << 20 // of all files
	maxDepth = 8
)

// MaxTar bounds the archive of an entry, in bytes.
const MaxTar = maxBytes + 2<<20

// keep is how many versions of an entry stay: what runs may be older than the
// newest, where the newest did not load.
const keep = 4

// A Shelf is the directory of the catalogue. Its methods may be called
// concurrently, but for one entry one after the other.
type Shelf struct{ Dir string }

// A Version of an entry, as it was put on the shelf.
type Version struct {
	serai.Catalogue
	Script string // absolute
}

// namePattern is what files may be called: no dotfiles, nothing that a shell or
// a URL takes for more.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$`)

// Put reads an entry as a tar and puts it on the shelf beside its other
// versions. Regular files and directories are taken and nothing else. Invalid
// where the archive or its catalogue.yaml is wrong; then nothing was changed.
func (s Shelf) Put(name string, archive io.Reader) (v Version, err error) {
	files, err := read(archive)
	if err != nil {
		return v, err
	}
	about := files[manifest.EntryFile]
	if about == nil {
		return v, serai.Errorf(serai.Invalid, "the directory has no %s", manifest.EntryFile).
			WithHint("write one: title: Guest book, script: guestbook.cgi")
	}
	entry, err := manifest.ParseEntry(manifest.File{Name: manifest.EntryFile, Text: about.text})
	if err != nil {
		return v, err
	}
	if files[entry.Script] == nil {
		return v, serai.Errorf(serai.Invalid, "%s: there is no script %s in the directory", manifest.EntryFile, entry.Script)
	}
	v.Catalogue = serai.Catalogue{Title: entry.Title, Version: sum(files), Settings: entry.Settings}
	dir := filepath.Join(s.Dir, name)
	v.Script = filepath.Join(dir, v.Version, entry.Script)
	if err := s.write(dir, v.Version, files); err != nil {
		return v, fmt.Errorf("keep the entry %s: %w", name, err)
	}
	return v, nil
}

// Remove takes an entry with all its versions off the shelf.
func (s Shelf) Remove(name string) error { return os.RemoveAll(filepath.Join(s.Dir, name)) }

// A file of an entry.
type file struct {
	text []byte
	run  bool // it may be executed
}

func read(archive io.Reader) (map[string]*file, error) {
	invalid := func(format string, args ...any) error { return serai.Errorf(serai.Invalid, format, args...) }
	files, dirs := map[string]*file{}, map[string]bool{}
	left := int64(maxBytes)
	for in := tar.NewReader(archive); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, &serai.Error{Kind: serai.Invalid, Msg: "the archive is no tar, or is cut off", Err: err}
		}
		at := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
		if h.Typeflag == tar.TypeDir && (at == "" || at == ".") {
			continue
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
			return nil, invalid("%.200q is neither a file nor a directory: links and devices are not taken", h.Name)
		}
		parts := strings.Split(at, "/")
		if len(parts) > maxDepth || slices.ContainsFunc(parts, func(p string) bool { return !namePattern.MatchString(p) }) {
			return nil, invalid("%.200q is no name for a file here: use letters, digits, points, - and _, not a point first, at most %d directories deep", h.Name, maxDepth)
		}
		if h.Typeflag == tar.TypeDir {
			dirs[at] = true
			continue
		}
		if files[at] != nil {
			return nil, invalid("%s is in the archive twice", at)
		}
		if left -= h.Size; left < 0 {
			return nil, invalid("the files have more than %s in all", serai.Bytes(maxBytes))
		}
		text, err := io.ReadAll(in)
		if err != nil {
			return nil, &serai.Error{Kind: serai.Invalid, Msg: "the archive is cut off", Err: err}
		}
		if files[at] = (&file{text, h.Mode&0o100 != 0}); len(files) > maxFiles {
			return nil, invalid("there are more than %d files", maxFiles)
		}
	}
	for at := range files {
		for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) {
			if files[dir] != nil {
				return nil, invalid("%s is both a file and a directory", dir)
			}
		}
		if dirs[at] {
			return nil, invalid("%s is both a file and a directory", at)
		}
	}
	return files, nil
}

// sum names a version by its content.
func sum(files map[string]*file) string {
	h := sha256.New()
	for _, at := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s\x00%t\x00%d\x00%s", at, files[at].run, len(files[at].text), files[at].text)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}

// write makes the directory of a version, whole or not at all.
func (s Shelf) write(dir, version string, files map[string]*file) (err error) {
	// A version that comes back is the newest again.
	if err := os.Chtimes(filepath.Join(dir, version), time.Time{}, time.Now()); err == nil {
		return nil
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(fresh))
		}
	}()
	for at, f := range files {
		for parent := range parents(at) {
			if err := makeDir(filepath.Join(fresh, parent)); err != nil {
				return err
			}
		}
		mode := fs.FileMode(0o644)
		if f.run {
			mode = 0o755
		}
		to := filepath.Join(fresh, at)
		// The umask is that of a process whose files are nobody's business.
		if err := errors.Join(os.WriteFile(to, f.text, mode), os.Chmod(to, mode)); err != nil {
			return err
		}
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	if err := os.Rename(fresh, filepath.Join(dir, version)); err != nil {
		return err
	}
	return forget(dir)
}

// parents are the directories above a file, the topmost first.
func parents(at string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for i, c := range at {
			if c == '/' && !yield(at[:i]) {
				return
			}
		}
	}
}

func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// forget removes the oldest versions, and what an end in the middle has left.
func forget(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type version struct {
		name string
		when int64
	}
	var versions []version
	for _, d := range list {
		info, err := d.Info()
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") {
			if err := os.RemoveAll(filepath.Join(dir, d.Name())); err != nil {
				return err
			}
			continue
		}
		versions = append(versions, version{d.Name(), info.ModTime().UnixNano()})
	}
	slices.SortFunc(versions, func(a, b version) int { return cmp.Compare(b.when, a.when) })
	for _, v := range versions[min(keep, len(versions)):] {
		if err := os.RemoveAll(filepath.Join(dir, v.name)); err != nil {
			return err
		}
	}
	return nil
}
