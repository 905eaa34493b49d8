// Package proxy is the front proxy: it takes requests from the world, finds the
// site by host, serves its files or gives the request to one of its workers,
// and writes the access logs. It holds no root power, no store, and no way into
// a home but the directories serai-priv opens for it. What comes from clients
// and from workers is hostile to it.
package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// A Monitor is serai-priv, as privsep.Conn speaks to it.
type Monitor interface {
	Call(ctx context.Context, op string, args, body any, files ...*os.File) ([]*os.File, error)
}

// Options are what a Server needs. All are required but the last two, of which
// a server on its author's own computer makes use.
type Options struct {
	SpoolDir  string                   // for bodies and replies that are larger than their buffers
	AccessDir string                   // of the access logs
	Format    string                   // of the access logs: a name of Formats
	Socket    func(site uint32) string // path of a site's listener
	Attest    worker.Attest
	Monitor   Monitor
	Grace     time.Duration // for requests under way when the server is to end
	Log       *slog.Logger

	Access io.Writer                 // gets the lines of all access logs as they come; AccessDir is not used
	Before func(ctx context.Context) // is called before each request, which waits for it
}

// A Server is the front proxy. Make it with New.
type Server struct {
	monitor  Monitor
	up       *Upstream
	registry *registry
	roots    *roots
	spool    *spool
	access   *accessLog
	control  *control
	grace    time.Duration
	before   func(context.Context)
	log      *slog.Logger

	table      atomic.Pointer[table] // nil before the first routes
	background sync.WaitGroup        // replies taken off workers, calls of serai-priv

	routes sync.Mutex // guards reader, and changes of the table
	reader *route.Reader
}

// callTime bounds what the proxy asks of serai-priv.
const callTime = 10 * time.Second

// New makes a server that serves nothing yet.
func New(o Options) (*Server, error) {
	format := Formats[o.Format]
	if format == nil {
		return nil, serai.Errorf(serai.Invalid, "there is no log format %q: use combined or json", o.Format)
	}
	s := &Server{monitor: o.Monitor, grace: o.Grace, before: o.Before, log: o.Log,
		spool: newSpool(o.SpoolDir), access: newAccessLog(o.AccessDir, format, o.Log)}
	s.access.all = o.Access
	s.up = &Upstream{
		Dial: func(ctx context.Context, t worker.Target) (*worker.Conn, error) {
			return worker.Dial(ctx, t, o.Attest)
		},
		Socket: o.Socket,
		Kill: func(site uint32, pid int) {
			s.background.Go(func() { s.kill(site, pid, false) })
		},
		End: func(site uint32, pid int, done func(privsep.Killed)) {
			s.background.Go(func() { done(s.kill(site, pid, true)) })
		},
		Ask: func(site uint32, pid int) {
			s.background.Go(func() { s.call(privsep.OpAskWorker, privsep.WorkerRef{Site: site, PID: pid}, nil) })
		},
		CheckListener: func(ctx context.Context, site uint32) error {
			_, err := s.monitor.Call(ctx, privsep.OpCheckListener, privsep.SiteRef{Site: site}, nil)
			return err
		},
		Log: o.Log,
	}
	s.registry = newRegistry(s.up)
	s.roots = newRoots(s.openRoot, o.Log)
	s.control = newControl(s)
	return s, nil
}

func (s *Server) kill(site uint32, pid int, ask bool) (how privsep.Killed) {
	s.call(privsep.OpKillWorker, privsep.KillWorker{WorkerRef: privsep.WorkerRef{Site: site, PID: pid}, Ask: ask}, &how)
	return how
}

// call asks serai-priv for something to be done with a worker, which may have
// died meanwhile.
func (s *Server) call(op string, args, body any) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	_, err := s.monitor.Call(ctx, op, args, body)
	if err != nil && serai.KindOf(err) != serai.NotFound {
		s.log.Warn("worker not reached", "request", op, "worker", args, "cause", err)
	}
}

func (s *Server) openRoot(ctx context.Context, site uint32, index int) (*os.File, error) {
	files, err := s.monitor.Call(ctx, privsep.OpFiles, privsep.FilesRef{Site: site, Index: index}, nil)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("open directory %d of site %d: %d descriptors came", index, site, len(files))
	}
	return files[0], nil
}

// Event takes in an event of serai-priv. One it does not know is left alone.
func (s *Server) Event(op string, body json.RawMessage) {
	switch op {
	case privsep.EvStarted, privsep.EvFailed, privsep.EvExited:
	default:
		return
	}
	var ev privsep.SiteEvent
	if err := json.Unmarshal(body, &ev); err != nil {
		s.log.Error("event not understood", "event", op, "cause", err)
		return
	}
	s.registry.event(op, ev)
}

