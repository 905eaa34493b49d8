package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	goodCount = 200
	eachWay   = 3 // customers whose code is sick in the same way
	askers    = 4 // clients of the good ones
)

// ways are those in which bench/apps/sick.psgi can go wrong.
var ways = []string{"leak", "loop", "fork", "crash", "leave", "stop", "flood", "files"}

// soakPlan is for all: what the sick ones take is what the plan leaves them.
const soakPlan = "{memory: 96Mi, cpu: 250m, processes: 30, workers: 4}"

// What our own processes and the machine may have less of at the end. The
// machine has other users.
const (
	ownSlack     = 48 << 10  // KiB of PSS in all
	machineSlack = 192 << 10 // KiB
	filesSlack   = 32        // open files in all
)

// soak asks customers whose code is sick, beside good ones, for a long time. A
// good one that sees an error fails the run, and so does memory that does not
// come back.
func (b *bench) soak(ctx context.Context) error {
	s, err := b.startServer(ctx, goodCount+eachWay*len(ways), soakPlan)
	if err != nil {
		return err
	}
	var good, sick []site
	for i := range goodCount {
		app := applications[[]int{0, 0, 0, 0, 0, 0, 1, 1, 1, 2}[i%10]]
		good = append(good, site{tenant: i, name: fmt.Sprintf("good%d", i), app: app, workers: "{max: 2, idle: 10s}"})
	}
	for i := range eachWay * len(ways) {
		way := ways[i%len(ways)]
		sick = append(sick, site{tenant: goodCount + i, name: fmt.Sprintf("%s%d", way, i/len(ways)),
			app: application{name: "sick", set: "standard"}, workers: "{max: 2, idle: 10s, timeout: 2s}", env: "{SICK: " + way + "}"})
	}
	note("soak: %d customers", len(good)+len(sick))
	if err := s.host(ctx, slices.Concat(good, sick)); err != nil {
		return err
	}
	if err := b.everyGood(ctx, s, good); err != nil {
		return err
	}
	note("soak: all have answered")
	if err := s.quiet(ctx); err != nil {
		return err
	}
	note("soak: all sleep")
	before, err := s.weighed()
	if err != nil {
		return err
	}
	fmt.Printf("\n%d customers of which each is sick in one of %d ways, beside %d good ones, for %s:\n\n", len(sick), len(ways), len(good), b.soakFor)
	figure("what", "figure")
	figure("---", "---")
	asked, failed := b.ask(ctx, s, good, sick)
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, site := range sick {
		if _, err := s.client.Stop(ctx, site.key()); err != nil {
			return err
		}
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	after, err := s.weighed()
	if err != nil {
		return err
	}
	figure("replies of the good ones", "%d, ms (p50 / p95 / max) %s", len(asked), quantiles(asked))
	figure("errors that they saw", "%d", len(failed))
	figure("memory of our own processes (PSS) before and after", "%.1f, %.1f MiB", float64(before.own)/1024, float64(after.own)/1024)
	figure("open files of ours before and after", "%d, %d", before.files, after.files)
	figure("memory that the machine had free before and after", "%.0f, %.0f MiB", float64(before.free)/1024, float64(after.free)/1024)
	figure("cgroups of tenants that are left", "%d", after.cgroups)
	if len(failed) > 0 {
		return fmt.Errorf("%d requests of good customers failed, the first: %w", len(failed), failed[0])
	}
	if after.own > before.own+ownSlack || after.free < before.free-machineSlack || after.files > before.files+filesSlack || after.cgroups > 0 {
		return fmt.Errorf("the machine is not as it was: %+v, and before %+v", after, before)
	}
	return s.stop()
}

// everyGood asks every good customer once, and keeps what each application says.
func (b *bench) everyGood(ctx context.Context, s *server, good []site) error {
	b.bodies = make(map[string][]byte)
	for _, site := range good {
		if err := s.ready(ctx, site); err != nil {
			return err
		}
		body, _, err := once(ctx, endpoint{s.addr, site.host()})
		if err != nil {
			return err
		}
		if known := b.bodies[site.app.name]; known != nil && !bytes.Equal(known, body) {
			return fmt.Errorf("%s says %q, and others say %q", site.host(), body, known)
		}
		b.bodies[site.app.name] = body
	}
	return nil
}

// ask asks all, for as long as the run shall last. What the sick ones answer is
// theirs to know. The good ones are asked one after the other, so that most of
// them fall asleep in between and are woken in the turmoil.
func (b *bench) ask(ctx context.Context, s *server, good, sick []site) (took []time.Duration, failed []error) {
	ctx, cancel := context.WithTimeout(ctx, b.soakFor)
	defer cancel()
	var all sync.WaitGroup
	for _, site := range sick {
		all.Go(func() {
			for ctx.Err() == nil {
				once(ctx, endpoint{s.addr, site.host()})
				pause(ctx, 50*time.Millisecond)
			}
		})
	}
	var mu sync.Mutex
	next := 0
	for range askers {
		all.Go(func() {
			for ctx.Err() == nil {
				mu.Lock()
				site := good[next%len(good)]
				next++
				mu.Unlock()
				begin := time.Now()
				body, _, err := once(context.WithoutCancel(ctx), endpoint{s.addr, site.host()})
				if err == nil && !bytes.Equal(body, b.bodies[site.app.name]) {
					err = fmt.Errorf("%s says %.100q", site.host(), body)
				}
				mu.Lock()
				took = append(took, time.Since(begin))
				if err != nil {
					failed = append(failed, err)
					note("%v", err)
				}
				mu.Unlock()
				pause(ctx, 20*time.Millisecond)
			}
		})
	}
	all.Wait()
	return took, failed
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// A weight is what a server at rest holds.
type weight struct {
	own     int // KiB of PSS of our processes, zygotes among them
	files   int // that they have open
	free    int // KiB that the machine could give
	cgroups int // of tenants
}

func (s *server) weighed() (w weight, err error) {
	pids, err := s.in("ops")
	if err != nil {
		return w, err
	}
	if w.own, err = pss(pids); err != nil {
		return w, err
	}
	for _, pid := range pids {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return w, err
		}
		w.files += len(open)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/serai-bench/tenants/*", "/sys/fs/cgroup/*/serai-bench/tenants/*"} {
		dirs, err := filepath.Glob(pattern + "/cgroup.procs")
		if err != nil {
			return w, err
		}
		w.cgroups += len(dirs)
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return w, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" {
			w.free, err = strconv.Atoi(f[1])
			return w, err
		}
	}
	return w, errors.New("/proc/meminfo has no MemAvailable")
}
