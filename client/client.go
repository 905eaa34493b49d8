// Package client speaks to a server of Serai by its API. The command line and
// the panel live on it. It holds no rules: what a caller may do, the server
// decides by the caller's uid.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"serai.dev/serai"
)

// DefaultSocket is where a server answers that was not configured otherwise.
const DefaultSocket = "/run/serai/api.sock"

// A Client asks one server. Its methods may be called concurrently. Errors are
// serai.Error with the server's kind, message and hint; Unavailable where no
// server answers.
type Client struct {
	socket  string
	http    *http.Client
	answers atomic.Bool // there was an answer to this client once
}

// New makes a client of the server at a unix socket. It does not connect yet.
func New(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		MaxIdleConns: 4,
	}}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do asks and decodes the answer into out, unless it is nil.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	resp, err := c.send(ctx, method, path, query, nil, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.away(ctx, err)
	}
	return nil
}

// send asks and returns an answer that is no error. The caller closes its body.
// What goes in is sent as JSON, bytes as they are.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, header http.Header, in any) (*http.Response, error) {
	var body io.Reader
	contentType := ""
	switch in := in.(type) {
	case nil:
	case []byte:
		body, contentType = bytes.NewReader(in), "application/octet-stream"
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("print the request: %w", err)
		}
		body, contentType = bytes.NewReader(b), "application/json"
	}
	u := url.URL{Scheme: "http", Host: "serai", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if err := c.reach(ctx); err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.away(ctx, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, failure(resp)
}

// patience is how long a server may take for an answer that costs it nothing.
// A restart of seraid fits into it many times.
const patience = 10 * time.Second

// reach makes sure that somebody answers before something is asked that may
// rightly take long: the socket is serai-priv's, so that connecting to it
// succeeds and waits even where seraid cannot be started.
func (c *Client) reach(ctx context.Context) error {
	if c.answers.Load() {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(limit, "GET", "http://serai/v1/whoami", nil)
	if err != nil {
		return fmt.Errorf("make the request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil && ctx.Err() == nil && limit.Err() != nil {
		return serai.Errorf(serai.Unavailable, "the server at %s has not answered for %s", c.socket, patience).
			WithHint("sites are served meanwhile; the log of `serai serve` says why seraid does not run")
	}
	if err != nil {
		return c.away(ctx, err)
	}
	c.answers.Store(true)
	return resp.Body.Close()
}

// failure turns an answer that is an error into that error.
func failure(resp *http.Response) error {
	var body ErrorBody
	if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&body); err != nil || body.Error.Message == "" {
		return serai.Errorf(serai.Internal, "the server answered %s and no reason", resp.Status)
	}
	f := body.Error
	e := &serai.Error{Kind: serai.ParseKind(f.Kind), Msg: f.Message, Hint: f.Hint}
	if len(f.Problems) > 0 {
		e.Err = Problems(f.Problems)
	}
	return e
}

// away says why there is no answer.
func (c *Client) away(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.ENOTDIR):
		return serai.Errorf(serai.Unavailable, "no server answers at %s", c.socket).
			WithHint("start it with `serai serve`, or name another socket with --socket")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return serai.Errorf(serai.Denied, "this account may not open %s", c.socket).
			WithHint("look at the permissions of the directories above it")
	case errors.Is(err, syscall.EINVAL):
		return serai.Errorf(serai.Invalid, "%s is too long for the path of a socket", c.socket).WithHint("107 bytes are allowed")
	}
	return &serai.Error{Kind: serai.Unavailable, Msg: "the server at " + c.socket + " went away before it answered",
		Hint: "look at what is there, then try again", Err: err}
}

// Path is where the API has a resource.
func Path(key serai.Key) string {
	name := url.PathEscape(key.Name)
	switch key.Kind {
	case serai.KindPlan:
		return "/v1/plans/" + name
	case serai.KindTenant:
		return "/v1/tenants/" + name
	}
	return "/v1/tenants/" + url.PathEscape(key.Tenant) + "/sites/" + name
}

func listPath(kind, tenant string) string {
	if kind == serai.KindSite && tenant != "" {
		return "/v1/tenants/" + url.PathEscape(tenant) + "/sites"
	}
	return "/v1/" + strings.ToLower(kind) + "s"
}

// decode reads a resource of a kind.
func decode(kind string, text []byte) (serai.Resource, error) {
	r := serai.NewResource(kind)
	if r == nil {
		return nil, serai.Errorf(serai.Invalid, "%q is no kind: write Plan, Tenant or Site", kind)
	}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return r, nil
}
