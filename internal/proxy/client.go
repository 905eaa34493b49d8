package proxy

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// A clientConn is a client's connection. Requests that net/http itself refuses,
// before any handler, get a page with an id and a line in the log like others.
type clientConn struct {
	*net.TCPConn
	s       *Server
	serving atomic.Bool // a handler has begun: what is written is its reply
}

type clientKey struct{}

func withClient(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, clientKey{}, c)
}

// clientState notes the end of a request on a connection that is kept.
func (s *Server) clientState(c net.Conn, state http.ConnState) {
	if c, ok := c.(*clientConn); ok && state == http.StateIdle {
		c.serving.Store(false)
	}
}

type clientListener struct {
	net.Listener
	s *Server
}

func (l *clientListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		return &clientConn{TCPConn: tcp, s: l.s}, nil
	}
	return c, nil
}

// refusalEnd is what net/http's own refusals have after the status line.
var refusalEnd = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write replaces net/http's own refusals.
func (c *clientConn) Write(p []byte) (int, error) {
	if c.serving.Load() {
		return c.TCPConn.Write(p)
	}
	rest, ok := bytes.CutPrefix(p, []byte("HTTP/1.1 "))
	line, why, found := bytes.Cut(rest, refusalEnd)
	if !ok || !found || len(line) < 3 {
		return c.TCPConn.Write(p)
	}
	status, err := strconv.Atoi(string(line[:3]))
	if err != nil {
		return c.TCPConn.Write(p)
	}
	pg := page{status: status, why: refusalWords(status, string(why)), id: newID()}
	text := pg.html()
	if _, err := fmt.Fprintf(c.TCPConn, "HTTP/1.1 %d %s\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n"+
		"X-Request-Id: %s\r\nServer: %s\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(text), pg.id, serverName, text); err != nil {
		return 0, err
	}
	remote, _ := splitAddr(c.RemoteAddr().String())
	c.s.access.write("", "", &entry{Time: time.Now(), Request: pg.id, Remote: remote,
		Method: "-", Target: "-", Proto: "-", Status: status, Bytes: int64(len(text))})
	return len(p), nil
}

func refusalWords(status int, why string) string {
	switch status {
	case http.StatusRequestHeaderFieldsTooLarge:
		return fmt.Sprintf("The head of the request is larger than %d bytes.", maxHead)
	case http.StatusNotImplemented:
		return "The transfer coding of the request is not known here."
	case http.StatusHTTPVersionNotSupported:
		return "This server speaks HTTP/1.1."
	}
	if _, detail, ok := bytes.Cut([]byte(why), []byte(": ")); ok {
		return fmt.Sprintf("The request is not valid HTTP: %s.", detail)
	}
	return "The request is not valid HTTP."
}
