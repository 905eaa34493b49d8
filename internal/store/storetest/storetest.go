// Package storetest is the test that every store.Store must pass. What it
// checks is what the rest of Serai relies on, and no more: it knows nothing of
// files or of SQL.
package storetest

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

// patience ends a test that would hang. It is no measure of anything.
const patience = 2 * time.Minute

// Run tests a store. open makes an empty one that has at least 100 uids to
// give, and forgets changes when there are more than some hundreds of them; it
// is closed here.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, tt := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"Create", testCreate},
		{"CreateAgain", testCreateAgain},
		{"CreateInvalid", testCreateInvalid},
		{"Get", testGet},
		{"List", testList},
		{"Own", testOwn},
		{"Update", testUpdate},
		{"UpdateNothing", testUpdateNothing},
		{"UpdateStatus", testUpdateStatus},
		{"CompareAndSwap", testCompareAndSwap},
		{"Delete", testDelete},
		{"Finalizers", testFinalizers},
		{"IDs", testIDs},
		{"UIDs", testUIDs},
		{"Adopt", testAdopt},
		{"Watch", testWatch},
		{"WatchFromList", testWatchFromList},
		{"WatchResume", testWatchResume},
		{"WatchExpired", testWatchExpired},
		{"WatchSlowReader", testWatchSlowReader},
		{"WatchEnds", testWatchEnds},
		{"Claims", testClaims},
		{"ClaimsGoWithTheSite", testClaimsGo},
		{"Events", testEvents},
		{"EventsOfATenant", testEventsOfTenant},
		{"WaitEvents", testWaitEvents},
		{"PruneEvents", testPruneEvents},
		{"ConcurrentCreates", testConcurrentCreates},
		{"ConcurrentUpdates", testConcurrentUpdates},
		{"ConcurrentClaims", testConcurrentClaims},
		{"ConcurrentWatchers", testConcurrentWatchers},
		{"Cancelled", testCancelled},
		{"Closed", testClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			s := open(t)
			defer func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}()
			tt.test(t, &bench{T: t, Store: s, ctx: ctx})
		})
	}
}

// A bench is a store on which steps that must succeed are one line. Its
// methods end the test, so only the test's own goroutine may call them.
type bench struct {
	*testing.T
	store.Store
	ctx context.Context
}

func (b *bench) create(r serai.Resource) serai.Resource {
	b.Helper()
	out, err := b.Store.Create(b.ctx, r)
	if err != nil {
		b.Fatalf("Create(%s): %v", r.Key(), err)
	}
	return out
}

func (b *bench) get(k serai.Key) serai.Resource {
	b.Helper()
	out, err := b.Store.Get(b.ctx, k)
	if err != nil {
		b.Fatalf("Get(%s): %v", k, err)
	}
	return out
}

func (b *bench) update(r serai.Resource) serai.Resource {
	b.Helper()
	out, err := b.Store.Update(b.ctx, r)
	if err != nil {
		b.Fatalf("Update(%s): %v", r.Key(), err)
	}
	return out
}

func (b *bench) updateStatus(r serai.Resource) serai.Resource {
	b.Helper()
	out, err := b.Store.UpdateStatus(b.ctx, r)
	if err != nil {
		b.Fatalf("UpdateStatus(%s): %v", r.Key(), err)
	}
	return out
}

func (b *bench) delete(k serai.Key) {
	b.Helper()
	if err := b.Store.Delete(b.ctx, k, ""); err != nil {
		b.Fatalf("Delete(%s): %v", k, err)
	}
}

func (b *bench) list(kind, tenant string) ([]serai.Resource, string) {
	b.Helper()
	all, revision, err := b.Store.List(b.ctx, kind, tenant)
	if err != nil {
		b.Fatalf("List(%s, %q): %v", kind, tenant, err)
	}
	return all, revision
}

