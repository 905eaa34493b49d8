package reconcile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/engine"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/schedule"
)

const (
	punctual   = time.Minute   // a run may be so late: seraid was started anew, or had much to do
	setBack    = 3 * time.Hour // a clock that was set back by more begins anew, as cron does
	maxOverlap = 10            // runs of a job at once
	healthy    = time.Minute   // a daemon that ran so long did not fail at once
)

// A taskPlan is what is to be done about the jobs and daemons of a site: made
// of the specification, the status and what was seen, without doing anything.
// The status is changed to what it will be.
type taskPlan struct {
	s       *serai.Site
	now     time.Time
	open    bool // the site is neither stopped nor suspended
	awake   bool // its code is loaded
	loading bool // its code is being loaded, or is about to be
	seen    map[int64]task
	wishes  []wish

	start   map[int64]*privsep.Task
	end     map[int64]string // why
	over    []int64          // the status tells how they ended: to be forgotten
	events  []serai.Event    // without tenant and site
	answers []answer
	wake    time.Time // when to look again
}

type answer struct {
	to chan<- wished
	wished
}

func (p *taskPlan) make() {
	p.start, p.end = make(map[int64]*privsep.Task), make(map[int64]string)
	spec, st := &p.s.Spec, &p.s.Status
	var jobs []serai.JobStatus
	for i := range spec.Jobs {
		jobs = append(jobs, p.job(&spec.Jobs[i], find(st.Jobs, func(s *serai.JobStatus) bool { return s.Name == spec.Jobs[i].Name })))
	}
	for _, old := range st.Jobs {
		if slices.ContainsFunc(spec.Jobs, func(j serai.Job) bool { return j.Name == old.Name }) {
			continue
		}
		if p.finishJob(&old); len(old.Running) > 0 {
			p.endAll(old.Running, "the job was taken out of the site")
			jobs = append(jobs, old)
		}
	}
	var daemons []serai.DaemonStatus
	for i := range spec.Daemons {
		daemons = append(daemons, p.daemon(&spec.Daemons[i], find(st.Daemons, func(s *serai.DaemonStatus) bool { return s.Name == spec.Daemons[i].Name })))
	}
	for _, old := range st.Daemons {
		if slices.ContainsFunc(spec.Daemons, func(d serai.Daemon) bool { return d.Name == old.Name }) {
			continue
		}
		if p.finishDaemon(&old); old.Running != nil {
			p.endAll([]serai.Run{*old.Running}, "the daemon was taken out of the site")
			daemons = append(daemons, old)
		}
	}
	st.Jobs, st.Daemons = jobs, daemons
	for _, w := range p.wishes {
		if !slices.ContainsFunc(spec.Jobs, func(j serai.Job) bool { return j.Name == w.job }) {
			p.refuse(w, serai.Errorf(serai.NotFound, "%s has no job %s", p.s.Key(), w.job))
		}
	}
	p.orphans()
}

// find returns a copy of the status of a name, or a fresh one.
func find[T any](list []T, is func(*T) bool) (found T) {
	for i := range list {
		if is(&list[i]) {
			return list[i]
		}
	}
	return found
}

// orphans ends what no status knows of.
func (p *taskPlan) orphans() {
	known := make(map[int64]bool)
	for _, j := range p.s.Status.Jobs {
		for _, r := range j.Running {
			known[r.Number] = true
		}
	}
	for _, d := range p.s.Status.Daemons {
		if d.Running != nil {
			known[d.Running.Number] = true
		}
	}
	for n, t := range p.seen {
		switch {
		case known[n] || slices.Contains(p.over, n):
		case t.ended != nil:
			p.over = append(p.over, n)
		default:
			p.end[n] = "nobody knows it"
		}
	}
	slices.Sort(p.over)
}

