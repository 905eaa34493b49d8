package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	serai "serai.dev/serai"
)

const (
	testRoot = "serai-test-e"
	testUID  = 1900003001
)

// TestMain is also the program that tests put into groups.
func TestMain(m *testing.M) {
	if role := os.Getenv("CGROUP_TEST_ROLE"); role != "" {
		inside(role)
		return
	}
	os.Exit(m.Run())
}

// inside joins by the descriptors from 3 on, says so, and plays its role.
func inside(role string) {
	n, _ := strconv.Atoi(os.Getenv("CGROUP_TEST_FILES"))
	for fd := range n {
		f := os.NewFile(uintptr(3+fd), "cgroup.procs")
		if _, err := f.WriteString("0\n"); err != nil {
			fmt.Println("join:", err)
			os.Exit(1)
		}
		f.Close()
	}
	fmt.Println("joined")
	switch role {
	case "wait":
		io.Copy(io.Discard, os.Stdin)
	case "fork":
		c := exec.Command("/bin/sh", "-c", "echo forked; exec sleep 1000")
		c.Stdout = os.Stdout
		if err := c.Run(); err != nil {
			fmt.Println("fork:", err)
			os.Exit(1)
		}
	case "eat":
		b := make([]byte, 256<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
	}
}

// open makes a clean tree, which goes with the test.
func open(t *testing.T) *Tree {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	tree, err := Open(testRoot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Remove(); err != nil {
			t.Errorf("Remove: %v", err)
		}
		for _, h := range tree.hs {
			if exists(h.dir) {
				t.Errorf("%s is left over", h.dir)
			}
		}
	})
	if err := tree.Clear(); err != nil {
		t.Fatal(err)
	}
	return tree
}

// start runs a process of that role in a leaf and waits for lines of it.
func start(t *testing.T, tree *Tree, leaf, role string, lines ...string) *exec.Cmd {
	t.Helper()
	files, err := tree.JoinFiles(testUID, leaf)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), "CGROUP_TEST_ROLE="+role, fmt.Sprint("CGROUP_TEST_FILES=", len(files)))
	c.ExtraFiles = files
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	for _, f := range files {
		f.Close()
	}
	r := bufio.NewScanner(out)
	for _, want := range append([]string{"joined"}, lines...) {
		if !r.Scan() || r.Text() != want {
			t.Fatalf("the process in %s said %q, want %q", leaf, r.Text(), want)
		}
	}
	return c
}

// await asks again until it is so; the kernel has no event for all of it.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestLeafLife(t *testing.T) {
	tree := open(t)
	if err := tree.SetTenant(testUID, Limits{Memory: 64 << 20, CPU: 500, Processes: 50}); err != nil {
		t.Fatal(err)
	}
	if err := tree.NewLeaf(testUID, "7.1"); err != nil {
		t.Fatal(err)
	}
	if err := tree.NewLeaf(testUID, "7.1"); err == nil {
		t.Error("a second leaf of the same name was made")
	}
	if err := tree.NewLeaf(testUID, "../7"); serai.KindOf(err) != serai.Invalid {
		t.Errorf("NewLeaf(../7) = %v", err)
	}
	if empty, err := tree.Empty(testUID, "7.1"); !empty || err != nil {
		t.Errorf("a new leaf: Empty = %v, %v", empty, err)
	}
	c := start(t, tree, "7.1", "fork", "forked")
	pid := c.Process.Pid

	if !tree.Contains(testUID, 7, pid) {
		t.Error("Contains does not see the process")
	}
	for _, tt := range []struct {
		uid, site uint32
		pid       int
	}{{testUID, 8, pid}, {testUID, 71, pid}, {testUID + 1, 7, pid}, {testUID, 7, os.Getpid()}, {testUID, 7, 1 << 30}, {testUID, 7, -1}} {
		if tree.Contains(tt.uid, tt.site, tt.pid) {
			t.Errorf("Contains(%d, %d, %d) = true", tt.uid, tt.site, tt.pid)
		}
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if uid, site, ok := Locate(testRoot, text); uid != testUID || site != 7 || !ok {
		t.Errorf("Locate = %d, %d, %v in\n%s", uid, site, ok, text)
	}
	if empty, err := tree.Empty(testUID, "7.1"); empty || err != nil {
		t.Errorf("a used leaf: Empty = %v, %v", empty, err)
	}
	if err := tree.RemoveLeaf(testUID, "7.1"); !errors.Is(err, ErrBusy) {
		t.Errorf("RemoveLeaf of a used leaf = %v", err)
	}
	if err := tree.RemoveTenant(testUID); !errors.Is(err, ErrBusy) {
		t.Errorf("RemoveTenant of a used group = %v", err)
	}
	if leaves, err := tree.Leaves(testUID); !slices.Equal(leaves, []string{"7.1"}) || err != nil {
		t.Errorf("Leaves = %v, %v", leaves, err)
	}

	if err := tree.Kill(testUID, "7.1"); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	await(t, "an empty leaf", func() bool { empty, _ := tree.Empty(testUID, "7.1"); return empty })
	if err := tree.RemoveTenant(testUID); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is not there is no error
		if err := errors.Join(tree.Kill(testUID, "7.1"), tree.KillTenant(testUID), tree.RemoveLeaf(testUID, "7.1"), tree.RemoveTenant(testUID)); err != nil {
			t.Error(err)
		}
	}
}

