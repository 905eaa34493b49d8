package mail

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode"

	"serai.dev/serai"
)

// An Envelope says from whom a message is and who gets it, whatever its head
// says.
type Envelope struct {
	From string   `json:"from"` // empty where nobody wants to hear of failures
	To   []string `json:"to"`
	// For is the site whose visitor made a script of the catalogue send, as
	// TENANT/SITE: it counts as that site's. Nobody else may say it.
	For string `json:"for,omitempty"`
}

// maxEnvelope bounds the line of the envelope, in bytes: some thousand
// addresses.
const maxEnvelope = 256 << 10

// maxAddress is the longest address (RFC 5321, section 4.5.3.1.3).
const maxAddress = 254

// readEnvelope reads the first line of a submission, which is JSON. The
// message begins after it.
func readEnvelope(r *bufio.Reader) (Envelope, error) {
	var line []byte
	for {
		piece, err := r.ReadSlice('\n')
		line = append(line, piece...)
		if len(line) > maxEnvelope {
			return Envelope{}, serai.Errorf(serai.Invalid, "the envelope is longer than %d bytes: send the message to fewer recipients at once", maxEnvelope)
		}
		if err == nil {
			break
		}
		if errors.Is(err, io.EOF) {
			return Envelope{}, serai.Errorf(serai.Invalid, "the envelope does not end: it is one line of JSON before the message")
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return Envelope{}, cutOff(err)
		}
	}
	var e Envelope
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil || d.More() {
		return Envelope{}, serai.Errorf(serai.Invalid, `the envelope is not one line such as {"from": "a@example.com", "to": ["b@example.net"]}`)
	}
	return e, e.check()
}

func (e Envelope) check() error {
	if len(e.To) == 0 {
		return serai.Errorf(serai.Invalid, "the message has no recipient")
	}
	if e.From != "" {
		if err := checkAddress(e.From); err != nil {
			return err
		}
	}
	for _, to := range e.To {
		if err := checkAddress(to); err != nil {
			return err
		}
	}
	return nil
}

// checkAddress refuses what could be read as more than one address, or as more
// than an address: a line of SMTP, a source route, a quoted local part.
func checkAddress(a string) error {
	local, domain, ok := cutLast(a, '@')
	if literal, is := strings.CutPrefix(domain, "["); is {
		literal, is = strings.CutSuffix(literal, "]")
		ok = ok && is && literal != "" && strings.Trim(literal, "0123456789abcdefABCDEFIPv:.") == ""
	} else {
		ok = ok && domain != "" && !strings.ContainsFunc(domain, func(c rune) bool { return !inWord(c) && c != '-' && c != '.' && c != '_' })
	}
	if !ok || len(a) > maxAddress || local == "" || strings.ContainsFunc(local, func(c rune) bool {
		return !inWord(c) && !strings.ContainsRune("!#$%&'*+-/=?^_`{|}~.", c)
	}) {
		return serai.Errorf(serai.Invalid, "%q is not a mail address: write one such as bob@example.com", clip(a))
	}
	return nil
}

func inWord(c rune) bool {
	if c < 0x80 {
		return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
	}
	return unicode.IsLetter(c) || unicode.IsMark(c) || unicode.IsDigit(c)
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func clip(s string) string {
	if r := []rune(s); len(r) > 80 {
		return string(r[:80]) + "…"
	}
	return s
}

// ascii reports whether every address can go to a relay without SMTPUTF8.
func (e Envelope) ascii() bool {
	for _, a := range append([]string{e.From}, e.To...) {
		if strings.ContainsFunc(a, func(c rune) bool { return c >= 0x80 }) {
			return false
		}
	}
	return true
}