// job plans one job.
func (p *taskPlan) job(spec *serai.Job, st serai.JobStatus) serai.JobStatus {
	st.Name = spec.Name
	full := func() bool { return len(st.Running) > 0 && !(spec.Overlap && len(st.Running) < maxOverlap) }
	waited := full()
	ended := p.finishJob(&st)
	times, err := schedule.Parse(spec.Schedule, spec.TimeZone)
	if !p.open || err != nil { // err: the machine has lost the time zone
		st.Times, st.Handled, st.Next = "", time.Time{}, time.Time{}
		p.eachWish(spec.Name, func(w wish) { p.refuse(w, serai.Errorf(serai.Conflict, "%s is stopped", p.s.Key())) })
		return st
	}
	if text := spec.Schedule + " " + spec.TimeZone; st.Times != text || st.Handled.IsZero() || st.Handled.Sub(p.now) > setBack {
		st.Times, st.Handled = text, p.now
	}
	if waited && ended.After(st.Handled) {
		if n, first, last := times.Between(st.Handled, ended); n > 0 {
			p.missed(spec.Name, n, first, "an earlier run went on")
			st.Handled = last
		}
	}
	if !full() {
		p.due(spec, &st, times)
	}
	p.eachWish(spec.Name, func(w wish) {
		if full() {
			p.refuse(w, serai.Errorf(serai.Conflict, "the job %s of %s runs already, since %s", spec.Name, p.s.Key(), st.Running[0].Started.Format(time.RFC3339)))
			return
		}
		run, err := p.begin(spec.Run, spec.KeepAwake, time.Time{})
		if err == nil {
			st.Running = append(st.Running, run)
		}
		p.answers = append(p.answers, answer{w.answer, wished{run, err}})
	})
	st.Next = times.Next(st.Handled)
	if full() {
		st.Next = times.Next(p.now)
	} else {
		p.wakeAt(st.Next)
	}
	for _, r := range st.Running {
		if limit := time.Duration(spec.Timeout); limit > 0 && !r.Started.Add(limit).After(p.now) {
			p.end[r.Number] = fmt.Sprintf("its timeout of %s was over", spec.Timeout)
		} else if limit > 0 {
			p.wakeAt(r.Started.Add(limit))
		}
	}
	return st
}

// due starts the run whose time has come. Earlier ones, and those that it is
// too late for, were missed.
func (p *taskPlan) due(spec *serai.Job, st *serai.JobStatus, times schedule.Schedule) {
	late := p.now.Add(-punctual)
	missed, since, last := times.Between(st.Handled, late)
	from := st.Handled
	if from.Before(late) {
		from = late
	}
	n, first, newest := times.Between(from, p.now)
	if missed == 0 {
		since = first
	}
	if missed+n == 0 {
		return
	}
	missed += n
	if n > 0 {
		last = newest
	}
	st.Handled = last
	if n > 0 || spec.CatchUp {
		missed--
		run, err := p.begin(spec.Run, spec.KeepAwake, last)
		if err != nil {
			p.events = append(p.events, p.event("error", JobFailed, spec.Name, fmt.Sprintf("job %s of %s was not started: %s", spec.Name, p.s.Key(), sentence(err))))
			return
		}
		st.Running = append(st.Running, run)
	}
	if n == 0 {
		st.Handled = p.now // counting may have ended before
	}
	if missed > 0 {
		p.missed(spec.Name, missed, since, "the server was down or had too much to do")
	}
}

func (p *taskPlan) missed(name string, n int, since time.Time, why string) {
	runs, more := "runs", ""
	if n == 1 {
		runs = "run"
	}
	if n >= schedule.Most {
		more = "more than "
	}
	e := p.event("warning", JobsMissed, name, fmt.Sprintf("job %s of %s missed %s%d %s since %s: %s", name, p.s.Key(), more, n, runs, since.Format(time.RFC3339), why))
	e.Fields["count"], e.Fields["since"] = strconv.Itoa(n), since.Format(time.RFC3339)
	p.events = append(p.events, e)
}

func (p *taskPlan) event(severity, reason, name, message string) serai.Event {
	return serai.Event{Severity: severity, Reason: reason, Message: message, Fields: map[string]string{"task": name}}
}

// begin numbers a run and has it started.
func (p *taskPlan) begin(command []string, awake bool, due time.Time) (serai.Run, error) {
	t, err := engine.Task(p.s, command)
	if err != nil {
		return serai.Run{}, err
	}
	p.s.Status.Runs++
	t.Task, t.Awake = p.s.Status.Runs, awake
	p.start[t.Task] = &t
	return serai.Run{Number: t.Task, Due: due, Started: p.now}, nil
}

