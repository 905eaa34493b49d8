package reconcile

import (
	"bufio"
	"encoding/json"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"serai.dev/serai/internal/route"
)

// proxy is a fake front proxy: a table that it reads from the log.
type proxy struct {
	mon  *monitor
	bell *bell
	ln   net.Listener
	wg   sync.WaitGroup

	mu      sync.Mutex
	conn    net.Conn
	reader  *route.Reader
	sites   map[uint32]*route.Site
	tenants map[uint32]*route.Tenant
	records int // read since it was reset
	asked   int // how often this connection named an extent
	mute    bool
}

func newProxy(t testing.TB, path string, m *monitor, b *bell) *proxy {
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{mon: m, bell: b, ln: ln, sites: map[uint32]*route.Site{}, tenants: map[uint32]*route.Tenant{}}
	p.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conn, p.asked = conn, 0
			p.mu.Unlock()
			p.wg.Go(func() { p.serve(t, conn) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

// cut ends the connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.Close()
	}
}

func (p *proxy) serve(t testing.TB, conn net.Conn) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var m route.ToProxy
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Error(err)
			return
		}
		if m.Stats {
			p.say(route.FromProxy{Stats: []route.SiteStats{{Site: 1, Requests: 5}}})
			p.say(route.FromProxy{Stats: []route.SiteStats{{Site: 2, Requests: 6}}, StatsEnd: true})
			continue
		}
		if x, ok := p.apply(t, *m.Routes); ok {
			p.say(route.FromProxy{Applied: &x, PID: 42})
		}
		p.bell.ring()
	}
}

func (p *proxy) say(m route.FromProxy) {
	text, _ := json.Marshal(m)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn.Write(append(text, '\n'))
}

func (p *proxy) apply(t testing.TB, to route.Extent) (route.Extent, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.reader == nil || p.reader.Extent().Epoch != to.Epoch {
		fd := -1
		p.mon.with(func() { fd, _ = unix.FcntlInt(p.mon.routes.Fd(), unix.F_DUPFD_CLOEXEC, 0) })
		r, err := route.Open(os.NewFile(uintptr(fd), "routes"))
		if err != nil {
			t.Error(err)
			return to, false
		}
		if p.reader != nil {
			p.reader.Close()
		}
		p.reader = r
		p.sites, p.tenants = map[uint32]*route.Site{}, map[uint32]*route.Tenant{}
	}
	for p.reader.Extent().Offset < to.Offset {
		r, err := p.reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Error(err)
			return to, false
		}
		p.records++
		switch {
		case r.Site != nil:
			p.sites[r.Site.Number] = r.Site
		case r.Tenant != nil:
			p.tenants[r.Tenant.UID] = r.Tenant
		case r.Drop != 0:
			delete(p.sites, r.Drop)
		default:
			delete(p.tenants, r.Forget)
		}
	}
	return p.reader.Extent(), !p.mute
}

// told reports whether the seraid that is connected has named an extent.
func (p *proxy) told() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked > 0
}

// site is what the proxy knows of a site.
func (p *proxy) site(number int64) route.Site {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.sites[uint32(number)]; s != nil {
		return *s
	}
	return route.Site{}
}

// serves is the hosts that the proxy serves, in order.
func (p *proxy) serves() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	hosts := map[string]bool{}
	for _, s := range p.sites {
		if s.Closed == "" {
			for _, h := range s.Hosts {
				hosts[h] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(hosts))
}

func (p *proxy) count(reset bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.records
	if reset {
		p.records = 0
	}
	return n
}

// TestTimeout: a worker that did not answer when its time was over is told of
// in the site's log too, with what the kernel said; one that did has written
// there itself.
func TestTimeout(t *testing.T) {
	w := newWorld(t)
	w.create(aPlan(), aTenant("alice"), aSite("alice", "shop", "shop.example.com"))
	w.start()
	w.awaitReady(siteKey("alice", "shop"))
	b := route.Broken{Site: 1, PID: 9, Request: "1f", Method: "GET", Path: "/x", Cause: "timeout"}
	w.proxy.say(route.FromProxy{Broken: &b})
	if e := w.awaitEvent(WorkerTimeout); e.Message != `a worker of alice/shop took too long to serve GET /x` {
		t.Errorf("event %q", e.Message)
	}
	b.Path, b.State, b.Wait = "/y", "S", "pipe_read"
	w.proxy.say(route.FromProxy{Broken: &b})
	want := "alice/shop: Serai: request 1f took longer than workers.timeout, worker 9 did not answer within 1s: state S (sleeping), waits in pipe_read; it was killed: GET /y"
	w.await("the log was told", func() bool {
		w.mon.mu.Lock()
		defer w.mon.mu.Unlock()
		return len(w.mon.told) > 0
	})
	if w.mon.told[0] != want {
		t.Errorf("told\n%q, want\n%q", w.mon.told[0], want)
	}
	for _, tt := range [][3]string{
		{"R", "0", "state R (running), in no wait channel"},
		{"\x1b", "", "state ?, in no wait channel"},
	} {
		if got := doing(tt[0], tt[1]); got != tt[2] {
			t.Errorf("doing(%q, %q) = %q, want %q", tt[0], tt[1], got, tt[2])
		}
	}
}
