// Package reconcile makes what runs equal to what the store says: it compares
// each resource with what serai-priv and the proxy hold and asks for the
// difference. It is driven by the state it finds, not by what happened: doing
// any object again at any time is right and changes nothing where nothing is
// to be done. A change of one object costs the same however many there are.
//
// It has no power of its own: it never starts a process, opens a file of a
// tenant or deletes a home; it asks serai-priv, by number.
package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"sync"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
	"serai.dev/serai/internal/schedule"
	"serai.dev/serai/internal/store"
)

// The finalizers of resources whose removal takes more than a row.
const (
	AccountFinalizer = "serai.dev/account" // a Tenant: its account and cgroup
	PurgeFinalizer   = "serai.dev/purge"   // a deleted Tenant: its home and logs go too
	SiteFinalizer    = "serai.dev/site"    // a Site: its processes and listener
)

// Monitor is serai-priv as seen from here; see privsep.Conn.
type Monitor interface {
	Call(ctx context.Context, op string, args, body any, files ...*os.File) ([]*os.File, error)
	CallMany(ctx context.Context, op string, args any, each func(json.RawMessage) error) error
	Events() <-chan privsep.Event
}

// Logs keeps what sites write.
type Logs interface {
	// Keep reads a log pipe until its end. It does not wait. It takes over the file.
	Keep(site serai.Key, pipe *os.File)
	// Tell adds a line of our own. What is in it may be hostile.
	Tell(site serai.Key, line string)
	// Remove gives up the logs of a tenant that is gone: they are deleted
	// where purge is true, else put aside, so that a later tenant of that
	// name does not see them.
	Remove(tenant string, uid uint32, purge bool) error
}

// Options is what a Reconciler is made of. All are needed.
type Options struct {
	Config  *config.Config
	Store   store.Store
	Monitor Monitor
	Logs    Logs
	Log     *slog.Logger
}

// A Reconciler holds what was seen of the system. Its methods may be called
// concurrently, once Run was called.
type Reconciler struct {
	cfg   *config.Config
	store store.Store
	mon   Monitor
	logs  Logs
	log   *slog.Logger

	queue    *queue[serai.Key]
	launches *queue[serai.Key]
	runs     *queue[runKey]
	clock    *schedule.Clock[serai.Key] // of jobs, timeouts and daemons that rest
	routes   *routes
	link     *link
	journal  *journal
	join     *join
	aside    sync.WaitGroup // work that no key stands for
	synced   chan struct{}  // closed when what serai-priv holds is known

	mu      sync.Mutex
	sites   map[serai.Key]*site
	numbers map[uint32]serai.Key
	tenants map[string]*tenant
	wishes  map[string]map[serai.Key]bool // by host: sites that wait for it to be free
	zygotes map[string]privsep.ZygoteEvent
}

// The numbers of workers: of objects, and of launches, which cost the CPU of
// one start each.
const (
	objectWorkers = 4
	launchWorkers = 2
)

// New makes a Reconciler that does nothing before Run.
func New(o Options) *Reconciler {
	r := &Reconciler{
		cfg: o.Config, store: o.Store, mon: o.Monitor, logs: o.Logs, log: o.Log,
		queue: newQueue[serai.Key](), launches: newQueue[serai.Key](), runs: newQueue[runKey](),
		clock:  schedule.NewClock[serai.Key](),
		synced: make(chan struct{}),
		sites:  make(map[serai.Key]*site), numbers: make(map[uint32]serai.Key),
		tenants: make(map[string]*tenant), wishes: make(map[string]map[serai.Key]bool),
		zygotes: make(map[string]privsep.ZygoteEvent),
	}
	r.journal = newJournal(o.Store, o.Log)
	r.routes = newRoutes(o.Monitor, r.queue.add)
	r.join = newJoin(r.journal.add, r.nameOf)
	r.link = &link{path: o.Config.ProxySocket(), routes: r.routes, log: o.Log}
	return r
}

// Run reconciles until ctx ends or serai-priv is gone, which is an error.
func (r *Reconciler) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer r.routes.close()
	r.link.broken = func(b route.Broken) { r.brokeRequest(ctx, b) }

	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	// Events come before the state was asked for, lest one in between is lost.
	lost := make(chan struct{})
	wg.Go(func() { r.hear(ctx); close(lost) })
	wg.Go(func() { r.journal.run(ctx) })
	wg.Go(func() { r.join.run(ctx) })

	revision, err := r.sync(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	close(r.synced)
	wg.Go(func() { r.link.run(ctx) })
	wg.Go(func() { r.queue.work(ctx, objectWorkers, r.do) })
	wg.Go(func() { r.launches.work(ctx, launchWorkers, r.launch) })
	wg.Go(func() { r.runs.work(ctx, runWorkers, r.run) })
	wg.Go(func() { r.clock.Run(ctx, func(k serai.Key) { r.queue.add(k) }) })
	wg.Go(func() { r.watch(ctx, revision) })
	defer r.aside.Wait()
	defer cancel()
	select {
	case <-ctx.Done():
		return nil
	case <-lost:
		if ctx.Err() != nil {
			return nil
		}
		return errors.New("serai-priv is gone")
	}
}

