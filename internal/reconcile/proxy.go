package reconcile

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/route"
)

// A link is the connection to the front proxy: it tells how far the route log
// reaches, and hears how far the proxy is, what broke, and the counters.
type link struct {
	path   string
	routes *routes
	broken func(route.Broken)
	log    *slog.Logger

	asking sync.Mutex // one question for counters at a time
	mu     sync.Mutex
	conn   net.Conn               // nil while the proxy is away
	heard  bool                   // it has answered: connecting succeeds without a proxy too
	pid    int                    // of the proxy, 0 while it has not told
	stats  chan []route.SiteStats // has room for one; not nil while an answer is to come
}

var errProxyAway = serai.Errorf(serai.Unavailable, "the front proxy does not answer").WithHint("look at the log of serai-proxy")

const (
	maxLine      = 1 << 20 // bytes of a line from the proxy
	writeTimeout = 5 * time.Second
)

// run dials and serves until ctx ends.
func (l *link) run(ctx context.Context) {
	tries := 0
	for ctx.Err() == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", l.path)
		if err == nil {
			began := time.Now()
			err = l.serve(ctx, conn)
			if time.Since(began) > time.Second {
				tries = 0
			}
		}
		if ctx.Err() != nil {
			return
		}
		if tries == 1 { // the first loss is a restart
			l.log.Warn("proxy is away", "cause", err)
		}
		select {
		case <-time.After(backOff(min(tries, 4))):
		case <-ctx.Done():
		}
		tries++
	}
}

func (l *link) serve(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	l.mu.Lock()
	l.conn = conn
	l.mu.Unlock()
	gone := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		l.routes.tell()
		for {
			select {
			case <-l.routes.moved:
			case <-gone:
				return
			}
			end := l.routes.extent()
			if err := l.send(conn, route.ToProxy{Routes: &end}); err != nil {
				conn.Close()
				return
			}
		}
	})
	err := l.read(conn)
	close(gone)
	conn.Close()
	wg.Wait()
	l.mu.Lock()
	l.conn, l.heard, l.pid = nil, false, 0
	if l.stats != nil {
		close(l.stats)
		l.stats = nil
	}
	l.mu.Unlock()
	return err
}

func (l *link) send(conn net.Conn, m route.ToProxy) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err = conn.Write(append(line, '\n'))
	return err
}

func (l *link) read(conn net.Conn) error {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	var stats []route.SiteStats
	for lines.Scan() {
		var m route.FromProxy
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("read a line of the proxy: %w", err)
		}
		switch {
		case m.Applied != nil:
			l.mu.Lock()
			l.heard, l.pid = true, m.PID
			l.mu.Unlock()
			l.routes.applied(*m.Applied)
		case m.Broken != nil:
			l.broken(*m.Broken)
		case m.StatsEnd:
			l.answer(append(stats, m.Stats...))
			stats = nil
		default:
			stats = append(stats, m.Stats...)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the proxy closed the connection")
}

func (l *link) answer(stats []route.SiteStats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stats != nil {
		l.stats <- stats
		close(l.stats)
		l.stats = nil
	}
}

// away reports whether there is no proxy that answers.
func (l *link) away() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.heard
}

// ask returns the proxy's counters.
func (l *link) ask(ctx context.Context) ([]route.SiteStats, error) {
	l.asking.Lock()
	defer l.asking.Unlock()
	l.mu.Lock()
	conn, answer := l.conn, l.stats
	if !l.heard {
		l.mu.Unlock()
		return nil, errProxyAway
	}
	if answer == nil {
		answer = make(chan []route.SiteStats, 1)
		l.stats = answer
		l.mu.Unlock()
		if err := l.send(conn, route.ToProxy{Stats: true}); err != nil {
			conn.Close()
			return nil, errProxyAway
		}
	} else { // the answer to a question that was given up: it will do
		l.mu.Unlock()
	}
	select {
	case stats, ok := <-answer:
		if !ok {
			return nil, errProxyAway
		}
		return stats, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
