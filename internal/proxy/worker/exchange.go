package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A Request is the environment of a request as it goes to a worker. The zero
// value is empty and ready to use; Reset makes it so again.
type Request struct{ buf []byte }

// Add appends one variable of the environment.
func (r *Request) Add(name, value string) {
	if len(r.buf) == 0 {
		r.buf = append(r.buf, make([]byte, frameSize)...)
	}
	r.buf = AppendList(AppendList(r.buf, name), value)
}

// Reset empties the request and keeps its memory.
func (r *Request) Reset() { r.buf = r.buf[:0] }

// An Exchange is one request in a worker and its reply. Its methods must not be
// called concurrently.
type Exchange struct {
	c       *Conn
	d       *decoder
	timeout time.Duration // 0 is none
	read    bool          // a byte of a reply came
	left    int           // of the data frame that is being read
	last    bool          // the reply is complete
	leaves  string        // why the worker leaves, empty where it stays
	wrote   chan struct{} // closed when the body was written; nil where that was at once
}

// A Cause says why a request came to nothing in a worker.
type Cause string

// The causes.
const (
	Died     Cause = "died"     // the process ended
	Timeout  Cause = "timeout"  // it took too long
	Protocol Cause = "protocol" // it broke a rule
	Aborted  Cause = "aborted"  // it said that it cannot complete the reply
)

// A Failure is the error of an exchange.
type Failure struct {
	Cause Cause
	Began bool // a byte of a reply came: the request must not be replayed
	Err   error
}

func (f *Failure) Error() string { return fmt.Sprintf("worker %s: %v", f.Cause, f.Err) }

func (f *Failure) Unwrap() error { return f.Err }

// inline is the size of the largest body that is written with the request in
// one piece: it fits the socket even where the worker does not read.
const inline = 32 << 10

var decoders = sync.Pool{New: func() any { return newDecoder() }}

// Start writes a request, with a body where size is above 0. A larger body is
// written while the reply is read, since a reply may begin before it. timeout
// bounds the wait for the first byte of the reply, and between its bytes; 0 is
// no bound. What goes wrong shows in Reply.
func (c *Conn) Start(r *Request, body io.Reader, size int64, timeout time.Duration) *Exchange {
	e := &Exchange{c: c, timeout: timeout, d: decoders.Get().(*decoder)}
	e.d.src, e.d.r, e.d.w = e, 0, 0
	frame := r.buf
	if len(frame) == 0 {
		frame = make([]byte, frameSize)
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-frameSize))
	if timeout == 0 {
		c.deadline(c.conn.SetReadDeadline, time.Time{}) // one of an earlier exchange
	}
	e.extend()
	switch {
	case size == 0:
		frame[4] = typeRequest
		c.conn.Write(frame)
	case size <= inline:
		frame[4] = typePosted
		frame = appendFrame(frame, typeBody, int(size))
		n := len(frame)
		frame = append(frame, make([]byte, size)...)
		if _, err := io.ReadFull(body, frame[n:]); err != nil {
			c.conn.Close() // our own disk failed: the worker must not see a wrong body
		}
		c.conn.Write(appendFrame(frame, typeEnd, 0))
		r.buf = frame[:n-frameSize]
	default:
		frame[4] = typePosted
		e.wrote = make(chan struct{})
		go e.post(frame, body)
	}
	return e
}

func (e *Exchange) extend() {
	var t time.Time
	if e.timeout > 0 {
		t = time.Now().Add(e.timeout)
	}
	e.c.deadline(e.c.conn.SetWriteDeadline, t)
}

