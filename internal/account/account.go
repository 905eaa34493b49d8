// Package account makes, finds and removes the accounts of the machine that
// tenants run under, by the system's own tools.
//
// It is privileged, and slow where it calls those tools: Create, Remove and
// the system users belong in a process of their own, see Helper. It knows no
// tenant, and as root it never enters a home: one is removed by a process of
// the home's own uid.
package account

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	serai "serai.dev/serai"
	"serai.dev/serai/internal/config"
)

// Gecos marks an account as made by Create.
const Gecos = "serai tenant"

const (
	nologin = "/usr/sbin/nologin"
	expired = "1970-01-02" // day 1: what asks PAM for the account is refused
	passwd  = "/etc/passwd"
	group   = "/etc/group"
)

// maxName is how long the system's tools let a name be.
const maxName = 32

var tenantName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

// Info is one line of /etc/passwd.
type Info struct {
	Name  string `json:"name"`
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	Gecos string `json:"gecos"`
	Home  string `json:"home"`
	Shell string `json:"shell"`
}

// Ours reports whether Create made the account.
func (i Info) Ours(a config.Accounts) bool {
	return i.Gecos == Gecos && i.GID == i.UID && filepath.Dir(i.Home) == filepath.Clean(a.Home)
}

// LookupUID finds an account by its number in /etc/passwd, else
// serai.NotFound. The first line with that number counts.
func LookupUID(uid uint32) (Info, error) {
	return lookup(func(i Info) bool { return i.UID == uid }, fmt.Sprintf("uid %d", uid))
}

// LookupName finds an account by its name in /etc/passwd, else serai.NotFound.
func LookupName(name string) (Info, error) {
	return lookup(func(i Info) bool { return i.Name == name }, fmt.Sprintf("the name %q", name))
}

func lookup(is func(Info) bool, what string) (Info, error) {
	list, err := readPasswd(passwd)
	if err != nil {
		return Info{}, err
	}
	for _, l := range list {
		if is(l.Info) {
			return l.Info, nil
		}
	}
	return Info{}, serai.Errorf(serai.NotFound, "no account has %s", what)
}

// A passwdLine is an account with its place in the file.
type passwdLine struct {
	Info
	line int
}

// A groupLine is a group with its place in the file.
type groupLine struct {
	name string
	gid  uint32
	line int
}

// readPasswd reads the lines that are understood; the rest is for others.
func readPasswd(path string) ([]passwdLine, error) {
	var list []passwdLine
	err := readColons(path, func(n int, f []string) {
		if len(f) != 7 {
			return
		}
		uid, err := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err == nil && err2 == nil {
			list = append(list, passwdLine{Info{Name: f[0], UID: uint32(uid), GID: uint32(gid), Gecos: f[4], Home: f[5], Shell: f[6]}, n})
		}
	})
	return list, err
}

func readGroup(path string) ([]groupLine, error) {
	var list []groupLine
	err := readColons(path, func(n int, f []string) {
		if len(f) != 4 {
			return
		}
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			list = append(list, groupLine{f[0], uint32(gid), n})
		}
	})
	return list, err
}

// readColons calls line for each line of a file, with its number and fields.
func readColons(path string, line func(n int, fields []string)) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read accounts: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		line(n, strings.Split(s.Text(), ":"))
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// Create makes the account of a tenant: a.Prefix and name are its name, its
// group has the number of the uid, a.Home/NAME is its home, with mode 0700. It
// has no shell and no password, has expired, and may use neither cron nor at.
//
// An account that is all that already is returned as it is. Where something
// else is in the way nothing is changed: serai.Conflict or serai.Invalid. What
// a failing Create began it undoes.
func Create(a config.Accounts, uid uint32, name string) (Info, error) {
	want, err := plan(a, uid, name)
	if err != nil {
		return Info{}, err
	}
	has, err := inTheWay(want)
	if err != nil {
		return Info{}, err
	}
	var undo []func() error
	fail := func(err error) (Info, error) {
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
		return Info{}, err
	}
	id := strconv.FormatUint(uint64(uid), 10)
	if !has.group {
		if err := tool("groupadd", "-g", id, want.Name); err != nil {
			return fail(err)
		}
		undo = append(undo, func() error { return dropGroup(want.Name) })
	}
	if !has.user {
		// lastlog is a sparse file indexed by uid: --no-log-init. No mail spool,
		// no subordinate ids, nothing copied from /etc/skel. It has expired: else a key
		// in the home would do for sshd, whatever the shell is, and systemd would
		// start the home's user units at that login.
		err := tool("useradd", "--no-log-init", "--no-create-home", "--no-user-group",
			"--uid", id, "--gid", id, "--home-dir", want.Home, "--shell", nologin, "--comment", Gecos, "--expiredate", expired,
			"-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0", want.Name)
		if err != nil {
			return fail(err)
		}
		undo = append(undo, func() error { return tool("userdel", want.Name) })
	}
	undo = append(undo, func() error { return jobs.forget(want.Name) })
	if err := jobs.deny(want.Name); err != nil {
		return fail(err)
	}
	if err := makeHome(want); err != nil {
		return fail(err)
	}
	return want, nil
}

