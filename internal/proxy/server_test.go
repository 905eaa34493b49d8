package proxy

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// TestRestart: requests under way are finished, and the next proxy finds the
// same workers.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	g := newGate()
	w.serve(w.site(1, "app.test"), each(g.serve))
	under := w.start("app.test", "/under-way")
	receive(t, g.in)
	ended := make(chan error)
	go func() { ended <- w.stop() }()
	await(t, "nothing new is taken", func() bool {
		c, err := net.Dial("tcp", w.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(g.out)
	if got := receive(t, under); got != "200 /under-way" {
		t.Error(got)
	}
	if err := receive(t, ended); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestSeraid(t *testing.T) {
	w := newWorld(t)
	w.serve(w.site(1, "app.test"), echo)
	// What happened while it was away is told when it comes.
	w.server.control.broken(route.Broken{Site: 7, Request: "early"})
	c, news := w.seraid()
	if b := receive(t, news).Broken; b == nil || b.Request != "early" {
		t.Errorf("told %+v", b)
	}
	end, err := w.routes.Append(route.Record{Site: w.site(2, "two.test")})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, `{"routes":{"epoch":%d,"offset":%d}}`+"\n", end.Epoch, end.Offset)
	if a := receive(t, news).Applied; a == nil || *a != end {
		t.Errorf("applied %v, want %v", a, end)
	}
	w.echo("GET", "/", "app.test", strings.NewReader("12345"))
	await(t, "it is counted", func() bool { return w.stats(1).Requests == 1 })
	io.WriteString(c, `{"stats":true}`+"\n")
	var sites []route.SiteStats
	for {
		m := receive(t, news)
		if m.StatsEnd {
			break
		}
		sites = append(sites, m.Stats...)
	}
	if len(sites) != 2 {
		t.Fatalf("stats of %d sites", len(sites))
	}
	for _, s := range sites {
		if s.Site == 1 && (s.Requests != 1 || s.Status["2xx"] != 1 || s.BytesIn != 5 || s.BytesOut == 0 || s.Idle != 1 || s.Workers[0].Requests != 1) {
			t.Errorf("%+v", s)
		}
	}
	// A newer connection takes over; nonsense ends one.
	c2, news2 := w.seraid()
	if _, ok := <-news; ok {
		t.Error("the old connection was told something")
	}
	w.server.control.broken(route.Broken{Request: "late"})
	if b := receive(t, news2).Broken; b == nil || b.Request != "late" {
		t.Errorf("told %+v", b)
	}
	io.WriteString(c2, `{"nonsense":1}`+"\n")
	if m, ok := <-news2; ok {
		t.Errorf("nonsense was answered by %+v", m)
	}
}

func TestEventsAreHints(t *testing.T) {
	w := newWorld(t)
	w.serve(w.site(1, "app.test"), echo)
	for _, op := range []string{privsep.EvStarted, privsep.EvExited, privsep.EvFailed, privsep.EvZygote, "unknown"} {
		for _, body := range []string{`{"site":1,"pid":5}`, `{"site":99}`, `nonsense`, ``} {
			w.server.Event(op, []byte(body))
		}
	}
	w.echo("GET", "/", "app.test", nil)
}
