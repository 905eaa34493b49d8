package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// The test binary is the program, and a worker, under uids of their own.
const (
	proxyUID  = 1900001000
	tenantUID = 1900001001
	cgroups   = "serai-test-c"
	patience  = 20 * time.Second
)

func TestMain(m *testing.M) {
	switch os.Getenv("SERAI_TEST_AS") {
	case "proxy":
		main()
	case "worker":
		work()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work is a worker of site 1, or of the site the environment names, which
// answers with its pid.
func work() {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var site uint32
			fmt.Sscan(os.Getenv("SERAI_TEST_SITE"), &site)
			p := binary.BigEndian.AppendUint32(nil, 16)
			p = binary.BigEndian.AppendUint32(append(p, 'H'), worker.Version)
			p = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(p, site), 1)
			c.Write(p)
			in := bufio.NewReader(c)
			for {
				var h [5]byte
				if _, err := io.ReadFull(in, h[:]); err != nil || h[4] == 'Q' {
					return
				}
				in.Discard(int(binary.BigEndian.Uint32(h[:])))
				if h[4] != 'R' && h[4] != 'E' {
					continue
				}
				head, body := worker.AppendList(nil, "200"), fmt.Sprint(os.Getpid())
				p := binary.BigEndian.AppendUint32(nil, uint32(5+len(head)+len(body)))
				p = binary.BigEndian.AppendUint32(append(p, 'W', 0), uint32(len(head)))
				c.Write(append(append(p, head...), body...))
			}
		}()
	}
}

// A rig is everything around a proxy that runs as a process of its own.
type rig struct {
	t      *testing.T
	dir    string
	exe    string
	cfg    config.Config
	routes *route.Log
	public string // a directory beneath a home that only its tenant can enter
	http   net.Listener
	ctl    net.Listener
	group  string // of the cgroup2 hierarchy
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test starts processes under other users: run it as root")
	}
	dir, err := os.MkdirTemp("", "serai-proxy-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	r := &rig{t: t, dir: dir, exe: filepath.Join(dir, "exe"), public: filepath.Join(dir, "home", "public")}
	program, err := os.ReadFile(os.Args[0])
	must(t, err)
	must(t, os.WriteFile(r.exe, program, 0o755))
	r.cfg = config.Config{StateDir: dir + "/state", RunDir: dir + "/run", LogDir: dir + "/log", CgroupRoot: cgroups,
		Users: config.Users{Daemon: "daemon"}} // no AccessLog: an earlier version wrote none
	for _, d := range []string{r.cfg.StateDir + "/spool", r.cfg.LogDir + "/access", r.cfg.SitesDir()} {
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.Chown(d, proxyUID, proxyUID))
	}
	must(t, os.MkdirAll(r.public, 0o755))
	must(t, os.WriteFile(r.public+"/a.txt", []byte("a file"), 0o644))
	must(t, os.Chown(dir+"/home", tenantUID, tenantUID))
	must(t, os.Chmod(dir+"/home", 0o700))
	r.routes, err = route.Create()
	must(t, err)
	t.Cleanup(func() { r.routes.Close() })
	r.http, err = net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { r.http.Close() })
	r.ctl, err = net.Listen("unix", r.cfg.ProxySocket())
	must(t, err)
	t.Cleanup(func() { r.ctl.Close() })
	r.group = filepath.Join(unified(t), cgroups)
	must(t, os.MkdirAll(r.group+"/ops/proxy", 0o755))
	t.Cleanup(r.ungroup)
	return r
}

// unified is where the hierarchy of version 2 is mounted.
func unified(t *testing.T) string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			return f[4]
		}
	}
	t.Fatal("no hierarchy of control groups version 2 is mounted")
	return ""
}

