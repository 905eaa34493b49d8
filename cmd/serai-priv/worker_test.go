package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// stuckApp says where it is, and stays there.
const stuckApp = `sub {
    my $how = $_[0]{PATH_INFO};
    if ($how eq '/deaf') { POSIX::sigprocmask(POSIX::SIG_BLOCK(), POSIX::SigSet->new(45, 46)) }
    print STDERR "in $how\n";
    sleep 60 while $how ne '/regex';
    ('a' x 60) =~ /^(?:(a+)\1?)+[bc]/;
};`

// A worker that takes too long is asked to leave. What the kernel says of one
// that does not is told; nothing else waits meanwhile.
func TestWorkersAreAsked(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(1, privsep.Tenant{Memory: 256 << 20, CPU: 2000, Processes: 50})
	s.write(a, "www/app.psgi", stuckApp)
	s.ask(privsep.OpSetSite, launch(1, a, 1, "app", "app.psgi", "max", "8"), nil)
	stuck := func(path string) (w *worker, log io.Reader) {
		t.Helper()
		w, err := s.knock(1)
		if err != nil {
			t.Fatal(err)
		}
		files, err := s.seraid.Call(s.ctx(), privsep.OpLogs, privsep.SiteRef{Site: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { files[0].Close() })
		go w.get(path)
		buf := make([]byte, 4096)
		if n, err := files[0].Read(buf); err != nil || string(buf[:n]) != "in "+path+"\n" {
			t.Fatalf("log %q, %v", buf[:n], err)
		}
		return w, files[0]
	}
	end := func(pid int) (how privsep.Killed) {
		t.Helper()
		if _, err := s.proxy.Call(s.ctx(), privsep.OpKillWorker, privsep.KillWorker{WorkerRef: privsep.WorkerRef{Site: 1, PID: pid}, Ask: true}, &how); err != nil {
			t.Errorf("kill-worker: %v", err)
		}
		eventually(t, "a killed worker ends", func() bool { return !alive(pid) })
		return how
	}
	for _, path := range []string{"/sleep", "/regex"} {
		w, log := stuck(path)
		if how := end(w.pid); how != (privsep.Killed{}) {
			t.Errorf("%s: %+v, want an answer", path, how)
		}
		buf := make([]byte, 4096)
		n, err := log.Read(buf)
		if want := fmt.Sprintf("worker %d ends: GET %s\n    app.psgi:", w.pid, path); err != nil || !strings.Contains(string(buf[:n]), want) {
			t.Errorf("%s: log %q, %v", path, buf[:n], err)
		}
	}

	deaf, _ := stuck("/deaf")
	asked := make(chan privsep.Killed)
	go func() { asked <- end(deaf.pid) }()
	if s.phase(1, "running"); !alive(deaf.pid) {
		t.Error("it was killed at once")
	}
	s.cmd.Process.Signal(unix.SIGHUP) // a binary that follows knows whom it waits for
	if how := <-asked; how.State != "S" || !strings.Contains(how.Wait, "nanosleep") {
		t.Errorf("one that does not hear: %+v", how)
	}
	stopped, _ := stuck("/sleep")
	unix.Kill(stopped.pid, unix.SIGSTOP)
	if how := end(stopped.pid); how.State != "T" {
		t.Errorf("one that was stopped: %+v", how)
	}

	// How large it is can be read by who may ask, again and again until it ends.
	w, _ := stuck("/sleep")
	for _, pid := range []int{os.Getpid(), s.cmd.Process.Pid, s.proxy.pid} {
		_, err := s.seraid.Call(s.ctx(), privsep.OpSize, privsep.WorkerRef{Site: 1, PID: pid}, nil)
		if serai.KindOf(err) != serai.NotFound {
			t.Errorf("size of %d: %v", pid, err)
		}
	}
	files, err := s.seraid.Call(s.ctx(), privsep.OpSize, privsep.WorkerRef{Site: 1, PID: w.pid}, nil)
	if err != nil || len(files) != 1 {
		t.Fatalf("size: %v, %v", files, err)
	}
	defer files[0].Close()
	size := func() string {
		files[0].Seek(0, io.SeekStart)
		text, _ := io.ReadAll(files[0])
		return string(text)
	}
	for range 2 {
		if text := size(); !strings.Contains(text, "\nPrivate_Dirty:") {
			t.Errorf("size %q", text)
		}
	}
	for _, pid := range []int{os.Getpid(), s.cmd.Process.Pid, s.seraid.pid} {
		_, err := s.proxy.Call(s.ctx(), privsep.OpAskWorker, privsep.WorkerRef{Site: 1, PID: pid}, nil)
		if serai.KindOf(err) != serai.NotFound {
			t.Errorf("ask-worker %d: %v", pid, err)
		}
	}
	if _, err := s.proxy.Call(s.ctx(), privsep.OpAskWorker, privsep.WorkerRef{Site: 1, PID: w.pid}, nil); err != nil || !alive(w.pid) {
		t.Errorf("ask-worker: %v", err)
	}
	end(w.pid)
	if text := size(); text != "" {
		t.Errorf("size of one that has ended: %q", text)
	}
	s.stop()
	s.nothingLeft()
}
