package reconcile

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestQueueOrder(t *testing.T) {
	q := newQueue[string]()
	q.lazy("a", "b", "c")
	q.add("x", "b", "x")
	var got []string
	for range 4 {
		k, _ := q.get(t.Context())
		got = append(got, k)
		q.done(k, false)
	}
	if want := []string{"x", "b", "a", "c"}; !slices.Equal(got, want) {
		t.Errorf("came as %v; want %v", got, want)
	}
	if n := q.pending(); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}

func TestQueueOneWorkerAKey(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	q := newQueue[int]()
	var mu sync.Mutex
	busy, runs := map[int]bool{}, map[int]int{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.work(ctx, 8, func(_ context.Context, k int) bool {
			mu.Lock()
			if busy[k] {
				t.Errorf("key %d is with two workers", k)
			}
			busy[k] = true
			runs[k]++
			mu.Unlock()
			mu.Lock()
			defer mu.Unlock()
			busy[k] = false
			if runs[k] == 1 {
				q.add(k) // while it is being done
			}
			if len(runs) == 20 && all(runs, 2) {
				cancel()
			}
			return false
		})
	}()
	for k := range 20 {
		q.add(k)
	}
	<-done
}

func all(runs map[int]int, least int) bool {
	for _, n := range runs {
		if n < least {
			return false
		}
	}
	return true
}

func TestQueueBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		q := newQueue[string]()
		var at []time.Duration
		began := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			q.work(ctx, 1, func(context.Context, string) bool {
				at = append(at, time.Since(began))
				if len(at) == 12 {
					cancel()
				}
				return true
			})
		}()
		q.add("k")
		<-done
		for i, want := 1, 100*time.Millisecond; i < len(at); i, want = i+1, min(2*want, 30*time.Second) {
			if got := at[i] - at[i-1]; got < want*3/4 || got > want*5/4 {
				t.Errorf("try %d came after %s; want about %s", i, got, want)
			}
		}
		synctest.Wait()
	})
}
