package privsep

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"

	"serai.dev/serai"
)

// A Conn is the unprivileged side of the connection to serai-priv. Its methods
// may be called concurrently.
type Conn struct {
	conn *net.UnixConn

	mu    sync.Mutex
	last  uint64
	calls map[uint64]*mailbox[reply] // nil once the connection has ended

	inbox  *mailbox[Event]
	events chan Event
	closed chan struct{} // by Close
	once   sync.Once
	done   chan struct{}
}

// An Event is what the monitor says unasked. Files are the receiver's to close.
type Event struct {
	Op    string
	Body  json.RawMessage
	Files []*os.File
}

// Decode reads the body of the event into the struct v points to.
func (e Event) Decode(v any) error {
	if err := json.Unmarshal(e.Body, v); err != nil {
		return fmt.Errorf("decode event %s: %w", e.Op, err)
	}
	return nil
}

type reply struct {
	Reply
	files []*os.File
}

func gone() error {
	return serai.Errorf(serai.Unavailable, "serai-priv is not there").WithHint("look at the log of serai-priv")
}

// NewConn takes over f, a SOCK_SEQPACKET socket connected to serai-priv, and
// closes it.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use %s as connection to serai-priv: %w", f.Name(), err)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok || u.LocalAddr().Network() != "unixpacket" {
		conn.Close()
		return nil, fmt.Errorf("use %s as connection to serai-priv: it is no packet socket", f.Name())
	}
	c := &Conn{
		conn:   u,
		calls:  make(map[uint64]*mailbox[reply]),
		inbox:  newMailbox[Event](),
		events: make(chan Event),
		closed: make(chan struct{}),
		done:   make(chan struct{}),
	}
	go c.read()
	go c.deliver()
	return c, nil
}

// Events is everything the monitor says unasked, in order. It is closed when
// the connection has ended. Events wait without bound for a reader, so that a
// slow one does not hold up calls.
func (c *Conn) Events() <-chan Event { return c.events }

// Done is closed when the connection has ended: every call is Unavailable.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection; calls under way get Unavailable.
func (c *Conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.conn.Close()
}

// Call asks for op with args, which may be nil, and decodes the answer into
// the struct body points to, which may be nil. files go with the request and
// stay the caller's. The files returned are the caller's to close. A refusal
// is a serai.Error of the kind the monitor named; Unavailable is also the end
// of the connection. When ctx ends, Call returns; the monitor may still act.
func (c *Conn) Call(ctx context.Context, op string, args, body any, files ...*os.File) ([]*os.File, error) {
	var got []*os.File
	err := c.ask(ctx, op, args, files, func(r reply) error {
		got = append(got, r.files...)
		if body == nil || len(r.Body) == 0 {
			return nil
		}
		return json.Unmarshal(r.Body, body)
	})
	if err != nil {
		closeFiles(got)
		return nil, err
	}
	return got, nil
}

// CallMany is Call for an op with many replies: each is called with the body
// of each of them, in order. An error of each ends the call and is returned.
func (c *Conn) CallMany(ctx context.Context, op string, args any, each func(body json.RawMessage) error) error {
	return c.ask(ctx, op, args, nil, func(r reply) error {
		closeFiles(r.files)
		if len(r.Body) == 0 {
			return nil
		}
		return each(r.Body)
	})
}

func (c *Conn) ask(ctx context.Context, op string, args any, files []*os.File, each func(reply) error) error {
	replies := newMailbox[reply]()
	c.mu.Lock()
	if c.calls == nil {
		c.mu.Unlock()
		return gone()
	}
	c.last++
	id := c.last
	c.calls[id] = replies
	c.mu.Unlock()
	defer c.forget(id, replies)

	if err := c.send(id, op, args, files); err != nil {
		return fmt.Errorf("ask serai-priv for %s: %w", op, err)
	}
	for {
		r, ok, err := replies.take(ctx)
		switch {
		case err != nil:
			return err
		case !ok:
			return gone()
		case r.Error != nil:
			closeFiles(r.files)
			return &serai.Error{Kind: serai.ParseKind(r.Error.Kind), Msg: r.Error.Msg, Hint: r.Error.Hint}
		}
		if err := each(r); err != nil {
			return fmt.Errorf("read the answer to %s: %w", op, err)
		}
		if !r.More {
			return nil
		}
	}
}

func (c *Conn) send(id uint64, op string, args any, files []*os.File) error {
	r := Request{ID: id, Op: op}
	if args != nil {
		text, err := json.Marshal(args)
		if err != nil {
			return err
		}
		r.Args = text
	}
	packet, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(packet) > MaxPacket {
		return serai.Errorf(serai.Invalid, "the request has %d bytes; at most %d fit in one", len(packet), MaxPacket)
	}
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return gone()
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = Send(int(fd), packet, fds...)
		return !wouldBlock(sendErr)
	})
	if err != nil || isGone(sendErr) {
		return gone()
	}
	return sendErr
}

// forget ends a call; what came for it and was not taken is closed.
func (c *Conn) forget(id uint64, replies *mailbox[reply]) {
	c.mu.Lock()
	delete(c.calls, id)
	c.mu.Unlock()
	for _, r := range replies.empty() {
		closeFiles(r.files)
	}
}

// read hands packets out until the connection ends or the monitor talks
// nonsense, which ends it too.
func (c *Conn) read() {
	defer close(c.done)
	defer c.conn.Close()
	buf, control := make([]byte, MaxPacket+1), make([]byte, ControlSize)
	for {
		packet, fds, err := c.receive(buf, control)
		if err != nil {
			break
		}
		files := make([]*os.File, len(fds))
		for i, fd := range fds {
			files[i] = os.NewFile(uintptr(fd), "from serai-priv")
		}
		var r Reply
		if err := json.Unmarshal(packet, &r); err != nil {
			closeFiles(files)
			break
		}
		if !c.dispatch(r, files) {
			closeFiles(files)
		}
	}
	c.mu.Lock()
	calls := c.calls
	c.calls = nil
	c.mu.Unlock()
	for _, replies := range calls {
		replies.finish()
	}
	c.inbox.finish()
}

func (c *Conn) receive(buf, control []byte) (packet []byte, fds []int, err error) {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	rerr := raw.Read(func(fd uintptr) bool {
		packet, fds, err = Receive(int(fd), buf, control)
		return !wouldBlock(err)
	})
	if rerr != nil {
		return nil, nil, rerr
	}
	return packet, fds, err
}

// dispatch reports whether somebody took the packet.
func (c *Conn) dispatch(r Reply, files []*os.File) bool {
	if r.ID == 0 {
		return c.inbox.put(Event{r.Op, r.Body, files})
	}
	c.mu.Lock()
	replies := c.calls[r.ID]
	c.mu.Unlock()
	return replies != nil && replies.put(reply{r, files})
}

// deliver hands the events out until the last one, or until Close.
func (c *Conn) deliver() {
	defer close(c.events)
	for {
		e, ok, _ := c.inbox.take(context.Background())
		if !ok {
			return
		}
		select {
		case c.events <- e:
		case <-c.closed:
			closeFiles(e.Files)
			for _, e := range c.inbox.empty() {
				closeFiles(e.Files)
			}
			return
		}
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
