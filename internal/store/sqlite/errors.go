package sqlite

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"serai.dev/serai"
)

var errClosed = serai.Errorf(serai.Unavailable, "the store is closed")

// explain turns what SQLite or the system says into a sentence that names the
// file and what to do. Errors that are such sentences already pass.
func (s *Store) explain(err error) error {
	if _, ok := errors.AsType[*serai.Error](err); ok || err == nil ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		select {
		case <-s.quit:
			return errClosed
		default:
			return explainFile(s.path, err)
		}
	}
	switch e.Code() & 0xff { // the rest is detail
	case sqlite3.SQLITE_FULL:
		return full(s.path, err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return because(serai.Errorf(serai.Internal, "the database %s is damaged or is not a database", s.path).
			WithHint("stop serai, move the file and its -wal and -shm aside, and restore a backup"), err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return because(serai.Errorf(serai.Unavailable, "another program holds a lock on the database %s", s.path).
			WithHint("end it: fuser %s", s.path), err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH:
		return forbidden(s.path, err)
	case sqlite3.SQLITE_IOERR:
		if noRoom(s.path) { // the -shm file could not be made
			return full(s.path, err)
		}
		return because(serai.Errorf(serai.Internal, "the disk below the database %s does not read or write", s.path).
			WithHint("see what the kernel says about it: dmesg"), err)
	}
	return err
}

// explainFile is explain for errors of system calls.
func explainFile(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EISDIR):
		return forbidden(path, err)
	case errors.Is(err, fs.ErrNotExist):
		return because(serai.Errorf(serai.Internal, "the directory of the database %s does not exist", path).
			WithHint("make it, or set stateDir in serai.yaml"), err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return full(path, err)
	}
	return err
}

// noRoom reports whether nothing more fits on the disk of a file.
func noRoom(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Bavail == 0
}

func full(path string, cause error) error {
	return because(serai.Errorf(serai.Unavailable, "the disk of the database %s is full, nothing was changed", path).
		WithHint("free some space there and try again"), cause)
}

func forbidden(path string, cause error) error {
	return because(serai.Errorf(serai.Internal, "the database %s cannot be opened for reading and writing", path).
		WithHint("the file and its directory must belong to the user that serai runs as, on a disk that is writable"), cause)
}

func because(e *serai.Error, cause error) error {
	e.Err = cause
	return e
}
