package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"serai.dev/serai"
)

// together runs f n times at once and reports what went wrong.
func together(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = f(i)
		})
	}
	close(start)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func testWaitEvents(t *testing.T, b *bench) {
	var after int64
	for i := range 10 {
		woken := make(chan error, 1)
		go func() { woken <- b.Store.WaitEvents(b.ctx, after) }()
		e := b.event("", fmt.Sprint(i), time.Time{})
		if err := <-woken; err != nil {
			t.Fatalf("WaitEvents(%d): %v", after, err)
		}
		after = e.ID
	}
	if err := b.Store.WaitEvents(b.ctx, after-1); err != nil {
		t.Errorf("WaitEvents for what is there: %v", err)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	woken := make(chan error, 1)
	go func() { woken <- b.Store.WaitEvents(ctx, after) }()
	cancel()
	if err := <-woken; !errors.Is(err, context.Canceled) {
		t.Errorf("WaitEvents whose context ended: %v", err)
	}
}

// testConcurrentCreates: of the same name one is made, and all get that one.
func testConcurrentCreates(t *testing.T, b *bench) {
	const n, sites = 8, 10
	ids := make([][sites]int64, n)
	together(t, n, func(i int) error {
		for j := range sites {
			out, err := b.Store.Create(b.ctx, newSite("alice", fmt.Sprint("s", j)))
			if err != nil {
				return err
			}
			ids[i][j] = out.GetMeta().ID
		}
		return nil
	})
	seen := map[int64]bool{}
	for j, id := range ids[0] {
		if seen[id] {
			t.Errorf("the ID %d was given twice", id)
		}
		seen[id] = true
		for i := range n {
			if ids[i][j] != id {
				t.Errorf("site s%d has the IDs %d and %d", j, id, ids[i][j])
			}
		}
	}
}

// testConcurrentUpdates: no increment of a counter is lost.
func testConcurrentUpdates(t *testing.T, b *bench) {
	key := b.create(counted(newSite("alice", "shop"), 0)).Key()
	const n, each = 6, 10
	increment := func() error {
		for {
			r, err := b.Store.Get(b.ctx, key)
			if err != nil {
				return err
			}
			s := r.(*serai.Site)
			i, err := strconv.Atoi(s.Spec.Env["N"])
			if err != nil {
				return err
			}
			if _, err = b.Store.Update(b.ctx, counted(s, i+1)); serai.KindOf(err) != serai.Conflict || err == nil {
				return err
			}
		}
	}
	together(t, n, func(int) error {
		for range each {
			if err := increment(); err != nil {
				return err
			}
		}
		return nil
	})
	s := b.get(key).(*serai.Site)
	if got, want := s.Spec.Env["N"], fmt.Sprint(n*each); got != want || s.Meta.Generation != n*each+1 {
		t.Errorf("counted to %s at generation %d, want %s and %d", got, s.Meta.Generation, want, n*each+1)
	}
}

// testConcurrentClaims: each host gets exactly one holder, and all see the same.
func testConcurrentClaims(t *testing.T, b *bench) {
	const n, hosts = 8, 10
	var sites [n]serai.Key
	for i := range sites {
		sites[i] = b.create(newSite(fmt.Sprint("t", i), "shop")).Key()
	}
	held := make([][hosts]serai.Key, n)
	together(t, n, func(i int) error {
		for j := range hosts {
			host := fmt.Sprintf("h%d.example", (i+j)%hosts)
			holder, err := b.Store.Claim(b.ctx, host, sites[i])
			if err != nil {
				return err
			}
			held[i][(i+j)%hosts] = holder
		}
		return nil
	})
	for j := range hosts {
		for i := range n {
			if held[i][j] != held[0][j] {
				t.Errorf("h%d.example is %s's to %s and %s's to %s", j, held[0][j], sites[0], held[i][j], sites[i])
			}
		}
	}
	total := 0
	for _, site := range sites {
		for _, host := range b.claims(site) {
			total++
			if got := b.claim(host, sites[0]); got != site {
				t.Errorf("%s is listed for %s and claimed by %s", host, site, got)
			}
		}
	}
	if total != hosts {
		t.Errorf("%d claims are listed, want %d", total, hosts)
	}
}

// testConcurrentWatchers: all watchers see the same changes in the same order,
// whoever wrote them, and the last of each resource is what is stored.
func testConcurrentWatchers(t *testing.T, b *bench) {
	const watchers, writers, each = 4, 4, 15
	const total = writers * each
	_, revision := b.list(serai.KindSite, "")
	seen := make([][]string, watchers)
	last := make([]map[serai.Key]string, watchers)
	together(t, watchers+writers, func(i int) error {
		if i >= watchers {
			var site serai.Resource = newSite("alice", fmt.Sprint("s", i))
			site, err := b.Store.Create(b.ctx, site)
			for n := 1; n < each && err == nil; n++ {
				site, err = b.Store.Update(b.ctx, counted(site.(*serai.Site), n))
			}
			return err
		}
		ctx, cancel := context.WithCancel(b.ctx)
		defer cancel()
		ch, err := b.Store.Watch(ctx, revision)
		if err != nil {
			return err
		}
		last[i] = map[serai.Key]string{}
		for len(seen[i]) < total {
			c, ok := <-ch
			if !ok {
				return fmt.Errorf("watcher %d: the watch ended after %d changes", i, len(seen[i]))
			}
			seen[i] = append(seen[i], c.Revision)
			last[i][c.Resource.Key()] = c.Revision
		}
		return nil
	})
	for i := range watchers {
		b.same(fmt.Sprintf("what watcher %d saw", i), seen[i], seen[0])
	}
	for key, revision := range last[0] {
		b.same("the revision of "+key.String(), b.get(key).GetMeta().Revision, revision)
	}
}

// testCancelled: a context that has ended changes nothing.
func testCancelled(t *testing.T, b *bench) {
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if _, err := b.Store.Get(ctx, siteKey("alice", "shop")); !errors.Is(err, context.Canceled) {
		t.Errorf("Get with a context that has ended: %v", err)
	}
	if _, _, err := b.Store.List(ctx, serai.KindSite, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("List with a context that has ended: %v", err)
	}
	if _, err := b.Store.Create(ctx, newSite("alice", "shop")); !errors.Is(err, context.Canceled) {
		t.Errorf("Create with a context that has ended: %v", err)
	}
	_, err := b.Store.Get(b.ctx, siteKey("alice", "shop"))
	b.isKind("Get after it", err, serai.NotFound)
}

// testClosed: whatever comes after Close is told so.
func testClosed(t *testing.T, b *bench) {
	site := b.create(newSite("alice", "shop"))
	for range 2 {
		if err := b.Store.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	_, err := b.Store.Get(b.ctx, site.Key())
	b.isKind("Get", err, serai.Unavailable)
	_, _, err = b.Store.List(b.ctx, serai.KindSite, "")
	b.isKind("List", err, serai.Unavailable)
	_, err = b.Store.Update(b.ctx, site)
	b.isKind("Update", err, serai.Unavailable)
	_, err = b.Store.Watch(b.ctx, "")
	b.isKind("Watch", err, serai.Unavailable)
	_, err = b.Store.Claims(b.ctx, site.Key())
	b.isKind("Claims", err, serai.Unavailable)
	_, err = b.Store.Events(b.ctx, "", 0, 1)
	b.isKind("Events", err, serai.Unavailable)
	b.isKind("WaitEvents", b.Store.WaitEvents(b.ctx, 0), serai.Unavailable)
}
