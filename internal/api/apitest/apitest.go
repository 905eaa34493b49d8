// Package apitest stands in for what is beneath the API, in tests of the API
// and of the command line: no process of a tenant is started here.
package apitest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/api"
	"serai.dev/serai/internal/catalogue"
	"serai.dev/serai/internal/mail"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
	"serai.dev/serai/internal/store"
)

// BrokenRoot is the root of a site whose code does not load.
const BrokenRoot = "broken"

// BrokenMessage is what such code says. It tries to colour the reader's
// terminal.
const BrokenMessage = "app.psgi line 3: syntax error near \x1b[31m\"}\""

// Controller implements api.Controller over a store.
type Controller struct {
	Store store.Store

	mu       sync.Mutex
	launches []string
}

// Launches lists what was launched: "reload alice/shop".
func (c *Controller) Launches() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.launches
}

// Launch implements api.Controller.
func (c *Controller) Launch(ctx context.Context, key serai.Key, how api.How) (privsep.LaunchResult, error) {
	c.mu.Lock()
	c.launches = append(c.launches, string(how)+" "+key.String())
	c.mu.Unlock()
	r, err := c.Store.Get(ctx, key)
	if err != nil {
		return privsep.LaunchResult{}, err
	}
	if r.(*serai.Site).Spec.Root == BrokenRoot {
		return privsep.LaunchResult{Message: BrokenMessage, Millis: 7}, nil
	}
	return privsep.LaunchResult{Loaded: true, PID: 4711, Millis: 42}, nil
}

// RunJob implements api.Controller. The job "busy" runs already.
func (c *Controller) RunJob(ctx context.Context, key serai.Key, job string) (serai.Run, error) {
	r, err := c.Store.Get(ctx, key)
	if err != nil {
		return serai.Run{}, err
	}
	if !slices.ContainsFunc(r.(*serai.Site).Spec.Jobs, func(j serai.Job) bool { return j.Name == job }) {
		return serai.Run{}, serai.Errorf(serai.NotFound, "%s has no job %s", key, job)
	}
	if job == "busy" {
		return serai.Run{}, serai.Errorf(serai.Conflict, "the job busy of %s runs already", key)
	}
	return serai.Run{Number: 3, Started: time.Now()}, nil
}

// Stats implements api.Controller.
func (c *Controller) Stats(context.Context) ([]route.SiteStats, error) { return nil, nil }

// Site implements api.Controller.
func (c *Controller) Site(context.Context, serai.Key) (client.Running, error) {
	return client.Running{Phase: "running", PID: 4711, Launch: 1, Requests: 12, BytesIn: 2048, BytesOut: 1 << 20, Idle: 1,
		Memory: &client.Memory{Private: 9 << 20, Shared: 21 << 20, PSS: 16 << 20}, Left: map[string]int64{"requests": 2, "size": 3},
		Workers: []client.Worker{{PID: 4712, Launch: 1, Requests: 12, SinceMs: 61_000, Busy: true, RequestMs: 2340,
			Memory: &client.Memory{Private: 12.5 * (1 << 20), Shared: 30 << 20, PSS: 14 << 20}}, {PID: 4713, Launch: 1, SinceMs: 900}}}, nil
}

// State implements api.Controller.
func (c *Controller) State(context.Context) (client.Status, error) {
	return client.Status{
		Cgroup:    "v2 at /sys/fs/cgroup/serai",
		Listen:    []string{"127.0.0.1:8080"},
		Processes: []client.Process{{Name: "serai-priv", State: "up", PID: 100}, {Name: "serai-proxy", State: "up", PID: 102}},
		Zygotes:   []client.Zygote{{Name: "standard", State: "up", PID: 103, Missing: []string{"DBI"}}},
		Phases:    map[string]int{"running": 1},
	}, nil
}

// Logs implements api.Controller: the log is one line that names it; to follow
// it is to wait for ever.
func (c *Controller) Logs(ctx context.Context, key serai.Key, log api.Log, _ int, follow bool) (io.ReadCloser, error) {
	text := strings.NewReader("the " + string(log) + " log of " + key.String() + "\n")
	if !follow {
		return io.NopCloser(text), nil
	}
	r, w := io.Pipe()
	go func() { _, _ = io.Copy(w, text) }()
	context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	return r, nil
}

