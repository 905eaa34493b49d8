package proxy

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// titles are the headings of the proxy's own pages, where RFC 9110's word says
// little to a visitor.
var titles = map[int]string{
	http.StatusBadRequest:                  "Bad request",
	http.StatusNotFound:                    "Not found",
	http.StatusMethodNotAllowed:            "Method not allowed",
	http.StatusRequestTimeout:              "Request timeout",
	http.StatusRequestEntityTooLarge:       "Request too large",
	http.StatusMisdirectedRequest:          "No such site here",
	http.StatusRequestHeaderFieldsTooLarge: "Request headers too large",
	http.StatusInternalServerError:         "Internal error",
	http.StatusNotImplemented:              "Not implemented",
	http.StatusBadGateway:                  "The site did not answer properly",
	http.StatusServiceUnavailable:          "Not available at the moment",
	http.StatusGatewayTimeout:              "The site took too long",
	http.StatusHTTPVersionNotSupported:     "HTTP version not supported",
}

func title(status int) string {
	if t := titles[status]; t != "" {
		return t
	}
	return http.StatusText(status)
}

// A page is an answer of the proxy's own.
type page struct {
	status int
	why    string // one sentence
	id     string // of the request
}

// html is the page for a person. It needs nothing but itself.
func (p page) html() string {
	return fmt.Sprintf(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>%[1]d %[2]s</title>
<meta name="viewport" content="width=device-width">
<style>body{font:1em/1.5 sans-serif;max-width:36em;margin:4em auto;padding:0 1em;color:#222}
h1{font-size:1.4em}small{color:#666}</style></head>
<body><h1>%[2]s</h1><p>%[3]s</p><p><small>%[1]d · request %[4]s</small></p></body></html>
`, p.status, html.EscapeString(title(p.status)), html.EscapeString(p.why), p.id)
}

func (p page) json() string {
	b, err := json.Marshal(struct {
		Status  int    `json:"status"`
		Title   string `json:"title"`
		Message string `json:"message"`
		Request string `json:"request"`
	}{p.status, title(p.status), p.why, p.id})
	if err != nil {
		return "{}"
	}
	return string(b) + "\n"
}

func (p page) text() string {
	return fmt.Sprintf("%d %s\n%s\nrequest %s\n", p.status, title(p.status), p.why, p.id)
}

// as picks the form by Accept: the one named first wins, and none is HTML.
func (p page) as(accept string) (contentType, text string) {
	for part := range strings.SplitSeq(accept, ",") {
		media, _, _ := strings.Cut(part, ";")
		media = strings.ToLower(strings.TrimSpace(media))
		switch {
		case media == "text/html" || media == "application/xhtml+xml":
			return "text/html; charset=utf-8", p.html()
		case media == "application/json" || strings.HasSuffix(media, "+json"):
			return "application/json", p.json()
		case media == "text/plain":
			return "text/plain; charset=utf-8", p.text()
		}
	}
	return "text/html; charset=utf-8", p.html()
}

// fail answers with a page of the proxy's own.
func (x *exchange) fail(status int, why string, retry time.Duration) {
	if x.w.status != 0 { // a head was sent: nothing can be said any more
		x.abort()
	}
	h := x.w.Header()
	clear(h)
	h.Set("X-Request-Id", x.id)
	contentType, text := page{status, why, x.id}.as(x.r.Header.Get("Accept"))
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(text)))
	h.Set("Cache-Control", "no-store")
	h.Set("Server", serverName)
	if retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int((retry+time.Second-1)/time.Second)))
	}
	if status == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD")
	}
	if x.closing || x.bodyLeft {
		h.Set("Connection", "close")
	}
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		x.w.Write([]byte(text))
	}
}
