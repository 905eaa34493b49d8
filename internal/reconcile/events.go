package reconcile

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// The reasons of events. They are stable.
const (
	Started        = "Started"        // a site: a main process loaded and accepts
	Loaded         = "Loaded"         // a site: its code was loaded on wish
	NotLoaded      = "NotLoaded"      // a site: its code did not load; what ran goes on
	Failed         = "Failed"         // a site: it was to start and did not
	Exited         = "Exited"         // a site: its main process ended and should not have
	OutOfMemory    = "OutOfMemory"    // a site: the kernel killed a process for memory
	WorkerDied     = "WorkerDied"     // a site: a worker died in the middle of a request
	WorkerTimeout  = "WorkerTimeout"  // a site: a request took too long in its worker
	WorkerProtocol = "WorkerProtocol" // a site: a worker broke the protocol
	ListenerMade   = "ListenerMade"   // a site: its code had shut its listener down
	JobDone        = "JobDone"        // a site: a job ended with exit status 0
	JobFailed      = "JobFailed"      // a site: a job ended otherwise, or was not started
	JobEnded       = "JobEnded"       // a site: a job was ended with its site
	JobsMissed     = "JobsMissed"     // a site: times of a job passed without a run
	DaemonEnded    = "DaemonEnded"    // a site: a daemon ended by itself
	AccountReady   = "AccountReady"   // a tenant
	TenantRemoved  = "TenantRemoved"  // a tenant
	PlanChanged    = "PlanChanged"    // a tenant: other limits took effect
	ZygoteUp       = "ZygoteUp"
	ZygoteDown     = "ZygoteDown"
	ModulesMissing = "ModulesMissing" // a zygote: modules of the configuration are not installed
	Upgraded       = "Upgraded"       // serai-priv
	UpgradeRefused = "UpgradeRefused" // serai-priv goes on as it was
)

