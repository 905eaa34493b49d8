package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

const serverName = "serai"

// The times a client has.
const (
	headTime  = 15 * time.Second // for the head of a request
	idleTime  = 75 * time.Second // between two requests
	bodyTime  = 30 * time.Second // between two reads of a request's body
	writeTime = 60 * time.Second // for each piece of a reply
)

// maxHead bounds the head of a request, in bytes. It is less than what an item
// of a list in the worker protocol can be.
const maxHead = 32 << 10

// statusGone is written into the log where the client left before a reply.
const statusGone = 499

// An exchange is one request and what became of it.
type exchange struct {
	s    *Server
	r    *http.Request
	w    *replyWriter
	site *site // nil where no site serves the host

	app   *site        // whose workers answer: site, or one of the catalogue
	mount *route.Mount // where it is one of the catalogue

	id         string // 16 hexadecimal digits
	start      time.Time
	host       string // as parseHost has it
	port       string
	remote     string
	remotePort string
	target     string // path and query as they were sent
	closing    bool   // the connection is not kept
	bodyLeft   bool   // the request's body was not read
	received   int64  // bytes of it, also of one that was not taken
	queued     time.Duration
	worked     time.Duration
	aborted    bool
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{s: s, r: r, start: time.Now(), id: newID()}
	x.w = &replyWriter{ResponseWriter: w, control: http.NewResponseController(w)}
	if c, ok := r.Context().Value(clientKey{}).(*clientConn); ok {
		c.serving.Store(true)
	}
	if s.before != nil {
		s.before(r.Context())
	}
	x.remote, x.remotePort = splitAddr(r.RemoteAddr)
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(interface{ String() string }); ok {
		_, x.port = splitAddr(local.String())
	}
	defer x.record()
	defer func() {
		// Only what we threw ourselves may end a request without a word.
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				s.log.Error("request failed inside", "request", x.id, "cause", fmt.Sprint(p))
			}
			x.aborted = true
			panic(http.ErrAbortHandler)
		}
	}()
	x.serve()
}

func newID() string {
	const digits = "0123456789abcdef"
	var id [16]byte
	for n, i := rand.Uint64(), 0; i < len(id); i, n = i+1, n>>4 {
		id[i] = digits[n&15]
	}
	return string(id[:])
}

// abort ends the connection: the client sees that the reply is not complete.
func (x *exchange) abort() { panic(http.ErrAbortHandler) }

func (x *exchange) serve() {
	r := x.r
	x.w.Header().Set("X-Request-Id", x.id)
	// What follows a chunked request is only trusted on a new connection:
	// somebody in front of us may have seen its end elsewhere (RFC 9112,
	// section 6.1). HTTP/1.0 knows no chunks, net/http ignores them there.
	x.closing = len(r.TransferEncoding) > 0 || !r.ProtoAtLeast(1, 1)
	x.bodyLeft = r.ContentLength != 0
	if x.closing {
		x.w.Header().Set("Connection", "close")
	}
	switch {
	case r.ProtoMajor != 1:
		x.fail(http.StatusHTTPVersionNotSupported, "This server speaks HTTP/1.1.", 0)
		return
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		x.fail(http.StatusNotImplemented, "The method "+r.Method+" is not served here.", 0)
		return
	}
	var ok bool
	if x.host, ok = parseHost(r.Host); !ok || r.URL.User != nil {
		x.fail(http.StatusBadRequest, "The host name of the request is not one.", 0)
		return
	}
	t := x.s.table.Load()
	if t == nil {
		x.fail(http.StatusServiceUnavailable, "This server has only just started.", time.Second)
		return
	}
	if x.site = t.find(x.host); x.site == nil {
		x.fail(http.StatusMisdirectedRequest, "No site of this name is served here.", 0)
		return
	}
	if r.Method == http.MethodOptions && r.RequestURI == "*" {
		x.w.Header().Set("Content-Length", "0")
		x.w.WriteHeader(http.StatusOK)
		return
	}
	if x.target, ok = originForm(r); !ok {
		x.fail(http.StatusBadRequest, "The path of the request is not one.", 0)
		return
	}
	if x.site.Closed != "" {
		x.fail(http.StatusServiceUnavailable, x.site.Closed, time.Minute)
		return
	}
	x.app = x.site
	x.route(t)
}

// originForm is the target as a worker shall see it: path and query, as they
// were sent, also where the client named scheme and host.
func originForm(r *http.Request) (string, bool) {
	if !strings.HasPrefix(r.URL.Path, "/") && r.URL.Path != "" || strings.IndexByte(r.URL.Path, 0) >= 0 {
		return "", false
	}
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") {
		_, rest, ok := strings.Cut(target, "://")
		if !ok {
			return "", false
		}
		i := strings.IndexAny(rest, "/?")
		if i < 0 {
			i = len(rest)
		}
		if target = rest[i:]; !strings.HasPrefix(target, "/") {
			target = "/" + target
		}
		if r.URL.Path == "" {
			r.URL.Path = "/"
		}
	}
	return target, true
}

