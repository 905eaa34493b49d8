package proxy

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/route"
)

// A gate lets a test hold requests in workers: each says in, and goes on when
// it is let out.
type gate struct {
	in  chan *fakeRequest
	out chan struct{}
	now atomic.Int64 // requests inside
	max atomic.Int64
}

func newGate() *gate { return &gate{in: make(chan *fakeRequest, 100), out: make(chan struct{})} }

func (g *gate) serve(c *fakeWorker, r *fakeRequest) {
	n := g.now.Add(1)
	for m := g.max.Load(); n > m && !g.max.CompareAndSwap(m, n); m = g.max.Load() {
	}
	g.in <- r
	<-g.out
	g.now.Add(-1)
	c.whole(0, head("200"), r.env["PATH_INFO"])
}

// start makes a request in the background.
func (w *world) start(host, path string) <-chan string {
	c := make(chan string, 1)
	go func() {
		resp, text, err := w.get("GET", path, host, nil)
		if err != nil {
			c <- err.Error()
			return
		}
		c <- fmt.Sprint(resp.StatusCode, " ", text)
	}()
	return c
}

func TestQueue(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	rs := w.site(1, "app.test")
	rs.Workers.Max = 2
	rs.Queue.Length = 3
	w.serve(rs, each(g.serve))
	var replies []<-chan string
	for i := range 5 {
		replies = append(replies, w.start("app.test", fmt.Sprintf("/%d", i)))
		if i < 2 {
			receive(t, g.in)
		} else {
			await(t, "it waits", func() bool { return w.stats(1).Queued == i-1 })
		}
	}
	s := w.stats(1)
	if s.Busy != 2 || s.Queued != 3 || s.Idle != 0 || len(s.Workers) != 2 {
		t.Fatalf("%+v", s)
	}
	resp, text := w.mustGet("GET", "/too-many", "app.test", nil)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "10" || !strings.Contains(text, "Too many requests") {
		t.Errorf("one too many: %s %q %s", resp.Status, resp.Header.Get("Retry-After"), text)
	}
	// They are served in the order in which they came.
	for i := 2; i < 5; i++ {
		g.out <- struct{}{}
		if r := receive(t, g.in); r.env["PATH_INFO"] != fmt.Sprintf("/%d", i) {
			t.Errorf("%s was served when it was the turn of /%d", r.env["PATH_INFO"], i)
		}
	}
	close(g.out)
	for i, c := range replies {
		if got := receive(t, c); got != fmt.Sprintf("200 /%d", i) {
			t.Errorf("request %d: %s", i, got)
		}
	}
	if g.max.Load() != 2 {
		t.Errorf("%d requests at once in 2 workers", g.max.Load())
	}
}

func TestQueueWait(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	rs := w.site(1, "app.test")
	rs.Workers.Max = 1
	rs.Queue.Wait = serai.Duration(20 * time.Millisecond)
	w.serve(rs, each(g.serve))
	first := w.start("app.test", "/1")
	receive(t, g.in)
	resp, text := w.mustGet("GET", "/2", "app.test", nil)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" || !strings.Contains(text, "No worker") {
		t.Errorf("%s %q", resp.Status, text)
	}
	close(g.out)
	if got := receive(t, first); got != "200 /1" {
		t.Errorf("the first: %s", got)
	}
}

// TestClientLeavesQueue: the place of a client that went away is free, and no
// worker sees its request.
func TestClientLeavesQueue(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	rs := w.site(1, "app.test")
	rs.Workers.Max = 1
	w.serve(rs, each(g.serve))
	first := w.start("app.test", "/1")
	receive(t, g.in)
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET /gone HTTP/1.1\r\nHost: app.test\r\n\r\n")
	await(t, "it waits", func() bool { return w.stats(1).Queued == 1 })
	c.Close()
	await(t, "it has left", func() bool { return w.stats(1).Queued == 0 })
	close(g.out)
	receive(t, first)
	w.mustGet("GET", "/last", "app.test", nil)
	if r := receive(t, g.in); r.env["PATH_INFO"] != "/last" {
		t.Errorf("%s was served", r.env["PATH_INFO"])
	}
}

// TestTenantLimit: the requests at once over all sites of a tenant.
func TestTenantLimit(t *testing.T) {
	w := newWorld(t)
	one, two := w.site(1, "one.test"), w.site(2, "two.test")
	w.set(route.Record{Tenant: &route.Tenant{UID: one.UID, Name: "alice", Workers: 2}})
	g := newGate()
	w.serve(one, each(g.serve))
	w.serve(two, each(g.serve))
	var replies []<-chan string
	for range 4 {
		replies = append(replies, w.start("one.test", "/"), w.start("two.test", "/"))
	}
	receive(t, g.in)
	receive(t, g.in)
	await(t, "the rest waits", func() bool { return w.stats(1).Queued+w.stats(2).Queued == 6 })
	for range 6 {
		g.out <- struct{}{}
		receive(t, g.in)
	}
	close(g.out)
	for _, c := range replies {
		if got := receive(t, c); got != "200 /" {
			t.Error(got)
		}
	}
	if g.max.Load() != 2 {
		t.Errorf("%d requests at once, 2 are allowed", g.max.Load())
	}
}

