package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"serai.dev/serai"
)

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// The colours, as the parameters of an escape sequence.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
)

func (a *app) paint(colour, s string) string { return painted(a.colour, colour, s) }

func (a *app) paintErr(colour, s string) string { return painted(a.errColor, colour, s) }

func painted(on bool, colour, s string) string {
	if !on || colour == "" || s == "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

// clean makes text of unknown origin safe for a terminal: what a site's code
// says reaches the operator's screen. Line ends and tabs stay.
func clean(s string) string {
	ok := func(r rune) bool { return r == '\n' || r == '\t' || unicode.IsPrint(r) }
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !ok(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case ok(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// oneLine is clean for a cell of a table.
func oneLine(s string) string {
	return strings.Join(strings.Fields(clean(s)), " ")
}

// A table is printed with columns as wide as they need to be.
type table struct {
	plain   bool // nothing stands for an empty cell
	rows    [][]string
	colours []map[int]string // by row, then column
}

func (t *table) add(cells ...string) {
	t.rows = append(t.rows, cells)
	t.colours = append(t.colours, nil)
}

// colour paints a cell of the last row.
func (t *table) colour(column int, colour string) {
	last := len(t.rows) - 1
	if t.colours[last] == nil {
		t.colours[last] = map[int]string{}
	}
	t.colours[last][column] = colour
}

func (a *app) table(t *table) { a.rows(t, "") }

// indented is a table within a text.
func (a *app) indented(t *table) { a.rows(t, "  ") }

func (a *app) rows(t *table, indent string) {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			row[i] = oneLine(cell)
			if row[i] == "" && i < len(row)-1 && !t.plain {
				row[i] = "-"
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for n, row := range t.rows {
		var b strings.Builder
		b.WriteString(indent)
		for i, cell := range row {
			b.WriteString(a.paint(t.colours[n][i], cell))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		fmt.Fprintln(a.out, strings.TrimRight(b.String(), " "))
	}
}

// json prints what scripts read.
func (a *app) json(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// checkOutput refuses a value of -o that the command does not know.
func checkOutput(o string, known ...string) error {
	for _, k := range known {
		if o == k {
			return nil
		}
	}
	return serai.Errorf(serai.Invalid, "-o %s: write %s", o, strings.Join(known, ", "))
}

// why is the sentence that tells why a resource is not ready: of the first
// condition that says something went wrong.
func why(cs serai.Conditions) string {
	for _, c := range cs {
		bad := c.Status == serai.False
		if c.Type == serai.HostTaken {
			bad = c.Status == serai.True
		}
		if bad && c.Type != serai.Ready && c.Message != "" {
			return c.Message
		}
	}
	ready := cs.Get(serai.Ready)
	switch {
	case ready.Status == serai.True:
		return ""
	case ready.Message != "":
		return ready.Message
	case ready.Reason != "":
		return ready.Reason
	}
	return "nothing is known of it yet"
}

func colourOf(s serai.Status) string {
	switch s {
	case serai.True:
		return green
	case serai.False:
		return red
	}
	return yellow
}

// jsonLine prints one value on one line.
func (a *app) jsonLine(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
