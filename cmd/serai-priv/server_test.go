package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/privsep"
)

// The test binary is all three programs, by the name it is started under. As
// seraid and serai-proxy it hands its connection to the test and waits: the
// test speaks in their place.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case "serai-priv", "exe": // it starts its helpers as /proc/self/exe
		main()
	case "seraid", "serai-proxy":
		if err := standIn(name); err != nil {
			fmt.Fprintln(os.Stderr, name, err)
			os.Exit(1)
		}
	default:
		os.Exit(m.Run())
	}
}

func standIn(name string) error {
	var c config.Config
	if err := json.NewDecoder(os.NewFile(3, "config")).Decode(&c); err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	conn, err := net.Dial("unix", meetingPlace(&c))
	if err != nil {
		return err
	}
	hello := fmt.Sprintf("%s %d %d", name, os.Getpid(), os.Getuid())
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte(hello), unix.UnixRights(4), nil); err != nil {
		return err
	}
	unix.Close(4)
	<-term
	return nil
}

func meetingPlace(c *config.Config) string { return filepath.Join(filepath.Dir(c.RunDir), "meet.sock") }

// A peerEnd is a started seraid or serai-proxy, which the test speaks for.
type peerEnd struct {
	*privsep.Conn
	pid, uid int
}

// A server is a serai-priv of its own range and directories.
type server struct {
	t    *testing.T
	cfg  *config.Config
	dir  string
	come map[string]chan *peerEnd
	cmd  *exec.Cmd
	gone chan struct{} // closed when cmd has ended
	log  *logBuffer

	seraid, proxy *peerEnd
}

// logBuffer is what serai-priv and its children wrote.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const firstUID = 1900002000

// newServer prepares one: directories, programs, a configuration.
func newServer(t *testing.T) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	dir, err := os.MkdirTemp("/srv", "serai-d-") // tenants do not see the machine's /tmp
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, log: &logBuffer{}, come: map[string]chan *peerEnd{
		"seraid": make(chan *peerEnd, 16), "serai-proxy": make(chan *peerEnd, 16)}}
	s.cfg = &config.Config{
		StateDir: dir + "/state", RunDir: dir + "/run", LogDir: dir + "/log", CgroupRoot: "serai-test-d",
		Listen:   config.Listen{HTTP: []string{"127.0.0.1:0"}},
		Accounts: config.Accounts{Range: config.Range{First: firstUID, Last: firstUID + 99}, Prefix: "serai-d-", Home: dir + "/home"},
		Users:    config.Users{Daemon: "serai-test-d", Proxy: "serai-test-d-p", Admin: "serai-test-d-a"},
		Mail:     config.Mail{Relay: "localhost:25"},
		Zygotes:  map[string]config.Zygote{"standard": {Modules: []string{"List::Util", "No::Such::Module"}, Restart: 24 * time.Hour}},
		Libexec:  dir + "/libexec",
	}
	made, err := account.EnsureSystemUsers(s.cfg.Users)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := account.RemoveSystemUsers(made); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(s.cfg.Libexec, 0o755)); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"serai-priv", "seraid", "serai-proxy"} {
		s.install(name, self)
	}
	s.listen()
	return s
}

// install puts a program in its place, as a package manager does.
func (s *server) install(name, from string) {
	s.t.Helper()
	text, err := os.ReadFile(from)
	path := filepath.Join(s.cfg.Libexec, name)
	if err == nil {
		err = os.WriteFile(path+".new", text, 0o755)
	}
	if err = errors.Join(err, os.Chmod(path+".new", 0o755), os.Rename(path+".new", path)); err != nil {
		s.t.Fatal(err)
	}
}

// listen takes the connections that the stand-ins hand over.
func (s *server) listen() {
	l, err := net.Listen("unix", meetingPlace(s.cfg))
	if err != nil {
		s.t.Fatal(err)
	}
	os.Chmod(meetingPlace(s.cfg), 0o666)
	done := make(chan struct{})
	s.t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.met(conn.(*net.UnixConn))
		}
	}()
}

func (s *server) met(conn *net.UnixConn) {
	defer conn.Close()
	buf, oob := make([]byte, 200), make([]byte, 200)
	n, on, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return
	}
	var p peerEnd
	var name string
	fmt.Sscan(string(buf[:n]), &name, &p.pid, &p.uid)
	msgs, _ := unix.ParseSocketControlMessage(oob[:on])
	for _, msg := range msgs {
		fds, _ := unix.ParseUnixRights(&msg)
		for _, fd := range fds {
			if p.Conn, err = privsep.NewConn(os.NewFile(uintptr(fd), "priv")); err != nil {
				s.t.Error(err)
				return
			}
			s.come[name] <- &p
		}
	}
}

