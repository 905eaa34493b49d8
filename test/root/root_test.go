// Package root holds the end-to-end tests: scripts in testdata/script, run
// against the real programs with real accounts, cgroups and servers. They need
// root. Each script has a server of its own.
package root

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/config"
)

var update = flag.Bool("update", false, "rewrite the expected output in the scripts")

// bin is the directory of the programs under test.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests in test/root need root: accounts and cgroups are made")
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	dir, err := os.MkdirTemp("/var/lib", "serai-test-bin.")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	build := exec.Command("go", "build", "-o", dir+"/", "serai.dev/serai/cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	bin = dir
	made, err := account.EnsureSystemUsers(config.Users{Daemon: "serai", Proxy: "serai-proxy", Admin: "serai-admin"})
	defer func() {
		if err := account.RemoveSystemUsers(made); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// count numbers the servers of this run: uids, ports, names of accounts and
// cgroups come from it, so that scripts can run side by side. Whole runs can,
// on a machine that has the system users already, with another -slot each.
var (
	count atomic.Int32
	slot  = flag.Int("slot", 0, "0 to 9: which of ten hundreds of servers the run takes its numbers from")
)

func TestScript(t *testing.T) {
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			s, err := newServer(100**slot+int(count.Add(1)), repo)
			if err != nil {
				return err
			}
			e.Values[serverKey{}] = s
			e.Defer(func() {
				if err := s.clean(); err != nil {
					t.Errorf("clean up: %v", err)
				}
			})
			e.Setenv("PATH", bin+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
			for k, v := range map[string]string{
				"BASE": s.base, "SERAI_SOCKET": s.base + "/run/api.sock", "PORT": fmt.Sprint(s.port),
				"URL": fmt.Sprintf("127.0.0.1:%d", s.port), "REPO": repo, "PREFIX": s.prefix, "CGROUP": s.cgroup,
				"UID": fmt.Sprint(s.firstUID), "ADOPT": fmt.Sprint(s.adoptUID), "BIN": bin, "DATA": repo + "/test/root/testdata", "CI": os.Getenv("CI"),
			} {
				e.Setenv(k, v)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":    cmdServe,
			"shutdown": cmdShutdown,
			"signal":   cmdSignal,
			"operator": cmdOperator,
			"alice":    actor("alice"),
			"bob":      actor("bob"),
			"mallory":  actor("mallory"),
			"put":      cmdPut,
			"await":    cmdAwait,
			"pids":     cmdPids,
			"load":     cmdLoad,
			"fill":     cmdFill,
			"dial":     cmdDial,
			"send":     cmdSend,
			"reply":    cmdReply,
			"hangup":   cmdHangup,
			"peak":     cmdPeak,
			"running":  cmdRunning,
			"accounts": cmdAccounts,
			"person":   cmdPerson,
			"subid":    cmdSubID,
			"tmpfs":    cmdTmpfs,
			"mta":      cmdMTA,
			"mails":    cmdMails,
		},
	})
}

type serverKey struct{}

func serverOf(ts *testscript.TestScript) *server { return ts.Value(serverKey{}).(*server) }

// cmdOperator runs the command line as root: operator apply -f x.yaml.
func cmdOperator(ts *testscript.TestScript, neg bool, args []string) {
	finish(ts, neg, ts.Exec("serai", args...))
}

// actor runs any command as a customer, in no wall but the account: alice serai get sites.
func actor(name string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		a, err := serverOf(ts).account(name)
		ts.Check(err)
		id := []string{"--reuid=" + a.Uid, "--regid=" + a.Gid, "--clear-groups", "--inh-caps=-all",
			"env", "HOME=" + a.HomeDir, "USER=" + a.Username, "SERAI_SOCKET=" + ts.Getenv("SERAI_SOCKET")}
		finish(ts, neg, ts.Exec("setpriv", append(id, args...)...))
	}
}

func finish(ts *testscript.TestScript, neg bool, err error) {
	switch {
	case err == nil && neg:
		ts.Fatalf("the command succeeded, and should not")
	case err != nil && !neg:
		ts.Fatalf("%v", err)
	}
}

// cmdPut copies a directory or file into a customer's home, as the customer:
// put alice SRC NAME.
func cmdPut(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: put TENANT SRC NAME")
	}
	a, err := serverOf(ts).account(args[0])
	ts.Check(err)
	script := `set -e; cd "$1"; if [ -d "$2" ]; then mkdir -p "$(dirname "$3")"; tar -C "$2" -cf - . | $4 sh -c 'umask 022; mkdir -p "$0" && tar -C "$0" -xf - --no-same-owner' "$HOME/$3"
		else $4 sh -c 'umask 022; mkdir -p "$(dirname "$0")" && cat >"$0"' "$HOME/$3" <"$2"; fi`
	as := fmt.Sprintf("setpriv --reuid=%s --regid=%s --clear-groups", a.Uid, a.Gid)
	c := exec.Command("sh", "-c", script, "put", ts.Getenv("WORK"), ts.MkAbs(args[1]), args[2], as)
	c.Env = []string{"PATH=/usr/bin:/bin:/usr/sbin", "HOME=" + a.HomeDir}
	if out, err := c.CombinedOutput(); err != nil {
		ts.Fatalf("put %v: %v\n%s", args, err, out)
	}
}

// cmdPids prints the processes of a site, sorted, from its cgroup:
// pids alice/app [N]. With a number behind it, it waits until there are that many.
func cmdPids(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: pids TENANT/SITE [N]")
	}
	var pids []string
	wait(ts, "the processes of "+strings.Join(args, ": "), func() bool {
		var err error
		pids, err = serverOf(ts).sitePIDs(ts, args[0])
		ts.Check(err)
		return len(args) == 1 || fmt.Sprint(len(pids)) == args[1]
	})
	_, err := fmt.Fprintln(ts.Stdout(), strings.Join(pids, " "))
	ts.Check(err)
}

// cmdFill fills a file system with a file: fill DIR.
func cmdFill(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.Create(filepath.Join(ts.MkAbs(args[0]), "filler"))
	ts.Check(err)
	defer f.Close()
	for block := make([]byte, 1<<16); len(block) > 0; {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
}

var errGone = errors.New("the server is gone")