// route decides who answers: of the site's mounts, files and engine the one
// whose prefix fits better goes first. Where they fit as well, mounts go before
// files and files before the engine, so that scripts below served directories
// are not handed out.
func (x *exchange) route(t *table) {
	engine, covered := longestPrefix(x.site.Prefixes, x.r.URL.Path)
	if len(x.site.Prefixes) == 0 {
		covered = true
	}
	files := -1
	for i, f := range x.site.Files {
		if hasPrefix(x.r.URL.Path, f.Prefix) && (files < 0 || len(f.Prefix) > len(x.site.Files[files].Prefix)) {
			files = i
		}
	}
	if m := x.site.mounted(x.r.URL.Path); m != nil && len(m.Prefix) >= engine && (files < 0 || len(m.Prefix) >= len(x.site.Files[files].Prefix)) {
		x.workMounted(t, m)
		return
	}
	if files >= 0 && (!covered || len(x.site.Files[files].Prefix) >= engine) {
		f := x.site.Files[files]
		if x.r.Method == http.MethodGet || x.r.Method == http.MethodHead {
			if x.serveFile(f) {
				return
			}
		} else if !covered {
			x.fail(http.StatusMethodNotAllowed, "Files can only be read.", 0)
			return
		}
	}
	if !covered {
		x.fail(http.StatusNotFound, "There is nothing at this address.", 0)
		return
	}
	x.work()
}

func longestPrefix(prefixes []string, path string) (length int, ok bool) {
	for _, p := range prefixes {
		if hasPrefix(path, p) {
			length, ok = max(length, len(p)), true
		}
	}
	return length, ok
}

// hasPrefix reports whether a path lies at or beneath a prefix such as /static.
func hasPrefix(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(prefix, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// readBody takes the request's body off the client, or answers why not.
func (x *exchange) readBody() (*body, bool) {
	limit := int64(x.app.Body.Max)
	if x.r.ContentLength > limit {
		x.tooLarge(limit)
		return nil, false
	}
	if x.r.ContentLength == 0 {
		return &body{s: x.s.spool}, true
	}
	in := &timedReader{r: x.r.Body, control: x.w.control}
	b, err := x.s.spool.readBody(in, limit, int64(x.app.Body.Buffer))
	x.received = in.n
	x.w.control.SetReadDeadline(time.Time{})
	switch {
	case err == nil:
		x.bodyLeft = false
		return b, true
	case errors.Is(err, errTooLarge):
		x.tooLarge(limit)
	case errors.Is(err, errSpool):
		x.s.log.Error("request's body not kept", "request", x.id, "cause", err)
		x.fail(http.StatusServiceUnavailable, "The server has no room for the request's body at the moment.", time.Minute)
	case errors.Is(err, context.DeadlineExceeded) || isTimeout(err):
		x.fail(http.StatusRequestTimeout, "The request's body did not come in time.", 0)
	default: // cut off, or chunks that are none
		x.fail(http.StatusBadRequest, "The request's body is not complete.", 0)
	}
	return nil, false
}

func (x *exchange) tooLarge(limit int64) {
	x.fail(http.StatusRequestEntityTooLarge, fmt.Sprintf("The request is larger than the %d bytes this site takes.", limit), 0)
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// timedReader gives each read of a body its own time, and counts.
type timedReader struct {
	r       io.Reader
	control *http.ResponseController
	n       int64
}

func (t *timedReader) Read(p []byte) (int, error) {
	t.control.SetReadDeadline(time.Now().Add(bodyTime))
	n, err := t.r.Read(p)
	t.n += int64(n)
	return n, err
}

var requests = sync.Pool{New: func() any { return new(worker.Request) }}

// work has a worker answer. The request is read whole before one is taken.
func (x *exchange) work() {
	b, ok := x.readBody()
	if !ok {
		return
	}
	req := requests.Get().(*worker.Request)
	req.Reset()
	x.environment(req, b.size)
	j := &job{x: x, p: x.app.pool, body: b, req: req}
	for j.try() {
	}
}

// broken tells seraid of a request that a worker did not complete. killed is
// that of route.Broken. A worker that took too long is ended first.
func (x *exchange) broken(pid int, cause worker.Cause, killed, detail string) {
	b := route.Broken{Site: x.app.Number, PID: pid, Request: x.id, Method: x.r.Method,
		Host: x.host, Path: cut(x.r.URL.Path, 1000), Cause: string(cause), Killed: killed, Detail: cut(detail, 1000)}
	if cause != worker.Timeout {
		x.s.control.broken(b)
		return
	}
	x.s.up.End(b.Site, pid, func(how privsep.Killed) {
		b.State, b.Wait = how.State, how.Wait
		x.s.control.broken(b)
	})
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// A replyWriter notes what a client was sent, and gives each piece its time.
type replyWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	status  int
	sent    int64 // bytes of bodies
}

func (w *replyWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.control.SetWriteDeadline(time.Now().Add(writeTime))
	w.ResponseWriter.WriteHeader(status)
}

func (w *replyWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	} else {
		w.control.SetWriteDeadline(time.Now().Add(writeTime))
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

// filePiece is how much of a file one write deadline is for.
const filePiece = 1 << 20

// ReadFrom keeps sendfile(2) for files.
func (w *replyWriter) ReadFrom(src io.Reader) (total int64, err error) {
	limit := int64(1) << 62
	if l, ok := src.(*io.LimitedReader); ok {
		src, limit = l.R, l.N
		defer func() { l.N -= total }()
	}
	for total < limit {
		w.control.SetWriteDeadline(time.Now().Add(writeTime))
		n, err := io.CopyN(w.ResponseWriter, src, min(filePiece, limit-total))
		total += n
		w.sent += n
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}
