// Package api is the one door to Serai: HTTP with JSON on a unix socket. Who
// the caller is, the kernel says; what the caller may do, the table of routes
// says. From the same table come the OpenAPI description and the reference.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/manifest"
	"serai.dev/serai/internal/peercred"
	"serai.dev/serai/internal/store"
)

// Options are what a Server is made of. All but AdminGID must be set.
type Options struct {
	Store      store.Store
	Controller Controller
	// Limits of what manifests may ask for, but for the field Operator.
	Limits     manifest.Limits
	CgroupRoot string // config.Config.CgroupRoot
	AdminGID   uint32 // the operators' group; 0 is none, then root alone operates
	Version    string
	Log        *slog.Logger
}

// A Server answers the API.
type Server struct {
	store      store.Store
	ctl        Controller
	limits     manifest.Limits
	cgroupRoot string
	adminGID   uint32
	version    string
	log        *slog.Logger
	started    time.Time
	index      *index
	writing    keyedMutex      // one set of a tenant at a time
	draining   context.Context // ends when streams shall end
	drain      context.CancelFunc
}

// Limits of what one caller may take.
const (
	maxBody      = 64 << 20 // an operator's
	maxBodyOther = 1 << 20
	maxConns     = 64               // of one uid that is not root's
	bodyTime     = 30 * time.Second // to send a request's body
	writeTime    = 30 * time.Second // for the reader of a stream to take a piece
	drainTime    = 5 * time.Second
)

// New makes a server. It does nothing before Run.
func New(o Options) *Server {
	s := &Server{
		store: o.Store, ctl: o.Controller, limits: o.Limits, cgroupRoot: o.CgroupRoot, adminGID: o.AdminGID,
		version: o.Version, log: o.Log, started: time.Now(), index: newIndex(o.Store),
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	return s
}

// Run serves on ln until ctx ends, then lets requests end for a few seconds.
// It closes ln. Call it once.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	defer s.drain()
	defer ln.Close()
	indexing, stop := context.WithCancel(context.WithoutCancel(ctx))
	indexed := make(chan error, 1)
	go func() { indexed <- s.index.run(indexing) }()
	defer func() { stop(); <-indexed }()
	select {
	case <-s.index.ready:
	case err := <-indexed:
		indexed <- err
		return err
	case <-ctx.Done():
		return nil
	}

	conns := connLimit{max: maxConns, open: map[net.Conn]uint32{}, count: map[uint32]int{}}
	srv := &http.Server{
		Handler:           s.handler(),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext:       conns.admit,
		ConnState:         conns.state,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	var err error
	select {
	case err = <-served:
	case err = <-indexed:
		indexed <- err
	case <-ctx.Done():
	}
	s.drain()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if srv.Shutdown(end) != nil {
		srv.Close()
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	return nil
}

// handler is the whole API: who calls, then which route, then may they.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	byPath := map[string][]endpoint{}
	for _, rt := range routes() {
		byPath[rt.path] = append(byPath[rt.path], rt)
	}
	for path, rts := range byPath {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { s.dispatch(w, r, rts) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.dispatch(w, r, nil) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := peercred.From(r.Context())
		c := caller{}
		if ok {
			c = s.who(p)
		}
		w.Header().Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r.WithContext(withCaller(r.Context(), c)))
	})
}

// A call is one request on its way through a handler.
type call struct {
	caller
	w http.ResponseWriter
	r *http.Request
}

// streamed is what a handler returns that has written its answer itself.
type streamed struct{}

func (s *Server) dispatch(w http.ResponseWriter, r *http.Request, rts []endpoint) {
	c := &call{caller: r.Context().Value(callerKey{}).(caller), w: w, r: r}
	var rt *endpoint
	var methods []string
	for i := range rts {
		methods = append(methods, rts[i].method)
		if rts[i].method == r.Method {
			rt = &rts[i]
		}
	}
	access := Owners
	if rt != nil {
		access = rt.access
	}
	if err := c.admit(access, r); err != nil {
		s.fail(c, err)
		return
	}
	switch {
	case rts == nil:
		s.fail(c, serai.Errorf(serai.NotFound, "there is no path %s", r.URL.Path).WithHint("GET /openapi.json lists them"))
	case rt == nil:
		w.Header().Set("Allow", strings.Join(methods, ", "))
		s.failWith(c, http.StatusMethodNotAllowed, serai.Errorf(serai.Invalid, "%s is no method of %s: use %s", r.Method, r.URL.Path, strings.Join(methods, " or ")))
	default:
		s.serve(c, rt)
	}
}

