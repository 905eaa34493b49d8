// Package cgroup keeps the tree of control groups that all of a server's
// processes live in:
//
//	<root>/ops/{priv,seraid,proxy,zygote-NAME}
//	<root>/tenants/<uid>/<leaf>
//
// Limits are set on tenants/<uid>; processes are in leaves only. A leaf of a
// site is named "<site>.<n>", where n tells its launches apart.
//
// Both versions of the kernel's interface work. With version 2 everything lies
// in one hierarchy. With version 1 the same tree is made in each of the
// hierarchies memory, cpu, cpuacct and pids, and in the unified one beside
// them, where it is mounted: cgroup.kill needs no controllers.
//
// The package is privileged. It takes numbers and makes system calls; it knows
// no tenant, and it touches nothing outside <root> but for moving the own
// process in and out, and enabling controllers above <root> (version 2).
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
)

// ErrBusy is returned where a group still has processes.
var ErrBusy = errors.New("the group has processes")

// A Tree is the groups of one server. Its methods may be called by several
// goroutines at once, but not for the same tenant.
type Tree struct {
	version int
	hs      []*hierarchy // the one for killing first: who joins is killable from then on
	lock    *os.File     // held while a server uses the tree
	fast    *os.File     // see FastJoin
	stale   []int        // pidfds of what a server before us left in ops/priv
}

// A hierarchy is the tree as it lies in one mount.
type hierarchy struct {
	name   string   // unified, or the controllers as /proc/PID/cgroup has them
	has    []string // controllers we use; none for the unified one beside version 1
	mount  string   // the machine's directory
	base   string   // the directory <root> lies in
	dir    string   // <root>
	path   string   // <root> as /proc/PID/cgroup has it
	origin string   // the directory the own process came from
	added  []string // controllers that we switched on in base
}

func (h *hierarchy) unified() bool { return h.name == "unified" }

