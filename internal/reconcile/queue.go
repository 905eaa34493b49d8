package reconcile

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// A queue hands out keys to a few workers. A key that is queued twice is done
// once; one that is being done is not handed to a second worker, but again
// after the first has ended. Keys of changes go before those of a start.
//
//	add ──► urgent ─┐
//	                ├─► get ──► a worker ──► done ──► (again, where added meanwhile)
//	lazy ─► idle ───┘                          └────► retry: after a while
type queue[K comparable] struct {
	mu     sync.Mutex
	wake   chan struct{} // closed and replaced when a key was added
	urgent []K
	idle   []K
	state  map[K]*queued
}

type queued struct {
	waiting bool // in a list
	urgent  bool // in the list of urgent ones
	busy    bool // with a worker
	again   bool // added while busy
	tries   int  // failures in a row
	timer   *time.Timer
}

func newQueue[K comparable]() *queue[K] {
	return &queue[K]{wake: make(chan struct{}), state: make(map[K]*queued)}
}

// add queues keys before those of a start.
func (q *queue[K]) add(keys ...K) { q.put(true, keys) }

// lazy queues keys after all others.
func (q *queue[K]) lazy(keys ...K) { q.put(false, keys) }

func (q *queue[K]) put(urgent bool, keys []K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, k := range keys {
		s := q.state[k]
		if s == nil {
			s = new(queued)
			q.state[k] = s
		}
		switch {
		case s.busy:
			s.again = true
		case s.waiting && (s.urgent || !urgent):
		case urgent:
			// One that waits in the other list stays there too: get skips it.
			s.waiting, s.urgent = true, true
			q.urgent = append(q.urgent, k)
		default:
			s.waiting = true
			q.idle = append(q.idle, k)
		}
	}
	close(q.wake)
	q.wake = make(chan struct{})
}

// get waits for a key. It is the caller's until done.
func (q *queue[K]) get(ctx context.Context) (k K, ok bool) {
	for ctx.Err() == nil {
		q.mu.Lock()
		k, ok, wake := q.take()
		q.mu.Unlock()
		if ok {
			return k, true
		}
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
	return k, false
}

func (q *queue[K]) take() (k K, ok bool, wake chan struct{}) {
	for _, list := range []*[]K{&q.urgent, &q.idle} {
		for len(*list) > 0 {
			k = (*list)[0]
			*list = (*list)[1:]
			if s := q.state[k]; s != nil && s.waiting && !s.busy {
				s.waiting, s.urgent, s.busy = false, false, true
				return k, true, nil
			}
		}
		*list = nil
	}
	return k, false, q.wake
}

// done gives a key back. With retry it comes again: after 0.1 s at first,
// doubling up to 30 s, a quarter more or less, so that many that failed
// together do not come together.
func (q *queue[K]) done(k K, retry bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.state[k]
	s.busy = false
	again := s.again
	s.again = false
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if !retry {
		s.tries = 0
	} else {
		wait := backOff(s.tries)
		s.tries++
		s.timer = time.AfterFunc(wait, func() { q.add(k) })
	}
	if again {
		s.waiting, s.urgent = true, true
		q.urgent = append(q.urgent, k)
		close(q.wake)
		q.wake = make(chan struct{})
	} else if !retry {
		delete(q.state, k)
	}
}

// pending is how many keys wait, are being done or will come again.
func (q *queue[K]) pending() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.state)
}

// backOff is how long to wait after so many failures before this one.
func backOff(tries int) time.Duration {
	wait := min(100*time.Millisecond<<min(tries, 20), 30*time.Second)
	return wait*3/4 + rand.N(wait/2)
}

// work runs n workers until ctx ends, and waits for them. do reports whether
// the key shall come again.
func (q *queue[K]) work(ctx context.Context, n int, do func(context.Context, K) (retry bool)) {
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for {
				k, ok := q.get(ctx)
				if !ok {
					return
				}
				q.done(k, do(ctx, k))
			}
		})
	}
	wg.Wait()
}
