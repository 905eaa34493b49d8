package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
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
	"hello, CPU of the worker, µs":               "13, **10.5**; a quarter of Starman's",
}

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
	fmt.Println()
	t.print()
	fmt.Print(`
Memory is the sum of PSS of all processes ÷ n: masters, loaded processes, and
the zygote that the application is forked from. Serai's start is from the
client's first byte on an open connection, over loopback, to the first byte of
the reply of a site that slept; a peer's from exec. CPU is that of a request
over one kept connection, median of ` + fmt.Sprint(b.rounds) + ` rounds; "one CPU" has client, proxy and worker on
one processor, so that no request waits for another one to wake up.
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

// requests measures the CPU time of requests over one connection.
func (b *bench) requests(ctx context.Context, f fleet, app application, set func(what, format string, args ...any)) error {
	worker, proxy, err := f.servers(0)
	if err != nil {
		return err
	}
	for _, spread := range []struct {
		name string
		cpus int
	}{{"", runtime.NumCPU()}, {", one CPU", 1}} {
		undo, err := pin(append(append([]int{os.Getpid()}, worker...), proxy...), spread.cpus)
		if err != nil {
			return err
		}
		var inWorker, inProxy []float64
		err = func() error {
			for range b.rounds {
				w, p, err := round(ctx, f.at(0), app.requests, worker, proxy)
				if err != nil {
					return err
				}
				inWorker, inProxy = append(inWorker, w), append(inProxy, p)
			}
			return nil
		}()
		if undoErr := undo(); err == nil {
			err = undoErr
		}
		if err != nil {
			return err
		}
		set("CPU of the worker"+spread.name+", µs", "%.1f", median(inWorker))
		if len(proxy) > 0 {
			set("CPU of the proxy"+spread.name+", µs", "%.1f", median(inProxy))
		}
	}
	return nil
}

// round is the CPU time of n requests, in microseconds each.
func round(ctx context.Context, to endpoint, n int, worker, proxy []int) (inWorker, inProxy float64, err error) {
	c, err := dial(ctx, to)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	if _, _, err := c.ask(); err != nil {
		return 0, 0, err
	}
	w0, err := cpuTime(worker)
	if err != nil {
		return 0, 0, err
	}
	p0, err := cpuTime(proxy)
	if err != nil {
		return 0, 0, err
	}
	for range n {
		if _, _, err := c.ask(); err != nil {
			return 0, 0, err
		}
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
	}
	w1, err := cpuTime(worker)
	if err != nil {
		return 0, 0, err
	}
	p1, err := cpuTime(proxy)
	if err != nil {
		return 0, 0, err
	}
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n) }
	return micros(w1 - w0), micros(p1 - p0), nil
}

// pin lets processes run on the first CPUs only; undo lets them run on all.
func pin(pids []int, cpus int) (undo func() error, err error) {
	set := func(n int) error {
		var allowed unix.CPUSet
		for i := range n {
			allowed.Set(i)
		}
		for _, pid := range pids {
			threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", pid))
			if err != nil {
				return err
			}
			for _, thread := range threads {
				var tid int
				fmt.Sscan(filepath.Base(thread), &tid)
				if err := unix.SchedSetaffinity(tid, &allowed); err != nil && err != unix.ESRCH {
					return fmt.Errorf("bind process %d to %d CPUs: %w", pid, n, err)
				}
			}
		}
		return nil
	}
	return func() error { return set(runtime.NumCPU()) }, set(cpus)
}

// writeApps writes the applications to a directory.
func writeApps(dir string) error {
	files, err := fs.Sub(apps, "apps")
	if err != nil {
		return err
	}
	return os.CopyFS(dir, files)
}