// TestStartingSite: while a site starts no more connections are made than
// requests wait and workers may be.
func TestStartingSite(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Max = 3
	var connected atomic.Int64
	begin := make(chan struct{})
	w.serve(rs, func(c *fakeWorker) {
		connected.Add(1)
		<-begin
		echo(c)
	})
	var replies []<-chan string
	for i := range 5 {
		replies = append(replies, w.start("app.test", "/"))
		await(t, "it waits", func() bool { return w.stats(1).Queued == i+1 })
		await(t, "it is connected for", func() bool { return connected.Load() == int64(min(i+1, 3)) })
	}
	close(begin)
	for _, c := range replies {
		if got := receive(t, c); !strings.HasPrefix(got, "200") {
			t.Error(got)
		}
	}
	if n := connected.Load(); n != 3 {
		t.Errorf("%d connections, at most 3 workers", n)
	}
	if s := w.stats(1); s.Wakes < 1 || s.Wakes > 5 {
		t.Errorf("%d wakes", s.Wakes)
	}
}

// TestLastUsedFirst: of several idle workers one serves all that comes one by
// one, so that the others can be retired.
func TestLastUsedFirst(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Min = 3
	w.serve(rs, echo)
	await(t, "the minimum is connected", func() bool { return w.stats(1).Idle == 3 })
	first := w.echo("GET", "/", "app.test", nil).Conn
	for range 10 {
		if c := w.echo("GET", "/", "app.test", nil).Conn; c != first {
			t.Fatalf("served by %d after %d", c, first)
		}
	}
}

// TestRetire: idle workers above the minimum are told to leave, by Q.
func TestRetire(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Min = 1
	g := newGate()
	close(g.out)
	var quits atomic.Int64
	w.serve(rs, quitting(&quits, g.serve))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { w.mustGet("GET", "/", "app.test", nil) })
	}
	all.Wait()
	rs2 := *rs
	rs2.Workers.Idle = serai.Duration(time.Millisecond)
	w.set(route.Record{Site: &rs2})
	await(t, "one is left", func() bool { return w.stats(1).Idle == 1 && len(w.stats(1).Workers) == 1 })
	rs3 := rs2
	rs3.Workers.Min = 0
	w.set(route.Record{Site: &rs3})
	await(t, "none is left", func() bool { return len(w.stats(1).Workers) == 0 })
	await(t, "all were told", func() bool { return quits.Load() > 0 })
	if n := w.monitor.kills(); n > 0 {
		t.Errorf("%d were killed", n)
	}
}

// quitting counts the workers that were sent away by Q.
func quitting(quits *atomic.Int64, f func(*fakeWorker, *fakeRequest)) func(*fakeWorker) {
	return func(c *fakeWorker) {
		c.hello()
		for {
			peek, err := c.in.Peek(5)
			if err == nil && peek[4] == 'Q' {
				quits.Add(1)
			}
			r := c.request()
			if r == nil {
				return
			}
			f(c, r)
		}
	}
}

// TestReload: workers of an older launch end their request and get no other.
func TestReload(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	g := newGate()
	var launch, quits atomic.Int64
	launch.Store(1)
	l, err := net.Listen("unix", w.socket(1))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n := launch.Load()
			c := &fakeWorker{Conn: conn, in: bufio.NewReader(conn), site: 1, launch: uint64(n)}
			go quitting(&quits, func(c *fakeWorker, r *fakeRequest) {
				if r.env["PATH_INFO"] == "/wait" {
					g.serve(c, r)
					return
				}
				c.whole(0, head("200"), fmt.Sprint("launch ", n))
			})(c)
		}
	}()
	w.set(route.Record{Site: rs})
	if _, text := w.mustGet("GET", "/", "app.test", nil); text != "launch 1" {
		t.Fatal(text)
	}
	under := w.start("app.test", "/wait")
	receive(t, g.in)
	launch.Store(2)
	next := *rs
	next.Launch = 2
	w.set(route.Record{Site: &next})
	for range 3 {
		if _, text := w.mustGet("GET", "/", "app.test", nil); text != "launch 2" {
			t.Error(text)
		}
	}
	close(g.out)
	if got := receive(t, under); got != "200 /wait" {
		t.Errorf("the request under way: %s", got)
	}
	await(t, "the old ones are told to leave", func() bool { return quits.Load() == 1 })
	for _, m := range w.stats(1).Workers {
		if m.Launch != 2 {
			t.Errorf("a worker of launch %d is kept", m.Launch)
		}
	}
}

