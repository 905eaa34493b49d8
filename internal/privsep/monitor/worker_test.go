package monitor

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A process names itself as it likes: no name passes for a state.
func FuzzState(f *testing.F) {
	for _, name := range []string{"perl", ") R (", "a) D 1 2 3", "", "((", "))", "\n) Z"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if got := stateIn(fmt.Appendf(nil, "77 (%s) S 1 77 77 0 -1 4194560", name)); got != "S" {
			t.Errorf("%q: state %q", name, got)
		}
	})
}

func TestLookAt(t *testing.T) {
	for text, want := range map[string]string{"": "", "77 (x)": "", "77 (x) ": "", "77 (x) 5": "", "77 (x) R": "R"} {
		if got := stateIn([]byte(text)); got != want {
			t.Errorf("%q: state %q, want %q", text, got, want)
		}
	}
	// This process, which runs, under a name that would mislead.
	old, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string) {
		if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
			t.Fatal(err)
		}
	}
	write("x) Z 1 2 3")
	defer write(strings.TrimSpace(string(old)))
	if state, _ := lookAt(os.Getpid()); state == "Z" || len(state) != 1 {
		t.Errorf("state %q", state)
	}
	if state, wait := lookAt(1 << 30); state != "" || wait != "" {
		t.Errorf("of nobody: %q %q", state, wait)
	}
}

// A number whose process has ended is nobody's.
func TestAlive(t *testing.T) {
	n, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	self := fd(n)
	defer self.close()
	if !self.alive() {
		t.Error("this process has ended")
	}
	p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	if n, err = unix.PidfdOpen(p.Pid, 0); err != nil {
		t.Fatal(err)
	}
	child := fd(n)
	defer child.close()
	if _, err := p.Wait(); err != nil || child.alive() {
		t.Errorf("true is alive, %v", err)
	}
	if err := child.signal(unix.SIGTERM); err != nil {
		t.Errorf("signal to one that has ended: %v", err)
	}
}
