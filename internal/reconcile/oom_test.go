package reconcile

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// Broken requests and kills for memory in every order.
func TestJoin(t *testing.T) {
	const site, pid = 7, 100
	broken := func(id string) route.Broken {
		return route.Broken{Site: site, PID: 101, Request: id, Method: "GET", Host: "h", Path: "/x", Cause: "died"}
	}
	known := func(id, killed string) route.Broken {
		b := broken(id)
		b.Killed = killed
		return b
	}
	mem := func(kills int64) privsep.Memory {
		return privsep.Memory{OOMKills: kills, Peak: 64 << 20, Limit: 64 << 20}
	}
	exit := func(kills int64) privsep.SiteEvent {
		return privsep.SiteEvent{Site: site, PID: pid, Memory: mem(kills)}
	}
	type want struct{ reason, request string }
	for _, tt := range []struct {
		name string
		play func(ctx context.Context, j *join, kernel *atomic.Int64)
		want []want
	}{
		{"a worker of a loaded process is killed", func(ctx context.Context, j *join, kernel *atomic.Int64) {
			kernel.Store(1)
			j.broke(ctx, broken("a"))
		}, []want{{OutOfMemory, "a"}}},
		{"the kernel counts late", func(ctx context.Context, j *join, kernel *atomic.Int64) {
			j.broke(ctx, broken("a"))
			time.Sleep(time.Second)
			kernel.Store(1)
		}, []want{{OutOfMemory, "a"}}},
		{"the main process is killed, told of first", func(ctx context.Context, j *join, _ *atomic.Int64) {
			j.exited(ctx, exit(1))
			time.Sleep(time.Second)
			j.broke(ctx, broken("a"))
		}, []want{{OutOfMemory, "a"}}},
		{"the main process is killed, told of last", func(ctx context.Context, j *join, _ *atomic.Int64) {
			j.broke(ctx, broken("a"))
			time.Sleep(time.Second)
			j.exited(ctx, exit(1))
		}, []want{{OutOfMemory, "a"}}},
		{"one kill is counted once", func(ctx context.Context, j *join, kernel *atomic.Int64) {
			kernel.Store(1)
			j.broke(ctx, broken("a"))
			time.Sleep(time.Second)
			j.exited(ctx, exit(1))
		}, []want{{OutOfMemory, "a"}}},
		{"no kill", func(ctx context.Context, j *join, _ *atomic.Int64) {
			j.broke(ctx, broken("a"))
		}, []want{{WorkerDied, "a"}}},
		{"one kill, two requests", func(ctx context.Context, j *join, kernel *atomic.Int64) {
			kernel.Store(1)
			j.broke(ctx, broken("a"))
			j.broke(ctx, broken("b"))
		}, []want{{OutOfMemory, "a"}, {WorkerDied, "b"}}},
		{"one crashed, one was killed", func(ctx context.Context, j *join, kernel *atomic.Int64) {
			j.broke(ctx, known("a", route.KilledNo))
			kernel.Store(1)
			j.broke(ctx, known("b", route.KilledYes))
		}, []want{{WorkerDied, "a"}, {OutOfMemory, "b"}}},
		{"of one nothing is known, one was killed", func(ctx context.Context, j *join, kernel *atomic.Int64) {
			j.broke(ctx, broken("a"))
			synctest.Wait()
			kernel.Store(1)
			j.broke(ctx, known("b", route.KilledYes))
		}, []want{{OutOfMemory, "b"}, {WorkerDied, "a"}}},
		{"a kill between requests", func(ctx context.Context, j *join, kernel *atomic.Int64) {
			kernel.Store(1)
		}, []want{{OutOfMemory, ""}}},
		{"a kill between requests, then the end", func(ctx context.Context, j *join, _ *atomic.Int64) {
			j.exited(ctx, exit(2))
		}, []want{{OutOfMemory, ""}, {OutOfMemory, ""}}},
		{"another site", func(ctx context.Context, j *join, kernel *atomic.Int64) {
			kernel.Store(1)
			b := broken("a")
			b.Site = 8
			j.broke(ctx, b)
		}, []want{{WorkerDied, "a"}, {OutOfMemory, ""}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var got []want
				add := func(e serai.Event) {
					got = append(got, want{e.Reason, e.Fields["request"]})
					if e.Reason == OutOfMemory && (e.Fields["cap"] != "64Mi" || e.Fields["peak"] != "64Mi") {
						t.Errorf("event %+v", e)
					}
				}
				j := newJoin(add, func(uint32) (string, string, bool) { return "alice", "shop", true })
				var kernel atomic.Int64
				j.leaf = func(int) (string, bool) { return "leaf", true }
				j.read = func(string) (privsep.Memory, error) { return mem(kernel.Load()), nil }
				done := make(chan struct{})
				go func() { j.run(ctx); close(done) }()
				j.started(ctx, site, pid, false)
				synctest.Wait()
				tt.play(ctx, j, &kernel)
				time.Sleep(joinSweep + joinWait + time.Second)
				cancel()
				<-done
				if len(got) != len(tt.want) {
					t.Fatalf("told %v; want %v", got, tt.want)
				}
				for i := range got {
					if got[i] != tt.want[i] {
						t.Errorf("told %v; want %v", got, tt.want)
					}
				}
				if j.open != 0 {
					t.Errorf("%d wait for ever", j.open)
				}
			})
		})
	}
}

