package manifest

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
)

// leaves lists the paths of a struct's values as JSON names them.
func leaves(t reflect.Type, path string) []string {
	switch {
	case t.Kind() == reflect.Pointer:
		return leaves(t.Elem(), path)
	case t == reflect.TypeFor[config.Range]():
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Struct:
		return leaves(t.Elem(), path+".*")
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return leaves(t.Elem(), path+"[]")
	case t.Kind() == reflect.Struct:
		var paths []string
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			paths = append(paths, leaves(f.Type, strings.TrimPrefix(path+"."+name, "."))...)
		}
		return paths
	}
	return []string{path}
}

// The table and the structs name the same fields, so that a checked document
// always fits.
func TestTablesFitStructs(t *testing.T) {
	notRead := []string{"ports.range", "metrics.socket", "meter.interval", "acme.email", "acme.directory", "acme.ca"}
	for _, tt := range []struct {
		name, path string
		of         any
		table      []Field
	}{
		{serai.KindPlan, "spec", serai.PlanSpec{}, tables[serai.KindPlan]},
		{serai.KindTenant, "spec", serai.TenantSpec{}, tables[serai.KindTenant]},
		{serai.KindSite, "spec", serai.SiteSpec{}, tables[serai.KindSite]},
		{"configuration", "", config.Config{}, configFields},
	} {
		want := slices.DeleteFunc(leaves(reflect.TypeOf(tt.of), tt.path), func(path string) bool {
			return strings.HasPrefix(path, "spec.catalogue.") // the server writes it
		})
		var got []string
		for _, f := range tt.table {
			if f.typ != nil && f.Path != "zygotes" && f.Path != "spec.mount" && strings.HasPrefix(f.Path, tt.path) && !slices.Contains(notRead, f.Path) {
				got = append(got, f.Path)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: the table has\n%q\nthe struct\n%q", tt.name, got, want)
		}
	}
}

// The defaults that the reference shows are those that are filled in, and the
// example in every message can be written.
func TestTableDefaults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		of    any
		table []Field
	}{
		{serai.KindPlan, &serai.Plan{Type: serai.Type{APIVersion: serai.APIVersion}, Spec: serai.DefaultPlanSpec()}, tables[serai.KindPlan]},
		{serai.KindSite, &serai.Site{Type: serai.Type{APIVersion: serai.APIVersion}, Spec: serai.SiteSpec{
			Workers: serai.DefaultWorkers(), Perl: &serai.Perl{Preload: StandardZygote, Persistent: new(true)}}}, tables[serai.KindSite]},
		{"configuration", DefaultConfig(), configFields},
	} {
		text, err := json.Marshal(tt.of)
		if err != nil {
			t.Fatal(err)
		}
		var tree map[string]any
		if err := json.Unmarshal(text, &tree); err != nil {
			t.Fatal(err)
		}
		for _, f := range tt.table {
			path := strings.Replace(f.Path, "*", StandardZygote, 1)
			if f.typ == nil || f.Default == "" {
				continue
			}
			var n yaml.Node
			if err := yaml.Unmarshal([]byte(f.Default), &n); err != nil {
				t.Fatal(err)
			}
			var ps Problems
			w := &walker{ps: &ps, at: map[string]Pos{}}
			v, _ := w.typed(n.Content[0], f.typ, f.Path)
			if len(ps) > 0 {
				t.Errorf("%s: the default of %s cannot be written: %v", tt.name, f.Path, ps)
			}
			if !set(tree, path) {
				if f.Default != "false" && f.State != Stored {
					t.Errorf("%s: %s has no default but %q in the table", tt.name, path, f.Default)
				}
				continue
			}
			got, want := at(tree, path), roundTrip(t, v)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: the default of %s is %v, in the table %v", tt.name, path, got, want)
			}
		}
	}
}

func at(tree map[string]any, path string) any {
	var v any = tree
	for name := range strings.SplitSeq(path, ".") {
		v = v.(map[string]any)[name]
	}
	return v
}

