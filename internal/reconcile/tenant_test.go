package reconcile

import (
	"fmt"
	"slices"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

func TestPlanChange(t *testing.T) {
	w := served(t)
	edit(w, serai.Key{Kind: serai.KindPlan, Name: "small"}, func(p *serai.Plan) {
		p.Spec.Memory *= 2
		p.Spec.Queue.Length = 7
	})
	w.await("the tenant has the new limit", func() bool {
		var got int64
		w.mon.with(func() { got = w.mon.tenants[firstUID].Memory })
		return got == 512<<20
	})
	w.await("the proxy has the new queue", func() bool { return w.proxy.site(w.site(shop).Meta.ID).Queue.Length == 7 })
	w.awaitEvent(PlanChanged)
	if got, want := fmt.Sprint(w.mon.ops()), "[set-tenant]"; got != want {
		t.Errorf("asked %s; want %s", got, want)
	}
}

func TestSuspend(t *testing.T) {
	w := served(t)
	edit(w, tenantKey("alice"), func(a *serai.Tenant) { a.Spec.Suspended = true })
	w.awaitCondition(shop, serai.Ready, serai.False, "Suspended")
	w.await("the proxy shuts the site", func() bool { return w.proxy.site(w.site(shop).Meta.ID).Closed == "this site is suspended" })
	if got, want := fmt.Sprint(w.mon.ops()), "[set-site stop]"; got != want {
		t.Errorf("asked %s; want %s", got, want)
	}
	edit(w, tenantKey("alice"), func(a *serai.Tenant) { a.Spec.Suspended = false })
	w.awaitReady(shop)
}

func TestDeleteTenant(t *testing.T) {
	for _, purge := range []bool{false, true} {
		t.Run(fmt.Sprint("purge ", purge), func(t *testing.T) {
			w := served(t)
			if purge {
				edit(w, tenantKey("alice"), func(a *serai.Tenant) { a.Meta.Finalizers = append(a.Meta.Finalizers, PurgeFinalizer) })
			}
			if err := w.store.Delete(t.Context(), tenantKey("alice"), ""); err != nil {
				t.Fatal(err)
			}
			w.await("the tenant is gone", func() bool {
				_, err := w.store.Get(t.Context(), tenantKey("alice"))
				return err != nil
			})
			ops := w.mon.ops()
			if got, want := fmt.Sprint(ops[len(ops)-3:]), "[drop-site drop-tenant remove-account]"; got != want {
				t.Errorf("asked %v; want %s at the end", ops, want)
			}
			w.mon.with(func() {
				if got, ok := w.mon.removed["alice"]; !ok || got != purge {
					t.Errorf("logs removed: %v, with purge: %v", ok, got)
				}
			})
			w.awaitEvent(TenantRemoved)
			// A new tenant of that name is another one.
			w.create(aTenant("alice"), aSite("alice", "shop", "shop.example.com"))
			w.awaitReady(shop)
			o, _ := w.store.Get(t.Context(), tenantKey("alice"))
			if uid := o.(*serai.Tenant).Status.UID; uid != firstUID+1 {
				t.Errorf("uid %d; want %d", uid, firstUID+1)
			}
		})
	}
}

func TestAdopt(t *testing.T) {
	w := newWorld(t)
	w.start()
	a := aTenant("alice")
	a.Spec.Account, a.Meta.ID = serai.Account{Adopt: "old"}, firstUID+900
	w.create(aPlan(), a)
	w.awaitReady(tenantKey("alice"))
	if got, want := fmt.Sprint(w.mon.ops()), "[lookup-account set-tenant]"; got != want {
		t.Errorf("asked %s; want %s", got, want)
	}
	if err := w.store.Delete(t.Context(), tenantKey("alice"), ""); err != nil {
		t.Fatal(err)
	}
	w.await("the tenant is gone", func() bool {
		_, err := w.store.Get(t.Context(), tenantKey("alice"))
		return err != nil
	})
	if slices.Contains(w.mon.ops(), privsep.OpRemoveAccount) {
		t.Error("an adopted account was removed")
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.create(aSite("alice", "shop", "shop.example.com"))
	w.awaitCondition(shop, serai.Ready, "", "") // never observed: it only waits
	w.create(aTenant("alice"))
	w.create(aPlan())
	w.awaitReady(tenantKey("alice"), shop)
}
