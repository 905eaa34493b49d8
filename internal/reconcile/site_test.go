package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

var shop = siteKey("alice", "shop")

// served is a world in which alice/shop serves.
func served(t *testing.T) *world {
	w := newWorld(t)
	w.start()
	w.create(aPlan(), aTenant("alice"), aSite("alice", "shop", "shop.example.com"))
	w.awaitReady(tenantKey("alice"), shop)
	w.awaitIdle()
	w.mon.forgetOps()
	return w
}

func TestSiteIsSetRoutedAndLoaded(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(aPlan(), aTenant("alice"), aSite("alice", "shop", "shop.example.com"))
	w.awaitReady(shop)
	if got, want := fmt.Sprint(w.mon.ops()), "[create-account set-tenant set-site launch]"; got != want {
		t.Errorf("asked %s; want %s", got, want)
	}
	s := w.site(shop)
	if s.Status.Launch != 1 || s.Status.Serving != 1 || !slices.Equal(s.Status.Claimed, s.Spec.Hosts) {
		t.Errorf("status is %+v", s.Status)
	}
	if r := w.proxy.site(s.Meta.ID); r.Launch != 1 || r.Name != "shop" || r.Closed != "" {
		t.Errorf("the proxy has %+v", r)
	}
	o, _ := w.store.Get(t.Context(), tenantKey("alice"))
	if st := o.(*serai.Tenant).Status; st.UID != firstUID || st.Account != "alice" || st.Home != "/srv/alice" {
		t.Errorf("status of the tenant is %+v", st)
	}
}

// What is asked of serai-priv for one change of a site that serves.
func TestChanges(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*serai.Site)
		ready  serai.Status
		reason string
		ops    string
		launch int64
		hosts  string
	}{
		{"hosts", func(s *serai.Site) { s.Spec.Hosts = []string{"shop.example.com", "www.example.com"} },
			serai.True, "", "", 1, "shop.example.com www.example.com"},
		{"fewer hosts", func(s *serai.Site) { s.Spec.Hosts = []string{"www.example.com"} }, serai.True, "", "", 1, "www.example.com"},
		{"request limit of a worker", func(s *serai.Site) { s.Spec.Workers.Timeout *= 2 }, serai.True, "", "", 1, "shop.example.com"},
		{"environment", func(s *serai.Site) { s.Spec.Env = map[string]string{"A": "b"} },
			serai.True, "", "set-site launch", 2, "shop.example.com"},
		{"root", func(s *serai.Site) { s.Spec.Root = "other" }, serai.True, "", "set-site launch", 2, "shop.example.com"},
		{"stopped", func(s *serai.Site) { s.Spec.Stopped = true }, serai.False, "Stopped", "set-site stop", 1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := served(t)
			edit(w, shop, tt.change)
			w.awaitCondition(shop, serai.Ready, tt.ready, tt.reason)
			w.awaitIdle()
			if got := strings.Join(w.mon.ops(), " "); got != tt.ops {
				t.Errorf("asked %q; want %q", got, tt.ops)
			}
			s := w.site(shop)
			if s.Status.Launch != tt.launch {
				t.Errorf("launch %d; want %d", s.Status.Launch, tt.launch)
			}
			w.await(fmt.Sprintf("the proxy has launch %d for %q", tt.launch, tt.hosts), func() bool {
				return w.proxy.site(s.Meta.ID).Launch == tt.launch && strings.Join(w.proxy.serves(), " ") == tt.hosts
			})
			claims, _ := w.store.Claims(t.Context(), shop)
			if !slices.Equal(claims, s.Spec.Hosts) {
				t.Errorf("the site holds %v; want %v", claims, s.Spec.Hosts)
			}
		})
	}
}

