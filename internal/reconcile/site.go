package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/engine"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// site is what was seen of one site. It is guarded by Reconciler.mu.
type site struct {
	number   uint32
	revision string // of the status written last
	held     *held  // the record in serai-priv; nil where there is none
	quiet    bool   // nothing of it runs since it was shut
	busy     bool   // something of it ran when seraid started
	phase    string // as last heard
	pid      int    // of the main process, as last heard

	loading int64   // launch under way
	outcome *result // of a launch; not in the store yet
	told    *result // the outcome that is in the store
	trouble string  // why the launch is tried again and again

	asks    []chan<- result // who wants its code loaded once more
	waiting []asked         // who waits for a launch that was counted

	tasks   map[int64]*task // of its jobs and daemons, by number of the run
	wishes  []wish          // who wants a job run
	daemons bool            // it has some
}

// held is a launch record as serai-priv has it.
type held struct {
	hash   string
	launch int64
	ours   bool // given by this seraid, not by an earlier one
}

// asked is somebody who waits for a launch or a later one.
type asked struct {
	launch int64
	answer chan<- result
}

// result is how a launch ended.
type result struct {
	privsep.LaunchResult
	launch int64
	err    error
	asked  bool // told by the launch itself: serai-priv's event is still to come
}

// job is one pass over a site.
type job struct {
	*Reconciler
	m      *site
	s      *serai.Site
	before *serai.Site // as read
	t      *serai.Tenant
	plan   *serai.Plan
	moved  bool     // the hosts are not those that the status names
	hosts  []string // of the specification, that the site holds
	taken  []string // of the specification, that are somebody else's
	holder serai.Key
	rec    privsep.Launch
	out    *result // how a launch ended, as learnt
}

// siteOf is the memory of a site; mu is held.
func (r *Reconciler) siteOf(s *serai.Site) *site {
	m := r.sites[s.Key()]
	number := uint32(s.Meta.ID)
	if m == nil || m.number != number {
		m = &site{number: number}
		r.sites[s.Key()] = m
		r.numbers[number] = s.Key()
	}
	return m
}

func (r *Reconciler) site(ctx context.Context, key serai.Key) error {
	o, err := r.store.Get(ctx, key)
	if serai.KindOf(err) == serai.NotFound && err != nil {
		return r.lostSite(ctx, key)
	}
	if err != nil {
		return err
	}
	s := o.(*serai.Site)
	r.mu.Lock()
	m := r.siteOf(s)
	r.mu.Unlock()
	j := &job{Reconciler: r, m: m, s: s}
	if s.Meta.Deleted == nil && !slices.Contains(s.Meta.Finalizers, SiteFinalizer) {
		s.Meta.Finalizers = append(s.Meta.Finalizers, SiteFinalizer)
		if o, err = r.store.Update(ctx, s); err != nil {
			return err
		}
		j.s = o.(*serai.Site)
	}
	j.before = j.s.Clone().(*serai.Site)
	if s.Meta.Deleted != nil {
		return j.drop(ctx)
	}
	if why, err := j.owner(ctx); err != nil {
		return err
	} else if why != "" {
		return j.wait(ctx, why)
	}
	if err := j.claim(ctx); err != nil {
		return err
	}
	if err := j.settle(ctx); err != nil {
		j.fail(err)
		return err
	}
	if err := j.tasks(ctx); err != nil {
		return err
	}
	if err := j.release(ctx); err != nil {
		return err
	}
	return j.report(ctx)
}

// owner reads the site's tenant and plan. why is what the site waits for.
func (j *job) owner(ctx context.Context) (why string, err error) {
	name := j.s.Meta.Tenant
	o, err := j.store.Get(ctx, serai.Key{Kind: serai.KindTenant, Name: name})
	if err != nil && serai.KindOf(err) == serai.NotFound {
		return fmt.Sprintf("the tenant %s does not exist", name), nil
	}
	if err != nil {
		return "", err
	}
	j.t = o.(*serai.Tenant)
	j.mu.Lock()
	t := j.tenantOf(j.t)
	ready := t.held != nil
	j.mu.Unlock()
	if j.t.Status.UID == 0 || !ready {
		return fmt.Sprintf("the account of %s is not ready yet", name), nil
	}
	o, err = j.store.Get(ctx, serai.Key{Kind: serai.KindPlan, Name: j.t.Spec.Plan})
	if err != nil && serai.KindOf(err) == serai.NotFound {
		return fmt.Sprintf("the plan %s does not exist", j.t.Spec.Plan), nil
	}
	if err != nil {
		return "", err
	}
	j.plan = o.(*serai.Plan)
	return "", nil
}

