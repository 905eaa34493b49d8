package proxy

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// workerModes are what a worker process of its own can do.
var workerModes = map[string]func(*fakeWorker){
	"pid": each(func(c *fakeWorker, r *fakeRequest) {
		c.whole(0, head("200"), fmt.Sprint(os.Getpid()))
	}),
	// die ends itself in the middle of a request, with what was asked for.
	"die": each(func(c *fakeWorker, r *fakeRequest) {
		switch r.env["PATH_INFO"] {
		case "/head":
			c.frame('h', head("200"))
			c.frame('d', []byte("half"))
		case "/half":
			c.Write([]byte{0, 0, 0, 9, 'h'})
		case "/whole":
			c.whole(1, head("200"), "last words")
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}),
	// hang takes a request and says nothing.
	"hang": each(func(c *fakeWorker, r *fakeRequest) { io.Copy(io.Discard, c) }),
}

// seraid connects to the control socket and sends what it reads to a channel.
func (w *world) seraid() (*net.UnixConn, <-chan route.FromProxy) {
	w.t.Helper()
	c, err := net.Dial("unix", w.dir+"/proxy.sock")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	news := make(chan route.FromProxy, 100)
	go func() {
		defer close(news)
		in := bufio.NewScanner(c)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			var m route.FromProxy
			if err := json.Unmarshal(in.Bytes(), &m); err != nil {
				w.t.Errorf("line %q: %v", in.Text(), err)
			}
			news <- m
		}
	}()
	return c.(*net.UnixConn), news
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-c:
		if !ok {
			t.Fatal("the channel was closed")
		}
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// TestOneVictim: a kill for memory is the end of one worker, not of its
// neighbours in the group that die of something else later.
func TestOneVictim(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Max, rs.Workers.Min = 2, 2
	w.serve(rs, echo)
	await(t, "both workers are connected", func() bool { return w.stats(1).Idle == 2 })
	p := w.server.registry.pool(1)
	p.t.mu.Lock()
	first, second := p.idle[0], p.idle[1]
	p.t.mu.Unlock()
	for _, tt := range []struct {
		c     *worker.Conn
		kills int64
		want  string
	}{{first, 0, route.KilledNo}, {first, 1, route.KilledYes}, {second, 1, route.KilledNo}, {second, 2, route.KilledYes}, {second, -1, ""}} {
		w.kills.Store(tt.kills)
		if got := p.killedForMemory(tt.c); got != tt.want {
			t.Errorf("after %d kills: %q, want %q", tt.kills, got, tt.want)
		}
	}
}

// TestWorkerDies kills a real process in the middle of requests. Whether the
// request is given to a second worker depends on the method, on what came of
// the reply, and on why it died.
func TestWorkerDies(t *testing.T) {
	for _, tt := range []struct {
		name, method, path string
		kills              int64 // what the kernel counts after the death
		status             int
		replayed           bool
		detail             string
	}{
		{"GET is replayed once", "GET", "/", 0, 200, true, "given to another worker"},
		{"HEAD is replayed once", "HEAD", "/", 0, 200, true, "given to another worker"},
		{"POST is not", "POST", "/", 0, 502, false, ""},
		{"PUT is not", "PUT", "/", 0, 502, false, ""},
		{"after a first byte it is not", "GET", "/half", 0, 502, false, ""},
		{"after a kill for memory it is not", "GET", "/", 1, 502, false, "killed for memory"},
		{"where nobody knows why it is not", "GET", "/", -1, 502, false, ""},
		{"the last words are heard", "GET", "/whole", 0, 200, false, "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			rs := w.site(1, "app.test")
			rs.Workers.Max = 1
			rs.Workers.Min = 1
			cmd, l := w.process("die")
			w.set(route.Record{Site: rs})
			_, news := w.seraid()
			await(t, "the worker is connected", func() bool { return w.stats(1).Idle == 1 })
			w.kills.Store(tt.kills)
			gone := make(chan struct{})
			go func() {
				cmd.Wait()
				close(gone)
				acceptWorkers(l, 1, 1, each(func(c *fakeWorker, r *fakeRequest) {
					c.whole(0, head("200", "X-Second", "yes"), "")
				}))
			}()
			resp, _ := w.mustGet(tt.method, tt.path, "app.test", nil)
			if resp.StatusCode != tt.status || (resp.Header.Get("X-Second") != "") != tt.replayed {
				t.Errorf("%s, second worker %q; want %d, replayed %v", resp.Status, resp.Header.Get("X-Second"), tt.status, tt.replayed)
			}
			<-gone
			if tt.detail == "none" {
				return
			}
			b := receive(t, news).Broken
			if b == nil || b.Cause != string(worker.Died) || b.Detail != tt.detail || b.PID != cmd.Process.Pid ||
				b.Request != resp.Header.Get("X-Request-Id") || b.Method != tt.method || b.Host != "app.test" || b.Path != tt.path || b.Site != 1 {
				t.Errorf("seraid was told %+v", b)
			}
		})
	}
}

