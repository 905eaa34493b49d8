package engine

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

func shop() *serai.Site {
	s := &serai.Site{Meta: serai.Meta{Name: "shop", Tenant: "alice", ID: 7}}
	s.Spec = serai.SiteSpec{Root: "shop", Engine: "perl", Perl: &serai.Perl{App: "app.psgi"}, Workers: serai.DefaultWorkers()}
	s.Status.Launch = 3
	return s
}

var alice = &serai.Tenant{Status: serai.TenantStatus{UID: 1900006001}}

// pairs reads a block as the site's process does: (N/a*)*.
func pairs(t *testing.T, block []byte) []string {
	t.Helper()
	var out []string
	for len(block) > 0 {
		n := binary.BigEndian.Uint32(block)
		out = append(out, string(block[4:4+n]))
		block = block[4+n:]
	}
	if len(out)%2 != 0 {
		t.Fatalf("%d fields are no pairs", len(out))
	}
	return out
}

func TestLaunch(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*serai.Site)
		err    string
		zygote string
		files  []string
		block  string
	}{
		{name: "app", change: func(*serai.Site) {}, zygote: "standard",
			block: "site alice/shop app app.psgi min 0 max 4 idle 300000 requests 1000 size 0 slow 0"},
		{name: "everything", change: func(s *serai.Site) {
			s.Spec.Perl = &serai.Perl{Scripts: map[string]string{"/cgi-bin": "cgi", "/a": "b"}, Startup: "start.pl", Inc: []string{"lib", "a"}, Preload: "none",
				Persistent: new(false), PerRequest: []string{"cgi/old.cgi"}}
			s.Spec.Env = map[string]string{"B": "2=3", "A": "1"}
			s.Spec.Files = map[string]string{"/static": "public", "/": "docs"}
			s.Spec.Workers = serai.Workers{Min: 1, Max: 2, Idle: serai.Duration(90e6), Requests: 0, Size: 64 << 20, Slow: serai.Duration(2e9)}
		}, zygote: "none", files: []string{"docs", "public"},
			block: "site alice/shop script /a\x00b script /cgi-bin\x00cgi persistent 0 per-request cgi/old.cgi startup start.pl inc lib inc a env A=1 env B=2=3 min 1 max 2 idle 90 requests 0 size 67108864 slow 2000"},
		{name: "no engine", change: func(s *serai.Site) { s.Spec.Engine = "cobol" }, err: `there is no engine "cobol": use one of perl`},
		{name: "no code", change: func(s *serai.Site) { s.Spec.Perl.App = "" }, err: "write either app or scripts"},
		{name: "no block", change: func(s *serai.Site) { s.Spec.Perl = nil }, err: "write either app or scripts"},
		{name: "too large", change: func(s *serai.Site) { s.Spec.Env = map[string]string{"A": strings.Repeat("x", privsep.MaxBlock)} },
			err: "shorten spec.env"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := shop()
			tt.change(s)
			l, err := Launch(alice, s)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || serai.KindOf(err) != serai.Invalid {
					t.Errorf("error %v; want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(pairs(t, l.Block), " "); got != tt.block {
				t.Errorf("block\n%q; want\n%q", got, tt.block)
			}
			l.Block = nil
			want := privsep.Launch{Site: 7, UID: 1900006001, Launch: 3, Root: "shop", Zygote: tt.zygote, Files: tt.files}
			if !reflect.DeepEqual(l, want) {
				t.Errorf("record %+v; want %+v", l, want)
			}
		})
	}
}

// The places in the proxy's table are those of the launch record.
func TestFiles(t *testing.T) {
	s := shop()
	s.Spec.Files = map[string]string{"/z": "1", "/a": "2", "/": "3"}
	l, err := Launch(alice, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Files(s) {
		if got, want := l.Files[f.Index], s.Spec.Files[f.Prefix]; got != want {
			t.Errorf("%s is %s; want %s", f.Prefix, got, want)
		}
	}
	if got := Files(s); !reflect.DeepEqual(got, []route.Files{{Prefix: "/", Index: 0, Dir: "3"}, {Prefix: "/a", Index: 1, Dir: "2"}, {Prefix: "/z", Index: 2, Dir: "1"}}) {
		t.Errorf("Files = %v", got)
	}
}

func TestPrefixes(t *testing.T) {
	e, err := For("perl")
	if err != nil {
		t.Fatal(err)
	}
	s := shop()
	if got := e.Prefixes(s); len(got) != 0 {
		t.Errorf("an application answers %v only", got)
	}
	s.Spec.Perl = &serai.Perl{Scripts: map[string]string{"/b": "x", "/a": "y"}}
	if got := fmt.Sprint(e.Prefixes(s)); got != "[/a /b]" {
		t.Errorf("scripts answer %s", got)
	}
}
