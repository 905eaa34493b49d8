package root

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// A load is clients that ask for one URL again and again, each time over a new
// connection, until it is stopped.
type load struct {
	stop chan struct{}
	wg   sync.WaitGroup
	once sync.Once

	mu       sync.Mutex
	kills    []time.Time
	requests int
	failures []failure
	grown    *sync.Cond
}

type failure struct {
	begin, end time.Time
	what       string
}

// killed notes that a process was killed now: what was under way may fail.
func (l *load) killed(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kills = append(l.kills, at)
}

func (l *load) end() {
	l.once.Do(func() { close(l.stop) })
	l.wg.Wait()
}

// cmdLoad: load start NAME HOST PATH [CLIENTS]; load reach NAME N waits for N
// requests; load stop NAME fails if any request failed that was not under way
// while a process was killed; load stop NAME strict if any failed at all.
func cmdLoad(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	if len(args) < 2 {
		ts.Fatalf("usage: load start|reach|stop NAME ...")
	}
	name := args[1]
	if args[0] == "start" {
		clients := 4
		if len(args) > 4 {
			n, err := strconv.Atoi(args[4])
			ts.Check(err)
			clients = n
		}
		l := &load{stop: make(chan struct{})}
		l.grown = sync.NewCond(&l.mu)
		s.mu.Lock()
		s.load[name] = l
		s.mu.Unlock()
		for range clients {
			l.wg.Go(func() { l.run(ts.Getenv("URL"), args[2], args[3]) })
		}
		return
	}
	l := s.load[name]
	if l == nil {
		ts.Fatalf("no load %s", name)
	}
	switch args[0] {
	case "reach":
		n, err := strconv.Atoi(args[2])
		ts.Check(err)
		l.mu.Lock()
		defer l.mu.Unlock()
		for want := l.requests + n; l.requests < want && len(l.failures) < 1000; {
			l.grown.Wait()
		}
	case "stop":
		l.end()
		var bad []string
		for _, f := range l.failures {
			if len(args) > 2 && args[2] == "strict" || !l.excused(f) {
				bad = append(bad, f.what)
			}
		}
		_, err := fmt.Fprintf(ts.Stdout(), "%d requests, %d failed, %d of them inside a killed process\n", l.requests, len(l.failures), len(l.failures)-len(bad))
		ts.Check(err)
		if len(bad) > 0 {
			ts.Fatalf("%d requests failed:\n%s", len(bad), strings.Join(bad[:min(5, len(bad))], "\n"))
		}
	}
}

func (l *load) excused(f failure) bool {
	for _, k := range l.kills {
		if f.begin.Before(k) && f.end.After(k) {
			return true
		}
	}
	return false
}

func (l *load) run(addr, host, path string) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		begin := time.Now()
		what := fetch(client, addr, host, path)
		l.mu.Lock()
		l.requests++
		if what != "" {
			l.failures = append(l.failures, failure{begin, time.Now(), what})
		}
		l.grown.Broadcast()
		l.mu.Unlock()
	}
}

// fetch says what was wrong with one request, or nothing.
func fetch(client *http.Client, addr, host, path string) string {
	req, err := http.NewRequest("GET", "http://"+addr+path, nil)
	if err != nil {
		return err.Error()
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	if resp.StatusCode != 200 {
		return fmt.Sprintf("%s%s: %s: %s", host, path, resp.Status, strings.Join(strings.Fields(string(body)), " "))
	}
	return ""
}
