package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// reopen opens the log as another process would that got the descriptor.
func reopen(t *testing.T, l *Log) *Reader {
	t.Helper()
	fd, err := unix.Dup(int(l.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(os.NewFile(uintptr(fd), "routes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func create(t *testing.T) *Log {
	t.Helper()
	l, err := Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestLogReadsBack(t *testing.T) {
	l := create(t)
	r := reopen(t, l)
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("Next of an empty log = %v, want io.EOF", err)
	}
	want := []Record{
		{Tenant: &Tenant{UID: 7, Name: "alice", Workers: 3, Hosts: []string{"example.com"}}},
		{Site: &Site{Number: 1, UID: 7, Tenant: "alice", Name: "shop", Hosts: []string{"shop.example.com"}, Launch: 4}},
		{Drop: 1},
		{Forget: 7},
	}
	var end Extent
	for _, rec := range want {
		var err error
		if end, err = l.Append(rec); err != nil {
			t.Fatal(err)
		}
		got, err := r.Next()
		if err != nil || !reflect.DeepEqual(got, rec) {
			t.Fatalf("Next = %+v, %v; want %+v", got, err, rec)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("Next at the end = %v, want io.EOF", err)
	}
	if r.Extent() != end || l.Extent() != end {
		t.Fatalf("extents differ: read %v, log %v, last append %v", r.Extent(), l.Extent(), end)
	}
	if second := create(t); second.Extent().Epoch == end.Epoch {
		t.Fatal("two logs have one epoch")
	}
}

func TestLogRefusesWhatIsNotOneChange(t *testing.T) {
	l := create(t)
	before := l.Extent()
	for _, rec := range []Record{{}, {Drop: 1, Forget: 2}, {Site: &Site{Number: 1}, Drop: 1},
		{Site: &Site{Number: 1, Closed: strings.Repeat("x", MaxRecord)}}} {
		if _, err := l.Append(rec); err == nil {
			t.Errorf("Append(%.80v) was taken", rec)
		}
	}
	if l.Extent() != before {
		t.Error("a refused record moved the end of the log")
	}
}

func TestLogIsSealed(t *testing.T) {
	l := create(t)
	if err := l.File().Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Fatalf("shrinking the log: %v, want EPERM", err)
	}
}

func TestGarbage(t *testing.T) {
	l := create(t)
	for _, tt := range []struct {
		rec  Record
		want string
	}{
		{Record{Site: &Site{Number: 1}}, "0.00"},
		{Record{Site: &Site{Number: 1}}, "0.50"},
		{Record{Site: &Site{Number: 2}}, "0.33"},
		{Record{Drop: 2}, "0.67"},
		{Record{Drop: 1}, "1.00"},
	} {
		if _, err := l.Append(tt.rec); err != nil {
			t.Fatal(err)
		}
		if got, _ := l.Garbage(); fmt.Sprintf("%.2f", got) != tt.want {
			t.Errorf("after %+v: garbage %.2f, want %s", tt.rec, got, tt.want)
		}
	}
}

// TestTornRecord cuts a log everywhere within its last record: the records
// before are read, the error names the offset, and what is completed later is
// read then.
func TestTornRecord(t *testing.T) {
	l := create(t)
	first, err := l.Append(Record{Drop: 1})
	if err != nil {
		t.Fatal(err)
	}
	end, err := l.Append(Record{Drop: 2})
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, end.Offset)
	if _, err := l.File().ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	for cut := first.Offset + 1; cut < end.Offset; cut++ {
		f, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(whole[:cut]); err != nil {
			t.Fatal(err)
		}
		r, err := Open(f)
		if err != nil {
			t.Fatal(err)
		}
		if rec, err := r.Next(); err != nil || rec.Drop != 1 {
			t.Fatalf("cut at %d: first record %+v, %v", cut, rec, err)
		}
		_, err = r.Next()
		if !errors.Is(err, ErrTorn) || !strings.Contains(err.Error(), fmt.Sprintf("offset %d", first.Offset)) {
			t.Fatalf("cut at %d: %v, want a torn record at %d", cut, err, first.Offset)
		}
		if _, err := f.Write(whole[cut:]); err != nil {
			t.Fatal(err)
		}
		if rec, err := r.Next(); err != nil || rec.Drop != 2 {
			t.Fatalf("completed after %d: %+v, %v", cut, rec, err)
		}
	}
}

// FuzzReader: any bytes end in io.EOF or ErrTorn, never beyond the end, and
// each record that is read changes one thing.
func FuzzReader(f *testing.F) {
	l, err := Create()
	if err != nil {
		f.Fatal(err)
	}
	defer l.Close()
	for _, rec := range []Record{{Drop: 1}, {Site: &Site{Number: 3, Hosts: []string{"a"}}}} {
		if _, err := l.Append(rec); err != nil {
			f.Fatal(err)
		}
	}
	seed := make([]byte, l.Extent().Offset)
	l.File().ReadAt(seed, 0)
	f.Add(seed)
	f.Add(seed[:len(seed)-3])
	f.Add(binary.BigEndian.AppendUint32(seed[:8:8], 1<<31))
	path := filepath.Join(f.TempDir(), "log")
	f.Fuzz(func(t *testing.T, log []byte) {
		if err := os.WriteFile(path, log, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		r, err := Open(file)
		if err != nil {
			return
		}
		for {
			rec, err := r.Next()
			if err == io.EOF || errors.Is(err, ErrTorn) {
				break
			}
			if err != nil {
				t.Fatalf("Next: %v", err)
			}
			if _, _, err := rec.object(); err != nil {
				t.Fatal(err)
			}
		}
		if r.Extent().Offset > int64(len(log)) {
			t.Fatalf("read to %d of %d", r.Extent().Offset, len(log))
		}
	})
}
