package storetest

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"serai.dev/serai"
)

func testCreate(t *testing.T, b *bench) {
	for _, r := range []serai.Resource{newPlan("small"), newTenant("alice"), newSite("alice", "shop")} {
		in := r.Clone()
		in.GetMeta().Finalizers = []string{"a", "b"}
		in.GetMeta().Generation = 7 // ours to set, not the caller's
		in.GetMeta().Revision = "12345"
		if s, ok := in.(*serai.Site); ok {
			s.Status.Launch = 3
		}
		out := b.create(in)
		m := out.GetMeta()
		if m.ID <= 0 || m.Revision == "" || m.Revision == "12345" || m.Generation != 1 || m.Created.IsZero() || m.Deleted != nil {
			t.Errorf("Create(%s) gave metadata %+v", r.Key(), *m)
		}
		want := in.Clone()
		*want.GetMeta() = *m
		want.GetMeta().Finalizers = []string{"a", "b"}
		b.same("Create", out, want)
		b.same("Get", b.get(r.Key()), out)
	}
}

func testCreateAgain(t *testing.T, b *bench) {
	first := b.create(newSite("alice", "shop"))
	_, before := b.list(serai.KindSite, "")
	b.same("the same again", b.create(newSite("alice", "shop")), first)
	if _, after := b.list(serai.KindSite, ""); after != before {
		t.Errorf("creating the same again moved the revision from %s to %s", before, after)
	}

	other := newSite("alice", "shop")
	other.Spec.Root = "elsewhere"
	_, err := b.Store.Create(b.ctx, other)
	b.isKind("Create with another specification", err, serai.Conflict)
	b.same("after the conflict", b.get(first.Key()), first)

	held := newSite("alice", "held")
	held.Meta.Finalizers = []string{"a"}
	b.create(held)
	b.delete(held.Key())
	_, err = b.Store.Create(b.ctx, held)
	b.isKind("Create of what is being deleted", err, serai.Conflict)
}

func testCreateInvalid(_ *testing.T, b *bench) {
	_, err := b.Store.Create(b.ctx, newSite("", "shop"))
	b.isKind("Create of a site without a tenant", err, serai.Invalid)
	_, err = b.Store.Create(b.ctx, newPlan(""))
	b.isKind("Create of a plan without a name", err, serai.Invalid)
	_, _, err = b.Store.List(b.ctx, "Sitte", "")
	b.isKind("List of an unknown kind", err, serai.Invalid)
}

func testGet(_ *testing.T, b *bench) {
	b.create(newSite("alice", "shop"))
	for _, k := range []serai.Key{
		siteKey("alice", "blog"), siteKey("bob", "shop"), siteKey("", "shop"),
		{Kind: serai.KindTenant, Name: "shop"}, {Kind: serai.KindTenant, Name: "alice"},
	} {
		_, err := b.Store.Get(b.ctx, k)
		b.isKind("Get("+k.Kind+" "+k.String()+")", err, serai.NotFound)
	}
}

func testList(t *testing.T, b *bench) {
	all, revision := b.list(serai.KindSite, "")
	if len(all) != 0 || revision == "" {
		t.Errorf("an empty store lists %v at revision %q", names(all), revision)
	}
	for _, s := range []*serai.Site{newSite("bob", "x"), newSite("alice", "b"), newSite("alice", "a-1"), newSite("alice", "a")} {
		b.create(s)
	}
	b.create(newPlan("a"))
	for _, tt := range []struct {
		kind, tenant string
		want         []string
	}{
		{serai.KindSite, "", []string{"alice/a", "alice/a-1", "alice/b", "bob/x"}},
		{serai.KindSite, "alice", []string{"alice/a", "alice/a-1", "alice/b"}},
		{serai.KindSite, "carol", nil},
		{serai.KindPlan, "", []string{"a"}},
		{serai.KindTenant, "", nil},
	} {
		all, _ := b.list(tt.kind, tt.tenant)
		if got := names(all); !slices.Equal(got, tt.want) {
			t.Errorf("List(%s, %q) = %v, want %v", tt.kind, tt.tenant, got, tt.want)
		}
		for _, r := range all {
			b.same("listed "+r.Key().String(), r, b.get(r.Key()))
		}
	}
}

// testOwn checks that what goes in and what comes out is the caller's own.
func testOwn(_ *testing.T, b *bench) {
	in := newSite("alice", "shop")
	in.Meta.Finalizers = []string{"a"}
	want := b.create(in).Clone()
	spoil := func(r serai.Resource) {
		s := r.(*serai.Site)
		s.Spec.Env["MODE"] = "spoilt"
		s.Spec.Hosts[0] = "spoilt"
		s.Spec.Perl.App = "spoilt"
		s.Meta.Finalizers[0] = "spoilt"
	}
	spoil(in)
	b.same("after changing what was created", b.get(in.Key()), want)
	spoil(b.get(in.Key()))
	all, _ := b.list(serai.KindSite, "")
	spoil(all[0])
	b.same("after changing what was read", b.get(in.Key()), want)
}

