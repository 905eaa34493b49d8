package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
	"serai.dev/serai/internal/store/storetest"
)

// The tests only write these numbers down: no account is made.
const firstUID, lastUID = 1900000000, 1900000999

// childEnv makes the test binary one of the processes below instead.
const childEnv = "SERAI_STORE_CHILD"

func TestMain(m *testing.M) {
	child := map[string]func(path string) error{"writer": writeUntilKilled, "full": fillDisk}[os.Getenv(childEnv)]
	if child == nil {
		os.Exit(m.Run())
	}
	if err := child(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func childCommand(t *testing.T, child, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], path)
	cmd.Env = append(os.Environ(), childEnv+"="+child)
	return cmd
}

func testOptions() Options { return Options{FirstUID: firstUID, LastUID: lastUID} }

func openTest(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func newSite(tenant, name string, n int) *serai.Site {
	s := serai.NewResource(serai.KindSite).(*serai.Site)
	s.Meta.Tenant, s.Meta.Name = tenant, name
	s.Spec = serai.SiteSpec{
		Hosts: []string{name + ".example"}, Root: name, Engine: "perl", Perl: &serai.Perl{App: "app.psgi"},
		Workers: serai.DefaultWorkers(), Env: map[string]string{"N": fmt.Sprint(n)},
	}
	return s
}

func newTenant(name string) *serai.Tenant {
	t := serai.NewResource(serai.KindTenant).(*serai.Tenant)
	t.Meta.Name = name
	t.Spec = serai.TenantSpec{Plan: "small", Account: serai.Account{Create: true}}
	return t
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		o := testOptions()
		o.KeepChanges = 200
		return openTest(t, filepath.Join(t.TempDir(), "serai.db"), o)
	})
}

// TestReopen also tries a path that means something else in a URI.
func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?mode=memory&x=%41#é.db")
	s := openTest(t, path, testOptions())
	tenant, err := s.Create(t.Context(), newTenant("alice"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the database: %v, %v; want mode 0600", info.Mode(), err)
	}

	s = openTest(t, path, testOptions())
	if again, err := s.Get(t.Context(), tenant.Key()); err != nil || !reflect.DeepEqual(again, tenant) {
		t.Errorf("after opening again: %+v, %v; want %+v", again, err, tenant)
	}
	// The watch of before goes on.
	ch, err := s.Watch(t.Context(), "0")
	if err != nil {
		t.Fatal(err)
	}
	if c := <-ch; c.Resource == nil || c.Resource.Key() != tenant.Key() {
		t.Errorf("the first change is %+v, want the tenant", c)
	}
}

// TestPragmas: a misspelt pragma is ignored by SQLite without a word.
func TestPragmas(t *testing.T) {
	s := openTest(t, filepath.Join(t.TempDir(), "serai.db"), testOptions())
	for _, tt := range []struct{ pragma, writer, reader string }{
		{"journal_mode", "wal", "wal"},
		{"synchronous", "2", "2"}, // FULL
		{"foreign_keys", "1", "1"},
		{"busy_timeout", "10000", "10000"},
		{"journal_size_limit", "16777216", "16777216"},
		{"query_only", "0", "1"},
	} {
		var writer, reader string
		must(t, s.write.conn.QueryRowContext(t.Context(), "PRAGMA "+tt.pragma).Scan(&writer))
		must(t, s.read.QueryRowContext(t.Context(), "PRAGMA "+tt.pragma).Scan(&reader))
		if writer != tt.writer || reader != tt.reader {
			t.Errorf("%s is %s for the writer and %s for readers, want %s and %s", tt.pragma, writer, reader, tt.writer, tt.reader)
		}
	}
}

