package main

import (
	"encoding/json"
	"testing"
	"time"

	"serai.dev/serai/internal/privsep"
)

// words counts how often site 1 asks to be loaded anew before until, and at
// least once.
func (s *server) words(until time.Time) (n int) {
	s.t.Helper()
	deadline := time.After(40 * time.Second)
	for {
		var enough <-chan time.Time
		if n > 0 {
			enough = time.After(time.Until(until))
		}
		select {
		case e := <-s.seraid.Events():
			var ref privsep.SiteRef
			if e.Op == privsep.EvReload && json.Unmarshal(e.Body, &ref) == nil && ref.Site == 1 {
				n++
			}
		case <-enough:
			return n
		case <-deadline:
			s.t.Fatal("nothing was said")
		}
	}
}

// A site's own process asks for its code to be loaded anew. That is kept until
// it is; a process that asks without end is heard once a second; one whose
// seraid is away is not forgotten.
func TestReloadAsked(t *testing.T) {
	s := newServer(t)
	s.start()
	a := s.tenant(22, privsep.Tenant{Memory: 64 << 20, Processes: 30})
	s.write(a, "www/app.psgi", `open my $s, '+<&=', 4; my $f = "$ENV{HOME}/flood";
		sub { if (-e $f) { send $s, 'reload', 0x4040 for 1 .. 100_000 } [200, ["Content-Type", "text/plain"], [$$]] }`)
	s.ask(privsep.OpSetSite, launch(1, a, 1, "app", "app.psgi", "max", "1"), nil)
	w, err := s.knock(1)
	if err != nil {
		t.Fatal(err)
	}
	s.write(a, "www/tmp/restart.txt", "")
	if n := s.words(time.Now()); n != 1 || !s.state(1).Reload {
		t.Errorf("asked %d times, state %+v", n, s.state(1))
	}
	var r privsep.LaunchResult
	s.ask(privsep.OpLaunch, privsep.SiteRef{Site: 1}, &r)
	if st := s.state(1); !r.Loaded || st.Reload {
		t.Errorf("launch %+v, state %+v", r, st)
	}

	w.conn.Write([]byte{0, 0, 0, 0, 'Q'})
	s.write(a, "flood", "")
	if w, err = s.knock(1); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	flooded := make(chan error)
	go func() {
		for range 5 {
			if _, err := w.get("/"); err != nil {
				flooded <- err
			}
		}
		close(flooded)
	}()
	n := s.words(began.Add(3 * time.Second))
	if took := time.Since(began); float64(n) > took.Seconds()+2 {
		t.Errorf("heard %d times in %s", n, took)
	}
	if err := <-flooded; err != nil {
		t.Error(err)
	}
	s.stop()
}
