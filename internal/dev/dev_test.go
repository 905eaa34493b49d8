package dev

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
)

func TestHosts(t *testing.T) {
	got := hosts([]string{"shop.example.com"}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5000})
	if want := "[shop.example.com localhost *.localhost 127.0.0.1]"; fmt.Sprint(got) != want {
		t.Errorf("hosts %v; want %s", got, want)
	}
	// Where every address is listened on, each of them is a host.
	if got := hosts(nil, &net.TCPAddr{IP: net.IPv6unspecified, Port: 5000}); !slices.Contains(got, "127.0.0.1") {
		t.Errorf("hosts %v", got)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("PATH", "/home/alice/perl5/bin:/usr/bin")
	t.Setenv("HOME", "/home/alice")
	t.Setenv("PERL5LIB", "")
	t.Setenv("SECRET", "hunter2")
	for _, tt := range []struct {
		name string
		perl serai.Perl
		env  map[string]string
		want string
	}{
		{"an application", serai.Perl{App: "app.psgi"}, nil, "map[HOME:/home/alice PATH:/home/alice/perl5/bin:/usr/bin PLACK_ENV:development]"},
		{"scripts", serai.Perl{Scripts: map[string]string{"/": "."}}, nil, "map[HOME:/home/alice PATH:/home/alice/perl5/bin:/usr/bin]"},
		{"the manifest wins", serai.Perl{App: "app.psgi"}, map[string]string{"PATH": "/bin", "PLACK_ENV": "test", "A": "b"},
			"map[A:b HOME:/home/alice PATH:/bin PLACK_ENV:test]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := environment(&serai.Site{Spec: serai.SiteSpec{Perl: &tt.perl, Env: tt.env}})
			delete(got, "PERL_LOCAL_LIB_ROOT")
			if fmt.Sprint(got) != tt.want {
				t.Errorf("%v; want %s", got, tt.want)
			}
		})
	}
}

// TestFindPerl: what does not run the site is named, and what to do.
func TestFindPerl(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"old": "echo 5.034001", "new": "echo 5.042000", "mute": "exit 3"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"old": "5.36 or newer is needed", "mute": "does not say its version", "none": "cannot be run", "new": ""} {
		path, err := findPerl(t.Context(), filepath.Join(dir, name))
		if want == "" && (err != nil || path != filepath.Join(dir, name)) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v; want %q", name, path, err, want)
		}
	}
}

func newProcess(dir string) *process {
	return &process{code: dir, began: time.Now(), files: make(map[string]stamp)}
}

// TestChanged: by whatever way a file becomes another.
func TestChanged(t *testing.T) {
	long := time.Now().Add(-time.Hour)
	for _, tt := range []struct {
		name   string
		change func(path string) error
		want   string
	}{
		{"nothing", func(string) error { return nil }, ""},
		{"written", func(path string) error { return os.WriteFile(path, []byte("2"), 0o644) }, "lib/A.pm has changed"},
		{"longer, with the old time", func(path string) error {
			return errorOf(os.WriteFile(path, []byte("22"), 0o644), os.Chtimes(path, long, long))
		}, "lib/A.pm has changed"},
		{"replaced, with the old time and size", func(path string) error {
			return errorOf(os.WriteFile(path+".new", []byte("2"), 0o644), os.Chtimes(path+".new", long, long), os.Rename(path+".new", path))
		}, "lib/A.pm has changed"},
		{"removed", os.Remove, "lib/A.pm has changed"},
		{"a missing one made", func(path string) error { return os.WriteFile(path+".later", nil, 0o644) }, "lib/A.pm.later has changed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "lib", "A.pm")
			if err := errorOf(os.Mkdir(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("1"), 0o644), os.Chtimes(path, long, long)); err != nil {
				t.Fatal(err)
			}
			p := newProcess(dir)
			p.note(path)
			p.note(path + ".later")
			if got := p.changed(); got != "" {
				t.Fatalf("before: %q", got)
			}
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			if got := p.changed(); got != tt.want {
				t.Errorf("%q; want %q", got, tt.want)
			}
		})
	}
}

// TestChangedWhileLoaded: what was written after the process began may have
// been read before.
func TestChangedWhileLoaded(t *testing.T) {
	p := newProcess(t.TempDir())
	path := filepath.Join(p.code, "A.pm")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[time.Duration]string{-time.Second: "", time.Second: "A.pm has changed", 48 * time.Hour: ""} {
		p.began = time.Now().Add(-time.Minute)
		if err := os.Chtimes(path, p.began.Add(at), p.began.Add(at)); err != nil {
			t.Fatal(err)
		}
		p.note(path)
		if got := p.changed(); got != want {
			t.Errorf("written %v after the start: %q; want %q", at, got, want)
		}
	}
}

func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func BenchmarkChanged(b *testing.B) {
	p := newProcess(b.TempDir())
	for i := range 300 {
		path := filepath.Join(p.code, fmt.Sprint(i))
		if err := errorOf(os.WriteFile(path, nil, 0o644), os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0))); err != nil {
			b.Fatal(err)
		}
		p.note(path)
	}
	for b.Loop() {
		if p.changed() != "" {
			b.Fatal("changed")
		}
	}
}
