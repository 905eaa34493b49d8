package root

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"serai.dev/serai"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/config"
)

// patience bounds every wait. It is long because the machine may be busy; no
// test passes by it.
const patience = 60 * time.Second

// A server is one `serai serve` of a script, and all it may leave behind.
type server struct {
	base, prefix, cgroup string
	firstUID, port       int
	adoptUID             int // the first of ten that are in no range, for accounts to adopt
	clients              map[string]*client
	resident             map[string]serai.Bytes // by pid, at `peak reset`

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd ended
	log  bytes.Buffer
	line *sync.Cond // a line was added to log
	load map[string]*load
	mta  *exec.Cmd // a mail server, or nil
}

func newServer(n int, repo string) (*server, error) {
	base, err := os.MkdirTemp("/var/lib", "serai-test.")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	s := &server{
		base: base, port: port, load: map[string]*load{},
		prefix: fmt.Sprintf("st%d-", n), cgroup: fmt.Sprintf("serai-test-r%d", n), firstUID: 1900100000 + 100*n,
		adoptUID: 1900300000 + 10*n, clients: map[string]*client{},
	}
	s.line = sync.NewCond(&s.mu)
	conf := fmt.Sprintf(`stateDir: %[1]s/state
runDir: %[1]s/run
logDir: %[1]s/log
cgroupRoot: %[2]s
listen: {http: ["127.0.0.1:%[3]d"], https: []}
accounts: {range: %[4]d-%[5]d, prefix: %[6]s, home: %[1]s/home}
`, base, s.cgroup, port, s.firstUID, s.firstUID+99, s.prefix)
	return s, errFirst(l.Close(), os.Chmod(base, 0o755), os.Mkdir(base+"/run", 0o755),
		os.WriteFile(base+"/serai.yaml", []byte(conf), 0o644))
}

func errFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// cmdServe starts the server and waits until it is ready: serve [FLAG ...].
// Negated: it must end by itself; what it said goes to stderr.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	pr, pw := io.Pipe()
	cmd := exec.Command(filepath.Join(bin, "serai"), append([]string{"serve", "--config", s.base + "/serai.yaml"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "OPERATOR_SECRET=hunter2"}
	cmd.Stdout, cmd.Stderr = pw, pw
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ts.Check(cmd.Start())
	done := make(chan struct{})
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.log.Reset()
	s.mu.Unlock()
	go func() {
		for in := bufio.NewScanner(pr); in.Scan(); {
			s.mu.Lock()
			s.log.WriteString(in.Text() + "\n")
			s.line.Broadcast()
			s.mu.Unlock()
		}
		close(done) // all that it said has been read
		s.mu.Lock()
		s.line.Broadcast()
		s.mu.Unlock()
	}()
	go func() {
		_ = cmd.Wait() // the exit is looked at through ProcessState
		pw.Close()
	}()
	if neg {
		select {
		case <-done:
		case <-time.After(patience):
			ts.Fatalf("the server runs, and should not:\n%s", s.said())
		}
		_, err := io.WriteString(ts.Stderr(), s.said())
		ts.Check(err)
		s.mu.Lock()
		s.cmd = nil
		s.mu.Unlock()
		if cmd.ProcessState.Success() {
			ts.Fatalf("the server ended with status 0")
		}
		return
	}
	if !s.waitLine(func(log string) bool { return strings.Contains(log, "msg=ready") }) {
		ts.Fatalf("the server did not get ready:\n%s", s.said())
	}
}

func (s *server) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// waitLine waits until the log satisfies ok, or the server ends.
func (s *server) waitLine(ok func(log string) bool) bool {
	late := time.AfterFunc(patience, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.line.Broadcast()
	})
	defer late.Stop()
	end := time.Now().Add(patience)
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok(s.log.String()) {
		select {
		case <-s.done:
			return ok(s.log.String())
		default:
		}
		if time.Now().After(end) {
			return false
		}
		s.line.Wait()
	}
	return true
}

// cmdShutdown ends the server as an operator would, and checks that it exits
// with 0.
func cmdShutdown(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	if err := s.stop(); err != nil {
		ts.Fatalf("%v\n%s", err, s.said())
	}
}

func (s *server) stop() error {
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.cmd = nil
	s.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end the server: %w", err)
	}
	select {
	case <-done:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-done
		return fmt.Errorf("the server did not end within %v", patience)
	}
	if !cmd.ProcessState.Success() {
		return fmt.Errorf("the server ended with %v", cmd.ProcessState)
	}
	return nil
}

// cmdSignal sends a signal to one of the server's processes and, for KILL,
// waits until it is gone: signal KILL seraid.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: signal NAME serai-priv|seraid|serai-proxy ...")
	}
	s := serverOf(ts)
	sig, ok := map[string]syscall.Signal{"KILL": syscall.SIGKILL, "HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM,
		"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}[args[0]]
	if !ok {
		ts.Fatalf("unknown signal %s", args[0])
	}
	for _, name := range args[1:] {
		pid, err := s.pidOf(name)
		ts.Check(err)
		s.mu.Lock()
		for _, l := range s.load {
			l.killed(time.Now())
		}
		s.mu.Unlock()
		ts.Check(syscall.Kill(pid, sig))
		if sig != syscall.SIGKILL {
			continue
		}
		if name == "serai-priv" {
			s.gone(ts)
			continue
		}
		wait(ts, name+" to go", func() bool {
			now, err := s.pidOf(name)
			return err != nil || now != pid
		})
	}
}

