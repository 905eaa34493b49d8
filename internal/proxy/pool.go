package proxy

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// A tenant bounds the requests in workers over all its sites. Its lock guards
// its pools too: what one site gives back another may be waiting for.
type tenant struct {
	mu      sync.Mutex
	limit   int // requests at once; 0 is no limit
	busy    int
	waiting map[*pool]struct{} // pools with a queue
}

func (t *tenant) full() bool { return t.limit > 0 && t.busy >= t.limit }

// dispatch gives idle workers to those that wait, the longest first over all
// sites of the tenant, and lets pools with a queue grow. t.mu is held.
func (t *tenant) dispatch() {
	for !t.full() {
		var next *pool
		for p := range t.waiting {
			if len(p.idle) > 0 && (next == nil || p.queue[0].since.Before(next.queue[0].since)) {
				next = p
			}
		}
		if next == nil {
			break
		}
		if c := next.pop(); c != nil {
			next.shift().ready <- grant{conn: c}
		}
	}
	for p := range t.waiting {
		p.grow()
	}
}

// A pool is the workers of one site: those that are connected, and the queue of
// requests for them.
type pool struct {
	up     *Upstream
	t      *tenant
	target worker.Target

	// All below is guarded by t.mu.
	site    *route.Site
	dropped bool
	members map[*worker.Conn]*member
	idle    []*worker.Conn // last used last: it is taken first
	busy    int
	dialing int
	queue   []*waiter
	retire  *time.Timer // for idle[0], nil where none is due

	dials     context.Context // of the dials under way
	stopDials context.CancelFunc
	badUntil  time.Time   // the site could not be started: no dial before
	again     *time.Timer // to reach the minimum after that

	ghosts map[int]chan struct{} // processes that were left in mid-request, by pid
	main   int                   // pid of the site's main process, 0 where asleep or not known
	exit   exit

	left   map[string]int64 // workers that are no more, by reason
	counts counts
	// mounted are the requests to the site that others' workers answer.
	mounted atomic.Int64
}

// A member is what a pool notes of a worker.
type member struct {
	requests int64
	busy     bool
	since    time.Time // that it is busy or not
}

// exit is the last end of a main process.
type exit struct {
	pid   int
	kills int64
	note  chan struct{} // closed at the next one
}

// A waiter is a request in the queue.
type waiter struct {
	since time.Time
	ready chan grant // has room for one
}

// A grant ends a wait: one of both is set.
type grant struct {
	conn *worker.Conn
	err  error
}

// A refusal is an answer of the proxy's own to a request.
type refusal struct {
	status int
	why    string        // one sentence for the client
	retry  time.Duration // for Retry-After, or 0
}

func (r *refusal) Error() string { return fmt.Sprintf("%d: %s", r.status, r.why) }

const (
	whyFull     = "Too many requests are waiting for this site."
	whyWaited   = "No worker of this site became free in time."
	whyNotBegun = "This site could not be started. Its log says why."
	whyNoSocket = "This site cannot be reached at the moment."
	whyDropped  = "This site has just been removed."
)

func newPool(up *Upstream, t *tenant, rs *route.Site) *pool {
	p := &pool{
		up: up, t: t, site: rs,
		target:  worker.Target{Socket: up.Socket(rs.Number), Site: rs.Number, UID: rs.UID},
		members: make(map[*worker.Conn]*member),
		ghosts:  make(map[int]chan struct{}),
		left:    make(map[string]int64),
		exit:    exit{note: make(chan struct{})},
	}
	p.dials, p.stopDials = context.WithCancel(context.Background())
	return p
}

