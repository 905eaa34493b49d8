package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/internal/engine"
	"serai.dev/serai/internal/privsep"
)

// Ten thousand sites that are as they should be cost no message at a start,
// and one more costs one record and one route.
func TestTenThousandSites(t *testing.T) {
	const tenants, sites = 10, 1000
	w := newWorld(t)
	full(w, tenants, sites)
	w.start()
	w.await("the proxy has all", func() bool { return len(w.proxy.serves()) == tenants*sites })
	w.awaitIdle()
	if ops := w.mon.ops(); len(ops) > 0 {
		t.Errorf("a start asked %d things: %v…", len(ops), ops[:min(5, len(ops))])
	}
	if n := w.proxy.count(true); n != tenants*sites+tenants {
		t.Errorf("the proxy read %d records; want %d", n, tenants*sites+tenants)
	}
	if key := siteKey("t3", "s500"); w.condition(key, serai.Ready).Status != serai.True {
		t.Errorf("%s is not ready any more: %+v", key, w.site(key).Status)
	}

	w.create(aSite("t3", "more", "more.example.com"))
	w.awaitReady(siteKey("t3", "more"))
	w.awaitIdle()
	if got, want := fmt.Sprint(w.mon.ops()), "[set-site launch]"; got != want {
		t.Errorf("one more asked %s; want %s", got, want)
	}
	if n := w.proxy.count(true); n != 1 {
		t.Errorf("one more made %d records; want 1", n)
	}
}

// full makes a plan, tenants and sites that are done.
func full(w *world, tenants, sites int) {
	w.Helper()
	w.create(aPlan())
	for i := range tenants {
		tn := aTenant(fmt.Sprint("t", i))
		tn.Meta.Finalizers = []string{AccountFinalizer}
		tn.Status = serai.TenantStatus{UID: uint32(firstUID + i), Account: tn.Meta.Name, Home: "/srv/" + tn.Meta.Name, ObservedGeneration: 1}
		tn.Status.Conditions.Set(serai.Condition{Type: serai.Ready, Status: serai.True}, now())
		w.create(tn)
		p := aPlan().Spec
		w.mon.tenants[tn.Status.UID] = privsep.Tenant{UID: tn.Status.UID, Memory: int64(p.Memory), CPU: int64(p.CPU), Processes: p.Processes}
	}
	fill(w, tenants, sites)
}

// One more host of a site among few and many others: from the store's word
// that it is kept to the proxy's word that it is served.
func BenchmarkHost(b *testing.B) {
	for _, sites := range []int{1, 1000} {
		b.Run(fmt.Sprintf("sites=%d", 10*sites), func(b *testing.B) {
			w := newWorld(b)
			full(w, 10, sites)
			w.start()
			w.await("the proxy has all", func() bool { return len(w.proxy.serves()) == 10*sites })
			number := w.site(siteKey("t3", "s0")).Meta.ID
			for i := 0; b.Loop(); i++ {
				hosts := []string{fmt.Sprintf("n%d.example.com", i)}
				edit(w, siteKey("t3", "s0"), func(s *serai.Site) { s.Spec.Hosts = hosts })
				w.await("it is served", func() bool { return slices.Equal(w.proxy.site(number).Hosts, hosts) })
			}
		})
	}
}

// fill makes sites that are done, in the store and in serai-priv.
func fill(w *world, tenants, sites int) {
	w.Helper()
	type made struct {
		tenant int
		site   *serai.Site
	}
	all := make(chan made)
	done := make(chan error)
	for range 64 { // writers share transactions
		go func() {
			var first error
			for m := range all {
				kept, err := w.store.Create(w.Context(), m.site)
				if err == nil {
					_, err = w.store.Claim(w.Context(), m.site.Spec.Hosts[0], kept.Key())
				}
				if err == nil {
					owner := &serai.Tenant{Status: serai.TenantStatus{UID: uint32(firstUID + m.tenant)}}
					var l privsep.Launch
					l, err = engine.Launch(owner, kept.(*serai.Site))
					w.mon.with(func() {
						w.mon.sites[l.Site] = privsep.SiteState{Site: l.Site, UID: l.UID, Launch: l.Launch, Hash: privsep.HashLaunch(l), Phase: "asleep"}
						w.mon.records[l.Site] = l
					})
				}
				if first == nil {
					first = err
				}
			}
			done <- first
		}()
	}
	for i := range tenants {
		for j := range sites {
			s := aSite(fmt.Sprint("t", i), fmt.Sprint("s", j), fmt.Sprintf("s%d.t%d.example.com", j, i))
			s.Meta.Finalizers = []string{SiteFinalizer}
			s.Status = serai.SiteStatus{ObservedGeneration: 1, Claimed: s.Spec.Hosts, Launch: 1, Serving: 1}
			for _, c := range []string{serai.Loaded, serai.Routed, serai.Ready} {
				s.Status.Conditions.Set(serai.Condition{Type: c, Status: serai.True}, now())
			}
			all <- made{i, s}
		}
	}
	close(all)
	for range 64 {
		if err := <-done; err != nil {
			w.Fatal(err)
		}
	}
}

// What a start finds, and what it asks.
func TestStarts(t *testing.T) {
	for _, tt := range []struct {
		name string
		away func(w *world, number uint32) // while seraid is down
		ops  string
	}{
		{"unchanged", func(*world, uint32) {}, "[]"},
		{"serai-priv was started anew", func(w *world, _ uint32) {
			clear(w.mon.sites)
			clear(w.mon.tenants)
		}, "[set-tenant set-site]"},
		{"the specification changed", func(w *world, _ uint32) {
			edit(w, shop, func(s *serai.Site) { s.Spec.Env = map[string]string{"A": "b"} })
		}, "[set-site launch]"},
		{"the site was deleted", func(w *world, _ uint32) {
			w.store.Delete(w.Context(), shop, "")
		}, "[drop-site]"},
		{"leftovers", func(w *world, _ uint32) {
			w.mon.sites[77] = privsep.SiteState{Site: 77, UID: firstUID}
			w.mon.tenants[firstUID+5] = privsep.Tenant{UID: firstUID + 5}
		}, "[drop-site drop-tenant]"},
		{"a launch was under way", func(w *world, _ uint32) {
			s := w.site(shop)
			s.Status.Conditions.Set(serai.Condition{Type: serai.Loaded, Status: serai.Unknown, Reason: "Loading"}, now())
			if _, err := w.store.UpdateStatus(w.Context(), s); err != nil {
				w.Fatal(err)
			}
		}, "[set-site launch]"},
		{"the launch was counted, not given", func(w *world, _ uint32) {
			s := w.site(shop)
			s.Status.Launch++
			s.Status.Conditions.Set(serai.Condition{Type: serai.Loaded, Status: serai.Unknown, Reason: "Loading"}, now())
			if _, err := w.store.UpdateStatus(w.Context(), s); err != nil {
				w.Fatal(err)
			}
		}, "[set-site launch]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := served(t)
			number := uint32(w.site(shop).Meta.ID)
			w.stop()
			tt.away(w, number)
			w.start()
			w.await("it is in step", func() bool { return w.proxy.told() && len(w.mon.ops()) >= len(fields(tt.ops)) })
			w.awaitIdle()
			got := w.mon.ops()
			slices.Sort(got)
			want := fields(tt.ops)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("asked %v; want %v", got, want)
			}
		})
	}
}

func fields(s string) []string { return strings.Fields(strings.Trim(s, "[]")) }