// gone waits until the server has ended after a SIGKILL, the processes that had
// its output among it.
func (s *server) gone(ts *testscript.TestScript) {
	s.mu.Lock()
	done := s.done
	s.cmd = nil
	s.mu.Unlock()
	select {
	case <-done:
	case <-time.After(patience):
		ts.Fatalf("serai-priv was killed, but what it had started goes on")
	}
}

// pidOf is the pid of serai-priv or of a child of it by name.
func (s *server) pidOf(name string) (int, error) {
	s.mu.Lock()
	cmd := s.cmd
	s.mu.Unlock()
	if cmd == nil {
		return 0, errGone
	}
	if name == "serai-priv" {
		return cmd.Process.Pid, nil
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue
		}
		open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
		f := strings.Fields(string(b[end+1:]))
		if string(b[open+1:end]) == name && f[1] == strconv.Itoa(cmd.Process.Pid) && f[0] != "Z" {
			return strconv.Atoi(strings.TrimSpace(string(b[:open])))
		}
	}
	return 0, fmt.Errorf("no %s beneath pid %d", name, cmd.Process.Pid)
}

// wait polls for what no event tells of.
func wait(ts *testscript.TestScript, what string, ok func() bool) {
	end := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(end) {
			ts.Fatalf("waited for %s for %v", what, patience)
		}
		<-tick.C
	}
}

// cmdAwait repeats a command until it succeeds: await operator get sites, or
// await log TEXT, for a line of the server's log.
func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	if args[0] == "log" {
		if !s.waitLine(func(log string) bool { return strings.Contains(log, args[1]) != neg }) {
			ts.Fatalf("waited for %q in the server's log:\n%s", args[1], s.said())
		}
		return
	}
	var out []byte
	wait(ts, strings.Join(args, " "), func() bool {
		c := exec.Command("sh", "-c", strings.Join(args, " "))
		c.Dir = ts.Getenv("WORK")
		c.Env = []string{"PATH=" + ts.Getenv("PATH"), "SERAI_SOCKET=" + ts.Getenv("SERAI_SOCKET"), "URL=" + ts.Getenv("URL"), "BASE=" + s.base}
		var err error
		out, err = c.CombinedOutput()
		return (err == nil) != neg
	})
	_, err := ts.Stdout().Write(out)
	ts.Check(err)
}

// account is a customer's account.
func (s *server) account(tenant string) (*user.User, error) { return user.Lookup(s.prefix + tenant) }

// sitePIDs reads the processes of a site from its cgroups.
func (s *server) sitePIDs(ts *testscript.TestScript, name string) ([]string, error) {
	tenant, site, _ := strings.Cut(name, "/")
	cmd := exec.Command(filepath.Join(bin, "serai"), "get", "site", name, "-o", "json")
	cmd.Env = []string{"SERAI_SOCKET=" + ts.Getenv("SERAI_SOCKET")}
	number, err := s.number(cmd, site)
	if err != nil {
		return nil, err
	}
	a, err := s.account(tenant)
	if err != nil {
		return nil, err
	}
	pids := []string{}
	files, err := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/{,/pids}/%s/tenants/%s/%s.*/cgroup.procs", s.cgroup, a.Uid, number))
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids"} {
		more, err := filepath.Glob(fmt.Sprintf("%s/%s/tenants/%s/%s.*/cgroup.procs", dir, s.cgroup, a.Uid, number))
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		pids = append(pids, strings.Fields(string(b))...)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func (s *server) number(get *exec.Cmd, site string) (string, error) {
	out, err := get.Output()
	if err != nil {
		return "", fmt.Errorf("get the number of site %s: %w", site, err)
	}
	var r struct {
		Metadata struct {
			ID int64 `json:"id"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return "", fmt.Errorf("get the number of site %s: %w", site, err)
	}
	return strconv.FormatInt(r.Metadata.ID, 10), nil
}

// clean ends the server and removes all it made, and fails where the server
// left something that it should have removed itself.
func (s *server) clean() error {
	for _, l := range s.load {
		l.end()
	}
	for _, c := range s.clients {
		c.Close()
	}
	err := errFirst(s.stop(), s.stopMTA())
	for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/*/%s"} {
		left, _ := filepath.Glob(fmt.Sprintf(pattern, s.cgroup))
		if len(left) > 0 {
			err = errFirst(err, fmt.Errorf("cgroups are left: %v", left))
		}
		for _, dir := range left {
			clearCgroup(dir)
		}
	}
	mounts, readErr := os.ReadFile("/proc/mounts")
	err = errFirst(err, readErr)
	if strings.Contains(string(mounts), s.base) && err == nil {
		err = fmt.Errorf("mounts beneath %s are left", s.base)
	}
	ours := config.Accounts{Range: config.Range{First: uint32(s.firstUID), Last: uint32(s.firstUID + 99)}, Prefix: s.prefix, Home: s.base + "/home"}
	for uid := ours.Range.First; uid <= ours.Range.Last; uid++ {
		if i, lookErr := account.LookupUID(uid); lookErr == nil && i.Ours(ours) {
			err = errFirst(err, account.Remove(ours, uid, false))
		}
	}
	return errFirst(err, os.RemoveAll(s.base))
}

// clearCgroup ends what a script that failed has left running, and removes its
// groups.
func clearCgroup(dir string) {
	below, _ := filepath.Glob(dir + "/*/")
	for _, d := range below {
		clearCgroup(filepath.Clean(d))
	}
	for range 100 { // a killed process takes a moment
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return
		}
		for _, pid := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(pid); err == nil && n > 1 && n != os.Getpid() {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
		if os.Remove(dir) == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
