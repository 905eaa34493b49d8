package proxy

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// An entry is a line of an access log.
type entry struct {
	Time      time.Time
	Request   string // id
	Remote    string
	Method    string
	Target    string // as it was sent
	Proto     string
	Host      string // as it was sent
	Status    int
	Bytes     int64 // of the reply's body
	Received  int64 // of the request's body
	Referer   string
	UserAgent string
	Queue     time.Duration // waiting for a worker
	Worker    time.Duration // in workers
	Total     time.Duration // from the head to the last byte
	Aborted   bool          // the reply did not reach the client whole
}

// Formats are the forms of an access log that can be asked for.
var Formats = map[string]func([]byte, *entry) []byte{"combined": combined, "json": jsonLine, "short": short}

// combined is Apache's "combined" format, then host, id, and the milliseconds
// in queue, in workers and in all; a last word "aborted" where it was.
func combined(b []byte, e *entry) []byte {
	b = append(b, e.Remote...)
	b = append(b, " - - ["...)
	b = e.Time.AppendFormat(b, "02/Jan/2006:15:04:05 -0700")
	b = append(b, `] "`...)
	b = escape(b, e.Method)
	b = append(b, ' ')
	b = escape(b, e.Target)
	b = append(b, ' ')
	b = escape(b, e.Proto)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(e.Status), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, e.Bytes, 10)
	for _, s := range [...]string{e.Referer, e.UserAgent, e.Host} {
		b = append(b, ` "`...)
		if s == "" {
			s = "-"
		}
		b = escape(b, s)
		b = append(b, '"')
	}
	b = append(b, ' ')
	b = append(b, e.Request...)
	for _, d := range [...]time.Duration{e.Queue, e.Worker, e.Total} {
		b = append(b, ' ')
		b = appendMillis(b, d)
	}
	if e.Aborted {
		b = append(b, " aborted"...)
	}
	return append(b, '\n')
}

// short is for a terminal: time, method, target, status, bytes, milliseconds.
func short(b []byte, e *entry) []byte {
	b = e.Time.AppendFormat(b, "15:04:05 ")
	b = escape(b, e.Method)
	b = append(b, ' ')
	b = escape(b, e.Target)
	b = fmt.Appendf(b, " %d, %d bytes, ", e.Status, e.Bytes)
	b = appendMillis(b, e.Total)
	b = append(b, " ms"...)
	if e.Aborted {
		b = append(b, ", aborted"...)
	}
	return append(b, '\n')
}

func appendMillis(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d.Microseconds())/1000, 'f', 3, 64)
}

// escape writes what a client sent so that it can neither end its field nor its
// line nor speak to a terminal: other bytes than printable ASCII, quotes and
// backslashes become \xHH.
func escape(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	for _, c := range []byte(s) {
		if c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// jsonLine is one JSON object; bytes that are no UTF-8 are written as \xHH in
// the text.
func jsonLine(b []byte, e *entry) []byte {
	ms := func(d time.Duration) json.Number { return json.Number(appendMillis(nil, d)) }
	line, err := json.Marshal(struct {
		Time      string      `json:"time"`
		Request   string      `json:"request"`
		Remote    string      `json:"remote"`
		Method    string      `json:"method"`
		Target    string      `json:"target"`
		Proto     string      `json:"proto"`
		Host      string      `json:"host"`
		Status    int         `json:"status"`
		Bytes     int64       `json:"bytes"`
		Received  int64       `json:"received"`
		Referer   string      `json:"referer,omitempty"`
		UserAgent string      `json:"userAgent,omitempty"`
		QueueMs   json.Number `json:"queueMs"`
		WorkerMs  json.Number `json:"workerMs"`
		TotalMs   json.Number `json:"totalMs"`
		Aborted   bool        `json:"aborted,omitempty"`
	}{e.Time.Format(time.RFC3339Nano), e.Request, e.Remote, valid(e.Method), valid(e.Target), valid(e.Proto), valid(e.Host),
		e.Status, e.Bytes, e.Received, valid(e.Referer), valid(e.UserAgent), ms(e.Queue), ms(e.Worker), ms(e.Total), e.Aborted})
	if err != nil {
		line = fmt.Appendf(nil, `{"request":%q,"error":%q}`, e.Request, err)
	}
	return append(append(b, line...), '\n')
}

func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string(escape(nil, s))
}

// record writes the log line and counts.
func (x *exchange) record() {
	now := time.Now()
	e := &entry{
		Time: x.start, Request: x.id, Remote: x.remote, Method: x.r.Method, Target: x.r.RequestURI, Proto: x.r.Proto,
		Host: x.r.Host, Status: x.w.status, Bytes: x.w.sent, Received: x.received,
		Referer: x.r.Referer(), UserAgent: x.r.UserAgent(),
		Queue: x.queued, Worker: x.worked, Total: now.Sub(x.start), Aborted: x.aborted,
	}
	if x.site == nil {
		x.s.access.write("", "", e)
		return
	}
	x.site.pool.counts.add(e)
	if x.app != nil && x.app != x.site {
		x.app.pool.counts.add(e)
	}
	x.s.access.write(x.site.Tenant, x.site.Name, e)
}
