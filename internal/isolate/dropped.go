package isolate

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ProveDropped is the first thing that an unprivileged process of ours does
// (seraid, serai-proxy, and the helper that empties a home): it gives up for good what could bring power back, for
// all its threads (no_new_privs, and the tenants' seccomp program), and then
// proves that it has none. On an error the process must end.
//
// The bounding set stays as it was: without no_new_privs it would matter, and
// only root can empty it.
func ProveDropped() error {
	program, err := SeccompProgram()
	if err != nil {
		return err
	}
	if err := installAll(program); err != nil {
		return err
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("prove the drop: %w", err)
	}
	for _, t := range threads {
		if err := proveThread("/proc/self/task/" + t.Name() + "/status"); err != nil {
			return err
		}
	}
	// Raw calls, for this thread alone: should one work, the process ends.
	for _, try := range []struct {
		name string
		nr   uintptr
	}{{"setuid", unix.SYS_SETUID}, {"setgid", unix.SYS_SETGID}} {
		if _, _, errno := unix.RawSyscall(try.nr, 0, 0, 0); errno == 0 {
			return fmt.Errorf("prove the drop: %s(0) worked", try.name)
		}
	}
	return nil
}

// installAll installs a seccomp program on all threads; the kernel gives them
// no_new_privs along with it.
func installAll(program []byte) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	prog := unix.SockFprog{
		Len:    uint16(len(program) / filterSize),
		Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0])),
	}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("install the seccomp program: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("install the seccomp program: thread %d has another one", thread)
	}
	return nil
}

// proveThread reads what the kernel says of a thread.
func proveThread(path string) error {
	f, err := os.Open(path)
	if os.IsNotExist(err) { // the thread has ended
		return nil
	}
	if err != nil {
		return fmt.Errorf("prove the drop: %w", err)
	}
	defer f.Close()
	seen := 0
	s := bufio.NewScanner(f)
	for s.Scan() {
		name, value, _ := strings.Cut(s.Text(), ":")
		fields := strings.Fields(value)
		var bad bool
		switch name {
		case "Uid", "Gid", "Groups":
			for _, id := range fields {
				bad = bad || id == "0"
			}
		case "CapInh", "CapPrm", "CapEff", "CapAmb":
			n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			bad = err != nil || n != 0
		case "NoNewPrivs":
			bad = strings.TrimSpace(value) != "1"
		case "Seccomp":
			bad = strings.TrimSpace(value) != "2"
		default:
			continue
		}
		if bad {
			return fmt.Errorf("prove the drop: %s is %s", name, strings.Join(fields, " "))
		}
		seen++
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("prove the drop: %w", err)
	}
	if seen < 9 {
		return fmt.Errorf("prove the drop: %s tells too little", path)
	}
	return nil
}