// hear follows the events of serai-priv until it is gone. Those that come
// before what it holds is known wait.
func (r *Reconciler) hear(ctx context.Context) {
	select {
	case <-r.synced:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case e, ok := <-r.mon.Events():
			if !ok {
				return
			}
			if err := r.heard(ctx, e); err != nil {
				r.log.Warn("event not understood", "event", e.Op, "cause", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (r *Reconciler) heard(ctx context.Context, e privsep.Event) error {
	for _, f := range e.Files {
		f.Close()
	}
	switch e.Op {
	case privsep.EvStarted, privsep.EvFailed, privsep.EvExited:
		var s privsep.SiteEvent
		if err := e.Decode(&s); err != nil {
			return err
		}
		r.siteEvent(ctx, e.Op, s)
	case privsep.EvTask:
		var t privsep.TaskEvent
		if err := e.Decode(&t); err != nil {
			return err
		}
		r.taskEnded(t)
	case privsep.EvReload:
		var s privsep.SiteRef
		if err := e.Decode(&s); err != nil {
			return err
		}
		r.reloadAsked(s.Site)
	case privsep.EvLogs, privsep.EvListener:
		var s privsep.SiteRef
		if err := e.Decode(&s); err != nil {
			return err
		}
		if e.Op == privsep.EvLogs {
			r.fetchLog(ctx, s.Site)
		} else if tenant, name, ok := r.nameOf(s.Site); ok {
			r.journal.add(serai.Event{Severity: "warning", Reason: ListenerMade, Tenant: tenant, Site: name,
				Message: fmt.Sprintf("the code of %s/%s had shut its listener down: it was made anew", tenant, name)})
		}
	case privsep.EvZygote:
		var z privsep.ZygoteEvent
		if err := e.Decode(&z); err != nil {
			return err
		}
		r.zygote(z)
	case privsep.EvUpgrade:
		var u privsep.UpgradeEvent
		if err := e.Decode(&u); err != nil {
			return err
		}
		ev := serai.Event{Severity: "info", Reason: Upgraded, Message: "serai-priv runs a new binary; nothing was stopped"}
		if !u.OK {
			ev.Severity, ev.Reason = "error", UpgradeRefused
			ev.Message = "serai-priv goes on with its old binary: " + u.Message
		}
		r.journal.add(ev)
	}
	return nil
}

// siteEvent takes note of what became of a site's main process.
func (r *Reconciler) siteEvent(ctx context.Context, op string, e privsep.SiteEvent) {
	r.mu.Lock()
	key, ok := r.numbers[e.Site]
	m := r.sites[key]
	if !ok || m == nil {
		r.mu.Unlock()
		return
	}
	shut := m.quiet
	old := m.held != nil && e.Launch < m.held.launch
	var ev *serai.Event
	switch op {
	case privsep.EvStarted:
		m.phase, m.pid = "running", e.PID
		if m.loading == 0 {
			r.noteOutcome(key, m, e, true)
		}
		ev = &serai.Event{Severity: "info", Reason: Started, Message: fmt.Sprintf("%s was started", key),
			Fields: map[string]string{"millis": fmt.Sprint(e.Millis), "pid": fmt.Sprint(e.PID)}}
	case privsep.EvFailed:
		if m.loading == 0 { // else the launch's own answer tells
			m.phase = "backoff"
			if !r.noteOutcome(key, m, e, false) {
				break
			}
			ev = &serai.Event{Severity: "error", Reason: Failed, Message: fmt.Sprintf("%s could not be started: %s", key, e.Message),
				Fields: map[string]string{"retryMs": fmt.Sprint(e.RetryMs)}}
		}
	case privsep.EvExited:
		if m.pid == e.PID {
			m.phase, m.pid = "asleep", 0
		}
		status := unix.WaitStatus(e.Status)
		if bad := status != 0; bad && !shut && !old {
			ev = &serai.Event{Severity: "warning", Reason: Exited, Message: fmt.Sprintf("the main process of %s ended: %s", key, ending(status)),
				Fields: map[string]string{"pid": fmt.Sprint(e.PID), "status": fmt.Sprint(e.Status)}}
		}
	}
	if m.daemons { // some may run only while it is awake
		r.queue.add(key)
	}
	r.mu.Unlock()
	if ev != nil {
		ev.Tenant, ev.Site = key.Tenant, key.Name
		r.journal.add(*ev)
	}
	switch op {
	case privsep.EvStarted:
		r.join.started(ctx, e.Site, e.PID, false)
	case privsep.EvExited:
		r.join.exited(ctx, e)
	}
}

// noteOutcome takes a start by a knock for a launch, and reports whether it is
// one: a launch on wish has told of itself. mu is held.
func (r *Reconciler) noteOutcome(key serai.Key, m *site, e privsep.SiteEvent, loaded bool) bool {
	out := &result{launch: e.Launch}
	out.Loaded, out.Message = loaded, e.Message
	last := m.outcome
	if last == nil {
		last = m.told
	}
	if last == nil || last.launch != out.launch || last.Loaded != loaded || last.Message != out.Message {
		m.outcome = out
		r.queue.add(key)
		return true
	}
	first := last.asked
	last.asked = false
	return !first
}

// ending says how a process ended.
func ending(s unix.WaitStatus) string {
	if s.Signaled() {
		return fmt.Sprintf("killed by signal %d (%s)", int(s.Signal()), s.Signal())
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// zygote keeps what is known of a zygote.
func (r *Reconciler) zygote(z privsep.ZygoteEvent) {
	r.mu.Lock()
	was, known := r.zygotes[z.Name]
	r.zygotes[z.Name] = z
	r.mu.Unlock()
	fields := map[string]string{"pid": fmt.Sprint(z.PID)}
	switch {
	case z.State == "down":
		e := serai.Event{Severity: "error", Reason: ZygoteDown, Fields: fields,
			Message: fmt.Sprintf("the zygote %s is down: sites that need it cannot be started", z.Name)}
		if z.Message != "" {
			e.Message += ": " + z.Message
		}
		r.journal.add(e)
	case known && was.State == "down":
		r.journal.add(serai.Event{Severity: "info", Reason: ZygoteUp, Fields: fields, Message: fmt.Sprintf("the zygote %s is up again", z.Name)})
	}
	if missing := strings.Join(z.Missing, ", "); missing != "" && missing != strings.Join(was.Missing, ", ") {
		r.journal.add(serai.Event{Severity: "warning", Reason: ModulesMissing, Fields: fields,
			Message: fmt.Sprintf("the zygote %s lacks Perl modules that are not installed: %s", z.Name, missing)})
	}
}

// brokeRequest takes a request that the proxy had to give up.
func (r *Reconciler) brokeRequest(ctx context.Context, b route.Broken) {
	if b.Cause == "died" {
		r.join.broke(ctx, b)
		return
	}
	tenant, name, ok := r.nameOf(b.Site)
	if !ok {
		return
	}
	e := serai.Event{Severity: "error", Reason: WorkerProtocol, Tenant: tenant, Site: name, Fields: map[string]string{}}
	what := fmt.Sprintf("%s %s", printable(b.Method, 20), printable(b.Path, 200))
	e.Message = fmt.Sprintf("a worker of %s/%s broke the protocol while serving %s: %s", tenant, name, what, printable(b.Detail, 200))
	if b.Cause == "timeout" {
		e.Reason = WorkerTimeout
		e.Message = fmt.Sprintf("a worker of %s/%s took too long to serve %s", tenant, name, what)
		if b.State != "" {
			silent := fmt.Sprintf("did not answer within %v: %s", privsep.AskTime, doing(b.State, b.Wait))
			e.Message += " and " + silent
			r.logs.Tell(serai.Key{Kind: serai.KindSite, Tenant: tenant, Name: name},
				fmt.Sprintf("Serai: request %s took longer than workers.timeout, worker %d %s; it was killed: %s", b.Request, b.PID, silent, what))
		}
	}
	addRequest(e.Fields, b)
	r.journal.add(e)
}

// doing says what a process does, in the kernel's words.
func doing(state, wait string) string {
	states := map[string]string{"R": "running", "S": "sleeping", "D": "in uninterruptible sleep", "T": "stopped", "t": "traced", "Z": "ended"}
	text := "state " + printable(state, 10)
	if word := states[state]; word != "" {
		text += " (" + word + ")"
	}
	if wait == "" || wait == "0" {
		return text + ", in no wait channel"
	}
	return text + ", waits in " + printable(wait, 100)
}

// fetchLog asks for a site's log pipe, beside everything else.
func (r *Reconciler) fetchLog(ctx context.Context, number uint32) {
	r.mu.Lock()
	key, ok := r.numbers[number]
	r.mu.Unlock()
	if !ok {
		return
	}
	r.aside.Go(func() {
		files, err := r.mon.Call(ctx, privsep.OpLogs, privsep.SiteRef{Site: number}, nil)
		if err != nil {
			if ctx.Err() == nil && serai.KindOf(err) != serai.Unavailable && serai.KindOf(err) != serai.NotFound {
				r.log.Warn("log of a site not read", "site", key.String(), "cause", err)
			}
			return
		}
		for _, f := range files {
			r.logs.Keep(key, f)
		}
	})
}
