package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// A stage plays one site through time without waiting for it: what is started
// runs for as long as its command says, and ends with the status it says.
type stage struct {
	t    *testing.T
	s    *serai.Site
	now  time.Time
	seen map[int64]task
	ends map[int64]time.Time
	plan taskPlan // the last
	log  []string // starts and events
	runs int      // how many there were at once, at most

	open, awake, loading bool
	lasts                func(name string, n int) (time.Duration, int) // of the n-th run
	begun                map[string]int
}

func newStage(t *testing.T, at string, spec serai.SiteSpec) *stage {
	spec.Engine, spec.Perl, spec.Jobs = "perl", &serai.Perl{App: "app.psgi"}, slices.Clone(spec.Jobs)
	return &stage{t: t, now: clock(at), open: true, seen: map[int64]task{}, ends: map[int64]time.Time{}, begun: map[string]int{},
		s:     &serai.Site{Meta: serai.Meta{Name: "shop", Tenant: "alice", ID: 7}, Spec: spec, Status: serai.SiteStatus{Launch: 1, Serving: 1}},
		lasts: func(string, int) (time.Duration, int) { return time.Second, 0 }}
}

func clock(s string) time.Time {
	at, err := time.Parse("2006-01-02 15:04:05", s)
	if err != nil {
		panic(err)
	}
	return at
}

func (g *stage) say(format string, args ...any) {
	g.log = append(g.log, g.now.Format("15:04:05 ")+fmt.Sprintf(format, args...))
}

// pass makes a plan and does what it says.
func (g *stage) pass(wishes ...wish) {
	g.plan = taskPlan{s: g.s, now: g.now, open: g.open, awake: g.awake, loading: g.loading, seen: g.seen, wishes: wishes}
	g.plan.make()
	for n, t := range g.plan.start {
		name := g.nameOf(n)
		g.begun[name]++
		lasts, status := g.lasts(name, g.begun[name])
		g.seen[n] = task{pid: int(n) + 100}
		g.ends[n] = g.now.Add(lasts)
		g.say("start %s", name)
		if t.Task != n || t.Site != 7 {
			g.t.Errorf("task %+v under %d", t, n)
		}
		g.seen[n] = task{pid: 100 + int(n), ended: &privsep.TaskEvent{Status: status}} // told at its time
	}
	for n, why := range g.plan.end {
		g.say("end %s: %s", g.nameOf(n), why)
		t := g.seen[n]
		t.ending, t.ended = why, &privsep.TaskEvent{Status: int(unix.SIGTERM)}
		g.seen[n], g.ends[n] = t, g.now
	}
	for _, n := range g.plan.over {
		delete(g.seen, n)
	}
	for _, e := range g.plan.events {
		g.say("%s %s", e.Reason, e.Message)
	}
	g.runs = max(g.runs, len(g.ends))
	for _, a := range g.plan.answers {
		a.to <- a.wished
	}
}

func (g *stage) nameOf(n int64) string {
	for _, j := range g.s.Status.Jobs {
		if slices.ContainsFunc(j.Running, func(r serai.Run) bool { return r.Number == n }) {
			return j.Name
		}
	}
	for _, d := range g.s.Status.Daemons {
		if d.Running != nil && d.Running.Number == n {
			return d.Name
		}
	}
	return "?"
}

// until plays on, from one time at which something is to be done to the next.
func (g *stage) until(end time.Time) {
	for range 1_000_000 {
		told := map[int64]task{}
		for n, t := range g.seen { // an end is not known before its time
			if g.ends[n].After(g.now) {
				t.ended = nil
			} else if t.ended != nil {
				t.ended.Time = g.ends[n]
			}
			told[n] = t
		}
		all := g.seen
		g.seen = told
		g.pass()
		for n, t := range g.seen {
			if a, ok := all[n]; ok && t.ended == nil {
				t.ended = a.ended
				g.seen[n] = t
			}
		}
		for _, n := range g.plan.over {
			delete(g.ends, n)
		}
		next := g.plan.wake
		for _, at := range g.ends {
			if next.IsZero() || at.Before(next) {
				next = at
			}
		}
		if next.IsZero() || next.After(end) {
			g.now = end
			return
		}
		if next.Before(g.now) {
			next = g.now
		}
		g.now = next
	}
	g.t.Fatalf("it does not come to an end: %s", g.now)
}

