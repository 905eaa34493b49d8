package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// apps are the applications, the same files for all, and Apache's configuration.
//
//go:embed apps
var apps embed.FS

// An application is one of apps, and how often it is asked when its CPU time is
// measured.
type application struct {
	name     string
	set      string // Serai's zygote
	requests int
}

var applications = []application{
	{"hello", "standard", 50000},
	{"cgi", "standard", 10000},
	{"dancer2", "dancer2", 2000},
}

// limits are the floors and the goals, by row.
var limits = map[string]string{
	"hello, MiB, 1 worker, after 100 requests":   "1.2, **0.7**",
	"cgi, MiB, 1 worker, after 100 requests":     "2.7, **1.6**",
	"dancer2, MiB, 1 worker, after 100 requests": "9, **5**",
	"hello, start, ms (p50 / p95 / max)":         "5, **3**",
	"cgi, start, ms (p50 / p95 / max)":           "7, **5**",
	"dancer2, start, ms (p50 / p95 / max)":       "37, **18**",
	"hello, " + direct:                           "13, **10.5**; a quarter of Starman's",
}

// direct is the row of what a request costs where nothing is in front of the
// processes that run the application.
const direct = "CPU of a request, asked directly, µs"

// A contender is a server that runs applications of many customers.
type contender interface {
	name() string
	open(ctx context.Context, b *bench) error
	// up starts n instances of an application; each has answered once. one
	// says with one worker each, else by the server's defaults.
	up(ctx context.Context, app application, n int, one bool) (fleet, error)
	// starts measures n starts of an application.
	starts(ctx context.Context, app application, n int) ([]time.Duration, error)
	close() error
}

// A fleet is instances of one application that are up.
type fleet interface {
	at(i int) endpoint
	pids() ([]int, error) // of all processes whose memory counts
	// servers are the processes that answer for instance i: those that run its
	// code, and what stands before them.
	servers(i int) (worker, proxy []int, err error)
	down() error
}

const (
	ourCount  = 200
	peerCount = 20
	startsOf  = 100                    // starts of a sleeping site
	apart     = 100 * time.Millisecond // between two starts, as real ones are
	each      = 100                    // requests to each instance before its memory counts
)