// command is serai-priv with the configuration in descriptor 3.
func (s *server) command() *exec.Cmd {
	s.t.Helper()
	f, err := os.CreateTemp(s.dir, "config")
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	text, err := json.Marshal(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := f.Write(text); err != nil {
		s.t.Fatal(err)
	}
	r, err := os.Open(f.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { r.Close() })
	cmd := exec.Command(filepath.Join(s.cfg.Libexec, "serai-priv"), "--config-fd", "3")
	cmd.ExtraFiles = []*os.File{r}
	cmd.Stderr = s.log
	cmd.WaitDelay = time.Second // our stderr outlives it in its children
	return cmd
}

// start runs serai-priv and waits for both peers.
func (s *server) start() {
	s.t.Helper()
	s.cmd = s.command()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.gone = make(chan struct{})
	cmd, gone := s.cmd, s.gone
	go func() {
		cmd.Wait()
		close(gone)
	}()
	s.t.Cleanup(func() {
		s.kill(cmd, gone)
		if s.t.Failed() {
			s.t.Logf("log of serai-priv:\n%s", s.log)
		}
	})
	s.proxy = s.peer("serai-proxy")
	s.seraid = s.peer("seraid")
}

// kill is for the end of a test that went wrong: stop has ended a good one.
func (s *server) kill(cmd *exec.Cmd, gone chan struct{}) {
	select {
	case <-gone:
		return
	default:
	}
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		cmd.Process.Kill()
		<-gone
	}
}

// peer waits for the next seraid or serai-proxy.
func (s *server) peer(name string) *peerEnd {
	s.t.Helper()
	select {
	case p := <-s.come[name]:
		s.t.Cleanup(func() { p.Close() })
		return p
	case <-s.gone:
		s.t.Fatalf("serai-priv ended before %s came", name)
	case <-time.After(40 * time.Second):
		s.t.Fatalf("%s did not come", name)
	}
	return nil
}

// stop ends the server as an operator does, and looks for what it left.
func (s *server) stop() {
	s.t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.gone:
	case <-time.After(40 * time.Second):
		s.t.Fatal("serai-priv does not stop")
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("serai-priv ended with %d", code)
	}
	s.nothingLeft()
}

func (s *server) nothingLeft() {
	s.t.Helper()
	left, _ := filepath.Glob("/sys/fs/cgroup/*/" + s.cfg.CgroupRoot)
	more, _ := filepath.Glob("/sys/fs/cgroup/" + s.cfg.CgroupRoot)
	if left = append(left, more...); len(left) > 0 {
		s.t.Errorf("cgroups are left: %v", left)
	}
	if _, err := os.Stat(s.cfg.RunDir); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("%s is left: %v", s.cfg.RunDir, err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		var st unix.Stat_t
		pid, _ := strconv.Atoi(filepath.Base(p))
		if unix.Stat(p, &st) == nil && alive(pid) && s.cfg.Accounts.Range.Has(st.Uid) {
			text, _ := os.ReadFile(p + "/cmdline")
			s.t.Errorf("process %s of uid %d is left: %q", p, st.Uid, text)
		}
	}
}

func (s *server) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), 40*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

// ask is a request of seraid that must work.
func (s *server) ask(op string, args, body any) {
	s.t.Helper()
	if _, err := s.seraid.Call(s.ctx(), op, args, body); err != nil {
		s.t.Fatalf("%s %+v: %v", op, args, err)
	}
}

// await reads events of a peer up to one of that name for that site.
func (s *server) await(p *peerEnd, op string, site uint32) (ev privsep.SiteEvent) {
	s.t.Helper()
	deadline := time.After(40 * time.Second)
	for {
		select {
		case e, ok := <-p.Events():
			if !ok {
				s.t.Fatalf("the connection ended before %s", op)
			}
			if e.Op != op {
				continue
			}
			ev = privsep.SiteEvent{}
			if err := json.Unmarshal(e.Body, &ev); err != nil {
				s.t.Fatal(err)
			}
			if ev.Site == site {
				return ev
			}
		case <-deadline:
			s.t.Fatalf("no %s of site %d", op, site)
		}
	}
}