// Code that does not load leaves what runs as it was, also for the proxy, also
// after a restart of seraid.
func TestNotLoaded(t *testing.T) {
	w := served(t)
	number := w.site(shop).Meta.ID
	w.mon.with(func() { w.mon.broken[uint32(number)] = "app.psgi line 3: syntax error\x1b[2J" })
	edit(w, shop, func(s *serai.Site) { s.Spec.Perl.App = "new.psgi" })
	c := w.awaitCondition(shop, serai.Loaded, serai.False, "NotLoaded")
	if want := "app.psgi line 3: syntax error?[2J"; c.Message != want {
		t.Errorf("message %q; want %q", c.Message, want)
	}
	w.awaitCondition(shop, serai.Ready, serai.False, "NotLoaded")
	w.awaitIdle()
	w.awaitEvent(NotLoaded)
	check := func() {
		t.Helper()
		if r := w.proxy.site(number); r.Launch != 1 || r.Closed != "" {
			t.Errorf("the proxy has %+v; want launch 1", r)
		}
		if got, want := fmt.Sprint(w.mon.ops()), "[set-site launch]"; got != want {
			t.Errorf("asked %s; want %s", got, want)
		}
	}
	check()
	w.stop()
	w.start()
	w.await("the proxy has a new log", func() bool { return w.proxy.site(number).Name == "shop" })
	w.awaitIdle()
	check()

	// Somebody repairs the code; a knock starts it.
	w.mon.event(privsep.EvStarted, privsep.SiteEvent{Site: uint32(number), Launch: 2, PID: 77})
	w.awaitReady(shop)
	w.await("the proxy has launch 2", func() bool { return w.proxy.site(number).Launch == 2 })
	// And breaks it again.
	w.mon.event(privsep.EvFailed, privsep.SiteEvent{Site: uint32(number), Launch: 2, Message: "no such file", RetryMs: 1000})
	w.awaitCondition(shop, serai.Loaded, serai.False, "NotLoaded")
	if e := w.awaitEvent(Failed); e.Tenant != "alice" || e.Site != "shop" || !strings.Contains(e.Message, "no such file") {
		t.Errorf("event %+v", e)
	}
}

func TestStopAndStart(t *testing.T) {
	w := served(t)
	number := w.site(shop).Meta.ID
	edit(w, shop, func(s *serai.Site) { s.Spec.Stopped = true })
	w.awaitCondition(shop, serai.Ready, serai.False, "Stopped")
	w.await("the proxy shuts the site", func() bool { return w.proxy.site(number).Closed != "" })
	if _, err := w.rec.Launch(t.Context(), shop); serai.KindOf(err) != serai.Conflict {
		t.Errorf("launch of a stopped site: %v; want a Conflict", err)
	}
	w.awaitIdle()
	w.mon.forgetOps()
	edit(w, shop, func(s *serai.Site) { s.Spec.Stopped = false })
	w.awaitReady(shop)
	if got, want := fmt.Sprint(w.mon.ops()), "[set-site launch]"; got != want {
		t.Errorf("asked %s; want %s", got, want)
	}
}

func TestLaunchOnWish(t *testing.T) {
	w := served(t)
	number := w.site(shop).Meta.ID
	res, err := w.rec.Launch(t.Context(), shop)
	if err != nil || !res.Loaded {
		t.Fatalf("Launch = %+v, %v", res, err)
	}
	if got := w.site(shop).Status.Launch; got != 2 {
		t.Errorf("launch %d; want 2", got)
	}
	w.await("the proxy has launch 2", func() bool { return w.proxy.site(number).Launch == 2 })
	w.mon.with(func() { w.mon.broken[uint32(number)] = "it is broken" })
	res, err = w.rec.Launch(t.Context(), shop)
	if err != nil || res.Loaded || res.Message != "it is broken" {
		t.Fatalf("Launch = %+v, %v", res, err)
	}
	if _, err := w.rec.Launch(t.Context(), siteKey("alice", "none")); serai.KindOf(err) != serai.NotFound {
		t.Errorf("launch of no site: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.rec.Launch(ctx, shop); err == nil {
		t.Error("a launch that nobody waits for has a result")
	}
}

// While one site loads slowly others are served.
func TestSlowLoadsHoldNothingUp(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(aPlan(), aTenant("alice"))
	w.awaitReady(tenantKey("alice"))
	hold := make(chan struct{})
	w.mon.with(func() { w.mon.hold = hold })
	var keys []serai.Key
	for i := range 10 {
		s := aSite("alice", fmt.Sprint("s", i), fmt.Sprintf("s%d.example.com", i))
		w.create(s)
		keys = append(keys, s.Key())
	}
	w.await("all ten are routed while none has loaded", func() bool { return len(w.proxy.serves()) == 10 })
	w.await("two load", func() bool {
		n := 0
		for _, op := range w.mon.ops() {
			if op == privsep.OpLaunch {
				n++
			}
		}
		return n == launchWorkers
	})
	w.mon.with(func() { w.mon.hold = nil })
	close(hold)
	w.awaitReady(keys...)
}

func TestHostTaken(t *testing.T) {
	w := served(t)
	w.create(aTenant("bob"), aSite("bob", "shop", "bob.example.com", "shop.example.com"))
	bobs := siteKey("bob", "shop")
	c := w.awaitCondition(bobs, serai.HostTaken, serai.True, serai.HostTaken)
	if !strings.Contains(c.Message, "shop.example.com is in use by another site") || strings.Contains(c.Message, "alice") {
		t.Errorf("message %q", c.Message)
	}
	w.awaitCondition(bobs, serai.Ready, serai.False, serai.HostTaken)
	w.await("the proxy serves bob's other host", func() bool {
		return fmt.Sprint(w.proxy.site(w.site(bobs).Meta.ID).Hosts) == "[bob.example.com]"
	})
	if e := w.awaitEvent(serai.HostTaken); e.Tenant != "bob" || strings.Contains(e.Message, "alice") {
		t.Errorf("event %+v", e)
	}
	// The holder gives it up: the one that waits gets it.
	edit(w, shop, func(s *serai.Site) { s.Spec.Hosts = []string{"new.example.com"} })
	w.awaitReady(shop, bobs)
	if c := w.condition(bobs, serai.HostTaken); c.Status == serai.True {
		t.Errorf("still %+v", c)
	}
	// The same with a site that is deleted.
	w.create(aSite("alice", "third", "bob.example.com"))
	w.awaitCondition(siteKey("alice", "third"), serai.HostTaken, serai.True, serai.HostTaken)
	if err := w.store.Delete(t.Context(), bobs, ""); err != nil {
		t.Fatal(err)
	}
	w.awaitReady(siteKey("alice", "third"))
}

func TestDeleteSite(t *testing.T) {
	w := served(t)
	if err := w.store.Delete(t.Context(), shop, ""); err != nil {
		t.Fatal(err)
	}
	w.await("the site is gone", func() bool {
		_, err := w.store.Get(t.Context(), shop)
		return serai.KindOf(err) == serai.NotFound && err != nil
	})
	w.await("the proxy forgets it", func() bool { return len(w.proxy.serves()) == 0 })
	if got, want := fmt.Sprint(w.mon.ops()), "[drop-site]"; got != want {
		t.Errorf("asked %s; want %s", got, want)
	}
}

// What serai-priv refuses for good is said, and not asked again and again.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(aPlan(), aTenant("alice"))
	w.awaitReady(tenantKey("alice"))
	w.mon.with(func() { w.mon.refuse[privsep.OpSetSite] = serai.Errorf(serai.Invalid, "no zygote \"x\" is configured") })
	w.create(aSite("alice", "shop", "shop.example.com"))
	c := w.awaitCondition(shop, serai.Loaded, serai.False, "Refused")
	if !strings.Contains(c.Message, "no zygote") {
		t.Errorf("message %q", c.Message)
	}
	w.awaitIdle()
	if got := len(w.proxy.serves()); got != 0 {
		t.Errorf("the proxy serves %d hosts", got)
	}
	w.mon.with(func() { delete(w.mon.refuse, privsep.OpSetSite) })
	edit(w, shop, func(s *serai.Site) { s.Spec.Perl.Preload = "standard" })
	w.awaitReady(shop)
}

