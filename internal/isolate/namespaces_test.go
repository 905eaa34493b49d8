package isolate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
	"serai.dev/serai/internal/config"
)

// TestMain is also the helpers, and the processes that tests try walls from.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "helper":
		if err := Helper(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv("ISOLATE_TEST_ROLE") == "seccomp":
		trySeccomp()
	case os.Getenv("ISOLATE_TEST_ROLE") == "dropped":
		fmt.Println(ProveDropped())
		fmt.Println(exec.Command("/bin/true").Run())
	default:
		os.Exit(m.Run())
	}
}

var testRange = config.Range{First: 1900003200, Last: 1900003299}

// outside is a directory of the machine that is neither beneath /tmp nor
// closed to others.
func outside(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "serai-test-e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// system makes directories that a machine with systemd has, each with a file
// in it, where this one has not.
func system(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		for _, d := range []string{filepath.Dir(dir), dir} {
			if os.Mkdir(d, 0o755) == nil {
				t.Cleanup(func() { os.Remove(d) })
			}
		}
		f, err := os.CreateTemp(dir, "serai-test-e-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(f.Name()) })
		f.Close()
	}
}

// mountsAt counts the machine's mounts on or beneath those directories.
func mountsAt(dirs ...string) int {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	n := 0
	for _, dir := range dirs {
		n += strings.Count(string(b), " "+dir+" ") + strings.Count(string(b), " "+dir+"/")
	}
	return n
}

func TestMakeNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	dir := outside(t)
	for _, d := range []string{"secret/inner", "home"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	system(t, "/run/dbus", "/run/systemd/resolve", "/run/systemd/journal", "/run/user")
	script := filepath.Join(t.TempDir(), "sendmail") // beneath /tmp, which is covered
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho our mail\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := mountsAt("/proc", "/dev", "/tmp", "/var/tmp", "/usr/sbin", dir)
	ns, notes, err := MakeNamespaces([]config.Range{testRange, {First: 1900003300, Last: 1900003301}}, Options{
		Sendmail: script,
		Hide:     []string{filepath.Join(dir, "secret"), filepath.Join(dir, "missing")},
		Keep:     []string{filepath.Join(dir, "secret", "inner"), filepath.Join(dir, "home")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for _, n := range notes {
		t.Errorf("this machine could do it all, but: %s", n)
	}
	if after := mountsAt("/proc", "/dev", "/tmp", "/var/tmp", "/usr/sbin", dir); after != before {
		t.Errorf("the machine's mounts changed: %d of these, were %d", after, before)
	}
	other := exec.Command("sleep", "1000") // a process of the machine's
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()

	run := func(uid uint32, script string) string {
		// It must leave root before its exec, as a zygote does: root is not there.
		c := exec.Command("nsenter", "--user=/proc/self/fd/3", "--mount=/proc/self/fd/4",
			fmt.Sprint("--setuid=", uid), fmt.Sprint("--setgid=", uid), "/bin/sh", "-c", script)
		c.Dir = "/"
		c.ExtraFiles = []*os.File{ns.User, ns.Mount}
		out, err := c.CombinedOutput()
		if err != nil {
			t.Logf("%q: %v", script, err)
		}
		return strings.TrimSpace(string(out))
	}
	for _, tt := range []struct{ script, want string }{
		{"id -u; id -G", "1900003200\n1900003200"},
		{"cat /proc/self/uid_map | tr -s ' '", "1900003200 1900003200 100\n1900003300 1900003300 2"},
		{"ls /tmp /dev/shm | wc -l; stat -c %a /tmp /dev/shm", "3\n1777\n1777"}, // two names, an empty line between, no entry
		{"stat -c %u /proc/[0-9]* 2>/dev/null | sort -u", "1900003200"},
		{fmt.Sprintf("ls -d /proc/1 /proc/%d 2>&1 | grep -c 'No such file'", other.Process.Pid), "2"},
		{"ls /dev | tr '\\n' ' '", "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"},
		{"echo x > /dev/null && head -c 2 /dev/zero | wc -c", "2"},
		{"/usr/sbin/sendmail", "our mail"},
		{"/usr/lib/sendmail", "our mail"},
		{"ls /usr/sbin | grep -c useradd", "1"},
		{"ls -A " + dir + "/secret", "inner"},
		{"touch " + dir + "/secret/x 2>&1 | grep -c 'Read-only'", "1"},
		{"touch " + dir + "/secret/inner/x 2>&1 | grep -c 'Read-only'", "1"},
		{"ls -A /sys/fs/cgroup", ""},
		{"ls -A /run/dbus /run/systemd /run/user | xargs", "/run/dbus: /run/systemd: resolve /run/user:"},
		{"touch /var/tmp/x 2>&1 | grep -c 'Read-only'", "1"},
		{"umount /tmp 2>/dev/null || echo no; mount -t tmpfs x /tmp 2>/dev/null || echo no", "no\nno"},
		{"stat -c %u /etc/passwd", "65534"}, // root does not exist
		{"cat /etc/shadow 2>&1 | grep -c denied", "1"},
		{"kill -9 1 2>&1 | grep -c permitted", "1"},
	} {
		if got := run(testRange.First, tt.script); got != tt.want {
			t.Errorf("%s\n\tsaid %q, want %q", tt.script, got, tt.want)
		}
	}
	// A uid that is not there cannot be taken, root's least of all.
	for _, uid := range []uint32{0, 1, 1000, testRange.Last + 3} {
		if got := run(uid, "echo in"); !strings.Contains(got, "Invalid argument") {
			t.Errorf("as %d: %q", uid, got)
		}
	}
}

// With all rights in the namespaces, as a zygote has before it drops them, what
// was covered cannot be uncovered.
func TestCoversAreLocked(t *testing.T) {
	ns, _, err := MakeNamespaces([]config.Range{testRange}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	c := exec.Command("/usr/bin/perl", "-e", `
		my ($setns, $umount, $mount) = @ARGV;
		for my $fd (3, 4) { syscall($setns, $fd, 0) == 0 or die "setns: $!" }
		for my $path ("/var/tmp", "/proc", "/tmp", "/dev/shm") { my $dir = $path;
			syscall($umount, $dir, 0) == -1 && $!{EINVAL} or print "umount $dir: $!\n";
		}
		syscall($mount, my $e = "", my $v = "/var/tmp", $e, 32 | 4096, 0) == -1 && $!{EPERM} or print "remount: $!\n";
		syscall($mount, my $n = "none", my $m = "/mnt", my $f = "tmpfs", 0, 0) == 0 or print "no rights after all: $!\n";
		print "done";`, fmt.Sprint(unix.SYS_SETNS), fmt.Sprint(unix.SYS_UMOUNT2), fmt.Sprint(unix.SYS_MOUNT))
	c.ExtraFiles = []*os.File{ns.User, ns.Mount}
	c.Dir = "/"
	if out, err := c.CombinedOutput(); string(out) != "done" {
		t.Errorf("%s, %v", out, err)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), " /mnt rw") {
		t.Errorf("a mount reached the machine: %v", err)
	}
}

func TestMakeNamespacesRefusals(t *testing.T) {
	if _, _, err := MakeNamespaces(nil, Options{}); err == nil {
		t.Error("namespaces without ids were made")
	}
	_, _, err := MakeNamespaces([]config.Range{testRange}, Options{Sendmail: "/nonexistent"})
	if err != nil {
		t.Errorf("a missing script must be a note: %v", err)
	}
	_, notes, _ := MakeNamespaces([]config.Range{testRange}, Options{Sendmail: "/nonexistent"})
	if len(notes) != 1 || !strings.Contains(notes[0], "/nonexistent") {
		t.Errorf("notes %q", notes)
	}
}

func TestProveDropped(t *testing.T) {
	if out := child(t, "dropped", 1900003202); out != "<nil>\n<nil>\n" {
		t.Errorf("an ordinary process: %s", out)
	}
	if out := child(t, "dropped", 0); strings.HasPrefix(out, "<nil>") {
		t.Error("root passes as dropped")
	}
}

func TestOpenBeneath(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"site/releases/7", "site/public", "other"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"site/current": "releases/7", "site/out": "../other", "site/abs": "/etc", "site/loop": "loop",
		"site/back": "releases/../public", "site/magic": "/proc/self/cwd", "site/far": "../../../../../etc",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "site/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	site, err := OpenHome(filepath.Join(root, "site"), uint32(os.Getuid()))
	if err != nil {
		t.Fatal(err)
	}
	defer site.Close()
	for _, tt := range []struct {
		path         string
		plain, links serai.Kind // -1 is success
	}{
		{".", -1, -1},
		{"public", -1, -1},
		{"releases/7", -1, -1},
		{"current", serai.Invalid, -1},
		{"back", serai.Invalid, -1},
		{"out", serai.Invalid, serai.Invalid},
		{"abs", serai.Invalid, serai.Invalid},
		{"far", serai.Invalid, serai.Invalid},
		{"loop", serai.Invalid, serai.Invalid},
		{"magic", serai.Invalid, serai.Invalid},
		{"..", serai.Invalid, serai.Invalid},
		{"public/../../other", serai.Invalid, serai.Invalid},
		{"/etc", serai.Invalid, serai.Invalid},
		{"missing", serai.NotFound, serai.NotFound},
		{"file", serai.Invalid, serai.Invalid},
	} {
		for links, want := range map[bool]serai.Kind{false: tt.plain, true: tt.links} {
			f, err := OpenBeneath(int(site.Fd()), tt.path, links)
			got := serai.Kind(-1)
			if err != nil {
				got = serai.KindOf(err)
			} else {
				f.Close()
			}
			if got != want {
				t.Errorf("OpenBeneath(%q, %v) = %v, want kind %d", tt.path, links, err, want)
			}
		}
	}
}

func TestOpenHome(t *testing.T) {
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(home, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	own := uint32(os.Getuid())
	for _, tt := range []struct {
		name string
		uid  uint32
		mode os.FileMode
		kind serai.Kind
	}{
		{"home", own, 0o700, -1},
		{"home", own, 0o711, -1},
		{"home", own, 0o777, serai.Invalid},
		{"home", own, 0o720, serai.Invalid},
		{"home", testRange.First, 0o700, serai.Invalid},
		{"link", own, 0o700, serai.Invalid},
		{"file", own, 0o700, serai.Invalid},
		{"none", own, 0o700, serai.NotFound},
	} {
		if err := os.Chmod(home, tt.mode); err != nil {
			t.Fatal(err)
		}
		f, err := OpenHome(filepath.Join(dir, tt.name), tt.uid)
		got := serai.Kind(-1)
		if err != nil {
			got = serai.KindOf(err)
		} else {
			f.Close()
		}
		if got != tt.kind {
			t.Errorf("OpenHome(%s, %d) with mode %o = %v", tt.name, tt.uid, tt.mode, err)
		}
	}
}

func BenchmarkMakeNamespaces(b *testing.B) {
	for b.Loop() {
		ns, _, err := MakeNamespaces([]config.Range{testRange}, Options{})
		if err != nil {
			b.Fatal(err)
		}
		ns.Close()
	}
}
