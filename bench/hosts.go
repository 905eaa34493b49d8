package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// hosts measures what many sites cost: how long it takes until they are
// served, what one more takes then, and what our own processes hold.
func (b *bench) hosts(ctx context.Context) error {
	s, err := b.startServer(ctx, tenants, benchPlan)
	if err != nil {
		return err
	}
	fmt.Printf("\n%d sites of %d tenants, `workers: {max: 1}`:\n\n", b.sites, tenants)
	figure("what", "figure")
	figure("---", "---")
	begin := time.Now()
	sites := make([]site, b.sites)
	for i := range sites {
		sites[i] = hello(fmt.Sprintf("s%d", i), i%tenants)
	}
	if err := s.host(ctx, sites); err != nil {
		return err
	}
	since := func() string { return time.Since(begin).Round(100 * time.Millisecond).String() }
	figure("applied and committed, in files of 500", "%s", since())
	for _, end := range []site{sites[0], sites[len(sites)-1]} {
		if err := s.served(ctx, http.DefaultClient, end, 10*time.Minute); err != nil {
			return err
		}
	}
	figure("all of them served", "%s", since())
	if err := s.quiet(ctx); err != nil {
		return err
	}
	figure("all of them loaded once on trial, and asleep again", "%s", since())
	if err := addHosts(ctx, s); err != nil {
		return err
	}
	for _, of := range []string{"ops/priv", "ops/seraid", "ops/proxy", "ops/zygote-standard"} {
		pids, err := s.in(of)
		if err != nil {
			return err
		}
		kib, err := pss(pids)
		if err != nil {
			return err
		}
		figure("memory (PSS) of "+of, "%.1f MiB", float64(kib)/1024)
	}
	return s.stop()
}

func hello(name string, tenant int) site {
	return site{tenant: tenant, name: name, app: applications[0], workers: "{max: 1, idle: 1s}"}
}

// addHosts measures from the commit of one more site to its first answer, while
// a kept connection to another site must stay open.
func addHosts(ctx context.Context, s *server) error {
	var dials int
	kept := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}}
	var took []time.Duration
	for i := range 30 {
		more := hello(fmt.Sprintf("new%d", i), i%tenants)
		if err := s.apply(ctx, more.manifest()); err != nil {
			return err
		}
		committed := time.Now()
		if err := s.served(ctx, kept, more, 10*time.Second); err != nil {
			return err
		}
		took = append(took, time.Since(committed))
	}
	figure("one host more: from the commit to its first answer, which wakes it, ms (p50 / p95 / max)", "%s", quantiles(took))
	figure("connections that this closed", "%d", dials-1)
	return nil
}

// served asks until the proxy knows the host.
func (s *server) served(ctx context.Context, c *http.Client, of site, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		req, err := http.NewRequestWithContext(ctx, "HEAD", "http://"+s.addr+"/", nil)
		if err != nil {
			return err
		}
		req.Host = of.host()
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMisdirectedRequest {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not served after %s: %s", of.host(), limit, resp.Status)
		}
		time.Sleep(500 * time.Microsecond) // leave the processor to what is measured
	}
}