func (s *Server) serve(c *call, rt *endpoint) {
	rc := http.NewResponseController(c.w)
	// Not all writers have deadlines; those of sockets do.
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
	limit := int64(maxBody)
	if c.class != Operator {
		limit = maxBodyOther
	}
	if r, ok := rt.in.(raw); ok {
		limit = r.max
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, limit)
	if err := rt.checkQuery(c.r); err != nil {
		s.fail(c, err)
		return
	}
	out, err := rt.do(s, c)
	if err != nil {
		s.fail(c, err)
		return
	}
	if _, done := out.(streamed); !done {
		s.reply(c, http.StatusOK, out)
	}
}

// in reads the body of a request, strictly.
func (c *call) in(v any) error {
	d := json.NewDecoder(c.r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil && d.More() {
		err = errors.New("more than one value")
	}
	if big, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return serai.Errorf(serai.Invalid, "the request is larger than %s", serai.Bytes(big.Limit)).WithHint("divide it")
	}
	if err != nil {
		return &serai.Error{Kind: serai.Invalid, Msg: "the request is not the JSON that is expected", Hint: "GET /openapi.json describes it", Err: err}
	}
	// From here on the connection may stay quiet for as long as the work takes.
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Time{})
	return nil
}

func (s *Server) reply(c *call, status int, v any) {
	_ = http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(writeTime))
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	if err := json.NewEncoder(c.w).Encode(v); err != nil {
		s.log.Debug("answer not sent", "path", c.r.URL.Path, "cause", err)
	}
}

// fail answers with an error. What is not meant for callers goes to the log.
func (s *Server) fail(c *call, err error) { s.failWith(c, httpStatus(serai.KindOf(err)), err) }

func (s *Server) failWith(c *call, status int, err error) {
	if serai.KindOf(err) == serai.Internal && !errors.Is(err, context.Canceled) {
		s.log.Error("request failed", "method", c.r.Method, "path", c.r.URL.Path, "uid", c.uid, "cause", err)
	}
	f := client.Failure{Kind: serai.KindOf(err).String(), Message: serai.Message(err), Hint: serai.HintOf(err)}
	if ps, ok := errors.AsType[manifest.Problems](err); ok {
		f.Problems = problems(ps)
		f.Message = fmt.Sprintf("%d mistakes in the manifests; nothing was changed", len(ps))
		if len(ps) == 1 {
			f.Message = "a mistake in the manifests; nothing was changed"
		}
	}
	if c.class == Stranger {
		c.w.Header().Set("Connection", "close")
	}
	s.reply(c, status, client.ErrorBody{Error: f})
}

// kindsOfErrors is for the reference.
var kindsOfErrors = []struct {
	kind serai.Kind
	who  string
}{
	{serai.Invalid, "the caller: the input is wrong; problems has file, line and column of each mistake"},
	{serai.NotFound, "the caller; also for what the caller may not see"},
	{serai.Denied, "the caller may not do this"},
	{serai.Conflict, "somebody else changed it, or it does not fit what there is: read again, decide again"},
	{serai.Expired, "a watch is too old: list again"},
	{serai.Unavailable, "a part is away: try again"},
	{serai.Internal, "the operator of the machine: see the log of seraid"},
}

// httpStatus is the only place where a Kind becomes an HTTP status.
func httpStatus(k serai.Kind) int {
	switch k {
	case serai.Invalid:
		return http.StatusUnprocessableEntity
	case serai.NotFound:
		return http.StatusNotFound
	case serai.Denied:
		return http.StatusForbidden
	case serai.Conflict:
		return http.StatusConflict
	case serai.Expired:
		return http.StatusGone
	case serai.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// connLimit keeps one account from taking all of our descriptors.
type connLimit struct {
	max   int
	mu    sync.Mutex
	open  map[net.Conn]uint32
	count map[uint32]int
}

func (l *connLimit) admit(ctx context.Context, c net.Conn) context.Context {
	ctx = peercred.ConnContext(ctx, c)
	p, ok := peercred.From(ctx)
	if !ok || p.UID == 0 {
		return ctx
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count[p.UID] >= l.max {
		c.Close()
		return ctx
	}
	l.count[p.UID]++
	l.open[c] = p.UID
	return ctx
}

func (l *connLimit) state(c net.Conn, st http.ConnState) {
	if st != http.StateClosed && st != http.StateHijacked {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	uid, ok := l.open[c]
	if !ok {
		return
	}
	delete(l.open, c)
	if l.count[uid]--; l.count[uid] == 0 {
		delete(l.count, uid)
	}
}

// keyedMutex is a mutex for each key. What was locked once is kept: keys are
// tenants.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[string]*sync.Mutex
}

// lock returns the function that unlocks.
func (k *keyedMutex) lock(key string) func() {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*sync.Mutex{}
	}
	m := k.locks[key]
	if m == nil {
		m = new(sync.Mutex)
		k.locks[key] = m
	}
	k.mu.Unlock()
	m.Lock()
	return m.Unlock
}

func lower(kind string) string { return strings.ToLower(kind) }
