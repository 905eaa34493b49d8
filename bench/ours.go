package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"serai.dev/serai/internal/proxy/worker"
)

// ours is Serai as a contender.
type ours struct {
	s *server
}

func (o *ours) name() string { return "Serai" }

func (o *ours) open(ctx context.Context, b *bench) (err error) {
	o.s, err = b.startServer(ctx, tenants, benchPlan)
	return err
}

func (o *ours) close() error { return o.s.stop() }

// sites are n sites of one application.
func (o *ours) sites(prefix string, app application, n int, workers string) []site {
	var list []site
	for i := range n {
		list = append(list, site{tenant: i % tenants, name: fmt.Sprintf("%s%d", prefix, i), app: app, workers: workers})
	}
	return list
}

// A ourFleet is sites that are awake.
type ourFleet struct {
	s     *server
	ctx   context.Context
	sites []site
}

func (o *ours) up(ctx context.Context, app application, n int, one bool) (fleet, error) {
	workers := ""
	if one {
		workers = "{max: 1, requests: 0}"
	}
	f := &ourFleet{o.s, ctx, o.sites("up", app, n, workers)}
	if err := o.s.host(ctx, f.sites); err != nil {
		return nil, err
	}
	for i := range f.sites {
		if err := o.s.ready(ctx, f.sites[i]); err != nil {
			return nil, err
		}
		if _, _, err := once(ctx, f.at(i)); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *ourFleet) at(i int) endpoint { return endpoint{f.s.addr, f.sites[i].host()} }

func (f *ourFleet) pids() ([]int, error) {
	ofSites, err := f.s.in("tenants")
	if err != nil {
		return nil, err
	}
	zygote, err := f.s.in("ops/zygote-" + f.sites[0].app.set)
	return append(ofSites, zygote...), err
}

func (f *ourFleet) servers(i int) (worker, proxy []int, err error) {
	all, err := processes()
	if err != nil {
		return nil, nil, err
	}
	for _, p := range all {
		if p.command == "serai "+f.sites[i].key().String() {
			worker = append(worker, p.pid)
		}
	}
	proxy, err = f.s.in("ops/proxy")
	if err == nil && (len(worker) != 1 || len(proxy) != 1) {
		err = fmt.Errorf("%d processes of the site, %d of the proxy: not one each", len(worker), len(proxy))
	}
	return worker, proxy, err
}

func (f *ourFleet) down() error { return f.s.remove(f.ctx, f.sites) }

// starts measures wakes: each of a site that has slept since it was loaded on
// trial.
func (o *ours) starts(ctx context.Context, app application, n int) ([]time.Duration, error) {
	list := o.sites("start", app, n, "{max: 1, idle: 1s}")
	if err := o.s.host(ctx, list); err != nil {
		return nil, err
	}
	for _, s := range list {
		if err := o.s.ready(ctx, s); err != nil {
			return nil, err
		}
	}
	if err := o.s.quiet(ctx); err != nil {
		return nil, err
	}
	var took []time.Duration
	for _, s := range list {
		_, first, err := once(ctx, endpoint{o.s.addr, s.host()})
		if err != nil {
			return nil, err
		}
		took = append(took, first)
		time.Sleep(apart)
	}
	return took, o.s.remove(ctx, list)
}

// direct measures a worker without the proxy: at the socket of a site that
// sleeps, which the first connection wakes.
func (o *ours) direct(ctx context.Context, b *bench, app application, set func(micros float64)) error {
	list := o.sites("direct", app, 1, "{max: 1, requests: 0, idle: 1s}")
	if err := o.s.host(ctx, list); err != nil {
		return err
	}
	if err := o.s.ready(ctx, list[0]); err != nil {
		return err
	}
	if err := o.s.quiet(ctx); err != nil {
		return err
	}
	r, err := o.s.client.Get(ctx, list[0].key())
	if err != nil {
		return err
	}
	u, err := o.s.account(ctx, list[0].tenant)
	if err != nil {
		return err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return err
	}
	at := worker.Target{Socket: fmt.Sprintf("%s/run/sites/%d.sock", o.s.base, r.GetMeta().ID), Site: uint32(r.GetMeta().ID), UID: uint32(uid)}
	c, err := worker.Dial(ctx, at, func(worker.Target, int) (worker.Kills, error) {
		return func() (int64, bool) { return 0, false }, nil
	})
	if err != nil {
		return err
	}
	defer c.Close()
	var request worker.Request
	for _, pair := range environment {
		name, value, _ := strings.Cut(pair, "=")
		request.Add(name, value)
	}
	micros, _, err := b.rounds(ctx, app.requests, []int{c.PID}, nil, func() error {
		e := c.Start(&request, nil, 0, patience)
		defer e.Free()
		reply, err := e.Reply()
		if err == nil && (reply.Status != 200 || !reply.Whole) {
			err = fmt.Errorf("the worker answered %d", reply.Status)
		}
		return err
	})
	if err != nil {
		return err
	}
	set(micros)
	c.Quit()
	return o.s.remove(ctx, list)
}

// environment is what the proxy makes of the requests that clients of ours send.
var environment = []string{
	"REQUEST_METHOD=GET", "SCRIPT_NAME=", "PATH_INFO=/", "REQUEST_URI=/?name=world", "QUERY_STRING=name=world",
	"SERVER_NAME=customer.example", "SERVER_PORT=8080", "SERVER_PROTOCOL=HTTP/1.1", "SERVER_SOFTWARE=serai",
	"REMOTE_ADDR=127.0.0.1", "REMOTE_PORT=40000", "SERAI_REQUEST=0123456789abcdef", "HTTP_HOST=customer.example",
	"HTTP_USER_AGENT=bench", "HTTP_ACCEPT=*/*",
	"HTTP_X_FORWARDED_FOR=127.0.0.1", "HTTP_X_FORWARDED_PROTO=http", "HTTP_X_FORWARDED_HOST=customer.example",
}