func TestDeathInReply(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	w.process("die")
	w.set(route.Record{Site: rs})
	_, news := w.seraid()
	resp, text, err := w.get("GET", "/head", "app.test", nil)
	if err == nil || resp == nil || text != "half" {
		t.Errorf("%v, %q, %v; want half a reply and an error", resp, text, err)
	}
	if b := receive(t, news).Broken; b == nil || b.Cause != "died" || b.Detail != "in the middle of the reply" {
		t.Errorf("seraid was told %+v", b)
	}
	if len(w.monitor.killed) > 0 {
		t.Error("a dead process was killed")
	}
}

// TestIdleDeathIsSeen: a worker that dies while idle is never given a request.
func TestIdleDeathIsSeen(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	cmd, _ := w.process("pid")
	w.set(route.Record{Site: rs})
	if _, text := w.mustGet("GET", "/", "app.test", nil); text != fmt.Sprint(cmd.Process.Pid) {
		t.Fatalf("served by %s", text)
	}
	cmd.Process.Kill()
	cmd.Wait()
	await(t, "the worker is forgotten", func() bool { return len(w.stats(1).Workers) == 0 })
}

func TestTimeout(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Timeout = serai.Duration(50 * time.Millisecond)
	cmd, _ := w.process("hang")
	w.set(route.Record{Site: rs})
	_, news := w.seraid()
	w.monitor.end = privsep.Killed{State: "S", Wait: "pipe_read"}
	resp, text := w.mustGet("GET", "/slow", "app.test", nil)
	if resp.StatusCode != 504 || !strings.Contains(text, resp.Header.Get("X-Request-Id")) {
		t.Errorf("%s %q", resp.Status, text)
	}
	if b := receive(t, news).Broken; b == nil || b.Cause != "timeout" || b.Path != "/slow" || b.State != "S" || b.Wait != "pipe_read" {
		t.Errorf("seraid was told %+v", b)
	}
	await(t, "the worker is killed", func() bool { return w.monitor.kills() == 1 })
	if want := (privsep.KillWorker{WorkerRef: privsep.WorkerRef{Site: 1, PID: cmd.Process.Pid}, Ask: true}); w.monitor.killed[0] != want {
		t.Errorf("killed %v, not %v", w.monitor.killed, want)
	}
}

// TestSlow: a worker is asked once where it is, and the request goes on; one
// that is quick is not asked.
func TestSlow(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Slow = serai.Duration(20 * time.Millisecond)
	asked := make(chan struct{})
	w.monitor.onAsked = func() { close(asked) } // twice would panic
	w.serve(rs, each(func(c *fakeWorker, r *fakeRequest) {
		if r.env["PATH_INFO"] == "/slow" {
			<-asked
		}
		c.whole(0, head("200"), "done")
	}))
	if _, text := w.mustGet("GET", "/slow", "app.test", nil); text != "done" {
		t.Errorf("%q", text)
	}
	rs.Workers.Slow = serai.Duration(time.Hour)
	w.set(route.Record{Site: rs})
	if _, text := w.mustGet("GET", "/", "app.test", nil); text != "done" {
		t.Errorf("%q", text)
	}
}

