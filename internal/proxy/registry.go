package proxy

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// Upstream is what the pools need of the rest of the machine. All functions may
// be called concurrently.
type Upstream struct {
	// Dial connects to a worker and waits for its hello.
	Dial func(ctx context.Context, t worker.Target) (*worker.Conn, error)
	// Socket is the path of a site's listener.
	Socket func(site uint32) string
	// Kill ends a process of a site at once.
	Kill func(site uint32, pid int)
	// End has a worker write its stack to the site's log and end, and kills it
	// where it does not. Then it tells done how that went.
	End func(site uint32, pid int, done func(privsep.Killed))
	// Ask has a worker write its stack to the site's log and go on.
	Ask func(site uint32, pid int)
	// CheckListener makes a site's listener anew if it is dead.
	CheckListener func(ctx context.Context, site uint32) error
	Log           *slog.Logger
}

// A registry has the pools of all sites. They outlive every table of routes: a
// new table finds the workers that are connected.
type registry struct {
	up *Upstream

	mu      sync.Mutex
	tenants map[uint32]*tenant // by uid
	pools   map[uint32]*pool   // by number of the site
}

func newRegistry(up *Upstream) *registry {
	return &registry{up: up, tenants: make(map[uint32]*tenant), pools: make(map[uint32]*pool)}
}

// tenantOf makes the tenant where it is not known yet. r.mu is held.
func (r *registry) tenantOf(uid uint32) *tenant {
	t := r.tenants[uid]
	if t == nil {
		t = &tenant{waiting: make(map[*pool]struct{})}
		r.tenants[uid] = t
	}
	return t
}

// setTenant sets how many requests a tenant may have in workers at once.
func (r *registry) setTenant(rt *route.Tenant) {
	r.mu.Lock()
	t := r.tenantOf(rt.UID)
	r.mu.Unlock()
	t.mu.Lock()
	t.limit = rt.Workers
	t.dispatch()
	t.mu.Unlock()
}

func (r *registry) forgetTenant(uid uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tenants, uid) // its pools have it still, until they are dropped
}

// setSite makes a site's pool, or tells it what has changed.
func (r *registry) setSite(rs *route.Site) *pool {
	r.mu.Lock()
	p := r.pools[rs.Number]
	if p != nil && p.target.UID != rs.UID {
		defer p.drop() // a number is given out once: this is another world
		p = nil
	}
	if p == nil {
		p = newPool(r.up, r.tenantOf(rs.UID), rs)
		r.pools[rs.Number] = p
	}
	r.mu.Unlock()
	p.update(rs)
	return p
}

// dropSite ends the pool of a site that is gone.
func (r *registry) dropSite(number uint32) {
	r.mu.Lock()
	p := r.pools[number]
	delete(r.pools, number)
	r.mu.Unlock()
	if p != nil {
		p.drop()
	}
}

// retain drops the sites and tenants that a new table does not have.
func (r *registry) retain(site, tenant func(uint32) bool) {
	r.mu.Lock()
	var gone []uint32
	for number := range r.pools {
		if !site(number) {
			gone = append(gone, number)
		}
	}
	for uid := range r.tenants {
		if !tenant(uid) {
			delete(r.tenants, uid)
		}
	}
	r.mu.Unlock()
	for _, number := range gone {
		r.dropSite(number)
	}
}

func (r *registry) pool(number uint32) *pool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pools[number]
}

// all is every pool at this moment.
func (r *registry) all() []*pool {
	r.mu.Lock()
	defer r.mu.Unlock()
	pools := make([]*pool, 0, len(r.pools))
	for _, p := range r.pools {
		pools = append(pools, p)
	}
	return pools
}

// event takes in what serai-priv said of a site. Only a failure is acted upon;
// the rest are hints.
func (r *registry) event(op string, ev privsep.SiteEvent) {
	p := r.pool(ev.Site)
	if p == nil {
		return
	}
	switch op {
	case privsep.EvStarted:
		p.started(ev.PID)
	case privsep.EvFailed:
		p.failed(time.Duration(ev.RetryMs) * time.Millisecond)
	case privsep.EvExited:
		p.exited(ev.PID, ev.Memory.OOMKills)
	}
}
