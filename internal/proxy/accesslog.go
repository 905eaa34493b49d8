package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Access logs are rotated by size: shop.log, shop.log.1 … shop.log.5.
const (
	logSize  = 10 << 20
	logCount = 5
)

// The times of access logs: how long a line may stay in memory, and how long a
// file is kept open without one.
const (
	logFlush = 100 * time.Millisecond
	logIdle  = time.Minute
)

// logBuffer is how much a log keeps in memory before it writes.
const logBuffer = 32 << 10

// unknownLog is for requests that no site was found for.
const unknownLog = "_unknown"

// An accessLog writes one file for each site. What cannot be written, on a full
// disk say, is counted and dropped: requests never wait for it.
type accessLog struct {
	dir    string
	format func([]byte, *entry) []byte
	log    *slog.Logger
	size   int64     // at which a file is rotated
	all    io.Writer // instead of files; nil where there are files

	mu    sync.Mutex
	files map[string]*logFile // by path below dir, without extension
	dirty []*logFile          // have lines in memory
	wake  chan struct{}       // dirty has got its first; has room for one
}

// A logFile is one site's.
type logFile struct {
	path string

	mu      sync.Mutex
	f       *os.File
	size    int64
	buf     []byte
	lines   int64 // in buf
	lost    int64 // since writing began to fail
	used    time.Time
	dirty   bool // among the log's dirty ones
	retired bool // swept: get another
}

func newAccessLog(dir string, format func([]byte, *entry) []byte, log *slog.Logger) *accessLog {
	return &accessLog{dir: dir, format: format, log: log, size: logSize, files: make(map[string]*logFile), wake: make(chan struct{}, 1)}
}

// write adds an entry to a site's log. tenant is empty for unknown hosts.
func (a *accessLog) write(tenant, site string, e *entry) {
	if a.all != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.all.Write(a.format(nil, e)) // one who does not read it gets none
		return
	}
	name := unknownLog
	if tenant != "" {
		name = filepath.Join(tenant, site)
	}
	for {
		a.mu.Lock()
		l := a.files[name]
		if l == nil {
			l = &logFile{path: filepath.Join(a.dir, name) + ".log"}
			a.files[name] = l
		}
		a.mu.Unlock()
		l.mu.Lock()
		if l.retired {
			l.mu.Unlock()
			continue
		}
		l.buf = a.format(l.buf, e)
		l.lines++
		l.used = time.Now()
		if len(l.buf) >= logBuffer {
			a.flush(l)
		} else if !l.dirty {
			l.dirty = true
			a.mu.Lock()
			a.dirty = append(a.dirty, l)
			a.mu.Unlock()
			signal(a.wake)
		}
		l.mu.Unlock()
		return
	}
}

// run flushes and closes files until ctx ends, then all of them. While nothing
// is written it has nothing to do.
func (a *accessLog) run(ctx context.Context) {
	flush := time.NewTimer(0)
	<-flush.C
	tick := time.NewTicker(logIdle)
	defer tick.Stop()
	for {
		select {
		case <-a.wake:
			flush.Reset(logFlush)
		case <-flush.C:
			a.flushDirty()
		case <-tick.C:
			a.sweep(logIdle)
		case <-ctx.Done():
			a.sweep(-1)
			return
		}
	}
}

// flushDirty writes what is in memory.
func (a *accessLog) flushDirty() {
	a.mu.Lock()
	dirty := a.dirty
	a.dirty = nil
	a.mu.Unlock()
	for _, l := range dirty {
		l.mu.Lock()
		l.dirty = false
		a.flush(l)
		l.mu.Unlock()
	}
}

// sweep writes what is in memory, and closes files that had no line for longer
// than idle.
func (a *accessLog) sweep(idle time.Duration) {
	a.mu.Lock()
	files := make(map[string]*logFile, len(a.files))
	for name, l := range a.files {
		files[name] = l
	}
	a.mu.Unlock()
	for name, l := range files {
		l.mu.Lock()
		a.flush(l)
		if time.Since(l.used) > idle {
			l.retired = true
			if l.f != nil {
				l.f.Close()
				l.f = nil
			}
		}
		retired := l.retired
		l.mu.Unlock()
		if retired {
			a.mu.Lock()
			delete(a.files, name)
			a.mu.Unlock()
		}
	}
}

// flush writes a log's buffer. The first failure is said, and the end of the
// trouble with the number of lines that were lost. l.mu is held.
func (a *accessLog) flush(l *logFile) {
	if len(l.buf) == 0 {
		return
	}
	err := a.put(l)
	switch {
	case err != nil && l.lost == 0:
		a.log.Error("access log not written", "path", l.path, "cause", err)
	case err == nil && l.lost > 0:
		a.log.Info("access log written again", "path", l.path, "lost", l.lost)
		l.lost = 0
	}
	if err != nil {
		l.lost += l.lines
	}
	l.lines = 0
	if l.buf = l.buf[:0]; cap(l.buf) > 4*logBuffer {
		l.buf = nil
	}
}

func (a *accessLog) put(l *logFile) error {
	if l.f != nil && l.size+int64(len(l.buf)) > a.size {
		l.f.Close()
		l.f = nil
		if err := rotate(l.path); err != nil {
			return err
		}
	}
	if l.f == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	n, err := l.f.Write(l.buf)
	l.size += int64(n)
	if err != nil && n > 0 && l.f.Truncate(l.size-int64(n)) == nil {
		l.size -= int64(n) // no half lines
	}
	return err
}

func (l *logFile) open() error {
	flags := os.O_WRONLY | os.O_APPEND | os.O_CREATE | unix.O_NOFOLLOW
	f, err := os.OpenFile(l.path, flags, 0o640)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(l.path), 0o750); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		f, err = os.OpenFile(l.path, flags, 0o640)
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, info.Size()
	return nil
}

// rotate moves a full file and its predecessors one on.
func rotate(path string) error {
	for i := logCount - 1; i > 0; i-- {
		err := os.Rename(path+"."+strconv.Itoa(i), path+"."+strconv.Itoa(i+1))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Rename(path, path+".1")
}