// TestHostileWorkers: whatever a worker says, the client gets a page and
// neighbours are served.
func TestHostileWorkers(t *testing.T) {
	u32 := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	header := func(n uint32, typ byte) []byte { return append(u32(n), typ) }
	tests := []struct {
		name string
		say  func(c *fakeWorker)
		mid  bool // the reply had begun
	}{
		{"unknown type", func(c *fakeWorker) { c.frame('z', []byte("x")) }, false},
		{"a request back", func(c *fakeWorker) { c.frame('R', nil) }, false},
		{"a second hello", func(c *fakeWorker) { c.hello() }, false},
		{"data before head", func(c *fakeWorker) { c.frame('d', []byte("x")) }, false},
		{"last before head", func(c *fakeWorker) { c.frame('l', []byte{0}) }, false},
		{"endless whole", func(c *fakeWorker) { c.Write(header(0xffffffff, 'W')) }, false},
		{"endless head", func(c *fakeWorker) { c.Write(header(worker.MaxHead+1, 'h')) }, false},
		{"empty whole", func(c *fakeWorker) { c.frame('W', nil) }, false},
		{"empty head", func(c *fakeWorker) { c.frame('h', nil) }, false},
		{"head longer than its frame", func(c *fakeWorker) { c.frame('W', append([]byte{0}, u32(100)...)) }, false},
		{"head of 4 GiB in a whole", func(c *fakeWorker) { c.frame('W', append([]byte{0}, u32(0xffffffff)...)) }, false},
		{"body too long for a whole", func(c *fakeWorker) {
			c.whole(0, head("200"), strings.Repeat("x", worker.MaxData+1))
		}, false},
		{"status 100", func(c *fakeWorker) { c.whole(0, head("100"), "") }, false},
		{"status 199", func(c *fakeWorker) { c.whole(0, head("199"), "") }, false},
		{"status 1000", func(c *fakeWorker) { c.whole(0, head("1000"), "") }, false},
		{"status of letters", func(c *fakeWorker) { c.whole(0, head("2xx"), "") }, false},
		{"status with sign", func(c *fakeWorker) { c.whole(0, head("+20"), "") }, false},
		{"empty status", func(c *fakeWorker) { c.whole(0, head(""), "") }, false},
		{"name without value", func(c *fakeWorker) { c.whole(0, head("200", "X-A"), "") }, false},
		{"item beyond the head", func(c *fakeWorker) { c.whole(0, append(head("200"), 0, 9, 'x'), "") }, false},
		{"CR LF in a value", func(c *fakeWorker) { c.whole(0, head("200", "X-A", "a\r\nSet-Cookie: b=c"), "") }, false},
		{"LF in a value", func(c *fakeWorker) { c.whole(0, head("200", "X-A", "a\nb"), "") }, false},
		{"NUL in a value", func(c *fakeWorker) { c.whole(0, head("200", "X-A", "a\x00b"), "") }, false},
		{"CR LF in a name", func(c *fakeWorker) { c.whole(0, head("200", "X\r\nY", "b"), "") }, false},
		{"colon in a name", func(c *fakeWorker) { c.whole(0, head("200", "X:", "b"), "") }, false},
		{"empty name", func(c *fakeWorker) { c.whole(0, head("200", "", "b"), "") }, false},
		{"length that is none", func(c *fakeWorker) { c.whole(0, head("200", "Content-Length", "-1"), "") }, false},
		{"length of 100 digits", func(c *fakeWorker) {
			c.whole(0, head("200", "Content-Length", strings.Repeat("9", 100)), "")
		}, false},
		{"two lengths", func(c *fakeWorker) { c.whole(0, head("200", "Content-Length", "1", "content-length", "2"), "x") }, false},
		{"unknown flags", func(c *fakeWorker) { c.whole(0x80, head("200"), "") }, false},
		{"two replies in one", func(c *fakeWorker) {
			c.Write(append(frameOf('W', wholePayload(0, head("200"), "one")), frameOf('W', wholePayload(0, head("200"), "two"))...))
		}, false},
		{"closes", func(c *fakeWorker) { c.Close() }, false},
		{"half a frame", func(c *fakeWorker) { c.Write([]byte{0, 0, 1}); c.Close() }, false},
		{"head after head", func(c *fakeWorker) { c.frame('h', head("200")); c.frame('h', head("200")) }, true},
		{"whole after head", func(c *fakeWorker) { c.frame('h', head("200")); c.whole(0, head("200"), "x") }, true},
		{"empty data", func(c *fakeWorker) { c.frame('h', head("200")); c.frame('d', nil) }, true},
		{"endless data", func(c *fakeWorker) { c.frame('h', head("200")); c.Write(header(worker.MaxData+1, 'd')) }, true},
		{"last with too much", func(c *fakeWorker) { c.frame('h', head("200")); c.frame('l', []byte{0, 0}) }, true},
		{"last with unknown flags", func(c *fakeWorker) { c.frame('h', head("200")); c.frame('l', []byte{2}) }, true},
		{"closes in the reply", func(c *fakeWorker) { c.frame('h', head("200")); c.Close() }, true},
	}
	w := newWorld(t)
	w.serve(w.site(2, "good.test"), echo)
	for i, tt := range tests {
		w.serve(w.site(uint32(100+i), fmt.Sprintf("bad%d.test", i)), each(func(c *fakeWorker, _ *fakeRequest) { tt.say(c) }))
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := fmt.Sprintf("bad%d.test", i)
			resp, text, err := w.get("GET", "/", host, nil)
			switch {
			case tt.mid && err == nil:
				t.Errorf("the client saw a whole reply: %s %q", resp.Status, text)
			case !tt.mid && (err != nil || resp.StatusCode != 502):
				t.Errorf("%v %q, %v; want 502", resp, text, err)
			}
			if resp, text, err := w.get("GET", "/", "good.test", nil); err != nil || resp.StatusCode != 200 {
				t.Errorf("the neighbour answered %v %q, %v", resp, text, err)
			}
			await(t, "the worker is let go", func() bool { return len(w.stats(uint32(100+i)).Workers) == 0 })
		})
	}
	t.Cleanup(func() {
		w.server.background.Wait() // kills are asked for in the background
		if n := w.monitor.kills(); n < len(tests) {
			t.Errorf("%d of %d workers were killed", n, len(tests))
		}
	})
}

