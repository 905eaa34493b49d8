package proxy

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// discard is a client that costs nothing.
type discard struct{ h http.Header }

func (d discard) Header() http.Header              { return d.h }
func (d discard) WriteHeader(int)                  {}
func (d discard) Write(p []byte) (int, error)      { return len(p), nil }
func (d discard) Flush()                           {}
func (d discard) SetReadDeadline(time.Time) error  { return nil }
func (d discard) SetWriteDeadline(time.Time) error { return nil }

// BenchmarkServeHTTP is a request through the handler to a worker in the same
// process and back, a reply of 1 KiB: without net/http's own part.
func BenchmarkServeHTTP(b *testing.B) {
	dir := b.TempDir()
	os.Mkdir(filepath.Join(dir, "access"), 0o755)
	socket := filepath.Join(dir, "sock")
	s, err := New(Options{
		SpoolDir: dir, AccessDir: filepath.Join(dir, "access"), Format: "combined", Log: slog.New(slog.DiscardHandler),
		Socket: func(uint32) string { return socket },
		Attest: func(worker.Target, int) (worker.Kills, error) { return func() (int64, bool) { return 0, true }, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	reply := frameOf('W', wholePayload(0, head("200", "Content-Type", "text/plain"), strings.Repeat("x", 1024)))
	go acceptWorkers(l, 1, 1, func(c *fakeWorker) {
		c.hello()
		buf := make([]byte, 64<<10)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			c.Write(reply)
		}
	})
	t := newTable()
	rs := &route.Site{Number: 1, UID: uint32(os.Getuid()), Tenant: "alice", Name: "shop", Hosts: []string{"app.test"},
		Workers: serai.Workers{Max: 4, Timeout: serai.Duration(time.Minute)}, Queue: serai.Queue{Length: 100, Wait: serai.Duration(time.Minute)},
		Body: serai.Body{Max: 1 << 20, Buffer: 1 << 20}, Reply: serai.Reply{Buffer: 1 << 20}}
	s.change(t, route.Record{Site: rs})
	s.table.Store(t)
	r := httptest.NewRequest("GET", "http://app.test/a/b?c=d", nil)
	r.RequestURI = "/a/b?c=d"
	r.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
	r.Header.Set("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
	r.Header.Set("Accept-Encoding", "gzip, deflate, br")
	r.Header.Set("Cookie", "session=0123456789abcdef0123456789abcdef")
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, l.Addr()))
	b.ReportAllocs()
	for b.Loop() {
		s.ServeHTTP(discard{make(http.Header)}, r)
	}
	s.registry.dropSite(1)
}