// acquire waits for a worker, which release or abandon must get back. The error
// is a *refusal, or that of ctx: the client went away.
func (p *pool) acquire(ctx context.Context) (*worker.Conn, error) {
	p.t.mu.Lock()
	if err := p.refuse(); err != nil {
		p.t.mu.Unlock()
		return nil, err
	}
	if len(p.members)+p.dialing == 0 && p.main == 0 {
		p.counts.wakes.Add(1)
	}
	if len(p.queue) == 0 && !p.t.full() {
		for len(p.idle) > 0 {
			if c := p.pop(); c != nil {
				p.t.mu.Unlock()
				return c, nil
			}
		}
	}
	w := &waiter{since: time.Now(), ready: make(chan grant, 1)}
	p.queue = append(p.queue, w)
	p.t.waiting[p] = struct{}{}
	p.grow()
	// Each dial under way will serve one of them: those do not wait for others.
	if len(p.queue)-p.dialing > p.site.Queue.Length {
		p.remove(w)
		wait := time.Duration(p.site.Queue.Wait)
		p.t.mu.Unlock()
		return nil, &refusal{http.StatusServiceUnavailable, whyFull, wait}
	}
	wait := time.Duration(p.site.Queue.Wait)
	p.t.mu.Unlock()

	timer := time.NewTimer(wait)
	defer timer.Stop()
	var err error
	select {
	case g := <-w.ready:
		return g.conn, g.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = &refusal{http.StatusServiceUnavailable, whyWaited, wait}
	}
	p.t.mu.Lock()
	waiting := p.remove(w)
	p.t.mu.Unlock()
	if waiting {
		return nil, err
	}
	// The grant came at the same moment.
	g := <-w.ready
	if g.conn != nil && ctx.Err() != nil {
		p.release(g.conn, "")
		return nil, ctx.Err()
	}
	return g.conn, g.err
}

// refuse says why the site takes no request now, or nil.
func (p *pool) refuse() error {
	switch {
	case p.dropped:
		return &refusal{http.StatusServiceUnavailable, whyDropped, time.Second}
	case p.site.Closed != "":
		return &refusal{http.StatusServiceUnavailable, p.site.Closed, time.Minute}
	case len(p.members) == 0 && time.Now().Before(p.badUntil):
		return &refusal{http.StatusBadGateway, whyNotBegun, time.Until(p.badUntil)}
	}
	return nil
}

// pop takes the worker that was used last, or nil where that one is no good
// any more.
func (p *pool) pop() *worker.Conn {
	c := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	if !c.Idle() {
		p.lose(c, route.LeftDied)
		return nil
	}
	m := p.members[c]
	m.busy, m.since = true, time.Now()
	m.requests++
	p.busy++
	p.t.busy++
	return c
}

// forget takes a worker that is not busy out of the pool.
func (p *pool) forget(c *worker.Conn, reason string) {
	delete(p.members, c)
	p.left[reason]++
}

// lose forgets one that cannot be told to leave.
func (p *pool) lose(c *worker.Conn, reason string) {
	p.forget(c, reason)
	c.Close()
}

func (p *pool) shift() *waiter {
	w := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	if len(p.queue) == 0 {
		delete(p.t.waiting, p)
	}
	return w
}

// remove takes a waiter out of the queue and reports whether it was there.
func (p *pool) remove(w *waiter) bool {
	i := slices.Index(p.queue, w)
	if i < 0 {
		return false
	}
	p.queue = slices.Delete(p.queue, i, i+1)
	if len(p.queue) == 0 {
		delete(p.t.waiting, p)
	}
	return true
}

// refuseAll ends the wait of all in the queue.
func (p *pool) refuseAll(r *refusal) {
	for len(p.queue) > 0 {
		p.shift().ready <- grant{err: r}
	}
}

// release gives a worker back. Where there is a reason that it cannot be used
// again its connection is closed.
func (p *pool) release(c *worker.Conn, reason string) {
	p.t.mu.Lock()
	m := p.free(c)
	quit := false
	switch {
	case reason != "":
		p.lose(c, reason)
	case p.outdated(c):
		p.forget(c, route.LeftReload)
		quit = true
	case len(p.members)+p.dialing > p.site.Workers.Max:
		p.forget(c, route.LeftIdle)
		quit = true
	default:
		m.since = time.Now()
		p.idle = append(p.idle, c)
		p.scheduleRetire()
	}
	p.t.dispatch()
	p.keepMin()
	p.t.mu.Unlock()
	if quit {
		c.Quit()
	}
}

// free takes a busy worker out of the counts.
func (p *pool) free(c *worker.Conn) *member {
	m := p.members[c]
	m.busy = false
	p.busy--
	p.t.busy--
	return m
}

// outdated reports whether a worker is of an older launch than the routes
// name, or of a site that is gone or closed.
func (p *pool) outdated(c *worker.Conn) bool {
	return p.dropped || p.site.Closed != "" || c.Launch < p.site.Launch
}

