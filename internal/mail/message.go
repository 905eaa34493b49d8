package mail

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
)

const (
	// inMemory is how much of a message is kept in memory; a longer one goes to
	// a file as a whole.
	inMemory = 64 << 10
	// maxLine is the longest line that SMTP carries, in bytes without its end
	// (RFC 5321, section 4.5.3.1.6).
	maxLine = 998
)

// A message is one that was read whole, with its head and line ends in order.
type message struct {
	mem  []byte
	file *os.File
	size int64
}

// readMessage reads a message to its end and makes it fit for SMTP:
//
//   - every end of line (CR LF, LF or CR alone) becomes CR LF, so that no
//     relay can take another end of the message for the one we send;
//   - a line longer than SMTP carries goes on in a next one that begins with a
//     space, as Postfix does it;
//   - trace goes before the head; fields named X-Serai- in it are dropped: only
//     we write them;
//   - a text without a head gets the empty line that ends one.
//
// A NUL byte is refused. limit bounds what is read, in bytes.
func readMessage(r io.Reader, dir string, limit int64, trace string) (_ *message, err error) {
	m := new(message)
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	in := &lines{r: bufio.NewReader(r), left: limit}
	out := bufio.NewWriterSize(spooler{m, dir}, 16<<10)
	out.WriteString(trace)
	head := header{}
	for {
		piece, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if !head.ended && in.first {
			switch head.look(piece) {
			case dropped:
				head.dropping = true
			case text:
				out.WriteString("\r\n")
			}
		}
		if head.dropping {
			continue
		}
		if !in.first {
			out.WriteString("\r\n ")
		}
		out.Write(piece)
		if in.last {
			out.WriteString("\r\n")
		}
	}
	// Errors of a bufio.Writer stay.
	if err := out.Flush(); err != nil {
		return nil, fmt.Errorf("keep a message: %w", err)
	}
	return m, nil
}

// lines cuts a stream into lines, and lines that are too long into pieces.
type lines struct {
	r           *bufio.Reader
	left        int64 // bytes that may still come
	number      int
	piece       []byte
	first, last bool // the piece begins a line, ends one
}

// next returns a piece, without the end of its line, valid until the next
// call; io.EOF after the last.
func (l *lines) next() ([]byte, error) {
	if l.first = l.last || l.number == 0; l.first {
		l.number++
	}
	l.piece, l.last = l.piece[:0], false
	room := maxLine
	if !l.first {
		room-- // for the space before it
	}
	for {
		c, err := l.r.ReadByte()
		if errors.Is(err, io.EOF) {
			if l.first && len(l.piece) == 0 {
				return nil, io.EOF
			}
			l.last = true
			return l.piece, nil
		}
		if err != nil {
			return nil, cutOff(err)
		}
		if l.left--; l.left < 0 {
			return nil, errTooLarge
		}
		switch c {
		case 0:
			return nil, serai.Errorf(serai.Invalid, "line %d of the message has a NUL byte, which mail cannot carry: encode what is no text", l.number)
		case '\r':
			if c, err := l.r.ReadByte(); err == nil && c != '\n' {
				// It was read: it can be put back.
				_ = l.r.UnreadByte()
			} else if err == nil {
				l.left--
			}
			fallthrough
		case '\n':
			l.last = true
			return l.piece, nil
		}
		if len(l.piece) == room {
			_ = l.r.UnreadByte()
			l.left++
			return l.piece, nil
		}
		l.piece = append(l.piece, c)
	}
}

var errTooLarge = errors.New("message is too large")

// cutOff is what became of a sender that did not send all.
func cutOff(err error) error {
	return &serai.Error{Kind: serai.Invalid, Msg: "the message did not come whole, or not in time", Err: err}
}

// A header follows the head of a message, line by line.
type header struct {
	begun, ended bool
	dropping     bool // the field that the line belongs to
}

// What a line of a head is.
type lineKind int

const (
	kept    lineKind = iota // of a field, or the empty line at the end
	dropped                 // of a field that is not the sender's to write
	text                    // the body has begun without an empty line
)

var (
	field = regexp.MustCompile(`^[!-9;-~]+[ \t]*:`)
	ours  = regexp.MustCompile(`(?i)^X-Serai-`)
)

func (h *header) look(line []byte) lineKind {
	switch {
	case len(line) == 0:
		h.ended, h.dropping = true, false
	case h.begun && (line[0] == ' ' || line[0] == '\t'):
		if h.dropping {
			return dropped
		}
	case field.Match(line):
		h.begun, h.dropping = true, false
		if ours.Match(line) {
			return dropped
		}
	default:
		h.ended, h.dropping = true, false
		return text
	}
	return kept
}

// spooler writes a message to memory and, when it gets long, to a file without
// a name.
type spooler struct {
	m   *message
	dir string
}

func (s spooler) Write(p []byte) (int, error) {
	m := s.m
	m.size += int64(len(p))
	if m.file == nil && len(m.mem)+len(p) <= inMemory {
		m.mem = append(m.mem, p...)
		return len(p), nil
	}
	if m.file == nil {
		f, err := os.OpenFile(s.dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
		if err != nil {
			return 0, err
		}
		m.file = f
		if _, err := f.Write(m.mem); err != nil {
			return 0, err
		}
		m.mem = nil
	}
	return m.file.Write(p)
}

// writeTo copies the message. It may be called again.
func (m *message) writeTo(w io.Writer) error {
	var r io.Reader = bytes.NewReader(m.mem)
	if m.file != nil {
		r = io.NewSectionReader(m.file, 0, m.size)
	}
	_, err := io.Copy(w, r)
	return err
}

func (m *message) close() {
	if m.file != nil {
		m.file.Close()
	}
}