// ungroup removes the groups; their processes have ended before.
func (r *rig) ungroup() {
	var groups []string
	filepath.WalkDir(r.group, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			groups = append(groups, path)
		}
		return nil
	})
	for i := len(groups) - 1; i >= 0; i-- {
		deadline := time.Now().Add(patience)
		for os.Remove(groups[i]) != nil && time.Now().Before(deadline) {
			unix.Poll(nil, 1) // a dead process leaves its group a moment later
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// spawn starts the test binary as somebody, with listeners as descriptors from
// 3, in a control group.
func (r *rig) spawn(as string, uid uint32, group string, env []string, args []string, files ...*os.File) (*exec.Cmd, *bytes.Buffer) {
	r.t.Helper()
	cmd := exec.Command(r.exe, args...)
	cmd.Env = append(env, "SERAI_TEST_AS="+as)
	cmd.ExtraFiles = files
	said := new(bytes.Buffer)
	cmd.Stderr = said
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	must(r.t, cmd.Start())
	r.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		if r.t.Failed() {
			r.t.Logf("%s said:\n%s", as, said)
		}
	})
	if group != "" {
		must(r.t, os.MkdirAll(group, 0o755))
		must(r.t, os.WriteFile(group+"/cgroup.procs", []byte(fmt.Sprint(cmd.Process.Pid)), 0o644))
	}
	return cmd, said
}

// start starts a proxy, and a serai-priv for it that knows a few answers. The
// function ends that one.
func (r *rig) start(uid uint32) (cmd *exec.Cmd, said *bytes.Buffer, hangUp func()) {
	r.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(r.t, err)
	text, err := json.Marshal(r.cfg)
	must(r.t, err)
	conf := filepath.Join(r.dir, "config.json")
	must(r.t, os.WriteFile(conf, text, 0o644))
	f, err := os.Open(conf)
	must(r.t, err)
	defer f.Close()
	theirs := os.NewFile(uintptr(pair[1]), "priv")
	defer theirs.Close()
	control, err := r.ctl.(*net.UnixListener).File()
	must(r.t, err)
	defer control.Close()
	listener, err := r.http.(*net.TCPListener).File()
	must(r.t, err)
	defer listener.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.answer(pair[0])
	}()
	hangUp = func() { unix.Shutdown(pair[0], unix.SHUT_RDWR) }
	r.t.Cleanup(func() {
		hangUp()
		<-done
		unix.Close(pair[0])
	})
	cmd, said = r.spawn("proxy", uid, r.group+"/ops/proxy", nil, []string{"--http-fds", "6"}, f, theirs, control, listener)
	return cmd, said, hangUp
}

// answer is serai-priv.
func (r *rig) answer(fd int) {
	buf, control := make([]byte, privsep.MaxPacket+1), make([]byte, privsep.ControlSize)
	for {
		packet, _, err := privsep.Receive(fd, buf, control)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		ask, err := privsep.DecodeRequest(packet)
		if err != nil {
			r.t.Errorf("the proxy asked %q: %v", packet, err)
			return
		}
		reply := privsep.Reply{ID: ask.ID}
		var fds []int
		switch ask.Op {
		case privsep.OpRoutes:
			fds = []int{int(r.routes.File().Fd())}
		case privsep.OpFiles:
			dir, err := unix.Open(r.public, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				r.t.Error(err)
				return
			}
			defer unix.Close(dir)
			fds = []int{dir}
		}
		text, _ := json.Marshal(reply)
		if err := privsep.Send(fd, text, fds...); err != nil {
			return
		}
	}
}

// site makes a site with a worker process in a control group.
func (r *rig) site(number uint32, host, group string) {
	r.t.Helper()
	l, err := net.Listen("unix", r.cfg.SiteSocket(number))
	must(r.t, err)
	r.t.Cleanup(func() { l.Close() })
	must(r.t, os.Chmod(r.cfg.SiteSocket(number), 0o666))
	f, err := l.(*net.UnixListener).File()
	must(r.t, err)
	defer f.Close()
	r.spawn("worker", tenantUID, group, []string{fmt.Sprint("SERAI_TEST_SITE=", number)}, nil, f)
	_, err = r.routes.Append(route.Record{Site: &route.Site{
		Number: number, UID: tenantUID, Tenant: "alice", Name: "site", Hosts: []string{host}, Launch: 1,
		Files: []route.Files{{Prefix: "/files"}}, Workers: serai.Workers{Max: 2, Timeout: serai.Duration(patience)},
		Queue: serai.Queue{Length: 5, Wait: serai.Duration(500 * time.Millisecond)},
		Body:  serai.Body{Max: 1 << 20, Buffer: 1 << 10}, Reply: serai.Reply{Buffer: 1 << 20},
	}})
	must(r.t, err)
}

