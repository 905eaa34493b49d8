package api_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/peercred"
)

func (w *world) event(t *testing.T, tenant, reason string) serai.Event {
	t.Helper()
	e, err := w.store.AddEvent(t.Context(), serai.Event{Time: time.Unix(0, 0), Severity: "info", Reason: reason, Tenant: tenant, Message: "it happened"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// A pipeRecorder is the caller's end of a stream.
type pipeRecorder struct {
	*io.PipeWriter
	r      *io.PipeReader
	header http.Header
}

func newPipeRecorder() *pipeRecorder {
	r, w := io.Pipe()
	return &pipeRecorder{w, r, http.Header{}}
}

func (p *pipeRecorder) Header() http.Header { return p.header }
func (p *pipeRecorder) WriteHeader(int)     {}
func (p *pipeRecorder) Flush()              {}

// stream asks for events as somebody and returns their reasons as they come.
func (w *world) stream(t *testing.T, who, target string, header ...string) <-chan string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	pr := newPipeRecorder()
	out := make(chan string)
	done := make(chan struct{}, 2)
	go func() {
		defer func() { pr.Close(); done <- struct{}{} }()
		r := httptest.NewRequestWithContext(peercred.With(ctx, w.peer(who)), "GET", target, nil)
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w.server.Handler().ServeHTTP(pr, r)
	}()
	go func() {
		defer func() { close(out); done <- struct{}{} }()
		lines := bufio.NewScanner(pr.r)
		for lines.Scan() {
			if _, rest, ok := strings.Cut(lines.Text(), `"reason":"`); ok {
				reason, _, _ := strings.Cut(rest, `"`)
				select {
				case out <- reason:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	t.Cleanup(func() { cancel(); pr.r.Close(); <-done; <-done })
	return out
}

func next(t *testing.T, c <-chan string) string {
	t.Helper()
	select {
	case s, ok := <-c:
		if !ok {
			return "(end)"
		}
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("no event came")
		return ""
	}
}

func TestEventStream(t *testing.T) {
	w := newWorld(t)
	first := w.event(t, "alice", "A1")
	w.event(t, "bob", "B1")
	w.event(t, "alice", "A2")

	all := w.stream(t, "root", "/v1/events", "Accept", "text/event-stream")
	alice := w.stream(t, "alice", "/v1/events", "Accept", "text/event-stream")
	resumed := w.stream(t, "alice", "/v1/events", "Accept", "text/event-stream", "Last-Event-ID", fmt.Sprint(first.ID))
	newest := w.stream(t, "root", "/v1/events?limit=1&tenant=bob", "Accept", "text/event-stream")
	for _, want := range []string{"A1", "B1", "A2"} {
		if got := next(t, all); got != want {
			t.Errorf("the operator sees %s, want %s", got, want)
		}
	}
	if a, b := next(t, alice), next(t, alice); a+b != "A1A2" {
		t.Errorf("alice sees %s %s", a, b)
	}
	if got := next(t, resumed); got != "A2" {
		t.Errorf("after A1 comes %s", got)
	}
	if got := next(t, newest); got != "B1" {
		t.Errorf("the newest of bob is %s", got)
	}
	w.event(t, "bob", "B2")
	w.event(t, "alice", "A3")
	if a, b := next(t, all), next(t, all); a+b != "B2A3" {
		t.Errorf("the operator sees %s %s", a, b)
	}
	if a, b := next(t, alice), next(t, resumed); a+b != "A3A3" {
		t.Errorf("alice sees %s %s", a, b)
	}
	if got := next(t, newest); got != "B2" {
		t.Errorf("the newest of bob is %s", got)
	}
	w.server.Drain()
	if got := next(t, alice); got != "(end)" {
		t.Errorf("a draining server sends %s", got)
	}
}

// TestFollowEvents: a client sees each event once while the server is started
// anew beneath it.
func TestFollowEvents(t *testing.T) {
	w := newWorld(t)
	c := client.New(w.socket)
	defer c.Close()
	w.event(t, "alice", "E0")
	var got []string
	enough := errors.New("enough")
	err := c.FollowEvents(t.Context(), client.EventQuery{}, func(e serai.Event) error {
		got = append(got, e.Reason)
		switch e.Reason {
		case "E0":
			w.event(t, "alice", "E1")
		case "E1":
			w.stop()
			w.event(t, "bob", "E2")
			w.start(t)
		case "E2":
			w.event(t, "alice", "E3")
		case "E3":
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || strings.Join(got, " ") != "E0 E1 E2 E3" {
		t.Errorf("saw %v, %v", got, err)
	}
}

func TestWait(t *testing.T) {
	w := newWorld(t)
	key := serai.Key{Kind: serai.KindSite, Tenant: "alice", Name: "shop"}
	const path = "/v1/tenants/alice/sites/shop"
	r, err := w.store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	generation := r.GetMeta().Generation + 1

	answer := make(chan string, 1)
	wait := func(target string) {
		go func() {
			code, body := w.ask(t, "alice", "GET", target, "")
			answer <- fmt.Sprint(code, " ", body)
		}()
		until(t, "it waits", func() bool { return w.server.Waiting(key) })
	}

	wait(fmt.Sprintf("%s?wait=Ready&generation=%d&timeout=1m", path, generation))
	w.apply(t, "alice", site("alice", "shop", "new.alice.example"), nil)
	if got := <-answer; !strings.Contains(got, fmt.Sprintf(`"observedGeneration":%d`, generation)) || !strings.HasPrefix(got, "200") {
		t.Errorf("ready: %s", got)
	}

	// What cannot become ready is answered at once, what is stopped too.
	w.apply(t, "alice", strings.Replace(site("alice", "shop", "new.alice.example"), "root: shop", "root: broken", 1), nil)
	if code, body := w.ask(t, "alice", "GET", fmt.Sprintf("%s?wait=Ready&generation=%d&timeout=5m", path, generation+1), ""); code != 200 || !strings.Contains(body, "syntax error") {
		t.Errorf("broken: %d %s", code, body)
	}
	w.ask(t, "alice", "POST", path+"/stop", "")
	if code, body := w.ask(t, "alice", "GET", fmt.Sprintf("%s?wait=Ready&generation=%d&timeout=5m", path, generation+2), ""); code != 200 || !strings.Contains(body, "Stopped") {
		t.Errorf("stopped: %d %s", code, body)
	}

	// When the time is over the answer is what there is.
	if code, body := w.ask(t, "alice", "GET", fmt.Sprintf("%s?wait=Ready&generation=%d&timeout=1ms", path, generation+100), ""); code != 200 {
		t.Errorf("late: %d %s", code, body)
	}

	wait(path + "?wait=Gone&timeout=1m")
	w.ask(t, "alice", "DELETE", path, "")
	if got := <-answer; !strings.HasPrefix(got, "404") {
		t.Errorf("gone: %s", got)
	}

	key.Name = "blog"
	wait("/v1/tenants/alice/sites/blog?wait=Gone&timeout=1m")
	w.server.Drain()
	if got := <-answer; !strings.HasPrefix(got, "503") {
		t.Errorf("drained: %s", got)
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	const path = "/v1/tenants/alice/sites/shop/logs"
	for target, want := range map[string]string{
		path:                  "the site log of alice/shop\n",
		path + "?kind=access": "the access log of alice/shop\n",
	} {
		if code, body := w.ask(t, "alice", "GET", target, ""); code != http.StatusOK || body != want {
			t.Errorf("%s: %d %q", target, code, body)
		}
	}
	c := client.New(w.socket)
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	text, err := c.Logs(ctx, serai.Key{Kind: serai.KindSite, Tenant: "alice", Name: "shop"}, client.LogQuery{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	line, err := bufio.NewReader(text).ReadString('\n')
	if err != nil || line != "the site log of alice/shop\n" {
		t.Errorf("followed %q, %v", line, err)
	}
	// A server that ends does not wait for those who follow.
	w.stop()
}
