package mail

import (
	"bufio"
	"bytes"
	"io"
	"net/textproto"
	"strings"
	"testing"

	"serai.dev/serai"
)

func readString(t testing.TB, in string, limit int64) (string, error) {
	t.Helper()
	m, err := readMessage(strings.NewReader(in), t.TempDir(), limit, "T: ours\r\n")
	if err != nil {
		return "", err
	}
	defer m.close()
	var out bytes.Buffer
	if err := m.writeTo(&out); err != nil {
		t.Fatal(err)
	}
	if int64(out.Len()) != m.size {
		t.Errorf("size %d, but %d bytes come out", m.size, out.Len())
	}
	return out.String(), nil
}

func TestReadMessage(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, tt := range []struct{ name, in, want, err string }{
		{name: "as Unix writes it", in: "A: b\n\nc\n", want: "A: b\r\n\r\nc\r\n"},
		{name: "as SMTP has it", in: "A: b\r\n\r\nc\r\n", want: "A: b\r\n\r\nc\r\n"},
		{name: "CR alone", in: "A: b\r\rc\rd", want: "A: b\r\n\r\nc\r\nd\r\n"},
		{name: "CR at the end", in: "A: b\n\nc\r", want: "A: b\r\n\r\nc\r\n"},
		{name: "CR CR LF", in: "A: b\n\nc\r\r\nd\n", want: "A: b\r\n\r\nc\r\n\r\nd\r\n"},
		{name: "no end of the last line", in: "A: b\n\nc", want: "A: b\r\n\r\nc\r\n"},
		{name: "empty", in: "", want: ""},
		{name: "a head alone", in: "A: b\n", want: "A: b\r\n"},
		{name: "ends of SMTP", in: "A: b\n\n.\nMAIL FROM:<x>\n\r.\r\n.\r\n\n.\r\rQUIT\n", want: "A: b\r\n\r\n.\r\nMAIL FROM:<x>\r\n\r\n.\r\n.\r\n\r\n.\r\n\r\nQUIT\r\n"},
		{name: "8 bits", in: "A: \xe4\n\n\xff\x80\n", want: "A: \xe4\r\n\r\n\xff\x80\r\n"},
		{name: "no head", in: "Hello you\n", want: "\r\nHello you\r\n"},
		{name: "no head, indented", in: " A: b\n", want: "\r\n A: b\r\n"},
		{name: "a head that breaks off", in: "A: b\ntext\nC: d\n", want: "A: b\r\n\r\ntext\r\nC: d\r\n"},
		{name: "our own fields", in: "A: b\nX-Serai-Site: bob/wiki\nx-serai-x :\n y\n\tz\nC: d\n e\n\nX-Serai-Site: text\n", want: "A: b\r\nC: d\r\n e\r\n\r\nX-Serai-Site: text\r\n"},
		{name: "our own field, too long", in: "X-Serai-A: " + long + long + "\nB: c\n", want: "B: c\r\n"},
		{name: "just as long as SMTP carries", in: "A: b\n\n" + long + "\n" + long, want: "A: b\r\n\r\n" + long + "\r\n" + long + "\r\n"},
		{name: "longer", in: "A: b\n\n" + long + "yz\n", want: "A: b\r\n\r\n" + long + "\r\n yz\r\n"},
		{name: "much longer", in: "A: b\n\n" + long + long + "\n", want: "A: b\r\n\r\n" + long + "\r\n " + long[1:] + "\r\n x\r\n"},
		{name: "a field that is longer", in: "A: " + long + "\nB: c\n", want: "A: " + long[3:] + "\r\n xxx\r\nB: c\r\n"},
		{name: "NUL", in: "A: b\n\nc\n\x00d\n", err: "line 4 of the message has a NUL byte"},
		{name: "too large", in: strings.Repeat("x\n", 1000), err: "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readString(t, tt.in, int64(max(1999, len(tt.in)-1000*strings.Count(tt.name, "too large"))))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got %q, %v; want an error with %q", got, err, tt.err)
				}
				return
			}
			if want := "T: ours\r\n" + tt.want; err != nil || got != want {
				t.Fatalf("got  %q, %v\nwant %q", got, err, want)
			}
		})
	}
}

// A message that does not fit into memory comes out as it went in.
func TestReadMessageSpooled(t *testing.T) {
	in := "A: b\r\n\r\n" + strings.Repeat("0123456789abcde\r\n", 3*inMemory/16)
	got, err := readString(t, in, 1<<20)
	if err != nil || got != "T: ours\r\n"+in {
		t.Fatalf("%d bytes in, %d out, %v", len(in), len(got), err)
	}
}

