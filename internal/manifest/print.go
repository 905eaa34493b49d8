package manifest

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"serai.dev/serai"
)

// Print writes a resource as a person would have written it: without status
// and what the server sets, defaults included, always in the same order. Parse
// reads it back as the same specification.
func Print(r serai.Resource) ([]byte, error) {
	m := r.GetMeta()
	return printYAML(struct {
		serai.Type
		Meta serai.Meta `json:"metadata"`
		Spec any        `json:"spec"`
	}{serai.Type{APIVersion: serai.APIVersion, Kind: r.Key().Kind}, serai.Meta{Name: m.Name, Tenant: m.Tenant}, r.SpecOf()})
}

// PrintFull writes all of a resource: what the server has set and seen, too.
func PrintFull(r serai.Resource) ([]byte, error) { return printYAML(r) }

// Same reports whether two resources have the same specification.
func Same(a, b serai.Resource) bool {
	x, err1 := json.Marshal(a.SpecOf())
	y, err2 := json.Marshal(b.SpecOf())
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// printYAML goes by way of JSON, whose order is that of the structs and of
// sorted keys.
func printYAML(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	n, err := yamlNode(dec)
	if err != nil {
		return nil, err
	}
	for i := 1; i < len(n.Content); i += 2 {
		if field := n.Content[i]; n.Content[i-1].Value == "metadata" && fits(field) {
			field.Style = yaml.FlowStyle
		} else {
			layOut(field)
		}
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return nil, err
	}
	return out.Bytes(), enc.Close()
}

// yamlNode reads one JSON value.
func yamlNode(dec *json.Decoder) (*yaml.Node, error) {
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := tok.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.MappingNode}
		if t == '[' {
			n.Kind = yaml.SequenceNode
		}
		for dec.More() {
			child, err := yamlNode(dec)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, child)
		}
		if _, err := dec.Token(); err != nil && err != io.EOF {
			return nil, err
		}
		return n, nil
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: t.String()}, nil
	case bool:
		n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "false"}
		if t {
			n.Value = "true"
		}
		return n, nil
	case string:
		return stringNode(t), nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
}

// plain are the texts that need no quotes, unless they look like a number or
// boolean, which the encoder sees.
var plain = regexp.MustCompile(`^[A-Za-z0-9/._][A-Za-z0-9/._@+-]*$`)

// oldBool are the texts that older readers of YAML take for booleans.
var oldBool = regexp.MustCompile(`^(?i:y|n|yes|no|on|off)$`)

func stringNode(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if !plain.MatchString(s) || oldBool.MatchString(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// layOut puts what is small and flat beneath n on one line, but for the
// environment, which is read line by line.
func layOut(n *yaml.Node) {
	for i, child := range n.Content {
		env := n.Kind == yaml.MappingNode && i%2 == 1 && n.Content[i-1].Value == "env"
		if fits(child) && !env {
			child.Style = yaml.FlowStyle
		} else {
			layOut(child)
		}
	}
}

// fits reports whether a flat list or mapping is short enough for one line.
func fits(n *yaml.Node) bool {
	if n.Kind == yaml.ScalarNode {
		return false
	}
	width := 0
	for _, child := range n.Content {
		if child.Kind != yaml.ScalarNode && len(child.Content) > 0 {
			return false
		}
		width += len(child.Value) + 2
	}
	return width <= 72
}

// jsonTree is a resource as JSON reads it.
func jsonTree(r serai.Resource) map[string]any {
	text, err := json.Marshal(r)
	var tree map[string]any
	if err == nil {
		err = json.Unmarshal(text, &tree)
	}
	if err != nil {
		panic("manifest: a resource that is no JSON: " + err.Error())
	}
	return tree
}

// set reports whether a field of a tree is there.
func set(tree map[string]any, path string) bool {
	for {
		name, rest, more := strings.Cut(path, ".")
		v, ok := tree[name]
		if !more || !ok {
			return ok
		}
		if tree, ok = v.(map[string]any); !ok {
			return false
		}
		path = rest
	}
}

// Diff compares two texts line by line: lines of before alone start with "-",
// those of after alone with "+", and common ones with a space. It is empty
// where the texts are the same.
func Diff(before, after string) string {
	if before == after {
		return ""
	}
	a, b := lines(before), lines(after)
	var out strings.Builder
	put := func(mark byte, ls []string) {
		for _, l := range ls {
			out.WriteByte(mark)
			out.WriteString(l)
			out.WriteByte('\n')
		}
	}
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	put(' ', a[:head])
	x, y := a[head:len(a)-tail], b[head:len(b)-tail]
	if len(x)*len(y) > 1<<22 { // too much to compare: all of it changed
		put('-', x)
		put('+', y)
		x, y = nil, nil
	}
	// common[i][j] is how many lines of x[i:] are in y[j:], in order.
	common := make([][]int32, len(x)+1)
	for i := range common {
		common[i] = make([]int32, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(x) || j < len(y); {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			put(' ', x[i:i+1])
			i, j = i+1, j+1
		case i < len(x) && (j == len(y) || common[i+1][j] >= common[i][j+1]):
			put('-', x[i:i+1])
			i++
		default:
			put('+', y[j:j+1])
			j++
		}
	}
	put(' ', a[len(a)-tail:])
	return out.String()
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}
