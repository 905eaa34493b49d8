package monitor

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai/internal/cgroup"
	"serai.dev/serai/internal/privsep"
)

const (
	loadLimit  = 60 * time.Second // from the knock to "ready"
	drainLimit = 60 * time.Second // for the workers of an older launch
	stable     = 10 * time.Second // a process that lived longer did not crash at once
	pipeSize   = 64 << 10         // bytes of a log pipe
	backlog    = 1024             // connections that wait at a site's listener

	// A start and its end cost us some 10 ms that no tenant is charged for. Sites
	// that end soon after it, whatever their status, may do so a few times at once
	// and then so often; beyond, the tenant's sites are not woken for a moment.
	quickBurst = 3 * time.Second
	quickEvery = 100 * time.Millisecond
)

// endedSoon counts a start that was not worth it.
func (t *tenant) endedSoon(now time.Time) {
	if t.paid.Before(now) {
		t.paid = now
	}
	t.paid = t.paid.Add(quickEvery)
}

// wakeAt is when s may be started by a knock: after its own back-off and its
// tenant's.
func (s *site) wakeAt() time.Time {
	if t := s.tenant.paid.Add(-quickBurst); t.After(s.RetryAt) {
		return t
	}
	return s.RetryAt
}

// backoff is how long a site that failed n times in a row is left alone.
func backoff(n int) time.Duration {
	if n <= 0 {
		return 0
	}
	return min(time.Second<<min(n-1, 4), 10*time.Second)
}

func limits(t privsep.Tenant) cgroup.Limits {
	return cgroup.Limits{Memory: t.Memory, CPU: t.CPU, Processes: t.Processes}
}

func (s *site) state(now time.Time) *privsep.SiteState {
	st := &privsep.SiteState{Site: s.Record.Site, UID: s.Record.UID, Launch: s.Record.Launch, Hash: s.Hash}
	switch p := s.in(running); {
	case p != nil:
		st.Phase, st.PID = "running", p.PID
	case s.in(starting) != nil:
		st.Phase = "starting"
	case s.Record.Off:
		st.Phase = "off"
	case now.Before(s.wakeAt()):
		st.Phase = "backoff"
	default:
		st.Phase = "asleep"
	}
	st.Reload, st.Tasks = s.Reload, s.tasks()
	return st
}

// mayWake says whether a knock at s is for the monitor to hear: nobody of the
// site accepts or is about to.
func (s *site) mayWake(now time.Time) bool {
	return !s.Dropping && !s.Record.Off && !now.Before(s.wakeAt()) && s.in(starting) == nil && s.in(running) == nil
}

// settle listens for a knock at s, or stops to, as its state wants it. It is
// called after every change.
func (m *Monitor) settle(s *site) {
	now := time.Now()
	want := s.mayWake(now) && m.stopping < stopSites
	if at := s.wakeAt(); !want && now.Before(at) {
		m.poll.at(at, s)
	}
	if want == s.armed || s.Listener == 0 {
		return
	}
	const knock = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT
	switch {
	case !want:
		m.poll.change(s.Listener, unix.EPOLLONESHOT)
	case s.watched:
		m.poll.change(s.Listener, knock)
	default:
		if err := m.poll.watch(s.Listener, knock, func(uint32) { m.knocked(s) }); err != nil {
			m.log.Error("site not watched", keySite, s.Record.Site, keyCause, err)
			return
		}
		s.watched = true
	}
	s.armed = want
}

// tick implements ticker: the time of a back-off is over.
func (s *site) tick(m *Monitor, _ time.Time) {
	if m.Sites[s.Record.Site] == s {
		m.settle(s)
	}
}

func (m *Monitor) knocked(s *site) {
	s.armed = false // EPOLLONESHOT
	dead := m.renewIfDead(s)
	if !dead && s.mayWake(time.Now()) {
		m.start(s, nil, nil)
	}
	m.settle(s)
}

