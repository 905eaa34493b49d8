// Package sqlite keeps the resources in one SQLite file. All SQL of the
// project is here.
//
// One goroutine writes, on one connection, and puts the writes that wait at
// the same time into one transaction, so that they share one sync of the disk.
// Readers have connections of their own and never wait for the writer (WAL).
// Each change of a resource is also a row of a log, which is what watchers
// read: a slow one costs a position in that log and no memory.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/url"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // registers the driver "sqlite"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

// Options are what a store needs to know. The zero value has no uid to give.
type Options struct {
	// FirstUID to LastUID, both included, are given to tenants whose account
	// is created. Other tenants bring their uid as Meta.ID.
	FirstUID, LastUID uint32
	// KeepChanges is how many changes a watch can be behind before it has
	// Expired; 0 is 100,000.
	KeepChanges int64
}

const (
	defaultKeepChanges = 100_000
	readers            = 4
	// A day-long lock by somebody's sqlite3 shell must not hang us, a backup's
	// short one must not fail us.
	busyMillis = 10_000
)

// Store implements store.Store.
type Store struct {
	path string
	o    Options
	lock *os.File // held while we are open: the bells ring in this process only

	read  *sql.DB
	write *writer

	changes, events bell
	quit            chan struct{} // closed by Close

	mu       sync.Mutex // no watch begins once quit is closed
	watchers sync.WaitGroup
	closing  sync.Once
	closed   error
}

var _ store.Store = (*Store)(nil)

//go:embed migrations/*.sql
var migrations embed.FS

// Open opens the database, makes it where there is none and brings it to the
// present schema. Its directory must exist. Only one Store at a time can have
// a file open: Unavailable for the second. The sentence of an error names the
// path and what to do.
func Open(ctx context.Context, path string, o Options) (_ *Store, err error) {
	if o.KeepChanges == 0 {
		o.KeepChanges = defaultKeepChanges
	}
	s := &Store{path: path, o: o, quit: make(chan struct{})}
	// The lock comes first and lies in a file of its own: closing any
	// descriptor of the database would drop the locks SQLite has on it.
	if s.lock, err = lock(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(s.explain(err), s.Close())
		}
	}()
	// The file holds the tenants' environment: SQLite itself would make it
	// readable to all. Its companions -wal and -shm take the mode over.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if s.write, err = openWriter(ctx, s.dsn(), o.KeepChanges); err != nil {
		return nil, err
	}
	if err := migrate(ctx, s.write.conn, path); err != nil {
		return nil, err
	}
	if s.read, err = sql.Open("sqlite", s.dsn("query_only(1)")); err != nil {
		return nil, err
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	if err := s.read.PingContext(ctx); err != nil {
		return nil, err
	}
	s.write.start(s.quit)
	return s, nil
}

// Close waits for the writes under way, ends the watches and closes the file.
// It may be called again.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		close(s.quit)
		s.mu.Unlock()
		s.watchers.Wait()
		var errs []error
		if s.read != nil {
			errs = append(errs, s.read.Close())
		}
		if s.write != nil {
			errs = append(errs, s.write.close())
		}
		s.closed = errors.Join(append(errs, s.lock.Close())...)
	})
	return s.closed
}

func (s *Store) dsn(pragmas ...string) string {
	q := url.Values{"_pragma": append([]string{
		fmt.Sprintf("busy_timeout(%d)", busyMillis), "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
		// A burst of writes must not leave a huge log behind.
		fmt.Sprintf("journal_size_limit(%d)", 16<<20),
	}, pragmas...)}
	return "file:" + (&url.URL{Path: s.path}).EscapedPath() + "?" + q.Encode()
}

// lock makes sure that nobody else has the database open. The kernel drops the
// lock when the process ends, however it ends.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path+"-lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, explainFile(path, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, serai.Errorf(serai.Unavailable, "the database %s is in use by another process", path).
			WithHint("is another serai running with the same stateDir?")
	}
	return nil, explainFile(path, err)
}

// migrate runs the numbered scripts that the database has not seen, each in a
// transaction of its own.
func migrate(ctx context.Context, conn *sql.Conn, path string) error {
	scripts, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return err
	}
	var version int
	if err := conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(scripts) {
		return serai.Errorf(serai.Internal, "the database %s has schema %d, this serai knows up to %d: it was written by a newer serai",
			path, version, len(scripts)).WithHint("install that version again, or restore a backup made by this one")
	}
	for i, name := range scripts[version:] {
		script, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		all := fmt.Sprintf("BEGIN IMMEDIATE;\n%s;\nPRAGMA user_version = %d;\nCOMMIT;", script, version+i+1)
		if _, err := conn.ExecContext(ctx, all); err != nil {
			_, _ = conn.ExecContext(ctx, "ROLLBACK") // the first error counts
			return fmt.Errorf("run %s: %w", strings.TrimPrefix(name, "migrations/"), err)
		}
	}
	return nil
}

// nextID gives the next number of a sequence out.
func (t *tx) nextID(sequence string) (id int64, err error) {
	err = t.row("UPDATE sequences SET last = last + 1 WHERE name = ? RETURNING last", sequence).Scan(&id)
	if err == nil && id > math.MaxUint32 && (sequence == serai.KindSite || sequence == serai.KindPlan) {
		return 0, serai.Errorf(serai.Unavailable, "no number is left for a %s", strings.ToLower(sequence))
	}
	return id, err
}
