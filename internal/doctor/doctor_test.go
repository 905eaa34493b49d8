package doctor

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"serai.dev/serai/internal/config"
)

// TestMain is also a run without root.
func TestMain(m *testing.M) {
	if text := os.Getenv("DOCTOR_TEST_CONFIG"); text != "" {
		var cfg config.Config
		if err := json.Unmarshal([]byte(text), &cfg); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for _, f := range Check(&cfg) {
			fmt.Printf("%s|%s|%s|%s\n", f.Name, f.Level, f.What, f.Do)
		}
		return
	}
	os.Exit(m.Run())
}

// fit is a configuration that this machine is fit for.
func fit(t *testing.T) *config.Config {
	t.Helper()
	dir, err := os.MkdirTemp("/srv", "serai-test-e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	install(t, dir)
	return &config.Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), LogDir: filepath.Join(dir, "log"),
		CgroupRoot: "serai-test-e", Libexec: dir,
		Listen:   config.Listen{HTTP: []string{"127.0.0.1:0"}},
		Accounts: config.Accounts{Range: config.Range{First: 1900003400, Last: 1900003499}, Home: filepath.Join(dir, "homes")},
		Zygotes:  map[string]config.Zygote{"standard": {Modules: []string{"strict", "Time::HiRes"}}},
	}
}

// install puts programs into a directory.
func install(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"serai-priv", "seraid", "serai-proxy"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func find(t *testing.T, list []Finding, name string) Finding {
	t.Helper()
	for _, f := range list {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding %q", name)
	return Finding{}
}

func TestCheck(t *testing.T) {
	list := Check(fit(t))
	for _, f := range list {
		if f.What == "" || f.Level > Good && f.Level != Unknown && f.Do == "" {
			t.Errorf("%+v does not say enough", f)
		}
	}
	if f := find(t, list, "kernel"); f.Level != Good {
		t.Errorf("%+v", f)
	}
	if Worst(list) == Bad {
		t.Errorf("a fit machine: %+v", list)
	}
}

func TestFindings(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		name   string
		change func(*config.Config)
		level  Level
		what   string
	}{
		{"addresses", func(c *config.Config) { c.Listen.HTTP = []string{taken.Addr().String()} }, Bad, "in use"},
		{"addresses", func(c *config.Config) { c.Listen.HTTPS = []string{"192.0.2.1:443"} }, Bad, "192.0.2.1"},
		{"account ranges", func(c *config.Config) { c.Accounts.Range.First = 0 }, Bad, "below 1000"},
		{"homes", func(c *config.Config) { c.Accounts.Home = "/tmp/homes" }, Bad, "/tmp"},
		{"homes", func(c *config.Config) { c.Accounts.Home = filepath.Join(c.StateDir, "homes") }, Bad, "do not see"},
		{"homes", func(c *config.Config) { c.Accounts.Home = filepath.Join(c.Libexec, "closed", "homes") }, Bad, "pass through"},
		{"programs", func(c *config.Config) { c.Libexec = "/nonexistent" }, Bad, "/nonexistent/serai-priv is missing"},
		{"programs", func(c *config.Config) { c.Libexec = filepath.Join(c.Libexec, "closed") }, Bad, "closed is closed to them"},
		{"zygote modules", func(c *config.Config) {
			c.Zygotes["standard"] = config.Zygote{Modules: []string{"strict", "No::Such::Thing"}}
		}, Warn, "No::Such::Thing"},
		{"zygote modules", func(c *config.Config) { c.Zygotes = nil }, Good, "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := fit(t)
			if err := os.Mkdir(filepath.Join(cfg.Libexec, "closed"), 0o700); err != nil {
				t.Fatal(err)
			}
			install(t, filepath.Join(cfg.Libexec, "closed"))
			tt.change(cfg)
			for _, c := range checks {
				if c.name != tt.name {
					continue
				}
				if r := c.check(cfg); r.level != tt.level || !strings.Contains(r.what, tt.what) {
					t.Errorf("%+v, want %v with %q", r, tt.level, tt.what)
				}
			}
		})
	}
}

// Without root nothing is a problem that is none.
func TestWithoutRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root")
	}
	text, err := json.Marshal(fit(t))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/proc/self/exe")
	c.Dir = "/"
	c.Env = []string{"DOCTOR_TEST_CONFIG=" + string(text)}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1900003401, Gid: 1900003401}}
	out, err := c.CombinedOutput()
	if err != nil || strings.Count(string(out), "\n") != len(checks) {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Contains(string(out), "|problem|") {
		t.Errorf("%s", out)
	}
}

func TestDebianPackage(t *testing.T) {
	for module, want := range map[string]string{
		"CGI": "libcgi-pm-perl", "CGI::Cookie": "libcgi-pm-perl", "JSON::XS": "libjson-xs-perl", "Plack::Request": "libplack-perl",
		"HTTP::Entity::Parser": "libhttp-entity-parser-perl", "HTTP::Headers": "libhttp-message-perl", "DBD::SQLite": "libdbd-sqlite3-perl",
		"Dancer2::Plugin::X": "libdancer2-perl", "DBI": "libdbi-perl", "Moo": "libmoo-perl",
	} {
		if got := debianPackage(module); got != want {
			t.Errorf("debianPackage(%s) = %s, want %s", module, got, want)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-18-amd64": true, "5.14": true, "5.14.0": true, "5.13.9": false, "4.19": false, "10.0-rc1": true, "": false, "x.y": false,
	} {
		if got := atLeast(release, 5, 14); got != want {
			t.Errorf("atLeast(%q) = %v", release, got)
		}
	}
}