// renewIfDead makes the listener anew where the site's code has shut it down,
// which is for ever: such a socket tells of a hang-up.
func (m *Monitor) renewIfDead(s *site) bool {
	p := []unix.PollFd{{Fd: int32(s.Listener), Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(p, 0); n != 1 || err != nil || p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) == 0 {
		return false
	}
	m.renew(s)
	m.tell(privsep.EvListener, privsep.SiteRef{Site: s.Record.Site}, seraid)
	m.log.Warn("listener made anew", keySite, s.Record.Site, keyUID, s.Record.UID)
	return true
}

// renew replaces the listener, so that every connection that waits at the old
// one ends. The monitor never accepts: the site's code shares the socket's
// flags and could make that block.
func (m *Monitor) renew(s *site) {
	listener, err := m.bindSite(s.Record.Site)
	if err != nil {
		m.log.Error("listener not made anew", keySite, s.Record.Site, keyCause, err)
		return
	}
	m.poll.forget(s.Listener)
	s.Listener.close()
	s.Listener, s.watched, s.armed = listener, false, false
}

func (p *process) leaf() string {
	return strconv.FormatUint(uint64(p.site.Record.Site), 10) + "." + strconv.Itoa(p.Leaf)
}

// start begins a launch of the present record, or a task, beside what runs.
func (m *Monitor) start(s *site, w *waiter, task *privsep.Task) {
	now := time.Now()
	s.Leaf++
	p := &process{Leaf: s.Leaf, Launch: s.Record.Launch, Hash: s.Hash, Phase: starting,
		Began: now, Due: now.Add(loadLimit), Waiter: w, Task: task, site: s}
	s.Processes = append(s.Processes, p)
	s.tenant.running++
	m.loading[p] = true
	if err := m.prepare(p); err != nil {
		m.log.Error("site not started", keySite, s.Record.Site, keyUID, s.Record.UID, keyCause, err)
		m.failed(p, "the machine has no room for it: "+err.Error())
		return
	}
	m.poll.at(p.Due, p)
	m.handOver(p)
	if !s.LogTaken { // only now: seraid would want the processor that the zygote needs
		m.tell(privsep.EvLogs, privsep.SiteRef{Site: s.Record.Site}, seraid)
	}
	m.keepAwake(s)
	m.settle(s)
}

// prepare makes what a process needs: the tenant's cgroup, its leaf, the log.
func (m *Monitor) prepare(p *process) error {
	s, t := p.site, p.site.tenant
	if !t.Live {
		if err := m.cgroups.SetTenant(t.UID, limits(t.Tenant)); err != nil {
			return fmt.Errorf("make the cgroup of uid %d: %w", t.UID, err)
		}
		t.Live = true
	}
	if err := m.cgroups.NewLeaf(t.UID, p.leaf()); err != nil {
		return fmt.Errorf("make cgroup %s of uid %d: %w", p.leaf(), t.UID, err)
	}
	if s.LogW == 0 {
		s.LogR.close()
		if err := m.makeLog(s); err != nil {
			return err
		}
	}
	return nil
}

// makeLog makes the pipe of what the site prints. Its inode belongs to the
// tenant, so that /dev/stderr can be opened; only our end does not block.
func (m *Monitor) makeLog(s *site) error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("make a log pipe: %w", err)
	}
	s.LogR, s.LogW, s.LogTaken = fd(ends[0]), fd(ends[1]), false
	if err := errors.Join(
		unix.Fchown(ends[1], int(s.Record.UID), int(s.tenant.GID)),
		unix.SetNonblock(ends[0], true),
	); err != nil {
		s.LogR.close()
		s.LogW.close()
		return fmt.Errorf("prepare a log pipe: %w", err)
	}
	unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, pipeSize) // as it is, if not
	return nil
}

func (m *Monitor) loaded(p *process) {
	s, now := p.site, time.Now()
	delete(m.loading, p)
	m.poll.forget(p.Status)
	for _, old := range s.Processes {
		if old.Phase == running && old.Task == nil {
			old.Phase, old.Due = draining, now.Add(drainLimit)
			m.advise(old, "drain") // one that is gone or stopped meets the limit
			m.poll.at(old.Due, old)
		}
	}
	p.Phase, p.Loaded, p.Ready = running, true, now
	m.listen(p)
	m.keepAwake(s)
	s.RetryAt = time.Time{}
	millis := now.Sub(p.Began).Milliseconds()
	m.answerLaunch(p, privsep.LaunchResult{Loaded: true, PID: p.PID, Millis: millis})
	m.tell(privsep.EvStarted, privsep.SiteEvent{Site: s.Record.Site, UID: s.Record.UID, Launch: p.Launch, PID: p.PID, Millis: millis}, seraid, proxy)
	m.settle(s)
}

