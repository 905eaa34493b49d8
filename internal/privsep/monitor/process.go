package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// A command is a process of ours to be started: with these descriptors as 3
// and up, /dev/null as standard input, our own standard error, and nothing
// else of ours.
type command struct {
	path     string
	args     []string
	files    []int
	stdin    int // 0 is /dev/null
	uid, gid uint32
}

// spawnProgram starts it in a session of its own, without groups.
func spawnProgram(p command) (pid int, err error) {
	stdin := uintptr(p.stdin)
	if p.stdin == 0 {
		null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, fmt.Errorf("open %s: %w", os.DevNull, err)
		}
		defer unix.Close(null)
		stdin = uintptr(null)
	}
	files := []uintptr{stdin, 2, 2}
	for _, f := range p.files {
		files = append(files, uintptr(f))
	}
	pid, err = syscall.ForkExec(p.path, append([]string{p.path}, p.args...), &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: p.uid, Gid: p.gid}},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", p.path, err)
	}
	return pid, nil
}

// joinOps moves a process of ours that has just been started into its cgroup.
func (m *Monitor) joinOps(name string, pid int) error {
	files, err := m.cgroups.OpsJoinFiles(name)
	if err != nil {
		return fmt.Errorf("open cgroup ops/%s: %w", name, err)
	}
	defer closeFiles(files)
	for _, f := range files {
		if _, err := f.WriteString(strconv.Itoa(pid) + "\n"); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("join cgroup ops/%s: %w", name, err)
		}
	}
	return nil
}

// memfd makes a file of memory with this text, to be read from its start.
func memfd(name string, text []byte) (int, error) {
	n, err := unix.MemfdCreate("serai-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("make a memfd: %w", err)
	}
	for at := 0; at < len(text); {
		w, err := unix.Pwrite(n, text[at:], int64(at))
		if err != nil {
			unix.Close(n)
			return 0, fmt.Errorf("write a memfd: %w", err)
		}
		at += w
	}
	return n, nil
}

// packetPair makes a connection for packets; our end does not block.
func packetPair() (ours, theirs int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("make a socket pair: %w", err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		privsep.CloseAll(pair[:])
		return 0, 0, fmt.Errorf("prepare a socket pair: %w", err)
	}
	return pair[0], pair[1], nil
}

// take makes a descriptor of ours out of a file.
func take(f *os.File) (fd, error) {
	defer f.Close()
	n, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return 0, fmt.Errorf("keep %s: %w", f.Name(), err)
	}
	return fd(n), nil
}

// fdList writes n numbers from first on: 6,7,8.
func fdList(first, n int) string {
	var list []string
	for i := range n {
		list = append(list, strconv.Itoa(first+i))
	}
	return strings.Join(list, ",")
}

// reap looks at every child that has ended: we are the parent of all that
// lost theirs.
func (m *Monitor) reap() {
	for p := range m.loading { // pids are told before they end
		if p.PID == 0 {
			m.heard(p)
		}
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		m.reaped(pid, status)
	}
}

func (m *Monitor) reaped(pid int, status unix.WaitStatus) {
	if p := m.mains[pid]; p != nil {
		m.ended(p, status)
		return
	}
	for _, p := range m.Peers {
		if p.PID == pid {
			level := slog.LevelWarn
			if m.stopping > 0 {
				level = slog.LevelInfo
			}
			m.log.Log(context.Background(), level, "process ended", keyProcess, p.Name, keyPID, pid, keyCause, describe(status))
			m.peerDown(p)
			return
		}
	}
	for _, current := range m.Zygotes {
		for z := current; z != nil; z = z.Next {
			if z.PID == pid {
				m.zygoteDown(z, describe(status))
				return
			}
		}
	}
	for _, j := range m.Jobs {
		if j.PID == pid {
			n := int(status)
			j.Status = &n
			m.jobEnded(j)
			return
		}
	}
	for i, retired := range m.Retired {
		if retired == pid {
			m.Retired = append(m.Retired[:i], m.Retired[i+1:]...)
			return
		}
	}
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return fmt.Sprintf("killed by signal %d (%s)", status.Signal(), unix.SignalName(status.Signal()))
	}
	return fmt.Sprintf("left with status %d", status.ExitStatus())
}

