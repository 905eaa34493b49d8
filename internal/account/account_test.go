package account

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	serai "serai.dev/serai"
	"serai.dev/serai/internal/config"
)

const testUID = 1900003100

// TestMain is also the helper that Remove starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "helper" {
		if _, err := Helper(os.Args[2], nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// accounts is a configuration whose homes go with the test; afterwards the
// machine's files about accounts must not name what the test made.
func accounts(t *testing.T) config.Accounts {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	home := t.TempDir()
	for dir := home; dir != "/"; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&0o011 == 0 {
			if err := os.Chmod(dir, 0o711); err != nil {
				t.Fatal(err)
			}
		}
	}
	a := config.Accounts{Range: config.Range{First: 1900003100, Last: 1900003199}, Prefix: "e-test-", Home: home}
	t.Cleanup(func() {
		users, err := readPasswd(passwd)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range users {
			if a.Range.Has(u.UID) {
				if err := Remove(a, u.UID, true); err != nil {
					t.Error(err)
				}
			}
		}
		for _, name := range []string{"passwd", "shadow", "group", "gshadow", "subuid", "subgid", "cron.deny", "at.deny"} {
			if b, _ := os.ReadFile("/etc/" + name); strings.Contains(string(b), "e-test-") {
				t.Errorf("/etc/%s still names an account of the test", name)
			}
		}
	})
	return a
}

// shut is a line of /etc/shadow: no password, expired on day 1.
var shut = regexp.MustCompile(`(?m)^e-test-alice:!+:(?:[^:\n]*:){5}1:$`)

func TestCreateAndRemove(t *testing.T) {
	a := accounts(t)
	want := Info{Name: "e-test-alice", UID: testUID, GID: testUID, Gecos: Gecos, Home: filepath.Join(a.Home, "e-test-alice"), Shell: nologin}

	in, _ := json.Marshal(CreateArgs{a, testUID, "alice"})
	out, err := Helper(HelperCreate, in)
	var got Info
	if err := errors.Join(err, json.Unmarshal(out, &got)); err != nil || got != want {
		t.Fatalf("create-account = %s, %v; want %+v", out, err, want)
	}
	for range 2 { // once more is no harm
		if got, err := Create(a, testUID, "alice"); got != want || err != nil {
			t.Fatalf("Create again = %+v, %v", got, err)
		}
	}
	if got, err := LookupUID(testUID); got != want || err != nil {
		t.Errorf("LookupUID = %+v, %v", got, err)
	}
	if got, err := LookupName("e-test-alice"); got != want || err != nil {
		t.Errorf("LookupName = %+v, %v", got, err)
	}
	st, err := os.Stat(want.Home)
	if err != nil || st.Mode().Perm() != 0o700 || owner(st) != testUID {
		t.Errorf("home: %v, %v", st, err)
	}
	for _, name := range []string{"subuid", "subgid"} {
		if b, _ := os.ReadFile("/etc/" + name); strings.Contains(string(b), "e-test-") {
			t.Errorf("/etc/%s got a line", name)
		}
	}
	if b, _ := os.ReadFile("/etc/shadow"); !shut.Match(b) {
		t.Error("/etc/shadow: the account has a password, or has not expired")
	}
	if b, _ := os.ReadFile("/etc/cron.deny"); !jobs.has("cron.allow") && strings.Count(string(b), "e-test-alice\n") != 1 {
		t.Errorf("cron.deny: %q", b)
	}
	if err := CheckRanges(a); err != nil {
		t.Errorf("CheckRanges with an account of ours: %v", err)
	}

	for _, tt := range []struct {
		uid  uint32
		name string
		kind serai.Kind
	}{
		{testUID + 1, "alice", serai.Conflict},
		{testUID, "bob", serai.Conflict},
		{testUID - 1, "bob", serai.Invalid},
		{a.Range.Last, "bob", serai.Invalid}, // reserved
		{0, "bob", serai.Invalid},
		{testUID + 1, "Bob", serai.Invalid},
		{testUID + 1, "../bob", serai.Invalid},
		{testUID + 1, "", serai.Invalid},
		{testUID + 1, strings.Repeat("b", 31), serai.Invalid},
	} {
		if _, err := Create(a, tt.uid, tt.name); serai.KindOf(err) != tt.kind {
			t.Errorf("Create(%d, %q) = %v, want %v", tt.uid, tt.name, err, tt.kind)
		}
	}

	if err := Remove(a, testUID, false); err != nil {
		t.Fatal(err)
	}
	if _, err := LookupUID(testUID); serai.KindOf(err) != serai.NotFound {
		t.Errorf("LookupUID afterwards: %v", err)
	}
	if _, err := os.Stat(want.Home); err != nil {
		t.Errorf("the home went without purge: %v", err)
	}
	if b, _ := os.ReadFile("/etc/cron.deny"); strings.Contains(string(b), "e-test-alice") {
		t.Errorf("cron.deny afterwards: %q", b)
	}
	// The home that was left is in the way of another uid, not of the same.
	if _, err := Create(a, testUID+1, "alice"); serai.KindOf(err) != serai.Conflict || !strings.Contains(err.Error(), want.Home) {
		t.Errorf("Create beside an old home = %v", err)
	}
	if _, err := LookupUID(testUID + 1); serai.KindOf(err) != serai.NotFound {
		t.Error("a refused Create left an account")
	}
	if _, err := Create(a, testUID, "alice"); err != nil {
		t.Error(err)
	}
	in, _ = json.Marshal(RemoveArgs{a, testUID, true})
	if _, err := Helper(HelperRemove, in); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(want.Home); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the home after purge: %v", err)
	}
	if err := Remove(a, testUID, true); err != nil {
		t.Errorf("Remove of what is not there: %v", err)
	}
}

