// Package isolate makes the walls around tenants: the one user and mount
// namespace they all share, the seccomp program, directories opened beneath
// others, and the proof that our own processes gave up their power.
//
// It is privileged: values in, system calls out; it knows no tenant. Why there
// is one user namespace is told in docs/decisions/0003-one-user-namespace.md.
package isolate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
	"serai.dev/serai/internal/config"
)

// Namespaces are the tenants': held by these descriptors alone, no process is
// in them until the first zygote enters.
type Namespaces struct{ User, Mount *os.File }

// Close lets go of both.
func (n Namespaces) Close() error { return errors.Join(n.User.Close(), n.Mount.Close()) }

// Options says what the tenants' mount namespace looks like.
type Options struct {
	// SelfExe is started as `SelfExe helper namespaces`; empty is the own program.
	SelfExe string `json:"selfExe,omitempty"`
	// Sendmail is a script; a copy of it is shown as /usr/sbin/sendmail. Empty
	// leaves what the machine has, which as a SUID program is dead there.
	Sendmail string `json:"sendmail,omitempty"`
	// Hide are directories to be covered by an empty read-only one. What does
	// not exist is passed over. /tmp, /var/tmp, /run/lock, /dev, /sys/fs/cgroup
	// and the sockets of systemd and D-Bus are covered anyway.
	Hide []string `json:"hide,omitempty"`
	// Keep are directories beneath covered ones that are to be seen all the same.
	Keep []string `json:"keep,omitempty"`
}

// The one-shot helpers of this package: what a process of its own is started
// for, as `serai-priv helper NAME`.
const (
	HelperNamespaces = "namespaces"
	HelperHold       = "hold"
)

// IsHelper reports whether a helper is this package's.
func IsHelper(name string) bool { return name == HelperNamespaces || name == HelperHold }

// Helper does what the process is for. It reads its standard input itself, and
// answers on descriptor 3, not on its standard output.
func Helper(name string) error {
	switch name {
	case HelperNamespaces:
		return makeNamespaces()
	case HelperHold:
		return hold()
	}
	return fmt.Errorf("no helper %q", name)
}

// makeLimit is how long making the namespaces may take.
const makeLimit = 30 * time.Second

// order is what the helper reads, answer what it sends, with the descriptors.
type order struct {
	Maps    []config.Range `json:"maps"`
	Options Options        `json:"options"`
}

type answer struct {
	Notes []string `json:"notes,omitempty"`
	Error string   `json:"error,omitempty"`
	Hint  string   `json:"hint,omitempty"`
}

// MakeNamespaces makes the tenants' user namespace, in which the ids of maps
// exist as they are and no others, and their mount namespace. It takes about
// 30 ms. Notes says in sentences what this machine could not do and the
// tenants can do without.
func MakeNamespaces(maps []config.Range, o Options) (ns Namespaces, notes []string, err error) {
	in, err := json.Marshal(order{maps, o})
	if err != nil {
		return ns, nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ns, nil, fmt.Errorf("make namespaces: %w", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "helper")
	defer theirs.Close()

	ctx, cancel := context.WithTimeout(context.Background(), makeLimit)
	defer cancel()
	exe := o.SelfExe
	if exe == "" {
		exe = "/proc/self/exe"
	}
	c := exec.CommandContext(ctx, exe, "helper", HelperNamespaces)
	c.Dir = "/"
	c.Env = []string{}
	c.Stdin = bytes.NewReader(in)
	var said bytes.Buffer
	c.Stderr = &said
	c.ExtraFiles = []*os.File{theirs}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	// The answer waits in the socket until the helper has ended.
	if err := c.Run(); err != nil {
		return ns, nil, fmt.Errorf("make namespaces: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	b, files, err := receive(pair[0])
	if err != nil {
		return ns, nil, fmt.Errorf("make namespaces: %w", err)
	}
	var a answer
	switch err := json.Unmarshal(b, &a); {
	case err != nil:
		closeAll(files)
		return ns, nil, fmt.Errorf("make namespaces: %w", err)
	case a.Error != "":
		closeAll(files)
		return ns, a.Notes, &serai.Error{Kind: serai.Unavailable, Msg: a.Error, Hint: a.Hint}
	case len(files) != 2:
		closeAll(files)
		return ns, a.Notes, fmt.Errorf("make namespaces: %d descriptors came", len(files))
	}
	return Namespaces{User: files[0], Mount: files[1]}, a.Notes, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// receive reads one packet with its descriptors; end of file is an error.
func receive(fd int) ([]byte, []*os.File, error) {
	b, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(8*4))
	n, oobn, flags, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "namespace"))
		}
	}
	if err == nil && (n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0) {
		err = errors.New("the helper's answer was cut")
	}
	if err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return b[:n], files, nil
}

// makeNamespaces is the helper: root, in a mount namespace of its own.
func makeNamespaces() error {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	var a answer
	ns, err := makeBoth(o, &a.Notes)
	if err != nil {
		a.Error, a.Hint = err.Error(), serai.HintOf(err)
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	var rights []byte
	if a.Error == "" {
		defer ns.Close()
		rights = unix.UnixRights(int(ns.User.Fd()), int(ns.Mount.Fd()))
	}
	return unix.Sendmsg(3, b, rights, nil, 0)
}

// makeBoth furnishes the mount namespace we are in, then starts a process in a
// new user namespace with a copy of it: so it belongs to the user namespace,
// whose zygotes may enter it, and nobody there can undo what was mounted.
func makeBoth(o order, notes *[]string) (ns Namespaces, err error) {
	if err := furnish(o.Options, notes); err != nil {
		return ns, err
	}
	var ids []syscall.SysProcIDMap
	for _, r := range o.Maps {
		if !r.Empty() {
			ids = append(ids, syscall.SysProcIDMap{ContainerID: int(r.First), HostID: int(r.First), Size: int(r.Last - r.First + 1)})
		}
	}
	if len(ids) == 0 {
		return ns, errors.New("make a user namespace: no ids to be in it")
	}
	c := exec.Command("/proc/self/exe", "helper", HelperHold)
	c.Dir = "/"
	c.Env = []string{}
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings:                ids,
		GidMappings:                ids,
		GidMappingsEnableSetgroups: true, // for leaving root's groups
	}
	release, err := c.StdinPipe()
	if err != nil {
		return ns, err
	}
	if err := c.Start(); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) {
			return ns, serai.Errorf(serai.Unavailable, "this machine makes no user namespaces: %v", err).
				WithHint("sysctl user.max_user_namespaces must not be 0")
		}
		return ns, fmt.Errorf("make a user namespace: %w", err)
	}
	defer func() {
		release.Close() // it ends by itself
		_ = c.Wait()
	}()
	if ns.User, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", c.Process.Pid)); err != nil {
		return ns, fmt.Errorf("open user namespace: %w", err)
	}
	if ns.Mount, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", c.Process.Pid)); err != nil {
		ns.User.Close()
		return ns, fmt.Errorf("open mount namespace: %w", err)
	}
	return ns, nil
}

// hold is the process that is in the new namespaces until they are held by
// descriptors. By its exec it lost all rights in them; it needs none.
func hold() error {
	var b [1]byte
	for {
		if n, err := os.Stdin.Read(b[:]); n == 0 || err != nil {
			return nil
		}
	}
}
