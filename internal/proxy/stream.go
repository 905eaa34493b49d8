package proxy

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
)

// A stream lies between a worker that writes a reply and a client that reads
// it more slowly: first in memory, then in a file, and only then the worker
// waits. One goroutine puts, one takes.
type stream struct {
	spool   *spool
	memMax  int64
	fileMax int64
	full    func() // called once, when the worker has to wait

	mu    sync.Mutex
	mem   bytes.Buffer // comes before what is in the file
	file  *os.File
	start int64 // the file is a ring of fileMax bytes
	used  int64
	end   error // io.EOF, or why the reply ends here
	gone  bool  // nobody takes any more

	data chan struct{} // something was put; has room for one
	room chan struct{} // something was taken; has room for one
}

var errGone = errors.New("nobody reads the reply")

func newStream(s *spool, memory, file int64, full func()) *stream {
	return &stream{spool: s, memMax: max(memory, 1), fileMax: file, full: full,
		data: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// put stores p, waiting for room. The error is errGone.
func (s *stream) put(p []byte) error {
	for len(p) > 0 {
		s.mu.Lock()
		if s.gone {
			s.mu.Unlock()
			return errGone
		}
		n := s.store(p)
		s.mu.Unlock()
		if p = p[n:]; n > 0 {
			signal(s.data)
			continue
		}
		if s.full != nil {
			s.full()
			s.full = nil
		}
		<-s.room
	}
	return nil
}

// store takes what fits now. A disk that is full is one without room.
func (s *stream) store(p []byte) int {
	if s.used == 0 {
		if n := min(int64(len(p)), s.memMax-int64(s.mem.Len())); n > 0 {
			s.mem.Write(p[:n])
			return int(n)
		}
	}
	if s.used >= s.fileMax {
		return 0
	}
	if s.file == nil {
		f, err := s.spool.file()
		if err != nil {
			return 0
		}
		s.file = f
	}
	at := (s.start + s.used) % s.fileMax
	n, _ := s.file.WriteAt(p[:min(int64(len(p)), s.fileMax-s.used, s.fileMax-at)], at)
	s.used += int64(n)
	return n
}

// finish says that nothing more is put: err is io.EOF at the reply's end.
func (s *stream) finish(err error) {
	s.mu.Lock()
	s.end = err
	s.mu.Unlock()
	signal(s.data)
}

// take reads what is there, n > 0, or returns what finish was given. It waits
// until ctx ends; before it waits, and only then, it calls idle.
func (s *stream) take(ctx context.Context, buf []byte, idle func()) (int, error) {
	for {
		s.mu.Lock()
		n, err := s.load(buf)
		end := s.end
		s.mu.Unlock()
		switch {
		case n > 0:
			signal(s.room)
			return n, nil
		case err != nil:
			return 0, err
		case end != nil:
			return 0, end
		}
		idle()
		select {
		case <-s.data:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (s *stream) load(buf []byte) (int, error) {
	if s.mem.Len() > 0 {
		n, _ := s.mem.Read(buf)
		return n, nil
	}
	if s.used == 0 {
		return 0, nil
	}
	n, err := s.file.ReadAt(buf[:min(int64(len(buf)), s.used, s.fileMax-s.start)], s.start)
	if n == 0 {
		return 0, err
	}
	s.start = (s.start + int64(n)) % s.fileMax
	if s.used -= int64(n); s.used == 0 {
		s.start = 0
		if err := s.file.Truncate(0); err != nil { // gives the blocks back
			return n, nil
		}
	}
	return n, nil
}

// leave says that nobody takes any more.
func (s *stream) leave() {
	s.mu.Lock()
	s.gone = true
	s.mem = bytes.Buffer{}
	if s.file != nil {
		s.file.Close()
		s.file, s.used = nil, 0
	}
	s.mu.Unlock()
	signal(s.room)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
