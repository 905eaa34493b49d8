package manifest

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"serai.dev/serai/internal/config"
)

func TestLoadConfig(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		flags      map[string]string
		want       func(*config.Config)
		err        []string
	}{
		{name: "empty"},
		{name: "comments", text: "# nothing\n---\n"},
		{
			name: "all",
			text: `
stateDir: /s
runDir: /r
logDir: /l
cgroupRoot: two
libexec: /x
listen: {http: [127.0.0.1:8080, ":81"], https: []}
accounts: {range: 2000000000-2000000999, adopt: 1000-1999, prefix: s-, home: /h}
users: {daemon: a, proxy: b, admin: c}
mail: {relay: "[::1]:2525"}
zygotes:
  extra: {modules: [CGI]}
  standard: {restart: 1h}
  dancer2: {onDemand: false}
ports: {range: 20000-29999}
metrics: {socket: m.sock}
meter: {interval: 20s}
acme: {email: a@example.net, directory: https://ca.example/dir, ca: /etc/ca.pem}
`,
			want: func(c *config.Config) {
				c.StateDir, c.RunDir, c.LogDir, c.CgroupRoot, c.Libexec = "/s", "/r", "/l", "two", "/x"
				c.Listen = config.Listen{HTTP: []string{"127.0.0.1:8080", ":81"}, HTTPS: []string{}}
				c.Accounts = config.Accounts{Range: config.Range{First: 2000000000, Last: 2000000999}, Adopt: config.Range{First: 1000, Last: 1999}, Prefix: "s-", Home: "/h"}
				c.Users = config.Users{Daemon: "a", Proxy: "b", Admin: "c"}
				c.Mail.Relay = "[::1]:2525"
				c.Zygotes["extra"] = config.Zygote{Modules: []string{"CGI"}, Restart: 24 * time.Hour}
				c.Zygotes["standard"] = config.Zygote{Modules: c.Zygotes["standard"].Modules, Restart: time.Hour}
				c.Zygotes["dancer2"] = config.Zygote{Modules: append(slices.Clone(c.Zygotes["standard"].Modules), "Dancer2"), Restart: 24 * time.Hour}
			},
		},
		{
			name: "flags win", text: "runDir: /r\nlisten: {http: [\"[::]:80\"]}",
			flags: map[string]string{"runDir": "/flag", "listen.http": "127.0.0.1:1, 127.0.0.1:2", "accounts.prefix": "x"},
			want: func(c *config.Config) {
				c.RunDir, c.Listen.HTTP, c.Accounts.Prefix = "/flag", []string{"127.0.0.1:1", "127.0.0.1:2"}, "x"
			},
		},
		{
			name:  "wrong flags",
			flags: map[string]string{"rundir": "/x", "listen.http": "", "zygotes.*.restart": "1h", "zygotes": "x", "stateDir": "x", "accounts.range": "1-5", "mail.relay": "a", "listen.https": "a:1"},
			err: []string{
				"--accounts.range: \"1-5\" holds uids below 1000, which are the system's own: write a range above",
				"--accounts.range: \"1-5\" is too small: write at least 17 numbers, 16 of them are our own",
				"--listen.http: is empty: write a list such as [\"[::]:80\"]",
				"--listen.https: \"a:1\" is no address to listen on: write one such as 127.0.0.1:8080 or [::]:80",
				"--mail.relay: \"a\" is no host with a port: write one such as localhost:25",
				"--rundir: is no setting: see the table in docs/reference/manifests.md",
				"--stateDir: \"x\" is not an absolute path: write one such as /var/lib/serai",
				"--zygotes: is no setting: see the table in docs/reference/manifests.md",
				"--zygotes.*.restart: is no setting: see the table in docs/reference/manifests.md",
			},
		},
		{
			name: "wrong",
			text: `rundir: /x
stateDir: /a/../b
logDir: /
listen: {http: [80, "[::]:99999", "localhost:80", "::1:80"]}
accounts: {range: 5-1, adopt: 65000-66000, prefix: 9, home: home}
users: {proxy: serai, admin: "a b"}
mail: localhost
zygotes: {none: {modules: [x]}, a: {}, b: {modules: [a-b, CGI, CGI], restart: 1s}}
ports: {range: x}
meter: {interval: 1}
`,
			err: []string{
				`serai.yaml:1:1: rundir: unknown field, did you mean runDir?`,
				`serai.yaml:2:11: stateDir: "/a/../b" is a roundabout path: write "/b"`,
				`serai.yaml:3:9: logDir: "/" is the whole machine: write a directory such as /var/lib/serai`,
				`serai.yaml:4:17: listen.http[0]: "80" is no address to listen on: write one such as 127.0.0.1:8080 or [::]:80`,
				`serai.yaml:4:21: listen.http[1]: "[::]:99999" has no port that can be used: write a number of 1 to 65535 after the last colon`,
				`serai.yaml:4:35: listen.http[2]: "localhost:80" is no address to listen on: write one such as 127.0.0.1:8080 or [::]:80`,
				`serai.yaml:4:51: listen.http[3]: "::1:80" is no address to listen on: write one such as 127.0.0.1:8080 or [::]:80`,
				`serai.yaml:5:19: accounts.range: "5-1" ends before it starts: write the smaller number first`,
				`serai.yaml:5:31: accounts.adopt: "65000-66000" holds 65534 or 65535, which stand for nobody: write a range without them`,
				`serai.yaml:5:52: accounts.prefix: "9" is not a prefix: write up to 16 of a-z, 0-9 and -, a letter first`,
				`serai.yaml:5:61: accounts.home: "home" is not an absolute path: write one such as /var/lib/serai`,
				`serai.yaml:6:16: users.proxy: is the same account as users.daemon: write another one, for the proxy must not reach the store`,
				`serai.yaml:6:30: users.admin: "a b" is not an account: write a name such as serai-proxy`,
				`serai.yaml:7:7: mail: is "localhost": write {relay: …}`,
				`serai.yaml:8:11: zygotes.none: "none" is what a site writes that wants no zygote: write another name`,
				`serai.yaml:8:33: zygotes.a.modules: is missing: write [CGI, JSON::PP]`,
				`serai.yaml:8:54: zygotes.b.modules[0]: "a-b" is not a module: write a Perl module such as Plack::Request`,
				`serai.yaml:8:64: zygotes.b.modules[2]: "CGI" is in the list twice: keep one of them`,
				`serai.yaml:8:79: zygotes.b.restart: "1s" is out of bounds: write a duration of 1m to 8760h`,
				`serai.yaml:9:16: ports.range: "x" is not a range: write two numbers such as 1900000000-1900099999`,
				`serai.yaml:10:19: meter.interval: "1" is not a duration: write a number with ms, s, m or h, such as 10s`,
			},
		},
		{
			name: "at odds", text: "stateDir: /x\nrunDir: /" + strings.Repeat("r", 90) + "\nlogDir: /x\naccounts: {range: 2000-3000, adopt: 3000-4294967295}\n---\nstateDir: /y\n",
			err: []string{
				`serai.yaml:2:9: runDir: is 91 bytes long: write at most 85, for sockets beneath it have longer paths`,
				`serai.yaml:3:9: logDir: is the same directory as stateDir: write another one`,
				`serai.yaml:4:37: accounts.adopt: "3000-4294967295" holds 65534 or 65535, which stand for nobody: write a range without them`,
				`serai.yaml:4:37: accounts.adopt: "3000-4294967295" meets accounts.range, 2000-3000: write a range apart from it`,
				`serai.yaml:6:1: is a second document: a configuration is one, put all into the first`,
			},
		},
		{
			name: "no YAML", text: "runDir: [\n",
			err: []string{`serai.yaml:1:1: is no YAML, here or on the line before: did not find expected node content`},
		},
		{
			name: "a list", text: "- runDir",
			err: []string{`serai.yaml:1:1: is a list: write {stateDir: …, runDir: …, logDir: …, cgroupRoot: …, libexec: …, listen: …, accounts: …, users: …, mail: …, accessLog: …, zygotes: …, ports: …, metrics: …, meter: …, acme: …}`},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ps := LoadConfig(File{"serai.yaml", []byte(tt.text)}, tt.flags)
			var lines []string
			for _, p := range ps {
				lines = append(lines, p.String())
			}
			if !slices.Equal(lines, tt.err) {
				t.Fatalf("problems:\n%s", Diff(strings.Join(tt.err, "\n"), strings.Join(lines, "\n")))
			}
			if tt.err != nil {
				if got != nil {
					t.Error("a wrong configuration is returned")
				}
				return
			}
			want := DefaultConfig()
			if tt.want != nil {
				tt.want(want)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestUnused(t *testing.T) {
	ps := Unused(File{"c", []byte("acme: {email: a@b}\nrunDir: /x\nlisten: {https: [\":443\"]}\nports: {range: 1-2}")})
	var paths []string
	for _, p := range ps {
		paths = append(paths, p.Path)
	}
	if want := []string{"acme.email", "listen.https", "ports.range"}; !slices.Equal(paths, want) {
		t.Errorf("got %q, want %q", paths, want)
	}
}

// FuzzConfig: every problem has a position; a configuration without one
// survives the way to the other processes.
func FuzzConfig(f *testing.F) {
	f.Add([]byte("runDir: /x\nzygotes: {standard: {restart: 1h}, b: {modules: [CGI]}}"), "listen.http", "127.0.0.1:80")
	f.Add([]byte("accounts: {range: 5000-6000, adopt: \"\"}"), "accounts.range", "1-2")
	f.Add([]byte("a: *a\n---\n"), "zygotes", "")
	f.Fuzz(func(t *testing.T, text []byte, path, value string) {
		c, ps := LoadConfig(File{"f", text}, map[string]string{path: value})
		if len(ps) > 0 {
			positioned(t, slices.DeleteFunc(ps, func(p Problem) bool { return strings.HasPrefix(p.File, "--") }), text)
			if c != nil {
				t.Fatal("a configuration beside problems")
			}
			return
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var again config.Config
		if err := json.Unmarshal(out, &again); err != nil || !reflect.DeepEqual(c, &again) {
			t.Fatalf("%v, %+v is read back as %+v", err, c, again)
		}
		for _, name := range slices.Sorted(maps.Keys(c.Zygotes)) {
			if z := c.Zygotes[name]; len(z.Modules) == 0 || z.Restart <= 0 {
				t.Fatalf("zygote %s is %+v", name, z)
			}
		}
		if c.Accounts.Range.Meets(c.Accounts.Adopt) || c.Accounts.Tenant(c.Accounts.ZygoteUID()) || len(c.SiteSocket(1<<32-1)) > 107 {
			t.Fatalf("accounts %+v, run directory %q", c.Accounts, c.RunDir)
		}
	})
}