// post writes a request and its long body. An error of the worker's side is
// left to the reader, who sees why.
func (e *Exchange) post(frame []byte, body io.Reader) {
	defer close(e.wrote)
	if _, err := e.c.conn.Write(frame); err != nil {
		return
	}
	buf := make([]byte, frameSize+MaxBody)
	for {
		n, err := io.ReadFull(body, buf[frameSize:])
		if n > 0 {
			appendFrame(buf[:0], typeBody, n)
			e.extend()
			if _, err := e.c.conn.Write(buf[:frameSize+n]); err != nil {
				return
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			e.c.conn.Close()
			return
		}
	}
	e.c.conn.Write(appendFrame(nil, typeEnd, 0))
}

// Read is for the decoder: each read has its own time.
func (e *Exchange) Read(p []byte) (int, error) {
	if e.timeout > 0 {
		e.c.deadline(e.c.conn.SetReadDeadline, time.Now().Add(e.timeout))
	}
	n, err := e.c.conn.Read(p)
	if n > 0 {
		e.read = true
	}
	return n, err
}

// A Reply is how a reply begins, or all of it.
type Reply struct {
	Head
	Whole bool
	Body  []byte // of a whole reply, good until Free
}

// Reply waits for the reply to begin. The error is a *Failure.
func (e *Exchange) Reply() (*Reply, error) {
	typ, size, err := e.d.header()
	if err != nil {
		return nil, e.fail(err)
	}
	switch typ {
	case typeHead, typeWhole:
	case typeAbort:
		return nil, e.abort(size)
	default:
		return nil, e.fail(breach("a %q frame where a reply begins", typ))
	}
	p, err := e.d.payload(size)
	if err != nil {
		return nil, e.fail(err)
	}
	reply := &Reply{Whole: typ == typeWhole}
	head := p
	if reply.Whole {
		var flags byte
		if flags, head, reply.Body, err = splitWhole(p); err == nil {
			err = e.complete(flags)
		}
	}
	if err == nil {
		reply.Head, err = parseHead(head)
	}
	if err != nil {
		return nil, e.fail(err)
	}
	return reply, nil
}

// Data returns the next piece of the reply's body, io.EOF after the last, or a
// *Failure. It is good until the next call.
func (e *Exchange) Data() ([]byte, error) {
	if e.last {
		return nil, io.EOF
	}
	if e.left == 0 {
		typ, size, err := e.d.header()
		if err != nil {
			return nil, e.fail(err)
		}
		switch typ {
		case typeData:
			e.left = size
		case typeAbort:
			return nil, e.abort(size)
		case typeLast:
			p, err := e.d.payload(size)
			if err == nil {
				err = e.complete(p[0])
			}
			if err != nil {
				return nil, e.fail(err)
			}
			return nil, io.EOF
		default:
			return nil, e.fail(breach("a %q frame in the middle of a reply", typ))
		}
	}
	p, err := e.d.some(e.left)
	if err != nil {
		return nil, e.fail(err)
	}
	e.left -= len(p)
	return p, nil
}

// complete notes the end of a reply and its flags. What comes after it is
// looked for here, and by Idle before the next request.
func (e *Exchange) complete(flags byte) (err error) {
	if e.d.pending() {
		return breach("bytes after the end of a reply")
	}
	e.leaves, err = leaves(flags)
	e.last = err == nil
	return err
}

func (e *Exchange) abort(size int) error {
	p, err := e.d.payload(size)
	if err == nil {
		err = e.complete(p[0])
	}
	if err != nil {
		return e.fail(err)
	}
	return &Failure{Cause: Aborted, Began: true, Err: fmt.Errorf("%.500q", p[1:])}
}

// exitWait is how long a process may take from closing its descriptors, which
// is the first thing in its end, to being dead.
const exitWait = time.Second

// fail finds out what an error of reading means.
func (e *Exchange) fail(err error) error {
	f := &Failure{Began: e.read, Err: err}
	if errors.Is(err, ErrProtocol) {
		f.Cause = Protocol
		return f
	}
	if errors.Is(err, net.ErrClosed) {
		f.Cause, f.Err = Aborted, errors.New("the request's body could not be read back")
		return f
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		f.Cause = Timeout
		select {
		case <-e.c.died:
			f.Cause, f.Err = Died, errors.New("it ended in the middle of a request")
		default:
		}
		return f
	}
	wait := time.NewTimer(exitWait)
	defer wait.Stop()
	select {
	case <-e.c.died:
		f.Cause, f.Err = Died, errors.New("it ended in the middle of a request")
	case <-wait.C:
		f.Cause, f.Err = Protocol, breach("it closed the connection in the middle of a request: %v", err)
	}
	return f
}

// Settle is for after the last of a reply: it waits until the request's body is
// written too. It returns why the worker leaves, a reason of package route, or
// nothing where it stays.
func (e *Exchange) Settle() (reason string) {
	if e.wrote != nil {
		<-e.wrote // each write has its own time
	}
	return e.leaves
}

// Settled reports whether Settle would return at once.
func (e *Exchange) Settled() bool {
	if e.wrote == nil {
		return true
	}
	select {
	case <-e.wrote:
		return true
	default:
		return false
	}
}

// Complete reports whether all of the reply has come.
func (e *Exchange) Complete() bool { return e.last }

// Free gives back the memory of the exchange, Reply.Body among it. The
// exchange must not be used after it.
func (e *Exchange) Free() {
	if e.d == nil {
		return
	}
	if len(e.d.buf) <= 2*keep {
		e.d.src = nil
		decoders.Put(e.d)
	}
	e.d = nil
}