// TestBatch: a write that fails leaves its neighbours in the same transaction
// alone, and is undone itself.
func TestBatch(t *testing.T) {
	s := &Store{path: filepath.Join(t.TempDir(), "serai.db")}
	w, err := openWriter(t.Context(), s.dsn(), 100)
	must(t, err)
	defer func() { must(t, w.close()) }()
	must(t, migrate(t.Context(), w.conn, s.path))

	number := func(t *tx) error { _, err := t.nextID(serai.KindSite); return err }
	jobs := make([]*job, 6)
	for i := range jobs {
		do := number
		if i%2 == 1 {
			do = func(t *tx) error { return errors.Join(number(t), errOdd) }
		}
		jobs[i] = &job{do: do, result: make(chan error, 1)}
	}
	w.commit(jobs)
	for i, j := range jobs {
		if err := <-j.result; (i%2 == 1) != errors.Is(err, errOdd) {
			t.Errorf("job %d: %v", i, err)
		}
	}
	last := func() (n int) {
		must(t, w.conn.QueryRowContext(t.Context(), "SELECT last FROM sequences WHERE name = 'Site'").Scan(&n))
		return n
	}
	if last() != 3 {
		t.Errorf("after 3 jobs that succeeded the sequence is at %d", last())
	}

	// Where SQLite gives the whole transaction up, nobody is told otherwise.
	jobs[1].do = func(t *tx) error { return errors.Join(t.exec("ROLLBACK"), errOdd) }
	w.commit(jobs)
	for i, j := range jobs {
		if err := <-j.result; !errors.Is(err, errOdd) {
			t.Errorf("job %d of a transaction that was given up: %v", i, err)
		}
	}
	if last() != 3 {
		t.Errorf("a transaction that was given up moved the sequence to %d", last())
	}
}

var errOdd = errors.New("odd")