func frameOf(typ byte, p []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(p)))
	return append(append(b, typ), p...)
}

// TestHostileHellos: nobody who says it wrongly gets a request; a worker that
// says it right after them does.
func TestHostileHellos(t *testing.T) {
	hello := func(version, site uint32, launch uint64) []byte {
		p := binary.BigEndian.AppendUint32(nil, version)
		p = binary.BigEndian.AppendUint32(p, site)
		return frameOf('H', binary.BigEndian.AppendUint64(p, launch))
	}
	for _, tt := range []struct {
		name string
		say  func(c *fakeWorker)
	}{
		{"closes at once", func(c *fakeWorker) {}},
		{"half a hello", func(c *fakeWorker) { c.Write(hello(1, 1, 1)[:9]) }},
		{"another version", func(c *fakeWorker) { c.Write(hello(2, 1, 1)) }},
		{"another site", func(c *fakeWorker) { c.Write(hello(1, 2, 1)) }},
		{"an older launch", func(c *fakeWorker) { c.Write(hello(1, 1, 0)); c.readFrame() }},
		{"a reply first", func(c *fakeWorker) { c.whole(0, head("200"), "fake") }},
		{"HTTP", func(c *fakeWorker) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") }},
		{"a hello of 4 GiB", func(c *fakeWorker) {
			c.Write([]byte{0xff, 0xff, 0xff, 0xff, 'H', 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			rs := w.site(1, "app.test")
			rs.Workers.Max = 1
			w.serve(rs, func(c *fakeWorker) {
				if c.n < 3 {
					tt.say(c)
					return
				}
				echo(c)
			})
			if e := w.echo("GET", "/", "app.test", nil); e.Conn != 3 {
				t.Errorf("served by connection %d", e.Conn)
			}
		})
	}
}

// TestAttestation: a process that is not in the site's control group is given
// nothing, though it knows the hello.
func TestAttestation(t *testing.T) {
	w := newWorld(t)
	attest, err := worker.ByCgroup() // this test is in no group of ours
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 10)
	l, err := net.Listen("unix", w.socket(1))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go acceptWorkers(l, 1, 1, func(c *fakeWorker) {
		c.hello()
		typ, _, err := c.readFrame()
		asked <- fmt.Sprintf("%c %v", typ, err)
	})
	_, err = worker.Dial(t.Context(), worker.Target{Socket: w.socket(1), Site: 1, UID: uint32(os.Getuid())}, attest)
	if err == nil || !strings.Contains(err.Error(), "control group") {
		t.Errorf("Dial: %v", err)
	}
	if got := receive(t, asked); !strings.HasSuffix(got, "EOF") {
		t.Errorf("the impostor read %q", got)
	}
	_, err = worker.Dial(t.Context(), worker.Target{Socket: w.socket(1), Site: 1, UID: 1900001000}, attest)
	if err == nil || !strings.Contains(err.Error(), "uid") {
		t.Errorf("Dial for another uid: %v", err)
	}
}

func TestListenerIsCheckedOnce(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	w.set(route.Record{Site: rs})
	if resp, _ := w.mustGet("GET", "/", "app.test", nil); resp.StatusCode != 502 || w.monitor.checked != 1 {
		t.Fatalf("%s after %d checks", resp.Status, w.monitor.checked)
	}
	w.monitor.onChecked = func() { w.listen(rs, echo) }
	if e := w.echo("GET", "/", "app.test", nil); e.Conn != 1 {
		t.Errorf("served by %+v", e)
	}
}

// TestSiteFails: those who wait are told at once, later ones until the time for
// a new try has come, and workers that are connected go on.
func TestSiteFails(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	let := make(chan struct{})
	w.serve(rs, func(c *fakeWorker) {
		<-let
		echo(c)
	})
	fail := func(retry int64) {
		b, _ := json.Marshal(privsep.SiteEvent{Site: 1, Message: "boom", RetryMs: retry})
		w.server.Event(privsep.EvFailed, b)
	}
	code := make(chan int)
	go func() {
		resp, _, err := w.get("GET", "/", "app.test", nil)
		if err != nil {
			code <- 0
			return
		}
		code <- resp.StatusCode
	}()
	await(t, "the request waits", func() bool { return w.stats(1).Queued == 1 })
	fail(3_600_000)
	if got := receive(t, code); got != 502 {
		t.Errorf("the waiting request got %d", got)
	}
	resp, _ := w.mustGet("GET", "/", "app.test", nil)
	if resp.StatusCode != 502 || resp.Header.Get("Retry-After") != "3600" {
		t.Errorf("a later one got %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	fail(0) // the time has come
	close(let)
	w.echo("GET", "/", "app.test", nil)
	fail(3_600_000) // a reload that failed
	w.echo("GET", "/", "app.test", nil)
}
