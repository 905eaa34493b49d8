package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
)

// TestSlowClient: the reply is taken off the worker while the client does not
// read, until buffer and spool are full; then the worker waits.
func TestSlowClient(t *testing.T) {
	w := newWorld(t)
	for i, tt := range []struct {
		size  int
		freed bool
	}{{8 << 20, true}, {48 << 20, false}} {
		t.Run(fmt.Sprint(tt.size>>20, " MiB"), func(t *testing.T) {
			rs := w.site(uint32(i+1), fmt.Sprintf("app%d.test", i))
			rs.Reply = serai.Reply{Buffer: 64 << 10, Spool: 16 << 20}
			w.serve(rs, each(func(c *fakeWorker, r *fakeRequest) {
				c.frame('h', head("200"))
				piece := []byte(strings.Repeat("x", 1<<20))
				for range tt.size >> 20 {
					c.frame('d', piece)
				}
				c.frame('l', []byte{0})
			}))
			c, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: app%d.test\r\n\r\n", i)
			if tt.freed {
				await(t, "the worker is free", func() bool { return w.stats(rs.Number).Idle == 1 })
			} else {
				await(t, "the worker waits", func() bool {
					return strings.Contains(w.logs.String(), "worker waits for a slow client")
				})
				if s := w.stats(rs.Number); s.Busy != 1 {
					t.Errorf("%+v", s)
				}
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			if err != nil || n != int64(tt.size) {
				t.Errorf("%d bytes came, %v", n, err)
			}
			await(t, "the worker is free", func() bool { return w.stats(rs.Number).Idle == 1 })
		})
	}
}

// TestStreaming: each piece reaches the client when the worker has sent it, the
// head too.
func TestStreaming(t *testing.T) {
	w := newWorld(t)
	next := make(chan string)
	w.serve(w.site(1, "app.test"), each(func(c *fakeWorker, r *fakeRequest) {
		c.frame('h', head("200"))
		for s := range next {
			c.frame('d', []byte(s))
		}
		c.frame('l', []byte{0})
	}))
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		s := fmt.Sprint("piece ", i)
		next <- s
		got := make([]byte, len(s))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != s {
			t.Fatalf("%q, %v; want %q", got, err, s)
		}
	}
	close(next)
	if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestClientLeavesStream: a worker that streams to nobody is soon left alone,
// and taken again when it comes back.
func TestClientLeavesReply(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Max = 1
	g := newGate()
	w.serve(rs, each(func(c *fakeWorker, r *fakeRequest) {
		c.frame('h', head("200"))
		g.in <- r
		<-g.out
		c.frame('d', []byte("late"))
		c.frame('l', []byte{0})
	}))
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
	receive(t, g.in)
	c.Close()
	close(g.out)
	await(t, "the worker is free", func() bool { return w.stats(1).Idle == 1 })
	if s := w.stats(1); len(s.Workers) != 1 || s.Workers[0].Requests != 1 {
		t.Errorf("%+v", s)
	}
}

// TestReplyBeforeBody: a worker that answers without reading a long body is no
// deadlock, and is used again only when it has read it.
func TestReplyBeforeBody(t *testing.T) {
	w := newWorld(t)
	rs := w.site(1, "app.test")
	rs.Workers.Max = 1
	read := make(chan struct{})
	long := strings.Repeat("y", 900_000)
	w.serve(rs, func(c *fakeWorker) {
		c.hello()
		for {
			if typ, _, err := c.readFrame(); err != nil || typ == 'Q' {
				return
			}
			c.whole(0, head("200"), long)
			<-read
			for typ := byte(0); typ != 'E'; {
				var err error
				if typ, _, err = c.readFrame(); err != nil {
					return
				}
			}
		}
	})
	resp, text := w.mustGet("POST", "/", "app.test", strings.NewReader(strings.Repeat("x", 1<<20)))
	if resp.StatusCode != 200 || text != long {
		t.Fatalf("%s, %d bytes", resp.Status, len(text))
	}
	if s := w.stats(1); s.Busy != 1 {
		t.Errorf("the worker is free before it has read the body: %+v", s)
	}
	close(read)
	await(t, "the worker is free", func() bool { return w.stats(1).Idle == 1 })
}
