package account

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
)

// purgeLimit is how long the removal of a home may take.
const purgeLimit = 10 * time.Minute

// What the process that empties a home finds open.
const (
	homeFD = 3 // the home
	lifeFD = 4 // a pipe: at its end the process ends, for we have
)

func owner(st fs.FileInfo) uint32 {
	return st.Sys().(*syscall.Stat_t).Uid
}

// makeHome makes the home and hands it over. One that exists already is the
// tenant's: inTheWay has looked.
func makeHome(i Info) error {
	if err := os.MkdirAll(filepath.Dir(i.Home), 0o755); err != nil {
		return fmt.Errorf("make home: %w", err)
	}
	err := os.Mkdir(i.Home, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make home: %w", err)
	}
	made := err == nil
	st, err := os.Lstat(i.Home)
	if err == nil && owner(st) == 0 {
		err = os.Lchown(i.Home, int(i.UID), int(i.GID))
	}
	if err != nil && made {
		err = errors.Join(err, os.Remove(i.Home))
	}
	if err != nil {
		return fmt.Errorf("make home: %w", err)
	}
	return nil
}

// purgeHome removes a home: what is in it by a process of its uid, for which
// all that can be followed out of it is closed; then the empty directory.
func purgeHome(i Info) error {
	fd, err := unix.Open(i.Home, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open home %s: %w", i.Home, err)
	}
	home := os.NewFile(uintptr(fd), i.Home)
	defer home.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at home: %w", err)
	}
	if st.Uid != i.UID {
		return serai.Errorf(serai.Conflict, "%s belongs to uid %d, not to %s: it is not removed", i.Home, st.Uid, i.Name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), purgeLimit)
	defer cancel()
	c := exec.CommandContext(ctx, "/proc/self/exe", "helper", HelperRemoveHome)
	c.Dir = "/"
	c.Env = []string{}
	life, hold, err := os.Pipe()
	if err != nil {
		return err
	}
	defer life.Close()
	defer hold.Close()
	c.ExtraFiles = []*os.File{home, life}
	c.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: i.UID, Gid: i.GID},
		Setsid:     true,
	}
	var said bytes.Buffer
	c.Stderr = &limited{w: &said, n: 4096}
	if err := c.Run(); err != nil {
		if line, _, _ := strings.Cut(strings.TrimSpace(said.String()), "\n"); line != "" {
			err = errors.New(line)
		}
		return serai.Errorf(serai.Conflict, "%s could not be emptied as %s: %v", i.Home, i.Name, err)
	}
	if err := unix.Rmdir(i.Home); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove home %s: %w", i.Home, err)
	}
	return nil
}

// limited passes on the first n bytes.
type limited struct {
	w io.Writer
	n int
}

func (l *limited) Write(b []byte) (int, error) {
	k := min(len(b), l.n)
	l.n -= k
	if _, err := l.w.Write(b[:k]); err != nil {
		return 0, err
	}
	return len(b), nil
}

// emptyHome is the process under the tenant's uid.
func emptyHome() error {
	if os.Getuid() == 0 || os.Geteuid() == 0 {
		return errors.New("a home is not emptied as root")
	}
	go func() {
		io.Copy(io.Discard, os.NewFile(lifeFD, "life"))
		os.Exit(1)
	}()
	unix.CloseOnExec(homeFD)
	var st unix.Stat_t
	if err := unix.Fstat(homeFD, &st); err != nil {
		return fmt.Errorf("look at home: %w", err)
	}
	_ = unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", homeFD), 0o700) // it may be closed to its owner
	return emptyDir(homeFD, ".", st.Dev, 0)
}

// maxDepth keeps a home of directories within directories from using up our
// descriptors; the deeper ones are moved up first.
const maxDepth = 200

// emptyDir removes all within a directory, without following links and without
// leaving the file system.
func emptyDir(parent int, name string, dev uint64, depth int) error {
	fd, err := openDir(parent, name)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != dev {
		return fmt.Errorf("%s is another file system", name)
	}
	if st.Mode&0o700 != 0o700 {
		_ = unix.Fchmod(fd, 0o700)
	}
	for {
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			if err := removeEntry(fd, n, dev, depth); err != nil {
				return fmt.Errorf("%s: %w", n, err)
			}
		}
		switch {
		case len(names) > 0: // from the beginning: what goes away shifts the rest
			if _, err := dir.Seek(0, io.SeekStart); err != nil {
				return err
			}
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func removeEntry(parent int, name string, dev uint64, depth int) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	switch again := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); {
	case again == nil:
		return nil
	case errors.Is(again, unix.ENOTDIR):
		return err
	}
	if depth >= maxDepth { // shorten the chain: its child becomes a child of the home
		to := fmt.Sprintf(".serai-%d-%d", os.Getpid(), time.Now().UnixNano())
		return unix.Renameat(parent, name, homeFD, to)
	}
	if err := emptyDir(parent, name, dev, depth+1); err != nil {
		return err
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

// openDir opens a directory for reading, after giving ourselves the right to.
func openDir(parent int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, name, flags, 0)
	if errors.Is(err, unix.EACCES) {
		if err := unix.Fchmodat(parent, name, 0o700, 0); err != nil {
			return -1, err
		}
		fd, err = unix.Openat(parent, name, flags, 0)
	}
	return fd, err
}