func roundTrip(t *testing.T, v any) (out any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParseHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tt := range []struct{ in, want, err string }{
		{in: "shop.example.com", want: "shop.example.com"},
		{in: "Shop.EXAMPLE.com.", want: "shop.example.com"},
		{in: "localhost", want: "localhost"},
		{in: "*.Example.com", want: "*.example.com"},
		{in: "127.0.0.1", want: "127.0.0.1"},
		{in: "::1", want: "[::1]"},
		{in: "[2001:DB8:0::1]", want: "[2001:db8::1]"},
		{in: "xn--bcher-kva.example", want: "xn--bcher-kva.example"},
		{in: long + ".example", want: long + ".example"},
		{in: "", err: "is empty"},
		{in: ".", err: "is empty"},
		{in: "a..b", err: "no host name"},
		{in: "a.b..", err: "no host name"},
		{in: long + "a.example", err: "no host name"},
		{in: strings.Repeat(long+".", 4) + "example", err: "longer than 253"},
		{in: "bücher.example", err: "xn--"},
		{in: "a b.example", err: "no host name"},
		{in: "a_b.example", err: "no host name"},
		{in: "a\x00.example", err: "no host name"},
		{in: "shop.example.com:80", err: "has a port"},
		{in: "[::1]:80", err: "has a port"},
		{in: "[::1", err: "has a port"},
		{in: "[127.0.0.1]", err: "no host name"},
		{in: "fe80::1%eth0", err: "no plain address"},
		{in: "::ffff:127.0.0.1", err: "no plain address"},
		{in: "http://a.example", err: "host name alone"},
		{in: "a.example/x", err: "host name alone"},
		{in: "*", err: "no wildcard"},
		{in: "*.com", err: "too wide"},
		{in: "*.*.example.com", err: "no wildcard"},
		{in: "*a.example.com", err: "no wildcard"},
		{in: "1.2.3", err: "neither a name nor an address"},
		{in: "1.2.3.256", err: "neither a name nor an address"},
		{in: "2130706433", err: "neither a name nor an address"},
		{in: "a.0x7f", err: "neither a name nor an address"},
	} {
		got, err := ParseHost(tt.in)
		if got != tt.want || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ParseHost(%q) = %q, %v; want %q, %q", tt.in, got, err, tt.want, tt.err)
		}
		if err != nil && serai.KindOf(err) != serai.Invalid {
			t.Errorf("ParseHost(%q) is %v", tt.in, serai.KindOf(err))
		}
	}
}

func TestGrantsOf(t *testing.T) {
	for _, tt := range []struct {
		grant, host string
		want        bool
	}{
		{"example.com", "example.com", true},
		{"example.com", "a.example.com", false},
		{"example.com", "*.example.com", false},
		{"*.example.com", "a.example.com", true},
		{"*.example.com", "b.a.example.com", true},
		{"*.example.com", "*.example.com", true},
		{"*.example.com", "*.a.example.com", true},
		{"*.a.example.com", "*.example.com", false},
		{"*.example.com", "example.com", false},
		{"*.example.com", "badexample.com", false},
		{"*.0.0.1", "127.0.0.1", false},
	} {
		if got := slices.Contains(grantsOf(tt.host), tt.grant); got != tt.want {
			t.Errorf("grantsOf(%q) has %q: %v", tt.host, tt.grant, got)
		}
	}
}

func TestMeant(t *testing.T) {
	known := []string{"workers", "hosts", "root", "engine", "env"}
	for in, want := range map[string]string{
		"wrokers": "workers", "worker": "workers", "Hosts": "hosts", "host": "hosts",
		"rot": "root", "engnie": "engine", "x": "", "": "", "enviroment": "", "en": "env",
		strings.Repeat("w", 1000): "",
	} {
		if got := meant(in, known); got != want {
			t.Errorf("meant(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestDiff(t *testing.T) {
	for _, tt := range []struct{ before, after, want string }{
		{"a\n", "a\n", ""},
		{"", "a\nb\n", "+a\n+b\n"},
		{"a\nb\n", "", "-a\n-b\n"},
		{"a\nb\nc\nd\n", "a\nx\nc\ny\nd\n", " a\n-b\n+x\n c\n+y\n d\n"},
		{"a\na\n", "a\n", " a\n-a\n"},
	} {
		if got := Diff(tt.before, tt.after); got != tt.want {
			t.Errorf("Diff(%q, %q) = %q, want %q", tt.before, tt.after, got, tt.want)
		}
	}
	large := strings.Repeat("x\n", 3000)
	if got := Diff("a\n"+large+"b\n", "c\n"+strings.Repeat("y\n", 3000)+"d\n"); strings.Count(got, "\n") != 6004 {
		t.Errorf("a large difference has %d lines", strings.Count(got, "\n"))
	}
}
