package schedule

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// look is how long a Clock sleeps at most: so much later it sees that
// somebody has set the machine's clock.
const look = 30 * time.Second

// A Clock calls for keys at times of the machine's clock, one time a key. What
// a key costs does not depend on how many there are. Make it with NewClock; its
// methods may be called concurrently.
type Clock[K comparable] struct {
	mu    sync.Mutex
	times alarms[K]
	of    map[K]*alarm[K]
	wake  chan struct{} // holds one word that the earliest time has changed
}

type alarm[K comparable] struct {
	key   K
	at    time.Time // without the monotonic part: of the machine's clock
	index int
}

// NewClock makes a Clock that does nothing before Run.
func NewClock[K comparable]() *Clock[K] {
	return &Clock[K]{of: make(map[K]*alarm[K]), wake: make(chan struct{}, 1)}
}

// Set has k called at a time, instead of when it was to be; a zero time is never.
func (c *Clock[K]) Set(k K, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at = at.Round(0)
	a := c.of[k]
	switch {
	case a == nil && at.IsZero():
		return
	case at.IsZero():
		heap.Remove(&c.times, a.index)
		delete(c.of, k)
		return
	case a == nil:
		a = &alarm[K]{key: k, at: at}
		c.of[k] = a
		heap.Push(&c.times, a)
	default:
		a.at = at
		heap.Fix(&c.times, a.index)
	}
	if a.index == 0 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// Run calls each for keys whose time has come, once, until ctx ends.
func (c *Clock[K]) Run(ctx context.Context, each func(K)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
		due, next := c.due(time.Now().Round(0))
		for _, k := range due {
			each(k)
		}
		timer.Reset(next)
	}
}

// due takes out what is due, and says how long to sleep.
func (c *Clock[K]) due(now time.Time) (due []K, next time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.times) > 0 && !c.times[0].at.After(now) {
		a := heap.Pop(&c.times).(*alarm[K])
		delete(c.of, a.key)
		due = append(due, a.key)
	}
	if len(c.times) == 0 {
		return due, look
	}
	return due, min(c.times[0].at.Sub(now), look)
}

// alarms is a heap.
type alarms[K comparable] []*alarm[K]

func (a alarms[K]) Len() int           { return len(a) }
func (a alarms[K]) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a alarms[K]) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].index, a[j].index = i, j
}
func (a *alarms[K]) Push(x any) {
	n := x.(*alarm[K])
	n.index = len(*a)
	*a = append(*a, n)
}
func (a *alarms[K]) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	return x
}