// wait says what a site waits for; a change of the tenant queues it again.
func (j *job) wait(ctx context.Context, why string) error {
	c := serai.Condition{Type: serai.Ready, Status: serai.Unknown, Reason: "Waiting", Message: why}
	if !j.s.Status.Conditions.Set(c, now()) {
		return nil
	}
	return j.writeStatus(ctx, j.s)
}

// settle follows the table until nothing is left that can be done now.
func (j *job) settle(ctx context.Context) error {
	var err error
	if j.rec, err = engine.Launch(j.t, j.s); err != nil {
		return err
	}
	for range 10 {
		j.learn()
		w := j.want()
		if w == shut {
			j.fail(serai.Errorf(serai.Conflict, "%s: %s", j.s.Key(), closed(j.t, j.s)))
		}
		j.rec.Launch, j.rec.Off = j.s.Status.Launch, w == shut
		did, err := j.act(ctx, decide[w][j.look()])
		if err != nil {
			return err
		}
		if err := j.route(ctx); err != nil {
			return err
		}
		if !did {
			return nil
		}
	}
	return fmt.Errorf("settle site %s: the table of actions does not end", j.s.Key())
}

// want is what is wanted of a site that is not deleted.
func (j *job) want() want {
	if closed(j.t, j.s) != "" {
		return shut
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.m.asks) > 0 {
		return anew
	}
	return open
}

// learn takes over how a launch ended.
func (j *job) learn() {
	j.mu.Lock()
	out := j.m.outcome
	j.mu.Unlock()
	j.out = out
	st := &j.s.Status
	if out == nil || closed(j.t, j.s) != "" {
		return
	}
	if out.Loaded && out.launch > st.Serving {
		st.Serving = out.launch
	}
	if out.launch != st.Launch {
		return
	}
	c := serai.Condition{Type: serai.Loaded, Status: serai.True}
	if !out.Loaded {
		c.Status, c.Reason, c.Message = serai.False, "NotLoaded", printable(out.Message, maxMessage)
	}
	st.Conditions.Set(c, now())
}

// look compares the record that is wanted with what was seen.
func (j *job) look() seen {
	j.mu.Lock()
	defer j.mu.Unlock()
	m, st := j.m, &j.s.Status
	switch {
	case st.Launch == 0, m.held == nil && st.ObservedGeneration != j.s.Meta.Generation:
		return fresh
	case m.held == nil:
		return absent
	case m.held.hash != privsep.HashLaunch(j.rec):
		if sameButState(m.held, j.rec) {
			return turned
		}
		return other
	case j.rec.Off && !m.quiet:
		return lingers
	case m.loading != 0:
		return loading
	}
	switch loaded := st.Conditions.Get(serai.Loaded).Status; {
	case loaded == serai.True && st.Serving == st.Launch:
		return serving
	case loaded == serai.False:
		return failed
	case m.busy && !m.held.ours:
		return astray
	}
	return unproven
}

// sameButState reports whether a record differs in its number or in being off
// alone: no process would see the difference.
func sameButState(h *held, rec privsep.Launch) bool {
	rec.Launch = h.launch
	for _, rec.Off = range []bool{false, true} {
		if privsep.HashLaunch(rec) == h.hash {
			return true
		}
	}
	return false
}

// act does one thing and reports whether what is seen has changed by it.
func (j *job) act(ctx context.Context, a action) (did bool, err error) {
	switch a {
	case renew:
		if err := j.renew(ctx); err != nil {
			return false, err
		}
		return true, j.set(ctx)
	case set:
		return true, j.set(ctx)
	case load:
		j.mu.Lock()
		j.m.loading = j.s.Status.Launch
		j.mu.Unlock()
		j.launches.add(j.s.Key())
	case stop:
		if j.endTasks(ctx, "the site was stopped") {
			return false, nil // when they have ended it is looked at again
		}
		if _, err := j.mon.Call(ctx, privsep.OpStop, privsep.SiteRef{Site: j.rec.Site}, nil); err != nil {
			return false, fmt.Errorf("stop site %s: %w", j.s.Key(), err)
		}
		j.mu.Lock()
		j.m.quiet, j.m.busy, j.m.loading, j.m.trouble = true, false, 0, ""
		j.mu.Unlock()
		return true, nil
	}
	return false, nil
}

