package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"serai.dev/serai"
	"serai.dev/serai/internal/engine"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// sync compares the store with what serai-priv holds, hands over a route log,
// queues what is not in step, and returns the revision to watch from. What is
// equal on both sides costs no message.
func (r *Reconciler) sync(ctx context.Context) (revision string, err error) {
	all, revision, err := r.list(ctx)
	if err != nil {
		return "", err
	}
	var lostSites, lostTenants []uint32
	states, err := r.state(ctx)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	tenants := make(map[uint32]*tenant)
	plans := make(map[string]*serai.Plan)
	owners := make(map[string]*serai.Tenant)
	for _, o := range all {
		switch o := o.(type) {
		case *serai.Plan:
			plans[o.Meta.Name] = o
		case *serai.Tenant:
			owners[o.Meta.Name] = o
			t := r.tenantOf(o)
			if o.Status.UID != 0 {
				tenants[o.Status.UID] = t
			}
		case *serai.Site:
			r.siteOf(o)
		}
	}
	for _, s := range states {
		switch {
		case s.Tenant != nil:
			if t := tenants[s.Tenant.UID]; t != nil {
				t.held = s.Tenant
			} else {
				lostTenants = append(lostTenants, s.Tenant.UID)
			}
		case s.Site != nil:
			key, ok := r.numbers[s.Site.Site]
			if !ok {
				lostSites = append(lostSites, s.Site.Site)
				continue
			}
			m := r.sites[key]
			m.held = &held{hash: s.Site.Hash, launch: s.Site.Launch}
			m.phase = s.Site.Phase
			m.quiet = s.Site.Phase == "off"
			m.busy = s.Site.Phase == "running" || s.Site.Phase == "starting"
			m.pid = s.Site.PID
			if s.Site.Reload {
				m.askReload()
			}
			m.tasks = make(map[int64]*task, len(s.Site.Tasks))
			for _, t := range s.Site.Tasks {
				m.tasks[t.Task] = &task{pid: t.PID, ended: t.Ended}
			}
		}
	}
	for name, t := range owners { // sites that differ are queued below
		if m, p := r.tenants[name], plans[t.Spec.Plan]; m.held != nil && p != nil {
			m.print = printOf(t, p)
		}
	}
	records := r.firstRecords(all, plans, owners)
	running := make(map[uint32]int)
	for _, m := range r.sites {
		if m.busy && m.pid != 0 {
			running[m.number] = m.pid
		}
	}
	var todo []serai.Key
	for _, o := range all {
		if !r.inStep(o, owners) {
			todo = append(todo, o.Key())
		}
	}
	r.mu.Unlock()

	if err := r.routes.start(ctx, records); err != nil {
		return "", err
	}
	for number, pid := range running {
		r.join.started(ctx, number, pid, true)
	}
	r.dropOrphans(ctx, lostSites, lostTenants)
	r.queue.lazy(todo...)
	return revision, nil
}

// inStep reports whether a site is, in the store and in serai-priv, as a pass
// over it would leave it: with many sites a start has nothing to do. mu is held.
func (r *Reconciler) inStep(o serai.Resource, owners map[string]*serai.Tenant) bool {
	s, ok := o.(*serai.Site)
	if !ok || s.Meta.Deleted != nil || s.Status.ObservedGeneration != s.Meta.Generation ||
		!slices.Equal(s.Status.Claimed, s.Spec.Hosts) || s.Status.Serving != s.Status.Launch ||
		s.Status.Conditions.Get(serai.Loaded).Status != serai.True || s.Status.Conditions.Get(serai.Ready).Status != serai.True {
		return false
	}
	if len(s.Spec.Jobs)+len(s.Spec.Daemons)+len(s.Status.Jobs)+len(s.Status.Daemons) > 0 {
		return false // their times are to be set
	}
	t, m := owners[s.Meta.Tenant], r.sites[s.Key()]
	if t == nil || m.held == nil || len(m.asks) > 0 || closed(t, s) != "" || r.tenants[t.Meta.Name].held == nil {
		return false
	}
	l, err := engine.Launch(t, s)
	return err == nil && privsep.HashLaunch(l) == m.held.hash
}

// list is every object: plans, tenants, sites.
func (r *Reconciler) list(ctx context.Context) (all []serai.Resource, revision string, err error) {
	for _, kind := range []string{serai.KindPlan, serai.KindTenant, serai.KindSite} {
		some, at, err := r.store.List(ctx, kind, "")
		if err != nil {
			return nil, "", fmt.Errorf("list %ss: %w", kind, err)
		}
		if revision == "" { // the first: what the later lists had is seen twice
			revision = at
		}
		all = append(all, some...)
	}
	return all, revision, nil
}

// relist queues everything, what is gone included.
func (r *Reconciler) relist(ctx context.Context) (string, error) {
	all, revision, err := r.list(ctx)
	if err != nil {
		return "", err
	}
	for _, o := range all {
		r.queue.lazy(o.Key())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key := range r.sites {
		r.queue.lazy(key)
	}
	for name := range r.tenants {
		r.queue.lazy(serai.Key{Kind: serai.KindTenant, Name: name})
	}
	return revision, nil
}

func (r *Reconciler) state(ctx context.Context) ([]privsep.State, error) {
	var states []privsep.State
	err := r.mon.CallMany(ctx, privsep.OpState, nil, func(body json.RawMessage) error {
		var s privsep.State
		if err := json.Unmarshal(body, &s); err != nil {
			return err
		}
		states = append(states, s)
		return nil
	})
	return states, err
}

// firstRecords are the routes of what serai-priv has a listener for. The
// others are added when they have one.
func (r *Reconciler) firstRecords(all []serai.Resource, plans map[string]*serai.Plan, owners map[string]*serai.Tenant) []route.Record {
	var records []route.Record
	catalogue := make(map[serai.Key]serai.Resource)
	for _, o := range all {
		if key := o.Key(); key.Tenant == serai.CatalogueTenant || key.Name == serai.CatalogueTenant {
			catalogue[key] = o
		}
	}
	find := func(key serai.Key) (serai.Resource, error) { return catalogue[key], nil }
	for _, o := range all {
		switch o := o.(type) {
		case *serai.Tenant:
			if p := plans[o.Spec.Plan]; p != nil && o.Status.UID != 0 && o.Meta.Deleted == nil {
				records = append(records, route.Record{Tenant: tenantRoute(o, p)})
			}
		case *serai.Site:
			m, t := r.sites[o.Key()], owners[o.Meta.Tenant]
			if m.held == nil || t == nil || plans[t.Spec.Plan] == nil || o.Meta.Deleted != nil {
				continue
			}
			if s, err := siteRoute(t, plans[t.Spec.Plan], o, o.Status.Claimed, find); err == nil {
				records = append(records, route.Record{Site: s})
			}
		}
	}
	return records
}

// dropOrphans has serai-priv forget what the store does not know, beside the
// work on objects.
func (r *Reconciler) dropOrphans(ctx context.Context, sites, tenants []uint32) {
	if len(sites)+len(tenants) == 0 {
		return
	}
	r.aside.Go(func() {
		for _, n := range sites {
			r.log.Info("leftover site dropped", "site", n)
			r.askUntilDone(ctx, privsep.OpDropSite, privsep.SiteRef{Site: n})
		}
		for _, uid := range tenants {
			r.log.Info("leftover tenant dropped", "uid", uid)
			r.askUntilDone(ctx, privsep.OpDropTenant, privsep.TenantRef{UID: uid})
		}
	})
}
