package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	serai "serai.dev/serai"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/config"
)

const perlPath = "/usr/bin/perl"

func perl(*config.Config) result {
	out, err := runPerl("print $^V")
	if err != nil {
		return bad("apt-get install perl", "%s does not run: %v", perlPath, err)
	}
	return good("%s %s", perlPath, out)
}

func runPerl(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, perlPath, append([]string{"-e", program, "--"}, args...)...)
	c.Env = []string{"PATH=/usr/bin:/bin"}
	c.Dir = "/"
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		if line, _, _ := strings.Cut(said.String(), "\n"); line != "" {
			err = errors.New(line)
		}
		return "", err
	}
	return out.String(), nil
}

// findModules prints those of its arguments that are in no directory of @INC.
// They are not loaded: that is a zygote's business, and takes long.
const findModules = `for my $m (@ARGV) { (my $f = "$m.pm") =~ s{::}{/}g; print "$m\n" unless grep { -e "$_/$f" } @INC }`

func modules(cfg *config.Config) result {
	var wanted []string
	for _, z := range cfg.Zygotes {
		if z.OnDemand {
			continue
		}
		wanted = append(wanted, z.Modules...)
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if len(wanted) == 0 {
		return good("none are configured")
	}
	out, err := runPerl(findModules, wanted...)
	if err != nil {
		return bad("apt-get install perl", "%v", err)
	}
	missing := strings.Fields(out)
	if len(missing) == 0 {
		return good("%d, all installed", len(wanted))
	}
	var packages []string
	for _, m := range missing {
		packages = append(packages, debianPackage(m))
	}
	slices.Sort(packages)
	return warn("apt-get install "+strings.Join(slices.Compact(packages), " "),
		"not installed: %s (zygotes start without them)", strings.Join(missing, " "))
}

// perlPackages are Debian's packages that are not named by the rule.
var perlPackages = map[string]string{
	"CGI":                  "libcgi-pm-perl",
	"DBI":                  "libdbi-perl",
	"DBD::Pg":              "libdbd-pg-perl",
	"DBD::SQLite":          "libdbd-sqlite3-perl",
	"Template":             "libtemplate-perl",
	"LWP":                  "libwww-perl",
	"LWP::UserAgent":       "libwww-perl",
	"Mojolicious":          "libmojolicious-perl",
	"YAML::XS":             "libyaml-libyaml-perl",
	"GD":                   "libgd-perl",
	"URI":                  "liburi-perl",
	"Moose":                "libmoose-perl",
	"JSON":                 "libjson-perl",
	"DateTime":             "libdatetime-perl",
	"MIME::Lite":           "libmime-lite-perl",
	"Net::SSLeay":          "libnet-ssleay-perl",
	"Date::Parse":          "libtimedate-perl",
	"XML::LibXML":          "libxml-libxml-perl",
	"HTTP::Entity::Parser": "libhttp-entity-parser-perl",
}

// perlFamilies are packages that hold all modules beneath a name.
var perlFamilies = map[string]string{
	"CGI": "libcgi-pm-perl", "Plack": "libplack-perl", "Mojo": "libmojolicious-perl", "Dancer2": "libdancer2-perl",
	"HTTP": "libhttp-message-perl", "URI": "liburi-perl", "Template": "libtemplate-perl", "DBIx::Class": "libdbix-class-perl",
	"DateTime": "libdatetime-perl", "LWP": "libwww-perl", "Catalyst": "libcatalyst-perl",
}

// debianPackage is the Debian package of a Perl module: lib, the name with -
// for ::, -perl, but for those that go by another name.
func debianPackage(module string) string {
	if p, ok := perlPackages[module]; ok {
		return p
	}
	for name := module; ; {
		if p, ok := perlFamilies[name]; ok {
			return p
		}
		i := strings.LastIndex(name, "::")
		if i < 0 {
			break
		}
		name = name[:i]
	}
	return "lib" + strings.ToLower(strings.ReplaceAll(module, "::", "-")) + "-perl"
}

func tools(*config.Config) result {
	for _, name := range []string{"useradd", "userdel", "groupadd", "groupdel"} {
		if _, err := os.Stat(filepath.Join("/usr/sbin", name)); err != nil {
			return bad("apt-get install passwd", "/usr/sbin/%s is missing", name)
		}
	}
	return good("useradd and its kin are there")
}

func ranges(cfg *config.Config) result {
	if err := account.CheckRanges(cfg.Accounts); err != nil {
		return bad(serai.HintOf(err), "%s", serai.Message(err))
	}
	what := fmt.Sprintf("%v for new accounts", cfg.Accounts.Range)
	if !cfg.Accounts.Adopt.Empty() {
		what += fmt.Sprintf(", %v to adopt", cfg.Accounts.Adopt)
	}
	return good("%s: nobody else's", what)
}

func jobs(cfg *config.Config) result {
	open, err := account.JobsOpen(cfg.Accounts)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return unknown("the deny lists cannot be read")
	case err != nil:
		return bad("", "%v", err)
	case len(open) > 0:
		return warn("restart Serai: it denies them again", "not denied to %s", strings.Join(open, " "))
	}
	return good("closed to tenants' accounts")
}

