package account

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	serai "serai.dev/serai"
	"serai.dev/serai/internal/config"
)

func TestCheckRanges(t *testing.T) {
	base := config.Accounts{Range: config.Range{First: 200000, Last: 200999}, Adopt: config.Range{First: 5000, Last: 5999}, Home: "/srv/serai"}
	with := func(change func(*config.Accounts)) config.Accounts {
		a := base
		change(&a)
		return a
	}
	const root = "root:x:0:0:root:/root:/bin/bash\n"
	for _, tt := range []struct {
		name     string
		accounts config.Accounts
		files    map[string]string
		err      string // empty is none
	}{
		{"nothing there", base, nil, ""},
		{"subuid beside", base, map[string]string{"subuid": "carol:100000:65536\ndave:201000:65536\n"}, ""},
		{"subuid meets", base, map[string]string{"subuid": "# note\ncarol:165536:65536\n"}, "subuid:2"},
		{"subuid within", base, map[string]string{"subuid": "carol:200500:1\n"}, "subuid:1"},
		{"subgid meets by its last", base, map[string]string{"subgid": "carol:100000:100001\n"}, "subgid:1"},
		{"subgid stops short", base, map[string]string{"subgid": "carol:100000:100000\n"}, ""},
		{"subuid meets adopt", base, map[string]string{"subuid": "carol:5999:10\n"}, "accounts.adopt 5000-5999 meets"},
		{"subuid overflows", base, map[string]string{"subuid": "carol:5:4294967295\n"}, "subuid:1"},
		{"subuid nonsense", base, map[string]string{"subuid": "carol\n:::\ncarol:x:y\n"}, ""},
		{"ours", base, map[string]string{
			"passwd": root + "alice:x:200000:200000:serai tenant:/srv/serai/alice:/usr/sbin/nologin\n",
			"group":  "alice:x:200000:\n"}, ""},
		{"another server's", base, map[string]string{
			"passwd": root + "alice:x:200000:200000:serai tenant:/srv/other/alice:/usr/sbin/nologin\n"}, "passwd:2"},
		{"foreign", base, map[string]string{"passwd": root + "eve:x:200001:100::/home/eve:/bin/sh\n"}, "account eve"},
		{"in the reserved ids", base, map[string]string{
			"passwd": root + "alice:x:200999:200999:serai tenant:/srv/serai/alice:/usr/sbin/nologin\n"}, "passwd:2"},
		{"adoptable", base, map[string]string{"passwd": root + "eve:x:5001:5001::/home/eve:/bin/sh\n"}, ""},
		{"foreign group", base, map[string]string{"group": "root:x:0:\nstaff:x:200003:\n"}, "group:2"},
		{"empty", with(func(a *config.Accounts) { a.Range = config.Range{} }), nil, "accounts.range"},
		{"small", with(func(a *config.Accounts) { a.Range.Last = a.Range.First + 5 }), nil, "fewer than 32"},
		{"turned round", with(func(a *config.Accounts) { a.Range = config.Range{First: 300000, Last: 200000} }), nil, "fewer than"},
		{"system", with(func(a *config.Accounts) { a.Adopt = config.Range{First: 500, Last: 5000} }), nil, "below 1000"},
		{"nobody", with(func(a *config.Accounts) { a.Range = config.Range{First: 60000, Last: 70000} }), nil, "nobody"},
		{"too high", with(func(a *config.Accounts) { a.Range.Last = 1 << 31 }), nil, "above 2147483647"},
		{"both", with(func(a *config.Accounts) { a.Adopt = config.Range{First: 199999, Last: 200000} }), nil, "share ids"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			etc := t.TempDir()
			for _, name := range []string{"passwd", "group"} {
				write(t, filepath.Join(etc, name), map[string]string{"passwd": root, "group": "root:x:0:\n"}[name])
			}
			for name, text := range tt.files {
				write(t, filepath.Join(etc, name), text)
			}
			err := checkRanges(tt.accounts, etc)
			switch {
			case tt.err == "" && err != nil:
				t.Errorf("checkRanges = %v", err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || serai.KindOf(err) == serai.Internal):
				t.Errorf("checkRanges = %v, want one with %q", err, tt.err)
			}
		})
	}
}