// Without the unified hierarchy processes are ended one by one.
func TestKillListed(t *testing.T) {
	tree := open(t)
	if err := errors.Join(tree.SetTenant(testUID, Limits{Processes: 40}), tree.NewLeaf(testUID, "7.1")); err != nil {
		t.Fatal(err)
	}
	c := start(t, tree, "7.1", "fork", "forked")
	h := tree.with("pids")
	h.killListed(fmt.Sprintf("tenants/%d", testUID))
	c.Wait()
	await(t, "an empty leaf", func() bool { empty, _ := tree.Empty(testUID, "7.1"); return empty })
	if got := read(h.tenant(testUID, "pids.max")); got != "40" {
		t.Errorf("pids.max is %q afterwards", got)
	}
}

func TestLimits(t *testing.T) {
	tree := open(t)
	type want struct{ memory, processes, quota string }
	file := func(controller, v1, v2 string) string {
		name := v1
		if tree.Version() == 2 {
			name = v2
		}
		return strings.Fields(read(tree.with(controller).tenant(testUID, name)))[0]
	}
	for _, tt := range []struct {
		limits Limits
		want   want
	}{
		{Limits{Memory: 64 << 20, CPU: 500, Processes: 50}, want{"67108864", "50", "50000"}},
		{Limits{Memory: 128 << 20, CPU: 1500, Processes: 60}, want{"134217728", "60", "150000"}},
		{Limits{Memory: 32 << 20, CPU: 1, Processes: 1}, want{"33554432", "1", "1000"}},
		{Limits{}, want{"none", "max", "none"}},
		{Limits{Memory: 16 << 20, CPU: 250, Processes: 7}, want{"16777216", "7", "25000"}},
	} {
		if err := tree.SetTenant(testUID, tt.limits); err != nil {
			t.Fatalf("SetTenant(%+v): %v", tt.limits, err)
		}
		got := want{
			file("memory", "memory.limit_in_bytes", "memory.max"),
			file("pids", "pids.max", "pids.max"),
			file("cpu", "cpu.cfs_quota_us", "cpu.max"),
		}
		if m, err := tree.Memory(testUID, ""); err != nil || m.Limit != tt.limits.Memory {
			t.Errorf("Memory = %+v, %v; want the limit %d", m, err, tt.limits.Memory)
		}
		if tt.limits.Memory == 0 {
			got.memory = "none"
		}
		if got.quota == "-1" || got.quota == "max" {
			got.quota = "none"
		}
		if got != tt.want {
			t.Errorf("SetTenant(%+v) set %+v, want %+v", tt.limits, got, tt.want)
		}
	}
}

