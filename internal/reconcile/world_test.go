package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/store/sqlite"
)

const firstUID, lastUID = 1900006000, 1900006999

// A world is a real store and a real Reconciler between a fake serai-priv, at
// the other end of a real packet socket, and a fake proxy on a real socket.
type world struct {
	testing.TB
	cfg   *config.Config
	store *sqlite.Store
	mon   *monitor
	proxy *proxy
	bell  *bell

	rec  *Reconciler
	stop func()
}

// bell wakes who waits for a condition.
type bell struct {
	mu sync.Mutex
	c  chan struct{}
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.c)
	b.c = make(chan struct{})
}

func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.c
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	cfg := &config.Config{StateDir: dir, RunDir: dir, LogDir: dir,
		Accounts: config.Accounts{Range: config.Range{First: firstUID, Last: lastUID}}}
	if err := os.Mkdir(filepath.Dir(cfg.Database()), 0o700); err != nil {
		t.Fatal(err)
	}
	st, err := sqlite.Open(t.Context(), cfg.Database(), sqlite.Options{FirstUID: firstUID, LastUID: lastUID - config.Reserved})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	b := &bell{c: make(chan struct{})}
	w := &world{TB: t, cfg: cfg, store: st, bell: b, mon: newMonitor(b)}
	w.proxy = newProxy(t, cfg.ProxySocket(), w.mon, b)
	changes, err := st.Watch(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range changes {
			b.ring()
		}
	}()
	return w
}

// start runs a Reconciler until the test ends or stop is called.
func (w *world) start() {
	w.Helper()
	conn, end := w.mon.connect(w.TB)
	log := slog.New(slog.NewTextHandler(testLog{w.TB}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.rec = New(Options{Config: w.cfg, Store: w.store, Monitor: conn, Logs: w.mon, Log: log})
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	done := make(chan error, 1)
	go func() { done <- w.rec.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("Run: %v", err)
		}
		conn.Close()
		end()
	})
	w.Cleanup(w.stop)
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	if testing.Verbose() {
		l.t.Log(string(p))
	}
	return len(p), nil
}

// await waits until cond is true; something must ring the bell then.
func (w *world) await(what string, cond func() bool) {
	w.Helper()
	deadline := time.After(20 * time.Second)
	for {
		rung := w.bell.wait()
		if cond() {
			return
		}
		select {
		case <-rung:
		case <-deadline:
			w.Fatalf("waited in vain until %s; asked of serai-priv: %v", what, w.mon.ops())
		}
	}
}

func (w *world) create(rs ...serai.Resource) {
	w.Helper()
	for _, r := range rs {
		if _, err := w.store.Create(w.Context(), r); err != nil {
			w.Fatalf("create %s: %v", r.Key(), err)
		}
	}
}

// edit changes a resource as the API does.
func edit[R serai.Resource](w *world, key serai.Key, change func(R)) {
	w.Helper()
	for {
		o, err := w.store.Get(w.Context(), key)
		if err != nil {
			w.Fatal(err)
		}
		change(o.(R))
		if _, err = w.store.Update(w.Context(), o); err == nil {
			return
		} else if serai.KindOf(err) != serai.Conflict {
			w.Fatal(err)
		}
	}
}

func (w *world) site(key serai.Key) *serai.Site {
	o, err := w.store.Get(w.Context(), key)
	if err != nil {
		return &serai.Site{}
	}
	return o.(*serai.Site)
}

// condition is the status of a condition of the newest generation.
func (w *world) condition(key serai.Key, typ string) serai.Condition {
	o, err := w.store.Get(w.Context(), key)
	if err != nil {
		return serai.Condition{}
	}
	switch o := o.(type) {
	case *serai.Tenant:
		if o.Status.ObservedGeneration == o.Meta.Generation {
			return o.Status.Conditions.Get(typ)
		}
	case *serai.Site:
		if o.Status.ObservedGeneration == o.Meta.Generation {
			return o.Status.Conditions.Get(typ)
		}
	}
	return serai.Condition{}
}

func (w *world) awaitCondition(key serai.Key, typ string, status serai.Status, reason string) serai.Condition {
	w.Helper()
	var c serai.Condition
	w.await(fmt.Sprintf("%s of %s is %s %s", typ, key, status, reason), func() bool {
		c = w.condition(key, typ)
		return c.Status == status && c.Reason == reason
	})
	return c
}

func (w *world) awaitReady(keys ...serai.Key) {
	w.Helper()
	for _, key := range keys {
		w.awaitCondition(key, serai.Ready, serai.True, "")
	}
}

// awaitIdle waits until nothing is left to do.
func (w *world) awaitIdle() {
	w.Helper()
	deadline := time.After(20 * time.Second)
	for tick := time.NewTicker(time.Millisecond); w.rec.Pending() > 0; {
		select {
		case <-tick.C:
		case <-deadline:
			w.Fatalf("never idle; asked of serai-priv: %v", w.mon.ops())
		}
	}
}

func (w *world) awaitEvent(reason string) serai.Event {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	last := int64(0)
	for {
		all, err := w.store.Events(ctx, "", last, 10000)
		if err != nil {
			w.Fatal(err)
		}
		for _, e := range all {
			if last = e.ID; e.Reason == reason {
				return e
			}
		}
		if err := w.store.WaitEvents(ctx, last); err != nil || ctx.Err() != nil {
			w.Fatalf("no event %s: %v", reason, err)
		}
	}
}

// Resources.

func aPlan() *serai.Plan {
	p := serai.NewResource(serai.KindPlan).(*serai.Plan)
	p.Meta.Name, p.Spec = "small", serai.DefaultPlanSpec()
	return p
}

func aTenant(name string) *serai.Tenant {
	t := serai.NewResource(serai.KindTenant).(*serai.Tenant)
	t.Meta.Name = name
	t.Spec = serai.TenantSpec{Plan: "small", Account: serai.Account{Create: true}}
	return t
}

func aSite(tenant, name string, hosts ...string) *serai.Site {
	s := serai.NewResource(serai.KindSite).(*serai.Site)
	s.Meta.Name, s.Meta.Tenant = name, tenant
	s.Spec = serai.SiteSpec{Hosts: hosts, Root: name, Engine: "perl", Perl: &serai.Perl{App: "app.psgi"}, Workers: serai.DefaultWorkers()}
	return s
}

func siteKey(tenant, name string) serai.Key {
	return serai.Key{Kind: serai.KindSite, Tenant: tenant, Name: name}
}

func tenantKey(name string) serai.Key { return serai.Key{Kind: serai.KindTenant, Name: name} }
