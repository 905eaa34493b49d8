package sitelog

import (
	"bytes"
	"fmt"
	"time"
	"unicode/utf8"
)

// cutMark ends a line that was longer than maxLine.
const cutMark = " … [cut]"

// A splitter makes log lines of what comes out of a pipe.
type splitter struct {
	line  []byte // unfinished
	cut   bool   // the rest of the line is dropped
	out   []byte
	count int64
}

// add takes a piece of the stream.
func (s *splitter) add(p []byte) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		piece := p
		if end >= 0 {
			piece = p[:end]
		}
		if room := maxLine - len(s.line); len(piece) > room {
			piece = piece[:room]
			s.cut = true
		}
		s.line = append(s.line, piece...)
		if end < 0 {
			return
		}
		s.end()
		p = p[end+1:]
	}
}

// end writes the line out.
func (s *splitter) end() {
	s.out = appendStamp(s.out, time.Now())
	s.out = appendPrintable(s.out, bytes.TrimSuffix(s.line, []byte("\r")))
	if s.cut {
		s.out = append(s.out, cutMark...)
	}
	s.out = append(s.out, '\n')
	s.count++
	s.line, s.cut = s.line[:0], false
}

// partial reports whether an unfinished line waits.
func (s *splitter) partial() bool { return len(s.line) > 0 }

// flush ends an unfinished line.
func (s *splitter) flush() {
	if s.partial() {
		s.end()
	}
}

// take returns the lines so far, valid until the next add.
func (s *splitter) take() (text []byte, lines int64) {
	text, lines = s.out, s.count
	s.out, s.count = s.out[:0], 0
	return text, lines
}

// stamp is one line of our own.
func stamp(line string) []byte {
	return append(append(appendStamp(nil, time.Now()), line...), '\n')
}

func appendStamp(b []byte, t time.Time) []byte {
	return append(t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z"), ' ')
}

// appendPrintable escapes what a terminal would act on.
func appendPrintable(b, line []byte) []byte {
	for len(line) > 0 {
		c, n := utf8.DecodeRune(line)
		if c < 0x20 && c != '\t' || 0x7f <= c && c < 0xa0 || c == utf8.RuneError && n == 1 {
			for _, x := range line[:n] {
				b = fmt.Appendf(b, `\x%02x`, x)
			}
		} else {
			b = append(b, line[:n]...)
		}
		line = line[n:]
	}
	return b
}