// renew counts a launch. The store has the number before serai-priv has it.
func (j *job) renew(ctx context.Context) error {
	j.mu.Lock()
	asks := j.m.asks
	st := &j.s.Status
	if j.m.held != nil {
		st.Launch = max(st.Launch, j.m.held.launch)
	}
	j.mu.Unlock()
	st.Launch++
	st.ObservedGeneration = j.s.Meta.Generation
	st.Conditions.Set(serai.Condition{Type: serai.Loaded, Status: serai.Unknown, Reason: "Loading"}, now())
	st.Conditions.Set(serai.Condition{Type: serai.Ready, Status: serai.Unknown, Reason: "Loading"}, now())
	j.reportTaken() // an older generation's would be taken for this one's
	if err := j.writeStatus(ctx, j.s); err != nil {
		return err
	}
	j.before = j.s.Clone().(*serai.Site)
	j.rec.Launch = st.Launch
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range asks {
		j.m.waiting = append(j.m.waiting, asked{st.Launch, c})
	}
	j.m.asks = j.m.asks[len(asks):]
	j.m.trouble = ""
	return nil
}

// set gives the record to serai-priv.
func (j *job) set(ctx context.Context) error {
	if _, err := j.mon.Call(ctx, privsep.OpSetSite, j.rec, nil); err != nil {
		return fmt.Errorf("set site %s: %w", j.s.Key(), err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.m.held = &held{hash: privsep.HashLaunch(j.rec), launch: j.rec.Launch, ours: true}
	if j.rec.Off {
		j.m.quiet = false
	}
	return nil
}

// route tells the proxy, where serai-priv has the site's listener.
func (j *job) route(ctx context.Context) error {
	j.mu.Lock()
	ready := j.m.held != nil
	j.mu.Unlock()
	if !ready {
		return nil
	}
	rec, err := siteRoute(j.t, j.plan, j.s, j.hosts, j.stored(ctx))
	if err != nil {
		return err
	}
	// Code that runs on because newer code did not load goes on to answer
	// what it answered.
	if old := j.routes.site(rec.Number); old != nil && rec.Launch == old.Launch && rec.Launch != j.s.Status.Launch {
		rec.Prefixes = old.Prefixes
	}
	return j.routes.put(ctx, route.Record{Site: rec})
}

// drop takes a deleted site out of everything.
func (j *job) drop(ctx context.Context) error {
	number := j.m.number
	if err := j.routes.dropSite(ctx, number); err != nil {
		return err
	}
	_, err := j.mon.Call(ctx, privsep.OpDropSite, privsep.SiteRef{Site: number}, nil)
	if err != nil && serai.KindOf(err) != serai.NotFound {
		return fmt.Errorf("drop site %s: %w", j.s.Key(), err)
	}
	j.mu.Lock()
	j.m.held = nil
	j.mu.Unlock()
	hosts, err := j.store.Claims(ctx, j.s.Key())
	if err != nil {
		return err
	}
	if j.s.Spec.Catalogue != nil {
		if err := j.tellMounts(ctx, j.s.Key()); err != nil {
			return err
		}
	}
	j.s.Meta.Finalizers = slices.DeleteFunc(j.s.Meta.Finalizers, func(f string) bool { return f == SiteFinalizer })
	if _, err := j.store.Update(ctx, j.s); err != nil && serai.KindOf(err) != serai.NotFound {
		return err
	}
	j.forget(j.s.Key())
	j.freed(hosts)
	return nil
}

// lostSite clears up after a site that went without its finalizer.
func (r *Reconciler) lostSite(ctx context.Context, key serai.Key) error {
	r.mu.Lock()
	m := r.sites[key]
	r.mu.Unlock()
	if m == nil {
		return nil
	}
	if err := r.routes.dropSite(ctx, m.number); err != nil {
		return err
	}
	if m.held != nil {
		_, err := r.mon.Call(ctx, privsep.OpDropSite, privsep.SiteRef{Site: m.number}, nil)
		if err != nil && serai.KindOf(err) != serai.NotFound {
			return fmt.Errorf("drop site %s: %w", key, err)
		}
	}
	r.forget(key)
	return nil
}

// forget ends the memory of a site, and tells who waits for it.
func (r *Reconciler) forget(key serai.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.sites[key]
	if m == nil {
		return
	}
	m.fail(serai.Errorf(serai.NotFound, "there is no site %s", key))
	r.clock.Set(key, time.Time{})
	delete(r.sites, key)
	delete(r.numbers, m.number)
	for host, keys := range r.wishes {
		if keys[key] {
			delete(keys, key)
			if len(keys) == 0 {
				delete(r.wishes, host)
			}
		}
	}
}
