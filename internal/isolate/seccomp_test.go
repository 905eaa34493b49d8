package isolate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The program is asked by a model of the kernel's machine, for both kinds of
// processors, with what hostile code would pass.
func TestFilter(t *testing.T) {
	const (
		ok   = unix.SECCOMP_RET_ALLOW
		kill = unix.SECCOMP_RET_KILL_PROCESS
		no   = unix.SECCOMP_RET_ERRNO
	)
	for _, info := range []*arch.Info{arch.X86_64, arch.AARCH64} {
		vm, err := bpf.NewVM(filter(info))
		if err != nil {
			t.Fatal(err)
		}
		ask := func(id arch.AuditArch, number uint32, args ...uint64) uint32 {
			// The model reads big-endian words; each stands where the kernel's is.
			data := make([]byte, 64)
			binary.BigEndian.PutUint32(data[0:], number)
			binary.BigEndian.PutUint32(data[4:], uint32(id))
			for i, a := range args {
				binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
				binary.BigEndian.PutUint32(data[20+8*i:], uint32(a>>32))
			}
			got, err := vm.Run(data)
			if err != nil {
				t.Fatal(err)
			}
			return uint32(got)
		}
		const high = 1 << 32
		for _, tt := range []struct {
			call string
			args []uint64
			want uint32
		}{
			{"read", nil, ok},
			{"openat2", nil, ok},
			{"seccomp", nil, ok},
			{"setresuid", nil, ok},
			{"mount", nil, no | uint32(unix.EPERM)},
			{"unshare", nil, no | uint32(unix.EPERM)},
			{"io_uring_setup", nil, no | uint32(unix.EPERM)},
			{"clone3", nil, no | uint32(unix.ENOSYS)},
			{"clone", []uint64{uint64(unix.SIGCHLD)}, ok},
			{"clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_SETTLS}, ok},
			{"clone", []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, no | uint32(unix.EPERM)},
			{"clone", []uint64{high | unix.CLONE_NEWNET}, no | uint32(unix.EPERM)},
			{"ioctl", []uint64{0, unix.TCGETS}, ok},
			{"ioctl", []uint64{0, unix.TIOCSTI}, no | uint32(unix.EPERM)},
			{"ioctl", []uint64{0, high | unix.TIOCSTI}, no | uint32(unix.EPERM)},
			{"ioctl", []uint64{0, 0x541C}, no | uint32(unix.EPERM)},
			{"ioctl", []uint64{0, unix.TIOCSETD}, no | uint32(unix.EPERM)},
			{"socketpair", []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, ok},
			{"socketpair", []uint64{unix.AF_TIPC, unix.SOCK_STREAM, 0}, no | uint32(unix.EAFNOSUPPORT)},
			{"socket", []uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET, 0}, ok},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK, 0}, ok},
			{"socket", []uint64{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP}, ok},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, ok},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, ok},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, no | uint32(unix.EPROTONOSUPPORT)},
			{"socket", []uint64{unix.AF_INET6, unix.SOCK_STREAM, high | unix.IPPROTO_SCTP}, no | uint32(unix.EPROTONOSUPPORT)},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_SEQPACKET, 0}, no | uint32(unix.ESOCKTNOSUPPORT)},
			{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, 0}, no | uint32(unix.ESOCKTNOSUPPORT)},
			{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, ok},
			{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, no | uint32(unix.EPROTONOSUPPORT)},
			{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, no | uint32(unix.EAFNOSUPPORT)},
			{"socket", []uint64{high | unix.AF_VSOCK, unix.SOCK_STREAM, 0}, no | uint32(unix.EAFNOSUPPORT)},
			{"socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, no | uint32(unix.EAFNOSUPPORT)},
			{"socket", []uint64{unix.AF_PACKET, unix.SOCK_RAW, 0}, no | uint32(unix.EAFNOSUPPORT)},
		} {
			number, known := info.SyscallNames[tt.call]
			if !known {
				t.Fatalf("%s has no %s", info.Name, tt.call)
			}
			if got := ask(info.ID, uint32(number), tt.args...); got != tt.want {
				t.Errorf("%s: %s%#x = %#x, want %#x", info.Name, tt.call, tt.args, got, tt.want)
			}
		}
		for _, other := range []*arch.Info{arch.I386, arch.ARM, arch.X86_64, arch.AARCH64} {
			if got := ask(other.ID, 1); other.ID != info.ID && got != kill {
				t.Errorf("%s: a call of %s = %#x", info.Name, other.Name, got)
			}
		}
		const x32 = 0x40000000 // x86_64's second table of system calls
		for _, number := range []uint32{newest(info) + 1, 1000, x32 | 1, x32 | unix.SYS_IO_URING_SETUP, 1 << 31, 1<<32 - 1} {
			if got := ask(info.ID, number); got != no|uint32(unix.ENOSYS) {
				t.Errorf("%s: unknown call %#x = %#x", info.Name, number, got)
			}
		}
		if got := ask(info.ID, newest(info)); got == no|uint32(unix.ENOSYS) {
			t.Errorf("%s: the newest call we know is unknown", info.Name)
		}
	}
	for _, name := range denied {
		if _, ok := arch.X86_64.SyscallNames[name]; ok {
			continue
		}
		if _, ok := arch.AARCH64.SyscallNames[name]; !ok && name != "vm86" && name != "vm86old" && name != "open_tree_attr" {
			t.Errorf("%q is no system call", name)
		}
	}
}

