package storetest

import (
	"context"
	"fmt"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

func testWatch(t *testing.T, b *bench) {
	b.create(newPlan("before")) // not seen: the watch is from now
	ch := b.watch(b.ctx, "")

	in := newSite("alice", "shop")
	in.Meta.Finalizers = []string{"a"}
	var want []serai.Resource
	site := b.create(in)
	want = append(want, site)
	site = b.update(counted(site.Clone().(*serai.Site), 1))
	want = append(want, site)
	s := site.Clone().(*serai.Site)
	s.Status.Launch = 1
	want = append(want, b.updateStatus(s))
	b.delete(in.Key())
	marked := b.get(in.Key())
	want = append(want, marked)
	want = append(want, b.create(newTenant("bob"))) // all kinds on one channel
	last := marked.Clone()
	last.GetMeta().Finalizers = nil
	want = append(want, b.update(last)) // as it last was

	for i, w := range want {
		c := b.next(ch)
		b.same(fmt.Sprintf("change %d", i), c.Resource, w)
		if c.Revision != w.GetMeta().Revision {
			t.Errorf("change %d has revision %q, its resource %q", i, c.Revision, w.GetMeta().Revision)
		}
		if c.Removed != (i == len(want)-1) {
			t.Errorf("change %d: removed is %v", i, c.Removed)
		}
	}
}

func testWatchFromList(_ *testing.T, b *bench) {
	b.create(newSite("alice", "listed"))
	_, revision := b.list(serai.KindSite, "")
	missed := b.create(newSite("alice", "missed"))
	ch := b.watch(b.ctx, revision)
	later := b.create(newSite("alice", "later"))
	b.same("what came before the watch", b.next(ch).Resource, missed)
	b.same("what came after it", b.next(ch).Resource, later)
}

func testWatchResume(t *testing.T, b *bench) {
	_, revision := b.list(serai.KindSite, "")
	site := b.create(newSite("alice", "shop"))
	const n = 20
	for i := range n {
		site = b.update(counted(site.(*serai.Site), i))
	}
	// Each change is read by a watch of its own, resumed from the one before.
	for i := -1; i < n; i++ {
		ctx, cancel := context.WithCancel(b.ctx)
		c := b.next(b.watch(ctx, revision))
		cancel()
		if i >= 0 && c.Resource.(*serai.Site).Spec.Env["N"] != fmt.Sprint(i) {
			t.Fatalf("after revision %s came %s, want change %d", revision, toJSON(t, c.Resource), i)
		}
		revision = c.Revision
	}
	if revision != site.GetMeta().Revision {
		t.Errorf("the last change is at revision %s, the resource at %s", revision, site.GetMeta().Revision)
	}
	_, err := b.Store.Watch(b.ctx, "no revision")
	b.isKind("Watch from no revision", err, serai.Invalid)
}

// churn changes a site until the store has forgotten a revision.
func (b *bench) churn(site serai.Resource, revision string) serai.Resource {
	b.Helper()
	for i := range 100_000 {
		site = b.update(counted(site.(*serai.Site), i))
		if i%50 != 49 {
			continue
		}
		ctx, cancel := context.WithCancel(b.ctx)
		_, err := b.Store.Watch(ctx, revision)
		cancel()
		if serai.KindOf(err) == serai.Expired {
			return site
		}
		if err != nil {
			b.Fatalf("Watch(%s): %v", revision, err)
		}
	}
	b.Fatal("the store forgets nothing: open one that does for this test")
	return nil
}

func testWatchExpired(_ *testing.T, b *bench) {
	_, old := b.list(serai.KindSite, "")
	site := b.create(newSite("alice", "shop"))
	site = b.churn(site, old)
	_, err := b.Store.Watch(b.ctx, old)
	b.isKind("Watch from a forgotten revision", err, serai.Expired)

	// To list again and watch from there works.
	_, revision := b.list(serai.KindSite, "")
	ch := b.watch(b.ctx, revision)
	site = b.update(counted(site.(*serai.Site), -1))
	b.same("after listing again", b.next(ch).Resource, site)
}

// testWatchSlowReader: one that does not read holds nobody up, and misses
// nothing without being told.
func testWatchSlowReader(t *testing.T, b *bench) {
	site := b.create(newSite("alice", "shop"))
	first := site.GetMeta().Revision
	ch := b.watch(b.ctx, first)
	site = b.churn(site, first)
	last := first
	n := 0
	for last != site.GetMeta().Revision {
		c, ok := <-ch
		if !ok {
			break
		}
		if got := c.Resource.(*serai.Site).Spec.Env["N"]; got != fmt.Sprint(n) {
			t.Fatalf("change %d is number %s: some are missing", n, got)
		}
		last = c.Revision
		n++
	}
	if last == site.GetMeta().Revision {
		return // patient as that: allowed
	}
	ch, err := b.Store.Watch(b.ctx, last)
	if serai.KindOf(err) == serai.Expired && err != nil {
		return
	}
	if err != nil {
		t.Fatalf("Watch(%s): %v", last, err)
	}
	if got := b.next(ch).Resource.(*serai.Site).Spec.Env["N"]; got != fmt.Sprint(n) {
		t.Errorf("resumed with number %s, want %d", got, n)
	}
}

func testWatchEnds(t *testing.T, b *bench) {
	ended := func(why string, ch <-chan store.Change) {
		t.Helper()
		for {
			select {
			case _, ok := <-ch:
				if !ok {
					return
				}
			case <-b.ctx.Done():
				t.Fatalf("%s does not end a watch", why)
			}
		}
	}
	ctx, cancel := context.WithCancel(b.ctx)
	idle := b.watch(ctx, "")
	busy := b.watch(ctx, "")
	site := b.create(newSite("alice", "shop"))
	b.next(idle)
	cancel()
	ended("its context", idle)
	ended("its context", busy)

	idle, busy = b.watch(b.ctx, ""), b.watch(b.ctx, "")
	b.update(counted(site.(*serai.Site), 1))
	b.next(idle)
	if err := b.Store.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	ended("Close", idle)
	ended("Close", busy)
}
