package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
)

// Limits of all that a tenant runs. 0 is no limit.
type Limits struct {
	Memory    int64 // bytes; swap counts too (version 1) or is not used at all (version 2)
	CPU       int64 // thousandths of a CPU, on the long run: what was left unused in one period may be used in the next
	Processes int64 // count, threads included
}

// Memory is what the kernel says of a tenant's memory.
type Memory struct {
	OOMKills int64 // of the leaf, since it was made
	Peak     int64 // of the tenant, bytes; 0 where the kernel does not tell
	Limit    int64 // of the tenant, bytes; 0 is none
	Current  int64 // of the tenant, bytes
}

const (
	period   = 100_000 // of CPU quota, microseconds
	minQuota = 1_000   // the kernel's, microseconds
)

// SetTenant makes the group of a tenant, or changes a live one.
//
// Memory lowered beneath what is in use: version 2 takes back what it can and
// kills what is left over; version 1 takes back what it can, else it keeps the
// old limit and serai.Conflict says so. The other limits are set all the same.
func (t *Tree) SetTenant(uid uint32, l Limits) error {
	for _, h := range t.hs {
		err := os.Mkdir(h.tenant(uid), 0o755)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup of uid %d: %w", uid, err)
		}
	}
	if t.version == 2 {
		if _, err := enable(t.hs[0].tenant(uid), t.hs[0].has); err != nil {
			return err
		}
	}
	errs := []error{t.setProcesses(uid, l.Processes), t.setCPU(uid, l.CPU)}
	if t.version == 2 {
		errs = append(errs, t.setMemory2(uid, l.Memory))
	} else {
		errs = append(errs, t.setMemory1(uid, l.Memory))
	}
	return errors.Join(errs...)
}

func (t *Tree) setProcesses(uid uint32, n int64) error {
	value := "max"
	if n > 0 {
		value = strconv.FormatInt(n, 10)
	}
	if err := write(t.with("pids").tenant(uid, "pids.max"), value); err != nil {
		return fmt.Errorf("limit processes of uid %d: %w", uid, err)
	}
	return nil
}

// setCPU sets a quota with as much of a burst as the kernel gives, and a
// weight for the time that is wanted by more than there are CPUs.
func (t *Tree) setCPU(uid uint32, thousandths int64) error {
	h := t.with("cpu")
	quota := int64(-1)
	if thousandths > 0 {
		quota = max(thousandths*period/1000, minQuota)
	}
	type setting struct {
		file, value string
		optional    bool // the kernel may not have it
	}
	var list []setting
	if t.version == 2 {
		weight, bandwidth := int64(100), "max "+strconv.Itoa(period)
		if quota > 0 {
			weight = min(max(thousandths/10, 1), 10_000)
			bandwidth = fmt.Sprintf("%d %d", quota, period)
		}
		list = []setting{
			{"cpu.max.burst", "0", true}, // it must never be above the quota
			{"cpu.max", bandwidth, false},
			{"cpu.max.burst", strconv.FormatInt(max(quota, 0), 10), true},
			{"cpu.weight", strconv.FormatInt(weight, 10), false},
		}
	} else {
		shares := int64(1024)
		if quota > 0 {
			shares = min(max(thousandths*1024/1000, 2), 262_144)
		}
		list = []setting{
			{"cpu.cfs_burst_us", "0", true},
			{"cpu.cfs_period_us", strconv.Itoa(period), false},
			{"cpu.cfs_quota_us", strconv.FormatInt(quota, 10), false},
			{"cpu.cfs_burst_us", strconv.FormatInt(max(quota, 0), 10), true},
			{"cpu.shares", strconv.FormatInt(shares, 10), false},
		}
	}
	for _, s := range list {
		err := write(h.tenant(uid, s.file), s.value)
		if err != nil && !(s.optional && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("limit CPU of uid %d: %w", uid, err)
		}
	}
	return nil
}

func (t *Tree) setMemory2(uid uint32, limit int64) error {
	h := t.with("memory")
	value, swap := "max", "max"
	if limit > 0 {
		value, swap = strconv.FormatInt(limit, 10), "0"
	}
	if err := write(h.tenant(uid, "memory.max"), value); err != nil {
		return fmt.Errorf("limit memory of uid %d: %w", uid, err)
	}
	err := write(h.tenant(uid, "memory.swap.max"), swap)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without swap
		return fmt.Errorf("limit swap of uid %d: %w", uid, err)
	}
	return nil
}

// setMemory1 keeps the order that the kernel asks for: memory is never above
// memory and swap together.
func (t *Tree) setMemory1(uid uint32, limit int64) error {
	h := t.with("memory")
	memory, both := "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	if limit <= 0 {
		limit = -1
	}
	files := []string{memory, both}
	if now := number(read(h.tenant(uid, both))); limit < 0 || now != 0 && limit > now {
		files = []string{both, memory}
	}
	for _, file := range files {
		err := write(h.tenant(uid, file), strconv.FormatInt(limit, 10))
		switch {
		case errors.Is(err, unix.EBUSY):
			return serai.Errorf(serai.Conflict, "uid %d uses %s of memory, more than the new limit of %s: the old limit stays",
				uid, mebibytes(number(read(h.tenant(uid, "memory.usage_in_bytes")))), mebibytes(limit)).
				WithHint("restart its sites, then set the limit again")
		case errors.Is(err, fs.ErrNotExist) && file == both: // a kernel that does not count swap
		case err != nil:
			return fmt.Errorf("limit memory of uid %d: %w", uid, err)
		}
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%dMi", n>>20) }

// RemoveTenant removes the group of a tenant with the empty leaves in it.
// ErrBusy where processes are left; a group that is not there is no error.
func (t *Tree) RemoveTenant(uid uint32) error {
	leaves, err := t.Leaves(uid)
	if err != nil {
		return err
	}
	for _, leaf := range leaves {
		if err := t.RemoveLeaf(uid, leaf); err != nil {
			return err
		}
	}
	for _, h := range slices.Backward(t.hs) {
		if err := rmdir(h.tenant(uid)); err != nil {
			return err
		}
	}
	return nil
}

// Memory reads what the kernel says. The leaf may be empty: then OOMKills is 0.
func (t *Tree) Memory(uid uint32, leaf string) (Memory, error) {
	h := t.with("memory")
	names := struct{ peak, limit, current, events string }{
		"memory.peak", "memory.max", "memory.current", "memory.events",
	}
	if t.version == 1 {
		names.peak, names.limit = "memory.max_usage_in_bytes", "memory.limit_in_bytes"
		names.current, names.events = "memory.usage_in_bytes", "memory.oom_control"
	}
	current, err := os.ReadFile(h.tenant(uid, names.current))
	if err != nil {
		return Memory{}, fmt.Errorf("read memory of uid %d: %w", uid, err)
	}
	m := Memory{
		Current: number(string(current)),
		Peak:    number(read(h.tenant(uid, names.peak))),
		Limit:   number(read(h.tenant(uid, names.limit))),
	}
	if m.Limit >= 1<<62 { // version 1 has a large number for none
		m.Limit = 0
	}
	if leaf == "" {
		return m, nil
	}
	if !validName(leaf) {
		return Memory{}, serai.Errorf(serai.Invalid, "%q is no name of a leaf", leaf)
	}
	events, err := os.ReadFile(h.tenant(uid, leaf, names.events))
	if err != nil {
		return m, fmt.Errorf("read memory of uid %d: %w", uid, err)
	}
	for line := range strings.Lines(string(events)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			m.OOMKills = number(n)
		}
	}
	return m, nil
}

// number reads a decimal, 0 where it is none ("max").
func number(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
