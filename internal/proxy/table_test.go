package proxy

import (
	"fmt"
	"strings"
	"testing"

	"serai.dev/serai/internal/route"
)

func TestParseHost(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"example.com", "example.com"},
		{"Example.COM", "example.com"},
		{"example.com.", "example.com"},
		{"example.com:8080", "example.com"},
		{"example.com.:8080", "example.com"},
		{"example.com:", "example.com"},
		{"a_b.example.com", "a_b.example.com"},
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"localhost", "localhost"},
		{"127.0.0.1:80", "127.0.0.1"},
		{"[::1]", "::1"},
		{"[::1]:443", "::1"},
		{"[2001:DB8:0:0::1]", "2001:db8::1"},
		{"::1", "::1"},
		{strings.Repeat("a", 63) + ".b", strings.Repeat("a", 63) + ".b"},
		{"", ""}, {".", ""}, {":80", ""}, {"..", ""}, {"a..b", ""}, {".a", ""}, {"a..", ""},
		{"user@example.com", ""}, {"user:pw@example.com", ""}, {"example.com/", ""}, {"example.com?x", ""},
		{"exa mple.com", ""}, {"example.com\x00", ""}, {"exämple.com", ""}, {"*.example.com", ""},
		{"example.com:99999", ""}, {"example.com:-1", ""}, {"example.com:80:80", ""}, {"example.com:http", ""}, {"example.com:000080", ""},
		{"[::1", ""}, {"[::1]x", ""}, {"[::1]:x", ""}, {"[127.0.0.1]", ""}, {"[fe80::1%eth0]", ""}, {"[]", ""}, {"[[::1]]", ""}, {"fe80::1%25eth0", ""},
		{strings.Repeat("a", 64) + ".b", ""}, {strings.Repeat("a.", 128), ""},
	} {
		got, ok := parseHost(tt.in)
		if ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("parseHost(%q) = %q, %v; want %q", tt.in, got, ok, tt.want)
		}
	}
}

// FuzzHost: what is a host has one form, which is a host of the same form, with
// nothing in it that could end a path, a line or a label.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"a.b", "A.B.:80", "[::1]:80", "u@h", "::ffff:1.2.3.4", "a..b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		host, ok := parseHost(in)
		if !ok {
			return
		}
		again, ok := parseHost(host)
		if !ok || again != host {
			t.Fatalf("parseHost(%q) = %q, whose form is %q, %v", in, host, again, ok)
		}
		if strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-_.:") != "" || strings.HasPrefix(host, ".") ||
			strings.HasSuffix(host, ".") || strings.Contains(host, "..") {
			t.Fatalf("parseHost(%q) = %q", in, host)
		}
		newTable().find(host)
	})
}

func tableOf(tenants []route.Tenant, sites []route.Site) *table {
	t := newTable()
	for i := range tenants {
		t.setTenant(&tenants[i])
	}
	for i := range sites {
		t.setSite(&site{Site: &sites[i]})
	}
	return t
}

func TestFind(t *testing.T) {
	table := tableOf(
		[]route.Tenant{
			{UID: 1, Hosts: []string{"*.example.com", "shared.example.com"}},
			{UID: 2, Hosts: []string{"bob.example.com", "*.team.example.com", "shared.example.com"}},
			{UID: 3, Hosts: []string{"*.com"}},
		},
		[]route.Site{
			{Number: 1, UID: 1, Hosts: []string{"www.example.com", "*.example.com"}},
			{Number: 2, UID: 1, Hosts: []string{"*.deep.example.com"}},
			{Number: 3, UID: 3, Hosts: []string{"*.com"}},
			{Number: 4, UID: 2, Hosts: []string{"127.0.0.1", "::1"}},
			{Number: 5, UID: 2, Hosts: []string{"x.team.example.com"}},
		})
	for _, tt := range []struct {
		host string
		want uint32
	}{
		{"www.example.com", 1},
		{"other.example.com", 1},
		{"a.b.example.com", 1},
		{"a.deep.example.com", 2},
		{"deep.example.com", 1},      // a wildcard does not stand for nothing
		{"example.com", 3},           // nor here, but for the shorter one it is a label
		{"bob.example.com", 0},       // another tenant's, though nobody serves it
		{"bob.example.com.evil", 0},  //
		{"y.team.example.com", 0},    // another tenant's by a wildcard that is longer
		{"x.team.example.com", 5},    // who may serve it
		{"shared.example.com", 1},    // both were granted it
		{"unrelated.com", 3},         //
		{"example.org", 0},           //
		{"127.0.0.1", 4}, {"::1", 4}, //
	} {
		var got uint32
		if s := table.find(tt.host); s != nil {
			got = s.Number
		}
		if got != tt.want {
			t.Errorf("%s is served by %d, want %d", tt.host, got, tt.want)
		}
	}
}

func TestTableChanges(t *testing.T) {
	table := newTable()
	check := func(step, host string, want uint32) {
		t.Helper()
		var got uint32
		if s := table.find(host); s != nil {
			got = s.Number
		}
		if got != want {
			t.Errorf("%s: %s is served by %d, want %d", step, host, got, want)
		}
	}
	set := func(n uint32, hosts ...string) {
		table.setSite(&site{Site: &route.Site{Number: n, UID: n, Hosts: hosts}})
	}
	set(1, "a.test", "*.w.test")
	check("set", "a.test", 1)
	check("set", "x.w.test", 1)
	set(1, "b.test")
	check("other hosts", "a.test", 0)
	check("other hosts", "x.w.test", 0)
	check("other hosts", "b.test", 1)
	set(2, "b.test") // its claim moved, and the old site's record comes later
	check("moved", "b.test", 2)
	set(1, "c.test")
	check("moved", "b.test", 2)
	table.dropSite(1)
	check("dropped", "c.test", 0)
	table.dropSite(1)
	set(3, "*.w.test")
	check("granted to nobody", "x.w.test", 3)
	table.setTenant(&route.Tenant{UID: 9, Hosts: []string{"x.w.test"}})
	check("granted to another", "x.w.test", 0)
	table.setTenant(&route.Tenant{UID: 9, Hosts: []string{"y.w.test"}})
	check("grant moved", "x.w.test", 3)
	check("grant moved", "y.w.test", 0)
	table.dropTenant(9)
	check("grant gone", "y.w.test", 3)
	set(4, "not a host", "*.", "*")
	check("no hosts", "nothost", 0)
}

// BenchmarkTable adds one site to so many: the cost must be the same.
func BenchmarkTable(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		table := newTable()
		for i := range n {
			table.setSite(&site{Site: &route.Site{Number: uint32(i + 1), UID: uint32(i % 10), Hosts: []string{fmt.Sprintf("host%d.example.com", i)}}})
		}
		added := &site{Site: &route.Site{Number: 1 << 30, Hosts: []string{"added.example.com"}}}
		b.Run(fmt.Sprint("add to ", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				table.setSite(added)
				table.dropSite(1 << 30)
			}
		})
		b.Run(fmt.Sprint("find in ", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if table.find("host7.example.com") == nil {
					b.Fatal("not found")
				}
			}
		})
	}
}
