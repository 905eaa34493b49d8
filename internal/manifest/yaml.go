package manifest

import (
	"bytes"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A chunk is the text of one document. Files are cut at their document marks
// before YAML sees them, so that a syntax error spoils one document alone.
type chunk struct {
	file string
	line int // lines of the file before it
	text []byte
	// located counts the syntax errors of the file whose line was searched for.
	located *int
}

// split cuts a file into its documents.
func split(f File, ps *Problems) []chunk {
	text := bytes.TrimPrefix(f.Text, []byte("\xef\xbb\xbf"))
	if len(text) > MaxFile {
		ps.add(Pos{File: f.Name}, "", "is larger than %d MiB: cut it into several files", MaxFile>>20)
		return nil
	}
	if pos, what := badByte(f.Name, text); what != "" {
		ps.add(pos, "", "%s: write the file as plain UTF-8 text", what)
		return nil
	}
	var chunks []chunk
	c := chunk{file: f.Name, located: new(int)}
	line, start := 0, 0
	cut := func(end, next, nextLine int) {
		c.text = text[start:end]
		chunks = append(chunks, c)
		c.line, start = nextLine, next
	}
	for i := 0; i < len(text); line++ {
		end := len(text)
		if n := bytes.IndexByte(text[i:], '\n'); n >= 0 {
			end = i + n + 1
		}
		switch l := text[i:end]; {
		case isMark(l, "---") && i > start:
			cut(i, i, line)
		case isMark(l, "..."):
			cut(i, end, line+1)
		}
		i = end
	}
	cut(len(text), len(text), line)
	return chunks
}

func isMark(line []byte, mark string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(mark))
	return ok && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

// badByte finds the first byte that YAML would refuse without saying where.
func badByte(file string, text []byte) (Pos, string) {
	pos := Pos{file, 1, 1}
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return pos, "a byte is no UTF-8"
		case r == '\r' && i+1 < len(text) && text[i+1] == '\n':
		case r < ' ' && r != '\t' && r != '\n', r >= 0x7f && r < 0xa0,
			// These would end a line for YAML and for no editor.
			r == 0x2028, r == 0x2029,
			r == 0xfffe, r == 0xffff, r == 0xfeff:
			return pos, "there is the control character " + strconv.QuoteRuneToASCII(r)
		}
		pos.Column++
		if r == '\n' {
			pos.Line, pos.Column = pos.Line+1, 1
		}
		i += size
	}
	return Pos{}, ""
}

// parse returns the document's top node, or nil where it is empty or no YAML.
func (c chunk) parse(ps *Problems) *yaml.Node {
	doc, err := parseYAML(c.text)
	if err != nil {
		pos, why := c.explain(err)
		ps.add(pos, "", "%s", why)
		return nil
	}
	if doc == nil || len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return nil
	}
	return doc.Content[0]
}

func parseYAML(text []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	return &doc, nil
}

// The bounds of the search for the line of a syntax error: documents of a
// file, their size, and lines that are tried.
const (
	maxLocated = 10
	maxSearch  = 16 << 10
	maxTries   = 8
)

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// explain says where a syntax error is and what it is. The parser's own lines
// are those of the construct around the error, and often off by one: so look
// for the longest beginning of the document that is good YAML, not far before
// the line at which the parser stopped reading.
func (c chunk) explain(err error) (Pos, string) {
	msg, line := err.Error(), 1
	if m := yamlError.FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = m[2]
	}
	lines := bytes.SplitAfter(c.text, []byte("\n"))
	if *c.located++; *c.located <= maxLocated && len(c.text) <= maxSearch {
		r := &lineReader{lines: lines}
		_ = yaml.NewDecoder(r).Decode(new(yaml.Node))
		for good := r.read; good >= max(r.read-maxTries, 0); good-- {
			if _, err := parseYAML(bytes.Join(lines[:good], nil)); err == nil {
				line = good + 1
				break
			}
		}
	}
	line = min(max(line, 1), len(lines))
	text := lines[line-1]
	indent := text[:len(text)-len(bytes.TrimLeft(text, " \t"))]
	column := len(indent) + 1
	if tab := bytes.IndexByte(indent, '\t'); tab >= 0 {
		return Pos{c.file, c.line + line, tab + 1}, "there is a tab before the text: indent with spaces"
	}
	return Pos{c.file, c.line + line, column}, "is no YAML, here or on the line before: " + msg
}

// A lineReader hands out a line at a time and counts them.
type lineReader struct {
	lines [][]byte
	read  int
	rest  []byte
}

func (r *lineReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.read == len(r.lines) {
			return 0, io.EOF
		}
		r.rest = r.lines[r.read]
		r.read++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}