// SendMail implements api.Controller: what is sent is read and forgotten.
func (c *Controller) SendMail(_ context.Context, from mail.Sender, in io.Reader) (client.Sent, error) {
	text, err := io.ReadAll(in)
	return client.Sent{ID: from.String(), Answer: fmt.Sprintf("%d bytes", len(text))}, err
}

// Mailed implements api.Controller.
func (c *Controller) Mailed(context.Context, uint32) (hour, day int64, err error) { return 3, 40, nil }

// MailLog implements api.Controller: one line that names it.
func (c *Controller) MailLog(_ context.Context, tenant string, _ int, _ bool) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("the mail log of " + tenant + "\n")), nil
}

// Shelve implements api.Controller: the archive is the title.
func (c *Controller) Shelve(_ context.Context, entry string, archive io.Reader) (catalogue.Version, error) {
	title, err := io.ReadAll(archive)
	return catalogue.Version{Catalogue: serai.Catalogue{Title: string(title), Version: "1", Settings: map[string]serai.Setting{
		"title": {Type: "text", Default: "Guests", Meaning: "the heading"}, "to": {Type: "addresses", Required: true}}}, Script: "/shelf/" + entry}, err
}

// Unshelve implements api.Controller.
func (c *Controller) Unshelve(context.Context, string) error { return nil }

// Reconcile stands in for the reconciler until the test ends: plans are in
// force, tenants get their account, sites claim their hosts and load.
func Reconcile(t testing.TB, st store.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	changes, err := st.Watch(ctx, "")
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	var all []serai.Resource
	for _, kind := range []string{serai.KindPlan, serai.KindTenant, serai.KindSite} {
		rs, _, err := st.List(ctx, kind, "")
		if err != nil {
			cancel()
			t.Fatal(err)
		}
		all = append(all, rs...)
	}
	go func() {
		defer close(done)
		for _, r := range all {
			settle(ctx, t, st, r.Key())
		}
		for c := range changes {
			if !c.Removed {
				settle(ctx, t, st, c.Resource.Key())
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func settle(ctx context.Context, t testing.TB, st store.Store, key serai.Key) {
	for ctx.Err() == nil {
		err := pass(ctx, st, key)
		switch {
		case err == nil || serai.KindOf(err) == serai.NotFound:
			return
		case serai.KindOf(err) != serai.Conflict && ctx.Err() == nil && !errors.Is(err, context.Canceled):
			t.Errorf("settle %s: %v", key, err)
			return
		}
	}
}

// pass does for one resource what is left to do.
func pass(ctx context.Context, st store.Store, key serai.Key) error {
	r, err := st.Get(ctx, key)
	if err != nil {
		return err
	}
	m := r.GetMeta()
	if m.Deleted != nil {
		return remove(ctx, st, r)
	}
	observed, cs := serai.Progress(r)
	ready := serai.Condition{Type: serai.Ready, Status: serai.True}
	switch r := r.(type) {
	case *serai.Tenant:
		r.Status.UID, r.Status.Account, r.Status.Home = uint32(m.ID), m.Name, "/srv/serai/"+m.Name
	case *serai.Site:
		loaded := serai.Condition{Type: serai.Loaded, Status: serai.True}
		r.Status.Claimed = nil
		for _, h := range r.Spec.Hosts {
			holder, err := st.Claim(ctx, h, key)
			if err != nil {
				return err
			}
			if holder == key {
				r.Status.Claimed = append(r.Status.Claimed, h)
			}
		}
		switch {
		case r.Spec.Stopped:
			ready = serai.Condition{Type: serai.Ready, Status: serai.False, Reason: "Stopped"}
		case r.Spec.Root == BrokenRoot:
			loaded = serai.Condition{Type: serai.Loaded, Status: serai.False, Reason: "Failed", Message: BrokenMessage}
			ready = serai.Condition{Type: serai.Ready, Status: serai.False, Reason: "NotLoaded"}
		}
		cs.Set(loaded, time.Time{})
	}
	if changed := cs.Set(ready, time.Time{}); !changed && *observed == m.Generation {
		return nil
	}
	*observed = m.Generation
	_, err = st.UpdateStatus(ctx, r)
	return err
}

// remove takes the finalizers off a resource that is being deleted.
func remove(ctx context.Context, st store.Store, r serai.Resource) error {
	if len(r.GetMeta().Finalizers) == 0 {
		return nil
	}
	r.GetMeta().Finalizers = nil
	_, err := st.Update(ctx, r)
	return err
}
