package doctor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"serai.dev/serai/internal/cgroup"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/isolate"
	"serai.dev/serai/internal/samepage"
)

func kernel(*config.Config) result {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return bad("", "uname: %v", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return bad("use a machine with x86_64 or arm64", "Linux %s on %s", release, runtime.GOARCH)
	}
	if !atLeast(release, 5, 14) {
		return bad("install a newer kernel: Debian 12 has 6.1", "Linux %s is older than 5.14", release)
	}
	return good("Linux %s, %s", release, runtime.GOARCH)
}

// atLeast compares the first two numbers of a release like 6.1.0-18-amd64.
func atLeast(release string, major, minor int) bool {
	first, rest, _ := strings.Cut(release, ".")
	a, err := strconv.Atoi(first)
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	b, err2 := strconv.Atoi(rest)
	return err == nil && err2 == nil && (a > major || a == major && b >= minor)
}

func root(*config.Config) result {
	if !isRoot() {
		return unknown("not root: some things cannot be seen")
	}
	for name, c := range map[string]uintptr{"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_SETUID": unix.CAP_SETUID, "CAP_SETGID": unix.CAP_SETGID, "CAP_CHOWN": unix.CAP_CHOWN, "CAP_KILL": unix.CAP_KILL} {
		if n, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err == nil && n == 0 {
			return bad("run Serai on the machine itself, or in a container that has it", "root has no %s here", name)
		}
	}
	return good("root, with its capabilities")
}

func cgroups(*config.Config) result {
	s, err := cgroup.Probe()
	if err != nil {
		return bad("", "%v", err)
	}
	for _, c := range []string{"memory", "cpu", "pids"} {
		if !slices.Contains(s.Controllers, c) {
			return bad("boot with cgroup version 2 (systemd.unified_cgroup_hierarchy=1), or with cgroup_enable="+c, "no controller %s", c)
		}
	}
	where := ""
	if s.Delegated {
		where = ", in a delegated unit"
	}
	return good("version %d with %s%s", s.Version, strings.Join(s.Controllers, " "), where)
}

func cgroupKill(*config.Config) result {
	s, err := cgroup.Probe()
	if err != nil {
		return bad("", "%v", err)
	}
	if !s.Kill {
		return warn("mount it: mount -t cgroup2 none /sys/fs/cgroup/unified", "no unified hierarchy: processes are killed one by one")
	}
	return good("a group is killed at once")
}

func cgroupJoins(*config.Config) result {
	s, err := cgroup.Probe()
	switch {
	case err != nil:
		return bad("", "%v", err)
	case s.FavorDynMods:
		return good("quick (favordynmods)")
	case atLeast(releaseName(), 6, 0):
		return good("favordynmods will be switched on")
	}
	return warn("install a kernel from 6.0 on", "no favordynmods: each start of a site waits 7 ms more")
}

func releaseName() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// samePages is good either way: most operators do not want it.
func samePages(*config.Config) result {
	if missing := samepage.Missing(); missing != "" {
		return good("not merged, also for plans with merge: %s", missing)
	}
	return good("merged for plans with merge")
}

func swap(*config.Config) result {
	s, err := cgroup.Probe()
	switch {
	case err != nil || s.Version == 0:
		return unknown("no memory controller")
	case s.Version == 2:
		return good("limited with the memory")
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); err != nil {
		return warn("boot with swapaccount=1", "swap is not counted: a tenant may use it on top of its memory")
	}
	return good("limited with the memory")
}

func userNamespaces(*config.Config) result {
	text, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return bad("use a kernel with CONFIG_USER_NS", "the kernel has no user namespaces")
	}
	if n, _ := strconv.Atoi(strings.TrimSpace(string(text))); n <= 0 {
		return bad("sysctl user.max_user_namespaces=1000", "user.max_user_namespaces is 0")
	}
	return good("the kernel makes them; only root needs to")
}

func hidepid(*config.Config) result {
	if !atLeast(releaseName(), 5, 8) {
		return warn("install a kernel from 5.8 on", "hidepid is the same for all mounts of /proc")
	}
	return good("others' processes can be hidden (hidepid)")
}

func overlay(*config.Config) result {
	text, err := os.ReadFile("/proc/filesystems")
	if err == nil && strings.Contains(string(text), "\toverlay\n") {
		return good("shown to tenants by overlayfs")
	}
	if _, err := os.Stat("/lib/modules/" + releaseName() + "/kernel/fs/overlayfs"); err == nil {
		return good("shown to tenants by overlayfs, a module")
	}
	if _, err := os.Stat("/usr/sbin/sendmail"); err == nil {
		return good("shown to tenants over the one that is there")
	}
	return warn("modprobe overlay, or install a package that has /usr/sbin/sendmail", "no overlayfs: tenants have no sendmail")
}

func openat2(*config.Config) result {
	dir, err := os.Open("/")
	if err != nil {
		return bad("", "%v", err)
	}
	defer dir.Close()
	f, err := isolate.OpenBeneath(int(dir.Fd()), "usr", true)
	if err != nil {
		return bad("use a kernel from 5.6 on, and let containers call it", "openat2 does not work: %v", err)
	}
	f.Close()
	return good("openat2 works")
}

func pidfd(*config.Config) result {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return bad("use a kernel from 5.3 on, and let containers call it", "pidfd_open: %v", err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		return bad("", "pidfd_send_signal: %v", err)
	}
	return good("pidfds work")
}

func seccomp(*config.Config) result {
	program, err := isolate.SeccompProgram()
	if err != nil {
		return bad("", "%v", err)
	}
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	const getActionAvail = 2
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return bad("use a kernel with CONFIG_SECCOMP_FILTER", "seccomp: %v", errno)
	}
	return good("a filter of %d instructions", len(program)/8)
}

func landlock(*config.Config) result {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	switch {
	case errors.Is(errno, unix.EOPNOTSUPP), errors.Is(errno, unix.ENOSYS):
		return result{Unknown, "not switched on: Serai does without", "boot with landlock in lsm="}
	case errno != 0:
		return result{Unknown, fmt.Sprintf("not to be seen: %v", errno), ""}
	case abi >= 6:
		return good("version %d, with scopes for signals and abstract sockets", abi)
	}
	return good("version %d; without scopes, which come with Linux 6.12", abi)
}