// TestSlowReader: one that is too far behind is told by a closed channel.
func TestSlowReader(t *testing.T) {
	o := testOptions()
	o.KeepChanges = changesAtOnce
	s := openTest(t, filepath.Join(t.TempDir(), "serai.db"), o)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of a watch that never ends
	defer cancel()
	ch, err := s.Watch(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 * changesAtOnce {
		if _, err := s.Create(t.Context(), newSite("alice", fmt.Sprint("s", i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for range ch {
		n++
	}
	if n > 2*changesAtOnce || ctx.Err() != nil {
		t.Errorf("the reader got %d changes: %v", n, ctx.Err())
	}
}

func TestUIDRange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serai.db")
	for _, step := range []struct {
		first, last uint32
		tenant      string
		want        int64 // 0: none is left
	}{
		{0, 0, "a", 0},
		{200, 202, "a", 200},
		{200, 202, "b", 201},
		{100, 101, "c", 100}, // the range moved
		{100, 101, "d", 101},
		{100, 101, "e", 0},
		{200, 202, "e", 202}, // and came back
		{200, 202, "f", 0},
		{200, 203, "f", 203},
	} {
		s := openTest(t, path, Options{FirstUID: step.first, LastUID: step.last})
		out, err := s.Create(t.Context(), newTenant(step.tenant))
		switch {
		case step.want == 0 && (serai.KindOf(err) != serai.Unavailable || !strings.Contains(err.Error(), "accounts.range")):
			t.Errorf("%+v: error %v, want that no uid is left", step, err)
		case step.want != 0 && err != nil:
			t.Errorf("%+v: %v", step, err)
		case step.want != 0 && out.GetMeta().ID != step.want:
			t.Errorf("%+v: uid %d", step, out.GetMeta().ID)
		}
		if err == nil {
			if err := s.Delete(t.Context(), out.Key(), ""); err != nil { // removal frees nothing
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenFails(t *testing.T) {
	for _, tt := range []struct {
		name, says, hint string
		kind             serai.Kind
		prepare          func(t *testing.T, path string)
	}{
		{"no directory", "the directory of the database %s does not exist", "stateDir", serai.Internal, func(t *testing.T, path string) {
			must(t, os.Remove(filepath.Dir(path)))
		}},
		{"a directory", "the database %s cannot be opened for reading and writing", "belong to the user", serai.Internal, func(t *testing.T, path string) {
			must(t, os.Mkdir(path, 0o700))
		}},
		{"not a database", "the database %s is damaged or is not a database", "restore a backup", serai.Internal, func(t *testing.T, path string) {
			must(t, os.WriteFile(path, bytes.Repeat([]byte("serai "), 1000), 0o600))
		}},
		{"damaged", "the database %s is damaged or is not a database", "restore a backup", serai.Internal, func(t *testing.T, path string) {
			must(t, openTest(t, path, testOptions()).Close())
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, 3000), 100) // the schema
			must(t, err)
			must(t, f.Close())
		}},
		{"newer", "the database %s has schema 99", "restore a backup", serai.Internal, func(t *testing.T, path string) {
			s := openTest(t, path, testOptions())
			_, err := s.write.conn.ExecContext(t.Context(), "PRAGMA user_version = 99")
			must(t, err)
			must(t, s.Close())
		}},
		{"in use", "the database %s is in use by another process", "the same stateDir", serai.Unavailable, func(t *testing.T, path string) {
			openTest(t, path, testOptions())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state", "serai.db")
			must(t, os.Mkdir(filepath.Dir(path), 0o700))
			tt.prepare(t, path)
			s, err := Open(t.Context(), path, testOptions())
			if err == nil {
				s.Close()
				t.Fatal("Open succeeded")
			}
			if want := fmt.Sprintf(tt.says, path); !strings.HasPrefix(serai.Message(err), want) || serai.KindOf(err) != tt.kind {
				t.Errorf("Open says %q (%v: %v), want %q (%v)", serai.Message(err), serai.KindOf(err), err, want, tt.kind)
			}
			if hint := serai.HintOf(err); !strings.Contains(hint, tt.hint) {
				t.Errorf("the hint is %q, want something with %q", hint, tt.hint)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestOpenFailsCleanly: a failed Open keeps neither lock nor file.
func TestOpenFailsCleanly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serai.db")
	must(t, os.WriteFile(path, bytes.Repeat([]byte("serai "), 1000), 0o600))
	if _, err := Open(t.Context(), path, testOptions()); err == nil {
		t.Fatal("Open succeeded")
	}
	must(t, os.Remove(path))
	openTest(t, path, testOptions())
}

// TestFullDisk fills a disk of 4 MiB, in a mount namespace of its own so that
// nothing can be left behind.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	cmd := childCommand(t, "full", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// fillDisk runs in the child of TestFullDisk.
func fillDisk(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		return fmt.Errorf("mount a small disk: %w", err)
	}
	ctx, path, filler := context.Background(), filepath.Join(dir, "serai.db"), filepath.Join(dir, "filler")
	s, err := Open(ctx, path, testOptions())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); err != nil {
		return err
	}
	n := 0
	for err == nil && n < 100_000 {
		if _, err = s.Create(ctx, newSite("alice", fmt.Sprint("s", n), 0)); err == nil {
			n++
		}
	}
	if n == 0 || serai.KindOf(err) != serai.Unavailable || serai.Message(err) != "the disk of the database "+path+" is full, nothing was changed" ||
		serai.HintOf(err) == "" {
		return fmt.Errorf("after %d sites: %q, hint %q: %w", n, serai.Message(err), serai.HintOf(err), err)
	}
	count := func(when string) error {
		all, _, err := s.List(ctx, serai.KindSite, "")
		if err == nil && len(all) != n {
			err = fmt.Errorf("%s there are %d sites, %d were acknowledged", when, len(all), n)
		}
		return err
	}
	if err := count("on the full disk"); err != nil {
		return err
	}
	// With space again it goes on, without a restart.
	if err := os.Remove(filler); err != nil {
		return err
	}
	if _, err := s.Create(ctx, newSite("alice", "last", 0)); err != nil {
		return fmt.Errorf("with space again: %w", err)
	}
	n++
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = Open(ctx, path, testOptions()); err != nil {
		return err
	}
	if err := count("after opening again"); err != nil {
		return err
	}
	if err := consistent(ctx, s); err != nil {
		return err
	}
	return s.Close()
}

func BenchmarkCreate(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("among=%d", n), func(b *testing.B) {
			s := openTest(b, filepath.Join(b.TempDir(), "serai.db"), testOptions())
			fill(b, s, n)
			i := 0
			for b.Loop() {
				if _, err := s.Create(b.Context(), newSite("bob", fmt.Sprint("new", i), 0)); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func BenchmarkCreateTogether(b *testing.B) {
	s := openTest(b, filepath.Join(b.TempDir(), "serai.db"), testOptions())
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := s.Create(b.Context(), newSite(fmt.Sprintf("%p", pb), fmt.Sprint("new", i), 0)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkList(b *testing.B) {
	const n = 10_000
	s := openTest(b, filepath.Join(b.TempDir(), "serai.db"), testOptions())
	fill(b, s, n)
	for b.Loop() {
		if all, _, err := s.List(b.Context(), serai.KindSite, ""); err != nil || len(all) != n {
			b.Fatal(len(all), err)
		}
	}
}

// fill makes n sites under 10 tenants, many a transaction.
func fill(b *testing.B, s *Store, n int) {
	b.Helper()
	errs := make(chan error)
	const writers = 50
	for w := range writers {
		go func() {
			var err error
			for i := w; i < n && err == nil; i += writers {
				_, err = s.Create(context.Background(), newSite(fmt.Sprint("t", i%10), fmt.Sprint("s", i), 0))
			}
			errs <- err
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			b.Fatal(err)
		}
	}
}
