package peercred_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"serai.dev/serai/internal/peercred"
)

// dialEnv names the socket to which the test binary connects instead of
// running tests.
const dialEnv = "SERAI_TEST_DIAL"

func TestMain(m *testing.M) {
	path := os.Getenv(dialEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	os.Stdout.WriteString("connected\n")
	_, _ = io.Copy(io.Discard, os.Stdin) // leave when told to
	c.Close()
}

// dialer is a process of another user that has connected.
func dialer(t *testing.T, path string, cred *syscall.Credential) (pid int, leave func()) {
	t.Helper()
	// By this name the binary can be run by others though its directory is
	// closed to them.
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{dialEnv + "=" + path}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := false
	leave = func() {
		if !left {
			left = true
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("dialer: %v", err)
			}
		}
	}
	t.Cleanup(leave)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("dialer says %q, %v", line, err)
	}
	return cmd.Process.Pid, leave
}

func listen(t *testing.T) *net.UnixListener {
	t.Helper()
	dir := t.TempDir()
	// The test's directories are closed to others.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	return ln.(*net.UnixListener)
}

func accept(t *testing.T, ln *net.UnixListener) peercred.Peer {
	t.Helper()
	c, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := peercred.Of(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOf(t *testing.T) {
	var many []uint32 // more than the first question has room for
	for i := range uint32(100) {
		many = append(many, 1900005100+i)
	}
	for _, tt := range []struct {
		name string
		cred syscall.Credential
	}{
		{"a stranger", syscall.Credential{Uid: 1900005060, Gid: 1900005061}},
		{"with groups", syscall.Credential{Uid: 1900005060, Gid: 1900005060, Groups: []uint32{7, 1900005062}}},
		{"with many groups", syscall.Credential{Uid: 1900005060, Gid: 1900005060, Groups: many}},
		{"root", syscall.Credential{Uid: 0, Gid: 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln := listen(t)
			pid, _ := dialer(t, ln.Addr().String(), &tt.cred)
			p := accept(t, ln)
			if p.UID != tt.cred.Uid || p.GID != tt.cred.Gid || p.PID != pid || !slices.Equal(p.Groups, tt.cred.Groups) {
				t.Errorf("got %+v of pid %d, want %+v", p, pid, tt.cred)
			}
			own, err := os.ReadFile("/proc/self/cgroup")
			if err != nil || string(p.Cgroup) != string(own) {
				t.Errorf("cgroup %q, ours is %q, %v", p.Cgroup, own, err)
			}
			if !p.In(tt.cred.Gid) || p.In(424242) {
				t.Error("In is wrong")
			}
		})
	}
}

// TestGone: who left before it was looked at keeps its uid and has no cgroup.
func TestGone(t *testing.T) {
	ln := listen(t)
	_, leave := dialer(t, ln.Addr().String(), &syscall.Credential{Uid: 1900005060, Gid: 1900005060})
	leave()
	if p := accept(t, ln); p.UID != 1900005060 || p.Cgroup != nil {
		t.Errorf("got %+v", p)
	}
}

func TestConnContext(t *testing.T) {
	ln := listen(t)
	srv := &http.Server{ConnContext: peercred.ConnContext, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := peercred.From(r.Context())
		if !ok || p.PID != os.Getpid() || !strings.Contains(string(p.Cgroup), ":") {
			t.Errorf("got %+v, %v", p, ok)
		}
	})}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", ln.Addr().String())
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://serai/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if _, ok := peercred.From(t.Context()); ok {
		t.Error("a context without a peer has one")
	}
}
