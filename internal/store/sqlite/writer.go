package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"serai.dev/serai"
)

// maxBatch bounds how many writes share a transaction, so that the first of
// them does not wait for ever.
const maxBatch = 256

// A writer owns the one connection that writes.
type writer struct {
	db    *sql.DB
	conn  *sql.Conn
	stmts map[string]*sql.Stmt // prepared once, by their text
	keep  int64                // changes in the log
	todo  chan *job
	done  chan struct{} // closed when the goroutine has ended; nil: it never began
}

// A job is a write and the way back to who asked for it.
type job struct {
	do     func(*tx) error
	tx     tx
	result chan error
}

// A tx is a place within a transaction: it is undone alone if its job fails.
type tx struct {
	w       *writer
	changed bool // a resource changed
	event   bool // an event was added
}

func openWriter(ctx context.Context, dsn string, keep int64) (*writer, error) {
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	var mode string
	if err = conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err == nil && mode != "wal" {
		err = serai.Errorf(serai.Internal, "the file system of the database does not allow a write-ahead log, only %q", mode).
			WithHint("put stateDir on a local disk")
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close(), db.Close())
	}
	return &writer{db: db, conn: conn, stmts: map[string]*sql.Stmt{}, keep: keep, todo: make(chan *job)}, nil
}

func (w *writer) start(quit <-chan struct{}) {
	w.done = make(chan struct{})
	go w.run(quit)
}

// close waits until the last transaction has ended.
func (w *writer) close() error {
	if w.done != nil {
		<-w.done
	}
	var errs []error
	for _, s := range w.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, w.conn.Close(), w.db.Close())...)
}

// run takes the jobs that wait, all at once, until quit.
func (w *writer) run(quit <-chan struct{}) {
	defer close(w.done)
	for {
		var batch []*job
		select {
		case <-quit:
			return
		case j := <-w.todo:
			batch = append(batch, j)
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case j := <-w.todo:
				batch = append(batch, j)
			default:
				more = false
			}
		}
		w.commit(batch)
	}
}

// commit does the jobs in one transaction and tells each its result.
//
//	BEGIN ── SAVEPOINT ── job 1 ── RELEASE ── SAVEPOINT ── job 2 ✗ ROLLBACK TO ── … ── COMMIT
//
// A job that fails is undone alone. Where that is not possible, because SQLite
// gave the whole transaction up (a full disk), all of them fail. Where the
// transaction fails, so do the jobs within it.
func (w *writer) commit(batch []*job) {
	results := make([]error, len(batch))
	err := w.exec("BEGIN IMMEDIATE")
	for i := 0; i < len(batch) && err == nil; i++ {
		if err = w.exec("SAVEPOINT job"); err != nil {
			break
		}
		batch[i].tx = tx{w: w}
		if results[i] = batch[i].do(&batch[i].tx); results[i] != nil {
			if w.exec("ROLLBACK TO job") != nil {
				err = results[i]
				break
			}
		}
		err = w.exec("RELEASE job")
	}
	if err == nil {
		err = w.exec("COMMIT")
	}
	if err != nil {
		_ = w.exec("ROLLBACK") // often there is nothing left to roll back
	}
	for i, j := range batch {
		if results[i] == nil {
			results[i] = err
		}
		j.result <- results[i]
	}
}

// do hands a write to the writer and returns when it is on the disk. ctx ends
// the wait for the writer, not the write: an answer is always the truth.
func (s *Store) do(ctx context.Context, do func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return err // select picks at random
	}
	j := &job{do: do, result: make(chan error, 1)}
	select {
	case <-s.quit:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	case s.write.todo <- j:
	}
	if err := <-j.result; err != nil {
		return s.explain(err)
	}
	if j.tx.changed {
		s.changes.ring()
	}
	if j.tx.event {
		s.events.ring()
	}
	return nil
}

// stmt prepares a statement once. The writer's statements are a fixed few.
func (w *writer) stmt(query string) (*sql.Stmt, error) {
	if s := w.stmts[query]; s != nil {
		return s, nil
	}
	s, err := w.conn.PrepareContext(context.Background(), query)
	if err == nil {
		w.stmts[query] = s
	}
	return s, err
}

func (w *writer) exec(query string, args ...any) error {
	s, err := w.stmt(query)
	if err != nil {
		return err
	}
	_, err = s.Exec(args...)
	return err
}

func (t *tx) exec(query string, args ...any) error { return t.w.exec(query, args...) }

// row runs a query for one row; what went wrong comes out of Scan.
func (t *tx) row(query string, args ...any) scanner {
	s, err := t.w.stmt(query)
	if err != nil {
		return failed{err}
	}
	return s.QueryRow(args...)
}

// A scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(...any) error }

type failed struct{ err error }

func (f failed) Scan(...any) error { return f.err }
