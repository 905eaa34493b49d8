// Package peercred tells who is at the other end of a unix socket, by the
// kernel's word alone. It decides nothing.
package peercred

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Peer is the process that connected, as it was when it connected. The
// descriptor may have been passed on since.
type Peer struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	PID    int      // 0 where it is in a pid namespace that is not ours
	// Cgroup is what /proc/PID/cgroup said, or nil where it could not be read
	// or the process was gone.
	Cgroup []byte
}

// In reports whether the peer is a member of the group.
func (p Peer) In(gid uint32) bool { return p.GID == gid || slices.Contains(p.Groups, gid) }

// Of asks the kernel about the peer of a connection. Call it at once after the
// connection was accepted: the shorter the time, the surer the cgroup.
func Of(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("look at the peer: %w", err)
	}
	var p Peer
	var asked error
	err = raw.Control(func(fd uintptr) { p, asked = ask(int(fd)) })
	if err == nil {
		err = asked
	}
	if err != nil {
		return Peer{}, fmt.Errorf("look at the peer: %w", err)
	}
	return p, nil
}

func ask(fd int) (Peer, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Peer{}, fmt.Errorf("get credentials: %w", err)
	}
	p := Peer{UID: cred.Uid, GID: cred.Gid, PID: int(cred.Pid)}
	if p.Groups, err = groups(fd); err != nil {
		return Peer{}, fmt.Errorf("get groups: %w", err)
	}
	p.Cgroup = cgroup(fd, p.UID, p.PID)
	return p, nil
}

func groups(fd int) ([]uint32, error) {
	// 64 is enough for nearly all; a longer list says ERANGE and how long.
	for n := uint32(64); ; {
		list := make([]uint32, n)
		size := n * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && size/4 > n:
			n = size / 4
		case errno != 0:
			return nil, errno
		default:
			return list[:size/4], nil
		}
	}
}

// cgroup reads /proc/PID/cgroup and makes sure that the pid was the peer's all
// the while: its pidfd has not become readable. Before Linux 6.5 the pidfd can
// only be had by number; there a process that ended between connecting and
// being accepted may have left its number to another, which counts only if it
// is of the same uid: a site's code cannot pass for what runs elsewhere.
func cgroup(fd int, uid uint32, pid int) []byte {
	if pid == 0 {
		return nil
	}
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	sure := err == nil
	if !sure {
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			return nil
		}
	}
	defer unix.Close(pidfd)
	if !sure && !isOf(uid, pid) {
		return nil
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil
	}
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != 0 {
			return nil
		}
		return text
	}
}

// isOf reports whether the effective uid of a process is this one.
func isOf(uid uint32, pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(text) {
		if ids, ok := bytes.CutPrefix(line, []byte("Uid:")); ok {
			f := bytes.Fields(ids) // real, effective, saved, file system
			return len(f) == 4 && string(f[1]) == strconv.FormatUint(uint64(uid), 10)
		}
	}
	return false
}

type key struct{}

// With returns a context that says who the peer is.
func With(ctx context.Context, p Peer) context.Context { return context.WithValue(ctx, key{}, p) }

// From returns the peer of a context, and false where the kernel did not say.
func From(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(key{}).(Peer)
	return p, ok
}

// ConnContext is made for http.Server: the context of all requests of a
// connection says who is at its other end.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p, err := Of(u)
	if err != nil {
		return ctx
	}
	return With(ctx, p)
}