func (r *rig) get(method, host, path, body string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://"+r.http.Addr().String()+path, strings.NewReader(body))
	must(r.t, err)
	req.Host, req.Close = host, true
	resp, err := (&http.Client{Timeout: patience}).Do(req)
	must(r.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(r.t, err)
	return resp.StatusCode, string(text)
}

// TestProxy is the program as it is in earnest: under its own user, with
// workers of a tenant in their control group.
func TestProxy(t *testing.T) {
	r := newRig(t)
	leaf := fmt.Sprintf("%s/tenants/%d/", r.group, tenantUID)
	r.site(1, "good.test", leaf+"1.1")
	r.site(2, "stray.test", leaf+"1.2") // its worker is in a group of another site
	cmd, said, _ := r.start(proxyUID)
	status, pid := r.get("GET", "good.test", "/", "")
	if status != 200 {
		t.Fatalf("%d %s", status, pid)
	}
	if status, text := r.get("POST", "good.test", "/", strings.Repeat("x", 100_000)); status != 200 || text != pid {
		t.Errorf("a long body: %d %s", status, text)
	}
	if status, text := r.get("GET", "good.test", "/files/a.txt", ""); status != 200 || text != "a file" {
		t.Errorf("a file beneath a home that is closed to the proxy: %d %s", status, text)
	}
	if status, text := r.get("GET", "stray.test", "/", ""); status != 503 {
		t.Errorf("a worker that is not in its site's group answered: %d %s", status, text)
	}
	if status, _ := r.get("GET", "other.test", "/", ""); status != 421 {
		t.Errorf("an unknown host: %d", status)
	}

	// A proxy that was killed is followed by one that finds the same worker.
	must(t, cmd.Process.Kill())
	cmd.Wait()
	cmd, said2, _ := r.start(proxyUID)
	if status, text := r.get("GET", "good.test", "/", ""); status != 200 || text != pid {
		t.Errorf("after a restart: %d, served by %s, it was %s", status, text, pid)
	}
	c, err := net.Dial("unix", r.cfg.ProxySocket())
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, `{"stats":true}`+"\n")
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, `"stats"`) {
		t.Errorf("stats: %q, %v", line, err)
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, said2)
	}
	if !strings.Contains(said.String(), "control group of site 2") {
		t.Errorf("the stray worker is not in the log:\n%s", said)
	}
	text, err := os.ReadFile(r.cfg.AccessLogDir("alice") + "/site.log")
	if err != nil || !strings.Contains(string(text), `"GET / HTTP/1.1" 200`) {
		t.Errorf("access log: %v\n%s", err, text)
	}
}

func TestProxyNeedsNoPower(t *testing.T) {
	r := newRig(t)
	cmd, said, _ := r.start(0)
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(said.String(), "prove") {
		t.Errorf("as root: %v\n%s", err, said)
	}
}

func TestProxyEndsWithMonitor(t *testing.T) {
	r := newRig(t)
	cmd, said, hangUp := r.start(proxyUID)
	if status, _ := r.get("GET", "other.test", "/", ""); status != 421 {
		t.Errorf("an unknown host: %d", status)
	}
	hangUp()
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.Contains(said.String(), "serai-priv is gone") {
		t.Errorf("without serai-priv: %v\n%s", err, said)
	}
}

func TestArguments(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		said string
	}{
		{"--help", 0, "http-fds"},
		{"--nonsense", 2, "nonsense"},
		{"--http-fds 6,x", 2, `"x" is no descriptor`},
		{"--http-fds 1", 2, `"1" is no descriptor`},
	} {
		var said bytes.Buffer
		_, err := parse(strings.Fields(tt.args), &said)
		if code := exitCode(err, &said); code != tt.code || !strings.Contains(said.String(), tt.said) {
			t.Errorf("%s: exit %d, %s", tt.args, code, &said)
		}
		if tt.code == 0 && !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", tt.args, err)
		}
	}
	a, err := parse([]string{"--http-fds", "6,7"}, io.Discard)
	if err != nil || len(a.http) != 2 || a.http[1] != 7 || a.config != 3 || a.priv != 4 || a.control != 5 {
		t.Errorf("%+v, %v", a, err)
	}
}