// Apply brings the table up to an extent of the log that seraid named, or, with
// nil, to the end of the log that serai-priv holds. It returns how far the
// table is. Where no log was set yet the error is NotFound.
func (s *Server) Apply(ctx context.Context, want *route.Extent) (route.Extent, error) {
	s.routes.Lock()
	defer s.routes.Unlock()
	if want == nil || s.reader == nil || s.reader.Extent().Epoch != want.Epoch {
		if err := s.load(ctx); err != nil {
			return route.Extent{}, err
		}
		return s.reader.Extent(), nil
	}
	t := s.table.Load()
	for s.reader.Extent().Offset < want.Offset {
		r, err := s.reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return s.reader.Extent(), err
		}
		s.change(t, r)
	}
	return s.reader.Extent(), nil
}

// load replaces the table by what a log says from its start. s.routes is held.
func (s *Server) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	files, err := s.monitor.Call(ctx, privsep.OpRoutes, nil, nil)
	if err != nil {
		return fmt.Errorf("get the routes: %w", err)
	}
	if len(files) != 1 {
		for _, f := range files {
			f.Close()
		}
		return fmt.Errorf("get the routes: %d descriptors came", len(files))
	}
	reader, err := route.Open(files[0])
	if err != nil {
		files[0].Close()
		return err
	}
	// Only the last word on each counts: pools must not see older ones.
	sites, tenants := make(map[uint32]*route.Site), make(map[uint32]*route.Tenant)
	for {
		r, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			s.log.Error("routes end early", "cause", err)
			break
		}
		switch {
		case r.Site != nil:
			sites[r.Site.Number] = r.Site
		case r.Drop != 0:
			delete(sites, r.Drop)
		case r.Tenant != nil:
			tenants[r.Tenant.UID] = r.Tenant
		case r.Forget != 0:
			delete(tenants, r.Forget)
		}
	}
	t := newTable()
	for _, rt := range tenants {
		s.change(t, route.Record{Tenant: rt})
	}
	for _, rs := range sites {
		s.change(t, route.Record{Site: rs})
	}
	s.table.Store(t)
	s.registry.retain(
		func(number uint32) bool { return sites[number] != nil },
		func(uid uint32) bool { return tenants[uid] != nil })
	if s.reader != nil {
		s.reader.Close()
	}
	s.reader = reader
	s.log.Info("routes loaded", "sites", len(sites), "tenants", len(tenants))
	return nil
}

// change makes one record true in a table and in the pools.
func (s *Server) change(t *table, r route.Record) {
	switch {
	case r.Site != nil:
		t.setSite(&site{Site: r.Site, pool: s.registry.setSite(r.Site)})
	case r.Drop != 0:
		t.dropSite(r.Drop)
		s.registry.dropSite(r.Drop)
	case r.Tenant != nil:
		t.setTenant(r.Tenant)
		s.registry.setTenant(r.Tenant)
	case r.Forget != 0:
		t.dropTenant(r.Forget)
		s.registry.forgetTenant(r.Forget)
	}
}

// Run serves until ctx ends: clients on the listeners, seraid on the control
// listener, whose callers allowed lets in by uid. Then it takes nothing new and
// gives what is under way its grace. Workers are not sent away: the next proxy
// finds them.
func (s *Server) Run(ctx context.Context, listeners []net.Listener, ctl net.Listener, allowed func(uid uint32) bool) error {
	if _, err := s.Apply(ctx, nil); err != nil && serai.KindOf(err) != serai.NotFound {
		return err
	}
	srv := &http.Server{
		Handler:                      s,
		ReadHeaderTimeout:            headTime,
		IdleTimeout:                  idleTime,
		MaxHeaderBytes:               maxHead,
		DisableGeneralOptionsHandler: true,
		ConnContext:                  withClient,
		ConnState:                    s.clientState,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		Protocols:                    new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)

	// Logs are written until the last request has ended.
	logs, endLogs := context.WithCancel(context.WithoutCancel(ctx))
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		s.access.run(logs)
	}()
	defer func() {
		endLogs()
		<-logged
	}()

	g, gctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error {
			if err := srv.Serve(&clientListener{l, s}); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error { return s.control.run(gctx, ctl, allowed) })
	g.Go(func() error {
		s.housekeep(gctx)
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.grace)
		defer cancel()
		if err := srv.Shutdown(drain); err != nil {
			srv.Close()
			return fmt.Errorf("drain requests: %w", err)
		}
		return nil
	})
	return g.Wait()
}

// housekeep closes what nobody uses any more.
func (s *Server) housekeep(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.roots.sweep(func(number uint32) bool { return s.registry.pool(number) != nil })
		case <-ctx.Done():
			return
		}
	}
}