// A year of jobs: each at its times, none twice, none beside itself.
func TestJobYear(t *testing.T) {
	g := newStage(t, "2026-01-01 00:00:00", serai.SiteSpec{Jobs: []serai.Job{
		{Name: "nightly", Schedule: "15 3 * * *", TimeZone: "UTC", Run: []string{"x"}},
		{Name: "weekly", Schedule: "@weekly", TimeZone: "UTC", Run: []string{"x"}},
		{Name: "hourly", Schedule: "0 * * * *", TimeZone: "UTC", Run: []string{"x"}},
		{Name: "leap", Schedule: "0 0 29 2 *", TimeZone: "UTC", Run: []string{"x"}},
	}})
	g.until(clock("2027-01-01 00:00:00"))
	// The last pass is that of the first second of the new year, which is hourly's.
	want := map[string]int{"nightly": 365, "weekly": 52, "hourly": 365*24 - 1 + 1}
	if fmt.Sprint(g.begun) != fmt.Sprint(want) {
		t.Errorf("a year had %v, want %v", g.begun, want)
	}
	if g.s.Status.Runs != int64(365+52+365*24) || g.runs > 3 {
		t.Errorf("%d runs, %d at once", g.s.Status.Runs, g.runs)
	}
	if next := g.s.Status.Jobs[3].Next; !next.Equal(clock("2028-02-29 00:00:00")) {
		t.Errorf("the leap day is on %s", next)
	}
}

