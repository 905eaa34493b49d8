package root

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// cmdSubID adds a line to /etc/subuid or /etc/subgid, which goes with the
// script: subid /etc/subuid NAME:FIRST:COUNT. Negated it goes now.
func cmdSubID(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || args[0] != "/etc/subuid" && args[0] != "/etc/subgid" {
		ts.Fatalf("usage: subid /etc/subuid|/etc/subgid NAME:FIRST:COUNT")
	}
	path, line := args[0], args[1]+"\n"
	if neg {
		ts.Check(dropLine(path, line))
		return
	}
	ts.Defer(func() { ts.Check(dropLine(path, line)) })
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	ts.Check(err)
	defer f.Close()
	_, err = f.WriteString(line)
	ts.Check(err)
}

// dropLine takes a line out of a file, and changes nothing else about it: what
// others have added meanwhile stays.
func dropLine(path, line string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	rest := strings.Replace(string(text), line, "", 1)
	if rest == string(text) {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	fresh := path + ".serai-test"
	return errFirst(os.WriteFile(fresh, []byte(rest), info.Mode()), os.Chmod(fresh, info.Mode()), os.Rename(fresh, path))
}

// cmdPerson makes an account that has nothing to do with Serai, with a home and
// a group of its own: person NAME N has the uid $ADOPT + N.
func cmdPerson(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	if neg || len(args) != 2 {
		ts.Fatalf("usage: person NAME N")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	id, name, home := strconv.Itoa(s.adoptUID+n), s.prefix+args[0], filepath.Join(s.base, args[0])
	ts.Defer(func() {
		_ = exec.Command("userdel", name).Run()
		_ = exec.Command("groupdel", name).Run() // userdel has mostly done it
	})
	ts.Check(ts.Exec("groupadd", "-g", id, name))
	ts.Check(ts.Exec("useradd", "--no-log-init", "-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", "-K", "UID_MAX="+id,
		"-u", id, "-g", id, "-d", home, "-M", "-s", "/bin/bash", name))
	ts.Check(ts.Exec("install", "-d", "-o", id, "-g", id, "-m", "0710", home))
}

// cmdTmpfs mounts a small disk of its own, which goes with the script:
// tmpfs DIR SIZE.
func cmdTmpfs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tmpfs DIR SIZE")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount("serai-test", dir, "tmpfs", 0, "mode=0755,size="+args[1]))
	ts.Defer(func() {
		s := serverOf(ts) // which a script that failed has not ended
		err := s.stop()
		ts.Check(errFirst(unix.Unmount(dir, unix.MNT_DETACH), err))
	})
}

// cmdAccounts prints the files of the machine that accounts are in: accounts.
// What other tests may make and remove at the same time is left out: accounts
// of tenants but the script's own, and system accounts that get the next free
// id.
func cmdAccounts(ts *testscript.TestScript, neg bool, args []string) {
	own := serverOf(ts).prefix
	for _, name := range []string{"passwd", "group", "subuid", "subgid", "cron.deny", "at.deny"} {
		text, err := os.ReadFile(filepath.Join("/etc", name))
		if err != nil && !os.IsNotExist(err) {
			ts.Check(err)
		}
		fmt.Fprintln(ts.Stdout(), "--", name)
		for line := range strings.Lines(string(text)) {
			f := strings.Split(strings.TrimSpace(line), ":")
			show := strings.HasPrefix(line, own)
			if len(f) > 2 { // name:password:id of passwd and group, name:first:count of the others
				id, err := strconv.Atoi(f[2])
				show = show || err == nil && (id < 900 || 1000 <= id && id < 1900000000)
			}
			if show {
				fmt.Fprint(ts.Stdout(), line)
			}
		}
	}
}

// cmdRunning waits until what runs of a site is as said, by the fields of
// `describe -o json`: running alice/app busy 1 queued 0.
func cmdRunning(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || len(args)%2 != 1 {
		ts.Fatalf("usage: running TENANT/SITE FIELD VALUE ...")
	}
	wait(ts, strings.Join(args, " "), func() bool {
		cmd := exec.Command(filepath.Join(bin, "serai"), "describe", "site", args[0], "-o", "json")
		cmd.Env = []string{"SERAI_SOCKET=" + ts.Getenv("SERAI_SOCKET")}
		out, err := cmd.Output()
		if err != nil {
			return false
		}
		var d struct {
			Running map[string]any `json:"running"`
		}
		ts.Check(json.Unmarshal(out, &d))
		for i := 1; i < len(args); i += 2 {
			if fmt.Sprint(d.Running[args[i]]) != args[i+1] {
				return false
			}
		}
		return true
	})
}
