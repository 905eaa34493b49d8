package dev

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy"
	"serai.dev/serai/internal/route"
)

// A site is the one that is served: its newest code, and the way to it.
type site struct {
	options  Options
	done     <-chan struct{} // closed when all is to end: a load that hangs, too
	engine   string          // directory of the engine's files
	code     string          // directory of the site's
	launch   privsep.Launch
	listener *os.File
	routes   *route.Log
	server   *proxy.Server

	lock  chan struct{} // has room for one: guards what follows
	route route.Site
	now   *process // nil before the first
	old   []*process
}

// what names the code in messages.
func (s *site) what() string {
	if p := s.options.Site.Spec.Perl; p != nil && p.App != "" {
		return filepath.Join(s.code, p.App)
	}
	return "the scripts of " + s.code
}

// hold takes the lock, unless all is to end.
func (s *site) hold() bool {
	select {
	case s.lock <- struct{}{}:
		return true
	case <-s.done:
		return false
	}
}

// fresh sees to it that the newest code serves: where a file of it has changed
// it is loaded anew. Code that did not load is also tried again for a request,
// as what was missing may be there now.
func (s *site) fresh(forRequest bool) {
	if !s.hold() {
		return
	}
	defer func() { <-s.lock }()
	why := ""
	switch {
	case s.now == nil:
	case s.now.failed == nil && s.now.hasEnded():
		why = "its process has ended"
	default:
		why = s.now.changed()
		if why == "" && !(forRequest && (s.now.broken != "" || s.now.failed != nil)) {
			return
		}
	}
	s.load(why)
}

// watch looks at the files now and then until ctx ends.
func (s *site) watch(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.fresh(false)
		case <-ctx.Done():
			return nil
		}
	}
}

// load loads the code in a new process, has it take over, and lets the one
// before drain. s.lock is held.
func (s *site) load(why string) {
	began := time.Now()
	s.launch.Launch++
	p, err := s.start()
	for err == nil && !s.loaded(p) {
		s.old = append(s.old, p)
		select {
		case <-s.done:
			return
		default:
		}
		p.kill()
		p, err = s.start()
	}
	if err == nil {
		err = p.failed
	}
	s.route.Launch, s.route.Closed = s.launch.Launch, ""
	if err != nil {
		s.route.Closed = fmt.Sprintf("The site does not start: %v.", err)
		fmt.Fprintln(s.options.Out, s.route.Closed)
	}
	s.set(route.Record{Site: &s.route})
	if old := s.now; old != nil {
		s.old = append(slices.DeleteFunc(s.old, (*process).hasEnded), old)
		old.drain()
	}
	if s.now = p; err == nil && why != "" && p.broken == "" {
		fmt.Fprintf(s.options.Out, "loaded anew in %d ms: %s\n", time.Since(began).Milliseconds(), why)
	}
}

// loaded waits until a process has loaded the code, or has failed to. It is
// false where that need not be waited for: all is to end, or a file that hangs
// was mended.
func (s *site) loaded(p *process) bool {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-p.settled:
			return true
		case <-s.done:
			return false
		case <-tick.C:
			if p.changed() != "" {
				return false
			}
		}
	}
}

// set makes a record true in the proxy.
func (s *site) set(r route.Record) {
	end, err := s.routes.Append(r)
	if err == nil {
		_, err = s.server.Apply(context.Background(), &end)
	}
	if err != nil {
		fmt.Fprintln(s.options.Out, "the proxy was not told:", err)
	}
}

// end ends the processes.
func (s *site) end() {
	s.lock <- struct{}{} // for ever
	s.set(route.Record{Drop: number})
	for _, p := range append(s.old, s.now) {
		if p != nil {
			p.end()
		}
	}
}

func (s *site) close() {
	s.listener.Close()
	s.routes.Close()
}