// abandon leaves a worker alone in the middle of a request whose client has
// gone: it feels it at its next write. Where it neither ends nor comes back
// with a new hello within its time it is ended.
func (p *pool) abandon(c *worker.Conn) {
	c.HangUp()
	back := make(chan struct{})
	p.t.mu.Lock()
	p.free(c)
	p.forget(c, route.LeftProxy)
	p.ghosts[c.PID] = back
	timeout := time.Duration(p.site.Workers.Timeout)
	p.t.dispatch()
	p.keepMin()
	p.t.mu.Unlock()

	go func() {
		late := func() {
			p.up.End(p.target.Site, c.PID, func(privsep.Killed) {})
			c.Close()
		}
		if timeout > 0 {
			timer := time.AfterFunc(timeout, late)
			defer timer.Stop()
		}
		go func() {
			<-back
			c.Close()
		}()
		c.Wait()
		c.Close()
		p.t.mu.Lock()
		defer p.t.mu.Unlock()
		if p.ghosts[c.PID] == back {
			delete(p.ghosts, c.PID)
			close(back)
		}
	}()
}

// scheduleRetire sees to it that the worker that is idle for the longest time
// is retired when it is due.
func (p *pool) scheduleRetire() {
	idle := time.Duration(p.site.Workers.Idle)
	if p.retire != nil || idle == 0 || len(p.idle) == 0 || len(p.members) <= p.site.Workers.Min {
		return
	}
	due := time.Until(p.members[p.idle[0]].since.Add(idle))
	p.retire = time.AfterFunc(max(due, 0), p.retireIdle)
}

func (p *pool) retireIdle() {
	p.t.mu.Lock()
	p.retire = nil
	var quit []*worker.Conn
	idle := time.Duration(p.site.Workers.Idle)
	for len(p.idle) > 0 && len(p.members) > p.site.Workers.Min &&
		time.Since(p.members[p.idle[0]].since) >= idle {
		quit = append(quit, p.idle[0])
		p.forget(p.idle[0], route.LeftIdle)
		p.idle = slices.Delete(p.idle, 0, 1)
	}
	p.scheduleRetire()
	p.t.mu.Unlock()
	for _, c := range quit {
		c.Quit()
	}
}

// update takes over a site's changed route.
func (p *pool) update(rs *route.Site) {
	p.t.mu.Lock()
	if rs.Launch != p.site.Launch {
		p.badUntil = time.Time{} // other code: it may well start
	}
	p.site = rs
	quit := p.dismiss(p.outdated)
	if rs.Closed != "" {
		p.refuseAll(&refusal{http.StatusServiceUnavailable, rs.Closed, time.Minute})
	}
	for len(p.members)+p.dialing > rs.Workers.Max && len(p.idle) > 0 {
		quit = append(quit, p.idle[0])
		p.forget(p.idle[0], route.LeftIdle)
		p.idle = slices.Delete(p.idle, 0, 1)
	}
	if p.retire != nil && p.retire.Stop() {
		p.retire = nil
	}
	p.scheduleRetire()
	p.t.dispatch()
	p.keepMin()
	p.t.mu.Unlock()
	for _, c := range quit {
		c.Quit()
	}
}

// dismiss takes the idle workers out for which bad is true.
func (p *pool) dismiss(bad func(*worker.Conn) bool) (quit []*worker.Conn) {
	p.idle = slices.DeleteFunc(p.idle, func(c *worker.Conn) bool {
		if !bad(c) {
			return false
		}
		p.forget(c, route.LeftReload)
		quit = append(quit, c)
		return true
	})
	return quit
}

// drop ends a pool: what is busy ends its request.
func (p *pool) drop() {
	p.t.mu.Lock()
	p.dropped = true
	p.stopDials()
	for _, timer := range []*time.Timer{p.retire, p.again} {
		if timer != nil {
			timer.Stop()
		}
	}
	p.refuseAll(&refusal{http.StatusServiceUnavailable, whyDropped, time.Second})
	quit := p.dismiss(p.outdated)
	p.t.mu.Unlock()
	for _, c := range quit {
		c.Quit()
	}
}