// plan is the account as it shall be.
func plan(a config.Accounts, uid uint32, name string) (Info, error) {
	if !a.Range.Has(uid) || !a.Tenant(uid) {
		return Info{}, serai.Errorf(serai.Invalid, "uid %d is not one of accounts.range %v", uid, a.Range)
	}
	if !tenantName.MatchString(name) {
		return Info{}, serai.Errorf(serai.Invalid, "%q is no name for an account: want a-z, 0-9 and -, beginning with a letter", name)
	}
	full := a.Prefix + name
	if len(full) > maxName {
		return Info{}, serai.Errorf(serai.Invalid, "%q is longer than the %d letters an account's name may have", full, maxName)
	}
	if !filepath.IsAbs(a.Home) {
		return Info{}, serai.Errorf(serai.Invalid, "accounts.home %q is not an absolute path", a.Home)
	}
	return Info{Name: full, UID: uid, GID: uid, Gecos: Gecos, Home: filepath.Join(a.Home, full), Shell: nologin}, nil
}

// inTheWay says which parts of the account exist as they shall, and refuses
// those that exist otherwise.
func inTheWay(want Info) (has struct{ user, group bool }, err error) {
	users, err := readPasswd(passwd)
	if err != nil {
		return has, err
	}
	for _, u := range users {
		switch {
		case u.Info == want:
			has.user = true
		case u.Name == want.Name:
			return has, serai.Errorf(serai.Conflict, "the account %s exists already, with uid %d (%s:%d)", u.Name, u.UID, passwd, u.line).
				WithHint("give the tenant another name, or adopt the account")
		case u.UID == want.UID:
			return has, serai.Errorf(serai.Conflict, "uid %d belongs to the account %s (%s:%d)", u.UID, u.Name, passwd, u.line)
		}
	}
	groups, err := readGroup(group)
	if err != nil {
		return has, err
	}
	for _, g := range groups {
		switch {
		case g.name == want.Name && g.gid == want.GID:
			has.group = true
		case g.name == want.Name:
			return has, serai.Errorf(serai.Conflict, "the group %s exists already, with gid %d (%s:%d)", g.name, g.gid, group, g.line).
				WithHint("give the tenant another name")
		case g.gid == want.GID:
			return has, serai.Errorf(serai.Conflict, "gid %d belongs to the group %s (%s:%d)", g.gid, g.name, group, g.line)
		}
	}
	return has, homeInTheWay(want)
}

func homeInTheWay(want Info) error {
	st, err := os.Lstat(want.Home)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at home: %w", err)
	case !st.IsDir():
		return serai.Errorf(serai.Conflict, "%s exists already and is not a directory", want.Home).WithHint("move it away")
	case owner(st) == want.UID:
		return nil
	case owner(st) == 0: // ours, where an earlier Create was cut short
		if list, err := os.ReadDir(want.Home); err == nil && len(list) == 0 {
			return nil
		}
	}
	return serai.Errorf(serai.Conflict, "%s exists already and belongs to uid %d, not to %d", want.Home, owner(st), want.UID).
		WithHint("move it away")
}

// Remove removes an account that Create made, with its group; with purge first
// its home, by a process of its uid. What it runs must have ended before:
// serai.Conflict. An account that is not there is no error.
func Remove(a config.Accounts, uid uint32, purge bool) error {
	i, err := LookupUID(uid)
	if serai.KindOf(err) == serai.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if !a.Range.Has(uid) || !a.Tenant(uid) || !i.Ours(a) {
		return serai.Errorf(serai.Denied, "the account %s (uid %d) was not made by serai: it is not removed", i.Name, uid)
	}
	if purge {
		if err := purgeHome(i); err != nil {
			return err
		}
	}
	if err := removeAccount(i); err != nil {
		return err
	}
	return jobs.forget(i.Name)
}

// removeAccount removes the lines of an account and its group.
func removeAccount(i Info) error {
	if err := tool("userdel", i.Name); err != nil {
		return err
	}
	return dropGroup(i.Name) // userdel takes it along where login.defs says so
}

// tool runs one of the system's tools for accounts.
func tool(name string, args ...string) error {
	path := filepath.Join("/usr/sbin", name)
	c := exec.Command(path, args...)
	c.Dir = "/"
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	out, err := c.CombinedOutput()
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return serai.Errorf(serai.Unavailable, "%s is missing", path).WithHint("apt-get install passwd")
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	said := strings.TrimPrefix(lines[len(lines)-1], name+": ")
	switch exit, _ := errors.AsType[*exec.ExitError](err); {
	case exit == nil:
		return fmt.Errorf("run %s: %w", name, err)
	case name == "userdel" && exit.ExitCode() == 8:
		return serai.Errorf(serai.Conflict, "%s", said).WithHint("end its processes first")
	}
	return serai.Errorf(serai.Internal, "%s of %s: %s", name, args[len(args)-1], said)
}