// watch queues what changes in the store.
func (r *Reconciler) watch(ctx context.Context, revision string) {
	for tries := 0; ctx.Err() == nil; {
		changes, err := r.store.Watch(ctx, revision)
		if serai.KindOf(err) == serai.Expired {
			revision, err = r.relist(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			if ctx.Err() == nil {
				r.log.Error("watch of the store ended", "cause", err)
			}
			select {
			case <-time.After(backOff(tries)):
			case <-ctx.Done():
			}
			tries++
			continue
		}
		tries = 0
		for c := range changes {
			revision = c.Revision
			r.changed(c)
		}
	}
}

// changed queues what one change of the store concerns.
func (r *Reconciler) changed(c store.Change) {
	key := c.Resource.Key()
	if !c.Removed && r.wrote(key, c.Resource.GetMeta().Revision) {
		return
	}
	r.queue.add(key)
	switch {
	case key.Kind == serai.KindPlan:
		r.mu.Lock()
		var keys []serai.Key
		for name, t := range r.tenants {
			if t.plan == key.Name {
				keys = append(keys, serai.Key{Kind: serai.KindTenant, Name: name})
			}
		}
		r.mu.Unlock()
		r.queue.add(keys...)
	case key.Kind == serai.KindSite && c.Removed:
		r.mu.Lock()
		t := r.tenants[key.Tenant]
		leaving := t != nil && t.leaving
		r.mu.Unlock()
		if leaving {
			r.queue.add(serai.Key{Kind: serai.KindTenant, Name: key.Tenant})
		}
	}
}

// wrote reports whether a revision is what this reconciler itself wrote last:
// then the writer has seen it.
func (r *Reconciler) wrote(key serai.Key, revision string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch key.Kind {
	case serai.KindSite:
		s := r.sites[key]
		return s != nil && s.revision == revision
	case serai.KindTenant:
		t := r.tenants[key.Name]
		return t != nil && t.revision == revision
	}
	return false
}

// do reconciles one object and reports whether to try again.
func (r *Reconciler) do(ctx context.Context, key serai.Key) (retry bool) {
	err := r.pass(ctx, key)
	for range 3 { // somebody wrote in between
		if err == nil || serai.KindOf(err) != serai.Conflict {
			break
		}
		err = r.pass(ctx, key)
	}
	if err == nil || ctx.Err() != nil {
		return false
	}
	r.log.Warn("not as wanted yet", "kind", key.Kind, "name", key.String(), "cause", err)
	if err := r.complain(ctx, key, err); err != nil && ctx.Err() == nil {
		r.log.Debug("condition not written", "name", key.String(), "cause", err)
	}
	return !final(err)
}

func (r *Reconciler) pass(ctx context.Context, key serai.Key) error {
	switch key.Kind {
	case serai.KindPlan:
		return r.plan(ctx, key)
	case serai.KindTenant:
		return r.tenant(ctx, key)
	case serai.KindSite:
		return r.site(ctx, key)
	}
	return nil
}

// final reports whether only another wish can help.
func final(err error) bool {
	k := serai.KindOf(err)
	return k == serai.Invalid || k == serai.Denied
}

// complain says in an object's status why it is not ready.
func (r *Reconciler) complain(ctx context.Context, key serai.Key, cause error) error {
	o, err := r.store.Get(ctx, key)
	if err != nil {
		return err
	}
	before := o.Clone()
	observed, cs := serai.Progress(o)
	switch o.(type) {
	case *serai.Tenant:
		*observed = o.GetMeta().Generation
	case *serai.Site:
		if final(cause) {
			*observed = o.GetMeta().Generation
			cs.Set(serai.Condition{Type: serai.Loaded, Status: serai.False, Reason: "Refused", Message: sentence(cause)}, now())
		}
	}
	c := serai.Condition{Type: serai.Ready, Status: serai.False, Reason: "Failed", Message: sentence(cause)}
	if serai.KindOf(cause) == serai.Unavailable {
		c.Status, c.Reason = serai.Unknown, "Waiting"
	}
	cs.Set(c, now())
	if reflect.DeepEqual(before.StatusOf(), o.StatusOf()) {
		return nil
	}
	return r.writeStatus(ctx, o)
}

// sentence is a cause with its hint, as a condition shows it.
func sentence(err error) string {
	msg := printable(serai.Message(err), maxMessage)
	if hint := serai.HintOf(err); hint != "" {
		msg += "; " + hint
	}
	return msg
}

// writeStatus keeps a status and takes note that the revision is our own.
func (r *Reconciler) writeStatus(ctx context.Context, o serai.Resource) error {
	kept, err := r.store.UpdateStatus(ctx, o)
	if err != nil {
		return err
	}
	o.GetMeta().Revision = kept.GetMeta().Revision
	r.mu.Lock()
	defer r.mu.Unlock()
	switch key := o.Key(); key.Kind {
	case serai.KindSite:
		if s := r.sites[key]; s != nil {
			s.revision = kept.GetMeta().Revision
		}
	case serai.KindTenant:
		if t := r.tenants[key.Name]; t != nil {
			t.revision = kept.GetMeta().Revision
		}
	}
	return nil
}

// now is the time as a store keeps it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// nameOf is the name of a site's number.
func (r *Reconciler) nameOf(number uint32) (tenant, name string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key, ok := r.numbers[number]
	return key.Tenant, key.Name, ok
}
