package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A spool makes files for what does not fit into memory, and bounds the memory
// that all requests' bodies take together.
type spool struct {
	dir    string
	memory atomic.Int64 // left, in bytes
}

// bodyMemory is what all requests' bodies may take in memory together; what is
// above it goes to disk, however small.
const bodyMemory = 256 << 20

func newSpool(dir string) *spool {
	s := &spool{dir: dir}
	s.memory.Store(bodyMemory)
	return s
}

// file makes a file without a name, which is gone with its descriptor.
func (s *spool) file() (*os.File, error) {
	f, err := os.OpenFile(s.dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil {
		return f, nil
	}
	if f, err = os.CreateTemp(s.dir, "spool-"); err != nil { // a file system without O_TMPFILE
		return nil, fmt.Errorf("make spool file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("unlink spool file: %w", err)
	}
	return f, nil
}

// take reserves n bytes of memory where they are left.
func (s *spool) take(n int) bool {
	if s.memory.Add(-int64(n)) >= 0 {
		return true
	}
	s.memory.Add(int64(n))
	return false
}

// A body is a request's body, read whole: its beginning in memory, the rest in
// a file. It can be read more than once.
type body struct {
	s    *spool
	mem  []byte
	file *os.File
	size int64
}

// The ways in which a body is not had. Others are the client's connection.
var (
	errTooLarge = errors.New("body is too large")
	errSpool    = errors.New("body cannot be kept")
)

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// readBody reads src to its end: at most limit bytes, of which buffer in
// memory.
func (s *spool) readBody(src io.Reader, limit, buffer int64) (*body, error) {
	b := &body{s: s}
	chunk := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(chunk)
	for {
		n, err := src.Read(*chunk)
		if n > 0 {
			if b.size+int64(n) > limit {
				b.close()
				return nil, errTooLarge
			}
			if werr := b.write((*chunk)[:n], buffer); werr != nil {
				b.close()
				return nil, fmt.Errorf("%w: %w", errSpool, werr)
			}
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			b.close()
			return nil, err
		}
	}
}

func (b *body) write(p []byte, buffer int64) error {
	if b.file == nil && b.size+int64(len(p)) <= buffer && b.s.take(len(p)) {
		b.mem = append(b.mem, p...)
		b.size += int64(len(p))
		return nil
	}
	if b.file == nil {
		f, err := b.s.file()
		if err != nil {
			return err
		}
		b.file = f
	}
	n, err := b.file.Write(p)
	b.size += int64(n)
	return err
}

// reader reads the body from its start.
func (b *body) reader() io.Reader {
	if b.file == nil {
		return bytes.NewReader(b.mem)
	}
	inFile := b.size - int64(len(b.mem))
	return io.MultiReader(bytes.NewReader(b.mem), io.NewSectionReader(b.file, 0, inFile))
}

func (b *body) close() {
	b.s.memory.Add(int64(len(b.mem)))
	b.mem = nil
	if b.file != nil {
		b.file.Close()
	}
}
