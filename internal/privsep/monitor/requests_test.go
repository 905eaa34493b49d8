package monitor

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/privsep"
)

const testUID = 1900002001

func testConfig(dir string) *config.Config {
	return &config.Config{
		StateDir: dir + "/state", RunDir: dir + "/run", LogDir: dir + "/log", CgroupRoot: "serai-test-d",
		Accounts: config.Accounts{Range: config.Range{First: 1900002000, Last: 1900002099},
			Adopt: config.Range{First: 1900002200, Last: 1900002299}, Home: dir + "/home"},
		Users:   config.Users{Daemon: "serai-test-d", Proxy: "serai-test-d-p", Admin: "serai-test-d-a"},
		Zygotes: map[string]config.Zygote{"standard": {}},
		Libexec: dir + "/libexec",
	}
}

// deskMonitor is one that has peers and records, but has started nothing.
func deskMonitor(t *testing.T) (*Monitor, map[string]int) {
	t.Helper()
	m, err := newMonitor(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m.state = state{
		Version: stateVersion,
		Config:  testConfig("/nowhere"),
		Peers:   make(map[string]*peer),
		Zygotes: make(map[string]*zygote),
		Tenants: make(map[uint32]*tenant),
		Sites:   make(map[uint32]*site),
	}
	ends := make(map[string]int)
	for _, name := range []string{seraid, proxy} {
		ours, theirs, err := packetPair()
		if err != nil {
			t.Fatal(err)
		}
		m.Peers[name] = &peer{Name: name, Gen: 1, Sock: fd(ours)}
		ends[name] = theirs
	}
	a := &tenant{Tenant: privsep.Tenant{UID: testUID}, Home: "/nowhere/home", sites: make(map[uint32]*site)}
	b := &tenant{Tenant: privsep.Tenant{UID: testUID + 1}, sites: make(map[uint32]*site), Dropped: []waiter{{}}}
	m.Tenants[a.UID], m.Tenants[b.UID] = a, b
	s := &site{Record: privsep.Launch{Site: 1, UID: testUID, Root: "shop", Zygote: "standard", Files: []string{"public"}}, tenant: a}
	off := &site{Record: privsep.Launch{Site: 2, UID: testUID, Off: true}, tenant: a}
	leaving := &site{Record: privsep.Launch{Site: 3, UID: testUID}, tenant: a, Dropping: true}
	full := &site{Record: privsep.Launch{Site: 4, UID: testUID}, tenant: a}
	for n := range int64(maxTasks) {
		full.Over = append(full.Over, privsep.TaskEvent{Task: n + 1})
	}
	for _, s := range []*site{s, off, leaving, full} {
		m.Sites[s.Record.Site] = s
		a.sites[s.Record.Site] = s
	}
	t.Cleanup(func() {
		m.eachFD((*fd).close)
		unix.Close(m.poll.fd)
		for _, end := range ends {
			unix.Close(end)
		}
	})
	return m, ends
}

// Every request refuses what is not within its bounds, and drops a peer that
// is not itself.
func TestRequestsRefuse(t *testing.T) {
	m, ends := deskMonitor(t)
	site := func(n uint32) any { return privsep.SiteRef{Site: n} }
	launch := func(change func(*privsep.Launch)) any {
		l := privsep.Launch{Site: 9, UID: testUID, Root: "shop", Zygote: "standard"}
		change(&l)
		return l
	}
	const breach = "breach"
	for _, tt := range []struct {
		name, from, op string
		args           any
		files          int
		want           string // kind or breach
	}{
		{"unknown op", seraid, "become-root", nil, 0, breach},
		{"empty op", seraid, "", nil, 0, breach},
		{"unknown field", seraid, privsep.OpStop, map[string]any{"site": 1, "path": "/etc"}, 0, breach},
		{"wrong type", seraid, privsep.OpStop, map[string]any{"site": "1"}, 0, breach},
		{"negative number", seraid, privsep.OpStop, map[string]any{"site": -1}, 0, breach},
		{"list for arguments", seraid, privsep.OpStop, []int{1}, 0, breach},
		{"arguments for none", seraid, privsep.OpState, site(1), 0, breach},
		{"descriptor unasked", seraid, privsep.OpState, nil, 1, breach},
		{"two descriptors", seraid, privsep.OpSetRoutes, nil, 2, breach},
		{"no descriptor", seraid, privsep.OpSetRoutes, nil, 0, breach},
		{"routes not sealed", seraid, privsep.OpSetRoutes, nil, 1, "invalid"},

		{"account below the range", seraid, privsep.OpCreateAccount, privsep.CreateAccount{UID: 0, Name: "root"}, 0, "denied"},
		{"account above the range", seraid, privsep.OpCreateAccount, privsep.CreateAccount{UID: 1900002100, Name: "x"}, 0, "denied"},
		{"account of the zygote", seraid, privsep.OpCreateAccount, privsep.CreateAccount{UID: 1900002099, Name: "x"}, 0, "denied"},
		{"account reserved", seraid, privsep.OpCreateAccount, privsep.CreateAccount{UID: 1900002084, Name: "x"}, 0, "denied"},
		{"account to be adopted", seraid, privsep.OpCreateAccount, privsep.CreateAccount{UID: 1900002200, Name: "x"}, 0, "denied"},
		{"account with a path", seraid, privsep.OpCreateAccount, privsep.CreateAccount{UID: testUID, Name: "../x"}, 0, "invalid"},
		{"account with an option", seraid, privsep.OpCreateAccount, privsep.CreateAccount{UID: testUID, Name: "-rf"}, 0, "invalid"},
		{"account with a line", seraid, privsep.OpCreateAccount, privsep.CreateAccount{UID: testUID, Name: "a\nb:x:0:0"}, 0, "invalid"},
		{"adopt root", seraid, privsep.OpLookupAccount, privsep.LookupAccount{Name: "root"}, 0, "invalid denied"},
		{"adopt daemon", seraid, privsep.OpLookupAccount, privsep.LookupAccount{Name: "daemon"}, 0, "invalid denied"},
		{"adopt nobody there", seraid, privsep.OpLookupAccount, privsep.LookupAccount{Name: "no-such-account"}, 0, "not found"},
		{"adopt nothing", seraid, privsep.OpLookupAccount, privsep.LookupAccount{}, 0, "invalid"},
		{"remove root", seraid, privsep.OpRemoveAccount, privsep.RemoveAccount{UID: 0, Purge: true}, 0, "denied"},
		{"remove adopted", seraid, privsep.OpRemoveAccount, privsep.RemoveAccount{UID: 1900002200}, 0, "denied"},
		{"remove under a tenant", seraid, privsep.OpRemoveAccount, privsep.RemoveAccount{UID: testUID}, 0, "conflict"},

		{"tenant root", seraid, privsep.OpSetTenant, privsep.Tenant{UID: 0}, 0, "denied"},
		{"tenant of the host", seraid, privsep.OpSetTenant, privsep.Tenant{UID: 1000}, 0, "denied"},
		{"tenant is the zygote", seraid, privsep.OpSetTenant, privsep.Tenant{UID: 1900002099}, 0, "denied"},
		{"tenant without account", seraid, privsep.OpSetTenant, privsep.Tenant{UID: 1900002050}, 0, "not found"},
		{"tenant with a negative limit", seraid, privsep.OpSetTenant, privsep.Tenant{UID: testUID, Memory: -1}, 0, "invalid"},
		{"tenant being dropped", seraid, privsep.OpSetTenant, privsep.Tenant{UID: testUID + 1}, 0, "conflict"},
		{"drop root", seraid, privsep.OpDropTenant, privsep.TenantRef{UID: 0}, 0, "not found"},

		{"site of nobody", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.UID = 0 }), 0, "not found"},
		{"site of one being dropped", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.UID = testUID + 1 }), 0, "conflict"},
		{"site 0", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Site = 0 }), 0, "invalid"},
		{"launch below 0", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Launch = -1 }), 0, "invalid"},
		{"unknown zygote", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Zygote = "../x" }), 0, "invalid"},
		{"absolute root", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Root = "/etc" }), 0, "invalid"},
		{"root that climbs", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Root = "../bob" }), 0, "invalid"},
		{"root that is not clean", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Root = "a/../b" }), 0, "invalid"},
		{"root with NUL", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Root = "a\x00b" }), 0, "invalid"},
		{"no root", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Root = "" }), 0, "invalid"},
		{"files that climb", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Files = []string{"public", "../../etc"} }), 0, "invalid"},
		{"too many files", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Files = make([]string, maxFiles+1) }), 0, "invalid"},
		{"block too large", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Block = make([]byte, privsep.MaxBlock+1) }), 0, "invalid"},
		{"site being dropped", seraid, privsep.OpSetSite, launch(func(l *privsep.Launch) { l.Site = 3 }), 0, "conflict"},
		{"launch of none", seraid, privsep.OpLaunch, site(7), 0, "not found"},
		{"launch of a stopped one", seraid, privsep.OpLaunch, site(2), 0, "conflict"},
		{"launch of one being dropped", seraid, privsep.OpLaunch, site(3), 0, "not found"},
		{"stop of none", seraid, privsep.OpStop, site(7), 0, "not found"},
		{"drop of none", seraid, privsep.OpDropSite, site(7), 0, "not found"},
		{"logs of none", seraid, privsep.OpLogs, site(7), 0, "not found"},
		{"logs of one asleep", seraid, privsep.OpLogs, site(1), 0, "unavailable"},

		{"task of none", seraid, privsep.OpRun, privsep.Task{Site: 7, Task: 1}, 0, "not found"},
		{"task without a number", seraid, privsep.OpRun, privsep.Task{Site: 1}, 0, "invalid"},
		{"task of a stopped one", seraid, privsep.OpRun, privsep.Task{Site: 2, Task: 1}, 0, "conflict"},
		{"task of one being dropped", seraid, privsep.OpRun, privsep.Task{Site: 3, Task: 1}, 0, "not found"},
		{"task too large", seraid, privsep.OpRun, privsep.Task{Site: 1, Task: 1, Block: make([]byte, privsep.MaxBlock+1)}, 0, "invalid"},
		{"task that is there", seraid, privsep.OpRun, privsep.Task{Site: 4, Task: 1}, 0, "conflict"},
		{"one task too many", seraid, privsep.OpRun, privsep.Task{Site: 4, Task: 1000}, 0, "unavailable"},
		{"end of no task", seraid, privsep.OpEndTask, privsep.EndTask{Site: 1, Task: 1}, 0, "not found"},
		{"end with a long grace", seraid, privsep.OpEndTask, privsep.EndTask{Site: 4, Task: 1, GraceMs: 1 << 40}, 0, "invalid"},

		{"routes before any", proxy, privsep.OpRoutes, nil, 0, "not found"},
		{"files of none", proxy, privsep.OpFiles, privsep.FilesRef{Site: 7}, 0, "not found"},
		{"files below 0", proxy, privsep.OpFiles, privsep.FilesRef{Site: 1, Index: -1}, 0, "not found"},
		{"files above", proxy, privsep.OpFiles, privsep.FilesRef{Site: 1, Index: 1}, 0, "not found"},
		{"listener of none", proxy, privsep.OpCheckListener, site(7), 0, "not found"},
		{"kill for none", proxy, privsep.OpKillWorker, privsep.WorkerRef{Site: 7, PID: 4000000}, 0, "not found"},
		{"kill init", proxy, privsep.OpKillWorker, privsep.WorkerRef{Site: 1, PID: 1}, 0, "invalid"},
		{"kill all", proxy, privsep.OpKillWorker, privsep.WorkerRef{Site: 1, PID: -1}, 0, "invalid"},
		{"ask init to leave", proxy, privsep.OpKillWorker, privsep.KillWorker{WorkerRef: privsep.WorkerRef{Site: 1, PID: 1}, Ask: true}, 0, "invalid"},
		{"size of none", seraid, privsep.OpSize, privsep.WorkerRef{Site: 7, PID: 4000000}, 0, "not found"},
		{"size of init", seraid, privsep.OpSize, privsep.WorkerRef{Site: 1, PID: 1}, 0, "invalid"},
		{"ask for none", proxy, privsep.OpAskWorker, privsep.WorkerRef{Site: 7, PID: 4000000}, 0, "not found"},
		{"ask init", proxy, privsep.OpAskWorker, privsep.WorkerRef{Site: 1, PID: 1}, 0, "invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, msg := ask(t, m, ends, tt.from, tt.op, tt.args, tt.files)
			if !strings.Contains(tt.want, got) || got == "" {
				t.Errorf("%s %s: %q (%s), want %q", tt.op, tt.name, got, msg, tt.want)
			}
			if msg == "internal error" {
				t.Error("the refusal says nothing")
			}
		})
	}
}

