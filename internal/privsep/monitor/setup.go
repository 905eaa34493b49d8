package monitor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/cgroup"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/isolate"
	"serai.dev/serai/perl"
)

// maxOpen is how many descriptors ours may have: a sleeping site has one.
const maxOpen = 1 << 20

// Start makes everything that a new server needs before its first process, or
// says in a sentence what is in the way and leaves nothing behind. Leftovers
// of a run that was killed are cleared.
func Start(cfg *config.Config, log *slog.Logger) (_ *Monitor, err error) {
	if err := checkConfig(cfg); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, serai.Errorf(serai.Denied, "serai-priv must be started by root").WithHint("sudo serai serve")
	}
	m, err := newMonitor(log)
	if err != nil {
		return nil, err
	}
	m.state = state{
		Version: stateVersion,
		Config:  cfg,
		Peers:   make(map[string]*peer),
		Zygotes: make(map[string]*zygote),
		Tenants: make(map[uint32]*tenant),
		Sites:   make(map[uint32]*site),
	}
	defer func() {
		if err != nil {
			m.undo()
		}
	}()
	for _, step := range []func() error{
		func() error { return account.CheckRanges(cfg.Accounts) },
		m.register,
		m.prepareProcess,
		m.bindHTTP,
		m.makeUsers,
		m.makeDirs,
		m.openCgroups,
		m.bindOwn,
		m.makePerl,
		m.makeNamespaces,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// undo takes back what Start has made.
func (m *Monitor) undo() {
	if m.cgroups != nil {
		m.cgroups.Remove()
	}
	if m.API != 0 {
		m.removeRunDir()
	}
	m.unregister()
	m.eachFD((*fd).close)
	unix.Close(m.poll.fd)
}

func (m *Monitor) prepareProcess() error {
	if err := raiseOpenFiles(); err != nil {
		m.log.Warn("open files not raised", "wanted", maxOpen, keyCause, err)
	}
	// Every process of a site that loses its parent becomes our child.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	unix.Umask(0o022)
	return nil
}

func raiseOpenFiles() error {
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxOpen, Max: maxOpen})
	if err == nil {
		return nil
	}
	var have unix.Rlimit // as far as we may, then
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &have) == nil {
		have.Cur = have.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &have)
	}
	return err
}

// bindHTTP takes the front addresses, which are the operator's while any of
// our processes lives.
func (m *Monitor) bindHTTP() error {
	for _, addr := range m.Config.Listen.HTTP {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return serai.Errorf(serai.Conflict, "the address %s is in use by another program", addr).
				WithHint("stop that program (ss -ltnp shows it), or set listen.http")
		}
		if err != nil {
			return serai.Errorf(serai.Invalid, "listen on %s: %v", addr, err).WithHint("set listen.http to an address of this machine")
		}
		f, err := l.(*net.TCPListener).File()
		l.Close()
		if err != nil {
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		n, err := take(f)
		if err != nil {
			return err
		}
		m.HTTP = append(m.HTTP, n)
	}
	return nil
}

func (m *Monitor) makeUsers() error {
	made, err := account.EnsureSystemUsers(m.Config.Users)
	if err != nil {
		return fmt.Errorf("make system accounts: %w", err)
	}
	if len(made) > 0 {
		m.log.Info("system accounts made", "made", made)
	}
	return nil
}

