package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// An endpoint is where an instance of an application answers.
type endpoint struct{ addr, host string }

// A connection to an endpoint is kept from one request to the next.
type connection struct {
	net.Conn
	to   endpoint
	in   *bufio.Reader
	head []byte
}

// patience bounds what is waited for.
const patience = 30 * time.Second

func dial(ctx context.Context, to endpoint) (*connection, error) {
	c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", to.addr)
	if err != nil {
		return nil, err
	}
	head := "GET /?name=world HTTP/1.1\r\nHost: " + to.host + "\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
	return &connection{c, to, bufio.NewReader(c), []byte(head)}, nil
}

// ask makes one request, and returns the body and how long it took from the
// first byte written to the first byte of the reply.
func (c *connection) ask() (body []byte, first time.Duration, err error) {
	begin := time.Now()
	c.SetDeadline(begin.Add(patience))
	if _, err := c.Write(c.head); err != nil {
		return nil, 0, err
	}
	if _, err := c.in.Peek(1); err != nil {
		return nil, 0, err
	}
	first = time.Since(begin)
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return nil, 0, err
	}
	if body, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s: %.200q", c.to.host, resp.Status, body)
	}
	return body, first, err
}

// once makes one request over a connection of its own.
func once(ctx context.Context, to endpoint) (body []byte, first time.Duration, err error) {
	c, err := dial(ctx, to)
	if err != nil {
		return nil, 0, err
	}
	defer c.Close()
	return c.ask()
}

// freeAddress is one that nobody listens on at the moment.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