// Each request belongs to one peer: from the other one it is a breach.
func TestRequestsFromTheOther(t *testing.T) {
	m, ends := deskMonitor(t)
	other := map[string]string{seraid: proxy, proxy: seraid}
	for op, rule := range requests {
		if got, _ := ask(t, m, ends, other[rule.from], op, nil, rule.files); got != "breach" {
			t.Errorf("%s from %s: %q, want a breach", op, other[rule.from], got)
		}
	}
}

// ask serves one request and returns the kind of the refusal, "breach", or "".
func ask(t *testing.T, m *Monitor, ends map[string]int, from, op string, args any, files int) (kind, msg string) {
	t.Helper()
	r := privsep.Request{ID: 5, Op: op}
	if args != nil {
		text, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		r.Args = text
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var passed []int
	for range files {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		n, err := take(f)
		if err != nil {
			t.Fatal(err)
		}
		passed = append(passed, int(n))
	}
	err = m.serve(m.Peers[from], text, passed)
	for _, n := range passed {
		if _, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil {
			t.Errorf("descriptor %d was left open", n)
		}
	}
	if errors.Is(err, privsep.ErrBreach) {
		return "breach", err.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	packet, got, err := privsep.Receive(ends[from], make([]byte, privsep.MaxPacket+1), make([]byte, privsep.ControlSize))
	if err != nil {
		t.Fatal(err)
	}
	privsep.CloseAll(got)
	var reply privsep.Reply
	if err := json.Unmarshal(packet, &reply); err != nil || reply.ID != 5 {
		t.Fatalf("%s: %v", packet, err)
	}
	if reply.Error == nil {
		return "", string(reply.Body)
	}
	return reply.Error.Kind, reply.Error.Msg
}

func TestCheckConfig(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*config.Config)
	}{
		{"relative path", func(c *config.Config) { c.RunDir = "run" }},
		{"path not clean", func(c *config.Config) { c.StateDir = "/var/../etc" }},
		{"runDir in /tmp", func(c *config.Config) { c.RunDir = "/tmp/serai" }},
		{"homes in /dev/shm", func(c *config.Config) { c.Accounts.Home = "/dev/shm" }},
		{"root directory", func(c *config.Config) { c.LogDir = "/" }},
		{"long runDir", func(c *config.Config) { c.RunDir = "/" + strings.Repeat("x", 90) }},
		{"cgroup path", func(c *config.Config) { c.CgroupRoot = "a/b" }},
		{"cgroup above", func(c *config.Config) { c.CgroupRoot = ".." }},
		{"no user", func(c *config.Config) { c.Users.Proxy = "" }},
		{"one user for both", func(c *config.Config) { c.Users.Proxy = c.Users.Daemon }},
		{"zygote named none", func(c *config.Config) { c.Zygotes = map[string]config.Zygote{"none": {}} }},
		{"zygote with a path", func(c *config.Config) { c.Zygotes = map[string]config.Zygote{"../x": {}} }},
		{"no range", func(c *config.Config) { c.Accounts.Range = config.Range{} }},
		{"range too small", func(c *config.Config) { c.Accounts.Range.Last = c.Accounts.Range.First + 15 }},
		{"range with system users", func(c *config.Config) { c.Accounts.Range.First = 100 }},
		{"range over nobody", func(c *config.Config) { c.Accounts.Range = config.Range{First: 60000, Last: 70000} }},
		{"range turned around", func(c *config.Config) { c.Accounts.Adopt = config.Range{First: 3000, Last: 2000} }},
		{"ranges that meet", func(c *config.Config) { c.Accounts.Adopt = c.Accounts.Range }},
		{"range too high", func(c *config.Config) { c.Accounts.Adopt = config.Range{First: 1 << 31, Last: 1<<31 + 5} }},
	} {
		c := testConfig("/nowhere")
		if err := checkConfig(c); err != nil {
			t.Fatal(err)
		}
		tt.change(c)
		if err := checkConfig(c); serai.KindOf(err) != serai.Invalid {
			t.Errorf("%s: %v, want a refusal", tt.name, err)
		}
	}
}
