package reconcile

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/manifest"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
	"serai.dev/serai/internal/samepage"
)

// tenant is what was seen of one tenant. It is guarded by Reconciler.mu.
type tenant struct {
	revision string          // of the status written last
	held     *privsep.Tenant // the record in serai-priv; nil where there is none
	plan     string
	planned  int64     // generation of the plan that is in force
	leaving  bool      // its sites go first
	print    string    // all that its sites depend on
	paid     time.Time // see mayStart
}

// tenantOf is the memory of a tenant; mu is held.
func (r *Reconciler) tenantOf(t *serai.Tenant) *tenant {
	m := r.tenants[t.Meta.Name]
	if m == nil {
		m = new(tenant)
		r.tenants[t.Meta.Name] = m
	}
	m.plan = t.Spec.Plan
	m.leaving = t.Meta.Deleted != nil
	return m
}

func (r *Reconciler) tenant(ctx context.Context, key serai.Key) error {
	o, err := r.store.Get(ctx, key)
	if err != nil && serai.KindOf(err) == serai.NotFound {
		return r.lostTenant(ctx, key)
	}
	if err != nil {
		return err
	}
	t := o.(*serai.Tenant)
	r.mu.Lock()
	m := r.tenantOf(t)
	r.mu.Unlock()
	if t.Meta.Deleted != nil {
		return r.dropTenant(ctx, t, m)
	}
	if !slices.Contains(t.Meta.Finalizers, AccountFinalizer) {
		t.Meta.Finalizers = append(t.Meta.Finalizers, AccountFinalizer)
		if o, err = r.store.Update(ctx, t); err != nil {
			return err
		}
		t = o.(*serai.Tenant)
	}
	before := t.Clone().(*serai.Tenant)
	o, err = r.store.Get(ctx, serai.Key{Kind: serai.KindPlan, Name: t.Spec.Plan})
	if err != nil && serai.KindOf(err) == serai.NotFound {
		r.mu.Lock()
		m.print = "" // its sites wait for the plan too
		r.mu.Unlock()
		return serai.Errorf(serai.Unavailable, "the plan %s does not exist", t.Spec.Plan)
	}
	if err != nil {
		return err
	}
	plan := o.(*serai.Plan)
	if err := r.setTenant(ctx, t, m, plan); err != nil {
		return err
	}
	if err := r.routes.put(ctx, route.Record{Tenant: tenantRoute(t, plan)}); err != nil {
		return err
	}
	r.mu.Lock()
	m.planned = plan.Meta.Generation
	r.mu.Unlock()
	if plan.Status.ObservedGeneration < plan.Meta.Generation {
		r.queue.add(plan.Key()) // it waits for its tenants
	}
	t.Status.ObservedGeneration = t.Meta.Generation
	t.Status.Enforced = manifest.NotEnforced(t)
	t.Status.Conditions.Set(serai.Condition{Type: serai.Ready, Status: serai.True}, now())
	if !reflect.DeepEqual(t.Status, before.Status) {
		if err := r.writeStatus(ctx, t); err != nil {
			return err
		}
	}
	return r.tellSites(ctx, t, m, plan)
}

// setTenant sees to the account, then to the limits, where serai-priv has
// others.
func (r *Reconciler) setTenant(ctx context.Context, t *serai.Tenant, m *tenant, p *serai.Plan) error {
	fresh := t.Status.UID == 0
	if fresh {
		if err := r.account(ctx, t); err != nil {
			return err
		}
	}
	want := privsep.Tenant{
		UID: t.Status.UID, Memory: int64(p.Spec.Memory), CPU: int64(p.Spec.CPU), Processes: p.Spec.Processes,
		Merge: p.Spec.Merge,
	}
	if m.held != nil && *m.held == want {
		return nil
	}
	_, err := r.mon.Call(ctx, privsep.OpSetTenant, want, nil)
	if err != nil && serai.KindOf(err) == serai.NotFound && !fresh && t.Spec.Account.Create {
		// The account went while nobody looked: a restored state directory.
		if err := r.account(ctx, t); err != nil {
			return err
		}
		_, err = r.mon.Call(ctx, privsep.OpSetTenant, want, nil)
	}
	if err != nil {
		return fmt.Errorf("set tenant %s: %w", t.Meta.Name, err)
	}
	r.mu.Lock()
	changed := m.held != nil
	m.held = &want
	r.mu.Unlock()
	if changed {
		r.journal.add(serai.Event{Severity: "info", Reason: PlanChanged, Tenant: t.Meta.Name,
			Message: fmt.Sprintf("the limits of %s are now %s of memory, %s CPU, %d processes", t.Meta.Name, p.Spec.Memory, p.Spec.CPU, p.Spec.Processes)})
	}
	return nil
}

