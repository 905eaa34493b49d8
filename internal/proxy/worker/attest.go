package worker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ByCgroup attests by control groups: a worker must be in a group of its site,
// tenants/UID/SITE.n, beneath the one that our own group, ops/proxy, is beneath,
// in every hierarchy where we are in it. Who is elsewhere in the tree can give
// a group such a name, but not there. Reading /proc needs no privilege where it
// is not mounted with hidepid.
func ByCgroup() (Attest, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find the memory controller: %w", err)
	}
	mounts := memoryMounts(mountinfo)
	return func(t Target, pid int) (Kills, error) {
		// Read each time: serai-priv moves us only after we were started.
		own, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return nil, fmt.Errorf("find our own control group: %w", err)
		}
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
		if err != nil {
			return nil, fmt.Errorf("look at worker %d: %w", pid, err)
		}
		if err := inSite(groupsOf(own), groupsOf(text), t); err != nil {
			return nil, fmt.Errorf("look at worker %d: %w", pid, err)
		}
		return killsIn(mounts.counter(text)), nil
	}, nil
}

// groupsOf is the text of /proc/PID/cgroup by hierarchy, which is named by its
// controllers; the unified one has no name.
func groupsOf(procCgroup []byte) map[string]string {
	groups := make(map[string]string)
	for line := range bytes.Lines(procCgroup) {
		if f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3); len(f) == 3 {
			groups[f[1]] = f[2]
		}
	}
	return groups
}

// inSite says why a process with these groups is not one of the target's, or
// nil.
func inSite(own, groups map[string]string, t Target) error {
	found := false
	for name, group := range own {
		root, ok := strings.CutSuffix(group, "/ops/proxy")
		if !ok {
			continue
		}
		found = true
		leaf, ok := strings.CutPrefix(groups[name], fmt.Sprintf("%s/tenants/%d/%d.", root, t.UID, t.Site))
		if !ok || leaf == "" || strings.Contains(leaf, "/") {
			return breach("it said hello but is not in a control group of site %d", t.Site)
		}
	}
	if !found {
		return errors.New("we are not in our own control group ops/proxy")
	}
	return nil
}

// mounts says where the memory controller's files are: in one version of the
// hierarchy or the other.
type mounts struct{ v1, v2 mount }

type mount struct{ root, dir string }

// memoryMounts finds the hierarchies among the lines of mountinfo: fields are
// separated by spaces, the optional ones end with a dash.
func memoryMounts(mountinfo []byte) (m mounts) {
	for line := range bytes.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSpace(string(line)), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		at := mount{root: f[3], dir: f[4]}
		switch g[0] {
		case "cgroup2":
			m.v2 = at
		case "cgroup":
			if hasWord(g[2], "memory") {
				m.v1 = at
			}
		}
	}
	return m
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// counter is the file that counts the kills in the group of a process, or empty.
func (m mounts) counter(procCgroup []byte) string {
	for name, group := range groupsOf(procCgroup) {
		if m.v1.dir != "" && hasWord(name, "memory") {
			return m.v1.file(group, "memory.oom_control")
		}
		if m.v1.dir == "" && name == "" {
			return m.v2.file(group, "memory.events")
		}
	}
	return ""
}

func (m mount) file(group, name string) string {
	if m.dir == "" {
		return ""
	}
	if m.root != "/" {
		group = strings.TrimPrefix(group, m.root)
	}
	return filepath.Join(m.dir, group, name)
}

// killsIn reads the line oom_kill of a counter file, which both versions have.
func killsIn(file string) Kills {
	return func() (int64, bool) {
		if file == "" {
			return 0, false
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, false
		}
		for line := range bytes.Lines(text) {
			if n, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
				count, err := strconv.ParseInt(string(bytes.TrimSpace(n)), 10, 64)
				return count, err == nil
			}
		}
		return 0, false
	}
}