func testUpdate(t *testing.T, b *bench) {
	first := b.create(newSite("alice", "shop")).(*serai.Site)

	second := first.Clone().(*serai.Site)
	second.Spec.Stopped = true
	second.Status.Launch = 9                        // not Update's
	second.Meta.ID, second.Meta.Generation = 99, 99 // nobody's
	out := b.update(second).(*serai.Site)
	if out.Meta.Revision == first.Meta.Revision || out.Meta.Generation != 2 || out.Meta.ID != first.Meta.ID ||
		!out.Meta.Created.Equal(first.Meta.Created) || !out.Spec.Stopped || out.Status.Launch != 0 {
		t.Errorf("Update gave %s", toJSON(t, out))
	}
	b.same("Get after Update", b.get(out.Key()), out)

	out.Meta.Finalizers = []string{"a"}
	third := b.update(out)
	if m := third.GetMeta(); m.Generation != 2 || !slices.Equal(m.Finalizers, []string{"a"}) {
		t.Errorf("a changed finalizer gave %s", toJSON(t, third))
	}

	for _, revision := range []string{first.Meta.Revision, "", "none"} {
		stale := third.Clone().(*serai.Site)
		stale.Meta.Revision, stale.Spec.Root = revision, "elsewhere"
		_, err := b.Store.Update(b.ctx, stale)
		b.isKind(fmt.Sprintf("Update of revision %q", revision), err, serai.Conflict)
	}
	b.same("after the conflicts", b.get(out.Key()), third)

	_, err := b.Store.Update(b.ctx, newSite("alice", "blog"))
	b.isKind("Update of what is not there", err, serai.NotFound)
}

func testUpdateNothing(_ *testing.T, b *bench) {
	site := b.create(newSite("alice", "shop"))
	_, before := b.list(serai.KindSite, "")
	b.same("Update with nothing new", b.update(site), site)
	b.same("UpdateStatus with nothing new", b.updateStatus(site), site)
	_, after := b.list(serai.KindSite, "")
	b.same("the revision of the list", after, before)

	stale := site.Clone()
	b.update(counted(site.Clone().(*serai.Site), 1))
	_, err := b.Store.UpdateStatus(b.ctx, stale)
	b.isKind("UpdateStatus with nothing new of an old revision", err, serai.Conflict)
}

func testUpdateStatus(t *testing.T, b *bench) {
	first := b.create(newSite("alice", "shop")).(*serai.Site)
	in := first.Clone().(*serai.Site)
	in.Status.Launch = 2
	in.Status.Conditions.Set(serai.Condition{Type: serai.Ready, Status: serai.True}, in.Meta.Created)
	in.Spec.Root = "elsewhere" // not UpdateStatus's
	in.Meta.Finalizers = []string{"a"}
	out := b.updateStatus(in).(*serai.Site)
	want := first.Clone().(*serai.Site)
	want.Status, want.Meta.Revision = in.Status, out.Meta.Revision
	b.same("UpdateStatus", out, want)
	b.same("Get after UpdateStatus", b.get(out.Key()), out)
	if out.Meta.Revision == first.Meta.Revision {
		t.Error("UpdateStatus kept the revision")
	}
	_, err := b.Store.UpdateStatus(b.ctx, first)
	b.isKind("UpdateStatus of an old revision", err, serai.Conflict)
	_, err = b.Store.UpdateStatus(b.ctx, newSite("alice", "blog"))
	b.isKind("UpdateStatus of what is not there", err, serai.NotFound)
}

// testCompareAndSwap: whoever was late sees it, by whichever door it comes.
func testCompareAndSwap(_ *testing.T, b *bench) {
	old := b.create(newSite("alice", "shop")).(*serai.Site)
	b.updateStatus(&serai.Site{Type: old.Type, Meta: old.Meta, Status: serai.SiteStatus{Launch: 1}})
	_, err := b.Store.Update(b.ctx, counted(old.Clone().(*serai.Site), 1))
	b.isKind("Update after UpdateStatus", err, serai.Conflict)
	b.isKind("Delete after UpdateStatus", b.Store.Delete(b.ctx, old.Key(), old.Meta.Revision), serai.Conflict)

	// A namesake that came later is another one.
	b.delete(old.Key())
	b.create(newSite("alice", "shop"))
	_, err = b.Store.Update(b.ctx, counted(old.Clone().(*serai.Site), 1))
	b.isKind("Update of a namesake", err, serai.Conflict)
}

