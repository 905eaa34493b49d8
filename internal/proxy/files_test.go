package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// publish makes a directory of files and routes site 1 to it.
func (w *world) publish(prefix string, prefixes []string) (dir string) {
	w.t.Helper()
	dir = filepath.Join(w.dir, "public")
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.monitor.files[privsep.FilesRef{Site: 1, Index: 0}] = dir
	rs := w.site(1, "app.test")
	rs.Files = []route.Files{{Prefix: prefix, Index: 0}}
	rs.Prefixes = prefixes
	w.serve(rs, echo)
	return dir
}

func write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func TestFiles(t *testing.T) {
	w := newWorld(t)
	dir := w.publish("/static", []string{"/app"})
	write(t, filepath.Join(w.dir, "secret"), "secret", 0o644)
	write(t, dir+"/a.txt", "hello", 0o644)
	write(t, dir+"/b c.html", "<p>", 0o644)
	write(t, dir+"/private.txt", "secret", 0o640)
	write(t, dir+"/.hidden", "secret", 0o644)
	write(t, dir+"/.git/config", "secret", 0o644)
	write(t, dir+"/docs/index.html", "index", 0o644)
	write(t, dir+"/empty/x", "x", 0o644)
	write(t, dir+"/odd/index.html/x", "x", 0o644)
	write(t, dir+"/noext", "\x89PNG <script>", 0o644)
	for link, to := range map[string]string{"inside": "a.txt", "outside": "../secret", "absolute": "/etc/passwd", "loop": "loop", "current": "docs", "proc": "/proc/self/root"} {
		if err := os.Symlink(to, dir+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(dir+"/fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	if l, err := net.Listen("unix", dir+"/socket"); err != nil {
		t.Fatal(err)
	} else {
		defer l.Close()
	}
	for _, tt := range []struct {
		method, path string
		status       int
		body         string
		has          string
	}{
		{"GET", "/static/a.txt", 200, "hello", "Content-Type: text/plain; charset=utf-8"},
		{"HEAD", "/static/a.txt", 200, "", "Content-Length: 5"},
		{"GET", "/static//a.txt", 200, "hello", ""},
		{"GET", "/static/b%20c.html", 200, "<p>", "Content-Type: text/html; charset=utf-8"},
		{"GET", "/static/inside", 200, "hello", "Content-Type: application/octet-stream"},
		{"GET", "/static/noext", 200, "\x89PNG <script>", "Content-Type: application/octet-stream"},
		{"GET", "/static/docs/", 200, "index", "Content-Type: text/html; charset=utf-8"},
		{"GET", "/static/current/", 200, "index", ""},
		{"GET", "/static/docs", 301, "", "Location: /static/docs/"},
		{"GET", "/static/docs?a=b", 301, "", "Location: /static/docs/?a=b"},
		{"GET", "/static", 404, "", ""},
		{"GET", "/static/", 404, "", ""},
		{"GET", "/static/a.txt/", 404, "", ""},
		{"GET", "/static/empty", 404, "", ""},
		{"GET", "/static/empty/", 404, "", ""},
		{"GET", "/static/odd", 404, "", ""},
		{"GET", "/static/odd/", 404, "", ""},
		{"GET", "/static/missing", 404, "", ""},
		{"GET", "/static/private.txt", 404, "", ""},
		{"GET", "/static/.hidden", 404, "", ""},
		{"GET", "/static/.git/config", 404, "", ""},
		{"GET", "/static/docs/../.hidden", 404, "", ""},
		{"GET", "/static/../secret", 404, "", ""},
		{"GET", "/static/%2e%2e/secret", 404, "", ""},
		{"GET", "/static/..%2fsecret", 404, "", ""},
		{"GET", "/static/outside", 404, "", ""},
		{"GET", "/static/absolute", 404, "", ""},
		{"GET", "/static/proc/etc/passwd", 404, "", ""},
		{"GET", "/static/loop", 404, "", ""},
		{"GET", "/static/fifo", 404, "", ""},
		{"GET", "/static/socket", 404, "", ""},
		{"GET", "/static/" + strings.Repeat("x", 300), 404, "", ""},
		{"GET", "/staticx", 404, "", ""},
		{"POST", "/static/a.txt", 405, "", "Allow: GET, HEAD"},
	} {
		resp, text := w.mustGet(tt.method, tt.path, "app.test", nil)
		name, value, _ := strings.Cut(tt.has, ": ")
		if resp.StatusCode != tt.status || tt.status == 200 && text != tt.body || name != "" && resp.Header.Get(name) != value {
			t.Errorf("%s %s: %s %.100q %v; want %d %q %s", tt.method, tt.path, resp.Status, text, resp.Header, tt.status, tt.body, tt.has)
		}
		if strings.Contains(text, "secret") {
			t.Errorf("%s %s gave a secret away", tt.method, tt.path)
		}
	}
}

func TestConditionalFiles(t *testing.T) {
	w := newWorld(t)
	dir := w.publish("/", nil)
	write(t, dir+"/a.txt", "0123456789", 0o644)
	first, _ := w.mustGet("GET", "/a.txt", "app.test", nil)
	for _, tt := range []struct {
		name, value string
		status      int
		body        string
	}{
		{"If-None-Match", first.Header.Get("Etag"), 304, ""},
		{"If-None-Match", `"other"`, 200, "0123456789"},
		{"If-Modified-Since", first.Header.Get("Last-Modified"), 304, ""},
		{"If-Match", `"other"`, 412, ""},
		{"Range", "bytes=2-4", 206, "234"},
		{"Range", "bytes=-3", 206, "789"},
		{"Range", "bytes=20-", 416, ""},
		{"Range", "nonsense", 416, ""},
	} {
		got := w.raw("GET /a.txt HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n" + tt.name + ": " + tt.value + "\r\n\r\n")
		_, body, _ := strings.Cut(got, "\r\n\r\n")
		if fmt.Sprint(statuses(got)) != fmt.Sprintf("[%d]", tt.status) || tt.status < 400 && body != tt.body {
			t.Errorf("%s: %s got\n%s", tt.name, tt.value, got)
		}
	}
}

// TestFilesAndEngine says who answers where both could.
func TestFilesAndEngine(t *testing.T) {
	for _, tt := range []struct {
		files    string
		prefixes []string
		path     string
		want     string // file, engine, 404
	}{
		{"/static", nil, "/static/a.txt", "file"},
		{"/static", nil, "/static/missing", "engine"},
		{"/static", nil, "/other", "engine"},
		{"/", nil, "/a.txt", "file"},
		{"/", nil, "/", "engine"},
		{"/", []string{"/cgi-bin"}, "/cgi-bin/a.txt", "engine"}, // a script is not handed out
		{"/", []string{"/cgi-bin"}, "/cgi-binary", "404"},
		{"/cgi-bin/static", []string{"/cgi-bin"}, "/cgi-bin/static/a.txt", "file"},
		{"/cgi-bin/static", []string{"/cgi-bin"}, "/cgi-bin/static/missing", "engine"},
		{"/static", []string{"/cgi-bin"}, "/static/missing", "404"},
	} {
		t.Run(tt.files+" "+tt.path, func(t *testing.T) {
			w := newWorld(t)
			dir := w.publish(tt.files, tt.prefixes)
			write(t, dir+"/a.txt", "file", 0o644)
			write(t, dir+"/cgi-bin/a.txt", "file", 0o644)
			resp, text := w.mustGet("GET", tt.path, "app.test", nil)
			got := text
			if strings.HasPrefix(text, "{") {
				got = "engine"
			}
			if resp.StatusCode == 404 {
				got = "404"
			}
			if got != tt.want {
				t.Errorf("answered by %.100s, want %s", got, tt.want)
			}
		})
	}
}

// TestReloadOpensAnew: a directory is kept until the launch changes.
func TestReloadOpensAnew(t *testing.T) {
	w := newWorld(t)
	dir := w.publish("/", []string{"/app"})
	write(t, dir+"/a", "old", 0o644)
	w.mustGet("GET", "/a", "app.test", nil)
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/a", "new", 0o644)
	if _, text := w.mustGet("GET", "/a", "app.test", nil); text != "old" {
		t.Errorf("before the reload: %q", text)
	}
	rs := *w.server.table.Load().find("app.test").Site
	rs.Launch++
	w.set(route.Record{Site: &rs})
	if _, text := w.mustGet("GET", "/a", "app.test", nil); text != "new" {
		t.Errorf("after the reload: %q", text)
	}
	w.server.roots.sweep(func(uint32) bool { return false })
	if _, text := w.mustGet("GET", "/a", "app.test", nil); text != "new" {
		t.Errorf("after the sweep: %q", text)
	}
}

// TestShrinkingFile: the client sees that the file is not whole, and nothing
// else happens.
func TestShrinkingFile(t *testing.T) {
	w := newWorld(t)
	dir := w.publish("/", nil)
	write(t, dir+"/big", strings.Repeat("x", 32<<20), 0o644)
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "GET /big HTTP/1.1\r\nHost: app.test\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.ContentLength != 32<<20 {
		t.Fatalf("%v, %v", resp, err)
	}
	if err := os.Truncate(dir+"/big", 100); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes came without an error", n)
	}
}
