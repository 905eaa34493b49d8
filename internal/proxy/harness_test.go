package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// A world is a proxy on a port of its own, with a monitor that only notes what
// it is asked, and workers that tests write.
type world struct {
	t       *testing.T
	dir     string
	addr    string
	server  *Server
	monitor *fakeMonitor
	routes  *route.Log
	logs    *syncBuffer
	kills   atomic.Int64 // what Kills says; below 0 is not known
	stop    func() error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), logs: new(syncBuffer)}
	for _, d := range []string{"spool", "access", "sites"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.routes, err = route.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.routes.Close() })
	w.monitor = &fakeMonitor{w: w, files: make(map[privsep.FilesRef]string), news: make(chan struct{})}
	w.server, err = New(Options{
		SpoolDir: filepath.Join(w.dir, "spool"), AccessDir: filepath.Join(w.dir, "access"), Format: "combined",
		Socket: w.socket, Monitor: w.monitor, Grace: patience,
		Log: slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Attest: func(worker.Target, int) (worker.Kills, error) {
			return func() (int64, bool) { n := w.kills.Load(); return n, n >= 0 }, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	control, err := net.Listen("unix", filepath.Join(w.dir, "proxy.sock"))
	if err != nil {
		t.Fatal(err)
	}
	w.set(route.Record{Tenant: &route.Tenant{UID: uint32(os.Getuid()), Name: "alice", Workers: 100}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.server.Run(ctx, []net.Listener{l}, control, func(uint32) bool { return true }) }()
	w.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Logf("log of the proxy:\n%s", w.logs.String())
		}
	})
	return w
}

func (w *world) socket(site uint32) string {
	return filepath.Join(w.dir, "sites", strconv.Itoa(int(site)))
}

// set appends a record and has the proxy apply it.
func (w *world) set(r route.Record) {
	w.t.Helper()
	end, err := w.routes.Append(r)
	if err != nil {
		w.t.Fatal(err)
	}
	if got, err := w.server.Apply(w.t.Context(), &end); err != nil || got != end {
		w.t.Fatalf("Apply(%v) = %v, %v", end, got, err)
	}
}

// site is a route with what most tests want.
func (w *world) site(number uint32, host string) *route.Site {
	return &route.Site{
		Number: number, UID: uint32(os.Getuid()), Tenant: "alice", Name: "site" + strconv.Itoa(int(number)),
		Hosts: []string{host}, Launch: 1,
		Workers: serai.Workers{Max: 4, Timeout: serai.Duration(patience), Idle: serai.Duration(time.Minute)},
		Queue:   serai.Queue{Length: 10, Wait: serai.Duration(patience)},
		Body:    serai.Body{Max: 1 << 20, Buffer: 64 << 10},
		Reply:   serai.Reply{Buffer: 64 << 10, Spool: 1 << 20},
	}
}

// serve routes a host to a site whose workers serve as f says.
func (w *world) serve(rs *route.Site, f func(c *fakeWorker)) {
	w.t.Helper()
	w.listen(rs, f)
	w.set(route.Record{Site: rs})
}

func (w *world) listen(rs *route.Site, f func(c *fakeWorker)) {
	w.t.Helper()
	l, err := net.Listen("unix", w.socket(rs.Number))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	go acceptWorkers(l, rs.Number, uint64(rs.Launch), f)
}

func acceptWorkers(l net.Listener, site uint32, launch uint64, f func(c *fakeWorker)) {
	for n := 1; ; n++ {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			f(&fakeWorker{Conn: conn, in: bufio.NewReader(conn), site: site, launch: launch, n: n})
		}()
	}
}

// get makes a request and reads all of the answer.
func (w *world) get(method, url, host string, body io.Reader) (*http.Response, string, error) {
	r, err := http.NewRequest(method, "http://"+w.addr+url, body)
	if err != nil {
		return nil, "", err
	}
	r.Host = host
	r.Close = true
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func (w *world) mustGet(method, url, host string, body io.Reader) (*http.Response, string) {
	w.t.Helper()
	resp, text, err := w.get(method, url, host, body)
	if err != nil {
		w.t.Fatalf("%s %s%s: %v", method, host, url, err)
	}
	return resp, text
}

// raw sends bytes and reads what comes until the connection ends.
func (w *world) raw(send string) string {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, send); err != nil {
		w.t.Logf("write: %v", err)
	}
	got, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		w.t.Fatalf("the connection did not end after\n%q\ngot\n%s", send, got)
	}
	return string(got)
}

// await looks at a condition again and again until it holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never came true: %s", what)
		}
	}
}

// stats is what the pool of a site counts.
func (w *world) stats(site uint32) route.SiteStats { return w.server.registry.pool(site).snapshot() }

// A fakeMonitor answers as serai-priv does.
type fakeMonitor struct {
	w *world

	mu        sync.Mutex
	files     map[privsep.FilesRef]string
	killed    []privsep.KillWorker
	end       privsep.Killed // of one that was asked
	onAsked   func()
	checked   int
	onChecked func()
	news      chan struct{}
}

