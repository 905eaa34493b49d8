package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"serai.dev/serai/internal/peercred"
	"serai.dev/serai/internal/route"
)

// A control speaks with seraid. The newest connection is the one served; what
// seraid must learn of waits, within bounds, while it is away.
type control struct {
	s *Server

	mu      sync.Mutex
	conn    *net.UnixConn
	waiting []route.Broken
	lost    int
	wake    chan struct{} // has room for one
}

const (
	maxWaiting  = 1000
	maxLine     = 64 << 10 // from seraid
	controlTime = 10 * time.Second
	statsALine  = 50 // sites in one line of an answer
)

func newControl(s *Server) *control { return &control{s: s, wake: make(chan struct{}, 1)} }

// broken keeps the news of a request for seraid. It never waits. Where too much
// is waiting the oldest are lost.
func (c *control) broken(b route.Broken) {
	c.mu.Lock()
	if len(c.waiting) == maxWaiting {
		c.waiting = c.waiting[1:]
		c.lost++
	}
	c.waiting = append(c.waiting, b)
	c.mu.Unlock()
	signal(c.wake)
}

// run accepts connections until ctx ends.
func (c *control) run(ctx context.Context, l net.Listener, allowed func(uid uint32) bool) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var served sync.WaitGroup
	defer served.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			c.take(nil)
			return nil
		}
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			return fmt.Errorf("accept seraid: %w", err)
		}
		u, ok := conn.(*net.UnixConn)
		if !ok {
			conn.Close()
			return fmt.Errorf("accept seraid: the control listener is no unix socket")
		}
		peer, err := peercred.Of(u)
		if err != nil || !allowed(peer.UID) {
			c.s.log.Warn("caller of the control socket refused", "uid", peer.UID, "pid", peer.PID, "cause", err)
			u.Close()
			continue
		}
		c.take(u)
		served.Go(func() { c.serve(ctx, u) })
	}
}

// take makes a connection the one that is served, and ends the one before.
func (c *control) take(u *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
	}
	c.conn = u
}

// serve answers one connection until it ends.
func (c *control) serve(ctx context.Context, u *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	out := &lines{u: u}
	var news sync.WaitGroup
	news.Go(func() { c.tell(ctx, out) })
	defer news.Wait()
	defer cancel()
	defer u.Close()
	in := bufio.NewScanner(u)
	in.Buffer(nil, maxLine)
	for in.Scan() {
		var m route.ToProxy
		d := json.NewDecoder(bytes.NewReader(in.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&m); err != nil {
			c.s.log.Error("line of seraid not understood", "cause", err)
			return
		}
		var err error
		switch {
		case m.Routes != nil:
			var reached route.Extent
			if reached, err = c.s.Apply(ctx, m.Routes); err != nil {
				c.s.log.Error("routes not applied", "cause", err)
			}
			err = out.send(route.FromProxy{Applied: &reached, PID: os.Getpid()})
		case m.Stats:
			err = c.stats(out)
		}
		if err != nil {
			return
		}
	}
}

func (c *control) stats(out *lines) error {
	var some []route.SiteStats
	for _, p := range c.s.registry.all() {
		some = append(some, p.snapshot())
		if len(some) == statsALine {
			if err := out.send(route.FromProxy{Stats: some}); err != nil {
				return err
			}
			some = nil
		}
	}
	if len(some) > 0 {
		if err := out.send(route.FromProxy{Stats: some}); err != nil {
			return err
		}
	}
	return out.send(route.FromProxy{StatsEnd: true})
}

// tell sends the news until the connection ends. What could not be sent waits
// for the next one.
func (c *control) tell(ctx context.Context, out *lines) {
	for {
		c.mu.Lock()
		if c.conn != out.u {
			c.mu.Unlock()
			signal(c.wake) // a newer connection tells
			return
		}
		waiting, lost := c.waiting, c.lost
		c.waiting, c.lost = nil, 0
		c.mu.Unlock()
		if lost > 0 {
			c.s.log.Warn("news for seraid lost", "count", lost)
		}
		for i := range waiting {
			if err := out.send(route.FromProxy{Broken: &waiting[i]}); err != nil {
				c.mu.Lock()
				c.waiting = append(waiting[i:], c.waiting...)
				c.mu.Unlock()
				signal(c.wake)
				return
			}
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
	}
}

// lines writes messages, one a line. It may be used concurrently.
type lines struct {
	mu sync.Mutex
	u  *net.UnixConn
}

func (l *lines) send(m route.FromProxy) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.u.SetWriteDeadline(time.Now().Add(controlTime))
	_, err = l.u.Write(append(b, '\n'))
	return err
}