func (m *Monitor) answerLaunch(p *process, r privsep.LaunchResult) {
	if p.Waiter != nil && p.Task == nil {
		m.reply(*p.Waiter, answer{body: r})
		p.Waiter = nil
	}
}

// failed ends a process that did not load. Where nothing else of the site
// runs, the connections that wait are ended and the site is left alone for a
// while; what runs is not touched.
func (m *Monitor) failed(p *process, why string) {
	s, now := p.site, time.Now()
	m.finish(p)
	if p.Task != nil {
		m.taskEnded(p, privsep.TaskEvent{Message: why})
		return
	}
	m.answerLaunch(p, privsep.LaunchResult{Millis: now.Sub(p.Began).Milliseconds(), Message: why})
	if s.in(running) == nil && !s.Dropping {
		s.Fails++
		wait := backoff(s.Fails)
		s.RetryAt = now.Add(wait)
		m.tell(privsep.EvFailed, privsep.SiteEvent{Site: s.Record.Site, UID: s.Record.UID, Launch: p.Launch, Message: why, RetryMs: wait.Milliseconds()}, seraid, proxy)
		m.renew(s)
	}
	m.settle(s)
}

// ended is called when the main process of a launch was reaped.
func (m *Monitor) ended(p *process, status unix.WaitStatus) {
	s, now := p.site, time.Now()
	delete(m.mains, p.PID)
	if p.Phase == starting {
		m.heard(p) // its last words
	}
	was, pid := p.Phase, p.PID
	p.PID = 0
	memory, err := m.cgroups.Memory(s.Record.UID, p.leaf())
	if err != nil {
		m.log.Warn("memory not read", keySite, s.Record.Site, keyUID, s.Record.UID, keyCause, err)
	}
	event := privsep.Memory{OOMKills: memory.OOMKills, Peak: memory.Peak, Limit: memory.Limit}
	switch {
	case was == starting:
		m.failed(p, lastWords(status, memory))
	case p.Task != nil:
		if was != ending {
			m.finish(p)
		}
		m.taskEnded(p, privsep.TaskEvent{PID: pid, Status: int(status), Memory: event})
	case was == running:
		m.finish(p)
		if now.Sub(p.Ready) < stable {
			s.tenant.endedSoon(now)
		}
		// No back-off: it did load, and one page that crashes its worker must
		// not keep the others from being served.
		s.Fails = 0
	case was == draining:
		m.finish(p)
	}
	if p.Loaded {
		m.tell(privsep.EvExited, privsep.SiteEvent{Site: s.Record.Site, UID: s.Record.UID, Launch: p.Launch, PID: pid, Status: int(status),
			Memory: event}, seraid, proxy)
	}
	if !s.Dropping {
		m.renewIfDead(s)
	}
	m.clear(p)
	m.settle(s)
}

func lastWords(status unix.WaitStatus, memory cgroup.Memory) string {
	switch {
	case memory.OOMKills > 0:
		return fmt.Sprintf("it was killed for memory while its code was loaded: the cap is %d MiB; ask for a larger plan or load less", memory.Limit>>20)
	case status.Signaled():
		return fmt.Sprintf("its process was killed by signal %d (%s) while its code was loaded", status.Signal(), unix.SignalName(status.Signal()))
	}
	return fmt.Sprintf("its process left with status %d while its code was loaded", status.ExitStatus())
}

// kill ends all that runs of s.
func (m *Monitor) kill(s *site, why string) {
	for _, p := range s.Processes {
		if p.Phase != ending {
			m.finish(p)
			m.answerLaunch(p, privsep.LaunchResult{Message: why})
		}
	}
	m.siteEnded(s)
	m.settle(s)
}

// finish kills what is left in the leaf of p, and sees to it that the leaf is
// removed.
func (m *Monitor) finish(p *process) {
	delete(m.loading, p)
	if p.Status != 0 {
		m.poll.forget(p.Status)
		p.Status.close()
	}
	p.Phase, p.Pause = ending, 4*time.Millisecond
	m.killLeaf(p)
	p.Due = time.Now().Add(p.Pause)
	m.poll.at(p.Due, p)
}