// perl measures all contenders one after the other.
func (b *bench) perl(ctx context.Context) error {
	t := &table{}
	defer func() { // also of a run that was broken off
		fmt.Println()
		t.print()
	}()
	contenders := []contender{&ours{}}
	for _, p := range peers {
		contenders = append(contenders, p)
	}
	bodies := make(map[string]string)
	for i, c := range contenders {
		n, starts := peerCount, peerCount
		if i == 0 {
			n, starts = ourCount, startsOf
		}
		if b.quick {
			n, starts = 4, 4
		}
		t.columns = append(t.columns, fmt.Sprintf("%s, n = %d", c.name(), n))
		if err := c.open(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
		for _, app := range applications {
			if b.quick {
				app.requests /= 100
			}
			if err := b.measure(ctx, t, t.columns[i], c, app, n, starts, bodies); err != nil {
				return fmt.Errorf("%s: %s: %w", c.name(), app.name, err)
			}
		}
		if err := c.close(); err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
	}
	fmt.Print(`
Memory is the sum of PSS of all processes ÷ n: masters, loaded processes, and
the zygote that the application is forked from. Serai's start is from the
client's first byte on an open connection, over loopback, to the first byte of
the reply of a site that slept; a peer's from exec. CPU is utime and stime of a
request over one kept connection, median of ` + fmt.Sprint(b.times) + ` rounds. Asked directly is
over HTTP for the peers, and over the worker protocol, at the site's socket, for Serai.
`)
	return nil
}

func (b *bench) measure(ctx context.Context, t *table, column string, c contender, app application, n, starts int, bodies map[string]string) error {
	set := func(what, format string, args ...any) { t.set(app.name+", "+what, column, format, args...) }
	for _, mode := range []struct {
		name string
		one  bool
	}{{"1 worker", true}, {"default", false}} {
		note("%s: %s, %s", c.name(), app.name, mode.name)
		f, err := c.up(ctx, app, n, mode.one)
		if err != nil {
			return err
		}
		err = func() error {
			body, _, err := once(ctx, f.at(0))
			if err != nil {
				return err
			}
			sum := sha256.Sum256(body)
			hash := fmt.Sprintf("%x", sum[:6])
			if first, ok := bodies[app.name]; ok && first != hash {
				return fmt.Errorf("the body is another one: %q", body)
			}
			bodies[app.name] = hash
			set("body", "%s", hash)
			if err := b.weigh(f, n, func(mib float64) { set("MiB, "+mode.name+", idle", "%.2f", mib) }); err != nil {
				return err
			}
			for i := range n {
				for range each {
					if _, _, err := once(ctx, f.at(i)); err != nil {
						return err
					}
				}
			}
			if err := b.weigh(f, n, func(mib float64) { set("MiB, "+mode.name+", after 100 requests", "%.2f", mib) }); err != nil {
				return err
			}
			if mode.one {
				return b.requests(ctx, f, app, set)
			}
			return nil
		}()
		if downErr := f.down(); err == nil {
			err = downErr
		}
		if err != nil {
			return err
		}
	}
	note("%s: %s, starts", c.name(), app.name)
	took, err := c.starts(ctx, app, starts)
	if err != nil {
		return err
	}
	set("start, ms (p50 / p95 / max)", "%s", quantiles(took))
	if o, ok := c.(*ours); ok {
		return o.direct(ctx, b, app, func(micros float64) { set(direct, "%.1f", micros) })
	}
	return nil
}

func (b *bench) weigh(f fleet, n int, set func(mib float64)) error {
	pids, err := f.pids()
	if err != nil {
		return err
	}
	kib, err := pss(pids)
	if err != nil {
		return err
	}
	set(float64(kib) / 1024 / float64(n))
	return nil
}

// requests measures the CPU time of requests over one kept connection.
func (b *bench) requests(ctx context.Context, f fleet, app application, set func(what, format string, args ...any)) error {
	worker, proxy, err := f.servers(0)
	if err != nil {
		return err
	}
	client, err := dial(ctx, f.at(0))
	if err != nil {
		return err
	}
	defer client.Close()
	ask := func() error {
		_, _, err := client.ask()
		return err
	}
	inWorker, inProxy, err := b.rounds(ctx, app.requests, worker, proxy, ask)
	if err != nil {
		return err
	}
	if len(proxy) == 0 {
		set(direct, "%.1f", inWorker)
		return nil
	}
	set("CPU of a request: worker behind the proxy, µs", "%.1f", inWorker)
	set("CPU of a request: proxy, µs", "%.1f", inProxy)
	return nil
}

// rounds is the CPU time of a request in worker and proxy, in microseconds:
// the median of several rounds of n requests.
func (b *bench) rounds(ctx context.Context, n int, worker, proxy []int, ask func() error) (inWorker, inProxy float64, err error) {
	var workers, proxies []float64
	for range b.times {
		w, p, err := round(ctx, n, worker, proxy, ask)
		if err != nil {
			return 0, 0, err
		}
		workers, proxies = append(workers, w), append(proxies, p)
	}
	return median(workers), median(proxies), nil
}

func round(ctx context.Context, n int, worker, proxy []int, ask func() error) (inWorker, inProxy float64, err error) {
	if err := ask(); err != nil {
		return 0, 0, err
	}
	w0, err0 := cpuTime(worker)
	p0, err1 := cpuTime(proxy)
	for range n {
		if err := errors.Join(ctx.Err(), ask()); err != nil {
			return 0, 0, err
		}
	}
	w1, err2 := cpuTime(worker)
	p1, err3 := cpuTime(proxy)
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n) }
	return each(w1 - w0), each(p1 - p0), errors.Join(err0, err1, err2, err3)
}

// writeApps writes the applications to a directory.
func writeApps(dir string) error {
	files, err := fs.Sub(apps, "apps")
	if err != nil {
		return err
	}
	return os.CopyFS(dir, files)
}