// makeDirs makes the directories, each with the owner that writes there.
func (m *Monitor) makeDirs() error {
	c := m.Config
	daemon, err := account.LookupName(c.Users.Daemon)
	if err != nil {
		return err
	}
	proxy, err := account.LookupName(c.Users.Proxy)
	if err != nil {
		return err
	}
	m.ProxyGID, m.DaemonGID = proxy.GID, daemon.GID
	for _, d := range []struct {
		path     string
		mode     fs.FileMode
		uid, gid uint32
	}{
		{c.RunDir, 0o755, 0, 0},
		{c.SitesDir(), 0o750, 0, proxy.GID},
		{filepath.Join(c.RunDir, "perl"), 0o755, 0, 0},
		{c.StateDir, 0o755, 0, 0},
		{filepath.Join(c.StateDir, "state"), 0o700, daemon.UID, daemon.GID},
		{c.CatalogueDir(), 0o755, daemon.UID, daemon.GID},
		{filepath.Join(c.StateDir, "spool"), 0o700, proxy.UID, proxy.GID},
		{c.LogDir, 0o755, 0, 0},
		{filepath.Join(c.LogDir, "sites"), 0o750, daemon.UID, daemon.GID},
		{filepath.Join(c.LogDir, "mail"), 0o750, daemon.UID, daemon.GID},
		{filepath.Join(c.LogDir, "access"), 0o750 | fs.ModeSetgid, proxy.UID, daemon.GID},
		{c.Accounts.Home, 0o755, 0, 0},
	} {
		if err := makeDir(d.path, d.mode, int(d.uid), int(d.gid)); err != nil {
			return err
		}
	}
	stale, err := filepath.Glob(filepath.Join(c.SitesDir(), "*"))
	for _, path := range stale {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// makeDir makes a directory, or corrects the one that is there. It is not led
// astray by a link: what it changes, it has opened.
func makeDir(path string, mode fs.FileMode, uid, gid int) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return serai.Errorf(serai.Invalid, "make the directory %s: %v", path, err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return serai.Errorf(serai.Invalid, "make the directory %s: %v", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return serai.Errorf(serai.Invalid, "%s is no directory", path).WithHint("move it away, or set another path in the configuration")
	}
	defer f.Close()
	if err := errors.Join(f.Chown(uid, gid), f.Chmod(mode)); err != nil {
		return fmt.Errorf("set owner and mode of %s: %w", path, err)
	}
	return nil
}

func (m *Monitor) openCgroups() (err error) {
	if m.cgroups, err = cgroup.Open(m.Config.CgroupRoot); err != nil {
		return fmt.Errorf("open the cgroups: %w", err)
	}
	if err := m.cgroups.Clear(); err != nil {
		return fmt.Errorf("clear what an earlier run has left: %w", err)
	}
	fast, err := m.cgroups.FastJoin()
	if err != nil || !fast {
		m.log.Warn("joining a cgroup is slow: favordynmods cannot be set", keyCause, err)
	}
	return nil
}

// bindOwn makes the sockets of our own processes.
func (m *Monitor) bindOwn() (err error) {
	if m.API, err = bindUnix(m.Config.APISocket(), 0o666, 0); err != nil {
		return err
	}
	m.Control, err = bindUnix(m.Config.ProxySocket(), 0o660, int(m.DaemonGID))
	return err
}

func (m *Monitor) bindSite(number uint32) (fd, error) {
	return bindUnix(m.Config.SiteSocket(number), 0o660, int(m.ProxyGID))
}

func (m *Monitor) unbindSite(s *site) {
	m.poll.forget(s.Listener)
	s.Listener.close()
	if err := os.Remove(m.Config.SiteSocket(s.Record.Site)); err != nil && !isGone(err) {
		m.log.Error("socket not removed", keySite, s.Record.Site, keyCause, err)
	}
}

// bindUnix makes a listener that takes the place of what is at path at once,
// so that a client always finds one. Only root may write in the directory.
func bindUnix(path string, mode uint32, gid int) (_ fd, err error) {
	n, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	f, fresh := fd(n), path+newSuffix
	defer func() {
		if err != nil {
			f.close()
			err = fmt.Errorf("make the socket %s: %w", path, err)
		}
	}()
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if err := unix.Bind(n, &unix.SockaddrUnix{Name: fresh}); err != nil {
		return 0, err
	}
	for _, step := range []error{unix.Chown(fresh, 0, gid), unix.Chmod(fresh, mode), unix.Listen(n, backlog), os.Rename(fresh, path)} {
		if step != nil {
			os.Remove(fresh)
			return 0, step
		}
	}
	return f, nil
}

// newSuffix ends the name of a socket that is not in its place yet.
const newSuffix = ".new"

func (m *Monitor) makePerl() (err error) {
	m.PerlDir, err = m.writePerl()
	return err
}

// writePerl writes the Perl side to a directory named by its content, so that
// zygotes of an older binary keep theirs.
func (m *Monitor) writePerl() (string, error) {
	files := make(map[string][]byte)
	sum := sha256.New()
	err := fs.WalkDir(perl.Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := perl.Files.ReadFile(path)
		if path == "sendmail" {
			path = "sbin/sendmail"
			text = []byte(strings.ReplaceAll(string(text), "__SOCKET__", m.Config.APISocket()))
		}
		files[path] = text
		fmt.Fprintf(sum, "%s\x00%d\x00%s", path, len(text), text)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the Perl files: %w", err)
	}
	dir := filepath.Join(m.Config.RunDir, "perl", hex.EncodeToString(sum.Sum(nil))[:12])
	for path, text := range files {
		mode := fs.FileMode(0o644)
		if path == "sbin/sendmail" {
			mode = 0o755
		}
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, mode)); err != nil {
			return "", fmt.Errorf("write the Perl files: %w", err)
		}
	}
	return dir, nil
}