func (m *Monitor) killLeaf(p *process) {
	if err := m.cgroups.Kill(p.site.Record.UID, p.leaf()); err != nil && !isGone(err) {
		m.log.Error("cgroup not killed", keySite, p.site.Record.Site, keyUID, p.site.Record.UID, keyCause, err)
	}
}

// tick implements ticker: the patience with p may be over.
func (p *process) tick(m *Monitor, now time.Time) {
	if now.Before(p.Due) {
		return
	}
	switch p.Phase {
	case starting:
		switch {
		case p.Status == 0 && p.PID != 0:
			m.failed(p, "its process closed its status socket while its code was loaded")
		case p.Status == 0 && p.Spawned:
			m.failed(p, fmt.Sprintf("the zygote %s went away %d times while it started it", p.site.Record.Zygote, p.Tries))
		case !p.Spawned:
			m.failed(p, fmt.Sprintf("the zygote %s did not come up within %s", p.site.Record.Zygote, loadLimit))
		default:
			m.failed(p, fmt.Sprintf("its code was not loaded within %s", loadLimit))
		}
	case running:
		m.poll.change(p.Status, wordOnce)
	case draining:
		m.finish(p)
	case ending:
		m.clear(p)
	}
}

// clear removes the leaf of p if it can, else looks again later. A main
// process is waited for: its leaf tells how much memory it had.
func (m *Monitor) clear(p *process) {
	s := p.site
	if p.Phase != ending {
		return
	}
	if p.PID == 0 {
		err := m.cgroups.RemoveLeaf(s.Record.UID, p.leaf())
		if err == nil || isGone(err) {
			m.gone(p)
			return
		}
		if !errors.Is(err, cgroup.ErrBusy) {
			m.log.Error("cgroup not removed", keySite, s.Record.Site, keyUID, s.Record.UID, keyCause, err)
		}
	}
	p.Pause = min(2*p.Pause, time.Second)
	p.Due = time.Now().Add(p.Pause)
	m.killLeaf(p)
	m.poll.at(p.Due, p)
}

// gone forgets p, and what was kept for it.
func (m *Monitor) gone(p *process) {
	s := p.site
	p.Phase = ""
	for i := range s.Processes {
		if s.Processes[i] == p {
			s.Processes = append(s.Processes[:i], s.Processes[i+1:]...)
			break
		}
	}
	s.tenant.running--
	if p.Task != nil {
		m.taskGone(p)
	}
	m.siteEnded(s)
	m.tenantEnded(s.tenant)
}

// siteEnded clears up and answers if nothing of s runs.
func (m *Monitor) siteEnded(s *site) {
	if len(s.Processes) > 0 {
		return
	}
	// What nobody has read of the log is kept for the next seraid.
	if left, err := unix.IoctlGetInt(int(s.LogR), unix.TIOCINQ); s.LogTaken || err != nil || left == 0 || s.Dropping {
		s.LogR.close()
		s.LogW.close()
	}
	if s.Dropping && m.Sites[s.Record.Site] == s {
		m.unbindSite(s)
		delete(m.Sites, s.Record.Site)
		delete(s.tenant.sites, s.Record.Site)
		m.tenantEnded(s.tenant)
		m.nextStop()
	}
	for _, w := range s.Ended {
		m.reply(w, answer{})
	}
	s.Ended = nil
}

// drop ends s for good.
func (m *Monitor) drop(s *site) {
	s.Dropping = true
	m.kill(s, "the site was removed")
}

// tenantEnded removes the cgroup of t if nothing of it runs, and the tenant
// where that was asked for.
func (m *Monitor) tenantEnded(t *tenant) {
	if t.running > 0 {
		return
	}
	if t.Live {
		if err := m.cgroups.RemoveTenant(t.UID); err != nil && !isGone(err) {
			m.log.Error("cgroup not removed", keyUID, t.UID, keyCause, err)
		}
		t.Live = false
	}
	if len(t.Dropped) > 0 && len(t.sites) == 0 {
		delete(m.Tenants, t.UID)
		for _, w := range t.Dropped {
			m.reply(w, answer{})
		}
		t.Dropped = nil
	}
}