// finishJob takes over the ends of runs. last is the time of the latest whose
// end was seen.
func (p *taskPlan) finishJob(st *serai.JobStatus) (last time.Time) {
	var running []serai.Run
	for _, r := range st.Running {
		if !p.finish(&r) {
			running = append(running, r)
			continue
		}
		if t := p.seen[r.Number]; t.ended != nil && r.Ended.After(last) {
			last = r.Ended
		}
		st.Last = &r
		after := fmt.Sprintf("job %s of %s", st.Name, p.s.Key())
		seconds := r.Ended.Sub(r.Started).Round(time.Second / 10)
		var e serai.Event
		switch {
		case !r.Failed:
			e = p.event("info", JobDone, st.Name, fmt.Sprintf("%s is done after %s", after, seconds))
		case !p.open:
			e = p.event("info", JobEnded, st.Name, fmt.Sprintf("%s was ended with its site after %s", after, seconds))
		default:
			e = p.event("error", JobFailed, st.Name, fmt.Sprintf("%s failed after %s: %s", after, seconds, r.Outcome))
		}
		p.describe(&e, &r)
	}
	st.Running = running
	return last
}

// describe completes an event with what is known of a run.
func (p *taskPlan) describe(e *serai.Event, r *serai.Run) {
	e.Fields["run"], e.Fields["outcome"] = strconv.FormatInt(r.Number, 10), r.Outcome
	e.Fields["seconds"] = strconv.FormatFloat(r.Ended.Sub(r.Started).Seconds(), 'f', 3, 64)
	if !r.Due.IsZero() {
		e.Fields["due"] = r.Due.Format(time.RFC3339)
	}
	if r.PID != 0 {
		e.Fields["pid"] = strconv.Itoa(r.PID)
	}
	if t := p.seen[r.Number]; t.ended != nil && t.ended.Message == "" {
		status := unix.WaitStatus(t.ended.Status)
		if status.Signaled() {
			e.Fields["signal"] = strconv.Itoa(int(status.Signal()))
		} else {
			e.Fields["status"] = strconv.Itoa(status.ExitStatus())
		}
	}
	p.events = append(p.events, *e)
}

// finish takes over what was seen of a run, and reports whether it has ended.
func (p *taskPlan) finish(r *serai.Run) bool {
	t, ok := p.seen[r.Number]
	if !ok {
		r.Ended, r.Failed = p.now, true
		r.Outcome = "how it ended is not known: the machine or serai-priv was started anew"
		return true
	}
	if t.pid != 0 {
		r.PID = t.pid
	}
	if t.ended == nil {
		return false
	}
	if t.ended.PID != 0 {
		r.PID = t.ended.PID
	}
	r.Ended = t.ended.Time.UTC().Truncate(time.Millisecond)
	if r.Ended.Before(r.Started) {
		r.Ended = r.Started
	}
	status := unix.WaitStatus(t.ended.Status)
	r.Outcome, r.Failed = ending(status), status != 0 || t.ended.Message != ""
	switch {
	case t.ended.Message != "":
		r.Outcome = "it did not start: " + printable(t.ended.Message, maxMessage)
	case r.Failed && t.ended.Memory.OOMKills > 0:
		r.Outcome = fmt.Sprintf("it was killed for memory: the cap is %s", serai.Bytes(t.ended.Memory.Limit))
	}
	if t.ending != "" {
		r.Outcome += ", because " + t.ending
	}
	p.over = append(p.over, r.Number)
	return true
}

func (p *taskPlan) endAll(runs []serai.Run, why string) {
	for _, r := range runs {
		p.end[r.Number] = why
	}
}

func (p *taskPlan) eachWish(job string, do func(wish)) {
	for _, w := range p.wishes {
		if w.job == job {
			do(w)
		}
	}
}

func (p *taskPlan) refuse(w wish, err error) {
	p.answers = append(p.answers, answer{w.answer, wished{err: err}})
}

func (p *taskPlan) wakeAt(t time.Time) {
	if p.wake.IsZero() || t.Before(p.wake) {
		p.wake = t
	}
}

// print is a digest of what a daemon is started with.
func (p *taskPlan) print(command []string, awake bool) (string, error) {
	t, err := engine.Task(p.s, command)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(t.Block, strconv.FormatBool(awake)...))
	return hex.EncodeToString(sum[:8]), nil
}