// account makes or finds the tenant's account.
func (r *Reconciler) account(ctx context.Context, t *serai.Tenant) error {
	var info privsep.AccountInfo
	var err error
	if name := t.Spec.Account.Adopt; name != "" {
		_, err = r.mon.Call(ctx, privsep.OpLookupAccount, privsep.LookupAccount{Name: name}, &info)
		if err == nil {
			err = r.alone(ctx, t, info)
		}
	} else {
		_, err = r.mon.Call(ctx, privsep.OpCreateAccount, privsep.CreateAccount{UID: uint32(t.Meta.ID), Name: t.Meta.Name}, &info)
	}
	if err != nil {
		return fmt.Errorf("make account of %s: %w", t.Meta.Name, err)
	}
	t.Status.UID, t.Status.Account, t.Status.Home = info.UID, info.Name, info.Home
	verb := "was created"
	if t.Spec.Account.Adopt != "" {
		verb = "was adopted"
	}
	r.journal.add(serai.Event{Severity: "info", Reason: AccountReady, Tenant: t.Meta.Name,
		Message: fmt.Sprintf("the account %s of %s %s", info.Name, t.Meta.Name, verb),
		Fields:  map[string]string{"uid": fmt.Sprint(info.UID), "home": info.Home}})
	return nil
}

// alone refuses an account that is another tenant's already.
func (r *Reconciler) alone(ctx context.Context, t *serai.Tenant, info privsep.AccountInfo) error {
	all, _, err := r.store.List(ctx, serai.KindTenant, "")
	if err != nil {
		return err
	}
	for _, o := range all {
		if u := o.(*serai.Tenant); u.Status.UID == info.UID && u.Meta.Name != t.Meta.Name {
			return serai.Errorf(serai.Invalid, "the account %s is the tenant %s's already", info.Name, u.Meta.Name)
		}
	}
	return nil
}

// tellSites queues the tenant's sites where something they depend on changed.
func (r *Reconciler) tellSites(ctx context.Context, t *serai.Tenant, m *tenant, p *serai.Plan) error {
	text := printOf(t, p)
	r.mu.Lock()
	was := m.print
	r.mu.Unlock()
	if was == text {
		return nil
	}
	sites, _, err := r.store.List(ctx, serai.KindSite, t.Meta.Name)
	if err != nil {
		return fmt.Errorf("list sites of %s: %w", t.Meta.Name, err)
	}
	for _, s := range sites { // many, perhaps: changes of one site go before
		r.queue.lazy(s.Key())
	}
	r.mu.Lock()
	m.print = text
	r.mu.Unlock()
	return nil
}

// printOf is all of a tenant and its plan that its sites depend on.
func printOf(t *serai.Tenant, p *serai.Plan) string {
	return fmt.Sprint(t.Status.UID, t.Spec.Suspended, t.Spec.Plan, p.Spec.Queue, p.Spec.Body, p.Spec.Reply)
}

