package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// task is a command of site 1.
func task(number int64, a privsep.AccountInfo, run ...string) privsep.Task {
	var block []string
	for _, arg := range run {
		block = append(block, "run", arg)
	}
	return privsep.Task{Site: 1, Task: number, Block: launch(1, a, 1, block...).Block}
}

// over waits for the end of a task.
func (s *server) over(number int64) privsep.TaskEvent {
	s.t.Helper()
	deadline := time.After(40 * time.Second)
	for {
		select {
		case e, ok := <-s.seraid.Events():
			if !ok {
				s.t.Fatal("the connection ended")
			}
			var ev privsep.TaskEvent
			if e.Op != privsep.EvTask {
				continue
			}
			if err := json.Unmarshal(e.Body, &ev); err != nil {
				s.t.Fatal(err)
			}
			if ev.Site == 1 && ev.Task == number {
				return ev
			}
		case <-deadline:
			s.t.Fatalf("task %d did not end", number)
		}
	}
}

// siteLog takes over the log of site 1.
func (s *server) siteLog() *os.File {
	s.t.Helper()
	got, err := s.seraid.Call(s.ctx(), privsep.OpLogs, privsep.SiteRef{Site: 1}, nil)
	if err != nil || len(got) != 1 {
		s.t.Fatalf("logs: %v, %v", got, err)
	}
	s.t.Cleanup(func() { got[0].Close() })
	return got[0]
}

// The life of a task: up, in the walls of its site, ended; what it left behind
// is ended with it; how it ended is kept until somebody has asked.
func TestTask(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(20, privsep.Tenant{Memory: 64 << 20, CPU: 2000, Processes: 30})
	s.write(a, "www/app.psgi", pidApp)
	rec := launch(1, a, 1, "app", "app.psgi", "max", "2")
	s.ask(privsep.OpSetSite, rec, nil)

	var r privsep.TaskResult
	s.ask(privsep.OpRun, task(1, a, "perl", "-e", `
		open my $s, "<", "/proc/self/status"; my %is = map { /^(\w+):\s*(.*)/ } <$s>;
		opendir my $d, "/proc/self/fd"; my @fds = grep { /\d/ && $_ != fileno($d) } readdir $d;
		print "$is{Uid}|$is{CapEff}|$is{CapBnd}|$is{NoNewPrivs}|$is{Seccomp}|@{[sort @fds]}|$ENV{HOME}|$ENV{USER}\n";
		$| = 1; print "$$\n"; exit 7`), &r)
	log := s.siteLog()
	e := s.over(1)
	if !r.Up || e.PID != r.PID || e.Status != 7<<8 || e.Time.IsZero() {
		t.Errorf("result %+v, end %+v", r, e)
	}
	text := make([]byte, 4096)
	n, err := io.ReadAtLeast(log, text, 60)
	want := fmt.Sprintf("%[1]d\t%[1]d\t%[1]d\t%[1]d|0000000000000000|0000000000000000|1|2|", a.UID)
	if got := string(text[:n]); err != nil || !strings.HasPrefix(got, want) || !strings.Contains(got, "|"+a.Home+"|"+a.Name+"\n") {
		t.Errorf("it printed %q, %v, want %q", got, err, want)
	}
	if fds := strings.Split(string(text[:n]), "|"); len(fds) < 6 || strings.Trim(fds[5], "0123 ") != "" {
		t.Errorf("descriptors %q", fds)
	}
	st := s.state(1)
	if st.Phase != "asleep" || len(st.Tasks) != 1 || st.Tasks[0].Ended == nil || st.Tasks[0].Ended.Status != 7<<8 {
		t.Errorf("state %+v", st)
	}
	if _, err := s.seraid.Call(s.ctx(), privsep.OpRun, task(1, a, "true"), nil); serai.KindOf(err) != serai.Conflict {
		t.Errorf("a number that was used: %v", err)
	}
	s.ask(privsep.OpEndTask, privsep.EndTask{Site: 1, Task: 1}, nil)
	if st := s.state(1); len(st.Tasks) != 0 {
		t.Errorf("state %+v", st)
	}

	// What a task started ends with it, also out of its session.
	s.ask(privsep.OpRun, task(2, a, "sh", "-c", `setsid sh -c 'echo $$ >~/child; trap "" TERM; while :; do sleep 100; done' & while ! [ -s ~/child ]; do sleep 0.01; done`), &r)
	if e := s.over(2); e.Status != 0 {
		t.Errorf("end %+v", e)
	}
	child, err := os.ReadFile(a.Home + "/child")
	var pid int
	if _, serr := fmt.Sscan(string(child), &pid); err != nil || serr != nil {
		t.Fatal(string(child), err, serr)
	}
	eventually(t, "the end of the task's child", func() bool { return !alive(pid) })

	// One that hears SIGTERM, one that does not, one that is no program.
	s.ask(privsep.OpRun, task(3, a, "perl", "-e", `$SIG{TERM} = sub { exit 3 }; $| = 1; print "three\n"; sleep 1 while 1`), &r)
	log = s.siteLog() // the site slept in between: this is another pipe
	s.ask(privsep.OpRun, task(4, a, "perl", "-e", `$SIG{TERM} = 'IGNORE'; $| = 1; print "four\n"; sleep 1 while 1`), nil)
	s.ask(privsep.OpRun, task(5, a, "no-such-program"), nil)
	if e := s.over(5); e.Status != 127<<8 {
		t.Errorf("no program: %+v", e)
	}
	for seen := ""; !strings.Contains(seen, "three") || !strings.Contains(seen, "four") || !strings.Contains(seen, "no-such-program"); {
		n, err := log.Read(text)
		if seen += string(text[:n]); err != nil {
			t.Fatalf("log %q, %v", seen, err)
		}
	}
	s.ask(privsep.OpEndTask, privsep.EndTask{Site: 1, Task: 3, GraceMs: 60000}, nil)
	if e := s.over(3); e.Status != 3<<8 || e.PID != r.PID {
		t.Errorf("end %+v", e)
	}
	s.ask(privsep.OpEndTask, privsep.EndTask{Site: 1, Task: 4, GraceMs: 1}, nil)
	if e := s.over(4); e.Status != int(unix.SIGKILL) {
		t.Errorf("end %+v", e)
	}

	// Killed for memory, and killed with its site.
	s.ask(privsep.OpRun, task(6, a, "perl", "-e", `my @x; push @x, "x" x 1e6 while 1`), nil)
	if e := s.over(6); e.Memory.OOMKills == 0 || e.Memory.Limit != 64<<20 {
		t.Errorf("end %+v", e)
	}
	s.ask(privsep.OpRun, task(7, a, "sleep", "1000"), &r)
	rec.Off = true
	s.ask(privsep.OpSetSite, rec, nil)
	s.ask(privsep.OpStop, privsep.SiteRef{Site: 1}, nil)
	if e := s.over(7); e.Status != int(unix.SIGKILL) || alive(r.PID) {
		t.Errorf("end %+v", e)
	}
	if _, err := s.seraid.Call(s.ctx(), privsep.OpRun, task(8, a, "true"), nil); serai.KindOf(err) != serai.Conflict {
		t.Errorf("run in a stopped site: %v", err)
	}
	rec.Off = false
	s.ask(privsep.OpSetSite, rec, nil)
	s.ask(privsep.OpRun, task(9, a, "sh", "-c", "setsid sleep 1000 & exec setsid -w sleep 1000"), &r)
	s.ask(privsep.OpDropTenant, privsep.TenantRef{UID: a.UID}, nil)
	if alive(r.PID) {
		t.Error("a task outlives its tenant")
	}
	s.stop()
}

