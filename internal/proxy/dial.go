package proxy

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// grow dials as many workers as the queue needs and the limits allow. t.mu is
// held.
func (p *pool) grow() {
	if p.dropped || p.site.Closed != "" {
		return
	}
	n := min(len(p.queue)-len(p.idle)-p.dialing, p.site.Workers.Max-len(p.members)-p.dialing)
	if p.t.limit > 0 {
		n = min(n, p.t.limit-p.t.busy-p.dialing)
	}
	p.dial(n)
}

// keepMin dials up to the minimum. t.mu is held.
func (p *pool) keepMin() {
	if p.dropped || p.site.Closed != "" || time.Now().Before(p.badUntil) {
		return
	}
	p.dial(min(p.site.Workers.Min, p.site.Workers.Max) - len(p.members) - p.dialing)
}

func (p *pool) dial(n int) {
	wait := max(time.Duration(p.site.Queue.Wait), time.Second)
	for range n {
		p.dialing++
		go p.dialOne(p.dials, wait)
	}
}

// needed reports whether one of the dials under way is still wanted.
func (p *pool) needed() bool {
	return !p.dropped && p.site.Closed == "" &&
		(len(p.queue)-len(p.idle) >= p.dialing || len(p.members)+p.dialing <= p.site.Workers.Min)
}

// The pause between two tries to get a worker grows up to maxPause.
const (
	firstPause = 5 * time.Millisecond
	maxPause   = time.Second
)

// dialOne brings one worker, or gives up when nobody needs it any more.
func (p *pool) dialOne(dials context.Context, wait time.Duration) {
	ctx, cancel := context.WithTimeout(dials, wait)
	defer cancel()
	checked := false
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		c, err := p.up.Dial(ctx, p.target)
		if err == nil && p.adopt(c) {
			return
		}
		if errors.Is(err, worker.ErrRefused) {
			if checked {
				p.up.Log.Warn("site's socket refuses", "site", p.target.Site, "cause", err)
				p.giveUp(&refusal{http.StatusBadGateway, whyNoSocket, time.Second})
				return
			}
			checked = true
			if err := p.up.CheckListener(ctx, p.target.Site); err != nil {
				p.up.Log.Warn("site's socket not checked", "site", p.target.Site, "cause", err)
			}
			continue
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, worker.ErrNoHello) && pause == firstPause { // said once: it may go on for long
			p.up.Log.Warn("worker not connected", "site", p.target.Site, "cause", err)
		}
		p.t.mu.Lock()
		needed := p.needed()
		if !needed || ctx.Err() != nil {
			p.dialing--
			if needed {
				p.grow() // its time is over, but not that of all who wait
				p.keepMin()
			}
			p.t.mu.Unlock()
			return
		}
		p.t.mu.Unlock()
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// adopt takes in a worker that said hello, unless it is of an older launch:
// that one is sent away.
func (p *pool) adopt(c *worker.Conn) bool {
	p.t.mu.Lock()
	if back := p.ghosts[c.PID]; back != nil {
		delete(p.ghosts, c.PID)
		close(back)
	}
	if p.outdated(c) {
		p.t.mu.Unlock()
		c.Quit()
		return false
	}
	p.dialing--
	p.badUntil = time.Time{}
	p.members[c] = &member{since: time.Now()}
	p.idle = append(p.idle, c)
	p.scheduleRetire()
	p.t.dispatch()
	p.t.mu.Unlock()
	go func() {
		if c.Wait() {
			p.died(c)
		}
	}()
	return true
}

// died forgets a worker that ended while it was idle. One that ended in a
// request is its exchange's matter.
func (p *pool) died(c *worker.Conn) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	i := slices.Index(p.idle, c)
	if i < 0 {
		return
	}
	p.idle = slices.Delete(p.idle, i, i+1)
	p.lose(c, route.LeftDied)
	p.keepMin()
}

// giveUp ends a dial that cannot succeed, and the waits for it.
func (p *pool) giveUp(r *refusal) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	p.dialing--
	if len(p.members) == 0 {
		p.refuseAll(r)
	}
	p.retryMin(maxPause)
}

// retryMin tries again to reach the minimum after a pause. t.mu is held.
func (p *pool) retryMin(after time.Duration) {
	if p.dropped || p.site.Workers.Min == 0 {
		return
	}
	if p.again != nil {
		p.again.Stop()
	}
	p.again = time.AfterFunc(after, func() {
		p.t.mu.Lock()
		defer p.t.mu.Unlock()
		p.keepMin()
	})
}

// failed is told by serai-priv: the site's code did not load, and is not tried
// again before a time. Where workers are connected it was a reload, which
// leaves them as they are.
func (p *pool) failed(retry time.Duration) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if len(p.members) > 0 || p.dropped {
		return
	}
	p.main = 0
	p.badUntil = time.Now().Add(retry)
	p.refuseAll(&refusal{http.StatusBadGateway, whyNotBegun, retry})
	p.stopDials()
	p.dials, p.stopDials = context.WithCancel(context.Background())
	p.retryMin(retry)
}

// started is told by serai-priv.
func (p *pool) started(pid int) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	p.main = pid
}

// exited is told by serai-priv: the main process has ended, and that many
// processes of its control group had been killed for memory.
func (p *pool) exited(pid int, kills int64) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if p.main == pid {
		p.main = 0
	}
	close(p.exit.note)
	p.exit = exit{pid: pid, kills: kills, note: make(chan struct{})}
}

// exitPatience is how long the word of serai-priv on a dead worker is awaited.
const exitPatience = 200 * time.Millisecond

// killedForMemory finds out whether a worker that died was killed for memory:
// route.KilledYes, route.KilledNo, or "" where nobody can say.
func (p *pool) killedForMemory(c *worker.Conn) string {
	answer := func(killed bool) string {
		if killed {
			return route.KilledYes
		}
		return route.KilledNo
	}
	p.t.mu.Lock()
	killed, known := c.KilledForMemory()
	if killed {
		for other := range p.members { // each kill has one victim
			if other != c && other.Launch == c.Launch {
				other.Spare()
			}
		}
	}
	p.t.mu.Unlock()
	if known {
		return answer(killed)
	}
	before, known := c.Baseline()
	if !known {
		return ""
	}
	timer := time.NewTimer(exitPatience)
	defer timer.Stop()
	for {
		p.t.mu.Lock()
		last := p.exit
		p.t.mu.Unlock()
		if last.pid == c.PID {
			return answer(last.kills > before)
		}
		select {
		case <-last.note:
		case <-timer.C:
			return ""
		}
	}
}
