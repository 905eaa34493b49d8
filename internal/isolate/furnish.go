package isolate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A cover is an empty directory mounted over one of the machine's.
type cover struct {
	dir      string
	options  []string // of tmpfs
	writable bool
	secret   bool // covering it must work
}

// covers are the places that any account may write to, which tenants must not
// share with the machine. A site's process mounts a /tmp and /dev/shm of its
// own over these; what it does not cover so is read-only.
var covers = []cover{
	{dir: "/tmp", options: []string{"mode=1777", "size=16m"}, writable: true, secret: true},
	{dir: "/dev/shm", options: []string{"mode=1777", "size=16m"}, writable: true, secret: true},
	{dir: "/var/tmp", secret: true},
	{dir: "/run/lock"},
	{dir: "/var/crash"},
	{dir: "/sys/fs/cgroup"}, // how much the neighbours use
	// Who may speak with the system's manager may ask it to run things: any
	// account may let its own units live on without a login (linger), outside of
	// every wall. Its journal takes lines of everybody.
	{dir: "/run/dbus", secret: true},
	{dir: "/run/systemd", secret: true},
	{dir: "/run/user", secret: true},
}

// keeps are what programs need of the directories above: /etc/resolv.conf leads
// there.
var keeps = []string{"/run/systemd/resolve"}

// furnish makes the mount namespace that we are in the tenants'.
func furnish(o Options, notes *[]string) error {
	unix.Umask(0)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	list := covers
	for _, dir := range o.Hide {
		list = append(list, cover{dir: filepath.Clean(dir), secret: true})
	}
	// What lies beneath a cover is taken hold of before it goes out of sight.
	kept, err := take(slices.Concat(keeps, o.Keep), list)
	if err != nil {
		return err
	}
	if o.Sendmail != "" {
		if err := showSendmail(o.Sendmail); err != nil {
			*notes = append(*notes, fmt.Sprintf("tenants have no /usr/sbin/sendmail: %v", err))
		}
	}
	if err := freshProc(notes); err != nil {
		return err
	}
	if err := smallDev(); err != nil {
		*notes = append(*notes, fmt.Sprintf("tenants see the machine's /dev: %v", err))
	}
	var done []cover
	for _, c := range list {
		switch err := c.mount(); {
		case err == nil:
			done = append(done, c)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		case c.secret:
			return fmt.Errorf("cover %s: %w", c.dir, err)
		default:
			*notes = append(*notes, fmt.Sprintf("tenants see the machine's %s: %v", c.dir, err))
		}
	}
	for _, k := range kept {
		if err := k.put(); err != nil {
			return fmt.Errorf("keep %s: %w", k.dir, err)
		}
	}
	for _, c := range done {
		if !c.writable {
			if err := unix.Mount("", c.dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
				return fmt.Errorf("cover %s: %w", c.dir, err)
			}
		}
	}
	return nil
}

func (c cover) mount() error {
	options := c.options
	if options == nil {
		options = []string{"mode=755", "size=4k"}
	}
	fd, err := newTmpfs(options...)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, c.dir)
}

// A kept directory is a copy of its mount, read-only, that lies nowhere yet.
type kept struct {
	dir string
	fd  int
}

// take copies the mounts of those directories that are beneath a cover.
func take(dirs []string, covers []cover) ([]kept, error) {
	var list []kept
	for _, dir := range dirs {
		dir = filepath.Clean(dir)
		for _, c := range covers {
			if !strings.HasPrefix(dir, c.dir+"/") {
				continue
			}
			fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("keep %s: %w", dir, err)
			}
			readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &readOnly); err != nil {
				return nil, fmt.Errorf("keep %s: %w", dir, err)
			}
			list = append(list, kept{dir, fd})
			break
		}
	}
	return list, nil
}

func (k kept) put() error {
	defer unix.Close(k.fd)
	if err := os.MkdirAll(k.dir, 0o755); err != nil {
		return err
	}
	return attach(k.fd, k.dir)
}

// freshProc mounts a /proc in which others' processes do not exist.
func freshProc(notes *[]string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := unix.Mount("proc", "/proc", "proc", flags, "hidepid=invisible")
	if errors.Is(err, unix.EINVAL) { // before Linux 5.8
		err = unix.Mount("proc", "/proc", "proc", flags, "hidepid=2")
	}
	if errors.Is(err, unix.EPERM) { // in a container whose own /proc is covered in part
		*notes = append(*notes, "tenants see each other's processes: /proc cannot be mounted here")
		return nil
	}
	if err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// smallDev mounts a /dev with what programs need: not the machine's devices
// that are open to all (fuse, net/tun, kvm), nor its log's socket.
func smallDev() error {
	fd, err := newTmpfs("mode=755", "size=64k")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := unix.Mknodat(fd, name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	if err := unix.Mknodat(fd, "tty", unix.S_IFCHR|0o666, int(unix.Mkdev(5, 0))); err != nil {
		return fmt.Errorf("make tty: %w", err)
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := unix.Symlinkat(target, fd, name); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	for _, name := range []string{"shm", "pts"} {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	if err := attach(fd, "/dev"); err != nil {
		return err
	}
	err = unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0600")
	if err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	return nil
}

const (
	sbin     = "/usr/sbin"
	sendmail = "sendmail"
	// Where old programs look first. Where it exists it leads into sbin.
	oldSendmail = "/usr/lib/sendmail"
)

// showSendmail shows a script in /usr/sbin: as a layer over it, since the file
// may not be there, or where layers do not work over the file that is.
func showSendmail(script string) error {
	text, err := os.ReadFile(script)
	if err != nil {
		return err
	}
	fd, err := newTmpfs("mode=755", "size=1m")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	out, err := unix.Openat(fd, sendmail, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(out), sendmail)
	if _, err := f.Write(text); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(oldSendmail); err == nil && filepath.Dir(real) == sbin && filepath.Base(real) != sendmail {
		if err := unix.Symlinkat(sendmail, fd, filepath.Base(real)); err != nil {
			return err
		}
	}
	// A layer must have a path. It keeps its own copy of the mount, so that the
	// path can go again.
	const stage = "/tmp"
	if err := attach(fd, stage); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(stage, unix.MNT_DETACH) }()
	err = unix.Mount("overlay", sbin, "overlay", unix.MS_RDONLY|unix.MS_NODEV, "lowerdir="+stage+":"+sbin)
	if err == nil {
		return nil
	}
	target := filepath.Join(sbin, sendmail)
	if _, missing := os.Stat(target); missing != nil {
		return fmt.Errorf("mount a layer over %s: %w", sbin, err)
	}
	return unix.Mount(filepath.Join(stage, sendmail), target, "", unix.MS_BIND, "")
}

// newTmpfs makes a file system that is mounted nowhere yet, and can be filled.
func newTmpfs(options ...string) (fd int, err error) {
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ctx)
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if err := unix.FsconfigSetString(ctx, key, value); err != nil {
			return -1, fmt.Errorf("set %s of tmpfs: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, err
	}
	return unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID)
}

// attach puts a mount in its place.
func attach(fd int, dir string) error {
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}
