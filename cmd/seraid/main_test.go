package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/privsep"
)

const uid = 1900006999

// TestMain makes the test binary the program where it is asked to be.
func TestMain(m *testing.M) {
	if os.Getenv("SERAI_TEST_BE") == "seraid" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A daemon is a real seraid under a uid of its own, with a fake serai-priv.
type daemon struct {
	*testing.T
	cfg *config.Config
	ln  *os.File

	cmd    *exec.Cmd
	stderr *output
	priv   int
}

// output is what the process says.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test must run as root: it starts seraid under another uid")
	}
	dir, err := os.MkdirTemp("", "seraid-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := &config.Config{StateDir: dir, RunDir: dir, LogDir: dir, CgroupRoot: "serai-test-g2",
		Accounts: config.Accounts{Range: config.Range{First: 1900006000, Last: uid}}, Users: config.Users{Admin: "root"}}
	state := filepath.Dir(cfg.Database())
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(state, 0o700), os.Chown(state, uid, uid)); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", cfg.APISocket())
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	f, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	t.Cleanup(func() { f.Close() })
	return &daemon{T: t, cfg: cfg, ln: f}
}

func (d *daemon) start() {
	d.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		d.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[0]), "socket to serai-priv")
	defer theirs.Close()
	conf, err := os.CreateTemp(d.cfg.RunDir, "config")
	if err != nil {
		d.Fatal(err)
	}
	defer conf.Close()
	if err := json.NewEncoder(conf).Encode(d.cfg); err != nil {
		d.Fatal(err)
	}
	d.stderr = new(output)
	d.cmd = exec.Command("/proc/self/exe", "--config-fd", "3", "--priv-fd", "4", "--api-fd", "5")
	d.cmd.Env = []string{"SERAI_TEST_BE=seraid"}
	d.cmd.Stderr = d.stderr
	d.cmd.ExtraFiles = []*os.File{conf, theirs, d.ln}
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := d.cmd.Start(); err != nil {
		unix.Close(fds[1])
		d.Fatal(err)
	}
	d.priv = fds[1]
	go answer(fds[1])
	d.Cleanup(func() { d.cmd.Process.Kill(); d.cmd.Wait() })
}

// answer is a serai-priv that holds nothing and agrees to everything.
func answer(fd int) {
	defer unix.Close(fd)
	buf, control := make([]byte, privsep.MaxPacket+1), make([]byte, privsep.ControlSize)
	for {
		packet, files, err := privsep.Receive(fd, buf, control)
		if err != nil {
			return
		}
		privsep.CloseAll(files)
		r, err := privsep.DecodeRequest(packet)
		if err != nil {
			return
		}
		text, _ := json.Marshal(privsep.Reply{ID: r.ID, Body: json.RawMessage(`{}`)})
		privsep.Send(fd, text)
	}
}

// end waits for the process, and returns its exit code.
func (d *daemon) end() int {
	d.Helper()
	late := time.AfterFunc(20*time.Second, func() { d.cmd.Process.Kill() })
	defer late.Stop()
	d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

func (d *daemon) apply(text string) {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.Context(), 20*time.Second)
	defer cancel()
	c := client.New(d.cfg.APISocket())
	defer c.Close()
	if _, err := c.Apply(ctx, client.ApplyRequest{Files: []client.File{{Name: "a.yaml", Text: text}}}); err != nil {
		d.Fatalf("apply: %v; seraid said:\n%s", err, d.stderr)
	}
}

const plan = "kind: Plan\nmetadata: {name: small}\nspec: {memory: 64Mi}\n"

// What was acknowledged is there after a kill; SIGTERM ends it well.
func TestSeraid(t *testing.T) {
	d := newDaemon(t)
	d.start()
	d.apply(plan)
	d.cmd.Process.Kill()
	d.end()

	d.start()
	c := client.New(d.cfg.APISocket())
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := c.Get(ctx, serai.Key{Kind: serai.KindPlan, Name: "small"})
	if err != nil || r.(*serai.Plan).Spec.Memory != 64<<20 {
		t.Errorf("the plan is %+v, %v; seraid said:\n%s", r, err, d.stderr)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	if code := d.end(); code != 0 {
		t.Errorf("exit code %d; it said:\n%s", code, d.stderr)
	}
}

// Without serai-priv there is nothing to do.
func TestPrivGone(t *testing.T) {
	d := newDaemon(t)
	d.start()
	d.apply(plan)
	unix.Shutdown(d.priv, unix.SHUT_RDWR)
	if code := d.end(); code != 1 || !strings.Contains(d.stderr.String(), "serai-priv is gone") {
		t.Errorf("exit code %d; it said:\n%s", code, d.stderr)
	}
}

// With root's power it does not start.
func TestNotAsRoot(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"SERAI_TEST_BE=seraid"}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "seraid: prove the drop") {
		t.Errorf("%v; it said:\n%s", err, out)
	}
}
