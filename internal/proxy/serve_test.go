package proxy

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
)

func decodeEcho(t *testing.T, text string) (e echoed) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return e
}

func TestEnvironment(t *testing.T) {
	w := newWorld(t)
	w.serve(w.site(1, "app.test"), echo)
	got := w.raw("POST /a%20b/%2Fc?x=1&y=%2F HTTP/1.1\r\nHost: App.Test:8080\r\nConnection: close, X-Mine\r\n" +
		"Content-Type: text/plain\r\nContent-Length: 5\r\nCookie: a=1\r\nCookie: b=2\r\nX-List: 1\r\nX-List: 2\r\nX-Mine: no\r\n" +
		"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n" +
		"Forwarded: for=9.9.9.9\r\nX-Real-IP: 9.9.9.9\r\nProxy: http://evil\r\nX_Forwarded_For: 9.9.9.9\r\n" +
		"Content_Length: 99\r\nUpgrade: websocket\r\nTE: trailers\r\nKeep-Alive: 5\r\nProxy-Authorization: x\r\n" +
		"Authorization: Basic eA==\r\n\r\nhello")
	_, text, _ := strings.Cut(got, "\r\n\r\n")
	e := decodeEcho(t, text)
	want := map[string]string{
		"REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/a b//c", "REQUEST_URI": "/a%20b/%2Fc?x=1&y=%2F",
		"QUERY_STRING": "x=1&y=%2F", "SERVER_NAME": "app.test", "SERVER_PORT": w.addr[strings.LastIndex(w.addr, ":")+1:],
		"SERVER_PROTOCOL": "HTTP/1.1", "SERVER_SOFTWARE": "serai", "REMOTE_ADDR": "127.0.0.1",
		"CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "5", "HTTP_HOST": "App.Test:8080",
		"HTTP_COOKIE": "a=1; b=2", "HTTP_X_LIST": "1, 2", "HTTP_AUTHORIZATION": "Basic eA==",
		"HTTP_X_FORWARDED_FOR": "127.0.0.1", "HTTP_X_FORWARDED_PROTO": "http", "HTTP_X_FORWARDED_HOST": "App.Test:8080",
	}
	if e.Env["REMOTE_PORT"] == "" || len(e.Env["SERAI_REQUEST"]) != 16 {
		t.Errorf("REMOTE_PORT %q, SERAI_REQUEST %q", e.Env["REMOTE_PORT"], e.Env["SERAI_REQUEST"])
	}
	if !strings.Contains(got, "X-Request-Id: "+e.Env["SERAI_REQUEST"]) {
		t.Error("the reply has another id than the request")
	}
	delete(e.Env, "REMOTE_PORT")
	delete(e.Env, "SERAI_REQUEST")
	for name, value := range want {
		if e.Env[name] != value {
			t.Errorf("%s = %q, want %q", name, e.Env[name], value)
		}
		delete(e.Env, name)
	}
	for name, value := range e.Env {
		t.Errorf("%s = %q reached the worker", name, value)
	}
	if e.Body != "hello" {
		t.Errorf("body %q", e.Body)
	}
}

