package reconcile

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"serai.dev/serai"
	"serai.dev/serai/internal/engine"
	"serai.dev/serai/internal/route"
)

// closed is the sentence that visitors of a shut site get, or empty.
func closed(t *serai.Tenant, s *serai.Site) string {
	switch {
	case t.Spec.Suspended || t.Meta.Deleted != nil:
		return "this site is suspended"
	case s.Spec.Stopped:
		return "this site is stopped"
	}
	return ""
}

// siteRoute is what the proxy shall know of a site that holds these hosts. find
// is that of mountRoutes.
func siteRoute(t *serai.Tenant, p *serai.Plan, s *serai.Site, hosts []string, find func(serai.Key) (serai.Resource, error)) (*route.Site, error) {
	e, err := engine.For(s.Spec.Engine)
	if err != nil {
		return nil, err
	}
	mounts, err := mountRoutes(t, s, find)
	if err != nil {
		return nil, err
	}
	launch := s.Status.Serving
	if launch == 0 { // nothing was ever loaded: nothing older is to be kept
		launch = s.Status.Launch
	}
	return &route.Site{
		Number: uint32(s.Meta.ID), UID: t.Status.UID, Tenant: s.Meta.Tenant, Name: s.Meta.Name,
		Hosts: hosts, Closed: closed(t, s), Launch: launch,
		Files: engine.Files(s), Prefixes: e.Prefixes(s), Mounts: mounts, Workers: s.Spec.Workers,
		Queue: p.Spec.Queue, Body: p.Spec.Body, Reply: p.Spec.Reply,
	}, nil
}

// tenantRoute is what the proxy shall know of a tenant.
func tenantRoute(t *serai.Tenant, p *serai.Plan) *route.Tenant {
	return &route.Tenant{UID: t.Status.UID, Name: t.Meta.Name, Workers: p.Spec.Workers, Hosts: t.Spec.Hosts}
}

// claim makes the hosts of the specification the site's, as far as they are
// free. Claims last: where nothing changed the store is not asked.
func (j *job) claim(ctx context.Context) error {
	key, st := j.s.Key(), &j.s.Status
	if st.ObservedGeneration == j.s.Meta.Generation && slices.Equal(st.Claimed, j.s.Spec.Hosts) {
		j.hosts = st.Claimed
		return nil
	}
	j.moved = true
	for _, host := range j.s.Spec.Hosts {
		j.wish(host, true)
		holder, err := j.store.Claim(ctx, host, key)
		if err != nil {
			return fmt.Errorf("claim host %s: %w", host, err)
		}
		if holder == key {
			j.wish(host, false)
			j.hosts = append(j.hosts, host)
			continue
		}
		j.taken = append(j.taken, host)
		j.holder = holder
	}
	return nil
}

// wish notes, before the store is asked, that the site waits for a host: one
// that is given up in between is not missed.
func (j *job) wish(host string, waits bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	keys := j.wishes[host]
	switch {
	case !waits:
		if delete(keys, j.s.Key()); len(keys) == 0 {
			delete(j.wishes, host)
		}
	case keys == nil:
		j.wishes[host] = map[serai.Key]bool{j.s.Key(): true}
	default:
		keys[j.s.Key()] = true
	}
}

// release gives up the hosts that the specification no longer names, once the
// proxy was told.
func (j *job) release(ctx context.Context) error {
	if !j.moved {
		return nil
	}
	key := j.s.Key()
	held, err := j.store.Claims(ctx, key)
	if err != nil {
		return err
	}
	var freed []string
	for _, host := range held {
		if slices.Contains(j.s.Spec.Hosts, host) {
			continue
		}
		if err := j.store.Release(ctx, host, key); err != nil {
			return fmt.Errorf("release host %s: %w", host, err)
		}
		freed = append(freed, host)
	}
	j.freed(freed)
	return nil
}

// freed queues the sites that wait for hosts.
func (r *Reconciler) freed(hosts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, host := range hosts {
		for key := range r.wishes[host] {
			r.queue.add(key)
		}
	}
}

