package main

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain äöü\tand\n": "plain äöü\tand\n",
		"\x1b[31mred":      `\x1b[31mred`,
		"bell\a\r":         `bell\x07\x0d`,
		"\u009b31m":        `\u009b31m`,
		"a\u202eb":         `a\u202eb`,
		"bad \xff byte":    `bad \xff byte`,
		"real \ufffd":      "real \ufffd",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b[31m\xff\u009b")
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if !utf8.ValidString(got) {
			t.Errorf("clean(%q) = %q is not UTF-8", s, got)
		}
		for _, r := range got {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				t.Errorf("clean(%q) has %q", s, r)
			}
		}
		if again := clean(got); again != got {
			t.Errorf("clean(%q) = %q, again %q", s, got, again)
		}
	})
}

func TestDiffLines(t *testing.T) {
	for _, tt := range []struct{ from, to, want string }{
		{"", "a b", "+a +b"},
		{"a b", "", "-a -b"},
		{"a b c", "a c", " a -b  c"},
		{"a b c", "a x c d", " a -b +x  c +d"},
		{"a b", "b a", "-a  b +a"},
	} {
		got := strings.Join(diffLines(strings.Fields(tt.from), strings.Fields(tt.to)), " ")
		if short := strings.NewReplacer("+ ", "+", "- ", "-", "   ", "  ").Replace(got); strings.TrimSpace(short) != strings.TrimSpace(tt.want) {
			t.Errorf("%q to %q: %q, want %q", tt.from, tt.to, short, tt.want)
		}
	}
}

func TestTableIsAligned(t *testing.T) {
	var b strings.Builder
	a := newApp(nil, &b, &b)
	a.colour = true
	var tab table
	tab.add("NAME", "READY", "WHY")
	tab.add("alice/shöp", "True", "")
	tab.colour(1, green)
	tab.add("b", "", "two\nlines")
	a.table(&tab)
	want := "NAME        READY  WHY\nalice/shöp  \x1b[32mTrue\x1b[0m\nb           -      two lines\n"
	if b.String() != want {
		t.Errorf("got\n%q\nwant\n%q", b.String(), want)
	}
}
