package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
)

// NewLeaf makes a leaf in a tenant's group, which must exist. A leaf that
// exists is an error: names are used once.
func (t *Tree) NewLeaf(uid uint32, leaf string) error {
	if !validName(leaf) {
		return serai.Errorf(serai.Invalid, "%q is no name of a leaf", leaf)
	}
	for i, h := range t.hs {
		if err := os.Mkdir(h.tenant(uid, leaf), 0o755); err != nil {
			for _, made := range t.hs[:i] {
				_ = rmdir(made.tenant(uid, leaf))
			}
			return fmt.Errorf("make cgroup of uid %d: %w", uid, err)
		}
	}
	return nil
}

// RemoveLeaf removes a leaf; ErrBusy while it is not empty. A leaf that is not
// there is no error.
func (t *Tree) RemoveLeaf(uid uint32, leaf string) error {
	empty, err := t.Empty(uid, leaf)
	if err != nil {
		return err
	}
	if !empty {
		return ErrBusy
	}
	// The one that kills goes last: what is in a group can always be killed.
	for _, h := range slices.Backward(t.hs) {
		if err := rmdir(h.tenant(uid, leaf)); err != nil {
			return err
		}
	}
	return nil
}

// Leaves are the names of a tenant's leaves, sorted; none where it has no group.
func (t *Tree) Leaves(uid uint32) ([]string, error) {
	var names []string
	for _, h := range t.hs {
		list, err := groups(h.tenant(uid))
		if err != nil {
			return nil, fmt.Errorf("list cgroups of uid %d: %w", uid, err)
		}
		names = append(names, list...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Empty reports whether no process is in a leaf. Those that have ended and
// were not waited for do not count; a leaf that is not there is empty.
func (t *Tree) Empty(uid uint32, leaf string) (bool, error) {
	if !validName(leaf) {
		return false, serai.Errorf(serai.Invalid, "%q is no name of a leaf", leaf)
	}
	for _, h := range t.hs {
		populated, err := h.populated(h.tenant(uid, leaf))
		if err != nil || populated {
			return false, err
		}
	}
	return true, nil
}

func (h *hierarchy) populated(dir string) (bool, error) {
	file := "cgroup.procs"
	if h.unified() {
		file = "cgroup.events"
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return false, gone(err)
	}
	if h.unified() {
		return bytes.Contains(b, []byte("populated 1")), nil
	}
	return len(bytes.TrimSpace(b)) > 0, nil
}

// Kill sends SIGKILL to all processes of a leaf; it does not wait for their
// end. A leaf that is not there is no error.
func (t *Tree) Kill(uid uint32, leaf string) error {
	if !validName(leaf) {
		return serai.Errorf(serai.Invalid, "%q is no name of a leaf", leaf)
	}
	return t.kill(path.Join("tenants", strconv.FormatUint(uint64(uid), 10), leaf))
}

// KillTenant sends SIGKILL to all that a tenant runs; it does not wait.
func (t *Tree) KillTenant(uid uint32) error {
	return t.kill(path.Join("tenants", strconv.FormatUint(uint64(uid), 10)))
}

// kill ends all processes of the group and of those beneath it.
func (t *Tree) kill(group string) error {
	if h := t.hs[0]; h.unified() {
		err := gone(write(h.in(group, "cgroup.kill"), "1"))
		if err != nil || t.version == 2 {
			return err
		}
		// A process joins the unified group first. One that is in another
		// hierarchy only was put there by somebody else: end it as well.
	}
	for _, h := range t.hs {
		h.killListed(group)
	}
	return nil
}

// killListed ends the processes of a group, and of those beneath it, one by
// one. Meanwhile none may be started there, lest a fork bomb outruns us.
func (h *hierarchy) killListed(group string) {
	if limit := h.in(group, "pids.max"); !h.unified() && slices.Contains(h.has, "pids") {
		if before := read(limit); before != "" && write(limit, "0") == nil {
			defer write(limit, before)
		}
	}
	for _, pid := range procs(h.in(group)) {
		h.killOne(group, pid)
	}
	children, _ := groups(h.in(group))
	for _, child := range children {
		h.killListed(path.Join(group, child))
	}
}

// killOne ends one process, after it was seen in the group while we held it:
// its number may have gone to another.
func (h *hierarchy) killOne(group string, pid int) {
	if pid == os.Getpid() {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if slices.Contains(procs(h.in(group)), pid) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// JoinFiles opens each file that a process must write "0\n" to in order to be
// in a leaf, in the order in which it must. The kernel asks for the opener's
// rights, so a process without any may inherit them. The caller closes them.
func (t *Tree) JoinFiles(uid uint32, leaf string) ([]*os.File, error) {
	if !validName(leaf) {
		return nil, serai.Errorf(serai.Invalid, "%q is no name of a leaf", leaf)
	}
	return t.joinFiles(func(h *hierarchy) string { return h.tenant(uid, leaf) })
}

// OpsJoinFiles is JoinFiles for ops/<name>, which is made where it is missing.
func (t *Tree) OpsJoinFiles(name string) ([]*os.File, error) {
	if !validName(name) {
		return nil, serai.Errorf(serai.Invalid, "%q is no name of a leaf", name)
	}
	for _, h := range t.hs {
		if err := os.MkdirAll(h.in("ops", name), 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup ops/%s: %w", name, err)
		}
	}
	return t.joinFiles(func(h *hierarchy) string { return h.in("ops", name) })
}

func (t *Tree) joinFiles(dir func(*hierarchy) string) ([]*os.File, error) {
	var files []*os.File
	for _, h := range t.hs {
		f, err := openForWrite(filepath.Join(dir(h), "cgroup.procs"))
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

// Contains reports whether a process is in a leaf of a site, in every
// hierarchy. Hold a pidfd of it before asking, else the number may have gone
// to another.
func (t *Tree) Contains(uid, site uint32, pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || pid <= 0 {
		return false
	}
	in := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 {
			if f[0] == "0" {
				f[1] = "unified"
			}
			in[f[1]] = f[2]
		}
	}
	prefix := fmt.Sprintf("/tenants/%d/%d.", uid, site)
	for _, h := range t.hs {
		n, ok := strings.CutPrefix(in[h.name], h.path+prefix)
		if !ok || n == "" || strings.Contains(n, "/") {
			return false
		}
	}
	return true
}

// Locate finds the tenant and the site in the text of a /proc/PID/cgroup, for
// processes without rights: ok where any line has a leaf of a site of <root>.
// Outsiders may name their own groups so: it may take rights away from a
// process, never give any.
func Locate(root string, procCgroup []byte) (uid, site uint32, ok bool) {
	for line := range bytes.Lines(procCgroup) {
		f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		elems := strings.Split(f[2], "/")
		n := len(elems)
		if n < 5 || elems[n-4] != root || elems[n-3] != "tenants" {
			continue
		}
		u, err := strconv.ParseUint(elems[n-2], 10, 32)
		number, _, dot := strings.Cut(elems[n-1], ".")
		s, err2 := strconv.ParseUint(number, 10, 32)
		if err == nil && err2 == nil && dot {
			return uint32(u), uint32(s), true
		}
	}
	return 0, 0, false
}

// groups are the names of the groups in dir; none where it does not exist.
func groups(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, gone(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// rmdir removes one group: ErrBusy where it has processes or groups.
func rmdir(dir string) error {
	err := unix.Rmdir(dir)
	switch {
	case errors.Is(err, unix.EBUSY):
		return ErrBusy
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}
