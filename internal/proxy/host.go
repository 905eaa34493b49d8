package proxy

import (
	"net/netip"
	"strings"
)

// parseHost makes the form in which hosts are compared out of what a client
// wrote in Host or in the target: lower case, no port, no dot at the end,
// addresses as netip prints them, without brackets. It is false for what is no
// host: userinfo, empty labels, other characters than letters, digits, '-' and
// '_', a port that is no number. The form of a host is a fixed point.
func parseHost(s string) (string, bool) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		addr, port, ok := strings.Cut(rest, "]")
		if !ok || port != "" && (port[0] != ':' || !isPort(port[1:])) {
			return "", false
		}
		a, err := netip.ParseAddr(addr)
		if err != nil || !a.Is6() || a.Zone() != "" {
			return "", false
		}
		return a.String(), true
	}
	if strings.Count(s, ":") > 1 { // an address without brackets, as a route may have it
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return "", false
		}
		return a.String(), true
	}
	name, port, ok := strings.Cut(s, ":")
	if ok && !isPort(port) {
		return "", false
	}
	name = strings.TrimSuffix(name, ".")
	if len(name) > 253 {
		return "", false
	}
	label, upper := 0, false
	for _, c := range []byte(name) {
		switch {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = 0
			continue
		case 'A' <= c && c <= 'Z':
			upper = true
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_':
		default:
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	if label == 0 {
		return "", false
	}
	if upper {
		name = strings.ToLower(name)
	}
	return name, true
}

// isPort reports whether s is a port, or nothing: RFC 3986 allows "host:".
func isPort(s string) bool {
	if len(s) > 5 {
		return false
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}
