package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/privsep"
)

// runningSite is a tenant with a site that runs, with one worker.
func (s *server) runningSite(n uint32) (a privsep.AccountInfo, pid int, w *worker) {
	s.t.Helper()
	a = s.tenant(n, privsep.Tenant{Memory: 128 << 20, Processes: 50})
	s.write(a, "www/app.psgi", pidApp)
	s.ask(privsep.OpSetSite, launch(1, a, 1, "app", "app.psgi", "max", "4"), nil)
	w, err := s.knock(1)
	if err != nil {
		s.t.Fatal(err)
	}
	return a, s.await(s.seraid, privsep.EvStarted, 1).PID, w
}

// seraid and serai-proxy die, are dropped, come again; no site notices, and
// one that sleeps wakes while they are down.
func TestPeersDie(t *testing.T) {
	s := newServer(t)
	s.start()
	a, pid, w := s.runningSite(4)
	s.ask(privsep.OpSetSite, launch(2, a, 1, "app", "app.psgi", "max", "1"), nil)
	table, err := unix.MemfdCreate("routes", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	routes := os.NewFile(uintptr(table), "routes")
	defer routes.Close()
	fmt.Fprint(routes, "the table")
	if _, err := unix.FcntlInt(uintptr(table), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	if _, err := s.seraid.Call(s.ctx(), privsep.OpSetRoutes, nil, nil, routes); err != nil {
		t.Fatal(err)
	}

	unix.Kill(s.seraid.pid, unix.SIGKILL)
	unix.Kill(s.proxy.pid, unix.SIGKILL)
	if _, err := s.knock(2); err != nil {
		t.Errorf("a site did not wake while nobody of ours was there: %v", err)
	}
	s.proxy, s.seraid = s.peer("serai-proxy"), s.peer("seraid")
	got, err := s.proxy.Call(s.ctx(), privsep.OpRoutes, nil, nil)
	if err != nil || len(got) != 1 {
		t.Fatalf("routes: %v, %v", got, err)
	}
	text := make([]byte, 20)
	if n, _ := got[0].ReadAt(text, 0); string(text[:n]) != "the table" {
		t.Errorf("routes are %q", text[:n])
	}
	if _, err := got[0].WriteAt([]byte("forged"), 0); err == nil {
		t.Error("serai-proxy can write to the routes")
	}
	got[0].Close()
	s.await(s.seraid, privsep.EvLogs, 1) // a new seraid is told what there is

	if _, err := s.seraid.Call(s.ctx(), privsep.OpStop, map[string]any{"site": 1, "force": true}, nil); err == nil {
		t.Error("a breach was answered")
	}
	old := s.seraid.pid
	s.seraid = s.peer("seraid")
	eventually(t, "the broken process ended", func() bool { return !alive(old) })
	if st := s.state(1); st.PID != pid || st.Phase != "running" {
		t.Errorf("state %+v, was %d", st, pid)
	}
	if body, err := w.get("/"); err != nil || body != fmt.Sprint(w.pid) {
		t.Errorf("the worker's connection: %q, %v", body, err)
	}
	s.stop()
}

// A bad new binary changes nothing; a good one goes on with the same pids,
// connections and listeners.
func TestUpgrade(t *testing.T) {
	s := newServer(t)
	s.start()
	a, pid, w := s.runningSite(5)
	s.ask(privsep.OpSetSite, launch(2, a, 1, "app", "app.psgi", "max", "1"), nil)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	upgraded := func() privsep.UpgradeEvent {
		t.Helper()
		s.cmd.Process.Signal(syscall.SIGHUP)
		deadline := time.After(40 * time.Second)
		for {
			select {
			case e, ok := <-s.seraid.Events():
				if !ok {
					t.Fatal("the connection of seraid was lost")
				}
				var u privsep.UpgradeEvent
				if e.Op == privsep.EvUpgrade {
					if err := e.Decode(&u); err != nil {
						t.Fatal(err)
					}
					return u
				}
			case <-deadline:
				t.Fatal("nothing was said of the upgrade")
			}
		}
	}
	same := func(when string) {
		t.Helper()
		if st := s.state(1); st.PID != pid || st.Phase != "running" || !alive(pid) {
			t.Errorf("%s: state %+v, was %d", when, st, pid)
		}
		if body, err := w.get("/"); err != nil || body != fmt.Sprint(w.pid) {
			t.Errorf("%s: worker says %q, %v", when, body, err)
		}
	}

	for name, script := range map[string]string{
		"not a program":   "hello",
		"crashes":         "#!/bin/sh\nkill -SEGV $$\n",
		"fails":           "#!/bin/sh\nexit 1\n",
		"says no":         "#!/bin/sh\necho '{\"error\":{\"kind\":\"invalid\",\"msg\":\"no\"}}' >&3\n",
		"says nothing":    "#!/bin/sh\nexit 0\n",
		"says nonsense":   "#!/bin/sh\necho yes >&3\n",
		"says yes, fails": "#!/bin/sh\necho '{\"body\":\"yes\"}' >&3\nexit 1\n",
	} {
		bad := filepath.Join(s.dir, "bad")
		if err := os.WriteFile(bad, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		s.install("serai-priv", bad)
		if u := upgraded(); u.OK || u.Message == "" {
			t.Errorf("%s: %+v", name, u)
		}
		same(name)
	}
	s.install("serai-priv", self)
	if err := os.Chmod(filepath.Join(s.cfg.Libexec, "serai-priv"), 0o777); err != nil {
		t.Fatal(err)
	}
	if u := upgraded(); u.OK {
		t.Error("a binary that anybody may write was taken")
	}
	s.install("serai-priv", self)

	for range 3 { // again and again
		if u := upgraded(); !u.OK {
			t.Fatalf("upgrade: %+v", u)
		}
		same("upgrade")
	}
	if _, err := s.knock(2); err != nil {
		t.Errorf("a site that slept: %v", err)
	}
	s.await(s.seraid, privsep.EvStarted, 2)
	unix.Kill(s.proxy.pid, unix.SIGKILL)
	s.proxy = s.peer("serai-proxy")
	s.ask(privsep.OpStop, privsep.SiteRef{Site: 1}, nil)
	if e := s.await(s.seraid, privsep.EvExited, 1); e.PID != pid {
		t.Errorf("exited %+v, want %d", e, pid)
	}
	s.phase(1, "asleep")
	s.stop()
}

// An upgrade while a site loads: the answer to the launch comes after it.
func TestUpgradeDuringLaunch(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(6, privsep.Tenant{Memory: 128 << 20, Processes: 50})
	s.write(a, "www/app.psgi", `open my $f, "<", "go" or die "$!"; my $x = <$f>; `+pidApp)
	s.write(a, "www/go", "")
	fifo := filepath.Join(a.Home, "www/go")
	if err := errors.Join(os.Remove(fifo), unix.Mkfifo(fifo, 0o644), os.Chown(fifo, int(a.UID), int(a.GID))); err != nil {
		t.Fatal(err)
	}
	s.ask(privsep.OpSetSite, launch(1, a, 1, "app", "app.psgi", "max", "1"), nil)
	result := make(chan error)
	var r privsep.LaunchResult
	go func() {
		_, err := s.seraid.Call(s.ctx(), privsep.OpLaunch, privsep.SiteRef{Site: 1}, &r)
		result <- err
	}()
	eventually(t, "the site loads", func() bool { return s.state(1).Phase == "starting" })
	s.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the upgrade", func() bool { return strings.Contains(s.log.String(), "msg=upgraded") })
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits for the site to read
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, "go")
	f.Close()
	if err := <-result; err != nil || !r.Loaded {
		t.Errorf("launch: %+v, %v", r, err)
	}
	s.stop()
}

// What stands in the way of a start is one sentence, and nothing is left.
func TestStartRefused(t *testing.T) {
	s := newServer(t)
	refused := func(want string) {
		t.Helper()
		cmd := s.command()
		cmd.Stderr = nil
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(string(out), want) || strings.Contains(string(out), "goroutine") {
			t.Errorf("%v: %s, want %q", err, out, want)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.cfg.Listen.HTTP = []string{l.Addr().String()}
	refused("the address " + l.Addr().String() + " is in use by another program")
	s.nothingLeft()
	s.cfg.Listen.HTTP = []string{"192.0.2.1:80"}
	refused("listen on 192.0.2.1:80")
	s.nothingLeft()
	s.cfg.Listen.HTTP = []string{"127.0.0.1:0"}

	s.start()
	refused("runs already")
	run, state, root, uids := s.cfg.RunDir, s.cfg.StateDir, s.cfg.CgroupRoot, s.cfg.Accounts.Range
	s.cfg.RunDir, s.cfg.StateDir = s.dir+"/run2", s.dir+"/state2"
	refused("has the cgroup")
	s.cfg.CgroupRoot = "serai-test-d2"
	refused("the uids")
	s.cfg.Accounts.Range.First += 200
	s.cfg.Accounts.Range.Last += 200
	s.cfg.RunDir = "/tmp/serai-test-d"
	refused("tenants do not see")
	s.cfg.RunDir, s.cfg.StateDir, s.cfg.CgroupRoot, s.cfg.Accounts.Range = run, state, root, uids
	s.stop()
}

// After a SIGKILL of serai-priv nothing of it is in the way of the next one.
func TestKilled(t *testing.T) {
	s := newServer(t)
	s.start()
	a, pid, _ := s.runningSite(7)
	s.cmd.Process.Kill()
	<-s.gone
	if !alive(pid) {
		t.Error("the site died with serai-priv")
	}
	s.start()
	if alive(pid) {
		t.Error("a site of the killed serai-priv lives on")
	}
	s.ask(privsep.OpSetTenant, privsep.Tenant{UID: a.UID, Memory: 128 << 20}, nil)
	s.ask(privsep.OpSetSite, launch(1, a, 1, "app", "app.psgi", "max", "4"), nil)
	if _, err := s.knock(1); err != nil {
		t.Error(err)
	}
	s.stop()
}

// Zygotes die and come again; sites live on.
func TestZygoteDies(t *testing.T) {
	s := newServer(t)
	s.start()
	a, pid, w := s.runningSite(8)
	zygote := s.zygotePID()
	unix.Kill(zygote, unix.SIGKILL)
	s.ask(privsep.OpSetSite, launch(2, a, 1, "app", "app.psgi", "max", "1"), nil)
	if _, err := s.knock(2); err != nil { // it may meet no zygote, and waits for the next
		t.Error(err)
	}
	if next := s.zygotePID(); next == zygote {
		t.Error("it was the same zygote")
	}
	if body, err := w.get("/"); err != nil || body != fmt.Sprint(w.pid) || !alive(pid) {
		t.Errorf("the site that ran: %q, %v", body, err)
	}
	s.stop()
}

// A zygote that is old is followed by a new one; every wake
// finds one.
func TestZygoteAges(t *testing.T) {
	s := newServer(t)
	s.cfg.Zygotes["standard"] = config.Zygote{Restart: 50 * time.Millisecond}
	s.start()
	s.runningSite(11)
	seen := map[int]bool{}
	for len(seen) < 4 {
		e, ok := <-s.seraid.Events()
		if !ok {
			t.Fatal("the connection ended")
		}
		var z privsep.ZygoteEvent
		if e.Op != privsep.EvZygote {
			continue
		}
		if err := e.Decode(&z); err != nil || z.State != "up" {
			t.Fatalf("zygote %+v, %v", z, err)
		}
		seen[z.PID] = true
		s.ask(privsep.OpStop, privsep.SiteRef{Site: 1}, nil)
		if _, err := s.knock(1); err != nil {
			t.Error(err)
		}
	}
	s.stop()
}

// zygotePID finds the zygote by its cgroup.
func (s *server) zygotePID() int {
	s.t.Helper()
	var pids []int
	eventually(s.t, "a zygote", func() bool {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/memory/" + s.cfg.CgroupRoot + "/ops/zygote-standard/cgroup.procs")
		more, _ := filepath.Glob("/sys/fs/cgroup/" + s.cfg.CgroupRoot + "/ops/zygote-standard/cgroup.procs")
		pids = pids[:0]
		for _, path := range append(dirs, more...) {
			text, _ := os.ReadFile(path)
			for _, f := range strings.Fields(string(text)) {
				var pid int
				if fmt.Sscan(f, &pid); alive(pid) {
					pids = append(pids, pid)
				}
			}
		}
		return len(pids) > 0
	})
	return slices.Min(pids)
}

// The files of a site are opened beneath its root and nowhere else.
func TestFiles(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(9, privsep.Tenant{})
	s.write(a, "www/releases/7/public/x.txt", "seven")
	s.write(a, "www/app.psgi", pidApp)
	s.write(a, "secret/x.txt", "secret")
	for link, to := range map[string]string{"www/current": "releases/7", "www/out": "../secret", "www/etc": "/etc", "linked": "www"} {
		if err := os.Symlink(to, filepath.Join(a.Home, link)); err != nil {
			t.Fatal(err)
		}
	}
	rec := launch(1, a, 1, "app", "app.psgi", "max", "1")
	rec.Files = []string{"releases/7/public", "current/public", "out", "etc", "missing", "app.psgi"}
	s.ask(privsep.OpSetSite, rec, nil)
	for i, want := range []string{"seven", "seven", "", "", "", ""} {
		got, err := s.proxy.Call(s.ctx(), privsep.OpFiles, privsep.FilesRef{Site: 1, Index: i}, nil)
		if want == "" {
			if err == nil || strings.Contains(err.Error(), "internal") {
				t.Errorf("%s: %v, want a refusal with a reason", rec.Files[i], err)
			}
			continue
		}
		if err != nil || len(got) != 1 {
			t.Errorf("%s: %v, %v", rec.Files[i], got, err)
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/x.txt", got[0].Fd()))
		if err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", rec.Files[i], text, err)
		}
		got[0].Close()
	}
	rec.Root = "linked"
	s.ask(privsep.OpSetSite, rec, nil)
	if _, err := s.proxy.Call(s.ctx(), privsep.OpFiles, privsep.FilesRef{Site: 1, Index: 0}, nil); err == nil {
		t.Error("a root that is a link was opened")
	}
	s.stop()
}

// A thousand sites sleep, each with one listener; any of them wakes.
func TestThousandSites(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(10, privsep.Tenant{Memory: 256 << 20})
	s.write(a, "www/app.psgi", pidApp)
	const n = 1000
	began := time.Now()
	for i := range uint32(n) {
		s.ask(privsep.OpSetSite, launch(i+1, a, 1, "app", "app.psgi", "max", "1"), nil)
	}
	t.Logf("%d sites set in %s", n, time.Since(began))
	for _, site := range []uint32{1, n / 2, n} {
		if _, err := s.knock(site); err != nil {
			t.Errorf("site %d: %v", site, err)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	if err != nil || len(fds) > n+100 {
		t.Errorf("%d descriptors for %d sites, %v", len(fds), n, err)
	}
	began = time.Now()
	s.ask(privsep.OpDropTenant, privsep.TenantRef{UID: a.UID}, nil)
	t.Logf("dropped in %s", time.Since(began))
	s.stop()
}