// In a process of its own the real kernel is asked.
func TestSeccompProgram(t *testing.T) {
	out := child(t, "seccomp", 1900003201)
	for line := range strings.Lines(out) {
		if what, got, _ := strings.Cut(strings.TrimSpace(line), ": "); got != "as it should" {
			t.Errorf("%s: %s", what, got)
		}
	}
	if !strings.Contains(out, "clone3") {
		t.Errorf("it did not come to its end:\n%s", out)
	}
}

// child runs a role of this test binary under a uid, and returns what it said.
func child(t *testing.T, role string, uid uint32) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	c := exec.Command("/proc/self/exe")
	c.Dir = "/"
	c.Env = append(os.Environ(), "ISOLATE_TEST_ROLE="+role)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", role, err, out)
	}
	return string(out)
}

func trySeccomp() {
	runtime.LockOSThread()
	program, err := SeccompProgram()
	if err == nil {
		err = installAll(program)
	}
	if err != nil {
		fmt.Println("install:", err)
		return
	}
	say := func(what string, got, want error) {
		if errors.Is(got, want) {
			fmt.Println(what + ": as it should")
		} else {
			fmt.Printf("%s: %v, want %v\n", what, got, want)
		}
	}
	call := func(number uintptr, args ...uintptr) error {
		args = append(args, 0, 0, 0)
		if _, _, errno := unix.Syscall(number, args[0], args[1], args[2]); errno != 0 {
			return errno
		}
		return nil
	}
	sock := func(domain, kind, protocol int) error {
		fd, err := unix.Socket(domain, kind, protocol)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	for _, name := range denied {
		if number, ok := arch.X86_64.SyscallNames[name]; ok && runtime.GOARCH == "amd64" {
			say(name, call(uintptr(number)), unix.EPERM)
		}
	}
	for _, family := range []int{unix.AF_VSOCK, unix.AF_ALG, unix.AF_PACKET, unix.AF_CAN, unix.AF_BLUETOOTH} {
		say(fmt.Sprint("socket family ", family), sock(family, unix.SOCK_RAW, 0), unix.EAFNOSUPPORT)
	}
	say("mptcp", sock(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), unix.EPROTONOSUPPORT)
	say("tcp", sock(unix.AF_INET, unix.SOCK_STREAM, 0), nil)
	say("udp6", sock(unix.AF_INET6, unix.SOCK_DGRAM, 0), nil)
	say("unix", sock(unix.AF_UNIX, unix.SOCK_STREAM, 0), nil)
	say("netlink", sock(unix.AF_NETLINK, unix.SOCK_RAW, 0), nil)
	say("TIOCSTI", call(unix.SYS_IOCTL, 0, unix.TIOCSTI|1<<32, 0), unix.EPERM)
	say("clone", call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)), unix.EPERM)
	out, err := exec.Command("/bin/sh", "-c", "id -u | cat; (exit 7); echo $?").CombinedOutput()
	if string(out) != "1900003201\n7\n" {
		err = fmt.Errorf("%v %q", err, out)
	}
	say("programs", err, nil)
	var b byte
	say("clone3", call(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&b)), 1), unix.ENOSYS)
}
