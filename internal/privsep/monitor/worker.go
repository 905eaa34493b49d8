package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

const (
	maxLeaving = 1024                   // workers that are asked at once; more are killed unasked
	insistTime = 300 * time.Millisecond // for a worker that runs to begin its next statement
)

// A leaving worker was asked to leave. It is killed when its time is over.
type leaving struct {
	Waiter   waiter    `json:"waiter"`
	PID      int       `json:"pid"`
	Pidfd    fd        `json:"pidfd"`
	Insist   time.Time `json:"insist"`
	Due      time.Time `json:"due"`
	Insisted bool      `json:"insisted"`
}

func (m *Monitor) isWorkers(a *privsep.WorkerRef) error {
	if a.PID <= 1 {
		return serai.Errorf(serai.Invalid, "%d is no pid of a worker", a.PID)
	}
	return m.known(a.Site)
}

func (m *Monitor) mayKillWorker(a *privsep.KillWorker) error { return m.isWorkers(&a.WorkerRef) }

// hold gives a pidfd of a process that was seen in the site's cgroup after it
// was held: a number that is used anew in between hits nobody else.
func (m *Monitor) hold(a privsep.WorkerRef) (fd, error) {
	gone := serai.Errorf(serai.NotFound, "%d is no process of site %d", a.PID, a.Site)
	n, err := unix.PidfdOpen(a.PID, 0)
	if err != nil {
		return 0, gone
	}
	pidfd := fd(n)
	if !m.cgroups.Contains(m.Sites[a.Site].Record.UID, a.Site, a.PID) {
		pidfd.close()
		return 0, gone
	}
	return pidfd, nil
}

// signal sends to a process, which may have ended.
func (f fd) signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(int(f), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s: %w", unix.SignalName(sig), err)
	}
	return nil
}

// alive reports whether the process of a pidfd has not ended: its number is
// still its own.
func (f fd) alive() bool {
	p := []unix.PollFd{{Fd: int32(f), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return n == 0 && err == nil
}

// doSize opens what the kernel knows of a process's memory, and leaves the
// reading to the peer: that waits for the process where it is changing its map,
// as long as it likes to.
func (m *Monitor) doSize(_ *request, a *privsep.WorkerRef) (answer, error) {
	pidfd, err := m.hold(*a)
	if err != nil {
		return answer{}, err
	}
	defer pidfd.close()
	n, err := unix.Open(fmt.Sprintf("/proc/%d/smaps_rollup", a.PID), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if !pidfd.alive() { // else it is the one that was held
		unix.Close(n)
		return answer{}, serai.Errorf(serai.NotFound, "%d has ended", a.PID)
	}
	if err != nil {
		return answer{}, fmt.Errorf("look at the memory of %d: %w", a.PID, err)
	}
	return answer{file: fd(n), once: true}, nil
}

func (m *Monitor) doAskWorker(_ *request, a *privsep.WorkerRef) (answer, error) {
	pidfd, err := m.hold(*a)
	if err != nil {
		return answer{}, err
	}
	defer pidfd.close()
	return answer{}, pidfd.signal(privsep.SignalTell)
}

func (m *Monitor) doKillWorker(r *request, a *privsep.KillWorker) (answer, error) {
	pidfd, err := m.hold(a.WorkerRef)
	if err != nil {
		return answer{}, err
	}
	if !a.Ask || len(m.Leaving) >= maxLeaving {
		defer pidfd.close()
		return answer{}, pidfd.signal(unix.SIGKILL)
	}
	now := time.Now()
	l := &leaving{Waiter: r.waiter, PID: a.PID, Pidfd: pidfd, Insist: now.Add(insistTime), Due: now.Add(privsep.AskTime)}
	if err := m.watchLeaving(l); err != nil {
		defer pidfd.close()
		return answer{}, errors.Join(err, pidfd.signal(unix.SIGKILL))
	}
	m.Leaving = append(m.Leaving, l)
	// One that runs is given the time to come to a point where Perl is whole.
	if state, _ := lookAt(a.PID); state == "R" {
		pidfd.signal(privsep.SignalLeave)
	} else {
		l.insist()
	}
	return answer{later: true}, nil
}

func (m *Monitor) watchLeaving(l *leaving) error {
	m.poll.at(l.Insist, l)
	m.poll.at(l.Due, l)
	return m.poll.watch(l.Pidfd, unix.EPOLLIN, func(uint32) { m.left(l, privsep.Killed{}) })
}

func (l *leaving) insist() {
	l.Insisted = true
	l.Pidfd.signal(privsep.SignalNow)
}

// tick implements ticker.
func (l *leaving) tick(m *Monitor, now time.Time) {
	switch {
	case l.Pidfd == 0: // it has left
	case !now.Before(l.Due):
		var how privsep.Killed
		state, wait := lookAt(l.PID)
		if l.Pidfd.alive() { // else that was another's
			how = privsep.Killed{State: state, Wait: wait}
		}
		l.Pidfd.signal(unix.SIGKILL)
		m.left(l, how)
	case !l.Insisted && !now.Before(l.Insist):
		l.insist()
	}
}

// left ends the wait for a worker.
func (m *Monitor) left(l *leaving, how privsep.Killed) {
	m.poll.forget(l.Pidfd)
	l.Pidfd.close()
	m.Leaving = slices.DeleteFunc(m.Leaving, func(x *leaving) bool { return x == l })
	m.reply(l.Waiter, answer{body: how})
}

// lookAt is what the kernel says a process does: its state, and the function
// of the kernel's that it waits in.
func lookAt(pid int) (state, wait string) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil {
		state = stateIn(stat)
	}
	channel, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	if err == nil {
		wait = string(channel[:min(len(channel), 100)])
	}
	return state, wait
}

// stateIn is the letter in a stat file. The name that the process gave itself
// stands in brackets before it, and may look like what follows; no bracket does.
func stateIn(stat []byte) string {
	i := bytes.LastIndex(stat, []byte(") "))
	if i < 0 || i+2 >= len(stat) || stat[i+2] < 'A' || stat[i+2] > 'z' {
		return ""
	}
	return string(stat[i+2])
}
