package worker

import (
	"encoding/binary"
	"strings"

	"serai.dev/serai/internal/route"
)

// A Field is a header of a reply: a name that is a token and a value without
// CR, LF and NUL.
type Field struct{ Name, Value string }

// A Head is what a reply begins with. Hop-by-hop fields are not in it.
type Head struct {
	Status int // 200 to 999
	Fields []Field
	// Length is what the worker said in Content-Length, or -1. The field is
	// not among Fields.
	Length int64
}

// hopByHop are fields of one connection, which are not a worker's to set.
var hopByHop = map[string]bool{
	"connection": true, "keep-alive": true, "proxy-connection": true, "te": true,
	"trailer": true, "transfer-encoding": true, "upgrade": true,
}

// parseHead checks a head: a list of the status, then names and values.
func parseHead(list []byte) (Head, error) {
	all := string(list) // one copy, of which the fields are parts
	status, all, ok := cutItem(all)
	if !ok || len(status) != 3 || strings.Trim(status, "0123456789") != "" {
		return Head{}, breach("status %.20q is not three digits", status)
	}
	h := Head{Status: int(status[0]-'0')*100 + int(status[1]-'0')*10 + int(status[2]-'0'), Length: -1}
	if h.Status < 200 {
		return Head{}, breach("status %d is not between 200 and 999", h.Status)
	}
	h.Fields = make([]Field, 0, 8)
	for all != "" {
		var f Field
		var okName, okValue bool
		f.Name, all, okName = cutItem(all)
		f.Value, all, okValue = cutItem(all)
		if !okName || !okValue {
			return Head{}, breach("the head ends in the middle of a field")
		}
		if !isToken(f.Name) {
			return Head{}, breach("header name %.40q is not a token", f.Name)
		}
		if strings.ContainsAny(f.Value, "\r\n\x00") {
			return Head{}, breach("the value of header %.40q has CR, LF or NUL", f.Name)
		}
		name := strings.ToLower(f.Name)
		if hopByHop[name] {
			continue
		}
		if name == "content-length" {
			n, ok := parseLength(strings.Trim(f.Value, " \t"))
			if !ok || h.Length >= 0 && h.Length != n {
				return Head{}, breach("Content-Length %.40q is not one number", f.Value)
			}
			h.Length = n
			continue
		}
		h.Fields = append(h.Fields, f)
	}
	return h, nil
}

// cutItem takes the first item off a list.
func cutItem(list string) (item, rest string, ok bool) {
	if len(list) < 2 {
		return "", "", false
	}
	n := int(list[0])<<8 | int(list[1])
	if len(list) < 2+n {
		return "", "", false
	}
	return list[2 : 2+n], list[2+n:], true
}

// parseLength reads digits up to 2^62, as RFC 9110 section 8.6 has it.
func parseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// tokens are the characters of a token, RFC 9110 section 5.6.2.
var tokens = func() (set [256]bool) {
	for c := range set {
		set[c] = '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' ||
			strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return set
}()

func isToken(s string) bool {
	for _, c := range []byte(s) {
		if !tokens[c] {
			return false
		}
	}
	return s != ""
}

// splitWhole takes the payload of a whole reply apart.
func splitWhole(p []byte) (flags byte, head, body []byte, err error) {
	flags, size := p[0], binary.BigEndian.Uint32(p[1:])
	p = p[wholeSize:]
	switch {
	case size > MaxHead:
		return 0, nil, nil, breach("a head of %d bytes is too long: at most %d", size, MaxHead)
	case int(size) > len(p):
		return 0, nil, nil, breach("a head of %d bytes in %d bytes of a reply", size, len(p))
	case len(p)-int(size) > MaxData:
		return 0, nil, nil, breach("a body of %d bytes is too long for a whole reply: at most %d", len(p)-int(size), MaxData)
	}
	return flags, p[:size], p[size:], nil
}

// flags are what a worker says with the end of a reply: why it leaves, or that
// it stays.
var flags = map[byte]string{
	0: "",
	1: route.LeftRequests,
	3: route.LeftSize,
	5: route.LeftCode,
}

func leaves(b byte) (reason string, err error) {
	reason, ok := flags[b]
	if !ok {
		return "", breach("flags %#x are unknown", b)
	}
	return reason, nil
}
