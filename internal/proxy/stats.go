package proxy

import (
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"serai.dev/serai/internal/route"
)

// counts are a site's since the proxy started.
type counts struct {
	requests, in, out, queue, worker, wakes atomic.Int64
	status                                  [10]atomic.Int64 // by hundreds
}

func (c *counts) add(e *entry) {
	c.requests.Add(1)
	c.in.Add(e.Received)
	c.out.Add(e.Bytes)
	c.queue.Add(int64(e.Queue))
	c.worker.Add(int64(e.Worker))
	c.status[min(max(e.Status/100, 0), 9)].Add(1)
}

// snapshot is the site as it is now. Bytes are those of bodies.
func (p *pool) snapshot() route.SiteStats {
	c := &p.counts
	s := route.SiteStats{
		Site: p.target.Site, Requests: c.requests.Load(), Status: make(map[string]int64),
		BytesIn: c.in.Load(), BytesOut: c.out.Load(), QueueNs: c.queue.Load(), WorkerNs: c.worker.Load(), Wakes: c.wakes.Load(),
	}
	for i := range c.status {
		if n := c.status[i].Load(); n > 0 {
			s.Status[strconv.Itoa(i)+"xx"] = n
		}
	}
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	s.Idle, s.Busy, s.Queued = len(p.idle), p.busy, len(p.queue)
	s.Left = maps.Clone(p.left)
	for w, m := range p.members {
		stats := route.WorkerStats{PID: w.PID, Launch: w.Launch,
			Requests: m.requests, Busy: m.busy, SinceMs: time.Since(w.Since).Milliseconds()}
		if m.busy {
			stats.RequestMs = time.Since(m.since).Milliseconds()
		}
		s.Workers = append(s.Workers, stats)
	}
	return s
}
