package root

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// A client is one connection to the front proxy, for what curl does not do: to
// send and to read in pieces, and to leave in the middle.
type client struct {
	net.Conn
	in   *bufio.Reader
	sent string         // the method of the request
	resp *http.Response // whose body is still to be read
}

// cmdDial connects and sends: dial NAME TEXT. The text has Go's escapes: \r\n.
func cmdDial(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: dial NAME TEXT")
	}
	conn, err := net.Dial("tcp", ts.Getenv("URL"))
	ts.Check(err)
	c := &client{Conn: conn, in: bufio.NewReader(conn)}
	if old := serverOf(ts).clients[args[0]]; old != nil {
		old.Close()
	}
	serverOf(ts).clients[args[0]] = c
	c.send(ts, args[1])
}

// cmdSend sends more: send NAME TEXT [TIMES].
func cmdSend(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: send NAME TEXT [TIMES]")
	}
	times := 1
	if len(args) == 3 {
		n, err := strconv.Atoi(args[2])
		ts.Check(err)
		times = n
	}
	for range times {
		clientOf(ts, args[0]).send(ts, args[1])
	}
}

func (c *client) send(ts *testscript.TestScript, text string) {
	text, err := strconv.Unquote(`"` + strings.ReplaceAll(text, `"`, `\"`) + `"`)
	ts.Check(err)
	if c.sent == "" {
		_, err = fmt.Sscan(text, &c.sent)
		ts.Check(err)
	}
	ts.Check(c.SetWriteDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(c, text)
	ts.Check(err)
}

func clientOf(ts *testscript.TestScript, name string) *client {
	c := serverOf(ts).clients[name]
	if c == nil {
		ts.Fatalf("no connection %s", name)
	}
	return c
}

// cmdReply reads a reply and prints it: reply NAME. With a third word it reads
// a part: reply NAME head, then reply NAME body, which prints the length alone
// and how it ended.
func cmdReply(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: reply NAME [head|body]")
	}
	c := clientOf(ts, args[0])
	part := append(args, "all")[1]
	ts.Check(c.SetReadDeadline(time.Now().Add(patience)))
	if part != "body" {
		resp, err := http.ReadResponse(c.in, &http.Request{Method: c.sent})
		ts.Check(err)
		c.resp, c.sent = resp, ""
		fmt.Fprintln(ts.Stdout(), resp.Proto, resp.Status)
		ts.Check(resp.Header.Write(ts.Stdout()))
		if resp.Close { // net/http takes it out of the headers
			fmt.Fprintln(ts.Stdout(), "Connection: close")
		}
	}
	switch part {
	case "all":
		fmt.Fprintln(ts.Stdout())
		_, err := io.Copy(ts.Stdout(), c.resp.Body)
		ts.Check(err)
	case "body":
		n, err := io.Copy(io.Discard, c.resp.Body)
		fmt.Fprintf(ts.Stdout(), "%d bytes", n)
		if err != nil {
			fmt.Fprintf(ts.Stdout(), ", then %v", err)
		}
		fmt.Fprintln(ts.Stdout())
	}
}

// cmdHangup closes a connection, in the middle of whatever it is: hangup NAME.
func cmdHangup(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(clientOf(ts, args[0]).Close())
	delete(serverOf(ts).clients, args[0])
}
