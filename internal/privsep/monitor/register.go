package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/config"
)

// registerDir holds a file for each server of the machine: what it claims for
// itself alone. The server that runs holds a lock on its file; a file without
// a lock is of one that was killed.
const registerDir = "/run/serai-servers"

// A claim is what no other server of the machine may use.
type claim struct {
	RunDir     string       `json:"runDir"`
	StateDir   string       `json:"stateDir"`
	CgroupRoot string       `json:"cgroupRoot"`
	Range      config.Range `json:"range"`
	Adopt      config.Range `json:"adopt"`
}

// register refuses to run beside a server that has the same directories, the
// same cgroup or an uid of ours, and keeps later ones from doing so.
func (m *Monitor) register() error {
	c := m.Config
	own := claim{c.RunDir, c.StateDir, c.CgroupRoot, c.Accounts.Range, c.Accounts.Adopt}
	dir, err := lockRegister()
	if err != nil {
		return err
	}
	defer dir.Close() // and with it the lock against others that start
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read %s: %w", registerDir, err)
	}
	for _, name := range names {
		if err := own.against(filepath.Join(registerDir, name)); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(filepath.Join(registerDir, strconv.Itoa(os.Getpid())), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("register this server: %w", err)
	}
	if err := errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), json.NewEncoder(f).Encode(own)); err != nil {
		f.Close()
		return fmt.Errorf("register this server: %w", err)
	}
	m.Lock, err = take(f) // the copy holds the same lock
	return err
}

// against compares c with the server of a file, which goes if that is dead.
func (c claim) against(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return os.Remove(path)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	var o claim
	if err := json.Unmarshal(text, &o); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	who := "the server with runDir " + o.RunDir + " (pid " + filepath.Base(path) + ")"
	switch {
	case c.RunDir == o.RunDir || c.StateDir == o.StateDir:
		return serai.Errorf(serai.Conflict, "%s runs already", who).WithHint("serai status")
	case c.CgroupRoot == o.CgroupRoot:
		return serai.Errorf(serai.Conflict, "%s has the cgroup %s", who, o.CgroupRoot).WithHint("set cgroupRoot")
	}
	for _, r := range []config.Range{c.Range, c.Adopt} {
		if r.Meets(o.Range) || r.Meets(o.Adopt) {
			return serai.Errorf(serai.Conflict, "the uids %s meet those of %s", r, who).WithHint("set accounts.range and accounts.adopt")
		}
	}
	return nil
}

// lockRegister opens the directory and keeps others from changing it. The last
// server removes it.
func lockRegister() (*os.File, error) {
	for {
		if err := makeDir(registerDir, 0o700, 0, 0); err != nil {
			return nil, err
		}
		dir, err := os.Open(registerDir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", registerDir, err)
		}
		var is unix.Stat_t
		if unix.Fstat(int(dir.Fd()), &is) == nil && is.Nlink > 0 {
			return dir, nil
		}
		dir.Close()
	}
}

// unregister takes the claim back.
func (m *Monitor) unregister() {
	if m.Lock == 0 {
		return
	}
	dir, err := lockRegister()
	if err != nil {
		m.log.Error("not unregistered", keyCause, err)
		return
	}
	defer dir.Close()
	os.Remove(filepath.Join(registerDir, strconv.Itoa(os.Getpid())))
	os.Remove(registerDir) // if nobody else runs
	m.Lock.close()
}
