package sitelog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
)

// maxFollowers is how many readers may follow at once: each costs an inotify
// instance, of which the kernel grants a user 128 unless told otherwise.
const maxFollowers = 64

// Read returns the last lines of a log, those of rotated files included, and
// with follow goes on with what is added, over rotations, until ctx ends or
// the reader is closed. A log that does not exist yet is an empty one.
// Unavailable where too many follow already.
func (l *Logs) Read(ctx context.Context, path string, lines int, follow bool) (io.ReadCloser, error) {
	if !follow {
		files, err := last(path, lines)
		if err != nil {
			return nil, err
		}
		return files, nil
	}
	if err := l.enter(); err != nil {
		return nil, err
	}
	w, err := newWatch(path)
	if err != nil {
		l.leave()
		return nil, err
	}
	files, err := last(path, lines)
	if err != nil {
		w.close()
		l.leave()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r, pipe := io.Pipe()
	context.AfterFunc(ctx, func() { w.close(); pipe.CloseWithError(io.EOF) })
	go func() {
		defer l.leave()
		defer cancel()
		pipe.CloseWithError(tail(pipe, path, files, w))
	}()
	return &following{r, cancel}, nil
}

type following struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (f *following) Close() error {
	f.cancel()
	return f.PipeReader.Close()
}

func (l *Logs) enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.followers >= maxFollowers {
		return serai.Errorf(serai.Unavailable, "%d readers follow logs already: end one of them first", maxFollowers)
	}
	l.followers++
	return nil
}

func (l *Logs) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.followers--
}

// tail copies what is there and then what comes.
func tail(to io.Writer, path string, files *segments, w *watch) error {
	defer files.Close()
	if _, err := io.Copy(to, files); err != nil {
		return err
	}
	f := files.newest()
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	for {
		if f != nil {
			if _, err := io.Copy(to, f); err != nil {
				return err
			}
		}
		switch next, err := replaced(path, f); {
		case err != nil:
			return err
		case next != nil:
			if f != nil { // what was added before it was put aside
				if _, err := io.Copy(to, f); err != nil {
					next.Close()
					return err
				}
				f.Close()
			}
			f = next
			continue
		}
		if err := w.wait(); err != nil {
			return nil
		}
	}
}

// replaced opens what lies at path now, where it is not f.
func replaced(path string, f *os.File) (*os.File, error) {
	now, err := os.Stat(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("follow log: %w", err)
	}
	if f != nil {
		if was, err := f.Stat(); err == nil && os.SameFile(was, now) {
			return nil, nil
		}
	}
	next, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	return next, err
}

// segments are the ends of a log's files, oldest first.
type segments struct {
	io.Reader
	files []*os.File
}

// newest gives away the file at the log's own path, or nil.
func (s *segments) newest() *os.File {
	n := len(s.files)
	if n == 0 {
		return nil
	}
	f := s.files[n-1]
	s.files = s.files[:n-1]
	return f
}

func (s *segments) Close() error {
	for _, f := range s.files {
		f.Close()
	}
	return nil
}

// last opens the files that hold the last lines.
func last(path string, lines int) (*segments, error) {
	s := new(segments)
	var readers []io.Reader
	for n := 0; n < rotateFiles && (n == 0 || lines > 0); n++ {
		f, err := os.Open(numbered(path, n))
		if os.IsNotExist(err) {
			break
		}
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("open log: %w", err)
		}
		s.files = append([]*os.File{f}, s.files...)
		found, err := seekLines(f, lines)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("read log: %w", err)
		}
		readers = append([]io.Reader{f}, readers...)
		lines -= found
	}
	s.Reader = io.MultiReader(readers...)
	return s, nil
}

// seekLines moves to the start of the last lines of f and returns how many
// there are, at most the number asked for.
func seekLines(f *os.File, lines int) (found int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || lines == 0 || end == 0 {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for at := end; at > 0; {
		n := min(at, int64(len(buf)))
		at -= n
		if _, err := f.ReadAt(buf[:n], at); err != nil {
			return 0, err
		}
		chunk := buf[:n]
		if at+n == end { // the newline that ends the last line begins none
			chunk = chunk[:n-1]
		}
		for {
			i := bytes.LastIndexByte(chunk, '\n')
			if i < 0 {
				break
			}
			if found++; found == lines {
				_, err := f.Seek(at+int64(i)+1, io.SeekStart)
				return found, err
			}
			chunk = chunk[:i]
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return found + 1, err
}

// A watch tells when a file may have changed, been made or been replaced.
type watch struct {
	path string
	f    *os.File
}

func newWatch(path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("follow log: %w", err)
	}
	w := &watch{path, os.NewFile(uintptr(fd), "inotify")}
	if err := w.add(); err != nil {
		w.f.Close()
		return nil, err
	}
	return w, nil
}

// add watches the file's directory, or the nearest one that exists.
func (w *watch) add() error {
	const what = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	raw, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	for dir := filepath.Dir(w.path); ; dir = filepath.Dir(dir) {
		var failed error
		if err := raw.Control(func(fd uintptr) { _, failed = unix.InotifyAddWatch(int(fd), dir, what) }); err != nil {
			return err
		}
		if failed == nil {
			return nil
		}
		if failed != unix.ENOENT || dir == filepath.Dir(dir) {
			return fmt.Errorf("follow log in %s: %w", dir, failed)
		}
	}
}

// wait returns after something that concerns the file happened, or with an
// error when the watch was closed.
func (w *watch) wait() error {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return err
		}
		hit, moved := false, false
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&p[0]))
			name := p[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+int(e.Len)]
			switch {
			case strings.TrimRight(string(name), "\x00") == filepath.Base(w.path):
				hit = true
			case e.Mask&(unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_Q_OVERFLOW) != 0:
				moved = true
			}
			p = p[unix.SizeofInotifyEvent+int(e.Len):]
		}
		if moved { // a directory on the way was made, perhaps
			if err := w.add(); err != nil {
				return err
			}
		}
		if hit || moved {
			return nil
		}
	}
}

func (w *watch) close() { w.f.Close() }
