// Package worker speaks the worker protocol (docs/reference/worker-protocol.md)
// from the proxy's side: one Conn is one process of a tenant that serves one
// request at a time. All that comes from it is hostile until checked; package
// worker checks it and never decides what becomes of a request.
package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Version of the protocol.
const Version = 1

// The types of frames.
const (
	typeHello   = 'H'
	typeRequest = 'R'
	typePosted  = 'P'
	typeBody    = 'B'
	typeEnd     = 'E'
	typeQuit    = 'Q'
	typeWhole   = 'W'
	typeHead    = 'h'
	typeData    = 'd'
	typeLast    = 'l'
	typeAbort   = 'a'
)

// The sizes of payloads, in bytes.
const (
	MaxHead    = 128 << 10 // of a head
	MaxData    = 1 << 20   // of a data frame, and of the body in a whole reply
	MaxBody    = 65535     // of a body frame
	MaxMessage = 8 << 10   // of an abort's message
	helloSize  = 4 + 4 + 8
	frameSize  = 5 // length and type before each payload
	wholeSize  = 5 // flags and length of the head in a whole reply
)

// ErrProtocol is in the chain of each error that says which rule of the
// protocol a worker broke.
var ErrProtocol = errors.New("worker protocol")

func breach(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// limits are the payload sizes a worker's frame of each type may have.
var limits = map[byte]struct{ min, max uint32 }{
	typeHello: {helloSize, helloSize},
	typeWhole: {wholeSize, wholeSize + MaxHead + MaxData},
	typeHead:  {2, MaxHead},
	typeData:  {1, MaxData},
	typeLast:  {1, 1},
	typeAbort: {1, 1 + MaxMessage},
}

// AppendList appends one item of a list: its u16 length and its bytes, of
// which more than 65,535 are cut off. Callers bound what they append.
func AppendList(b []byte, s string) []byte {
	s = s[:min(len(s), 65535)]
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// appendFrame appends the header of a frame.
func appendFrame(b []byte, typ byte, size int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	return append(b, typ)
}

// A decoder takes frames off a stream. It keeps what it has read ahead, so that
// a whole frame is used where it lies.
type decoder struct {
	src  io.Reader
	buf  []byte // buf[r:w] is read and not used
	r, w int
}

// keep is the size of buffers that are kept for the next exchange.
const keep = 16 << 10

func newDecoder() *decoder { return &decoder{buf: make([]byte, keep)} }

// header reads the next frame's type and the size of its payload, and checks
// the size against the type.
func (d *decoder) header() (typ byte, size int, err error) {
	if err := d.fill(frameSize); err != nil {
		return 0, 0, err
	}
	n, typ := binary.BigEndian.Uint32(d.buf[d.r:]), d.buf[d.r+4]
	d.r += frameSize
	limit, known := limits[typ]
	switch {
	case !known:
		return 0, 0, breach("a frame of type %q, which a worker does not send", typ)
	case n < limit.min:
		return 0, 0, breach("a %q frame of %d bytes is too short", typ, n)
	case n > limit.max:
		return 0, 0, breach("a %q frame of %d bytes is too long: at most %d", typ, n, limit.max)
	}
	return typ, int(n), nil
}

// payload returns the next n bytes. They are good until the next call.
func (d *decoder) payload(n int) ([]byte, error) {
	if err := d.fill(n); err != nil {
		return nil, err
	}
	p := d.buf[d.r : d.r+n]
	d.r += n
	return p, nil
}

// some returns between 1 and n bytes, what one read brought, so that data goes
// on as it comes. They are good until the next call.
func (d *decoder) some(n int) ([]byte, error) {
	if err := d.fill(1); err != nil {
		return nil, err
	}
	p := d.buf[d.r:min(d.w, d.r+n)]
	d.r += len(p)
	return p, nil
}

// pending reports whether bytes were read that nobody used yet.
func (d *decoder) pending() bool { return d.r < d.w }

// fill reads until n bytes are there. The buffer grows with what came, not with
// what a length claims. An end in the middle is io.ErrUnexpectedEOF.
func (d *decoder) fill(n int) error {
	if d.w-d.r >= n {
		return nil
	}
	if d.r > 0 {
		d.w = copy(d.buf, d.buf[d.r:d.w])
		d.r = 0
	}
	for d.w < n {
		if d.w == len(d.buf) {
			d.buf = append(d.buf, make([]byte, min(len(d.buf), n-d.w))...)
		}
		m, err := d.src.Read(d.buf[d.w:])
		d.w += m
		if d.w >= n {
			return nil
		}
		if err == io.EOF && d.w > 0 {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}