func (m *Monitor) makeNamespaces() error {
	c := m.Config
	var maps []config.Range
	for _, r := range []config.Range{c.Accounts.Range, c.Accounts.Adopt} {
		if !r.Empty() {
			maps = append(maps, r)
		}
	}
	ns, notes, err := isolate.MakeNamespaces(maps, isolate.Options{
		Sendmail: filepath.Join(m.PerlDir, "sbin", "sendmail"),
		Hide:     []string{c.StateDir, c.LogDir, c.SitesDir()},
		Keep:     []string{c.CatalogueDir()},
	})
	if err != nil {
		return fmt.Errorf("make the tenants' namespaces: %w", err)
	}
	for _, note := range notes {
		m.log.Warn("wall not complete", keyCause, note)
	}
	if m.UserNS, err = take(ns.User); err != nil {
		return err
	}
	m.MountNS, err = take(ns.Mount)
	return err
}

// removeRunDir removes what we have made beneath RunDir, and RunDir where that
// was all.
func (m *Monitor) removeRunDir() error {
	c := m.Config
	var errs []error
	for _, path := range []string{c.APISocket(), c.ProxySocket(), c.SitesDir(), filepath.Join(c.RunDir, "perl")} {
		errs = append(errs, os.RemoveAll(path))
	}
	os.Remove(c.RunDir) // others may keep things there
	return errors.Join(errs...)
}

var (
	setName   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
	groupName = regexp.MustCompile(`^[a-z][a-z0-9._-]{0,60}$`)
	userName  = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
)

// maxSocketPath is what fits into a socket's address, in bytes.
const maxSocketPath = 107

// checkConfig refuses what the one who wrote the configuration down should
// not have let through: the monitor trusts nobody's check but its own.
func checkConfig(c *config.Config) error {
	invalid := func(format string, args ...any) error { return serai.Errorf(serai.Invalid, format, args...) }
	for name, path := range map[string]string{"stateDir": c.StateDir, "runDir": c.RunDir, "logDir": c.LogDir,
		"accounts.home": c.Accounts.Home, "libexec": c.Libexec} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsRune(path, 0) {
			return invalid("%s is %q: it must be an absolute path", name, path)
		}
	}
	for name, path := range map[string]string{"runDir": c.RunDir, "accounts.home": c.Accounts.Home} {
		for _, own := range []string{"/tmp", "/var/tmp", "/dev/shm"} {
			if strings.HasPrefix(path+"/", own+"/") {
				return serai.Errorf(serai.Invalid, "%s is %s, but tenants do not see the machine's %s", name, path, own).
					WithHint("use a directory beneath /run, /srv or /var/lib")
			}
		}
	}
	if longest := c.SiteSocket(1<<32-1) + newSuffix; len(longest) > maxSocketPath {
		return invalid("runDir %s is too long for the path of a socket: at most %d bytes", c.RunDir, maxSocketPath-len(longest)+len(c.RunDir))
	}
	if !groupName.MatchString(c.CgroupRoot) {
		return invalid("cgroupRoot %q is no name: small letters, digits, point and dash", c.CgroupRoot)
	}
	for _, name := range []string{c.Users.Daemon, c.Users.Proxy, c.Users.Admin} {
		if !userName.MatchString(name) {
			return invalid("users: %q is no name of an account", name)
		}
	}
	if c.Users.Daemon == c.Users.Proxy {
		return invalid("users: seraid and serai-proxy need different accounts")
	}
	for name := range c.Zygotes {
		if !setName.MatchString(name) || name == serai.PreloadNone {
			return invalid("zygotes: %q is no name for one", name)
		}
	}
	return checkRanges(c.Accounts)
}

func checkRanges(a config.Accounts) error {
	for name, r := range map[string]config.Range{"accounts.range": a.Range, "accounts.adopt": a.Adopt} {
		if !r.Empty() && (r.First < 1000 || r.Last < r.First || r.Last >= 1<<31 || r.Has(65534) || r.Has(65535)) {
			return serai.Errorf(serai.Invalid, "%s is %s: it must lie between 1000 and %d, without 65534 and 65535", name, r, uint32(1<<31-1))
		}
	}
	if a.Range.Empty() || a.Range.Last-a.Range.First < config.Reserved {
		return serai.Errorf(serai.Invalid, "accounts.range is %q: it needs more than %d uids", a.Range, config.Reserved)
	}
	if a.Range.Meets(a.Adopt) {
		return serai.Errorf(serai.Invalid, "accounts.range %s meets accounts.adopt %s", a.Range, a.Adopt)
	}
	return nil
}
