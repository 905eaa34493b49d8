package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the time that processes have run, utime and stime of all their
// threads, by their CPU clocks: /proc/PID/stat has the same in ticks of 10 ms.
func cpuTime(pids []int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of the kernel's posix-timers.h
	var sum time.Duration
	for _, pid := range pids {
		var ts unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
			return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// pss is the memory of processes, KiB, each shared page divided by the number
// of processes that have it.
func pss(pids []int) (kib int, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended since
		}
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				n, err := strconv.Atoi(f[1])
				if err != nil {
					return 0, err
				}
				kib += n
			}
		}
	}
	return kib, nil
}

// A process is what /proc says of one.
type process struct {
	pid, parent int
	command     string // with its arguments
	cgroups     string // lines of /proc/PID/cgroup
}

// processes are all that run.
func processes() ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var list []process
	for _, dir := range dirs {
		stat, err1 := os.ReadFile(dir + "/stat")
		command, err2 := os.ReadFile(dir + "/cmdline")
		cgroups, err3 := os.ReadFile(dir + "/cgroup")
		pid, err4 := strconv.Atoi(filepath.Base(dir))
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if errors.Join(err1, err2, err3, err4) != nil || len(f) < 2 {
			continue // it has ended since
		}
		parent, _ := strconv.Atoi(f[1])
		list = append(list, process{pid, parent, strings.TrimRight(strings.ReplaceAll(string(command), "\x00", " "), " "), string(cgroups)})
	}
	return list, nil
}

// family is a process with all its descendants.
func family(all []process, root int) []int {
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		for _, p := range all {
			if p.parent == pids[i] {
				pids = append(pids, p.pid)
			}
		}
	}
	return pids
}