// A task goes on, with its pid, through an upgrade and the end of seraid. The
// next seraid learns of it, and of one that ended meanwhile.
func TestTaskOutlives(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(21, privsep.Tenant{Memory: 64 << 20, Processes: 30})
	s.write(a, "www/app.psgi", pidApp)
	s.ask(privsep.OpSetSite, launch(1, a, 1, "app", "app.psgi", "max", "2"), nil)
	var r privsep.TaskResult
	s.ask(privsep.OpRun, task(1, a, "sleep", "1000"), &r)
	s.ask(privsep.OpRun, task(2, a, "sh", "-c", "while ! [ -e ~/end ]; do sleep 0.01; done; exit 9"), nil)

	s.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "the upgrade", func() bool { return strings.Contains(s.log.String(), "msg=upgraded") })
	old := s.seraid.pid
	unix.Kill(old, unix.SIGKILL)
	s.seraid = s.peer("seraid")
	if s.seraid.pid == old {
		t.Fatal("the same seraid")
	}
	st := s.state(1)
	if len(st.Tasks) != 2 || st.Tasks[0].PID != r.PID || !alive(r.PID) {
		t.Fatalf("state %+v, want pid %d", st, r.PID)
	}
	unix.Kill(s.seraid.pid, unix.SIGKILL)
	s.write(a, "end", "")
	s.seraid = s.peer("seraid")
	eventually(t, "how the second ended", func() bool {
		st = s.state(1)
		return len(st.Tasks) == 2 && st.Tasks[1].Ended != nil
	})
	if e := st.Tasks[1].Ended; e.Task != 2 || e.Status != 9<<8 {
		t.Errorf("end %+v", e)
	}
	s.ask(privsep.OpEndTask, privsep.EndTask{Site: 1, Task: 2}, nil)
	s.ask(privsep.OpEndTask, privsep.EndTask{Site: 1, Task: 1, GraceMs: 1000}, nil)
	if st := s.state(1); len(st.Tasks) != 0 || alive(r.PID) {
		t.Errorf("state %+v", st)
	}
	s.stop()
}
