package monitor

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// All tasks of a site fit into one packet.
const (
	maxTasks = 64          // of a site, with those that ended and were not asked about
	maxWords = 200         // bytes of why one did not come up
	maxGrace = time.Minute // between SIGTERM and SIGKILL
)

// task returns the process of a task of s.
func (s *site) task(number int64) *process {
	i := slices.IndexFunc(s.Processes, func(p *process) bool {
		return p.Task != nil && p.Task.Task == number
	})
	if i < 0 {
		return nil
	}
	return s.Processes[i]
}

// over finds a task of s that has ended.
func (s *site) over(number int64) int {
	return slices.IndexFunc(s.Over, func(e privsep.TaskEvent) bool { return e.Task == number })
}

// tasks is what is held of the tasks of s.
func (s *site) tasks() (all []privsep.TaskState) {
	for _, p := range s.Processes {
		if p.Task != nil && s.over(p.Task.Task) < 0 {
			all = append(all, privsep.TaskState{Task: p.Task.Task, PID: p.PID})
		}
	}
	for i := range s.Over {
		all = append(all, privsep.TaskState{Task: s.Over[i].Task, Ended: &s.Over[i]})
	}
	return all
}

func (m *Monitor) mayRun(a *privsep.Task) error {
	if err := m.known(a.Site); err != nil {
		return err
	}
	s := m.Sites[a.Site]
	switch {
	case a.Task <= 0:
		return serai.Errorf(serai.Invalid, "%d is no number of a task", a.Task)
	case len(a.Block) > privsep.MaxBlock:
		return serai.Errorf(serai.Invalid, "the block has %d bytes: at most %d", len(a.Block), privsep.MaxBlock)
	case s.Record.Off:
		return serai.Errorf(serai.Conflict, "site %d is stopped", a.Site)
	case s.task(a.Task) != nil || s.over(a.Task) >= 0:
		return serai.Errorf(serai.Conflict, "task %d of site %d was started already", a.Task, a.Site)
	case len(s.Processes)+len(s.Over) >= maxTasks:
		return serai.Errorf(serai.Unavailable, "site %d has %d tasks already", a.Site, maxTasks)
	}
	return nil
}

func (m *Monitor) doRun(r *request, a *privsep.Task) (answer, error) {
	m.start(m.Sites[a.Site], &r.waiter, a)
	return answer{later: true}, nil
}

// taskUp is called when the process of a task has dropped to its tenant. What
// comes then is the command's alone: nothing more is heard.
func (m *Monitor) taskUp(p *process) {
	delete(m.loading, p)
	m.poll.forget(p.Status)
	p.Status.close()
	p.Phase, p.Ready = running, time.Now()
	p.Task.Block = nil
	m.answerTask(p, privsep.TaskResult{Up: true, PID: p.PID})
}

func (m *Monitor) answerTask(p *process, r privsep.TaskResult) {
	if p.Waiter != nil {
		m.reply(*p.Waiter, answer{body: r})
		p.Waiter = nil
	}
}

// taskEnded takes note of how the process of a task ended, and tells.
func (m *Monitor) taskEnded(p *process, e privsep.TaskEvent) {
	if p.Told {
		return
	}
	s := p.site
	p.Told = true
	e.Site, e.Task, e.Time = s.Record.Site, p.Task.Task, time.Now()
	e.Message = e.Message[:min(len(e.Message), maxWords)]
	if len(p.Enders) == 0 { // else its end is being asked about
		s.Over = append(s.Over, e)
	}
	m.answerTask(p, privsep.TaskResult{})
	m.tell(privsep.EvTask, e, seraid)
	m.keepAwake(s)
}

// keepAwake tells the site's own process whether a task wants it to stay.
func (m *Monitor) keepAwake(s *site) {
	p := s.in(running)
	if p == nil {
		return
	}
	kept := slices.ContainsFunc(s.Processes, func(t *process) bool { return t.Task != nil && t.Task.Awake && !t.Told })
	if kept == p.Kept {
		return
	}
	p.Kept = kept
	if kept {
		m.advise(p, "awake")
	} else {
		m.advise(p, "rest")
	}
}

// taskGone answers who waits for the end of a task.
func (m *Monitor) taskGone(p *process) {
	m.taskEnded(p, privsep.TaskEvent{Message: "it was ended before it was up"})
	for _, w := range p.Enders {
		m.reply(w, answer{})
	}
}

func (m *Monitor) mayEndTask(a *privsep.EndTask) error {
	if err := m.known(a.Site); err != nil {
		return err
	}
	if s := m.Sites[a.Site]; s.task(a.Task) == nil && s.over(a.Task) < 0 {
		return serai.Errorf(serai.NotFound, "site %d has no task %d", a.Site, a.Task)
	}
	if a.GraceMs < 0 || a.GraceMs > maxGrace.Milliseconds() {
		return serai.Errorf(serai.Invalid, "a grace of %d ms is not within %s", a.GraceMs, maxGrace)
	}
	return nil
}

func (m *Monitor) doEndTask(r *request, a *privsep.EndTask) (answer, error) {
	s := m.Sites[a.Site]
	if i := s.over(a.Task); i >= 0 {
		s.Over = slices.Delete(s.Over, i, i+1)
	}
	p := s.task(a.Task)
	if p == nil {
		return answer{}, nil
	}
	p.Enders = append(p.Enders, r.waiter)
	switch p.Phase {
	case starting:
		m.failed(p, "it was ended before it was up")
	case running:
		p.Phase, p.Due = draining, time.Now().Add(time.Duration(a.GraceMs)*time.Millisecond)
		unix.Kill(p.PID, unix.SIGTERM) // our child, not reaped: the number is its own
		m.poll.at(p.Due, p)
	}
	return answer{later: true}, nil
}
