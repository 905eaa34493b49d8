package reconcile

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// A task is a process of a job or daemon, as last heard. It is guarded by
// Reconciler.mu.
type task struct {
	ask    *privsep.Task      // still to be asked for
	pid    int                // once it is up
	ended  *privsep.TaskEvent // how
	ending string             // why it was asked to end
}

// runKey names a task.
type runKey struct {
	site   serai.Key
	number int64
}

// A wish is somebody who wants a job run now.
type wish struct {
	job    string
	answer chan<- wished
}

type wished struct {
	run serai.Run
	err error
}

const (
	runWorkers = 4                // tasks that are being started at once
	runLimit   = 90 * time.Second // longer than serai-priv waits for one to be up
	taskGrace  = 10 * time.Second // between SIGTERM and SIGKILL

	// A start costs us some milliseconds that no tenant is charged for. Each
	// tenant may have so many at once, and then one so often.
	paceBurst = 30 * time.Second
	paceEvery = time.Second
)

// RunJob starts a job of a site now, beside its schedule, and returns its run.
// Conflict where it runs already and may not overlap, or the site is stopped.
func (r *Reconciler) RunJob(ctx context.Context, key serai.Key, name string) (serai.Run, error) {
	answer := make(chan wished, 1)
	r.mu.Lock()
	m := r.sites[key]
	if m == nil {
		r.mu.Unlock()
		return serai.Run{}, serai.Errorf(serai.NotFound, "there is no site %s", key)
	}
	m.wishes = append(m.wishes, wish{name, answer})
	r.mu.Unlock()
	r.queue.add(key)
	select {
	case w := <-answer:
		return w.run, w.err
	case <-ctx.Done():
		return serai.Run{}, ctx.Err()
	}
}

// tasks does what is to be done now about the jobs and daemons of a site. The
// store has the number of a run before serai-priv has it, so that none is
// started twice; and how it ended before serai-priv forgets it.
func (j *job) tasks(ctx context.Context) error {
	st := &j.s.Status
	j.mu.Lock()
	idle := len(j.s.Spec.Jobs)+len(j.s.Spec.Daemons)+len(st.Jobs)+len(st.Daemons)+len(j.m.tasks)+len(j.m.wishes) == 0
	p := &taskPlan{s: j.s, now: now(), open: closed(j.t, j.s) == "", awake: j.m.phase == "running",
		loading: j.m.loading != 0 || st.Conditions.Get(serai.Loaded).Status == serai.Unknown,
		seen:    make(map[int64]task), wishes: j.m.wishes}
	if idle || j.m.held == nil {
		j.mu.Unlock()
		return nil
	}
	for n, t := range j.m.tasks {
		p.seen[n] = *t
	}
	j.m.daemons = len(j.s.Spec.Daemons) > 0
	j.mu.Unlock()

	p.make()
	if !reflect.DeepEqual(st, &j.before.Status) {
		if err := j.writeStatus(ctx, j.s); err != nil {
			return err
		}
		j.before = j.s.Clone().(*serai.Site)
	}
	j.mu.Lock()
	j.m.wishes = j.m.wishes[len(p.wishes):]
	for n, t := range p.start {
		if j.m.tasks == nil {
			j.m.tasks = make(map[int64]*task)
		}
		j.m.tasks[n] = &task{ask: t}
		j.runs.add(runKey{j.s.Key(), n})
	}
	for n, why := range p.end {
		j.endTask(ctx, j.s.Key(), j.m, n, why)
	}
	for _, n := range p.over {
		delete(j.m.tasks, n)
		j.insist(ctx, privsep.OpEndTask, privsep.EndTask{Site: j.m.number, Task: n})
	}
	j.mu.Unlock()
	for _, a := range p.answers {
		a.to <- a.wished
	}
	for _, e := range p.events {
		e.Tenant, e.Site = j.s.Meta.Tenant, j.s.Meta.Name
		j.journal.add(e)
	}
	j.clock.Set(j.s.Key(), p.wake)
	return nil
}

// endTask asks a task to end; mu is held. That it ended comes as an event.
func (r *Reconciler) endTask(ctx context.Context, key serai.Key, m *site, number int64, why string) {
	t := m.tasks[number]
	if t == nil || t.ending != "" || t.ended != nil {
		return
	}
	t.ending = why
	if t.ask != nil {
		t.ask, t.ended = nil, &privsep.TaskEvent{Time: now(), Message: "it was ended before it was up"}
		r.queue.add(key)
		return
	}
	r.insist(ctx, privsep.OpEndTask, privsep.EndTask{Site: m.number, Task: number, GraceMs: taskGrace.Milliseconds()})
}

// endTasks asks all tasks of a site to end, and reports whether any is left.
func (j *job) endTasks(ctx context.Context, why string) (some bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for n, t := range j.m.tasks {
		if t.ended == nil {
			j.endTask(ctx, j.s.Key(), j.m, n, why)
			some = true
		}
	}
	return some
}

// run asks for one task. It keeps no worker of objects waiting.
func (r *Reconciler) run(ctx context.Context, k runKey) (retry bool) {
	r.mu.Lock()
	m := r.sites[k.site]
	var t *task
	if m != nil {
		t = m.tasks[k.number]
	}
	if t == nil || t.ask == nil { // deleted or ended meanwhile
		r.mu.Unlock()
		return false
	}
	if owner := r.tenants[k.site.Tenant]; owner != nil && !owner.mayStart(time.Now()) {
		r.mu.Unlock()
		return true
	}
	ask := *t.ask
	r.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	var res privsep.TaskResult
	_, err := r.mon.Call(limited, privsep.OpRun, ask, &res)
	if ctx.Err() != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && serai.KindOf(err) == serai.Unavailable {
		r.log.Warn("task to be tried again", "site", k.site.String(), "cause", err)
		return true
	}
	t.ask, t.pid = nil, res.PID
	if err != nil && t.ended == nil {
		t.ended = &privsep.TaskEvent{Time: now(), Message: sentence(err)}
	}
	r.queue.add(k.site)
	return false
}

// mayStart counts a start of a tenant's, or says that it has to wait. mu is held.
func (t *tenant) mayStart(now time.Time) bool {
	if t.paid.Before(now) {
		t.paid = now
	}
	if t.paid.Sub(now) >= paceBurst {
		return false
	}
	t.paid = t.paid.Add(paceEvery)
	return true
}

// taskEnded takes note of how a task ended.
func (r *Reconciler) taskEnded(e privsep.TaskEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key, ok := r.numbers[e.Site]
	m := r.sites[key]
	if !ok || m == nil {
		return
	}
	t := m.tasks[e.Task]
	if t == nil {
		t = new(task)
		if m.tasks == nil {
			m.tasks = make(map[int64]*task)
		}
		m.tasks[e.Task] = t
	}
	t.ended = &e
	r.queue.add(key)
}

// insist asks serai-priv until it is done, beside everything else.
func (r *Reconciler) insist(ctx context.Context, op string, args any) {
	r.aside.Go(func() { r.askUntilDone(ctx, op, args) })
}

func (r *Reconciler) askUntilDone(ctx context.Context, op string, args any) {
	for tries := 0; ctx.Err() == nil; tries++ {
		_, err := r.mon.Call(ctx, op, args, nil)
		if err == nil || serai.KindOf(err) == serai.NotFound || ctx.Err() != nil {
			return
		}
		r.log.Warn("not done yet", "op", op, "args", fmt.Sprintf("%+v", args), "cause", err)
		select {
		case <-time.After(backOff(tries)):
		case <-ctx.Done():
		}
	}
}