// Open finds the tree or makes it, and moves the own process to ops/priv. The
// root is one name, such as serai.
//
// With version 2 the tree lies in the own unit, where systemd has delegated
// it (the unit's other processes then move to ops/priv too), else beneath the
// machine's root. Only one server may have a tree open: a second one gets
// serai.Conflict. What an earlier, killed one left there is for Clear.
func Open(root string) (*Tree, error) {
	if !validName(root) {
		return nil, serai.Errorf(serai.Invalid, "cgroupRoot %q is not a plain name", root)
	}
	t, err := locate(root)
	if err != nil {
		return nil, err
	}
	if err := t.open(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tree) open() error {
	for _, h := range t.hs {
		if err := os.MkdirAll(filepath.Join(h.dir, "ops", "priv"), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := os.MkdirAll(filepath.Join(h.dir, "tenants"), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	if err := t.takeLock(); err != nil {
		return err
	}
	t.noteStale()
	for _, h := range t.hs {
		if err := h.enter(); err != nil {
			return err
		}
	}
	if t.version == 2 {
		h := t.hs[0]
		for _, dir := range []string{h.base, h.dir, h.in("ops"), h.in("tenants")} {
			added, err := enable(dir, h.has)
			if err != nil {
				return err
			}
			if dir == h.base {
				h.added = added
			}
		}
	}
	return nil
}

// takeLock locks a file that only root can open, so that nobody else can hold
// the lock against us.
func (t *Tree) takeLock() error {
	h := t.hs[0]
	name := "cgroup.kill"
	if !exists(h.in(name)) {
		name = "memory.force_empty"
		h = t.with("memory")
	}
	f, err := openForWrite(h.in(name))
	if err != nil {
		return fmt.Errorf("lock cgroup: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return serai.Errorf(serai.Conflict, "another server uses the cgroup %s", h.dir).
			WithHint("stop it, or give this one another cgroupRoot")
	}
	t.lock = f
	return nil
}

// noteStale keeps hold of processes that lie in ops/priv before we enter it.
func (t *Tree) noteStale() {
	for _, h := range t.hs {
		pids := procs(h.in("ops", "priv"))
		for _, pid := range pids {
			if pid == os.Getpid() { // an upgrade in place: they are our children
				return
			}
		}
		for _, pid := range pids {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				t.stale = append(t.stale, fd)
			}
		}
	}
}

// enter moves the own process to ops/priv. Where the tree lies in a delegated
// unit, the others of that unit move too: version 2 has processes in leaves only.
func (h *hierarchy) enter() error {
	target := h.in("ops", "priv", "cgroup.procs")
	if err := write(target, "0"); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	if !h.unified() || !exists(filepath.Join(h.base, "cgroup.events")) {
		return nil
	}
	for range 10 { // they may fork meanwhile
		pids := procs(h.base)
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if err := write(target, strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("empty cgroup %s: %w", h.base, err)
			}
		}
	}
	return nil
}

// enable makes controllers available to the groups beneath dir, and returns
// those that were not yet.
func enable(dir string, controllers []string) (added []string, err error) {
	on := strings.Fields(read(filepath.Join(dir, "cgroup.subtree_control")))
	for _, c := range controllers {
		if !slices.Contains(on, c) {
			added = append(added, c)
		}
	}
	if len(added) == 0 {
		return nil, nil
	}
	err = write(filepath.Join(dir, "cgroup.subtree_control"), "+"+strings.Join(added, " +"))
	if errors.Is(err, unix.EBUSY) {
		return nil, serai.Errorf(serai.Conflict, "cgroup %s has processes of its own, so it can have no limits beneath it", dir).
			WithHint("start serai as a systemd unit with Delegate=yes")
	}
	if err != nil {
		return nil, fmt.Errorf("enable %s in cgroup %s: %w", strings.Join(added, " "), dir, err)
	}
	return added, nil
}

// Close lets go of the tree and leaves everything in it as it is.
func (t *Tree) Close() error {
	for _, fd := range t.stale {
		unix.Close(fd)
	}
	t.stale = nil
	for _, f := range []**os.File{&t.fast, &t.lock} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
	return nil
}

// Version is the version of the kernel's interface that limits are set by: 1 or 2.
func (t *Tree) Version() int { return t.version }

// Describe says in a phrase what the tree lies in, for the log.
func (t *Tree) Describe() string {
	if t.version == 2 {
		return "version 2, " + t.hs[0].dir
	}
	var names []string
	for _, h := range t.hs {
		names = append(names, h.name)
	}
	return "version 1 (" + strings.Join(names, " ") + "), " + t.with("memory").dir
}

// with is the hierarchy that has the controller, or nil.
func (t *Tree) with(controller string) *hierarchy {
	for _, h := range t.hs {
		if slices.Contains(h.has, controller) {
			return h
		}
	}
	return nil
}

// in is the path of a file or group beneath <root>.
func (h *hierarchy) in(elem ...string) string {
	return filepath.Join(h.dir, filepath.Join(elem...))
}

// tenant is the path of something beneath tenants/<uid>.
func (h *hierarchy) tenant(uid uint32, elem ...string) string {
	return h.in("tenants", strconv.FormatUint(uint64(uid), 10), filepath.Join(elem...))
}

// validName accepts one plain element of a path.
func validName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// openForWrite opens a file that exists. Unlike os.OpenFile it leaves the file out of
// the runtime's poller, which takes longer than the rest of a write here.
func openForWrite(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// write writes to a file that exists; the kernel's files want one write each.
func write(path, value string) error {
	f, err := openForWrite(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// read is a file without its last newline, empty where it cannot be read.
func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// procs are the processes of one group, none where it does not exist.
func procs(dir string) []int {
	var pids []int
	for f := range strings.FieldsSeq(read(filepath.Join(dir, "cgroup.procs"))) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// gone drops the errors that say that a thing does not exist any more.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