func TestOutOfMemory(t *testing.T) {
	tree := open(t)
	if err := errors.Join(tree.SetTenant(testUID, Limits{Memory: 32 << 20}),
		tree.NewLeaf(testUID, "1.1"), tree.NewLeaf(testUID, "2.1")); err != nil {
		t.Fatal(err)
	}
	idle := start(t, tree, "2.1", "wait")
	eater := start(t, tree, "1.1", "eat")
	if err := eater.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the eater ended with %v", err)
	}
	m, err := tree.Memory(testUID, "1.1")
	if err != nil || m.OOMKills == 0 || m.Limit != 32<<20 || m.Peak < 30<<20 || m.Peak > 33<<20 {
		t.Errorf("Memory of the guilty = %+v, %v", m, err)
	}
	if m, err := tree.Memory(testUID, "2.1"); err != nil || m.OOMKills != 0 {
		t.Errorf("Memory of the neighbour = %+v, %v", m, err)
	}
	if !tree.Contains(testUID, 2, idle.Process.Pid) {
		t.Error("the neighbour was killed")
	}
}

func TestTooLateToLower(t *testing.T) {
	tree := open(t)
	if tree.Version() == 2 {
		return // the kernel kills there
	}
	if err := errors.Join(tree.SetTenant(testUID, Limits{Memory: 64 << 20}), tree.NewLeaf(testUID, "1.1")); err != nil {
		t.Fatal(err)
	}
	start(t, tree, "1.1", "wait")
	err := tree.SetTenant(testUID, Limits{Memory: 4096, Processes: 9})
	if serai.KindOf(err) != serai.Conflict {
		t.Errorf("SetTenant = %v", err)
	}
	if got := read(tree.with("pids").tenant(testUID, "pids.max")); got != "9" {
		t.Errorf("pids.max is %s: the other limits must be set all the same", got)
	}
}

func TestOneServerATree(t *testing.T) {
	tree := open(t)
	if _, err := Open(testRoot); serai.KindOf(err) != serai.Conflict {
		t.Errorf("a second Open = %v", err)
	}
	if _, err := Open("../x"); serai.KindOf(err) != serai.Invalid {
		t.Errorf("Open(../x) = %v", err)
	}
	// An upgrade in place opens it again and finds itself in ops/priv.
	tree.Close()
	again, err := Open(testRoot)
	if err != nil {
		t.Fatal(err)
	}
	if len(again.stale) > 0 {
		t.Error("it takes itself for a leftover")
	}
	*tree = *again
}

