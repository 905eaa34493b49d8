package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

// An index answers from memory what would cost a look at every resource: who a
// uid is, which site a number is, who holds a host, what hangs on a tenant or
// on a plan. It follows the store by one watch, and so is a moment behind it;
// what this server itself writes is put in at once.
type index struct {
	store store.Store
	ready chan struct{} // closed when it is filled for the first time

	mu      sync.Mutex
	tables  tables
	waiters map[serai.Key]map[chan struct{}]bool
}

type tables struct {
	known   map[serai.Key]entry
	tenants map[uint32]string
	sites   map[int64]serai.Key
	hosts   map[string]serai.Key
	under   map[serai.Key]map[string]bool // Tenant → names of sites, Plan → names of tenants
	grants  map[string]map[string]bool    // host of Tenant.spec.hosts → names of tenants
	count   map[string]int                // by kind
}

// An entry is what a resource put into the tables, so that it can be undone.
type entry struct {
	uid    uint32
	number int64
	hosts  []string
	grants []string
	parent serai.Key
}

func newTables() tables {
	return tables{
		known: map[serai.Key]entry{}, tenants: map[uint32]string{}, sites: map[int64]serai.Key{},
		hosts: map[string]serai.Key{}, under: map[serai.Key]map[string]bool{}, grants: map[string]map[string]bool{}, count: map[string]int{},
	}
}

func newIndex(st store.Store) *index {
	return &index{store: st, ready: make(chan struct{}), tables: newTables(), waiters: map[serai.Key]map[chan struct{}]bool{}}
}

// run fills the index and follows the store until ctx ends.
func (x *index) run(ctx context.Context) error {
	for ctx.Err() == nil {
		revision, err := x.fill(ctx)
		for err == nil && ctx.Err() == nil {
			revision, err = x.follow(ctx, revision)
		}
		if err != nil && ctx.Err() == nil && serai.KindOf(err) != serai.Expired {
			return fmt.Errorf("follow the store: %w", err)
		}
	}
	return nil
}

func (x *index) fill(ctx context.Context) (revision string, err error) {
	t := newTables()
	for _, kind := range []string{serai.KindPlan, serai.KindTenant, serai.KindSite} {
		list, rev, err := x.store.List(ctx, kind, "")
		if err != nil {
			return "", err
		}
		if revision == "" {
			revision = rev // the oldest of the three: changes since may come twice, none is missed
		}
		for _, r := range list {
			t.put(r)
		}
	}
	x.mu.Lock()
	x.tables = t
	for key := range x.waiters {
		x.wake(key)
	}
	x.mu.Unlock()
	select {
	case <-x.ready:
	default:
		close(x.ready)
	}
	return revision, nil
}

func (x *index) follow(ctx context.Context, revision string) (string, error) {
	changes, err := x.store.Watch(ctx, revision)
	if err != nil {
		return revision, err
	}
	for c := range changes {
		x.mu.Lock()
		if c.Removed {
			x.tables.remove(c.Resource.Key())
		} else {
			x.tables.put(c.Resource)
		}
		x.wake(c.Resource.Key())
		x.mu.Unlock()
		revision = c.Revision
	}
	return revision, nil
}

// put notes what this server has written itself.
func (x *index) put(r serai.Resource) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tables.put(r)
}

func (t *tables) put(r serai.Resource) {
	key := r.Key()
	t.remove(key)
	var e entry
	switch r := r.(type) {
	case *serai.Tenant:
		e.uid = r.Status.UID
		e.parent = serai.Key{Kind: serai.KindPlan, Name: r.Spec.Plan}
		if e.uid != 0 {
			t.tenants[e.uid] = key.Name
		}
		e.grants = r.Spec.Hosts
		for _, g := range e.grants {
			note(t.grants, g, key.Name)
		}
	case *serai.Site:
		e.number, e.hosts = r.Meta.ID, r.Status.Claimed
		e.parent = serai.Key{Kind: serai.KindTenant, Name: key.Tenant}
		t.sites[e.number] = key
		for _, h := range e.hosts {
			t.hosts[h] = key
		}
	}
	if e.parent.Kind != "" {
		note(t.under, e.parent, key.Name)
	}
	t.known[key] = e
	t.count[key.Kind]++
}

func (t *tables) remove(key serai.Key) {
	e, ok := t.known[key]
	if !ok {
		return
	}
	delete(t.known, key)
	t.count[key.Kind]--
	if t.tenants[e.uid] == key.Name {
		delete(t.tenants, e.uid)
	}
	if t.sites[e.number] == key {
		delete(t.sites, e.number)
	}
	for _, h := range e.hosts {
		if t.hosts[h] == key {
			delete(t.hosts, h)
		}
	}
	for _, g := range e.grants {
		forget(t.grants, g, key.Name)
	}
	forget(t.under, e.parent, key.Name)
}

// note puts a name beneath a key; forget is its inverse.
func note[K comparable](m map[K]map[string]bool, k K, name string) {
	if m[k] == nil {
		m[k] = map[string]bool{}
	}
	m[k][name] = true
}

func forget[K comparable](m map[K]map[string]bool, k K, name string) {
	if delete(m[k], name); len(m[k]) == 0 {
		delete(m, k)
	}
}

func (x *index) tenant(uid uint32) (string, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	name, ok := x.tables.tenants[uid]
	return name, ok && uid != 0
}

func (x *index) site(number int64) (serai.Key, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	key, ok := x.tables.sites[number]
	return key, ok
}

func (x *index) holder(host string) (serai.Key, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	key, ok := x.tables.hosts[host]
	return key, ok
}

// grantees lists the tenants that have this very grant.
func (x *index) grantees(grant string) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Sorted(maps.Keys(x.tables.grants[grant]))
}

// under lists the names that hang on a tenant (sites) or on a plan (tenants).
func (x *index) under(parent serai.Key) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Sorted(maps.Keys(x.tables.under[parent]))
}

func (x *index) counts() (plans, tenants, sites int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.tables.count
	return c[serai.KindPlan], c[serai.KindTenant], c[serai.KindSite]
}

// changed returns a channel that gets a value when the resource has changed
// since the call, and the function that ends it.
func (x *index) changed(key serai.Key) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waiters[key] == nil {
		x.waiters[key] = map[chan struct{}]bool{}
	}
	x.waiters[key][ch] = true
	return ch, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if delete(x.waiters[key], ch); len(x.waiters[key]) == 0 {
			delete(x.waiters, key)
		}
	}
}

// wake needs the lock.
func (x *index) wake(key serai.Key) {
	for ch := range x.waiters[key] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