// TestSuspendAndDrop: who waits is told at once; who is served is served.
func TestSuspendAndDrop(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Max = 1
	g := newGate()
	w.serve(rs, each(g.serve))
	under := w.start("app.test", "/1")
	receive(t, g.in)
	waits := w.start("app.test", "/2")
	await(t, "it waits", func() bool { return w.stats(1).Queued == 1 })
	closed := *rs
	closed.Closed = "This site is suspended."
	w.set(route.Record{Site: &closed})
	if got := receive(t, waits); !strings.HasPrefix(got, "503") || !strings.Contains(got, "suspended") {
		t.Errorf("the waiting one: %s", got)
	}
	w.set(route.Record{Drop: 1})
	if resp, _ := w.mustGet("GET", "/", "app.test", nil); resp.StatusCode != 421 {
		t.Errorf("after the drop: %s", resp.Status)
	}
	close(g.out)
	if got := receive(t, under); got != "200 /1" {
		t.Errorf("the one under way: %s", got)
	}
}

// TestNewLog: a new epoch replaces the table; connected workers stay.
func TestNewLog(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	w.serve(rs, echo)
	w.serve(w.site(2, "old.test"), echo)
	before := w.echo("GET", "/", "app.test", nil).Conn
	fresh, err := route.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	moved := *rs
	moved.Hosts = []string{"new.test"}
	for _, r := range []route.Record{{Tenant: &route.Tenant{UID: rs.UID, Name: "alice", Workers: 5}}, {Site: rs}, {Site: &moved}} {
		if _, err := fresh.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	w.monitor.mu.Lock()
	w.routes = fresh
	w.monitor.mu.Unlock()
	end := fresh.Extent()
	if got, err := w.server.Apply(t.Context(), &end); err != nil || got != end {
		t.Fatalf("Apply = %v, %v", got, err)
	}
	if c := w.echo("GET", "/", "new.test", nil).Conn; c != before {
		t.Errorf("served by connection %d, it was %d", c, before)
	}
	for _, host := range []string{"app.test", "old.test"} {
		if resp, _ := w.mustGet("GET", "/", host, nil); resp.StatusCode != 421 {
			t.Errorf("%s: %s", host, resp.Status)
		}
	}
}

// TestAbandon is what happens when a worker goes on for too long.
func TestAbandon(t *testing.T) {
	for _, back := range []bool{true, false} {
		t.Run(fmt.Sprint("comes back ", back), func(t *testing.T) {
			w := newWorld(t)
			rs := w.site(1, "app.test")
			rs.Workers.Max = 1
			rs.Workers.Timeout = serai.Duration(50 * time.Millisecond)
			if back {
				rs.Workers.Timeout = serai.Duration(patience)
			}
			w.serve(rs, echo)
			p := w.server.registry.pool(1)
			c, err := p.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p.abandon(c)
			if back {
				// The same process, which the fake workers all are, says hello.
				w.echo("GET", "/", "app.test", nil)
			} else {
				await(t, "it is killed", func() bool { return w.monitor.kills() == 1 })
			}
			await(t, "it is forgotten", func() bool {
				p.t.mu.Lock()
				defer p.t.mu.Unlock()
				return len(p.ghosts) == 0
			})
			if back && w.monitor.kills() > 0 {
				t.Error("it was killed all the same")
			}
		})
	}
}

// TestLeft counts why workers are no more.
func TestLeft(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Max, rs.Workers.Timeout = 1, serai.Duration(50*time.Millisecond)
	hold := make(chan struct{})
	w.serve(rs, each(func(c *fakeWorker, r *fakeRequest) {
		switch path := r.env["PATH_INFO"]; path {
		case "/1", "/3", "/5":
			c.whole(path[1]-'0', head("200"), "bye")
		case "/late":
			<-hold
			c.whole(0, head("200"), "at last")
		case "/wrong":
			c.frame('z', nil)
		default:
			c.whole(0, head("200"), "stays")
		}
	}))
	for _, path := range []string{"/1", "/3", "/3", "/5", "/late", "/wrong", "/"} {
		w.mustGet("GET", path, "app.test", nil)
	}
	rs = w.site(1, "app.test") // with time enough
	w.set(route.Record{Site: rs})
	busy := w.start("app.test", "/late")
	await(t, "the age of a request", func() bool {
		s := w.stats(1)
		return len(s.Workers) == 1 && s.Workers[0].Busy && s.Workers[0].RequestMs > 0
	})
	close(hold)
	receive(t, busy)
	await(t, "it is idle", func() bool { return w.stats(1).Idle == 1 })
	rs = w.site(1, "app.test")
	rs.Launch = 2
	w.set(route.Record{Site: rs})
	want := map[string]int64{"requests": 1, "size": 2, "code": 1, "timeout": 1, "protocol": 1, "reload": 1}
	await(t, "all have left", func() bool { return len(w.stats(1).Workers) == 0 })
	if got := w.stats(1).Left; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