func TestCreateUndoes(t *testing.T) {
	a := accounts(t)
	// Homes cannot be made beneath a file.
	a.Home = filepath.Join(a.Home, "file")
	if err := os.WriteFile(a.Home, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(a, testUID, "alice"); err == nil {
		t.Fatal("Create worked")
	}
	if _, err := LookupUID(testUID); serai.KindOf(err) != serai.NotFound {
		t.Errorf("the account is left: %v", err)
	}
	if has, _ := hasGroup("e-test-alice"); has {
		t.Error("the group is left")
	}
}

// A home whose owner set traps is emptied, and nothing outside it.
func TestHostileHome(t *testing.T) {
	a := accounts(t)
	i, err := Create(a, testUID, "mallory")
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(a.Home, "outside")
	if err := os.MkdirAll(filepath.Join(outside, "dir"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(outside, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "dir", "keep"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/bin/sh", "-c", `set -e; cd "$1"
		ln -s "$2" link; ln -s / root; mkfifo fifo; mkdir closed; touch closed/x; chmod 0 closed
		mkdir -p a/b/c; touch a/b/c/.hidden "$(printf 'new\nline')"; chmod 0555 a/b
		perl -e 'for (1..300) { mkdir "d"; chdir "d" } open F, ">deep"'
		chmod 0 "$1"`, "sh", i.Home, outside)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: i.UID, Gid: i.GID}}
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := Remove(a, testUID, true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(i.Home); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the home is left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(outside, "dir", "keep")); err != nil {
		t.Errorf("a file outside went: %v", err)
	}
}

// What root left in a home is in the way, said in a sentence; nothing is half done.
func TestRemoveKeepsWhatItCannot(t *testing.T) {
	a := accounts(t)
	i, err := Create(a, testUID, "alice")
	if err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(i.Home, "roots")
	if err := os.MkdirAll(filepath.Join(roots, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Remove(a, testUID, true); serai.KindOf(err) != serai.Conflict || !strings.Contains(err.Error(), "roots") {
		t.Errorf("Remove = %v", err)
	}
	if _, err := LookupUID(testUID); err != nil {
		t.Errorf("the account went before its home: %v", err)
	}
	if err := os.RemoveAll(roots); err != nil {
		t.Fatal(err)
	}

	// A process of the account is in the way too.
	c := exec.Command("sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: i.UID, Gid: i.GID}}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	err = Remove(a, testUID, false)
	c.Process.Kill()
	c.Wait()
	if serai.KindOf(err) != serai.Conflict {
		t.Errorf("Remove of an account in use = %v", err)
	}
}

func TestForeignAccount(t *testing.T) {
	a := accounts(t)
	if err := tool("useradd", "--no-log-init", "--no-create-home", "--uid", fmt.Sprint(testUID+5), "--home-dir", "/nonexistent", "e-test-foreign"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tool("userdel", "e-test-foreign"), dropGroup("e-test-foreign")); err != nil {
			t.Error(err)
		}
	})
	if err := CheckRanges(a); serai.KindOf(err) != serai.Conflict || !strings.Contains(err.Error(), "/etc/passwd:") {
		t.Errorf("CheckRanges = %v", err)
	}
	if err := Remove(a, testUID+5, true); serai.KindOf(err) != serai.Denied {
		t.Errorf("Remove = %v", err)
	}
	if _, err := Create(a, testUID+5, "foreign"); serai.KindOf(err) != serai.Conflict {
		t.Errorf("Create = %v", err)
	}
}

func TestSystemUsers(t *testing.T) {
	accounts(t)
	u := config.Users{Daemon: "e-test-daemon", Proxy: "e-test-proxy", Admin: "e-test-admin"}
	made, err := EnsureSystemUsers(u)
	t.Cleanup(func() {
		if err := RemoveSystemUsers(made); err != nil {
			t.Error(err)
		}
	})
	if err != nil || len(made) != 5 {
		t.Fatalf("EnsureSystemUsers = %q, %v", made, err)
	}
	i, err := LookupName("e-test-proxy")
	if err != nil || i.UID == 0 || i.UID >= 1000 || i.Shell != nologin {
		t.Errorf("LookupName = %+v, %v", i, err)
	}
	if again, err := EnsureSystemUsers(u); len(again) != 0 || err != nil {
		t.Errorf("EnsureSystemUsers again = %q, %v", again, err)
	}
	if err := RemoveSystemUsers(made); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"e-test-daemon", "e-test-proxy", "e-test-admin"} {
		_, err := LookupName(name)
		if has, _ := hasGroup(name); has || err == nil {
			t.Errorf("%s is left", name)
		}
	}
	if _, err := EnsureSystemUsers(config.Users{Daemon: "root", Proxy: "e-test-proxy", Admin: "e-test-admin"}); serai.KindOf(err) != serai.Invalid {
		t.Errorf("EnsureSystemUsers with root = %v", err)
	}
}