const (
	maxJobs    = 4                // helper processes at once
	jobLimit   = 2 * time.Minute  // then a helper is killed
	checkLimit = 10 * time.Second // for a new binary to say yes
	maxJobText = 1 << 20          // bytes a helper may answer
)

// queue runs a one-shot helper of our own binary when its turn comes.
func (m *Monitor) queue(name string, w *waiter, input any) {
	text, err := json.Marshal(input)
	if err != nil {
		m.refuse(*w, name, err)
		return
	}
	m.Jobs = append(m.Jobs, &job{Name: name, Waiter: w, Input: text})
	m.runJobs()
}

func (m *Monitor) runJobs() {
	if m.stopping > 0 {
		m.nextStop()
		return
	}
	var busy int
	for _, j := range m.Jobs {
		if j.started() {
			busy++
		} else if busy < maxJobs {
			busy++
			if err := m.runJob(j, "/proc/self/exe", []string{"helper", j.Name}, jobLimit); err != nil {
				m.finishJob(j, err)
				return // finishJob has come here again
			}
		}
	}
}

func (j *job) started() bool { return j.PID != 0 || j.Out != 0 }

// runJob starts a helper: its input is its standard input, descriptor 3 takes
// what it answers.
func (m *Monitor) runJob(j *job, path string, args []string, limit time.Duration) error {
	in, err := memfd("input", j.Input)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer unix.Close(ends[1])
	unix.SetNonblock(ends[1], false)
	j.PID, err = spawnProgram(command{path: path, args: args, stdin: in, files: []int{ends[1]}})
	if err != nil {
		unix.Close(ends[0])
		return err
	}
	j.Out, j.Due = fd(ends[0]), time.Now().Add(limit)
	m.poll.at(j.Due, j)
	return m.watchJob(j)
}

func (m *Monitor) watchJob(j *job) error {
	return m.poll.watch(j.Out, unix.EPOLLIN, func(uint32) { m.jobSaid(j) })
}

func (m *Monitor) jobSaid(j *job) {
	buf := make([]byte, 64<<10)
	n, err := unix.Read(int(j.Out), buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return
	}
	if n > 0 && len(j.Text)+n <= maxJobText {
		j.Text = append(j.Text, buf[:n]...)
		return
	}
	m.poll.forget(j.Out)
	j.Out.close()
	m.jobEnded(j)
}

// tick implements ticker: the helper takes too long.
func (j *job) tick(m *Monitor, now time.Time) {
	if j.PID != 0 && j.Status == nil && !now.Before(j.Due) {
		unix.Kill(j.PID, unix.SIGKILL) // our child, not reaped
	}
}

// jobEnded finishes j when it was reaped and all it said was read.
func (m *Monitor) jobEnded(j *job) {
	if j.Status == nil || j.Out != 0 {
		return
	}
	status := unix.WaitStatus(*j.Status)
	if status != 0 || len(j.Text) == 0 {
		m.finishJob(j, fmt.Errorf("helper %s: %s, and said %.200q", j.Name, describe(status), j.Text))
		return
	}
	m.finishJob(j, nil)
}

// Answer is what a one-shot helper says on its descriptor 3.
type Answer struct {
	Error *privsep.Error  `json:"error,omitempty"`
	Cause string          `json:"cause,omitempty"` // for the log
	Body  json.RawMessage `json:"body,omitempty"`
}

// finishJob answers who waits for j, and lets the next job run.
func (m *Monitor) finishJob(j *job, err error) {
	for i := range m.Jobs {
		if m.Jobs[i] == j {
			m.Jobs = append(m.Jobs[:i], m.Jobs[i+1:]...)
			break
		}
	}
	var a Answer
	if err == nil {
		err = privsep.Strict(j.Text, &a)
	}
	if a.Error != nil {
		err = &serai.Error{Kind: serai.ParseKind(a.Error.Kind), Msg: a.Error.Msg, Hint: a.Error.Hint, Err: causeOf(a.Cause)}
	}
	switch {
	case j.Name == checkState:
		if err == nil && string(a.Body) != yes {
			err = fmt.Errorf("it said %.200q, not %s", a.Body, yes)
		}
		m.checked(err)
	case err != nil:
		m.refuse(*j.Waiter, j.Name, err)
	case len(a.Body) == 0:
		m.reply(*j.Waiter, answer{})
	default:
		m.reply(*j.Waiter, answer{body: a.Body})
	}
	m.runJobs()
}

func causeOf(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}