func testDelete(_ *testing.T, b *bench) {
	site := b.create(newSite("alice", "shop"))
	if err := b.Store.Delete(b.ctx, site.Key(), site.GetMeta().Revision); err != nil {
		b.Errorf("Delete: %v", err)
	}
	_, err := b.Store.Get(b.ctx, site.Key())
	b.isKind("Get after Delete", err, serai.NotFound)
	b.isKind("Delete again", b.Store.Delete(b.ctx, site.Key(), ""), serai.NotFound)
	_, err = b.Store.Update(b.ctx, site)
	b.isKind("Update after Delete", err, serai.NotFound)
}

func testFinalizers(t *testing.T, b *bench) {
	in := newSite("alice", "shop")
	in.Meta.Finalizers = []string{"engine", "hosts"}
	first := b.create(in)
	b.delete(in.Key())
	marked := b.get(in.Key()).(*serai.Site)
	if marked.Meta.Deleted == nil || marked.Meta.Revision == first.GetMeta().Revision || marked.Meta.Generation != 1 {
		t.Fatalf("after Delete: %s", toJSON(t, marked))
	}
	for _, revision := range []string{"", marked.Meta.Revision, first.GetMeta().Revision} {
		if err := b.Store.Delete(b.ctx, in.Key(), revision); err != nil {
			t.Errorf("Delete again at %q: %v", revision, err)
		}
	}
	b.same("after deleting again", b.get(in.Key()), marked)

	marked.Status.Launch = 1
	marked = b.updateStatus(marked).(*serai.Site)
	marked.Meta.Finalizers = []string{"hosts"}
	marked.Meta.Deleted = nil // a deletion is not taken back
	marked = b.update(marked).(*serai.Site)
	if marked.Meta.Deleted == nil {
		t.Error("an update took the deletion back")
	}
	marked.Meta.Finalizers = nil
	last := b.update(marked)
	if last.GetMeta().Revision == marked.Meta.Revision {
		t.Error("the removal has no revision of its own")
	}
	_, err := b.Store.Get(b.ctx, in.Key())
	b.isKind("Get after the last finalizer went", err, serai.NotFound)
}

func testIDs(t *testing.T, b *bench) {
	seen := map[int64]bool{}
	for i := range 10 {
		site := b.create(newSite("alice", "shop"))
		id := site.GetMeta().ID
		if id <= 0 || id > math.MaxUint32 || seen[id] {
			t.Errorf("site %d has the ID %d, before it %v", i, id, seen)
		}
		seen[id] = true
		b.delete(site.Key())
	}
	x, y := b.create(newPlan("x")), b.create(newPlan("y"))
	if x.GetMeta().ID == y.GetMeta().ID {
		t.Errorf("two plans have the ID %d", x.GetMeta().ID)
	}
}

func testUIDs(t *testing.T, b *bench) {
	seen := map[int64]bool{}
	for i := range 10 {
		in := newTenant("alice")
		in.Meta.ID = 1 // not the caller's to choose
		tenant := b.create(in)
		id := tenant.GetMeta().ID
		if id <= 1 || id > math.MaxUint32 || seen[id] {
			t.Errorf("tenant %d has the uid %d, before it %v", i, id, seen)
		}
		seen[id] = true
		b.delete(tenant.Key())
	}
}

func testAdopt(t *testing.T, b *bench) {
	adopt := func(name string, uid int64) *serai.Tenant {
		in := newTenant(name)
		in.Meta.ID, in.Spec.Account = uid, serai.Account{Adopt: name}
		return in
	}
	_, err := b.Store.Create(b.ctx, adopt("alice", 0))
	b.isKind("adopting a unknown uid", err, serai.Invalid)

	alice := b.create(adopt("alice", 1005))
	if alice.GetMeta().ID != 1005 {
		t.Errorf("the uid of an adopted account is %d, want 1005", alice.GetMeta().ID)
	}
	b.same("adopting again", b.create(adopt("alice", 1005)), alice)
	_, err = b.Store.Create(b.ctx, adopt("bob", 1005))
	b.isKind("adopting another's uid", err, serai.Conflict)

	b.delete(alice.Key())
	b.create(adopt("bob", 1005)) // the account outlived the tenant

	// No new tenant gets a uid that was adopted, wherever that lies.
	carol := b.create(newTenant("carol")).GetMeta().ID
	b.create(adopt("dan", carol+1))
	if erin := b.create(newTenant("erin")).GetMeta().ID; erin == carol || erin == carol+1 {
		t.Errorf("erin got the uid %d after %d was given and %d adopted", erin, carol, carol+1)
	}
	_, err = b.Store.Create(b.ctx, adopt("frank", carol))
	b.isKind("adopting a created tenant's uid", err, serai.Conflict)
}
