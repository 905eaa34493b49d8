package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
)

// A job is a request on its way through workers.
type job struct {
	x        *exchange
	p        *pool
	body     *body
	req      *worker.Request
	replayed bool
	slow     *time.Timer // asks the worker where it is; nil where the site wants no such thing
}

// done gives back what the request took, once no worker needs it any more.
func (j *job) done() {
	j.quick()
	j.body.close()
	requests.Put(j.req)
}

// watch has a worker that takes long write its stack to the site's log.
func (j *job) watch(c *worker.Conn) {
	if slow := time.Duration(j.x.app.Workers.Slow); slow > 0 {
		up, site := j.x.s.up, j.x.app.Number
		j.slow = time.AfterFunc(slow, func() { up.Ask(site, c.PID) })
	}
}

// quick is for when no worker has the request any more.
func (j *job) quick() {
	if j.slow != nil {
		j.slow.Stop()
	}
}

// idempotent methods may be written to a second worker.
func idempotent(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// try gives the request to one worker and reports whether it shall be tried
// with another.
func (j *job) try() (again bool) {
	x := j.x
	began := time.Now()
	c, err := j.p.acquire(x.r.Context())
	x.queued += time.Since(began)
	if err != nil {
		j.done()
		if r, ok := errors.AsType[*refusal](err); ok {
			x.fail(r.status, r.why, r.retry)
		} else {
			x.w.status = statusGone
			x.abort()
		}
		return false
	}
	began = time.Now()
	timeout := time.Duration(x.app.Workers.Timeout)
	e := c.Start(j.req, j.body.reader(), j.body.size, timeout)
	j.watch(c)
	reply, err := e.Reply()
	if err != nil {
		x.worked += time.Since(began)
		return j.failed(c, e, err)
	}
	if reply.Whole {
		x.worked += time.Since(began)
		j.whole(c, e, reply)
		return false
	}
	j.stream(c, e, reply, began)
	return false
}

// failed decides what becomes of a request to which no reply came.
func (j *job) failed(c *worker.Conn, e *worker.Exchange, err error) (again bool) {
	x := j.x
	f, ok := errors.AsType[*worker.Failure](err)
	if !ok {
		f = &worker.Failure{Cause: worker.Protocol, Began: true, Err: err}
	}
	killed, detail := "", ""
	switch f.Cause {
	case worker.Aborted:
		j.settle(c, e)
		e.Free()
		x.fail(http.StatusBadGateway, "The site could not complete its answer.", 0)
		return false
	case worker.Died:
		killed = j.p.killedForMemory(c)
		again = idempotent(x.r.Method) && !f.Began && killed == route.KilledNo && !j.replayed
		if killed == route.KilledYes {
			detail = "killed for memory"
		} else if again {
			detail = "given to another worker"
		}
	case worker.Protocol:
		detail = f.Err.Error()
		x.s.log.Warn("worker broke the protocol", "site", x.app.Number, "pid", c.PID, "request", x.id, "cause", f.Err)
		x.s.up.Kill(x.app.Number, c.PID)
	}
	x.broken(c.PID, f.Cause, killed, detail)
	j.p.release(c, left(f.Cause, killed))
	if again {
		j.quick()
		e.Settle() // nothing writes the body any more
		e.Free()
		j.replayed = true
		return true
	}
	j.settleBroken(e)
	switch {
	case f.Cause == worker.Timeout:
		x.fail(http.StatusGatewayTimeout, "The site did not answer in time.", 0)
	case killed == route.KilledYes:
		x.fail(http.StatusBadGateway, "The site used more memory than it has.", 0)
	default:
		x.fail(http.StatusBadGateway, "The site did not answer properly. Its log may say why.", 0)
	}
	return false
}

// left is why a worker that did not complete its request is no more.
func left(cause worker.Cause, killed string) string {
	switch {
	case cause == worker.Timeout:
		return route.LeftTimeout
	case cause == worker.Protocol:
		return route.LeftProtocol
	case cause == worker.Aborted: // the request could not be read back
		return route.LeftProxy
	case killed == route.KilledYes:
		return route.LeftMemory
	}
	return route.LeftDied
}

// settle gives a worker back whose reply is complete, at once where its request
// is written too.
func (j *job) settle(c *worker.Conn, e *worker.Exchange) {
	end := func() {
		reason := e.Settle()
		if reason == "" && !e.Complete() {
			reason = route.LeftProxy
		}
		j.p.release(c, reason)
		j.done()
	}
	if e.Settled() {
		end()
		return
	}
	j.x.s.background.Go(end)
}

// settleBroken is for a worker that was given up.
func (j *job) settleBroken(e *worker.Exchange) {
	end := func() {
		e.Settle()
		e.Free()
		j.done()
	}
	if e.Settled() {
		end()
		return
	}
	j.x.s.background.Go(end)
}

// breach is for a rule broken after the reply had begun.
func (j *job) breach(c *worker.Conn, err error) {
	j.x.s.log.Warn("worker broke the protocol", "site", j.x.app.Number, "pid", c.PID, "request", j.x.id, "cause", err)
	j.x.s.up.Kill(j.x.app.Number, c.PID)
}

// bodyAllowed reports whether a reply of this status can have a body.
func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// head fills in the reply's head. length is that of the body, -1 where not
// known.
func (x *exchange) head(r *worker.Head, length int64) {
	h := x.w.Header()
	for _, f := range r.Fields {
		h.Add(f.Name, f.Value)
	}
	h.Set("X-Request-Id", x.id)
	if h["Content-Type"] == nil {
		h["Content-Type"] = nil // else net/http would guess one
	}
	if h["Server"] == nil {
		h.Set("Server", serverName)
	}
	if length >= 0 && r.Status != http.StatusNoContent {
		h.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	if x.closing {
		h.Set("Connection", "close")
	}
}

// whole passes on a reply that came in one piece. The worker is given back
// before the client gets a byte.
func (j *job) whole(c *worker.Conn, e *worker.Exchange, reply *worker.Reply) {
	x := j.x
	j.settle(c, e)
	defer e.Free()
	length := int64(len(reply.Body))
	promised := reply.Length
	noBody := x.r.Method == http.MethodHead || !bodyAllowed(reply.Status)
	if noBody || promised < 0 || promised == length {
		if noBody && (promised >= 0 || reply.Status == http.StatusNotModified || length == 0) {
			length = promised
		}
		x.head(&reply.Head, length)
		x.w.WriteHeader(reply.Status)
		if !noBody {
			x.w.Write(reply.Body)
		}
		return
	}
	// The worker promised another length. The client gets what fits, and a
	// connection that ends.
	x.s.log.Debug("reply does not keep its length", "site", x.app.Number, "request", x.id,
		"promised", promised, "length", length)
	x.head(&reply.Head, promised)
	x.w.Header().Set("Connection", "close")
	x.w.WriteHeader(reply.Status)
	x.w.Write(reply.Body[:min(length, promised)])
	x.w.control.Flush()
	x.abort()
}

// linger is how long a reply is taken off a worker after its client has gone,
// so that a worker that is nearly done can go on to the next request.
const linger = 5 * time.Second

// stream passes on a reply that comes piece by piece.
func (j *job) stream(c *worker.Conn, e *worker.Exchange, reply *worker.Reply, began time.Time) {
	x := j.x
	st := newStream(x.s.spool, int64(x.app.Reply.Buffer), int64(x.app.Reply.Spool), func() {
		x.s.log.Warn("worker waits for a slow client", "site", x.app.Number, "request", x.id)
	})
	var over atomic.Bool // the worker was given back
	var worked atomic.Int64
	x.s.background.Go(func() {
		err := j.pump(e, st)
		worked.Store(int64(time.Since(began)))
		if over.Swap(true) {
			// The client had gone and this worker was left alone.
			j.settleBroken(e)
			st.finish(err)
			return
		}
		if err == io.EOF {
			j.settle(c, e)
			e.Free()
		} else {
			j.cutOff(c, e, err)
		}
		st.finish(err)
	})
	err := x.pass(&reply.Head, st)
	x.worked += time.Duration(worked.Load())
	st.leave()
	if err == io.EOF {
		return
	}
	if x.worked == 0 {
		x.worked += time.Since(began)
	}
	time.AfterFunc(linger, func() {
		if !over.Swap(true) {
			j.p.abandon(c)
		}
	})
	x.w.control.Flush() // the client gets what there was
	x.abort()
}

// pump takes a reply off the worker: also one that nobody reads any more.
func (j *job) pump(e *worker.Exchange, st *stream) error {
	for {
		p, err := e.Data()
		if err != nil {
			return err
		}
		st.put(p) // an error means that it is discarded
	}
}

// cutOff is for a reply that ended in its middle.
func (j *job) cutOff(c *worker.Conn, e *worker.Exchange, err error) {
	x := j.x
	f, ok := errors.AsType[*worker.Failure](err)
	if !ok {
		f = &worker.Failure{Cause: worker.Protocol, Err: err}
	}
	if f.Cause == worker.Aborted && e.Complete() {
		j.settle(c, e)
		e.Free()
		return
	}
	killed, detail := "", "in the middle of the reply"
	switch f.Cause {
	case worker.Died:
		if killed = j.p.killedForMemory(c); killed == route.KilledYes {
			detail = "killed for memory"
		}
	case worker.Protocol:
		detail = f.Err.Error()
		j.breach(c, f.Err)
	}
	x.broken(c.PID, f.Cause, killed, detail)
	j.p.release(c, left(f.Cause, killed))
	j.settleBroken(e)
}

// pass sends a stream to the client as it comes. It returns io.EOF where the
// client has all of it.
func (x *exchange) pass(head *worker.Head, st *stream) error {
	noBody := x.r.Method == http.MethodHead || !bodyAllowed(head.Status)
	x.head(head, head.Length)
	x.w.WriteHeader(head.Status)
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	var passed int64
	dirty := true
	flush := func() {
		if dirty {
			x.w.control.Flush()
			dirty = false
		}
	}
	for {
		n, err := st.take(x.r.Context(), *buf, flush)
		if err == io.EOF && !noBody && head.Length >= 0 && passed < head.Length {
			return fmt.Errorf("the reply ended after %d of %d bytes", passed, head.Length)
		}
		if err != nil {
			return err
		}
		if noBody {
			continue
		}
		p := (*buf)[:n]
		if head.Length >= 0 && passed+int64(n) > head.Length {
			x.w.Write(p[:head.Length-passed])
			flush()
			return fmt.Errorf("the reply is longer than its %d bytes", head.Length)
		}
		if _, err := x.w.Write(p); err != nil {
			return err
		}
		passed += int64(n)
		dirty = true
	}
}
