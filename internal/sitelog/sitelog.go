// Package sitelog keeps what sites write to their standard output and error,
// and the logs of tenants' mail:
// it copies each log pipe to a file, a line with the time before it, and reads
// logs for people. What comes out of a pipe is hostile: control characters are
// escaped, long lines are cut, and one site that floods takes turns with the
// others.
package sitelog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
)

const (
	maxLine  = 8 << 10     // bytes of a line; the rest is cut off
	turn     = 32 << 10    // bytes read from a pipe at once
	writers  = 4           // turns that are written at once
	lineWait = time.Second // an unfinished line is written after it
)

// Logs are the logs of all sites. Its methods may be called concurrently.
type Logs struct {
	cfg   *config.Config
	log   *slog.Logger
	turns chan struct{} // whoever waits longest goes first
	wg    sync.WaitGroup

	mu    sync.Mutex
	files map[serai.Key]*open
	pipes map[uint64]*os.File // being read, by inode
	ended bool

	followers int

	mail sync.Mutex // one line at a time
}

// open is a file and how many write to it.
type open struct {
	file
	users int
}

// New makes Logs that hold no file yet.
func New(cfg *config.Config, log *slog.Logger) *Logs {
	return &Logs{
		cfg: cfg, log: log, turns: make(chan struct{}, writers),
		files: make(map[serai.Key]*open), pipes: make(map[uint64]*os.File),
	}
}

// Path is the file of a site.
func (l *Logs) Path(site serai.Key) string {
	return filepath.Join(l.cfg.SiteLogDir(site.Tenant), site.Name+".log")
}

// AccessPath is the site's access log, which the proxy writes.
func (l *Logs) AccessPath(site serai.Key) string {
	return filepath.Join(l.cfg.AccessLogDir(site.Tenant), site.Name+".log")
}

// MailPath is the log of a tenant's mail.
func (l *Logs) MailPath(tenant string) string {
	return filepath.Join(l.cfg.MailLogDir(tenant), "mail.log")
}

// Mail adds a line to the log of a tenant's mail, with the time before it.
func (l *Logs) Mail(tenant, line string) error {
	l.mail.Lock()
	defer l.mail.Unlock()
	f := file{path: l.MailPath(tenant)}
	defer f.close()
	return f.write(append(appendPrintable(appendStamp(nil, time.Now()), []byte(line)), '\n'), 1)
}

// Keep copies a log pipe to the site's log until the pipe ends or Close. It
// takes over the file and does not wait. A pipe that is being read already is
// not read twice.
func (l *Logs) Keep(site serai.Key, pipe *os.File) {
	pipe, inode, err := polled(pipe)
	if err != nil {
		l.log.Warn("log pipe not read", "site", site.String(), "cause", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || l.pipes[inode] != nil {
		pipe.Close()
		return
	}
	l.pipes[inode] = pipe
	f := l.use(site)
	l.wg.Go(func() {
		if err := l.copy(site, pipe, &f.file); err != nil {
			l.log.Warn("log pipe ended", "site", site.String(), "cause", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		pipe.Close()
		delete(l.pipes, inode)
		l.release(site, f)
	})
}

// Tell adds a line of our own to the site's log. What is in it may be hostile.
// It waits for the disk.
func (l *Logs) Tell(site serai.Key, line string) {
	var one splitter
	one.add([]byte(strings.ReplaceAll(line, "\n", " ") + "\n"))
	text, count := one.take()
	l.mu.Lock()
	f := l.use(site)
	l.mu.Unlock()
	if err := f.write(text, count); err != nil {
		l.log.Error("log lines lost", "site", site.String(), "cause", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.release(site, f)
}

// use gives the file of a site to one more user. l.mu is held.
func (l *Logs) use(site serai.Key) *open {
	f := l.files[site]
	if f == nil {
		f = &open{file: file{path: l.Path(site)}}
		l.files[site] = f
	}
	f.users++
	return f
}

// release closes a file that nobody uses any more. l.mu is held.
func (l *Logs) release(site serai.Key, f *open) {
	if f.users--; f.users > 0 {
		return
	}
	f.close()
	if l.files[site] == f {
		delete(l.files, site)
	}
}

// polled makes a pipe that a deadline works on, and names it by its inode.
func polled(pipe *os.File) (*os.File, uint64, error) {
	defer pipe.Close()
	fd, err := unix.FcntlInt(pipe.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, 0, err
	}
	p := os.NewFile(uintptr(fd), "log pipe")
	info, err := p.Stat()
	if err != nil {
		p.Close()
		return nil, 0, err
	}
	return p, info.Sys().(*syscall.Stat_t).Ino, nil
}

// copy is the life of one pipe.
func (l *Logs) copy(site serai.Key, pipe *os.File, f *file) error {
	var lines splitter
	buf := make([]byte, turn)
	for {
		if lines.partial() {
			pipe.SetReadDeadline(time.Now().Add(lineWait))
		} else {
			pipe.SetReadDeadline(time.Time{})
		}
		n, err := pipe.Read(buf)
		late := errors.Is(err, os.ErrDeadlineExceeded)
		lines.add(buf[:n])
		if late || err != nil {
			lines.flush()
		}
		if text, count := lines.take(); count > 0 {
			l.turns <- struct{}{}
			werr := f.write(text, count)
			<-l.turns
			if werr != nil {
				l.log.Error("log lines lost", "site", site.String(), "cause", werr)
			}
		}
		switch {
		case err == nil || late:
		case errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed):
			return nil
		default:
			return err
		}
	}
}

// Remove gives up the logs of a tenant: they are deleted where purge is true,
// else renamed to NAME.UID, which no later tenant can be called. The proxy's
// access logs are not ours to change.
func (l *Logs) Remove(tenant string, uid uint32, purge bool) error {
	l.mu.Lock()
	for key, f := range l.files {
		if key.Tenant == tenant {
			f.end()
			delete(l.files, key)
		}
	}
	l.mu.Unlock()
	return errors.Join(remove(l.cfg.SiteLogDir(tenant), uid, purge), remove(l.cfg.MailLogDir(tenant), uid, purge))
}

func remove(dir string, uid uint32, purge bool) error {
	if purge {
		return os.RemoveAll(dir)
	}
	err := os.Rename(dir, fmt.Sprintf("%s.%d", dir, uid))
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// Run waits until ctx ends, then stops reading. The pipes stay: serai-priv
// holds them, and what is in them is read by the next seraid.
func (l *Logs) Run(ctx context.Context) error {
	<-ctx.Done()
	l.mu.Lock()
	l.ended = true
	for _, p := range l.pipes {
		p.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
	return nil
}
