package reconcile

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"serai.dev/serai/internal/privsep"
)

// The kernel's counters of a site's cgroup, read without any privilege: all of
// them are open to everybody.

// findLeaf is the directory of a process's memory cgroup, v1 or v2.
func findLeaf(pid int) (string, bool) {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", false
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	return leafOf(groups, mounts)
}

// leafOf finds the directory in the texts of /proc/PID/cgroup and
// /proc/self/mountinfo.
func leafOf(groups, mounts []byte) (string, bool) {
	unified, legacy := "", ""
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(parts) != 3:
		case parts[0] == "0" && parts[1] == "":
			unified = parts[2]
		case hasWord(parts[1], "memory"):
			legacy = parts[2]
		}
	}
	for line := range strings.Lines(string(mounts)) {
		// ID PARENT DEVICE ROOT POINT OPTIONS … - TYPE SOURCE SUPER
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 3 {
			continue
		}
		path := unified
		switch {
		case legacy != "" && g[0] == "cgroup" && hasWord(g[2], "memory"):
			path = legacy
		case legacy == "" && g[0] == "cgroup2":
		default:
			continue
		}
		if rel, err := filepath.Rel(f[3], path); err == nil && filepath.IsLocal(rel) {
			return filepath.Join(f[4], rel), true
		}
	}
	return "", false
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// readLeaf reads the kills of a leaf, and peak and limit of the tenant's
// group, which is the leaf's parent.
func readLeaf(dir string) (privsep.Memory, error) {
	var m privsep.Memory
	events, err := os.ReadFile(filepath.Join(dir, "memory.events"))
	peak, limit := "memory.peak", "memory.max"
	if os.IsNotExist(err) {
		events, err = os.ReadFile(filepath.Join(dir, "memory.oom_control"))
		peak, limit = "memory.max_usage_in_bytes", "memory.limit_in_bytes"
	}
	if err != nil {
		return m, err
	}
	lines := bufio.NewScanner(bytes.NewReader(events))
	for lines.Scan() {
		if n, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			m.OOMKills, _ = strconv.ParseInt(n, 10, 64)
		}
	}
	tenant := filepath.Dir(dir)
	m.Peak = readNumber(filepath.Join(tenant, peak))
	m.Limit = readNumber(filepath.Join(tenant, limit))
	return m, nil
}

// readNumber is 0 where there is none, or the word max.
func readNumber(file string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}
