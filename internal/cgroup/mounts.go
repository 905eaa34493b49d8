package cgroup

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
)

// needed are the controllers without which there are no limits.
var needed = []string{"memory", "cpu", "pids"}

// A mount is one line of /proc/self/mountinfo that is about control groups.
type mount struct {
	v2      bool
	root    string // what of the hierarchy is mounted
	dir     string
	options []string // of the file system: controllers, name=…, favordynmods
}

// Support is what this machine offers.
type Support struct {
	Version      int      // 1, 2, or 0 where no memory controller is mounted
	Controllers  []string // of needed, those that are there
	Kill         bool     // cgroup.kill works: the unified hierarchy is mounted
	FavorDynMods bool     // joining a group is quick already
	Delegated    bool     // the own unit is delegated (version 2)
}

// Probe looks at what the machine offers and changes nothing.
func Probe() (Support, error) {
	mounts, err := mounts()
	if err != nil {
		return Support{}, err
	}
	var s Support
	for _, m := range mounts {
		s.FavorDynMods = s.FavorDynMods || slices.Contains(m.options, "favordynmods")
	}
	if m, ok := v2Mount(mounts); ok {
		s.Kill = exists(m.dir) // every group but the root has cgroup.kill, since Linux 5.14
		s.Controllers = controllersOf(m.dir)
		if slices.Contains(s.Controllers, "memory") {
			s.Version = 2
			s.Delegated = delegated(ownDir(m, "0::"))
			return s, nil
		}
		s.Controllers = nil
	}
	for _, c := range needed {
		if slices.ContainsFunc(mounts, func(m mount) bool { return !m.v2 && slices.Contains(m.options, c) }) {
			s.Controllers = append(s.Controllers, c)
		}
	}
	if slices.Contains(s.Controllers, "memory") {
		s.Version = 1
	}
	return s, nil
}

// locate finds where the tree belongs and makes nothing.
func locate(root string) (*Tree, error) {
	mounts, err := mounts()
	if err != nil {
		return nil, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	unified, ok := v2Mount(mounts)
	if ok {
		has := controllersOf(unified.dir)
		if slices.Contains(has, "memory") {
			h := &hierarchy{name: "unified", mount: unified.dir, base: unified.dir}
			for _, c := range []string{"memory", "cpu", "pids", "io"} {
				if slices.Contains(has, c) {
					h.has = append(h.has, c)
				} else if c != "io" {
					return nil, lacks(c)
				}
			}
			h.origin = ownDir(unified, "0::")
			if before, found := strings.CutSuffix(h.origin, "/"+root+"/ops/priv"); found {
				h.base, h.origin = before, before // we were here before: an upgrade in place
			} else if delegated(h.origin) {
				h.base = h.origin
			}
			h.place(unified, root)
			return &Tree{version: 2, hs: []*hierarchy{h}}, nil
		}
	}
	t := &Tree{version: 1}
	if ok {
		h := &hierarchy{name: "unified", mount: unified.dir, base: unified.dir, origin: ownDir(unified, "0::")}
		h.place(unified, root)
		t.hs = append(t.hs, h)
	}
	for _, c := range []string{"memory", "cpu", "cpuacct", "pids"} {
		if t.with(c) != nil { // mounted together, as cpu,cpuacct mostly is
			continue
		}
		i := slices.IndexFunc(mounts, func(m mount) bool { return !m.v2 && slices.Contains(m.options, c) })
		if i < 0 && c == "cpuacct" {
			continue
		}
		if i < 0 {
			return nil, lacks(c)
		}
		m := mounts[i]
		h := &hierarchy{mount: m.dir, base: m.dir}
		for line := range strings.Lines(string(own)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) == 3 && slices.Contains(strings.Split(f[1], ","), c) {
				h.name, h.has = f[1], strings.Split(f[1], ",")
				h.origin = ownDir(m, f[0]+":"+f[1]+":")
			}
		}
		if h.name == "" {
			return nil, lacks(c)
		}
		h.place(m, root)
		t.hs = append(t.hs, h)
	}
	return t, nil
}

func lacks(controller string) error {
	return serai.Errorf(serai.Unavailable, "this machine has no cgroup controller %s", controller).
		WithHint("boot it with cgroup version 2, or with cgroup_enable=%s", controller)
}

// place fills in where <root> lies, from base.
func (h *hierarchy) place(m mount, root string) {
	h.dir = filepath.Join(h.base, root)
	rel, err := filepath.Rel(m.dir, h.dir)
	if err != nil { // base is always beneath the mount
		rel = root
	}
	h.path = path.Join("/", m.root, rel)
	if h.origin == "" || strings.HasPrefix(h.origin+"/", h.dir+"/") {
		h.origin = h.base
	}
}

// ownDir is the directory of the group the own process is in, by the line of
// /proc/self/cgroup with that prefix; empty where it is not beneath the mount.
func ownDir(m mount, prefix string) string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), prefix); ok {
			rel, err := filepath.Rel(m.root, p)
			if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
				return ""
			}
			return filepath.Join(m.dir, rel)
		}
	}
	return ""
}

// delegated reports whether systemd handed the group to its unit.
func delegated(dir string) bool {
	if dir == "" {
		return false
	}
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		var b [1]byte
		if n, err := unix.Getxattr(dir, name, b[:]); err == nil && n == 1 && b[0] == '1' {
			return true
		}
	}
	return false
}

func controllersOf(dir string) []string {
	return strings.Fields(read(filepath.Join(dir, "cgroup.controllers")))
}

// v2Mount is the unified hierarchy, where it is mounted.
func v2Mount(mounts []mount) (mount, bool) {
	i := slices.IndexFunc(mounts, func(m mount) bool { return m.v2 })
	if i < 0 {
		return mount{}, false
	}
	return mounts[i], true
}

func mounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	return slices.DeleteFunc(parseMounts(b), covered), nil
}

// covered reports whether something else is mounted over the directory.
func covered(m mount) bool {
	var st unix.Statfs_t
	return unix.Statfs(m.dir, &st) != nil || st.Type != unix.CGROUP_SUPER_MAGIC && st.Type != unix.CGROUP2_SUPER_MAGIC
}

// parseMounts finds the lines about control groups. Lines it does not
// understand are passed over.
func parseMounts(mountinfo []byte) []mount {
	var list []mount
	for line := range bytes.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSpace(string(line)), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 3 || tail[0] != "cgroup" && tail[0] != "cgroup2" {
			continue
		}
		list = append(list, mount{
			v2:      tail[0] == "cgroup2",
			root:    unescape(head[3]),
			dir:     unescape(head[4]),
			options: strings.Split(tail[2], ","),
		})
	}
	return list
}

// unescape undoes the kernel's \ooo for blanks in paths.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