func (m *fakeMonitor) Call(_ context.Context, op string, args, body any, _ ...*os.File) ([]*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch op {
	case privsep.OpRoutes:
		fd, err := unix.FcntlInt(m.w.routes.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return []*os.File{os.NewFile(uintptr(fd), "routes")}, nil
	case privsep.OpFiles:
		dir, ok := m.files[args.(privsep.FilesRef)]
		if !ok {
			return nil, serai.Errorf(serai.NotFound, "no such directory")
		}
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		return []*os.File{f}, err
	case privsep.OpKillWorker:
		k := args.(privsep.KillWorker)
		m.killed = append(m.killed, k)
		if k.Ask {
			*body.(*privsep.Killed) = m.end
		}
	case privsep.OpAskWorker:
		m.onAsked()
	case privsep.OpCheckListener:
		if m.checked++; m.onChecked != nil {
			m.onChecked()
		}
	}
	return nil, nil
}

func (m *fakeMonitor) kills() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.killed)
}

// A fakeWorker is the worker's side of one connection.
type fakeWorker struct {
	net.Conn
	in     *bufio.Reader
	site   uint32
	launch uint64
	n      int // of the connection, from 1
}

func (c *fakeWorker) frame(typ byte, payload []byte) error {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	_, err := c.Write(append(append(b, typ), payload...))
	return err
}

func (c *fakeWorker) hello() {
	p := binary.BigEndian.AppendUint32(nil, worker.Version)
	p = binary.BigEndian.AppendUint32(p, c.site)
	c.frame('H', binary.BigEndian.AppendUint64(p, c.launch))
}

type fakeRequest struct {
	env  map[string]string
	body []byte
}

// request reads one request, or returns nil after Q or at the end.
func (c *fakeWorker) request() *fakeRequest {
	typ, p, err := c.readFrame()
	if err != nil || typ == 'Q' {
		return nil
	}
	r := &fakeRequest{env: parseList(p)}
	for typ != 'R' && typ != 'E' {
		if typ, p, err = c.readFrame(); err != nil {
			return nil
		}
		r.body = append(r.body, p...)
	}
	return r
}

func (c *fakeWorker) readFrame() (byte, []byte, error) {
	var h [5]byte
	if _, err := io.ReadFull(c.in, h[:]); err != nil {
		return 0, nil, err
	}
	p := make([]byte, binary.BigEndian.Uint32(h[:]))
	_, err := io.ReadFull(c.in, p)
	return h[4], p, err
}

func parseList(p []byte) map[string]string {
	var items []string
	for len(p) >= 2 {
		n := int(binary.BigEndian.Uint16(p))
		items = append(items, string(p[2:2+n]))
		p = p[2+n:]
	}
	env := make(map[string]string)
	for i := 0; i+1 < len(items); i += 2 {
		if _, twice := env[items[i]]; twice {
			env["TWICE"] += items[i] + " "
		}
		env[items[i]] = items[i+1]
	}
	return env
}

func head(status string, fields ...string) []byte {
	b := worker.AppendList(nil, status)
	for _, f := range fields {
		b = worker.AppendList(b, f)
	}
	return b
}

func wholePayload(flags byte, head []byte, body string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(head)))
	return append(append(b, head...), body...)
}

func (c *fakeWorker) whole(flags byte, head []byte, body string) error {
	return c.frame('W', wholePayload(flags, head, body))
}

// each answers every request of the connection by f.
func each(f func(c *fakeWorker, r *fakeRequest)) func(*fakeWorker) {
	return func(c *fakeWorker) {
		c.hello()
		for r := c.request(); r != nil; r = c.request() {
			f(c, r)
		}
	}
}

// echo answers with the environment and the body as JSON.
var echo = each(func(c *fakeWorker, r *fakeRequest) {
	b, _ := json.Marshal(map[string]any{"env": r.env, "body": string(r.body), "conn": c.n})
	c.whole(0, head("200", "Content-Type", "application/json"), string(b))
})

type echoed struct {
	Env  map[string]string `json:"env"`
	Body string            `json:"body"`
	Conn int               `json:"conn"`
}

func (w *world) echo(method, url, host string, body io.Reader) echoed {
	w.t.Helper()
	resp, text := w.mustGet(method, url, host, body)
	var e echoed
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		w.t.Fatalf("%s %s%s: %s %q: %v", method, host, url, resp.Status, text, err)
	}
	return e
}

// TestMain lets the test binary be a worker process of its own, which can be
// killed.
func TestMain(m *testing.M) {
	if mode := os.Getenv("SERAI_TEST_WORKER"); mode != "" {
		l, err := net.FileListener(os.NewFile(3, "listener"))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		acceptWorkers(l, 1, 1, workerModes[mode])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process starts a worker process that serves site 1 as a mode says, and
// returns its listener too. It is ended with the test.
func (w *world) process(mode string) (*exec.Cmd, net.Listener) {
	w.t.Helper()
	l, err := net.Listen("unix", w.socket(1))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SERAI_TEST_WORKER="+mode)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, l
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

var statusLine = regexp.MustCompile(`HTTP/1\.[01] (\d\d\d) `)

// statuses are the status codes of the replies on a raw connection.
func statuses(got string) (codes []string) {
	for _, m := range statusLine.FindAllStringSubmatch(got, -1) {
		codes = append(codes, m[1])
	}
	return codes
}
