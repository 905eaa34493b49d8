package isolate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
)

// OpenBeneath opens a directory beneath an open one as O_PATH, for passing it
// on. The path must not lead out of it, neither by "..", nor by a link, nor
// into another file system. With links those that stay beneath are followed,
// else none. Nothing is opened for reading, so nothing a tenant made can make
// us wait. Missing is serai.NotFound, a path that leads out serai.Invalid.
func OpenBeneath(dirfd int, path string, links bool) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	if !links {
		how.Resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	// Somebody renames while the kernel looks: EAGAIN. It is the tenant's own
	// loss who does it without end.
	var fd int
	err := error(unix.EAGAIN)
	for try := 0; try < 20 && errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR); try++ {
		fd, err = unix.Openat2(dirfd, path, &how)
	}
	switch {
	case err == nil:
		return os.NewFile(uintptr(fd), path), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, serai.Errorf(serai.NotFound, "the directory %q does not exist", path)
	case errors.Is(err, unix.ENOTDIR):
		return nil, serai.Errorf(serai.Invalid, "%q is not a directory", path)
	case errors.Is(err, unix.ELOOP) && !links:
		return nil, serai.Errorf(serai.Invalid, "%q is a link or lies behind one", path)
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
		return nil, serai.Errorf(serai.Invalid, "%q leads out of its directory", path)
	case errors.Is(err, unix.EAGAIN):
		return nil, serai.Errorf(serai.Unavailable, "%q is being renamed", path)
	}
	return nil, fmt.Errorf("open %q: %w", path, err)
}

// OpenHome opens a home as O_PATH. It must be a directory, no link, belong to
// the uid, and not be writable by others. The path comes from /etc/passwd.
func OpenHome(path string, uid uint32) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, serai.Errorf(serai.NotFound, "the home %s does not exist", path)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, serai.Errorf(serai.Invalid, "the home %s is not a directory", path)
	case err != nil:
		return nil, fmt.Errorf("open home %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("look at home %s: %w", path, err)
	}
	switch {
	case st.Uid != uid:
		err = serai.Errorf(serai.Invalid, "the home %s belongs to uid %d, not to %d", path, st.Uid, uid)
	case st.Mode&0o022 != 0:
		err = serai.Errorf(serai.Invalid, "the home %s may be written by others (mode %04o)", path, st.Mode&0o7777).
			WithHint("chmod 700 %s", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
