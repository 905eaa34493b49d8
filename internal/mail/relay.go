package mail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"time"
)

// The times a relay has.
const (
	dialTime  = 10 * time.Second
	replyTime = 60 * time.Second  // for each command
	takeTime  = 120 * time.Second // for the message and the answer to it
)

// A refusal is a relay's no.
type refusal struct {
	what string // the sender a@b, the recipient c@d, the message
	code int
	text string
	to   bool // it is about a recipient
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the relay refused %s: %d %s", r.what, r.code, r.text)
}

// for good: it would refuse the same again.
func (r *refusal) final() bool { return r.code >= 500 }

// errUnsure is what is left of an exchange that broke after the whole message
// was sent and before the relay answered.
var errUnsure = errors.New("the relay took the message and gave no answer: it may have been sent")

// deliver hands a message to the relay at address: to all recipients, or to
// none. It returns the relay's last words. Errors are a *refusal, errUnsure, or
// what is wrong with the connection.
func deliver(ctx context.Context, address, hello string, e Envelope, m *message) (answer string, err error) {
	c, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	t := textproto.NewConn(c)
	defer t.Close()
	// ask sends one command, or none, and reads the answer to it.
	ask := func(expect int, what, format string, args ...any) (string, error) {
		if err := c.SetDeadline(time.Now().Add(replyTime)); err != nil {
			return "", err
		}
		if format != "" {
			if err := t.PrintfLine(format, args...); err != nil {
				return "", err
			}
		}
		return read(t, expect, what)
	}
	if _, err := ask(220, "the connection", ""); err != nil {
		return "", err
	}
	offers, err := ask(250, "the greeting", "EHLO %s", hello)
	if err != nil {
		return "", err
	}
	with := ""
	if offered(offers, "8BITMIME") {
		with = " BODY=8BITMIME"
	}
	if !e.ascii() {
		if !offered(offers, "SMTPUTF8") {
			return "", &refusal{what: "the message", code: 553, text: "it carries no addresses but ASCII ones"}
		}
		with += " SMTPUTF8"
	}
	if _, err := ask(25, "the sender "+e.From, "MAIL FROM:<%s>%s", e.From, with); err != nil {
		return "", err
	}
	for _, to := range e.To {
		if _, err := ask(25, "the recipient "+to, "RCPT TO:<%s>", to); err != nil {
			if r, ok := errors.AsType[*refusal](err); ok {
				r.to = true
			}
			return "", err
		}
	}
	if _, err := ask(354, "the message", "DATA"); err != nil {
		return "", err
	}
	if err := c.SetDeadline(time.Now().Add(takeTime)); err != nil {
		return "", err
	}
	w := t.DotWriter()
	if err := m.writeTo(w); err != nil {
		return "", err // without the end: the relay drops what it has
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	answer, err = read(t, 250, "the message")
	if _, refused := errors.AsType[*refusal](err); err != nil && !refused {
		return "", fmt.Errorf("%w (%w)", errUnsure, err)
	}
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_ = t.PrintfLine("QUIT")
	}
	return answer, err
}

func read(t *textproto.Conn, expect int, what string) (string, error) {
	_, text, err := t.ReadResponse(expect)
	if e, ok := errors.AsType[*textproto.Error](err); ok {
		return "", &refusal{what: what, code: e.Code, text: oneLine(e.Msg)}
	}
	return oneLine(text), err
}

// offered reports whether the answer to EHLO names an extension.
func offered(answer, extension string) bool {
	for _, word := range strings.Fields(answer) {
		if strings.EqualFold(word, extension) {
			return true
		}
	}
	return false
}

func oneLine(s string) string { return clipTo(strings.Join(strings.Fields(s), " "), 400) }

func clipTo(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
