package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

const (
	maxEvents     = 1000
	defaultEvents = 100
	// heartbeat tells both ends of a quiet stream that the other is there.
	heartbeat = 20 * time.Second
)

// events answers once, or goes on where the caller accepts a stream.
func (s *Server) events(c *call) (any, error) {
	tenant := c.r.URL.Query().Get("tenant")
	if c.class != Operator {
		if tenant != "" && tenant != c.tenant {
			return nil, notFound(serai.Key{Kind: serai.KindTenant, Name: tenant})
		}
		tenant = c.tenant
	}
	after, err := c.number("after", -1, 0, 1<<62)
	if err != nil {
		return nil, err
	}
	limit, err := c.number("limit", defaultEvents, 1, maxEvents)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(c.r.Header.Get("Accept"), "text/event-stream") {
		es, err := s.store.Events(c.r.Context(), tenant, after, int(limit))
		if es == nil {
			es = []serai.Event{}
		}
		return client.Events{Items: es}, err
	}
	if last := c.r.Header.Get("Last-Event-ID"); last != "" {
		if after, err = strconv.ParseInt(last, 10, 64); err != nil || after < 0 {
			return nil, serai.Errorf(serai.Invalid, "Last-Event-ID %q is no id of an event", last)
		}
	}
	return s.eventStream(c, tenant, after, int(limit))
}

// eventStream sends events as server-sent events until the caller leaves.
func (s *Server) eventStream(c *call, tenant string, after int64, limit int) (any, error) {
	ctx, cancel := s.streaming(c)
	defer cancel()
	var first []serai.Event
	if after < 0 {
		// The newest first; then on from the newest of all tenants, which is
		// asked for before, so that none falls between the two.
		newest, err := s.store.Events(ctx, "", -1, 1)
		if err != nil {
			return nil, err
		}
		if first, err = s.store.Events(ctx, tenant, -1, limit); err != nil {
			return nil, err
		}
		after = 0
		if len(newest) > 0 {
			after = newest[0].ID
		}
	}
	out := newStream(c, "text/event-stream")
	for _, e := range first {
		after = max(after, e.ID)
		if out.event(e) != nil {
			return streamed{}, nil
		}
	}
	for out.flush() == nil && ctx.Err() == nil {
		// The events of others are read and passed over, so that after moves
		// on and the wait below waits.
		es, err := s.store.Events(ctx, "", after, defaultEvents)
		if err != nil {
			return s.broken(c, ctx, err)
		}
		for _, e := range es {
			after = e.ID
			if (tenant == "" || e.Tenant == tenant) && out.event(e) != nil {
				return streamed{}, nil
			}
		}
		if len(es) > 0 {
			continue
		}
		wait, stop := context.WithTimeout(ctx, heartbeat)
		err = s.store.WaitEvents(wait, after)
		quiet := wait.Err() != nil
		stop()
		if quiet {
			out.comment()
		} else if err != nil {
			return s.broken(c, ctx, err)
		}
	}
	return streamed{}, nil
}

// logs sends the lines of a site's log, and goes on where asked to.
func (s *Server) logs(c *call) (any, error) {
	kind, err := c.oneOf("kind", string(SiteLog), string(AccessLog))
	if err != nil {
		return nil, err
	}
	if _, err := s.find(c, c.key()); err != nil {
		return nil, err
	}
	return s.logText(c, func(ctx context.Context, lines int, follow bool) (io.ReadCloser, error) {
		return s.ctl.Logs(ctx, c.key(), Log(kind), lines, follow)
	})
}

// logText sends the lines of a log that open opens.
func (s *Server) logText(c *call, open func(ctx context.Context, lines int, follow bool) (io.ReadCloser, error)) (any, error) {
	lines, err := c.number("lines", 100, 0, MaxLogLines)
	if err != nil {
		return nil, err
	}
	follow, err := c.flag("follow")
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.streaming(c)
	defer cancel()
	text, err := open(ctx, int(lines), follow)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	defer context.AfterFunc(ctx, func() { text.Close() })()
	out := newStream(c, "text/plain; charset=utf-8")
	buf := make([]byte, 32<<10)
	for out.flush() == nil {
		n, err := text.Read(buf)
		if _, werr := out.Write(buf[:n]); werr != nil {
			break
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return s.broken(c, ctx, err)
		}
	}
	return streamed{}, nil
}

// streaming is the context of an answer that has no end of its own: it ends
// with the caller's connection or when the server drains.
func (s *Server) streaming(c *call) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(c.r.Context())
	stop := context.AfterFunc(s.draining, cancel)
	return ctx, func() { stop(); cancel() }
}

// broken ends a stream that has begun: its head is sent, so the caller learns
// from the broken connection that something is missing.
func (s *Server) broken(c *call, ctx context.Context, err error) (any, error) {
	if ctx.Err() != nil {
		return streamed{}, nil
	}
	s.log.Error("stream broken", "path", c.r.URL.Path, "uid", c.uid, "cause", err)
	panic(http.ErrAbortHandler)
}

// A stream writes pieces as they come. A reader that takes none for a while is
// dropped.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newStream(c *call, contentType string) *stream {
	st := &stream{w: c.w, rc: http.NewResponseController(c.w)}
	// The reading side stays open for as long as the stream lives.
	_ = st.rc.SetReadDeadline(time.Time{})
	c.w.Header().Set("Content-Type", contentType)
	c.w.WriteHeader(http.StatusOK)
	return st
}

func (st *stream) Write(b []byte) (int, error) {
	_ = st.rc.SetWriteDeadline(time.Now().Add(writeTime))
	return st.w.Write(b)
}

func (st *stream) flush() error {
	_ = st.rc.SetWriteDeadline(time.Now().Add(writeTime))
	return st.rc.Flush()
}

func (st *stream) event(e serai.Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("print event %d: %w", e.ID, err)
	}
	_, err = fmt.Fprintf(st, "id: %d\ndata: %s\n\n", e.ID, b)
	return err
}

func (st *stream) comment() { _, _ = io.WriteString(st, ": quiet\n\n") }
