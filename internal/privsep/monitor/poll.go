package monitor

import (
	"container/heap"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A poller waits for descriptors and for times. It belongs to one goroutine.
type poller struct {
	fd      int
	turn    int32 // tells the uses of a descriptor's number apart
	sources map[fd]source
	times   alarms
	buf     []unix.EpollEvent
}

type source struct {
	turn int32
	run  func(events uint32)
}

func newPoller() (*poller, error) {
	n, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll set: %w", err)
	}
	return &poller{fd: n, sources: make(map[fd]source), buf: make([]unix.EpollEvent, 256)}, nil
}

// watch calls run when one of events is there; hang-ups always are.
func (p *poller) watch(f fd, events uint32, run func(events uint32)) error {
	p.turn++
	p.sources[f] = source{p.turn, run}
	ev := unix.EpollEvent{Events: events, Fd: int32(f), Pad: p.turn}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, int(f), &ev); err != nil {
		delete(p.sources, f)
		return fmt.Errorf("watch descriptor %d: %w", f, err)
	}
	return nil
}

// change sets other events for a descriptor that is watched.
func (p *poller) change(f fd, events uint32) {
	s, ok := p.sources[f]
	if !ok {
		return
	}
	ev := unix.EpollEvent{Events: events, Fd: int32(f), Pad: s.turn}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, int(f), &ev); err != nil {
		panic(fmt.Sprintf("change epoll events of descriptor %d: %v", f, err))
	}
}

// forget ends the watch, if there is one. It comes before closing: a
// descriptor that others hold too would stay in the set.
func (p *poller) forget(f fd) {
	if _, ok := p.sources[f]; ok {
		delete(p.sources, f)
		unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, int(f), nil)
	}
}

// A ticker has deadlines of its own; tick looks at all of them, so that one
// call too many does nothing.
type ticker interface {
	tick(m *Monitor, now time.Time)
}

type alarm struct {
	at time.Time
	of ticker
}

type alarms []alarm

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a alarms) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *alarms) Push(x any)        { *a = append(*a, x.(alarm)) }
func (a *alarms) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	(*a)[last] = alarm{}
	*a = (*a)[:last]
	return x
}

func (p *poller) at(t time.Time, of ticker) { heap.Push(&p.times, alarm{t, of}) }

// turnOnce waits for the next things to do, and does them.
func (m *Monitor) turnOnce() error {
	p := m.poll
	timeout := -1
	if len(p.times) > 0 {
		wait := time.Until(p.times[0].at)
		timeout = int(min(max(wait, 0), time.Hour)/time.Millisecond) + 1
		if wait <= 0 {
			timeout = 0
		}
	}
	n, err := unix.EpollWait(p.fd, p.buf, timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for events: %w", err)
	}
	for _, ev := range p.buf[:max(n, 0)] {
		// What an earlier event of this turn closed is not there any more.
		if s, ok := p.sources[fd(ev.Fd)]; ok && s.turn == ev.Pad {
			s.run(ev.Events)
		}
	}
	now := time.Now()
	for len(p.times) > 0 && !p.times[0].at.After(now) {
		heap.Pop(&p.times).(alarm).of.tick(m, now)
	}
	return nil
}
