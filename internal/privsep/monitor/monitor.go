// Package monitor is serai-priv, the only process that keeps the root power.
// It holds listeners, log pipes, cgroups, namespaces and launch records, is the
// parent of every process of a site, and does what the table of requests says
// for seraid and serai-proxy, and nothing else. It never parses what a tenant
// wrote, never opens a path that a tenant controls but beneath a home with
// openat2, and never waits for a process that has a tenant's uid.
//
// One goroutine does everything, in turns of one epoll set: no locks. What it
// knows is plain data (see state), so that it can be handed to a new binary.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/cgroup"
	"serai.dev/serai/internal/privsep"
)

// The keys of the log.
const (
	keyProcess = "name" // of a process of ours
	keyZygote  = "zygote"
	keySite    = "site" // number
	keyUID     = "uid"
	keyPID     = "pid"
	keyCause   = "cause"
)

// A Monitor is made by Start or Restore and runs until Run returns.
type Monitor struct {
	state
	log     *slog.Logger
	cgroups *cgroup.Tree
	poll    *poller
	mains   map[int]*process  // main processes of sites, by pid
	loading map[*process]bool // those in phase starting
	buf     []byte            // for one packet
	control []byte            // for its descriptors

	stopping  int  // see stop.go
	upgrading bool // a new binary is being asked
	ready     bool
	end       bool // leave the loop
}

func newMonitor(log *slog.Logger) (*Monitor, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	return &Monitor{
		log:     log,
		poll:    p,
		mains:   make(map[int]*process),
		loading: make(map[*process]bool),
		buf:     make([]byte, privsep.MaxPacket+1),
		control: make([]byte, privsep.ControlSize),
	}, nil
}

// Run serves until it was told to stop by SIGINT, SIGTERM or the end of ctx,
// and everything that it started has ended; a second signal hurries it.
// SIGHUP asks for an upgrade: then Run does not return.
func (m *Monitor) Run(ctx context.Context) error {
	if err := m.listenToSignals(ctx); err != nil {
		return err
	}
	if m.Began.IsZero() {
		m.Began = time.Now()
		for name, z := range m.Config.Zygotes {
			if !z.OnDemand {
				m.zygote(name)
			}
		}
		for _, name := range []string{proxy, seraid} {
			m.Peers[name] = &peer{Name: name}
			m.startPeer(m.Peers[name])
		}
		m.checkReady()
	}
	m.reap()
	for !m.end {
		if err := m.turnOnce(); err != nil {
			return err
		}
	}
	return m.cleanUp()
}

// listenToSignals turns signals into bytes of a pipe, which epoll can wait for.
func (m *Monitor) listenToSignals(ctx context.Context) error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("make a pipe for signals: %w", err)
	}
	// A child's end may come in twice, but an order must not be pushed out by
	// one: hence two channels.
	orders, children := make(chan os.Signal, 8), make(chan os.Signal, 1)
	signal.Notify(orders, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		done := ctx.Done()
		for {
			sig := os.Signal(syscall.SIGTERM)
			select {
			case sig = <-orders:
			case sig = <-children:
			case <-done:
				done = nil
			}
			unix.Write(ends[1], []byte{byte(sig.(syscall.Signal))}) // a full pipe wakes us anyway
		}
	}()
	return m.poll.watch(fd(ends[0]), unix.EPOLLIN, func(uint32) {
		buf := make([]byte, 64)
		n, _ := unix.Read(ends[0], buf)
		for _, sig := range buf[:max(n, 0)] {
			switch syscall.Signal(sig) {
			case syscall.SIGCHLD:
				m.reap()
			case syscall.SIGHUP:
				m.upgrade()
			default:
				m.stop()
			}
		}
	})
}

// checkReady says so once, when every configured zygote came up or failed.
func (m *Monitor) checkReady() {
	if m.ready || len(m.Peers) == 0 {
		return
	}
	for _, z := range m.Zygotes {
		if !z.told {
			return
		}
	}
	m.ready = true
	m.log.Info("ready", "http", m.Config.Listen.HTTP, "api", m.Config.APISocket(), "cgroup", m.cgroups.Describe(), keyPID, os.Getpid())
}

// The steps of a stop: first our own processes drain, while sites still start
// for them; then the sites end, then the zygotes.
const (
	stopPeers = iota + 1
	stopSites
	stopZygotes
)

func (m *Monitor) stop() {
	now := time.Now()
	if m.stopping > 0 {
		for _, p := range m.Peers {
			p.StartAt = now
			p.tick(m, now)
		}
		return
	}
	m.log.Info("stopping")
	m.stopping = stopPeers
	for _, p := range m.Peers {
		if p.PID != 0 {
			unix.Kill(p.PID, unix.SIGTERM)
			p.StartAt = now.Add(grace)
			m.poll.at(p.StartAt, p)
		}
	}
	m.nextStop()
}

// nextStop goes on with the stop as far as it can.
func (m *Monitor) nextStop() {
	if m.stopping == stopPeers {
		for _, p := range m.Peers {
			if p.PID != 0 {
				return
			}
		}
		m.stopping = stopSites
		m.poll.at(time.Now().Add(10*time.Second), (*lastCall)(m))
		for _, s := range m.Sites {
			m.drop(s)
		}
	}
	// A helper that is cut short leaves half an account.
	if m.stopping == stopSites && len(m.Sites) == 0 && !slices.ContainsFunc(m.Jobs, (*job).started) {
		m.end = true
	}
}

// lastCall is the end of the patience with sites and helpers that do not end.
type lastCall Monitor

func (l *lastCall) tick(*Monitor, time.Time) { l.end = true }

// cleanUp ends what is left, and leaves nothing behind.
func (m *Monitor) cleanUp() error {
	m.stopping = stopZygotes
	pids := slices.Clone(m.Retired)
	for _, z := range m.Zygotes {
		for ; z != nil; z = z.Next {
			z.Control.close()
			pids = append(pids, z.PID)
		}
	}
	for _, j := range m.Jobs {
		if j.Status == nil { // else it was reaped, and the number may be another's
			pids = append(pids, j.PID)
		}
	}
	for _, pid := range pids {
		if pid != 0 {
			unix.Kill(pid, unix.SIGKILL)
			unix.Wait4(pid, nil, 0, nil)
		}
	}
	err := m.cgroups.Clear()
	for { // what was killed is ours to reap
		if pid, _ := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 {
			break
		}
	}
	err = errors.Join(err, m.cgroups.Remove(), m.removeRunDir())
	m.unregister()
	m.eachFD((*fd).close)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	m.log.Info("stopped")
	return nil
}

// isGone says that what was to be removed is not there.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || serai.KindOf(err) == serai.NotFound
}
