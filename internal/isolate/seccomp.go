package isolate

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// denied are the system calls that answer EPERM. A tenant's code has no
// capability, so most would fail anyway: they are denied for what is wrong in
// the kernel behind them.
var denied = []string{
	// namespaces and mounts
	"unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "fspick",
	"move_mount", "open_tree", "open_tree_attr", "mount_setattr", "statmount", "listmount",
	// other processes
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd", "perf_event_open",
	// the kernel itself
	"bpf", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "request_key", "keyctl",
	"kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "syslog", "reboot",
	"personality", "modify_ldt", "iopl", "ioperm", "vm86", "vm86old", "uselib", "ustat", "sysfs", "_sysctl",
	"nfsservctl", "lookup_dcookie", "fanotify_init", "open_by_handle_at", "name_to_handle_at",
	// memory placement
	"move_pages", "migrate_pages", "mbind", "set_mempolicy", "set_mempolicy_home_node",
	// the machine
	"swapon", "swapoff", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname",
	"acct", "quotactl", "quotactl_fd", "vhangup",
}

// spaces are the clone flags that make namespaces.
const spaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// terminals are the ioctls that write into a terminal's input (TIOCSTI), into
// the console's (TIOCLINUX), and that load line disciplines (TIOCSETD).
var terminals = []uint32{0x5412, 0x541C, 0x5423}

// protocols are those of internet sockets. The rest (MPTCP, SCTP, …) would
// load kernel modules and pass by rules for ports.
var protocols = []uint32{0, unix.IPPROTO_ICMP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6}

// Where the kernel has what, in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16 // 8 bytes each, the lower half first

	filterSize = 8 // of a struct sock_filter
)

// SeccompProgram is the filter for tenants' processes and for those of ours
// without power: an array of struct sock_filter for this machine, to be
// installed as it is after no_new_privs.
func SeccompProgram() ([]byte, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("make the seccomp program: %w", err)
	}
	list, err := bpf.Assemble(filter(info))
	if err != nil {
		return nil, fmt.Errorf("make the seccomp program: %w", err)
	}
	var b []byte
	for _, i := range list {
		b = binary.NativeEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b, nil
}

// filter is the program. Of arguments it looks at the lower half alone, as the
// kernel does where they are an int: the upper one is the caller's to choose.
func filter(info *arch.Info) []bpf.Instruction {
	list := []bpf.Instruction{
		load(offArch),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}, // another architecture's numbers mean other calls
		load(offNumber),
		// What the kernel has learned since we did might be one of those denied;
		// x86_64's second table (x32) begins above, too.
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: newest(info), SkipTrue: 1},
		refuse(unix.ENOSYS),
	}
	// on adds what is done at one system call; what must end in an answer.
	on := func(name string, what ...bpf.Instruction) {
		if number, ok := info.SyscallNames[name]; ok { // not all machines have all
			list = append(list, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(number), SkipTrue: uint8(len(what))})
			list = append(list, what...)
		}
	}
	for _, name := range denied {
		on(name, refuse(unix.EPERM))
	}
	on("clone3", refuse(unix.ENOSYS)) // its flags are out of sight; libraries fall back to clone
	on("clone",
		load(argument(0)),
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: spaces, SkipFalse: 1},
		refuse(unix.EPERM),
		allow)
	on("ioctl", append(slices.Concat([]bpf.Instruction{load(argument(1))}, among(terminals, refuse(unix.EPERM))), allow)...)
	on("socketpair",
		load(argument(0)),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_UNIX, SkipTrue: 1},
		refuse(unix.EAFNOSUPPORT),
		allow)
	on("socket", socket()...)
	return append(list, allow)
}

// newest is the greatest number of a system call that we know.
func newest(info *arch.Info) uint32 {
	n := 0
	for _, number := range info.SyscallNames {
		n = max(n, number)
	}
	return uint32(n)
}

// socket lets through unix sockets, TCP, UDP and ping over the internet's
// protocols, and the netlink that resolvers ask for the machine's addresses.
func socket() []bpf.Instruction {
	netlink := slices.Concat(
		[]bpf.Instruction{load(argument(2))},
		among([]uint32{unix.NETLINK_ROUTE}, allow),
		[]bpf.Instruction{refuse(unix.EPROTONOSUPPORT)},
	)
	internet := slices.Concat(
		[]bpf.Instruction{
			load(argument(1)),
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf}, // without SOCK_CLOEXEC, SOCK_NONBLOCK
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_STREAM, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SOCK_DGRAM, SkipTrue: 1},
			refuse(unix.ESOCKTNOSUPPORT),
			load(argument(2)),
		},
		among(protocols, allow),
		[]bpf.Instruction{refuse(unix.EPROTONOSUPPORT)},
	)
	return slices.Concat(
		[]bpf.Instruction{load(argument(0))},
		among([]uint32{unix.AF_UNIX}, allow),
		[]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.AF_NETLINK, SkipTrue: uint8(len(netlink))}},
		netlink,
		[]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AF_INET6, SkipTrue: 1},
			refuse(unix.EAFNOSUPPORT),
		},
		internet,
	)
}

var allow = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}

func refuse(errno unix.Errno) bpf.Instruction {
	return bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(errno)}
}

func load(offset uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: offset, Size: 4} }

// argument is where the lower half of an argument is.
func argument(n uint32) uint32 { return offArgs + 8*n }

// among gives an answer where the loaded value is one of the list.
func among(values []uint32, answer bpf.Instruction) []bpf.Instruction {
	var list []bpf.Instruction
	for _, v := range values {
		list = append(list, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: v, SkipTrue: 1}, answer)
	}
	return list
}
