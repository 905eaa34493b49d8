package main

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"serai.dev/serai"
	"serai.dev/serai/internal/api"
	"serai.dev/serai/internal/api/apitest"
	"serai.dev/serai/internal/manifest"
	"serai.dev/serai/internal/store/sqlite"
)

var update = flag.Bool("update", false, "rewrite scripts and docs/reference/cli.md")

// relayEnv makes the test binary a relay: it passes connections of the socket
// that it inherits on to the one named, as the user it runs as.
const relayEnv = "SERAI_TEST_RELAY"

// mainEnv makes the test binary the program, for those who cannot reach the
// copy of it that scripts run.
const mainEnv = "SERAI_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		main()
	}
	if to := os.Getenv(relayEnv); to != "" {
		relay(to)
		return
	}
	testscript.Main(m, map[string]func(){"serai": main})
}

// firstUID is alice's in every script: hers is the first tenant.
const firstUID = 1900005000

// TestScript runs the program against a server in this process. The sockets
// SERAI_SOCKET, $ALICE and $STRANGER lead to it as root, as the first tenant,
// and as an account that nobody knows.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update,
		RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: setup,
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"await": await, "happens": happens},
	})
}

type worldKey struct{}

func setup(env *testscript.Env) error {
	// Socket paths are short: the script's directory may not be.
	dir, err := os.MkdirTemp("", "serai")
	if err != nil {
		return err
	}
	env.Defer(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	st, err := sqlite.Open(context.Background(), filepath.Join(dir, "serai.db"), sqlite.Options{FirstUID: firstUID, LastUID: firstUID + 50})
	if err != nil {
		return err
	}
	env.Defer(func() { st.Close() })
	env.Values[worldKey{}] = st
	t := env.T().(testing.TB)
	apitest.Reconcile(t, st)
	socket := filepath.Join(dir, "api.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	srv := api.New(api.Options{Store: st, Controller: &apitest.Controller{Store: st}, Limits: manifest.Limits{Zygotes: []string{"standard"}},
		CgroupRoot: "serai-test-g1", Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	go func() { done <- srv.Run(ctx, ln) }()
	env.Defer(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	env.Setenv("SERAI_SOCKET", socket)
	env.Setenv("TZ", "UTC")
	for name, uid := range map[string]uint32{"ALICE": firstUID, "STRANGER": firstUID + 99} {
		path := filepath.Join(dir, strings.ToLower(name)+".sock")
		end, err := startRelay(path, socket, uid)
		if err != nil {
			return err
		}
		env.Defer(end)
		env.Setenv(name, path)
	}
	return nil
}

// startRelay makes a socket through which one speaks as uid.
func startRelay(path, to string, uid uint32) (end func(), err error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	f, err := ln.(*net.UnixListener).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/exe") // the directory of the binary is closed to others
	cmd.Env = []string{relayEnv + "=" + to}
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}, nil
}

func relay(to string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ln, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		panic(err)
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.Dial("unix", to)
			if err != nil {
				return
			}
			defer out.Close()
			go func() { _, _ = io.Copy(out, in); out.(*net.UnixConn).CloseWrite() }()
			_, _ = io.Copy(in, out)
		}()
	}
}

// await waits until a file of the script's directory has a text: await FILE TEXT.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE TEXT")
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); runtime.Gosched() {
		if text, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(text), args[1]) {
			return
		}
	}
	ts.Fatalf("%s never had %q", args[0], args[1])
}

// happens adds an event: happens TENANT SITE REASON MESSAGE.
func happens(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: happens TENANT SITE REASON MESSAGE")
	}
	_, err := ts.Value(worldKey{}).(*sqlite.Store).AddEvent(context.Background(), serai.Event{
		Time: time.Unix(1.7e9, 0).UTC(), Severity: "warning", Tenant: args[0], Site: args[1], Reason: args[2], Message: args[3],
		Fields: map[string]string{"pid": "12"}})
	ts.Check(err)
}

// TestNotRoot: what an account without rights is told.
func TestNotRoot(t *testing.T) {
	closed := filepath.Join(t.TempDir(), "api.sock")
	ln, err := net.Listen("unix", closed)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := os.Chmod(closed, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, want string }{
		{"serve --config /dev/null", "serai: serai serve must run as root\nhint: sudo serai serve\n"},
		{"status --socket " + closed, "serai: this account may not open " + closed + "\nhint: look at the permissions of the directories above it\n"},
	} {
		cmd := exec.Command("/proc/self/exe", strings.Fields(tt.args)...)
		cmd.Env = []string{mainEnv + "=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: firstUID + 98, Gid: firstUID + 98}}
		out, err := cmd.CombinedOutput()
		if string(out) != tt.want || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("serai %s: %q, %v; want %q", tt.args, out, err, tt.want)
		}
	}
}

func TestReferenceIsFresh(t *testing.T) {
	t.Setenv("SERAI_SOCKET", "")
	a := newApp(strings.NewReader(""), io.Discard, io.Discard)
	text := reference(a.root())
	const path = "../../docs/reference/cli.md"
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if old, err := os.ReadFile(path); err != nil || string(old) != text {
		t.Errorf("%s is stale (%v): go test ./cmd/serai -update", path, err)
	}
}