// What serai-priv cannot do now is tried again.
func TestTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.mon.with(func() {
		for _, op := range []string{privsep.OpSetSite, privsep.OpLaunch, privsep.OpCreateAccount} {
			w.mon.refuse[op] = serai.Errorf(serai.Unavailable, "not now")
		}
	})
	w.start()
	w.create(aPlan(), aTenant("alice"), aSite("alice", "shop", "shop.example.com"))
	for _, op := range []string{privsep.OpCreateAccount, privsep.OpSetSite, privsep.OpLaunch} {
		w.await(op+" is tried twice", func() bool {
			n := 0
			for _, said := range w.mon.ops() {
				if said == op {
					n++
				}
			}
			return n >= 2
		})
		w.mon.with(func() { delete(w.mon.refuse, op) })
	}
	w.awaitReady(shop)
}

func TestProxyAway(t *testing.T) {
	w := newWorld(t)
	w.proxy.mute = true
	w.start()
	w.create(aPlan(), aTenant("alice"), aSite("alice", "shop", "shop.example.com"))
	w.awaitCondition(shop, serai.Loaded, serai.True, "")
	w.awaitIdle()
	if c := w.condition(shop, serai.Ready); c.Status == serai.True {
		t.Error("ready before the proxy knows of it")
	}
	if w.rec.ProxyUp() {
		t.Error("a proxy that never answered is up")
	}
	w.proxy.mu.Lock()
	w.proxy.mute = false
	w.proxy.mu.Unlock()
	w.proxy.cut() // seraid dials anew and says again how far the log reaches
	w.awaitReady(shop)
	if !w.rec.ProxyUp() || w.rec.ProxyPID() != 42 {
		t.Errorf("up is %v, with pid %d", w.rec.ProxyUp(), w.rec.ProxyPID())
	}
}

func TestStats(t *testing.T) {
	w := served(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stats, err := w.rec.Stats(ctx)
	if err != nil || len(stats) != 2 || stats[0].Requests != 5 || stats[1].Requests != 6 {
		t.Errorf("Stats = %+v, %v", stats, err)
	}
}
