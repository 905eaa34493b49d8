package proxy

import (
	"net"
	"net/http"
	"strconv"
	"strings"

	"serai.dev/serai/internal/proxy/worker"
)

// notForWorkers are the fields of a request that do not become HTTP_ variables:
// those of one connection, those that have variables of their own, and those
// by which a client could speak as if it were the proxy.
var notForWorkers = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "Expect": true, "Http2-Settings": true,
	"Content-Type": true, "Content-Length": true, "Host": true,
	"Proxy": true, "Proxy-Authorization": true, "Forwarded": true, "X-Real-Ip": true,
}

// forWorkers reports whether a field goes on. A name with an underscore would
// become the variable of another name with a hyphen.
func forWorkers(name string) bool {
	return !notForWorkers[name] && !strings.HasPrefix(name, "X-Forwarded-") && strings.IndexByte(name, '_') < 0
}

// environment fills req with the CGI environment of the request, as
// docs/reference/worker-protocol.md has it.
func (x *exchange) environment(req *worker.Request, size int64) {
	r := x.r
	req.Add("REQUEST_METHOD", r.Method)
	name, path := "", r.URL.Path
	if x.mount != nil {
		name, path = cutMount(path, x.mount.Prefix)
		for variable, value := range x.mount.Env {
			req.Add(variable, value)
		}
	}
	req.Add("SCRIPT_NAME", name)
	req.Add("PATH_INFO", path)
	req.Add("REQUEST_URI", x.target)
	req.Add("QUERY_STRING", r.URL.RawQuery)
	req.Add("SERVER_NAME", x.host)
	req.Add("SERVER_PORT", x.port)
	req.Add("SERVER_PROTOCOL", r.Proto)
	req.Add("SERVER_SOFTWARE", serverName)
	req.Add("REMOTE_ADDR", x.remote)
	req.Add("REMOTE_PORT", x.remotePort)
	req.Add("SERAI_REQUEST", x.id)
	if v := r.Header["Content-Type"]; len(v) > 0 {
		req.Add("CONTENT_TYPE", v[0])
	}
	if _, said := r.Header["Content-Length"]; said || size > 0 || len(r.TransferEncoding) > 0 {
		req.Add("CONTENT_LENGTH", strconv.FormatInt(size, 10))
	}
	req.Add("HTTP_HOST", r.Host)
	dropped := connectionOptions(r.Header)
	for name, values := range r.Header {
		if !forWorkers(name) || dropped[name] {
			continue
		}
		value := values[0]
		if len(values) > 1 {
			separator := ", "
			if name == "Cookie" {
				separator = "; "
			}
			value = strings.Join(values, separator)
		}
		req.Add(variable(name), value)
	}
	req.Add("HTTP_X_FORWARDED_FOR", x.remote)
	req.Add("HTTP_X_FORWARDED_PROTO", "http")
	req.Add("HTTP_X_FORWARDED_HOST", r.Host)
}

// connectionOptions are the fields that Connection names: they are of this
// connection too.
func connectionOptions(h http.Header) map[string]bool {
	var dropped map[string]bool
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if name == "" || name == "Close" || name == "Keep-Alive" {
				continue
			}
			if dropped == nil {
				dropped = make(map[string]bool)
			}
			dropped[name] = true
		}
	}
	return dropped
}

// variables are the names of frequent fields, made once.
var variables = func() map[string]string {
	m := make(map[string]string)
	for _, name := range []string{"Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control",
		"Cookie", "If-Modified-Since", "If-None-Match", "Origin", "Pragma", "Priority", "Range", "Referer",
		"Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Sec-Fetch-User", "Upgrade-Insecure-Requests",
		"User-Agent", "X-Requested-With"} {
		m[name] = makeVariable(name)
	}
	return m
}()

func variable(name string) string {
	if v := variables[name]; v != "" {
		return v
	}
	return makeVariable(name)
}

func makeVariable(name string) string {
	return "HTTP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// splitAddr takes an address of net apart; a zone is of no use to anybody else.
func splitAddr(a string) (host, port string) {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return a, ""
	}
	host, _, _ = strings.Cut(host, "%")
	return host, port
}