// TestRawRequests says what becomes of requests that are odd, ambiguous or
// wrong. Each connection must end by itself.
func TestRawRequests(t *testing.T) {
	w := newWorld(t)
	w.serve(w.site(1, "app.test"), echo)
	closed := w.site(2, "closed.test")
	closed.Closed = "This site is suspended."
	w.serve(closed, echo)
	scripts := w.site(3, "scripts.test")
	scripts.Prefixes = []string{"/cgi-bin"}
	w.serve(scripts, echo)
	const end = "Connection: close\r\n\r\n"
	for _, tt := range []struct {
		name, send string
		want       string // status codes
		has        string
	}{
		{"plain", "GET / HTTP/1.1\r\nHost: app.test\r\n" + end, "200", ""},
		{"lower method", "get / HTTP/1.1\r\nHost: app.test\r\n" + end, "200", `"REQUEST_METHOD":"get"`},
		{"pipelined", "GET /1 HTTP/1.1\r\nHost: app.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: app.test\r\n" + end, "200 200", `"PATH_INFO":"/2"`},
		{"no host", "GET / HTTP/1.1\r\n" + end, "400", "X-Request-Id"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: app.test\r\nHost: b.test\r\n" + end, "400", "X-Request-Id"},
		{"unknown host", "GET / HTTP/1.1\r\nHost: other.test\r\n" + end, "421", "No such site"},
		{"unknown address", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + end, "421", ""},
		{"userinfo in host", "GET / HTTP/1.1\r\nHost: a@app.test\r\n" + end, "400", ""},
		{"host that is none", "GET / HTTP/1.1\r\nHost: app..test\r\n" + end, "400", ""},
		{"absolute form wins over Host", "GET http://app.test/x?y HTTP/1.1\r\nHost: closed.test\r\n" + end, "200", `"REQUEST_URI":"/x?y"`},
		{"absolute form without path", "GET http://app.test HTTP/1.1\r\nHost: app.test\r\n" + end, "200", `"PATH_INFO":"/"`},
		{"absolute form with query only", "GET http://app.test?q HTTP/1.1\r\nHost: app.test\r\n" + end, "200", `"REQUEST_URI":"/?q"`},
		{"userinfo in target", "GET http://u:p@app.test/ HTTP/1.1\r\nHost: app.test\r\n" + end, "400", ""},
		{"authority form", "CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\n" + end, "501", ""},
		{"trace", "TRACE / HTTP/1.1\r\nHost: app.test\r\n" + end, "501", ""},
		{"options star", "OPTIONS * HTTP/1.1\r\nHost: app.test\r\n" + end, "200", ""},
		{"star for get", "GET * HTTP/1.1\r\nHost: app.test\r\n" + end, "400", ""},
		{"no slash", "GET foo HTTP/1.1\r\nHost: app.test\r\n" + end, "400", ""},
		{"NUL in path", "GET /a%00b HTTP/1.1\r\nHost: app.test\r\n" + end, "400", ""},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: app.test\r\n" + end, "400", ""},
		{"suspended", "GET / HTTP/1.1\r\nHost: closed.test\r\n" + end, "503", "This site is suspended."},
		{"prefix", "GET /cgi-bin/a HTTP/1.1\r\nHost: scripts.test\r\n" + end, "200", ""},
		{"prefix by half", "GET /cgi-binary HTTP/1.1\r\nHost: scripts.test\r\n" + end, "404", ""},
		{"no prefix", "GET / HTTP/1.1\r\nHost: scripts.test\r\n" + end, "404", ""},
		{"HTTP/1.0 is closed", "GET / HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\n\r\n", "200", "Connection: close"},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505", ""},
		{"HTTP/3.0", "GET / HTTP/3.0\r\nHost: app.test\r\n\r\n", "505", ""},
		{"no version", "GET /\r\n\r\n", "400", ""},
		{"garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400", "X-Request-Id"},
		{"head too large", "GET / HTTP/1.1\r\nHost: app.test\r\nX: " + strings.Repeat("x", 40<<10) + "\r\n\r\n", "431", ""},
		{"space before colon", "GET / HTTP/1.1\r\nHost: app.test\r\nX-A : b\r\n\r\n", "400", ""},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX-A: a\x00b\r\n\r\n", "400", ""},
		{"CR in a value", "GET / HTTP/1.1\r\nHost: app.test\r\nX-A: a\rb\r\n\r\n", "400", ""},
		{"name that is no token", "GET / HTTP/1.1\r\nHost: app.test\r\nX(A: b\r\n\r\n", "400", ""},
		{"two lengths", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhelloX", "400", ""},
		{"negative length", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: -5\r\n\r\nhello", "400", ""},
		{"length with plus", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: +5\r\n\r\nhello", "400", ""},
		{"list of lengths", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5, 5\r\n\r\nhello", "400", ""},
		{"coding and length: the coding counts, and no second request is taken from the connection",
			"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n", "200", "Connection: close"},
		{"chunked in HTTP/1.0 smuggles nothing",
			"POST / HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n", "200", "Connection: close"},
		{"unknown coding", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501", ""},
		{"two codings", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501", ""},
		{"coding with tab", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "400", ""},
		{"chunks", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", "200", `"CONTENT_LENGTH":"5"`},
		{"no chunk size", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n", "400", ""},
		{"chunk longer than said", "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", "400", ""},
		{"unknown expectation", "GET / HTTP/1.1\r\nHost: app.test\r\nExpect: miracles\r\n\r\n", "417", ""},
		{"too large by length", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1048577\r\nExpect: 100-continue\r\n\r\n", "413", "X-Request-Id"},
		{"continue", "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nhi", "100 200", `"body":"hi"`},
		{"upgrade", "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n", "200", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := w.raw(tt.send)
			if codes := strings.Join(statuses(got), " "); codes != tt.want {
				t.Fatalf("answers %q, want %q:\n%s", codes, tt.want, got)
			}
			if !strings.Contains(got, tt.has) {
				t.Fatalf("no %q in\n%s", tt.has, got)
			}
			if strings.Contains(got, "smuggled") {
				t.Fatalf("smuggled:\n%s", got)
			}
		})
	}
}

func TestBodies(t *testing.T) {
	w := newWorld(t)
	w.serve(w.site(1, "app.test"), each(func(c *fakeWorker, r *fakeRequest) {
		c.whole(0, head("200", "X-Length", r.env["CONTENT_LENGTH"]), string(r.body))
	}))
	for _, size := range []int{0, 1, 1000, 32 << 10, 32<<10 + 1, 64 << 10, 64<<10 + 1, 300_000, 1 << 20} {
		for _, chunked := range []bool{false, true} {
			body := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
			var r io.Reader = bytes.NewReader(body)
			if chunked {
				r = struct{ io.Reader }{r}
			}
			resp, text := w.mustGet("POST", "/", "app.test", r)
			if resp.StatusCode != 200 || text != string(body) {
				t.Errorf("size %d, chunked %v: %s, %d bytes came back", size, chunked, resp.Status, len(text))
			}
		}
	}
	resp, _ := w.mustGet("POST", "/", "app.test", struct{ io.Reader }{bytes.NewReader(make([]byte, 1<<20+1))})
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("chunks above the limit: %s", resp.Status)
	}
	if left, err := os.ReadDir(w.dir + "/spool"); err != nil || len(left) > 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
	await(t, "all memory is given back", func() bool { return w.server.spool.memory.Load() == bodyMemory })
}

// TestReplies is a table of what workers may say and what clients get.
func TestReplies(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 10_000)
	tests := []struct {
		name, method string
		say          func(c *fakeWorker)
		status       int
		body         string
		has          []string // "Name: value"
		hasNot       []string // names
		broken       bool     // the client sees that something is missing
	}{
		{name: "whole", say: func(c *fakeWorker) { c.whole(0, head("200", "X-A", "1", "X-A", "2"), "hi") },
			status: 200, body: "hi", has: []string{"Content-Length: 2", "X-A: 1", "Server: serai"}, hasNot: []string{"Content-Type", "Transfer-Encoding"}},
		{name: "whole, empty", say: func(c *fakeWorker) { c.whole(0, head("200"), "") }, status: 200, has: []string{"Content-Length: 0"}},
		{name: "whole, large", say: func(c *fakeWorker) { c.whole(0, head("200"), long) }, status: 200, body: long},
		{name: "whole, leaves", say: func(c *fakeWorker) { c.whole(1, head("200"), "bye") }, status: 200, body: "bye"},
		{name: "own Server and Date", say: func(c *fakeWorker) {
			c.whole(0, head("200", "Server", "mine", "Date", "Thu, 01 Jan 1970 00:00:00 GMT"), "")
		}, status: 200, has: []string{"Server: mine", "Date: Thu, 01 Jan 1970 00:00:00 GMT"}},
		{name: "hop by hop", say: func(c *fakeWorker) {
			c.whole(0, head("200", "Connection", "keep-alive", "Transfer-Encoding", "chunked", "Upgrade", "x", "Keep-Alive", "1", "TE", "x", "Trailer", "x"), "hi")
		}, status: 200, body: "hi", hasNot: []string{"Upgrade", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding"}},
		{name: "status 999", say: func(c *fakeWorker) { c.whole(0, head("999"), "x") }, status: 999, body: "x"},
		{name: "204 has no body", say: func(c *fakeWorker) { c.whole(0, head("204", "Content-Length", "2"), "hi") }, status: 204, hasNot: []string{"Content-Length"}},
		{name: "304 has no body", say: func(c *fakeWorker) { c.whole(0, head("304", "Etag", `"x"`), "hi") }, status: 304},
		{name: "HEAD with body", method: "HEAD", say: func(c *fakeWorker) { c.whole(0, head("200"), "hi") }, status: 200, has: []string{"Content-Length: 2"}},
		{name: "HEAD with length", method: "HEAD", say: func(c *fakeWorker) { c.whole(0, head("200", "Content-Length", "7"), "") }, status: 200, has: []string{"Content-Length: 7"}},
		{name: "HEAD, stream", method: "HEAD", say: func(c *fakeWorker) {
			c.frame('h', head("200"))
			c.frame('d', []byte("hi"))
			c.frame('l', []byte{0})
		}, status: 200},
		{name: "length kept", say: func(c *fakeWorker) { c.whole(0, head("200", "content-length", "2"), "hi") }, status: 200, body: "hi"},
		{name: "length said twice", say: func(c *fakeWorker) { c.whole(0, head("200", "Content-Length", "2", "Content-Length", "2"), "hi") }, status: 200, body: "hi"},
		{name: "length too long", say: func(c *fakeWorker) { c.whole(0, head("200", "Content-Length", "5"), "hi") }, status: 200, body: "hi", broken: true},
		{name: "length too short", say: func(c *fakeWorker) { c.whole(0, head("200", "Content-Length", "1"), "hi") }, status: 200, body: "h", has: []string{"Connection: close"}},
		{name: "stream", say: func(c *fakeWorker) {
			c.frame('h', head("201", "X-A", "1"))
			c.frame('d', []byte("one "))
			c.frame('d', []byte("two"))
			c.frame('l', []byte{0})
		}, status: 201, body: "one two", has: []string{"X-A: 1"}, hasNot: []string{"Content-Length"}},
		{name: "stream with length", say: func(c *fakeWorker) {
			c.frame('h', head("200", "Content-Length", "6"))
			c.frame('d', []byte("onetwo"))
			c.frame('l', []byte{1})
		}, status: 200, body: "onetwo", has: []string{"Content-Length: 6"}},
		{name: "stream, short", say: func(c *fakeWorker) {
			c.frame('h', head("200", "Content-Length", "7"))
			c.frame('d', []byte("onetwo"))
			c.frame('l', []byte{0})
		}, status: 200, body: "onetwo", broken: true},
		{name: "stream, empty", say: func(c *fakeWorker) { c.frame('h', head("200")); c.frame('l', []byte{0}) }, status: 200},
		{name: "stream, long", say: func(c *fakeWorker) {
			c.frame('h', head("200"))
			c.frame('d', []byte(long))
			c.frame('d', []byte(long))
			c.frame('l', []byte{0})
		}, status: 200, body: long + long},
		{name: "stream, aborted", say: func(c *fakeWorker) {
			c.frame('h', head("200"))
			c.frame('d', []byte("one"))
			c.frame('a', []byte("\x00no more"))
		}, status: 200, body: "one", broken: true},
		{name: "aborted at once", say: func(c *fakeWorker) { c.frame('a', []byte("\x00no")) }, status: 502, has: []string{"Cache-Control: no-store"}},
	}
	w := newWorld(t)
	w.serve(w.site(1, "app.test"), each(func(c *fakeWorker, r *fakeRequest) {
		for _, tt := range tests {
			if tt.name == strings.ReplaceAll(r.env["QUERY_STRING"], "+", " ") {
				tt.say(c)
			}
		}
	}))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			method := tt.method
			if method == "" {
				method = "GET"
			}
			resp, text, err := w.get(method, "/?"+strings.ReplaceAll(tt.name, " ", "+"), "app.test", nil)
			if resp == nil {
				t.Fatal(err)
			}
			if (err != nil) != tt.broken {
				t.Errorf("reading the body: %v, want an error: %v", err, tt.broken)
			}
			if resp.StatusCode != tt.status || tt.status != 502 && text != tt.body {
				t.Errorf("%s, %.100q; want %d, %.100q", resp.Status, text, tt.status, tt.body)
			}
			for _, h := range tt.has {
				name, value, _ := strings.Cut(h, ": ")
				got := resp.Header.Get(name)
				if name == "Connection" && resp.Close {
					got = "close"
				}
				if got != value {
					t.Errorf("%s is %q, want %q", name, got, value)
				}
			}
			for _, h := range tt.hasNot {
				if v, ok := resp.Header[http.CanonicalHeaderKey(h)]; ok {
					t.Errorf("%s is there: %q", h, v)
				}
			}
			if len(resp.Header["X-Request-Id"]) != 1 {
				t.Errorf("X-Request-Id: %q", resp.Header["X-Request-Id"])
			}
		})
	}
	if n := w.monitor.kills(); n > 0 {
		t.Errorf("%d workers were killed for lawful replies", n)
	}
}
