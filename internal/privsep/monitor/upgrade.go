package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/cgroup"
	"serai.dev/serai/internal/privsep"
)

// The ways in which a serai-priv runs another one: check-state as a child that
// reads a state and says whether it could go on from there; restore-fd in
// place of itself.
const (
	checkState  = "check-state"
	restoreFlag = "--restore-fd"
)

// yes is what a binary answers that could go on, as JSON.
const yes = `"yes"`

// upgrade asks the binary on disk whether it could go on from here.
func (m *Monitor) upgrade() {
	if m.upgrading || m.stopping > 0 {
		return
	}
	path, text, err := m.successor()
	if err == nil {
		m.upgrading = true
		j := &job{Name: checkState, Input: text}
		m.Jobs = append(m.Jobs, j)
		if err = m.runJob(j, path, []string{checkState}, checkLimit); err != nil {
			m.finishJob(j, err)
			return
		}
		return
	}
	m.checked(err)
}

// successor is the path of the binary that is to follow, and our state. Only
// root may have written that binary.
func (m *Monitor) successor() (path string, text []byte, err error) {
	path = filepath.Join(m.Config.Libexec, "serai-priv")
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return "", nil, serai.Errorf(serai.Denied, "%s may be written by others than root", path)
	}
	text, err = json.Marshal(m.state)
	return path, text, err
}

// checked is called with the answer of the binary on disk: nil is yes.
func (m *Monitor) checked(err error) {
	if err == nil && m.stopping == 0 {
		err = m.become()
	}
	m.upgrading = false
	m.log.Error("upgrade refused", keyCause, err)
	m.tell(privsep.EvUpgrade, privsep.UpgradeEvent{Message: fmt.Sprintf("the new serai-priv was not taken: %v", err)}, seraid)
}

// become runs the new binary in place of this one. It returns only where that
// did not work.
func (m *Monitor) become() error {
	m.Upgrades = append(m.Upgrades, privsep.UpgradeEvent{OK: true, Message: "serai-priv was upgraded in place"})
	path, text, err := m.successor()
	m.Upgrades = nil
	if err != nil {
		return err
	}
	file, err := memfd("state", text)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if err := keepOnExec(&m.state, true); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(file), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("hand on the state: %w", err)
	}
	m.log.Info("upgrading", "path", path)
	err = syscall.Exec(path, []string{path, restoreFlag, strconv.Itoa(file)}, os.Environ())
	keepOnExec(&m.state, false)
	return fmt.Errorf("run %s: %w", path, err)
}

// keepOnExec lets the descriptors of s outlive an exec, or not.
func keepOnExec(s *state, keep bool) (err error) {
	flags := unix.FD_CLOEXEC
	if keep {
		flags = 0
	}
	s.eachFD(func(f *fd) {
		if *f != 0 && err == nil {
			if _, ferr := unix.FcntlInt(uintptr(*f), unix.F_SETFD, flags); ferr != nil {
				err = fmt.Errorf("hand on descriptor %d: %w", *f, ferr)
			}
		}
	})
	return err
}

// CheckState reads a state from r and writes an Answer to w: whether this
// binary could go on from there.
func CheckState(r io.Reader, w io.Writer) error {
	text, err := io.ReadAll(r)
	if err == nil {
		_, err = decodeState(text)
	}
	a := Answer{Body: json.RawMessage(yes)}
	if err != nil {
		a = Answer{Error: &privsep.Error{Kind: serai.Invalid.String(), Msg: err.Error()}}
	}
	return json.NewEncoder(w).Encode(a)
}

// Restore goes on from the state that another binary left in the file: same
// pid, same children, same descriptors.
func Restore(file *os.File, log *slog.Logger) (*Monitor, error) {
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	file.Close()
	s, err := decodeState(text)
	if err != nil {
		return nil, err
	}
	m, err := newMonitor(log)
	if err != nil {
		return nil, err
	}
	m.state, m.ready = *s, true
	m.link()
	if err := keepOnExec(&m.state, false); err != nil {
		return nil, err
	}
	if m.cgroups, err = cgroup.Open(m.Config.CgroupRoot); err != nil {
		return nil, fmt.Errorf("open the cgroups: %w", err)
	}
	if m.PerlDir, err = m.writePerl(); err != nil {
		return nil, err
	}
	if err := m.watchAll(); err != nil {
		return nil, err
	}
	m.log.Info("upgraded", "sites", len(m.Sites), keyPID, os.Getpid())
	m.tellUpgrades()
	return m, nil
}

// watchAll fills the epoll set and the timers from the state.
func (m *Monitor) watchAll() error {
	var errs []error
	for _, p := range m.Peers {
		if p.Sock != 0 {
			errs = append(errs, m.watchPeer(p))
		}
		m.poll.at(p.StartAt, p)
	}
	for _, current := range m.Zygotes {
		for z := current; z != nil; z = z.Next {
			z.told = true
			if z.Control != 0 {
				errs = append(errs, m.watchZygote(z))
			}
			m.poll.at(m.due(z), z)
		}
	}
	for _, j := range m.Jobs {
		if j.Out != 0 {
			errs = append(errs, m.watchJob(j))
			m.poll.at(j.Due, j)
		}
	}
	for _, l := range m.Leaving {
		errs = append(errs, m.watchLeaving(l))
	}
	for _, s := range m.Sites {
		for _, p := range s.Processes {
			if p.PID != 0 {
				m.mains[p.PID] = p
			}
			if p.Phase == starting {
				m.loading[p] = true
				if p.Status != 0 {
					errs = append(errs, m.watchStatus(p))
				} else if !p.Spawned {
					m.handOver(p)
				}
			}
			if p.Phase == running {
				m.listen(p)
			} else {
				m.poll.at(p.Due, p)
			}
		}
		m.settle(s)
	}
	m.runJobs()
	return errors.Join(errs...)
}

// tellUpgrades tells of an upgrade that a seraid has not been told of.
func (m *Monitor) tellUpgrades() {
	if p := m.Peers[seraid]; p == nil || p.Sock == 0 {
		return
	}
	for _, u := range m.Upgrades {
		m.tell(privsep.EvUpgrade, u, seraid)
	}
	m.Upgrades = nil
}