// What a killed server left is cleared by the next one, groups made by hand
// and processes in ops/priv included.
func TestClearLeftovers(t *testing.T) {
	tree := open(t)
	if h := tree.hs[0]; tree.Version() == 2 && h.base != h.mount {
		return // nobody can leave a delegated unit; of it systemd itself leaves nothing
	}
	if err := errors.Join(tree.SetTenant(testUID, Limits{}), tree.NewLeaf(testUID, "1.1")); err != nil {
		t.Fatal(err)
	}
	site := start(t, tree, "1.1", "fork", "forked")
	files, err := tree.OpsJoinFiles("zygote-none")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	helper := exec.Command("sleep", "1000") // inherits ops/priv
	if err := helper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { helper.Process.Kill(); helper.Wait() }()
	for _, h := range tree.hs { // as if we had never been in it
		if err := h.leaveOnly(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	tree.Close()

	next, err := Open(testRoot)
	if err != nil {
		t.Fatal(err)
	}
	*tree = *next
	if err := tree.Clear(); err != nil {
		t.Fatal(err)
	}
	site.Wait()
	helper.Wait() // both are dead, or the test hangs
	for _, h := range tree.hs {
		for _, dir := range []string{"tenants", "ops"} {
			left, _ := groups(h.in(dir))
			if left = slices.DeleteFunc(left, func(s string) bool { return s == "priv" }); len(left) > 0 {
				t.Errorf("left in %s: %v", h.in(dir), left)
			}
		}
	}
}

// leaveOnly moves one process out of the tree.
func (h *hierarchy) leaveOnly(pid int) error {
	return write(filepath.Join(h.origin, "cgroup.procs"), strconv.Itoa(pid))
}

func TestFastJoin(t *testing.T) {
	tree := open(t)
	if err := errors.Join(tree.SetTenant(testUID, Limits{}), tree.NewLeaf(testUID, "1.1")); err != nil {
		t.Fatal(err)
	}
	ok, err := tree.FastJoin()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s; favordynmods: %v", tree.Describe(), ok)
}

func TestLocate(t *testing.T) {
	for _, tt := range []struct {
		text      string
		uid, site uint32
		ok        bool
	}{
		{"0::/serai/tenants/1900000000/12.3\n", 1900000000, 12, true},
		{"0::/system.slice/serai.service/serai/tenants/5/1.1", 5, 1, true},
		{"3:memory:/serai/tenants/5/1.1\n0::/\n", 5, 1, true},
		{"0::/\n3:memory:/serai/tenants/5/1.1\n", 5, 1, true},
		{"0::/serai/tenants/5/shell\n", 0, 0, false},
		{"0::/serai/tenants/5/1.1/x\n", 0, 0, false},
		{"0::/serai/ops/priv\n", 0, 0, false},
		{"0::/other/tenants/5/1.1\n", 0, 0, false},
		{"0::/serai/tenants/99999999999/1.1\n", 0, 0, false},
		{"", 0, 0, false},
	} {
		uid, site, ok := Locate("serai", []byte(tt.text))
		if uid != tt.uid || site != tt.site || ok != tt.ok {
			t.Errorf("Locate(%q) = %d, %d, %v; want %d, %d, %v", tt.text, uid, site, ok, tt.uid, tt.site, tt.ok)
		}
	}
}

func TestParseMounts(t *testing.T) {
	const text = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 /a\040b /sys/fs/cgroup/uni\040fied rw - cgroup2 cgroup2 rw,nsdelegate,favordynmods
nonsense - cgroup2
`
	got := parseMounts([]byte(text))
	want := []mount{
		{false, "/", "/sys/fs/cgroup/cpu,cpuacct", []string{"rw", "cpu", "cpuacct"}},
		{true, "/a b", "/sys/fs/cgroup/uni fied", []string{"rw", "nsdelegate", "favordynmods"}},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("parseMounts = %v, want %v", got, want)
	}
}

func FuzzLocate(f *testing.F) {
	f.Add("serai", []byte("0::/serai/tenants/1900000000/12.3\n"))
	f.Add("serai", []byte("1:memory:/serai/tenants//.\n0::/"))
	f.Fuzz(func(t *testing.T, root string, text []byte) {
		uid, site, ok := Locate(root, text)
		if !ok {
			return
		}
		again := fmt.Appendf(nil, "0::/%s/tenants/%d/%d.1\n", root, uid, site)
		if strings.ContainsAny(root, "/\n") {
			t.Errorf("Locate(%q, %q) found a root that is no name", root, text)
		}
		if u, s, ok := Locate(root, again); u != uid || s != site || !ok {
			t.Errorf("Locate(%q, %q) = %d, %d, but not found again in %q", root, text, uid, site, again)
		}
	})
}

func FuzzParseMounts(f *testing.F) {
	f.Add([]byte("41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, m := range parseMounts(text) {
			if m.dir == "" || m.root == "" || len(m.options) == 0 {
				t.Errorf("parseMounts(%q) has the empty %+v", text, m)
			}
		}
	})
}

func BenchmarkJoin(b *testing.B) {
	tree, err := Open(testRoot)
	if err != nil {
		b.Fatal(err)
	}
	defer tree.Remove()
	if os.Getenv("FASTJOIN") != "" {
		if _, err := tree.FastJoin(); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(tree.SetTenant(testUID, Limits{}), tree.NewLeaf(testUID, "1.1"), tree.NewLeaf(testUID, "1.2")); err != nil {
		b.Fatal(err)
	}
	// A process at rest is moved to and fro, by as much time apart as joins are.
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	h, pid, leaf := tree.with("memory"), strconv.Itoa(c.Process.Pid), 0
	for b.Loop() {
		b.StopTimer()
		time.Sleep(60 * time.Millisecond)
		b.StartTimer()
		leaf = 3 - max(leaf, 1)
		if err := write(h.tenant(testUID, fmt.Sprintf("1.%d", leaf), "cgroup.procs"), pid); err != nil {
			b.Fatal(err)
		}
	}
}
