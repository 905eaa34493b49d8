package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

const pidApp = `print STDERR "loaded in $$\n"; sub { [200, ["Content-Type", "text/plain"], [$$]] };`

// state is what the monitor says of a site.
func (s *server) state(site uint32) privsep.SiteState {
	s.t.Helper()
	var found privsep.SiteState
	err := s.seraid.CallMany(s.ctx(), privsep.OpState, nil, func(b json.RawMessage) error {
		var st privsep.State
		if err := privsep.Strict(b, &st); err != nil {
			return err
		}
		if st.Site != nil && st.Site.Site == site {
			found = *st.Site
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

func (s *server) phase(site uint32, want string) {
	s.t.Helper()
	if st := s.state(site); st.Phase != want {
		s.t.Fatalf("site %d is %+v, want %s", site, st, want)
	}
}

// The life of a site: asleep, woken by a knock, served, launched anew beside
// the old, not launched where the new code is wrong, stopped, woken, dropped.
func TestLife(t *testing.T) {
	s := newServer(t)
	s.start()
	if s.proxy.uid == 0 || s.seraid.uid == 0 || s.proxy.uid == s.seraid.uid {
		t.Errorf("seraid runs as %d, serai-proxy as %d", s.seraid.uid, s.proxy.uid)
	}
	for _, p := range []*peerEnd{s.proxy, s.seraid} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.pid))
		soft, hard := "", "?"
		for line := range strings.Lines(string(text)) {
			fmt.Sscanf(line, "Max open files %s %s", &soft, &hard)
		}
		if soft != hard {
			t.Errorf("open files of pid %d: %s of %s, %v", p.pid, soft, hard, err)
		}
	}
	a := s.tenant(1, privsep.Tenant{Memory: 256 << 20, CPU: 2000, Processes: 50})
	if a.Name != "serai-d-t1" || a.Home != s.cfg.Accounts.Home+"/t1" && a.Home != s.cfg.Accounts.Home+"/serai-d-t1" {
		t.Errorf("account %+v", a)
	}
	s.write(a, "www/app.psgi", pidApp)
	rec := launch(1, a, 1, "app", "app.psgi", "max", "2")
	s.ask(privsep.OpSetSite, rec, nil)
	if st := s.state(1); st.Phase != "asleep" || st.Hash != privsep.HashLaunch(rec) || st.Launch != 1 {
		t.Errorf("state %+v", st)
	}

	w, err := s.knock(1)
	if err != nil {
		t.Fatalf("%v: %+v", err, s.await(s.proxy, privsep.EvFailed, 1))
	}
	started := s.await(s.seraid, privsep.EvStarted, 1)
	if s.await(s.proxy, privsep.EvStarted, 1) != started || started.Launch != 1 || started.UID != a.UID {
		t.Errorf("started %+v", started)
	}
	if st := s.state(1); st.Phase != "running" || st.PID != started.PID {
		t.Errorf("state %+v, started %+v", st, started)
	}
	body, err := w.get("/")
	if err != nil || body != strconv.Itoa(w.pid) {
		t.Errorf("%q, %v from worker %d", body, err, w.pid)
	}

	got, err := s.seraid.Call(s.ctx(), privsep.OpLogs, privsep.SiteRef{Site: 1}, nil)
	if err != nil || len(got) != 1 {
		t.Fatalf("logs: %v, %v", got, err)
	}
	defer got[0].Close()
	buf := make([]byte, 100)
	if n, err := got[0].Read(buf); err != nil || string(buf[:n]) != fmt.Sprintf("loaded in %d\n", started.PID) {
		t.Errorf("log %q, %v", buf[:n], err)
	}

	// Processes that are not the site's are not the proxy's to kill.
	for _, pid := range []int{os.Getpid(), s.cmd.Process.Pid, s.seraid.pid, 999999} {
		_, err := s.proxy.Call(s.ctx(), privsep.OpKillWorker, privsep.WorkerRef{Site: 1, PID: pid}, nil)
		if serai.KindOf(err) != serai.NotFound {
			t.Errorf("kill-worker %d: %v", pid, err)
		}
	}
	if _, err := s.proxy.Call(s.ctx(), privsep.OpKillWorker, privsep.WorkerRef{Site: 1, PID: w.pid}, nil); err != nil {
		t.Errorf("kill-worker: %v", err)
	}
	if _, err := w.conn.Read(buf); err == nil {
		t.Error("the worker lives")
	}
	if !alive(started.PID) {
		t.Error("the loaded process died with its worker")
	}

	// New code that does not load touches nothing; then new code that does.
	s.write(a, "www/app.psgi", "sub { die")
	rec.Launch = 2
	s.ask(privsep.OpSetSite, rec, nil)
	var r privsep.LaunchResult
	s.ask(privsep.OpLaunch, privsep.SiteRef{Site: 1}, &r)
	if r.Loaded || !strings.Contains(r.Message, "app.psgi") {
		t.Errorf("launch of broken code: %+v", r)
	}
	if st := s.state(1); st.PID != started.PID {
		t.Errorf("after a failed launch: %+v, before %+v", st, started)
	}
	s.write(a, "www/app.psgi", pidApp)
	s.ask(privsep.OpLaunch, privsep.SiteRef{Site: 1}, &r)
	if !r.Loaded || r.PID == started.PID {
		t.Fatalf("launch: %+v", r)
	}
	exited := s.await(s.seraid, privsep.EvExited, 1) // it has no worker, and was told to leave
	if exited.PID != started.PID || exited.Status != 0 || exited.Memory.Limit != 256<<20 || exited.Memory.Peak == 0 {
		t.Errorf("exited %+v", exited)
	}
	if _, err := s.knock(1); err != nil {
		t.Error(err)
	}

	s.ask(privsep.OpSetTenant, privsep.Tenant{UID: a.UID, Memory: 128 << 20, CPU: 100, Processes: 20}, nil)
	s.ask(privsep.OpStop, privsep.SiteRef{Site: 1}, nil)
	exited = s.await(s.seraid, privsep.EvExited, 1)
	if exited.PID != r.PID || exited.Status != int(unix.SIGKILL) || exited.Memory.Limit != 128<<20 {
		t.Errorf("exited %+v", exited)
	}
	s.phase(1, "asleep")
	if rest, err := io.ReadAll(got[0]); err != nil || !strings.Contains(string(rest), "loaded in") {
		t.Errorf("rest of the log: %q, %v", rest, err)
	}
	if _, err := s.knock(1); err != nil {
		t.Error(err)
	}
	rec.Off = true
	s.ask(privsep.OpSetSite, rec, nil)
	s.phase(1, "running")
	s.ask(privsep.OpStop, privsep.SiteRef{Site: 1}, nil)
	s.phase(1, "off")

	s.ask(privsep.OpDropTenant, privsep.TenantRef{UID: a.UID}, nil)
	if st := s.state(1); st.Phase != "" {
		t.Errorf("a dropped site: %+v", st)
	}
	if _, err := os.Stat(s.cfg.SiteSocket(1)); err == nil {
		t.Error("the socket of a dropped site is left")
	}
	s.ask(privsep.OpRemoveAccount, privsep.RemoveAccount{UID: a.UID, Purge: true}, nil)
	if _, err := os.Stat(a.Home); err == nil {
		t.Error("the home is left")
	}
	s.stop()
}

// What fails to load is told, ends who waits, and is left alone for a while.
func TestFailures(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(2, privsep.Tenant{Memory: 64 << 20, Processes: 20})
	for i, tt := range []struct{ name, app, want string }{
		{"syntax error", "sub { ", "app.psgi"},
		{"no code", "42;", "app.psgi"},
		{"exit", "exit 3;", ""},
		{"killed", "kill 9, $$;", "SIGKILL"},
		{"memory", "my @x; push @x, 'x' x 1e6 while 1;", "memory"},
		{"last words of a liar", "open my $h, '>&=', 4; syswrite $h, 'nonsense'; sleep 100;", "protocol"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			site := uint32(10 + i)
			s.write(a, "www/app.psgi", tt.app)
			s.ask(privsep.OpSetSite, launch(site, a, 1, "app", "app.psgi", "max", "1"), nil)
			if _, err := s.knock(site); err == nil {
				t.Error("it said hello")
			}
			e := s.await(s.proxy, privsep.EvFailed, site)
			if e.RetryMs != 1000 || e.Message == "" || !strings.Contains(e.Message, tt.want) {
				t.Errorf("failed: %+v, want a message with %q", e, tt.want)
			}
			s.phase(site, "backoff")
			s.write(a, "www/app.psgi", pidApp)
			var r privsep.LaunchResult
			s.ask(privsep.OpLaunch, privsep.SiteRef{Site: site}, &r)
			if !r.Loaded {
				t.Errorf("after correction: %+v", r)
			}
			s.ask(privsep.OpDropSite, privsep.SiteRef{Site: site}, nil)
		})
	}

	// A tenant's code can shut its listener down: it is made anew.
	s.write(a, "www/app.psgi", `sub { open my $l, "<&=", 3; shutdown(STDIN, 2); for my $fd (3 .. 20) { open my $s, "+<&=", $fd or next; shutdown($s, 2) if getsockopt($s, 1, 30) && unpack("i", getsockopt($s, 1, 30)) } kill 9, $$ };`)
	s.ask(privsep.OpSetSite, launch(30, a, 1, "app", "app.psgi", "max", "1"), nil)
	w, err := s.knock(30)
	if err != nil {
		t.Fatal(err)
	}
	w.get("/")
	s.await(s.seraid, privsep.EvListener, 30)
	s.write(a, "www/app.psgi", pidApp)
	if _, err := s.knock(30); err != nil {
		t.Errorf("after the listener was made anew: %v", err)
	}

	// A worker that is killed for memory is told with what the kernel says.
	s.write(a, "www/app.psgi", `sub { my @x; push @x, "x" x 1e6 while 1 };`)
	s.ask(privsep.OpSetSite, launch(31, a, 1, "app", "app.psgi", "max", "1"), nil)
	if w, err = s.knock(31); err != nil {
		t.Fatal(err)
	}
	if _, err := w.get("/"); err == nil {
		t.Error("a worker above its memory answered")
	}
	e := s.await(s.seraid, privsep.EvExited, 31)
	if e.Status != int(unix.SIGKILL) || e.Memory.OOMKills == 0 || e.Memory.Limit != 64<<20 || e.Memory.Peak == 0 {
		t.Errorf("exited %+v", e)
	}
	s.stop()
}