func TestJobs(t *testing.T) {
	job := func(change func(*serai.Job)) serai.SiteSpec {
		j := serai.Job{Name: "j", Schedule: "* * * * *", TimeZone: "UTC", Run: []string{"x"}}
		change(&j)
		return serai.SiteSpec{Jobs: []serai.Job{j}}
	}
	plain := job(func(*serai.Job) {})
	lasting := func(d time.Duration, status int) func(string, int) (time.Duration, int) {
		return func(string, int) (time.Duration, int) { return d, status }
	}
	const noon = "2026-01-01 12:00:00"
	for _, tt := range []struct {
		name string
		spec serai.SiteSpec
		play func(*stage)
		want string
	}{
		{"fails", plain, func(g *stage) {
			g.lasts = lasting(1500*time.Millisecond, 9<<8)
			g.until(clock("2026-01-01 12:01:30"))
		}, `12:01:00 start j
			12:01:01 JobFailed job j of alice/shop failed after 1.5s: exit status 9`},
		{"overlap forbidden", plain, func(g *stage) {
			g.lasts = func(_ string, n int) (time.Duration, int) { return time.Duration(3-n) * 100 * time.Second, 0 }
			g.until(clock("2026-01-01 12:05:50"))
		}, `12:01:00 start j
			12:04:20 JobDone job j of alice/shop is done after 3m20s
			12:04:20 JobsMissed job j of alice/shop missed 3 runs since 2026-01-01T12:02:00Z: an earlier run went on
			12:05:00 start j`},
		{"overlap asked for", job(func(j *serai.Job) { j.Overlap = true }), func(g *stage) {
			g.lasts = lasting(90*time.Second, 0)
			g.until(clock("2026-01-01 12:02:40"))
		}, `12:01:00 start j
			12:02:00 start j
			12:02:30 JobDone job j of alice/shop is done after 1m30s`},
		{"server down", plain, func(g *stage) {
			g.until(clock("2026-01-01 12:00:30"))
			g.now = clock("2026-01-01 12:10:30")
			g.until(clock("2026-01-01 12:10:50"))
		}, `12:10:30 start j
			12:10:30 JobsMissed job j of alice/shop missed 9 runs since 2026-01-01T12:01:00Z: the server was down or had too much to do
			12:10:31 JobDone job j of alice/shop is done after 1s`},
		{"too late", job(func(j *serai.Job) { j.Schedule = "0 * * * *" }), func(g *stage) {
			g.until(clock("2026-01-01 12:30:00"))
			g.now = clock("2026-01-01 15:30:00")
			g.until(clock("2026-01-01 15:31:00"))
		}, `15:30:00 JobsMissed job j of alice/shop missed 3 runs since 2026-01-01T13:00:00Z: the server was down or had too much to do`},
		{"caught up", job(func(j *serai.Job) { j.Schedule, j.CatchUp = "0 * * * *", true }), func(g *stage) {
			g.until(clock("2026-01-01 12:30:00"))
			g.now = clock("2026-01-01 15:30:00")
			g.until(clock("2026-01-01 15:31:00"))
		}, `15:30:00 start j
			15:30:00 JobsMissed job j of alice/shop missed 2 runs since 2026-01-01T13:00:00Z: the server was down or had too much to do
			15:30:01 JobDone job j of alice/shop is done after 1s`},
		{"clock set back a little", plain, func(g *stage) {
			g.until(clock("2026-01-01 12:01:30"))
			g.now = clock("2026-01-01 11:00:00")
			g.until(clock("2026-01-01 12:02:00"))
		}, `12:01:00 start j
			12:01:01 JobDone job j of alice/shop is done after 1s
			12:02:00 start j`},
		{"clock set back by a year", plain, func(g *stage) {
			g.until(clock("2026-01-01 12:00:30"))
			g.now = clock("2025-01-01 12:00:30")
			g.until(clock("2025-01-01 12:01:00"))
		}, `12:01:00 start j`},
		{"stopped and started", plain, func(g *stage) {
			g.until(clock("2026-01-01 12:00:30"))
			g.open = false
			g.until(clock("2026-01-01 14:00:30"))
			g.open = true
			g.until(clock("2026-01-01 14:01:00"))
		}, `14:01:00 start j`},
		{"another schedule", plain, func(g *stage) {
			g.until(clock("2026-01-01 12:00:30"))
			g.s.Spec.Jobs[0].Schedule = "@every 5s"
			g.until(clock("2026-01-01 12:00:35"))
		}, `12:00:35 start j`},
		{"timeout", job(func(j *serai.Job) { j.Timeout = serai.Duration(10 * time.Second) }), func(g *stage) {
			g.lasts = lasting(time.Hour, 0)
			g.until(clock("2026-01-01 12:01:30"))
		}, `12:01:00 start j
			12:01:10 end j: its timeout of 10s was over
			12:01:10 JobFailed job j of alice/shop failed after 10s: killed by signal 15 (terminated), because its timeout of 10s was over`},
		{"taken out", plain, func(g *stage) {
			g.lasts = lasting(time.Hour, 0)
			g.until(clock("2026-01-01 12:01:30"))
			g.s.Spec.Jobs = nil
			g.until(clock("2026-01-01 12:01:30"))
			if len(g.s.Status.Jobs) > 0 {
				g.t.Errorf("left: %+v", g.s.Status.Jobs)
			}
		}, `12:01:00 start j
			12:01:30 end j: the job was taken out of the site
			12:01:30 JobFailed job j of alice/shop failed after 30s: killed by signal 15 (terminated), because the job was taken out of the site`},
		{"the machine was started anew", plain, func(g *stage) {
			g.until(clock("2026-01-01 12:01:00"))
			clear(g.seen)
			clear(g.ends)
			g.until(clock("2026-01-01 12:01:30"))
		}, `12:01:00 start j
			12:01:00 JobFailed job j of alice/shop failed after 0s: how it ended is not known: the machine or serai-priv was started anew`},
		{"nobody's", plain, func(g *stage) {
			g.seen[99], g.ends[99] = task{pid: 5}, clock("2027-01-01 00:00:00")
			g.until(clock("2026-01-01 12:00:10"))
		}, `12:00:00 end ?: nobody knows it`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newStage(t, noon, tt.spec)
			tt.play(g)
			want := strings.ReplaceAll(tt.want, "\t", "")
			if got := strings.Join(g.log, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// serai run: beside the schedule, but not beside itself.
func TestJobWishes(t *testing.T) {
	g := newStage(t, "2026-01-01 12:00:00", serai.SiteSpec{Jobs: []serai.Job{{Name: "j", Schedule: "@yearly", Run: []string{"x"}}}})
	ask := func(name string) wished {
		answer := make(chan wished, 1)
		g.pass(wish{name, answer})
		return <-answer
	}
	if w := ask("j"); w.err != nil || w.run.Number != 1 || !w.run.Due.IsZero() {
		t.Errorf("asked for: %+v", w)
	}
	g.seen[1] = task{pid: 5}
	if w := ask("j"); serai.KindOf(w.err) != serai.Conflict {
		t.Errorf("while it runs: %+v", w)
	}
	if w := ask("k"); serai.KindOf(w.err) != serai.NotFound {
		t.Errorf("a job that is not there: %+v", w)
	}
	g.open = false
	if w := ask("j"); serai.KindOf(w.err) != serai.Conflict {
		t.Errorf("stopped: %+v", w)
	}
}

func TestDaemons(t *testing.T) {
	spec := serai.SiteSpec{Daemons: []serai.Daemon{{Name: "d", Run: []string{"x"}}}}
	while := serai.SiteSpec{Daemons: []serai.Daemon{{Name: "d", Run: []string{"x"}, WhileAwake: true}}}
	forever := func(string, int) (time.Duration, int) { return 1000 * time.Hour, 0 }
	for _, tt := range []struct {
		name string
		spec serai.SiteSpec
		play func(*stage)
		want string
	}{
		{"crashes", spec, func(g *stage) {
			g.lasts = func(_ string, n int) (time.Duration, int) {
				if n == 4 {
					return 2 * time.Minute, 1 << 8
				}
				return 0, 1 << 8
			}
			g.until(clock("2026-01-01 12:02:09"))
		}, `12:00:00 start d
			12:00:00 DaemonEnded daemon d of alice/shop ended after 0s: exit status 1; it is started again in 1s
			12:00:01 start d
			12:00:01 DaemonEnded daemon d of alice/shop ended after 0s: exit status 1; it is started again in 2s
			12:00:03 start d
			12:00:03 DaemonEnded daemon d of alice/shop ended after 0s: exit status 1; it is started again in 4s
			12:00:07 start d
			12:02:07 DaemonEnded daemon d of alice/shop ended after 2m0s: exit status 1; it is started again in 1s
			12:02:08 start d
			12:02:08 DaemonEnded daemon d of alice/shop ended after 0s: exit status 1; it is started again in 2s`},
		{"new code", spec, func(g *stage) {
			g.lasts = forever
			g.loading = true
			g.until(clock("2026-01-01 12:00:01"))
			g.loading = false
			g.until(clock("2026-01-01 12:00:02"))
			g.s.Status.Launch, g.loading = 2, true
			g.until(clock("2026-01-01 12:00:03"))
			g.loading = false // it did not load
			g.until(clock("2026-01-01 12:00:04"))
			g.s.Status.Launch, g.s.Status.Serving = 3, 3
			g.until(clock("2026-01-01 12:00:05"))
		}, `12:00:01 start d
			12:00:04 end d: the site's new code was loaded
			12:00:04 start d`},
		{"another command", spec, func(g *stage) {
			g.lasts = forever
			g.until(clock("2026-01-01 12:00:01"))
			g.s.Spec.Daemons = []serai.Daemon{{Name: "d", Run: []string{"y"}}}
			g.until(clock("2026-01-01 12:00:02"))
		}, `12:00:00 start d
			12:00:01 end d: the site's new code was loaded
			12:00:01 start d`},
		{"while awake", while, func(g *stage) {
			g.lasts = forever
			g.until(clock("2026-01-01 12:00:01"))
			g.awake = true
			g.until(clock("2026-01-01 12:00:02"))
			g.awake = false
			g.until(clock("2026-01-01 12:00:03"))
		}, `12:00:01 start d
			12:00:02 end d: it is not wanted now`},
		{"taken out", spec, func(g *stage) {
			g.lasts = forever
			g.until(clock("2026-01-01 12:00:01"))
			g.s.Spec.Daemons = nil
			g.until(clock("2026-01-01 12:00:02"))
			if len(g.s.Status.Daemons) > 0 {
				g.t.Errorf("left: %+v", g.s.Status.Daemons)
			}
		}, `12:00:00 start d
			12:00:01 end d: the daemon was taken out of the site`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newStage(t, "2026-01-01 12:00:00", tt.spec)
			tt.play(g)
			want := strings.ReplaceAll(tt.want, "\t", "")
			if got := strings.Join(g.log, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
	for n, want := range []time.Duration{1, 1, 2, 4, 8, 16, 32, 60, 60} {
		if got := daemonRest(n); got != want*time.Second {
			t.Errorf("daemonRest(%d) = %s", n, got)
		}
	}
}
