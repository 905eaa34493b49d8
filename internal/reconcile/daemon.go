package reconcile

import (
	"fmt"
	"time"

	"serai.dev/serai"
)

// What is seen of a daemon.
//
//	           start                  ended
//	down ────────────────► up ─────────────────► resting ──time──► down
//	 ▲                      │ new code loaded        ▲
//	 │ ended                ▼                        │
//	 └───────── leaving ◄──end── stale ──ended───────┘
type daemonSeen int

const (
	down    daemonSeen = iota // nothing of it runs
	resting                   // it ended by itself: it is started again later
	up                        // it runs
	stale                     // it runs what the site's code was before
	leaving                   // it was asked to end
	daemonSights
)

// What is done about a daemon.
type daemonDo int

const (
	leave daemonDo = iota
	begin
	finish
)

// decideDaemon is all that is ever done to a daemon, by whether it shall run.
var decideDaemon = map[bool][daemonSights]daemonDo{
	true:  {down: begin, resting: leave, up: leave, stale: finish, leaving: leave},
	false: {down: leave, resting: leave, up: finish, stale: finish, leaving: leave},
}

// daemonRest is how long a daemon that ended by itself n times in a row is
// left alone.
func daemonRest(n int) time.Duration {
	return min(time.Second<<min(max(n-1, 0), 6), time.Minute)
}

// daemon plans one daemon. There is never more than one process of it: the old
// one has ended before the next is started.
func (p *taskPlan) daemon(spec *serai.Daemon, st serai.DaemonStatus) serai.DaemonStatus {
	st.Name = spec.Name
	p.finishDaemon(&st)
	hash, err := p.print(spec.Run, spec.KeepAwake)
	if err != nil {
		p.events = append(p.events, p.event("error", DaemonEnded, spec.Name, fmt.Sprintf("daemon %s of %s cannot be started: %s", spec.Name, p.s.Key(), sentence(err))))
		return st
	}
	want := p.open && (p.awake || !spec.WhileAwake)
	if !want {
		st.Fails, st.Next = 0, time.Time{}
	}
	seen := p.look(&st, hash)
	switch decideDaemon[want][seen] {
	case begin:
		if p.loading { // what it is to run beside is not known yet
			break
		}
		run, err := p.begin(spec.Run, spec.KeepAwake, time.Time{})
		if err != nil {
			break // print would have failed too
		}
		st.Running, st.Next = &run, time.Time{}
		st.Launch, st.Hash = p.s.Status.Serving, hash
	case finish:
		why := "the site's new code was loaded"
		if !want {
			why = "it is not wanted now"
		}
		p.end[st.Running.Number] = why
	}
	if seen == resting {
		p.wakeAt(st.Next)
	}
	return st
}

// look compares a daemon with what it is to be. While new code is being
// loaded, and where it did not load, what runs is right.
func (p *taskPlan) look(st *serai.DaemonStatus, hash string) daemonSeen {
	site := &p.s.Status
	switch {
	case st.Running == nil && st.Next.After(p.now):
		return resting
	case st.Running == nil:
		return down
	case p.seen[st.Running.Number].ending != "":
		return leaving
	case !p.loading && site.Serving == site.Launch && (st.Launch < site.Serving || st.Hash != hash):
		return stale
	}
	return up
}

// finishDaemon takes over the end of a daemon's process.
func (p *taskPlan) finishDaemon(st *serai.DaemonStatus) {
	if st.Running == nil {
		return
	}
	r := *st.Running
	if !p.finish(&r) {
		st.Running = &r
		return
	}
	st.Running, st.Last = nil, &r
	if t := p.seen[r.Number]; t.ending != "" || !p.open {
		st.Fails, st.Next = 0, time.Time{}
		return
	}
	lived := r.Ended.Sub(r.Started)
	if lived >= healthy {
		st.Fails = 0
	}
	st.Fails++
	rest := daemonRest(st.Fails)
	st.Next = p.now.Add(rest)
	e := p.event("warning", DaemonEnded, st.Name, fmt.Sprintf("daemon %s of %s ended after %s: %s; it is started again in %s",
		st.Name, p.s.Key(), lived.Round(time.Second/10), r.Outcome, rest))
	p.describe(&e, &r)
}
