package account

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"serai.dev/serai/internal/config"
)

// header is the first line of a file that did not exist before us. No account
// has such a name, so cron and at pass over it.
const header = "# made by serai; it goes with the last tenant"

// A jobFiles is the directory of cron.allow, cron.deny, at.allow and at.deny.
// See docs/decisions/0004-cron-and-at.md.
type jobFiles string

// jobs are the machine's.
const jobs jobFiles = "/etc"

// DenyJobs makes sure again that no account that Create made may use cron or
// at: a package may have been installed since. It is quick.
func DenyJobs(a config.Accounts) error {
	users, err := readPasswd(passwd)
	if err != nil {
		return err
	}
	for _, u := range users {
		if a.Range.Has(u.UID) && u.Ours(a) {
			if err := jobs.deny(u.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// JobsOpen names the accounts that Create made and that may use cron or at.
func JobsOpen(a config.Accounts) ([]string, error) {
	users, err := readPasswd(passwd)
	if err != nil {
		return nil, err
	}
	var open []string
	for _, u := range users {
		if !a.Range.Has(u.UID) || !u.Ours(a) {
			continue
		}
		ok, err := jobs.denied(u.Name)
		if err != nil {
			return nil, err
		}
		if !ok {
			open = append(open, u.Name)
		}
	}
	return open, nil
}

// denied reports whether an account can use neither cron nor at.
func (dir jobFiles) denied(name string) (bool, error) {
	for _, tool := range []string{"cron", "at"} {
		list, allowed := tool+".deny", false
		if dir.has(tool + ".allow") {
			list, allowed = tool+".allow", true
		}
		lines, _, err := dir.read(list)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if tool == "cron" { // without any file all may use cron, but only root at
				return false, nil
			}
		case err != nil:
			return false, err
		case slices.Contains(lines, name) == allowed:
			return false, nil
		}
	}
	return true, nil
}

// deny keeps an account from using cron and at.
func (dir jobFiles) deny(name string) error {
	return dir.locked(func() error {
		// With an allow file only those in it may. Without any file all may use
		// cron, but only root at.
		if !dir.has("cron.allow") {
			if err := dir.add("cron.deny", name); err != nil {
				return err
			}
		}
		if !dir.has("at.allow") && dir.has("at.deny") {
			return dir.add("at.deny", name)
		}
		return nil
	})
}

// forget undoes deny.
func (dir jobFiles) forget(name string) error {
	return dir.locked(func() error {
		return errors.Join(dir.drop("cron.deny", name), dir.drop("at.deny", name))
	})
}

func (dir jobFiles) has(file string) bool {
	_, err := os.Stat(filepath.Join(string(dir), file))
	return err == nil
}

func (dir jobFiles) add(file, name string) error {
	lines, mode, err := dir.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		lines, err = []string{header}, nil
	}
	if err != nil || slices.Contains(lines, name) {
		return err
	}
	return dir.write(file, append(lines, name), mode)
}

func (dir jobFiles) drop(file, name string) error {
	lines, mode, err := dir.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !slices.Contains(lines, name) {
		return err
	}
	lines = slices.DeleteFunc(lines, func(l string) bool { return l == name })
	if slices.Equal(lines, []string{header}) {
		return os.Remove(filepath.Join(string(dir), file))
	}
	return dir.write(file, lines, mode)
}

func (dir jobFiles) read(file string) (lines []string, mode fs.FileMode, err error) {
	path := filepath.Join(string(dir), file)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, 0o644, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, 0o644, err
	}
	if len(b) > 0 {
		lines = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	return lines, st.Mode().Perm(), nil
}

// write replaces a file in one step; owner and group stay.
func (dir jobFiles) write(file string, lines []string, mode fs.FileMode) error {
	path := filepath.Join(string(dir), file)
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	f, err := os.CreateTemp(string(dir), "."+file+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b.Bytes())
	err = errors.Join(err, f.Chmod(mode))
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		err = errors.Join(err, f.Chown(int(st.Uid), int(st.Gid)))
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// locked runs do while no other server changes the files. The lock is on a
// file that only root can open, else any account could keep it; the lock that
// the system's tools take on it is of another kind and not in the way.
func (dir jobFiles) locked(do func() error) error {
	f, err := os.OpenFile(filepath.Join(string(dir), ".pwd.lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock accounts: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock accounts: %w", err)
	}
	return do()
}