// tenant makes the account and the record of one; it is removed at the end.
func (s *server) tenant(n uint32, limits privsep.Tenant) privsep.AccountInfo {
	s.t.Helper()
	uid := uint32(firstUID) + n
	cmd, gone := s.cmd, s.gone
	s.t.Cleanup(func() {
		s.kill(cmd, gone) // nobody may run under the account
		if err := account.Remove(s.cfg.Accounts, uid, false); err != nil && !strings.Contains(err.Error(), "no account") {
			s.t.Logf("remove account: %v", err)
		}
	})
	var info privsep.AccountInfo
	s.ask(privsep.OpCreateAccount, privsep.CreateAccount{UID: uid, Name: fmt.Sprintf("t%d", n)}, &info)
	limits.UID = uid
	s.ask(privsep.OpSetTenant, limits, nil)
	return info
}

// write puts a file into a home, with the tenant as its owner.
func (s *server) write(a privsep.AccountInfo, path, text string) {
	s.t.Helper()
	path = filepath.Join(a.Home, path)
	dir := filepath.Dir(path)
	err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(path, []byte(text), 0o644))
	for p := path; p != a.Home; p = filepath.Dir(p) {
		err = errors.Join(err, os.Lchown(p, int(a.UID), int(a.GID)))
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// launch is the record of a site with one app.
func launch(site uint32, a privsep.AccountInfo, number int64, block ...string) privsep.Launch {
	fields := append([]string{"site", fmt.Sprintf("t/%d", site), "min", "0", "idle", "60000", "requests", "0"}, block...)
	var b []byte
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return privsep.Launch{Site: site, UID: a.UID, Launch: number, Root: "www", Zygote: "standard", Block: b}
}

// A worker is a connection to a worker of a site, from the proxy's side.
type worker struct {
	t    *testing.T
	conn *net.UnixConn
	pid  int
}

// knock connects to a site and returns what answers: an error where that
// closes before its hello.
func (s *server) knock(site uint32) (*worker, error) {
	s.t.Helper()
	// Before the connect: a hello that comes sooner carries nobody's pid.
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		return err
	}}
	conn, err := dialer.DialContext(s.ctx(), "unix", s.cfg.SiteSocket(site))
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { conn.Close() })
	u := conn.(*net.UnixConn)
	u.SetDeadline(time.Now().Add(40 * time.Second))
	head, oob := make([]byte, 5), make([]byte, 100)
	n, on, _, _, rerr := u.ReadMsgUnix(head, oob)
	if rerr != nil || n != 5 {
		return nil, fmt.Errorf("%d bytes of a hello: %w", n, errors.Join(rerr, io.EOF))
	}
	w := &worker{t: s.t, conn: u}
	msgs, _ := unix.ParseSocketControlMessage(oob[:on])
	for i := range msgs {
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			w.pid = int(cred.Pid)
		}
	}
	_, err = io.ReadFull(u, make([]byte, binary.BigEndian.Uint32(head)))
	if err != nil || head[4] != 'H' {
		return nil, fmt.Errorf("no hello: %q, %v", head, err)
	}
	return w, nil
}

// get sends a request and returns the body of the reply.
func (w *worker) get(path string) (string, error) {
	var list []byte
	for _, f := range []string{"REQUEST_METHOD", "GET", "SCRIPT_NAME", "", "PATH_INFO", path, "REQUEST_URI", path, "QUERY_STRING", "",
		"SERVER_NAME", "localhost", "SERVER_PORT", "80", "SERVER_PROTOCOL", "HTTP/1.1", "REMOTE_ADDR", "127.0.0.1"} {
		list = binary.BigEndian.AppendUint16(list, uint16(len(f)))
		list = append(list, f...)
	}
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(list))), 'R')
	if _, err := w.conn.Write(append(frame, list...)); err != nil {
		return "", err
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(w.conn, head); err != nil {
		return "", err
	}
	payload := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(w.conn, payload); err != nil {
		return "", err
	}
	if head[4] != 'W' {
		return "", fmt.Errorf("frame %q", head[4])
	}
	return string(payload[5+binary.BigEndian.Uint32(payload[1:]):]), nil
}

// eventually waits for a condition that no event tells of.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); {
		if ok() {
			return
		}
		unix.Poll(nil, 5)
	}
	t.Fatalf("%s: not within 40 s", what)
}

// alive reports whether a process is there and no zombie.
func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !bytes.Contains(text, []byte(") Z "))
}
