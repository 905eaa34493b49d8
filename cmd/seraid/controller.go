package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/api"
	"serai.dev/serai/internal/catalogue"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/mail"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/reconcile"
	"serai.dev/serai/internal/route"
	"serai.dev/serai/internal/sitelog"
)

// controller is the running system as the API sees it.
type controller struct {
	cfg  *config.Config
	rec  *reconcile.Reconciler
	logs *sitelog.Logs
	mail *mail.Desk

	shelf catalogue.Shelf
}

var _ api.Controller = (*controller)(nil)

// Launch implements api.Controller. Both ways load beside what runs and leave
// it where the new code does not load; old workers that are still busy after
// serai-priv's grace time are ended either way.
func (c *controller) Launch(ctx context.Context, site serai.Key, _ api.How) (privsep.LaunchResult, error) {
	return c.rec.Launch(ctx, site)
}

func (c *controller) RunJob(ctx context.Context, site serai.Key, job string) (serai.Run, error) {
	return c.rec.RunJob(ctx, site, job)
}

func (c *controller) Stats(ctx context.Context) ([]route.SiteStats, error) { return c.rec.Stats(ctx) }

func (c *controller) Site(ctx context.Context, site serai.Key) (client.Running, error) {
	seen, err := c.rec.Site(site)
	if err != nil {
		return client.Running{}, err
	}
	run := client.Running{Phase: seen.Phase, PID: seen.PID}
	sizes, cancel := context.WithTimeout(ctx, sizesTime)
	defer cancel()
	if seen.PID != 0 {
		run.Memory = c.memory(sizes, seen.Number, seen.PID)
	}
	stats, err := c.rec.Stats(ctx)
	if err != nil { // the proxy is away: its fields stay empty
		return run, nil
	}
	i := slices.IndexFunc(stats, func(s route.SiteStats) bool { return s.Site == seen.Number })
	if i < 0 {
		return run, nil
	}
	s := stats[i]
	run.Requests, run.Status, run.BytesIn, run.BytesOut = s.Requests, s.Status, s.BytesIn, s.BytesOut
	run.Idle, run.Busy, run.Queued, run.Wakes, run.Left = s.Idle, s.Busy, s.Queued, s.Wakes, s.Left
	slices.SortFunc(s.Workers, func(a, b route.WorkerStats) int {
		return cmp.Or(cmp.Compare(b.SinceMs, a.SinceMs), cmp.Compare(a.PID, b.PID))
	})
	for _, w := range s.Workers {
		run.Workers = append(run.Workers, client.Worker{PID: w.PID, Launch: w.Launch, Requests: w.Requests,
			Busy: w.Busy, RequestMs: w.RequestMs, SinceMs: w.SinceMs, Memory: c.memory(sizes, seen.Number, w.PID)})
		run.Launch = max(run.Launch, w.Launch)
	}
	return run, nil
}

// sizesTime is how long the memory of a site's processes may be looked at: one
// that changes its map lets who looks at it wait.
const sizesTime = 2 * time.Second

// memory is nil where it cannot be had: the process has ended, or time is over.
func (c *controller) memory(ctx context.Context, site uint32, pid int) *client.Memory {
	size, err := c.rec.Size(ctx, site, pid)
	if err != nil {
		return nil
	}
	m := client.Memory(size)
	return &m
}

func (c *controller) State(context.Context) (client.Status, error) {
	proxy := client.Process{Name: "serai-proxy", State: "away"}
	if c.rec.ProxyUp() {
		proxy.State, proxy.PID = "running", c.rec.ProxyPID()
	}
	st := client.Status{
		Processes: []client.Process{
			{Name: "serai-priv", State: "running", PID: os.Getppid()},
			{Name: "seraid", State: "running", PID: os.Getpid(), Version: serai.Version()},
			proxy,
		},
		Cgroup: cgroupText(c.cfg.CgroupRoot),
		Listen: slices.Concat(c.cfg.Listen.HTTP, c.cfg.Listen.HTTPS),
		Phases: c.rec.Phases(), Pending: c.rec.Pending(),
	}
	for _, z := range c.rec.Zygotes() {
		st.Zygotes = append(st.Zygotes, client.Zygote{Name: z.Name, State: z.State, PID: z.PID, Missing: z.Missing, Message: z.Message})
	}
	return st, nil
}

func (c *controller) Logs(ctx context.Context, site serai.Key, log api.Log, lines int, follow bool) (io.ReadCloser, error) {
	path := c.logs.Path(site)
	if log == api.AccessLog {
		path = c.logs.AccessPath(site)
	}
	return c.logs.Read(ctx, path, lines, follow)
}

func (c *controller) SendMail(ctx context.Context, from mail.Sender, in io.Reader) (client.Sent, error) {
	r, err := c.mail.Submit(ctx, from, in)
	return client.Sent{ID: r.ID, Answer: r.Answer}, err
}

func (c *controller) Mailed(ctx context.Context, uid uint32) (hour, day int64, err error) {
	return c.mail.Mailed(ctx, uid)
}

func (c *controller) Shelve(_ context.Context, entry string, archive io.Reader) (catalogue.Version, error) {
	return c.shelf.Put(entry, archive)
}

func (c *controller) Unshelve(_ context.Context, entry string) error { return c.shelf.Remove(entry) }

func (c *controller) MailLog(ctx context.Context, tenant string, lines int, follow bool) (io.ReadCloser, error) {
	return c.logs.Read(ctx, c.logs.MailPath(tenant), lines, follow)
}

// cgroupText says which kind of cgroups limits memory here.
func cgroupText(root string) string {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	version := 2
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(line, ":", 3); len(f) == 3 && slices.Contains(strings.Split(f[1], ","), "memory") {
			version = 1
		}
	}
	return fmt.Sprintf("version %d, group %s", version, root)
}
