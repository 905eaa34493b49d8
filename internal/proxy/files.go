package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/route"
)

// A roots keeps the descriptors of the directories whose files the proxy
// serves, which serai-priv opened. The files beneath them belong to tenants,
// who can do with them what they like at any moment.
type roots struct {
	// open asks serai-priv for a directory.
	open func(ctx context.Context, site uint32, index int) (*os.File, error)
	log  *slog.Logger

	mu   sync.Mutex
	dirs map[rootKey]*root
}

type rootKey struct {
	site  uint32
	index int
	dir   string // the index may come to mean another one
}

type root struct {
	launch int64 // a reload opens it anew
	ready  chan struct{}
	dir    *os.File // nil where it could not be opened
	err    error
	asked  time.Time
	used   time.Time
}

// The times of descriptors: how long one is kept without use, and how long it
// is believed that there is none.
const (
	rootIdle  = 5 * time.Minute
	rootRetry = time.Second
)

func newRoots(open func(context.Context, uint32, int) (*os.File, error), log *slog.Logger) *roots {
	return &roots{open: open, log: log, dirs: make(map[rootKey]*root)}
}

// get returns the descriptor of a directory. It may be closed while it is used:
// a call on it then fails, and get finds another.
func (r *roots) get(ctx context.Context, s *site, f route.Files) (*os.File, error) {
	key := rootKey{s.Number, f.Index, f.Dir}
	r.mu.Lock()
	d := r.dirs[key]
	if d != nil && (d.launch != s.Launch || d.failed() && time.Since(d.asked) > rootRetry) {
		d.close()
		d = nil
	}
	if d == nil {
		d = &root{launch: s.Launch, ready: make(chan struct{}), asked: time.Now()}
		r.dirs[key] = d
		go func(d *root) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			d.dir, d.err = r.open(ctx, s.Number, f.Index)
			if d.err != nil && serai.KindOf(d.err) != serai.NotFound {
				r.log.Warn("directory not opened", "site", s.Number, "index", f.Index, "cause", d.err)
			}
			close(d.ready)
		}(d)
	}
	d.used = time.Now()
	r.mu.Unlock()
	select {
	case <-d.ready:
		return d.dir, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// failed reports whether the answer came and was an error.
func (d *root) failed() bool {
	select {
	case <-d.ready:
		return d.err != nil
	default:
		return false
	}
}

// close gives the descriptor back once it has come.
func (d *root) close() {
	go func() {
		<-d.ready
		if d.dir != nil {
			d.dir.Close()
		}
	}()
}

// sweep closes the descriptors that nobody used for a while and those of sites
// that are gone.
func (r *roots) sweep(live func(site uint32) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, d := range r.dirs {
		if time.Since(d.used) > rootIdle || !live(key.site) {
			d.close()
			delete(r.dirs, key)
		}
	}
}

// serveFile answers with a file and reports whether there was one.
func (x *exchange) serveFile(f route.Files) bool {
	name, ok := fileName(x.r.URL.Path, f.Prefix)
	if !ok {
		return false
	}
	directory := strings.HasSuffix(x.r.URL.Path, "/")
	if directory {
		name += "/index.html"
	}
	file, info, err := x.openFile(f, name)
	if err == nil && info.IsDir() {
		file.Close()
		if directory {
			return false // index.html is one
		}
		if file, info, err = x.openFile(f, name+"/index.html"); err == nil {
			file.Close()
			if info.IsDir() {
				return false
			}
			x.redirectToSlash()
			return true
		}
	}
	if err != nil {
		if errors.Is(err, errUnserved) {
			return false
		}
		x.fail(http.StatusServiceUnavailable, "The files of this site cannot be reached at the moment.", time.Second)
		return true
	}
	defer file.Close()
	h := x.w.Header()
	h.Set("Content-Type", contentType(name))
	h.Set("Etag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	h.Set("Server", serverName)
	// ServeContent takes the size once. A file that shrinks meanwhile ends in
	// a broken connection, since the promised length is not kept.
	http.ServeContent(x.w, x.r, "", info.ModTime(), file)
	return true
}

// errUnserved says that there is no such file for us: it is not there, or is
// nothing that may be served.
var errUnserved = errors.New("no such file")

// fileName is the path of a file beneath a directory, relative and without
// anything special, or false where the URL has what no served file has: a
// component that begins with a dot, a NUL.
func fileName(path, prefix string) (string, bool) {
	rest := strings.TrimPrefix(path, strings.TrimSuffix(prefix, "/"))
	if strings.IndexByte(rest, 0) >= 0 || len(rest) > 4096 {
		return "", false
	}
	parts := strings.FieldsFunc(rest, func(c rune) bool { return c == '/' })
	for _, part := range parts {
		if part[0] == '.' || len(part) > 255 {
			return "", false
		}
	}
	if len(parts) == 0 {
		return ".", true
	}
	return strings.Join(parts, "/"), true
}

// openFile opens a regular file or a directory beneath one of the site's
// directories. Links are followed as long as they stay beneath it.
func (x *exchange) openFile(f route.Files, name string) (*os.File, os.FileInfo, error) {
	for range 3 {
		dir, err := x.s.roots.get(x.r.Context(), x.site, f)
		if serai.KindOf(err) == serai.NotFound {
			return nil, nil, errUnserved
		}
		if err != nil {
			return nil, nil, err
		}
		file, err := openBeneath(dir, name)
		if errors.Is(err, os.ErrClosed) || err == unix.EAGAIN {
			continue // swept away, or something beneath was being renamed
		}
		if err != nil {
			return nil, nil, errUnserved
		}
		info, err := file.Stat()
		if err != nil || !served(info) {
			file.Close()
			return nil, nil, errUnserved
		}
		return file, info, nil
	}
	return nil, nil, errUnserved
}

// served reports whether the proxy hands a file out: a regular one that others
// may read, or a directory that others may enter.
func served(info os.FileInfo) bool {
	if info.IsDir() {
		return info.Mode().Perm()&0o001 != 0
	}
	return info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0
}

// openBeneath never leaves the directory and the file system, never waits for
// the other end of a FIFO and never gets a terminal.
func openBeneath(dir *os.File, name string) (*os.File, error) {
	raw, err := dir.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var openErr error
	err = raw.Control(func(at uintptr) {
		fd, openErr = unix.Openat2(int(at), name, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
	})
	if err != nil {
		return nil, err
	}
	if openErr != nil {
		return nil, openErr
	}
	return os.NewFile(uintptr(fd), name), nil
}

// redirectToSlash sends the client to the directory's own address. The target
// begins with one slash: two would name another host.
func (x *exchange) redirectToSlash() {
	path, query, asked := strings.Cut(x.target, "?")
	to := "/" + strings.TrimLeft(path, "/\\") + "/"
	if asked {
		to += "?" + query
	}
	h := x.w.Header()
	h.Set("Location", to)
	h.Set("Content-Length", "0")
	h.Set("Server", serverName)
	x.w.WriteHeader(http.StatusMovedPermanently)
}
