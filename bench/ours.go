package main

import (
	"context"
	"fmt"
	"time"
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
