package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"serai.dev/serai"
)

// Whoami tells who the server takes the caller for.
func (c *Client) Whoami(ctx context.Context) (id Identity, err error) {
	err = c.do(ctx, "GET", "/v1/whoami", nil, nil, &id)
	return id, err
}

// Status tells what runs of Serai itself.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.do(ctx, "GET", "/v1/status", nil, nil, &s)
	return s, err
}

// List returns all resources of a kind that the caller may see, sites of one
// tenant where tenant is not empty, in order of name.
func (c *Client) List(ctx context.Context, kind, tenant string) ([]serai.Resource, error) {
	var l List
	if err := c.do(ctx, "GET", listPath(kind, tenant), nil, nil, &l); err != nil {
		return nil, err
	}
	rs := make([]serai.Resource, 0, len(l.Items))
	for _, text := range l.Items {
		r, err := decode(kind, text)
		if err != nil {
			return nil, err
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// Get returns one resource, or NotFound.
func (c *Client) Get(ctx context.Context, key serai.Key) (serai.Resource, error) {
	return c.get(ctx, key, nil)
}

func (c *Client) get(ctx context.Context, key serai.Key, query url.Values) (serai.Resource, error) {
	var text json.RawMessage
	if err := c.do(ctx, "GET", Path(key), query, nil, &text); err != nil {
		return nil, err
	}
	return decode(key.Kind, text)
}

// WaitReady waits until a resource is ready as of a generation, or cannot
// become so, or the time is over, and returns it as it is then: look at its
// conditions.
func (c *Client) WaitReady(ctx context.Context, key serai.Key, generation int64, timeout time.Duration) (serai.Resource, error) {
	return c.wait(ctx, key, url.Values{"wait": {"Ready"}, "generation": {strconv.FormatInt(generation, 10)}}, timeout)
}

// WaitGone waits until a resource is removed and reports whether it was
// before the time was over.
func (c *Client) WaitGone(ctx context.Context, key serai.Key, timeout time.Duration) (bool, error) {
	_, err := c.wait(ctx, key, url.Values{"wait": {"Gone"}}, timeout)
	if serai.KindOf(err) == serai.NotFound {
		return true, nil
	}
	return false, err
}

// maxWait is the longest wait that one request may ask for.
const maxWait = 5 * time.Minute

func (c *Client) wait(ctx context.Context, key serai.Key, query url.Values, timeout time.Duration) (serai.Resource, error) {
	query.Set("timeout", serai.Duration(min(max(timeout, 0), maxWait)).String())
	r, err := c.get(ctx, key, query)
	if err != nil && serai.KindOf(err) == serai.Unavailable {
		// A server that is started anew drops its waiters: ask the new one.
		r, err = c.get(ctx, key, query)
	}
	return r, err
}

// Describe returns a resource with what surrounds it.
func (c *Client) Describe(ctx context.Context, key serai.Key) (d Description, err error) {
	err = c.do(ctx, "GET", Path(key)+"/describe", nil, nil, &d)
	return d, err
}

// Apply creates and updates what files say. Where the files have mistakes
// nothing is done, and the error's cause is Problems. A Result may say that
// one thing was refused; that is no error.
func (c *Client) Apply(ctx context.Context, req ApplyRequest) ([]Result, error) {
	for _, f := range req.Files {
		// JSON would replace what is not UTF-8 by something that is.
		if !utf8.ValidString(f.Text) {
			return nil, serai.Errorf(serai.Invalid, "%s is not UTF-8 text", f.Name)
		}
	}
	var resp ApplyResponse
	err := c.do(ctx, "POST", "/v1/apply", nil, req, &resp)
	return resp.Results, err
}

// Delete asks for the end of a resource. With purge a tenant's home goes too.
func (c *Client) Delete(ctx context.Context, key serai.Key, purge bool) error {
	var query url.Values
	if purge {
		query = url.Values{"purge": {"1"}}
	}
	return c.do(ctx, "DELETE", Path(key), query, nil, nil)
}

// Reload loads a site's code anew beside what runs, which then drains.
func (c *Client) Reload(ctx context.Context, site serai.Key) (LaunchResult, error) {
	return c.launch(ctx, site, "/reload")
}

// Restart starts a site's processes anew; for the engine perl it is Reload.
func (c *Client) Restart(ctx context.Context, site serai.Key) (LaunchResult, error) {
	return c.launch(ctx, site, "/restart")
}

func (c *Client) launch(ctx context.Context, site serai.Key, how string) (r LaunchResult, err error) {
	err = c.do(ctx, "POST", Path(site)+how, nil, nil, &r)
	return r, err
}

// RunJob starts a job of a site now. It does not wait for the job's end.
func (c *Client) RunJob(ctx context.Context, site serai.Key, job string) (r serai.Run, err error) {
	err = c.do(ctx, "POST", Path(site)+"/jobs/"+url.PathEscape(job)+"/run", nil, nil, &r)
	return r, err
}

// Stop makes a site answer 503 until Start.
func (c *Client) Stop(ctx context.Context, site serai.Key) (*serai.Site, error) {
	s := new(serai.Site)
	return s, c.do(ctx, "POST", Path(site)+"/stop", nil, nil, s)
}

// Start ends a Stop.
func (c *Client) Start(ctx context.Context, site serai.Key) (*serai.Site, error) {
	s := new(serai.Site)
	return s, c.do(ctx, "POST", Path(site)+"/start", nil, nil, s)
}

// Catalogue lists what sites may mount.
func (c *Client) Catalogue(ctx context.Context) ([]Entry, error) {
	var l Catalogue
	err := c.do(ctx, "GET", "/v1/catalogue", nil, nil, &l)
	return l.Items, err
}

// AddEntry adds scripts, as a tar, to the catalogue, or puts them in place of
// those that are there. A plan, where it is not empty, becomes that of the
// catalogue's tenant; the first entry needs one.
func (c *Client) AddEntry(ctx context.Context, name, plan string, archive []byte) (r Result, err error) {
	var query url.Values
	if plan != "" {
		query = url.Values{"plan": {plan}}
	}
	err = c.do(ctx, "PUT", "/v1/catalogue/"+url.PathEscape(name), query, archive, &r)
	return r, err
}

// RemoveEntry removes scripts that no site mounts from the catalogue.
func (c *Client) RemoveEntry(ctx context.Context, name string) error {
	return c.do(ctx, "DELETE", "/v1/catalogue/"+url.PathEscape(name), nil, nil, nil)
}

// LogQuery says which lines of a site's logs are wanted.
type LogQuery struct {
	Access bool // of the front proxy, rather than of the site's processes
	Lines  int  // past ones
	Follow bool // go on with what is added
}

// Logs returns lines of a site's log as text. They are the site's and may hold
// anything. Close the reader.
func (c *Client) Logs(ctx context.Context, site serai.Key, q LogQuery) (io.ReadCloser, error) {
	query := q.values()
	if q.Access {
		query.Set("kind", "access")
	}
	return c.text(ctx, Path(site)+"/logs", query)
}

// MailLog returns lines of the log of a tenant's mail. Close the reader.
func (c *Client) MailLog(ctx context.Context, tenant string, q LogQuery) (io.ReadCloser, error) {
	return c.text(ctx, Path(serai.Key{Kind: serai.KindTenant, Name: tenant})+"/mail", q.values())
}

func (q LogQuery) values() url.Values {
	v := url.Values{"lines": {strconv.Itoa(q.Lines)}}
	if q.Follow {
		v.Set("follow", "1")
	}
	return v
}

func (c *Client) text(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	resp, err := c.send(ctx, "GET", path, query, nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// EventQuery says which events are wanted.
type EventQuery struct {
	Tenant string // only of this one
	Limit  int    // the newest so many; 0 is the server's default
}

func (q EventQuery) values() url.Values {
	v := url.Values{}
	if q.Tenant != "" {
		v.Set("tenant", q.Tenant)
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return v
}

// Events returns the newest events, oldest first.
func (c *Client) Events(ctx context.Context, q EventQuery) ([]serai.Event, error) {
	var es Events
	err := c.do(ctx, "GET", "/v1/events", q.values(), nil, &es)
	return es.Items, err
}

// retryDelay is the pause before a lost stream of events is asked for again.
const retryDelay = time.Second

// FollowEvents calls f for the newest events and then for each that happens,
// until ctx ends or f returns an error. A stream that breaks is taken up where
// it was, also while the server is started anew.
func (c *Client) FollowEvents(ctx context.Context, q EventQuery, f func(serai.Event) error) error {
	last := ""
	for first := true; ; first = false {
		header := http.Header{"Accept": {"text/event-stream"}}
		if last != "" {
			header.Set("Last-Event-ID", last)
		}
		resp, err := c.send(ctx, "GET", "/v1/events", q.values(), header, nil)
		if err == nil {
			err = readEvents(resp.Body, &last, f)
			resp.Body.Close()
			if stop, ok := errors.AsType[stopError](err); ok {
				return stop.error
			}
		} else if first || serai.KindOf(err) != serai.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryDelay):
		}
	}
}

// stopError is an error of the caller's function, not of the stream.
type stopError struct{ error }

// readEvents reads server-sent events and keeps the last id.
func readEvents(r io.Reader, last *string, f func(serai.Event) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	id := ""
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			id = v
			continue
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e serai.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("read event %s: %w", id, err)
		}
		if err := f(e); err != nil {
			return stopError{err}
		}
		*last = id
	}
	return lines.Err()
}