// preload none is a fresh perl.
func TestFreshPerl(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(3, privsep.Tenant{Memory: 128 << 20, Processes: 20})
	s.write(a, "www/app.psgi", pidApp)
	rec := launch(1, a, 1, "app", "app.psgi", "max", "1")
	rec.Zygote = serai.PreloadNone
	s.ask(privsep.OpSetSite, rec, nil)
	w, err := s.knock(1)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := w.get("/"); err != nil || body != strconv.Itoa(w.pid) {
		t.Errorf("%q, %v from worker %d", body, err, w.pid)
	}
	s.stop()
}

// Old code serves those it serves until they are through, and leaves then.
func TestDrain(t *testing.T) {
	s := newServer(t)
	s.start()
	_, old, w := s.runningSite(12)
	var r privsep.LaunchResult
	s.ask(privsep.OpLaunch, privsep.SiteRef{Site: 1}, &r)
	if !r.Loaded || r.PID == old {
		t.Fatalf("launch: %+v", r)
	}
	if body, err := w.get("/"); err != nil || body != strconv.Itoa(w.pid) {
		t.Errorf("the worker of the old launch: %q, %v", body, err)
	}
	next, err := s.knock(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.get("/"); err != nil || !alive(old) || !alive(r.PID) {
		t.Errorf("a worker of the new launch: %v", err)
	}
	w.conn.Write([]byte{0, 0, 0, 0, 'Q'})
	if e := s.await(s.seraid, privsep.EvExited, 1); e.PID != old || e.Status != 0 {
		t.Errorf("exited %+v, want %d", e, old)
	}
	if st := s.state(1); st.PID != r.PID {
		t.Errorf("state %+v, want %d", st, r.PID)
	}
	s.stop()
}

// A page that crashes its worker again and again does not keep the others of
// the site from being served.
func TestCrashLoop(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(13, privsep.Tenant{Memory: 128 << 20, Processes: 50})
	s.write(a, "www/app.psgi", `sub { kill 9, $$ };`)
	s.ask(privsep.OpSetSite, launch(1, a, 1, "app", "app.psgi", "max", "1"), nil)
	for range 4 {
		w, err := s.knock(1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.get("/"); err == nil {
			t.Error("it answered")
		}
		s.await(s.seraid, privsep.EvExited, 1)
		s.phase(1, "asleep")
	}
	if _, err := s.knock(1); err != nil {
		t.Errorf("after four crashes: %v", err)
	}
	s.stop()
}