// homes must be where tenants see them: their mount namespace has a /tmp of its own.
func homes(cfg *config.Config) result {
	home := filepath.Clean(cfg.Accounts.Home)
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev", "/proc", "/sys", filepath.Clean(cfg.StateDir), filepath.Clean(cfg.LogDir), cfg.SitesDir()} {
		if home == dir || strings.HasPrefix(home, dir+"/") {
			return bad("set accounts.home to another directory, as /srv/serai", "accounts.home %s lies beneath %s, which tenants do not see", home, dir)
		}
	}
	if dir := Closed(home); dir != "" {
		return bad("chmod o+x "+dir, "tenants cannot pass through %s to their homes in %s", dir, home)
	}
	return good("in %s", home)
}

// Closed is the part of an absolute path, the path itself among them, that is
// closed to accounts which do not own it; empty where there is none. Parts that
// do not exist are not looked at.
func Closed(path string) string {
	for ; ; path = filepath.Dir(path) {
		st, err := os.Stat(path)
		if err == nil && st.Mode().Perm()&0o001 == 0 {
			return path
		}
		if path == "/" || path == "." {
			return ""
		}
	}
}

func programs(cfg *config.Config) result {
	for _, name := range []string{"serai-priv", "seraid", "serai-proxy"} {
		path := filepath.Join(cfg.Libexec, name)
		st, err := os.Stat(path)
		switch {
		case err != nil:
			return bad("install all four programs, or set libexec", "%s is missing", path)
		case st.Mode()&0o111 == 0:
			return bad("chmod 755 "+path, "%s cannot be run", path)
		case st.Mode().Perm()&0o022 != 0:
			return bad("chmod 755 "+path, "%s can be changed by others", path)
		}
		if part := Closed(path); part != "" {
			return bad("install the programs where all accounts may run them", "our own accounts cannot run %s: %s is closed to them", path, part)
		}
	}
	return good("in %s", cfg.Libexec)
}

// addresses are those of the front proxy: free, or held by a running Serai.
func addresses(cfg *config.Config) result {
	if c, err := net.Dial("unix", cfg.APISocket()); err == nil {
		c.Close()
		return good("held by the Serai that runs")
	}
	list := slices.Concat(cfg.Listen.HTTP, cfg.Listen.HTTPS)
	for _, address := range list {
		l, err := net.Listen("tcp", address)
		switch {
		case errors.Is(err, unix.EACCES):
			return unknown("only root can tell about %s", address)
		case errors.Is(err, unix.EADDRINUSE):
			return bad("stop what listens there (ss -ltnp), or set listen", "%s is in use", address)
		case err != nil:
			return bad("set listen to an address of this machine", "%s: %v", address, errors.Unwrap(err))
		}
		l.Close()
	}
	return good("%s: free", strings.Join(list, " "))
}

func space(cfg *config.Config) result {
	const enough = 1 << 30 // bytes
	least := uint64(1 << 63)
	for _, dir := range []string{cfg.StateDir, cfg.LogDir, cfg.Accounts.Home} {
		var st unix.Statfs_t
		if err := unix.Statfs(existing(dir), &st); err != nil {
			return unknown("%s: %v", dir, err)
		}
		free := st.Bavail * uint64(st.Bsize)
		if free < enough || st.Files > 0 && st.Ffree < 10_000 {
			return warn("make room there", "%s has %d MiB and %d files left", dir, free>>20, st.Ffree)
		}
		least = min(least, free)
	}
	return good("%d GiB free for state, logs and homes", least>>30)
}

// existing is the directory, or the nearest above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// files: a sleeping site costs a descriptor, a running one about ten.
func files(*config.Config) result {
	const want = 65_536
	b, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return unknown("%v", err)
	}
	most, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return unknown("fs.nr_open: %v", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return unknown("%v", err)
	}
	if !isRoot() {
		most = limit.Max // root may raise it
	}
	switch {
	case most >= want:
		return good("up to %d a process", most)
	case !isRoot():
		return unknown("%d a process; root may raise it", most)
	}
	return warn("sysctl fs.nr_open=1048576", "only %d a process", most)
}
