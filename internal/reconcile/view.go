package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// Stats are the proxy's counters of all sites, or Unavailable.
func (r *Reconciler) Stats(ctx context.Context) ([]route.SiteStats, error) { return r.link.ask(ctx) }

// ProxyUp reports whether the front proxy is connected and answers.
func (r *Reconciler) ProxyUp() bool { return !r.link.away() }

// ProxyPID is the pid of the front proxy, or 0 while it is not known.
func (r *Reconciler) ProxyPID() int {
	r.link.mu.Lock()
	defer r.link.mu.Unlock()
	return r.link.pid
}

// Pending is how many objects and launches are not done yet.
func (r *Reconciler) Pending() int { return r.queue.pending() + r.launches.pending() }

// Zygotes are what was last heard of each zygote, in order of name.
func (r *Reconciler) Zygotes() []privsep.ZygoteEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.zygotes), func(a, b privsep.ZygoteEvent) int { return strings.Compare(a.Name, b.Name) })
}

// Seen is what was last heard of a site's processes.
type Seen struct {
	Number uint32
	Phase  string // off, asleep, starting, running, backoff; empty is not known
	PID    int    // of the main process, or 0
}

// Site tells what was seen of a site, or NotFound.
func (r *Reconciler) Site(key serai.Key) (Seen, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.sites[key]
	if m == nil {
		return Seen{}, serai.Errorf(serai.NotFound, "there is no site %s", key)
	}
	return m.seen(), nil
}

// Phases counts the sites by phase.
func (r *Reconciler) Phases() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	phases := make(map[string]int)
	for _, m := range r.sites {
		if s := m.seen(); s.Phase != "" {
			phases[s.Phase]++
		}
	}
	return phases
}

func (m *site) seen() Seen {
	s := Seen{Number: m.number, Phase: m.phase, PID: m.pid}
	switch {
	case m.held == nil:
		s.Phase = ""
	case m.quiet:
		s.Phase, s.PID = "off", 0
	case m.loading != 0 && m.pid == 0:
		s.Phase = "starting"
	case s.Phase == "" || s.Phase == "off":
		s.Phase = "asleep"
	}
	return s
}
