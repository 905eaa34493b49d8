package sitelog

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// Sizes of the log of one site.
const (
	rotateSize  = 10 << 20 // bytes of a file
	rotateFiles = 5        // shop.log, shop.log.1 … shop.log.4
)

// A file is a log that is rotated by size. When it cannot be written to it
// counts what is lost and says so once it can be again.
type file struct {
	path string

	mu     sync.Mutex
	f      *os.File
	size   int64
	lost   int64 // lines since the disk was full
	broken bool  // the last write ended inside a line
	ended  bool  // nothing is written any more
}

// write appends whole lines. It returns an error for the first failure of a
// row only: the reader of the pipe must go on.
func (l *file) write(text []byte, lines int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil
	}
	err := l.append(text, lines)
	if err == nil {
		return nil
	}
	first := l.lost == 0
	l.lost += lines
	if first {
		return err
	}
	return nil
}

func (l *file) append(text []byte, lines int64) error {
	if l.f == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	if l.size > 0 && l.size+int64(len(text)) > rotateSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	var head []byte
	if l.broken {
		head = append(head, '\n')
	}
	if l.lost > 0 {
		head = append(head, stamp(fmt.Sprintf("serai: %d lines were lost: the log could not be written", l.lost))...)
	}
	n, err := l.f.Write(append(head, text...))
	l.size += int64(n)
	if err != nil {
		l.broken = l.broken || n > 0
		return fmt.Errorf("write log of a site: %w", err)
	}
	l.broken, l.lost = false, 0
	return nil
}

func (l *file) open() error {
	if err := os.MkdirAll(filepath.Dir(l.path), 0o750); err != nil {
		return fmt.Errorf("make directory of logs: %w", err)
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("open log of a site: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return fmt.Errorf("open log of a site: %w", err)
	}
	l.f, l.size = f, size
	return nil
}

func (l *file) rotate() error {
	l.f.Close()
	l.f = nil
	for n := rotateFiles - 2; n >= 0; n-- {
		if err := os.Rename(numbered(l.path, n), numbered(l.path, n+1)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("rotate log of a site: %w", err)
		}
	}
	return l.open()
}

// numbered is the n-th older file of a log.
func numbered(path string, n int) string {
	if n == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, n)
}

func (l *file) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

// end is close for good: what is still written is dropped.
func (l *file) end() {
	l.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
}