// report writes the conditions where they changed.
func (j *job) report(ctx context.Context) error {
	st := &j.s.Status
	st.ObservedGeneration, st.Claimed = j.s.Meta.Generation, j.hosts
	ready := serai.Condition{Type: serai.Ready, Status: serai.True}
	not := func(status serai.Status, reason, message string) {
		if ready.Status != serai.False && (ready.Status == serai.True || status == serai.False) {
			ready.Status, ready.Reason, ready.Message = status, reason, message
		}
	}
	closed := closed(j.t, j.s)
	switch {
	case closed == "":
	case j.s.Spec.Stopped:
		not(serai.False, "Stopped", closed)
	default:
		not(serai.False, "Suspended", closed)
	}
	if message := j.reportTaken(); message != "" {
		not(serai.False, serai.HostTaken, message)
	}
	j.reportLoaded(closed)
	if loaded := st.Conditions.Get(serai.Loaded); loaded.Status != serai.True {
		not(loaded.Status, loaded.Reason, loaded.Message)
	}
	j.reportRouted()
	if routed := st.Conditions.Get(serai.Routed); routed.Status != serai.True {
		not(routed.Status, routed.Reason, routed.Message)
	}
	st.Conditions.Set(ready, now())
	if !reflect.DeepEqual(st, &j.before.Status) {
		// Who mounts an entry is told of a change before it counts as done.
		if j.s.Spec.Catalogue != nil {
			if err := j.tellMounts(ctx, j.s.Key()); err != nil {
				return err
			}
		}
		if err := j.writeStatus(ctx, j.s); err != nil {
			return err
		}
	}
	j.settled()
	return nil
}

// reportTaken says which hosts are somebody else's; who that is only where it
// is the same tenant.
func (j *job) reportTaken() (message string) {
	st := &j.s.Status
	if len(j.taken) == 0 {
		st.Conditions.Remove(serai.HostTaken)
		return ""
	}
	who, are := "another site", "is"
	if len(j.taken) > 1 {
		are = "are"
	} else if j.holder.Tenant == j.s.Meta.Tenant {
		who = j.holder.String()
	}
	what := fmt.Sprintf("%s %s in use by %s", strings.Join(j.taken, ", "), are, who)
	message = what + ": take it out of spec.hosts, or out of the other site's first"
	if st.Conditions.Get(serai.HostTaken).Message != message {
		j.journal.add(serai.Event{Severity: "warning", Reason: serai.HostTaken, Tenant: j.s.Meta.Tenant, Site: j.s.Meta.Name,
			Message: fmt.Sprintf("%s cannot have all its hosts: %s", j.s.Key(), what)})
	}
	st.Conditions.Set(serai.Condition{Type: serai.HostTaken, Status: serai.True, Reason: serai.HostTaken, Message: message}, now())
	return message
}

func (j *job) reportLoaded(closed string) {
	st := &j.s.Status
	c := st.Conditions.Get(serai.Loaded)
	j.mu.Lock()
	trouble := j.m.trouble
	j.mu.Unlock()
	switch {
	case closed != "":
		// What it loads when it is opened again is not known.
		c = serai.Condition{Type: serai.Loaded, Status: serai.Unknown, Reason: "Shut"}
	case c.Status == serai.Unknown && trouble != "":
		c.Reason, c.Message = "Retrying", trouble
	case c.Status == serai.Unknown:
		c.Reason, c.Message = "Loading", ""
	}
	st.Conditions.Set(c, now())
}

func (j *job) reportRouted() {
	st := &j.s.Status
	c := serai.Condition{Type: serai.Routed, Status: serai.True}
	switch at := j.routes.place(j.s.Key(), j.m.number); {
	case at == there:
	case at == taken && j.before.Status.ObservedGeneration == j.s.Meta.Generation &&
		j.before.Status.Conditions.Get(serai.Routed).Status == serai.True:
		// The proxy has served it all the while.
	case j.link.away():
		c.Status, c.Reason, c.Message = serai.Unknown, "ProxyAway", "the front proxy is away: it is told when it is back"
	default:
		c.Status, c.Reason = serai.Unknown, "Routing"
	}
	st.Conditions.Set(c, now())
}