func (b *bench) watch(ctx context.Context, revision string) <-chan store.Change {
	b.Helper()
	ch, err := b.Store.Watch(ctx, revision)
	if err != nil {
		b.Fatalf("Watch(%q): %v", revision, err)
	}
	return ch
}

// next is the next change, which must come.
func (b *bench) next(ch <-chan store.Change) store.Change {
	b.Helper()
	select {
	case c, ok := <-ch:
		if !ok {
			b.Fatal("the watch ended before the change came")
		}
		return c
	case <-b.ctx.Done():
		b.Fatal("the change did not come")
	}
	panic("not reached")
}

func (b *bench) claim(host string, site serai.Key) serai.Key {
	b.Helper()
	holder, err := b.Store.Claim(b.ctx, host, site)
	if err != nil {
		b.Fatalf("Claim(%s, %s): %v", host, site, err)
	}
	return holder
}

func (b *bench) event(tenant, reason string, when time.Time) serai.Event {
	b.Helper()
	e, err := b.Store.AddEvent(b.ctx, serai.Event{Time: when, Severity: "info", Reason: reason, Tenant: tenant})
	if err != nil {
		b.Fatalf("AddEvent(%s): %v", reason, err)
	}
	return e
}

func (b *bench) events(tenant string, after int64, limit int) []serai.Event {
	b.Helper()
	es, err := b.Store.Events(b.ctx, tenant, after, limit)
	if err != nil {
		b.Fatalf("Events(%q, %d, %d): %v", tenant, after, limit, err)
	}
	return es
}

func (b *bench) isKind(what string, err error, want serai.Kind) {
	b.Helper()
	if err == nil {
		b.Errorf("%s succeeded, want an error of the kind %v", what, want)
	} else if got := serai.KindOf(err); got != want {
		b.Errorf("%s: %v (kind %v), want kind %v", what, err, got, want)
	}
}

// same compares by JSON, which is all that a resource is.
func (b *bench) same(what string, got, want any) {
	b.Helper()
	if g, w := toJSON(b.T, got), toJSON(b.T, want); g != w {
		b.Errorf("%s:\n got %s\nwant %s", what, g, w)
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func newPlan(name string) *serai.Plan {
	p := serai.NewResource(serai.KindPlan).(*serai.Plan)
	p.Meta.Name = name
	p.Spec = serai.DefaultPlanSpec()
	p.Spec.Price = &serai.Price{Currency: "EUR", Month: "4.00"}
	return p
}

func newTenant(name string) *serai.Tenant {
	t := serai.NewResource(serai.KindTenant).(*serai.Tenant)
	t.Meta.Name = name
	t.Spec = serai.TenantSpec{Plan: "small", Account: serai.Account{Create: true}, Hosts: []string{"*." + name + ".example"}}
	return t
}

func newSite(tenant, name string) *serai.Site {
	s := serai.NewResource(serai.KindSite).(*serai.Site)
	s.Meta.Tenant, s.Meta.Name = tenant, name
	s.Spec = serai.SiteSpec{
		Hosts: []string{name + "." + tenant + ".example"}, Root: name, Engine: "perl",
		Perl: &serai.Perl{App: "app.psgi", Inc: []string{"lib"}}, Files: map[string]string{"/static": "public"},
		Workers: serai.DefaultWorkers(), Env: map[string]string{"MODE": "production", "EMPTY": ""},
	}
	return s
}

func siteKey(tenant, name string) serai.Key {
	return serai.Key{Kind: serai.KindSite, Tenant: tenant, Name: name}
}

// names are the keys in order, for comparing lists.
func names(all []serai.Resource) []string {
	var out []string
	for _, r := range all {
		out = append(out, r.Key().String())
	}
	return out
}

// reasons are the events in order, for comparing lists.
func reasons(es []serai.Event) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.Reason)
	}
	return out
}

// counted sets a number in the specification and reads it back.
func counted(s *serai.Site, n int) *serai.Site {
	s.Spec.Env = map[string]string{"N": fmt.Sprint(n)}
	return s
}
