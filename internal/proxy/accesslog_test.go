package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"serai.dev/serai/internal/route"
)

func TestAccessLog(t *testing.T) {
	w := newWorld(t)
	w.serve(w.site(1, "app.test"), echo)
	resp, _ := w.mustGet("GET", "/a?b=c", "app.test", nil)
	w.mustGet("GET", "/unknown", "other.test", nil)
	w.raw("garbage\r\n\r\n")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"alice/site1.log": `^127\.0\.0\.1 - - \[[^\]]+\] "GET /a\?b=c HTTP/1\.1" 200 \d+ "-" "Go-http-client/1\.1" "app\.test" ` +
			resp.Header.Get("X-Request-Id") + ` \d+\.\d{3} \d+\.\d{3} \d+\.\d{3}\n$`,
		"_unknown.log": `"GET /unknown HTTP/1\.1" 421 [^\n]*\n.*"- - -" 400 `,
	} {
		text, err := os.ReadFile(filepath.Join(w.dir, "access", name))
		if err != nil || !regexp.MustCompile(want).Match(text) {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, text, want)
		}
	}
}

var hostileEntry = &entry{
	Time: time.Unix(1e9, 0).UTC(), Request: "0123456789abcdef", Remote: "::1", Method: "GET",
	Target: "/\" 200 1\n127.0.0.1 - - \\\x1b[2J\xff", Proto: "HTTP/1.1", Host: "a", Status: 200, Bytes: 5,
	Referer: `"`, UserAgent: "\r\n\x00\u0085", Queue: time.Millisecond, Worker: 2500 * time.Microsecond, Total: time.Second, Aborted: true,
}

func TestLogFormats(t *testing.T) {
	want := `::1 - - [09/Sep/2001:01:46:40 +0000] "GET /\x22 200 1\x0a127.0.0.1 - - \x5c\x1b[2J\xff HTTP/1.1" 200 5 "\x22" "\x0d\x0a\x00\xc2\x85" "a" 0123456789abcdef 1.000 2.500 1000.000 aborted` + "\n"
	if got := string(combined(nil, hostileEntry)); got != want {
		t.Errorf("combined:\n%s\nwant\n%s", got, want)
	}
	want = `01:46:40 GET /\x22 200 1\x0a127.0.0.1 - - \x5c\x1b[2J\xff 200, 5 bytes, 1000.000 ms, aborted` + "\n"
	if got := string(short(nil, hostileEntry)); got != want {
		t.Errorf("short:\n%s\nwant\n%s", got, want)
	}
	line := jsonLine(nil, hostileEntry)
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil || strings.Count(string(line), "\n") != 1 {
		t.Fatalf("%s: %v", line, err)
	}
	if got["workerMs"] != 2.5 || got["aborted"] != true || got["status"] != 200.0 {
		t.Errorf("%s", line)
	}
}

// TestAccessInOnePlace: the lines of all sites, at once, and no file.
func TestAccessInOnePlace(t *testing.T) {
	all, dir := new(syncBuffer), t.TempDir()
	a := newAccessLog(dir, short, slog.New(slog.DiscardHandler))
	a.all = all
	a.write("alice", "shop", hostileEntry)
	a.write("", "", hostileEntry)
	if got := strings.Count(all.String(), "aborted\n"); got != 2 {
		t.Errorf("%d lines:\n%s", got, all)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("%d files, %v", len(files), err)
	}
}

// TestBefore: a request waits for what is to be done before it, and finds what
// that has changed.
func TestBefore(t *testing.T) {
	w := newWorld(t)
	w.serve(w.site(1, "app.test"), echo)
	w.server.before = func(context.Context) {
		rs := w.site(1, "app.test")
		rs.Closed = "closed before it came"
		w.set(route.Record{Site: rs})
	}
	if resp, text := w.mustGet("GET", "/", "app.test", nil); resp.StatusCode != 503 || !strings.Contains(text, "closed before it came") {
		t.Errorf("%s\n%s", resp.Status, text)
	}
}

func TestLogRotates(t *testing.T) {
	dir := t.TempDir()
	a := newAccessLog(dir, combined, slog.New(slog.DiscardHandler))
	a.size = 1000
	for i := range 100 {
		e := *hostileEntry
		e.Request = fmt.Sprintf("%016d", i)
		a.write("alice", "shop", &e)
		a.sweep(time.Hour)
	}
	a.sweep(-1)
	if len(a.files) > 0 {
		t.Errorf("%d files are open", len(a.files))
	}
	last := 100
	for _, suffix := range []string{"", ".1", ".2", ".3", ".4", ".5"} {
		text, err := os.ReadFile(filepath.Join(dir, "alice", "shop.log"+suffix))
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 1000 || len(text) == 0 {
			t.Errorf("%s has %d bytes", suffix, len(text))
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for i := len(lines) - 1; i >= 0; i-- {
			last--
			if !strings.Contains(lines[i], fmt.Sprintf(" %016d ", last)) {
				t.Fatalf("%s line %d is not %d: %s", suffix, i, last, lines[i])
			}
		}
	}
	if all, _ := os.ReadDir(filepath.Join(dir, "alice")); len(all) != 6 {
		t.Errorf("%d files", len(all))
	}
}

// TestFullDisk: lines are counted and dropped, which is said once, and what
// comes later is written.
func TestFullDisk(t *testing.T) {
	said := new(syncBuffer)
	dir := filepath.Join(t.TempDir(), "gone")
	a := newAccessLog(dir, combined, slog.New(slog.NewTextHandler(said, nil)))
	for range 5 {
		a.write("alice", "shop", hostileEntry)
		a.sweep(time.Hour)
	}
	if n := strings.Count(said.String(), "not written"); n != 1 {
		t.Errorf("said %d times:\n%s", n, said)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a.write("alice", "shop", hostileEntry)
	a.sweep(-1)
	if !strings.Contains(said.String(), "lost=5") {
		t.Errorf("what was lost was not said:\n%s", said)
	}
	text, err := os.ReadFile(filepath.Join(dir, "alice", "shop.log"))
	if err != nil || strings.Count(string(text), "\n") != 1 {
		t.Errorf("%v\n%s", err, text)
	}
}
