package worker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Target names the workers of a site: where they accept and who they are.
type Target struct {
	Socket string // path of the site's listener
	Site   uint32 // number
	UID    uint32 // of the tenant
}

// Attest looks at the process that sent a hello, which the kernel named, and
// refuses it where it is not one of the target's. What it returns counts the
// kills for memory among the process's own.
type Attest func(t Target, pid int) (Kills, error)

// Kills is how many processes the kernel has killed for memory in the group of
// a worker so far, or false where that cannot be known.
type Kills func() (n int64, known bool)

// The ways in which no worker can be had.
var (
	// ErrRefused: nobody listens on the site's socket.
	ErrRefused = errors.New("nobody listens")
	// ErrNoHello: the connection ended before the hello. Ask another.
	ErrNoHello = errors.New("no hello")
)

// A Conn is one worker between and in its exchanges. Start must not be called
// while an exchange is under way; the other methods may be called at any time.
type Conn struct {
	PID    int
	Launch int64
	Since  time.Time // of the hello

	conn     *net.UnixConn
	pidfd    *os.File
	kills    Kills
	baseline atomic.Int64
	known    bool

	mu   sync.Mutex // orders deadlines against death
	dead bool
	died chan struct{}
	once sync.Once
	gone chan struct{} // closed by Close
}

// deathNote is how long what a dead worker wrote is still read. All of it is in
// the socket already; only a child that holds the connection makes us wait.
const deathNote = 100 * time.Millisecond

// Dial connects to the site's listener and waits for a worker's hello until ctx
// ends. The errors are ErrRefused, ErrNoHello, ErrProtocol, that of ctx, or
// what the machine has against it.
func Dial(ctx context.Context, t Target, attest Attest) (*Conn, error) {
	dialer := net.Dialer{Control: passCredentials}
	conn, err := dialer.DialContext(ctx, "unix", t.Socket)
	switch {
	case errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("connect to site %d: %w: %w", t.Site, ErrRefused, err)
	case err != nil:
		return nil, fmt.Errorf("connect to site %d: %w", t.Site, err)
	}
	c, err := greet(ctx, conn.(*net.UnixConn), t, attest)
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("wait for a worker of site %d: %w", t.Site, err)
	}
	return c, nil
}

// passCredentials runs before connect, so that no byte comes without the
// kernel's word on who wrote it.
func passCredentials(_, _ string, raw syscall.RawConn) error {
	var err error
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}

func greet(ctx context.Context, conn *net.UnixConn, t Target, attest Attest) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	launch, cred, err := readHello(conn, t)
	if err != nil {
		return nil, err
	}
	if cred.Uid != t.UID {
		return nil, breach("the hello is from uid %d, not %d", cred.Uid, t.UID)
	}
	fd, err := unix.PidfdOpen(int(cred.Pid), unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil, ErrNoHello // it has died since
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of worker %d: %w", cred.Pid, err)
	}
	pidfd := os.NewFile(uintptr(fd), "worker")
	kills, err := attest(t, int(cred.Pid))
	if err == nil && readable(fd) {
		err = ErrNoHello // what was attested may be another process
	}
	if err != nil {
		pidfd.Close()
		return nil, err
	}
	c := &Conn{PID: int(cred.Pid), Launch: launch, Since: time.Now(),
		conn: conn, pidfd: pidfd, kills: kills,
		died: make(chan struct{}), gone: make(chan struct{})}
	n, known := kills()
	c.baseline.Store(n)
	c.known = known
	if !stop() { // ctx has ended: its deadline may come yet
		pidfd.Close()
		return nil, ctx.Err()
	}
	conn.SetReadDeadline(time.Time{})
	go c.watch()
	return c, nil
}

// readHello reads the first frame and who wrote its first byte.
func readHello(conn *net.UnixConn, t Target) (launch int64, cred *unix.Ucred, err error) {
	var hello [frameSize + helloSize]byte
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for n := 0; n < len(hello); {
		m, oobn, _, _, err := conn.ReadMsgUnix(hello[n:], oob)
		if err != nil || m == 0 {
			if err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
				err = ErrNoHello
			}
			return 0, nil, err
		}
		if n == 0 {
			if cred, err = credentials(oob[:oobn]); err != nil {
				return 0, nil, err
			}
		}
		n += m
		if n >= frameSize && (hello[4] != typeHello || binary.BigEndian.Uint32(hello[:]) != helloSize) {
			return 0, nil, breach("the first frame is no hello")
		}
	}
	p := hello[frameSize:]
	if v := binary.BigEndian.Uint32(p); v != Version {
		return 0, nil, breach("version %d instead of %d", v, Version)
	}
	if site := binary.BigEndian.Uint32(p[4:]); site != t.Site {
		return 0, nil, breach("the hello is of site %d, not %d", site, t.Site)
	}
	return int64(binary.BigEndian.Uint64(p[8:])), cred, nil
}

func credentials(oob []byte) (*unix.Ucred, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			return cred, nil
		}
	}
	return nil, errors.New("read credentials: the kernel sent none")
}

// watch waits for the process to end.
func (c *Conn) watch() {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return
	}
	if err := raw.Read(func(fd uintptr) bool { return readable(int(fd)) }); err != nil {
		return // closed
	}
	c.mu.Lock()
	c.dead = true
	c.conn.SetReadDeadline(time.Now().Add(deathNote))
	c.conn.SetWriteDeadline(time.Unix(1, 0))
	c.mu.Unlock()
	close(c.died)
}

// readable reports whether the process of a pidfd has ended.
func readable(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// Wait returns true when the process has ended, or false when Close was called
// before.
func (c *Conn) Wait() (died bool) {
	select {
	case <-c.died:
		return true
	case <-c.gone:
		return false
	}
}

// Idle reports whether an idle worker is still there and silent.
func (c *Conn) Idle() bool {
	select {
	case <-c.died:
		return false
	default:
	}
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return false
	}
	silent := false
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		silent = err == unix.EAGAIN
	})
	return err == nil && silent
}

// KilledForMemory reports whether the kernel has killed for memory among the
// worker's own since its hello; known is false where that cannot be said.
func (c *Conn) KilledForMemory() (killed, known bool) {
	n, known := c.kills()
	if !known || !c.known {
		return false, false
	}
	return n > c.baseline.Load(), true
}

// Spare notes that one of the kills since the worker's hello was that of
// another process of its group.
func (c *Conn) Spare() {
	if killed, _ := c.KilledForMemory(); killed {
		c.baseline.Add(1)
	}
}

// Baseline is the number of kills for memory at the hello, and of those since
// that were spared.
func (c *Conn) Baseline() (n int64, known bool) { return c.baseline.Load(), c.known }

// Quit asks an idle worker to leave, and closes.
func (c *Conn) Quit() {
	c.deadline(c.conn.SetWriteDeadline, time.Now().Add(time.Second))
	c.conn.Write(appendFrame(nil, typeQuit, 0))
	c.Close()
}

// Close ends the connection. A worker that lives accepts again.
func (c *Conn) Close() {
	c.once.Do(func() {
		c.conn.Close()
		c.pidfd.Close()
		close(c.gone)
	})
}

// HangUp ends the connection in the middle of a request, but not the watch for
// the process's end: Close does.
func (c *Conn) HangUp() { c.conn.Close() }

// deadline sets one of the connection's deadlines, unless the worker is dead:
// then the deadline of death stands.
func (c *Conn) deadline(set func(time.Time) error, t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dead {
		set(t)
	}
}