// dropTenant removes a tenant: its sites, its processes, its account, its logs.
func (r *Reconciler) dropTenant(ctx context.Context, t *serai.Tenant, m *tenant) error {
	name := t.Meta.Name
	sites, _, err := r.store.List(ctx, serai.KindSite, name)
	if err != nil {
		return fmt.Errorf("list sites of %s: %w", name, err)
	}
	for _, s := range sites {
		if s.GetMeta().Deleted != nil {
			continue
		}
		if err := r.store.Delete(ctx, s.Key(), ""); err != nil && serai.KindOf(err) != serai.NotFound {
			return fmt.Errorf("delete site %s: %w", s.Key(), err)
		}
	}
	if len(sites) > 0 {
		return nil // the last one that goes queues the tenant again
	}
	purge := slices.Contains(t.Meta.Finalizers, PurgeFinalizer)
	if uid := t.Status.UID; uid != 0 {
		if err := r.endTenant(ctx, uid); err != nil {
			return err
		}
		if t.Spec.Account.Create {
			_, err := r.mon.Call(ctx, privsep.OpRemoveAccount, privsep.RemoveAccount{UID: uid, Purge: purge}, nil)
			if err != nil && serai.KindOf(err) != serai.NotFound {
				return fmt.Errorf("remove account of %s: %w", name, err)
			}
		}
	}
	if err := r.logs.Remove(name, uint32(t.Meta.ID), purge); err != nil {
		return fmt.Errorf("remove logs of %s: %w", name, err)
	}
	t.Meta.Finalizers = slices.DeleteFunc(t.Meta.Finalizers, func(f string) bool {
		return f == AccountFinalizer || f == PurgeFinalizer
	})
	if _, err := r.store.Update(ctx, t); err != nil && serai.KindOf(err) != serai.NotFound {
		return err
	}
	home := "its home was kept"
	if purge {
		home = "its home is gone too"
	}
	r.journal.add(serai.Event{Severity: "info", Reason: TenantRemoved, Tenant: name,
		Message: fmt.Sprintf("the tenant %s was removed; %s", name, home)})
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tenants, name)
	return nil
}

// endTenant takes a tenant from the proxy and from serai-priv.
func (r *Reconciler) endTenant(ctx context.Context, uid uint32) error {
	if err := r.routes.forgetTenant(ctx, uid); err != nil {
		return err
	}
	_, err := r.mon.Call(ctx, privsep.OpDropTenant, privsep.TenantRef{UID: uid}, nil)
	if err != nil && serai.KindOf(err) != serai.NotFound {
		return fmt.Errorf("drop tenant %d: %w", uid, err)
	}
	return nil
}

// lostTenant clears up after a tenant that went without its finalizer.
func (r *Reconciler) lostTenant(ctx context.Context, key serai.Key) error {
	r.mu.Lock()
	m := r.tenants[key.Name]
	r.mu.Unlock()
	if m == nil {
		return nil
	}
	if m.held != nil {
		if err := r.endTenant(ctx, m.held.UID); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tenants, key.Name)
	return nil
}

// plan says when a plan is in force for all its tenants, and what of it is
// kept but not enforced yet.
func (r *Reconciler) plan(ctx context.Context, key serai.Key) error {
	o, err := r.store.Get(ctx, key)
	if err != nil && serai.KindOf(err) == serai.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	p := o.(*serai.Plan)
	before := p.Clone().(*serai.Plan)
	p.Status.Enforced = manifest.NotEnforced(p)
	ready := serai.Condition{Type: serai.Ready, Status: serai.True}
	if p.Status.ObservedGeneration < p.Meta.Generation {
		if n := r.behind(p); n > 0 {
			ready.Status, ready.Reason = serai.Unknown, "Waiting"
			ready.Message = fmt.Sprintf("%d of its tenants still have the limits of before", n)
		} else {
			p.Status.ObservedGeneration = p.Meta.Generation
		}
	}
	p.Status.Conditions.Set(ready, now())
	if p.Spec.Merge {
		p.Status.Conditions.Set(merging(samepage.Missing()), now())
	} else {
		p.Status.Conditions.Remove(serai.Merging)
	}
	if reflect.DeepEqual(p.Status, before.Status) {
		return nil
	}
	return r.writeStatus(ctx, p)
}

// merging is the condition of a plan with merge.
func merging(missing string) serai.Condition {
	if missing != "" {
		return serai.Condition{Type: serai.Merging, Status: serai.False, Reason: "NotHere", Message: missing}
	}
	return serai.Condition{Type: serai.Merging, Status: serai.True}
}

// behind is how many tenants have limits of an older generation of their plan.
func (r *Reconciler) behind(p *serai.Plan) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.tenants {
		if m.plan == p.Meta.Name && m.held != nil && !m.leaving && m.planned < p.Meta.Generation {
			n++
		}
	}
	return n
}