// Kills from before this seraid are not news.
func TestJoinAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		j := newJoin(func(e serai.Event) { got = append(got, e.Reason) }, func(uint32) (string, string, bool) { return "a", "b", true })
		j.leaf = func(int) (string, bool) { return "leaf", true }
		j.read = func(string) (privsep.Memory, error) { return privsep.Memory{OOMKills: 3}, nil }
		done := make(chan struct{})
		go func() { j.run(ctx); close(done) }()
		j.started(ctx, 1, 100, true)
		time.Sleep(2 * joinSweep)
		j.broke(ctx, route.Broken{Site: 1, Cause: "died"})
		time.Sleep(2 * joinWait)
		cancel()
		<-done
		if len(got) != 1 || got[0] != WorkerDied {
			t.Errorf("told %v", got)
		}
	})
}

func TestKilledSentence(t *testing.T) {
	e := killed("alice", "shop", &route.Broken{Request: "1f", PID: 9, Method: "GET", Path: "/x", Host: "h"}, privsep.Memory{Peak: 64 << 20, Limit: 64 << 20})
	if want := "alice/shop was killed for memory while serving GET /x: cap 64Mi, peak 64Mi"; e.Message != want {
		t.Errorf("%q; want %q", e.Message, want)
	}
	if e.Severity != "error" || e.Fields["request"] != "1f" || e.Fields["pid"] != "9" || e.Fields["host"] != "h" || e.Fields["path"] != "/x" {
		t.Errorf("event %+v", e)
	}
}

func TestLeafOf(t *testing.T) {
	const v2 = "30 29 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	const v1 = "31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
		"32 29 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n" +
		"33 29 0:29 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"
	for _, tt := range []struct{ name, groups, mounts, want string }{
		{"v2", "0::/serai/tenants/19/3.1\n", v2, "/sys/fs/cgroup/serai/tenants/19/3.1"},
		{"v1", "12:memory:/serai/tenants/19/3.1\n3:cpu,cpuacct:/x\n0::/y\n", v1, "/sys/fs/cgroup/memory/serai/tenants/19/3.1"},
		{"a part of the tree is mounted", "0::/pod/serai/3.1\n", "30 29 0:26 /pod /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/serai/3.1"},
		{"outside of what is mounted", "0::/other\n", "30 29 0:26 /pod /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ""},
		{"nothing mounted", "0::/a\n", "", ""},
		{"rubbish", "x\n::\n", "a b\n - \n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := leafOf([]byte(tt.groups), []byte(tt.mounts)); got != tt.want || ok != (tt.want != "") {
				t.Errorf("leafOf = %q, %v; want %q", got, ok, tt.want)
			}
		})
	}
}

func TestReadLeaf(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
	}{
		{"v2", map[string]string{"t/memory.peak": "300\n", "t/memory.max": "400\n",
			"t/leaf/memory.events": "low 0\noom 5\noom_kill 2\noom_group_kill 0\n"}},
		{"v1", map[string]string{"t/memory.max_usage_in_bytes": "300\n", "t/memory.limit_in_bytes": "400\n",
			"t/leaf/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tt.files {
				os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700)
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := readLeaf(filepath.Join(dir, "t/leaf"))
			if want := (privsep.Memory{OOMKills: 2, Peak: 300, Limit: 400}); got != want || err != nil {
				t.Errorf("readLeaf = %+v, %v; want %+v", got, err, want)
			}
		})
	}
	if _, err := readLeaf(t.TempDir()); err == nil {
		t.Error("a directory that is no cgroup has counters")
	}
}