func FuzzMessage(f *testing.F) {
	for _, s := range []string{"A: b\n\nc\n", "A: b\r\n.\r\n", "\r.\r", "X-Serai-A: b\n c\n\n.", strings.Repeat("x", 2500), "\x00", ".", "\n.\n", "A:" + strings.Repeat(" ", 1000)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readString(t, string(in), 1<<20)
		if err != nil {
			if bytes.IndexByte(in, 0) < 0 {
				t.Fatalf("refused for no reason: %v", err)
			}
			return
		}
		head := true
		for line := range strings.SplitSeq(strings.TrimSuffix(got, "\r\n"), "\r\n") {
			if len(line) > maxLine || strings.ContainsAny(line, "\r\n\x00") {
				t.Fatalf("a line that SMTP cannot carry: %q", line)
			}
			head = head && line != ""
			if head && ours.MatchString(line) {
				t.Fatalf("a forged field: %q", line)
			}
		}
		// What a relay reads is what we meant.
		var wire bytes.Buffer
		w := textproto.NewWriter(bufio.NewWriter(&wire)).DotWriter()
		io.WriteString(w, got)
		w.Close()
		wire.WriteString("QUIT\r\n")
		if i := strings.Index(wire.String(), "\r\n.\r\n"); wire.String()[i:] != "\r\n.\r\nQUIT\r\n" {
			t.Fatalf("another end than ours: %q", wire.String())
		}
	})
}

func TestEnvelope(t *testing.T) {
	for _, tt := range []struct{ in, err string }{
		{in: `{"from": "a@example.com", "to": ["b@example.net", "c+d.e_f@x-y.example"]}`},
		{in: `{"from": "", "to": ["b@[192.0.2.1]", "b@[IPv6:2001:db8::1]", "jörg@bücher.example"]}`},
		{in: `{"to": ["b@x"]}`},
		{in: `{"to": []}`, err: "no recipient"},
		{in: `{"from": "a@x"}`, err: "no recipient"},
		{in: `{`, err: "not one line"},
		{in: `{"to": ["b@x"]} {}`, err: "not one line"},
		{in: `{"to": ["b@x"], "bcc": []}`, err: "not one line"},
		{in: `{"to": ["b@x\r\nDATA"]}`, err: `"b@x\r\nDATA" is not a mail address`},
		{in: `{"from": "a@x>\r\nRCPT TO:<c@x", "to": ["b@x"]}`, err: "is not a mail address"},
		{in: `{"to": ["b c@x"]}`, err: "is not a mail address"},
		{in: `{"to": ["b"]}`, err: "is not a mail address"},
		{in: `{"to": ["@x"]}`, err: "is not a mail address"},
		{in: `{"to": ["b@"]}`, err: "is not a mail address"},
		{in: `{"to": ["<b@x>"]}`, err: "is not a mail address"},
		{in: `{"to": ["@x,@y:b@z"]}`, err: "is not a mail address"},
		{in: `{"to": ["\"b c\"@x"]}`, err: "is not a mail address"},
		{in: `{"to": ["b@x,c@y"]}`, err: "is not a mail address"},
		{in: `{"to": ["b@[x"]}`, err: "is not a mail address"},
		{in: `{"to": ["b@x\u0000"]}`, err: "is not a mail address"},
		{in: `{"to": ["b@x\u202e"]}`, err: "is not a mail address"},
		{in: "{\"to\": [\"\xff@x\"]}", err: "is not a mail address"},
		{in: `{"to": ["` + strings.Repeat("b", 300) + `@x"]}`, err: "is not a mail address"},
		{in: `{"to": ["` + strings.Repeat("b", maxEnvelope) + `@x"]}`, err: "is longer than"},
	} {
		e, err := readEnvelope(bufio.NewReader(strings.NewReader(tt.in + "\nrest")))
		switch {
		case tt.err == "" && err != nil:
			t.Errorf("%s: %v", tt.in, err)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || serai.KindOf(err) != serai.Invalid):
			t.Errorf("%.80s: %+v, %v; want %q", tt.in, e, err, tt.err)
		}
	}
	if _, err := readEnvelope(bufio.NewReader(strings.NewReader(`{"to": ["b@x"]}`))); err == nil {
		t.Error("an envelope without an end is one")
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(`{"from": "a@x", "to": ["b@y"]}` + "\n"))
	f.Add([]byte(`{"to": ["b@[IPv6:::1]", "\u00e4@x"]}` + "\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := readEnvelope(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			if serai.KindOf(err) != serai.Invalid {
				t.Fatalf("%q: %v", in, err)
			}
			return
		}
		for _, a := range append([]string{e.From}, e.To...) {
			if len(a) > maxAddress || strings.ContainsAny(a, "<> \t\r\n\x00\"\\,;()") || strings.ContainsFunc(a, func(c rune) bool { return c < 0x21 || c == 0x7f || c == 0xfffd }) {
				t.Fatalf("taken for an address: %q", a)
			}
		}
	})
}
