package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/manifest"
)

func (s *Server) whoami(c *call) (any, error) { return c.identity(), nil }

func (s *Server) status(c *call) (any, error) {
	st, err := s.ctl.State(c.r.Context())
	if err != nil {
		return nil, err
	}
	st.Version, st.Started = s.version, s.started
	st.Plans, st.Tenants, st.Sites = s.index.counts()
	return st, nil
}

// list gives all resources of a kind that the caller may see.
func list(kind string) func(*Server, *call) (any, error) {
	return func(s *Server, c *call) (any, error) {
		tenant := c.r.PathValue("tenant")
		if tenant != "" {
			if _, err := s.find(c, serai.Key{Kind: serai.KindTenant, Name: tenant}); err != nil {
				return nil, err
			}
		}
		if c.class != Operator && kind == serai.KindSite {
			tenant = c.tenant
		}
		rs, revision, err := s.store.List(c.r.Context(), kind, tenant)
		if err != nil {
			return nil, err
		}
		out := client.List{Items: []json.RawMessage{}, Revision: revision}
		for _, r := range rs {
			if ok, err := s.sees(c, r.Key()); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
			b, err := json.Marshal(shown(r))
			if err != nil {
				return nil, fmt.Errorf("print %s: %w", r.Key(), err)
			}
			out.Items = append(out.Items, b)
		}
		return out, nil
	}
}

// sees reports whether a caller may know of a resource: a tenant of itself,
// its plan and its sites.
func (s *Server) sees(c *call, key serai.Key) (bool, error) {
	if c.class == Operator {
		return true, nil
	}
	switch key.Kind {
	case serai.KindSite:
		return key.Tenant == c.tenant, nil
	case serai.KindTenant:
		return key.Name == c.tenant, nil
	}
	self, err := s.store.Get(c.r.Context(), serai.Key{Kind: serai.KindTenant, Name: c.tenant})
	if err != nil {
		return false, err
	}
	return self.(*serai.Tenant).Spec.Plan == key.Name, nil
}

// find gets a resource that the caller may see.
func (s *Server) find(c *call, key serai.Key) (serai.Resource, error) {
	ok, err := s.sees(c, key)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notFound(key)
	}
	r, err := s.store.Get(c.r.Context(), key)
	if serai.KindOf(err) == serai.NotFound {
		return nil, notFound(key)
	}
	return r, err
}

// shown adds which fields are kept but not enforced yet: that depends on this
// program, not on what was stored by an older one.
func shown(r serai.Resource) serai.Resource {
	switch r := r.(type) {
	case *serai.Plan:
		r.Status.Enforced = manifest.NotEnforced(r)
	case *serai.Tenant:
		r.Status.Enforced = manifest.NotEnforced(r)
	}
	return r
}

// Limits of a wait.
const (
	defaultWait = 30 * time.Second
	maxWait     = 5 * time.Minute
)

func (s *Server) get(c *call) (any, error) {
	wait, err := c.oneOf("wait", "", "Ready", "Gone")
	if err != nil {
		return nil, err
	}
	generation, err := c.number("generation", 0, 0, 1<<62)
	if err != nil {
		return nil, err
	}
	limit, err := c.duration("timeout", defaultWait, maxWait)
	if err != nil {
		return nil, err
	}
	key := c.key()
	if wait == "" {
		r, err := s.find(c, key)
		if err != nil {
			return nil, err
		}
		return shown(r), nil
	}
	// The change is asked for before the first look, so that none is missed.
	changed, end := s.index.changed(key)
	defer end()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		r, err := s.find(c, key)
		if err != nil {
			return nil, err
		}
		if wait == "Ready" && settled(r, generation) {
			return shown(r), nil
		}
		select {
		case <-changed:
		case <-timeout.C:
			return shown(r), nil
		case <-s.draining.Done():
			return nil, serai.Errorf(serai.Unavailable, "the server is ending").WithHint("ask again")
		case <-c.r.Context().Done():
			return nil, c.r.Context().Err()
		}
	}
}

// settled reports whether waiting for Ready has an answer: it is, or it cannot
// become so before somebody acts.
func settled(r serai.Resource, generation int64) bool {
	observed, cs := serai.Progress(r)
	if *observed < generation {
		return false
	}
	ready := cs.Get(serai.Ready)
	return ready.Status == serai.True ||
		ready.Status == serai.False && slices.Contains([]string{"Stopped", "Suspended", "Failed"}, ready.Reason) ||
		cs.Get(serai.Loaded).Status == serai.False || cs.Get(serai.HostTaken).Status == serai.True
}

// describedEvents is how many events a description shows.
const describedEvents = 10

// shownStarts is how many starts it tells of, eventStarted the reason of the
// reconciler's event for one.
const (
	shownStarts  = 20
	eventStarted = "Started"
)

func (s *Server) describe(c *call) (any, error) {
	key := c.key()
	r, err := s.find(c, key)
	if err != nil {
		return nil, err
	}
	var d client.Description
	if d.Resource, err = json.Marshal(shown(r)); err != nil {
		return nil, fmt.Errorf("print %s: %w", key, err)
	}
	switch key.Kind {
	case serai.KindPlan:
		if c.class == Operator {
			d.Tenants = s.index.under(key)
		}
		return d, nil
	case serai.KindTenant:
		d.Sites = s.index.under(key)
		if d.Mail, err = s.mailed(c.r.Context(), r.(*serai.Tenant)); err != nil {
			d.Warning = serai.Message(err)
		}
		d.Events, err = s.store.Events(c.r.Context(), key.Name, -1, describedEvents)
		return d, err
	}
	running, siteErr := s.ctl.Site(c.r.Context(), key)
	events, err := s.siteEvents(c, key)
	if err != nil {
		return nil, err
	}
	d.Events = events[max(0, len(events)-describedEvents):]
	if siteErr != nil {
		d.Warning = serai.Message(siteErr)
		return d, nil
	}
	running.Starts = starts(events)
	d.Running = &running
	return d, nil
}

// starts takes the last starts out of a site's events; nil where there are none.
func starts(events []serai.Event) *client.Starts {
	var st client.Starts
	for _, e := range events {
		if ms, err := strconv.ParseInt(e.Fields["millis"], 10, 64); err == nil && e.Reason == eventStarted {
			st.Last, st.Millis = e.Time, append(st.Millis, ms)
		}
	}
	if len(st.Millis) == 0 {
		return nil
	}
	st.Millis = st.Millis[max(0, len(st.Millis)-shownStarts):]
	sorted := slices.Sorted(slices.Values(st.Millis))
	st.MedianMs, st.MaxMs = sorted[len(sorted)/2], sorted[len(sorted)-1]
	return &st
}

// siteEvents are the events of a site among the newest of its tenant.
func (s *Server) siteEvents(c *call, key serai.Key) ([]serai.Event, error) {
	all, err := s.store.Events(c.r.Context(), key.Tenant, -1, maxEvents)
	if err != nil {
		return nil, err
	}
	var mine []serai.Event
	for _, e := range all {
		if e.Site == key.Name {
			mine = append(mine, e)
		}
	}
	return mine, nil
}