func TestCheckAdopt(t *testing.T) {
	a := config.Accounts{Range: config.Range{First: 200000, Last: 200999}, Adopt: config.Range{First: 5000, Last: 5999}}
	eve := Info{Name: "eve", UID: 5001, GID: 5001, Home: "/home/eve"}
	with := func(change func(*Info)) Info {
		i := eve
		change(&i)
		return i
	}
	users := []passwdLine{{eve, 1}, {with(func(i *Info) { i.Name, i.UID = "twin", 5002 }), 2}, {with(func(i *Info) { i.Name, i.UID = "twin2", 5002 }), 3}}
	for _, tt := range []struct {
		info Info
		kind serai.Kind
		ok   bool
	}{
		{eve, 0, true},
		{with(func(i *Info) { i.UID = 0 }), serai.Denied, false},
		{with(func(i *Info) { i.UID = 200000 }), serai.Denied, false},
		{with(func(i *Info) { i.GID = 100 }), serai.Denied, false},
		{with(func(i *Info) { i.Home = "/" }), serai.Invalid, false},
		{with(func(i *Info) { i.Home = "" }), serai.Invalid, false},
		{users[1].Info, serai.Conflict, false},
	} {
		err := checkAdopt(a, tt.info, users)
		if tt.ok != (err == nil) || !tt.ok && serai.KindOf(err) != tt.kind {
			t.Errorf("checkAdopt(%+v) = %v", tt.info, err)
		}
	}
	if err := checkAdopt(config.Accounts{}, eve, nil); serai.KindOf(err) != serai.Denied {
		t.Errorf("without a range: %v", err)
	}
}

func TestJobs(t *testing.T) {
	for _, tt := range []struct {
		name           string
		before, denied map[string]string
	}{
		{"no file", nil, map[string]string{"cron.deny": header + "\nalice\nbob\n"}},
		{"cron.deny", map[string]string{"cron.deny": "eve\n"}, map[string]string{"cron.deny": "eve\nalice\nbob\n"}},
		{"cron.deny without newline", map[string]string{"cron.deny": "eve"}, map[string]string{"cron.deny": "eve\nalice\nbob\n"}},
		{"cron.allow", map[string]string{"cron.allow": "root\n"}, map[string]string{"cron.allow": "root\n"}},
		{"at.deny", map[string]string{"cron.allow": "", "at.deny": "www-data\n"},
			map[string]string{"cron.allow": "", "at.deny": "www-data\nalice\nbob\n"}},
		{"at.allow", map[string]string{"cron.allow": "", "at.allow": "root\n", "at.deny": "x\n"},
			map[string]string{"cron.allow": "", "at.allow": "root\n", "at.deny": "x\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			etc := t.TempDir()
			for name, text := range tt.before {
				write(t, filepath.Join(etc, name), text)
			}
			files := jobFiles(etc)
			for _, name := range []string{"alice", "bob", "alice"} {
				if err := files.deny(name); err != nil {
					t.Fatal(err)
				}
			}
			same(t, etc, tt.denied)
			for _, name := range []string{"alice", "bob", "alice"} {
				if err := files.forget(name); err != nil {
					t.Fatal(err)
				}
			}
			before := map[string]string{}
			for name, text := range tt.before {
				if name == "cron.deny" {
					text = "eve\n" // the newline that was missing stays
				}
				before[name] = text
			}
			same(t, etc, before)
		})
	}
}

// same compares a directory's files, but for the lock.
func same(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name() == ".pwd.lock" })
	if len(entries) != len(want) {
		t.Errorf("files %v, want %v", entries, want)
	}
	for name, text := range want {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != text {
			t.Errorf("%s = %q, %v; want %q", name, b, err, text)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Whatever the files say, what is read has a place, and no line is invented.
func FuzzReadFiles(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/bash\nalice:100000:65536\nstaff:x:50:a,b\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, text)
		lines := strings.Count(text, "\n") + 1
		users, _ := readPasswd(path)
		for _, u := range users {
			if u.line < 1 || u.line > lines {
				t.Errorf("line %d of %d", u.line, lines)
			}
		}
		subs, _ := readSub(path)
		for _, s := range subs {
			if s.ids.First > s.ids.Last || s.line < 1 || s.line > lines {
				t.Errorf("range %+v in %q", s, text)
			}
		}
	})
}
