package storetest

import (
	"slices"
	"testing"
	"time"

	"serai.dev/serai"
)

func (b *bench) claims(site serai.Key) []string {
	b.Helper()
	hosts, err := b.Store.Claims(b.ctx, site)
	if err != nil {
		b.Fatalf("Claims(%s): %v", site, err)
	}
	return hosts
}

func (b *bench) release(host string, site serai.Key) {
	b.Helper()
	if err := b.Store.Release(b.ctx, host, site); err != nil {
		b.Fatalf("Release(%s, %s): %v", host, site, err)
	}
}

func testClaims(t *testing.T, b *bench) {
	alice, bob := b.create(newSite("alice", "shop")).Key(), b.create(newSite("bob", "shop")).Key()
	for _, step := range []struct {
		host     string
		by, want serai.Key
	}{
		{"b.example", alice, alice},
		{"b.example", alice, alice},   // again
		{"b.example", bob, alice},     // too late
		{"*.b.example", bob, bob},     // compared as it is written
		{"x.b.example", alice, alice}, // beneath another's wildcard: not the store's business
		{"a.example", alice, alice},
	} {
		if got := b.claim(step.host, step.by); got != step.want {
			t.Errorf("Claim(%s, %s) = %s, want %s", step.host, step.by, got, step.want)
		}
	}
	hold := func(site serai.Key, want ...string) {
		t.Helper()
		if got := b.claims(site); !slices.Equal(got, want) {
			t.Errorf("%s holds %v, want %v", site, got, want)
		}
	}
	hold(alice, "a.example", "b.example", "x.b.example")
	hold(bob, "*.b.example")

	b.release("b.example", bob) // not his
	hold(alice, "a.example", "b.example", "x.b.example")
	b.release("b.example", alice)
	b.release("b.example", alice)
	hold(alice, "a.example", "x.b.example")
	if got := b.claim("b.example", bob); got != bob {
		t.Errorf("a released host is %s's, want %s", got, bob)
	}

	_, err := b.Store.Claim(b.ctx, "c.example", siteKey("carol", "shop"))
	b.isKind("Claim by a site that is not there", err, serai.NotFound)
	if got := b.claim("c.example", bob); got != bob {
		t.Errorf("c.example is %s's, want %s", got, bob)
	}
}

func testClaimsGo(t *testing.T, b *bench) {
	in := newSite("alice", "shop")
	in.Meta.Finalizers = []string{"a"}
	alice, bob := b.create(in).Key(), b.create(newSite("bob", "shop")).Key()
	b.claim("a.example", alice)
	b.claim("b.example", bob)

	b.delete(alice)
	if got := b.claim("a.example", bob); got != alice {
		t.Errorf("a site that is being deleted lost its host to %s", got)
	}
	marked := b.get(alice)
	marked.GetMeta().Finalizers = nil
	b.update(marked)
	if got := b.claim("a.example", bob); got != bob {
		t.Errorf("the host of a removed site is %s's, want %s", got, bob)
	}
	b.delete(bob)
	b.create(newSite("bob", "shop")) // a namesake inherits nothing
	if got := b.claims(bob); len(got) != 0 {
		t.Errorf("a new site holds %v", got)
	}
}

func testEvents(t *testing.T, b *bench) {
	when := time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC)
	in := serai.Event{
		ID: 77, Time: when, Severity: "warning", Reason: "OutOfMemory", Tenant: "alice", Site: "shop",
		Message: "a worker was killed for memory", Fields: map[string]string{"pid": "123", "cap": "256Mi"},
	}
	out, err := b.Store.AddEvent(b.ctx, in)
	if err != nil {
		t.Fatalf("AddEvent: %v", err)
	}
	if out.ID == 77 || out.ID <= 0 {
		t.Errorf("the event got the ID %d", out.ID)
	}
	want := in
	want.ID = out.ID
	b.same("AddEvent", out, want)
	b.same("Events", b.events("", 0, 10), []serai.Event{want})
	if e := b.event("bob", "Started", time.Time{}); e.Time.IsZero() {
		t.Error("an event without a time got none")
	} else if e.ID <= out.ID {
		t.Errorf("the IDs of events went from %d to %d", out.ID, e.ID)
	}
}

func testEventsOfTenant(t *testing.T, b *bench) {
	var ids []int64
	for _, e := range []struct{ tenant, reason string }{
		{"alice", "A"}, {"bob", "B"}, {"", "C"}, {"alice", "D"}, {"bob", "E"}, {"alice", "F"},
	} {
		ids = append(ids, b.event(e.tenant, e.reason, time.Time{}).ID)
	}
	for _, tt := range []struct {
		tenant string
		after  int64
		limit  int
		want   []string
	}{
		{"", 0, 10, []string{"A", "B", "C", "D", "E", "F"}},
		{"", 0, 2, []string{"A", "B"}},
		{"", ids[1], 2, []string{"C", "D"}},
		{"", -1, 2, []string{"E", "F"}},
		{"", ids[5], 10, nil},
		{"", 0, 0, nil},
		{"alice", 0, 10, []string{"A", "D", "F"}},
		{"alice", ids[0], 1, []string{"D"}},
		{"alice", -1, 2, []string{"D", "F"}},
		{"carol", -1, 2, nil},
	} {
		if got := reasons(b.events(tt.tenant, tt.after, tt.limit)); !slices.Equal(got, tt.want) {
			t.Errorf("Events(%q, %d, %d) = %v, want %v", tt.tenant, tt.after, tt.limit, got, tt.want)
		}
	}
}

func testPruneEvents(t *testing.T, b *bench) {
	day := func(d int) time.Time { return time.Date(2026, 1, d, 0, 0, 0, 0, time.UTC) }
	for i, reason := range []string{"A", "B", "C"} {
		b.event("", reason, day(i+1))
	}
	last := b.event("", "D", day(1)) // told late
	if err := b.Store.PruneEvents(b.ctx, day(2)); err != nil {
		t.Fatalf("PruneEvents: %v", err)
	}
	if got := reasons(b.events("", 0, 10)); !slices.Equal(got, []string{"B", "C"}) {
		t.Errorf("after PruneEvents there are %v, want B and C", got)
	}
	if e := b.event("", "E", day(4)); e.ID <= last.ID {
		t.Errorf("the ID %d came back as %d", last.ID, e.ID)
	}
}
