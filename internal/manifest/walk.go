package manifest

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"serai.dev/serai"
)

// A schema is the table of fields as a tree.
type schema struct {
	field  Field              // zero for a group without a row of its own
	names  []string           // of the fields, in the table's order
	fields map[string]*schema // of a group
	any    *schema            // of a group for each key, where the path has a *
	each   *schema            // of the groups in a list, where the path has []
}

func schemaOf(table []Field) *schema {
	root := &schema{}
	for _, f := range table {
		at := root
		for name := range strings.SplitSeq(f.Path, ".") {
			name, list := strings.CutSuffix(name, "[]")
			next := at.fields[name]
			if name == "*" {
				next = at.any
			}
			if next == nil {
				next = &schema{}
				if name == "*" {
					at.any = next
				} else {
					if at.fields == nil {
						at.fields = map[string]*schema{}
					}
					at.names, at.fields[name] = append(at.names, name), next
				}
			}
			at = next
			if list {
				if at.each == nil {
					at.each = &schema{}
				}
				at = at.each
			}
		}
		at.field = f
	}
	return root
}

func (s *schema) group() bool { return s.fields != nil || s.any != nil }

// want says what a field's value should be, for messages.
func (s *schema) want() string {
	switch {
	case s.any != nil:
		return "{NAME: {" + strings.Join(s.any.names, ": …, ") + ": …}}"
	case s.each != nil:
		return "a list such as [" + s.each.want() + "]"
	case s.fields != nil:
		var must, may []string
		for _, name := range s.names {
			switch f := s.fields[name].field; {
			case f.Required:
				must = append(must, name)
			case f.State != Later:
				may = append(may, name)
			}
		}
		if len(must) > 0 {
			may = must
		}
		return "{" + strings.Join(may, ": …, ") + ": …}"
	}
	return s.field.typ.want
}

// A walker reads one document by a schema. It makes a tree that fits the JSON
// of the document's struct, and leaves out what is wrong.
//
// It goes no deeper than the schema does, and so needs no guard against
// aliases that contain themselves or multiply.
type walker struct {
	file string
	line int // of the file before the document
	ps   *Problems
	at   map[string]Pos
}

func (w *walker) pos(n *yaml.Node) Pos {
	return Pos{w.file, w.line + n.Line, n.Column}
}

func (w *walker) problem(n *yaml.Node, path, format string, args ...any) {
	w.ps.add(w.pos(n), path, format, args...)
}

// follow returns what an alias stands for.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

// kind finds out what the document is before anything else is read.
func (w *walker) kind(root *yaml.Node) (string, bool) {
	if root.Kind != yaml.MappingNode {
		w.problem(root, "", "is %s: a document starts with kind: Plan, Tenant or Site", describe(root))
		return "", false
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != "kind" {
			continue
		}
		v := follow(root.Content[i+1])
		if v.Kind == yaml.ScalarNode && schemas[v.Value] != nil {
			return v.Value, true
		}
		if m := meant(v.Value, kinds); v.Kind == yaml.ScalarNode && m != "" {
			w.problem(v, "kind", "%q is no kind, did you mean %s?", v.Value, m)
		} else {
			w.problem(v, "kind", "%s is no kind: write Plan, Tenant or Site", quoted(v))
		}
		return "", false
	}
	w.problem(root, "kind", "is missing: write kind: Plan, Tenant or Site")
	return "", false
}

// mapping reads a group of fields.
func (w *walker) mapping(n *yaml.Node, s *schema, path string) map[string]any {
	tree := map[string]any{}
	w.pairs(n, path, s.want(), func(key, value *yaml.Node) {
		field := join(path, key.Value)
		child := s.fields[key.Value]
		switch {
		case child == nil && s.any != nil:
			if _, err := s.field.typ.scalar(key.Value); err != nil {
				w.problem(key, field, "%s", serai.Message(err))
				return
			}
			child = s.any
		case child == nil:
			w.problem(key, field, "%s", s.unknown(key.Value))
			return
		}
		w.mark(field, key, value)
		if v, ok := w.value(value, child, field); ok {
			tree[key.Value] = v
		}
	})
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for _, name := range s.names {
		field := join(path, name)
		if _, ok := w.at[field]; !ok && s.fields[name].field.Required {
			pos, ok := w.at[path]
			if !ok {
				pos = w.pos(n)
			}
			w.ps.add(pos, field, "is missing: write %s", s.fields[name].want())
		}
	}
	return tree
}

// mark keeps a field's position: of its value where that stands on the key's
// line, else of the key.
func (w *walker) mark(path string, key, value *yaml.Node) {
	pos := w.pos(key)
	if value.Line == key.Line && follow(value).Kind == yaml.ScalarNode {
		pos = w.pos(value)
	}
	w.at[path] = pos
}

// pairs calls each for every entry of a mapping. Keys come once and are
// scalars.
func (w *walker) pairs(n *yaml.Node, path, want string, each func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		w.problem(n, path, "is %s: write %s", describe(n), want)
		return
	}
	w.untagged(n, path)
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := follow(n.Content[i]), n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			w.problem(n.Content[i], path, "has a key that is %s: write a name", describe(key))
			continue
		}
		if key.ShortTag() == "!!merge" {
			w.problem(key, path, "merges with <<: write the fields out instead")
			continue
		}
		if line, twice := seen[key.Value]; twice {
			w.problem(key, join(path, key.Value), "is there twice, first in line %d: keep one of them", line)
			continue
		}
		seen[key.Value] = w.line + key.Line
		each(key, value)
	}
}

// value reads one field.
func (w *walker) value(n *yaml.Node, s *schema, path string) (any, bool) {
	pos := n
	n = follow(n)
	if s.field.State == Later {
		w.problem(pos, path, "is not built yet: leave it out")
		return nil, false
	}
	if isNull(n) {
		or := ", or leave it out"
		if s.field.Required {
			or = ""
		}
		w.problem(pos, path, "has no value: write %s%s", s.want(), or)
		return nil, false
	}
	if s.each != nil {
		return w.groups(n, s.each, path)
	}
	if s.group() {
		if short := s.field.Short; short != "" && n.Kind == yaml.ScalarNode {
			v, ok := w.scalar(n, s.fields[short].field.typ, path)
			return map[string]any{short: v}, ok
		}
		tree := w.mapping(n, s, path)
		return tree, n.Kind == yaml.MappingNode
	}
	return w.typed(n, s.field.typ, path)
}

// maxGroups bounds lists of groups.
const maxGroups = 20

// groups reads a list of groups.
func (w *walker) groups(n *yaml.Node, s *schema, path string) (any, bool) {
	if n.Kind != yaml.SequenceNode {
		w.problem(n, path, "is %s: write a list such as [%s]", describe(n), s.want())
		return nil, false
	}
	w.untagged(n, path)
	if len(n.Content) > maxGroups {
		w.problem(n, path, "has %d entries: write at most %d", len(n.Content), maxGroups)
		return nil, false
	}
	list := []any{}
	for i, entry := range n.Content {
		field := item(path, i)
		w.at[field] = w.pos(entry)
		tree := w.mapping(follow(entry), s, field)
		if tree == nil {
			tree = map[string]any{} // the others keep their places
		}
		list = append(list, tree)
	}
	return list, true
}

// typed reads a value of a type of the table.
func (w *walker) typed(n *yaml.Node, t *valueType, path string) (any, bool) {
	switch {
	case t.list != nil:
		return w.list(n, t, path)
	case t.values != nil:
		if n.Kind == yaml.MappingNode && int64(len(n.Content)) < t.min {
			w.problem(n, path, "is empty: write a mapping such as %s", t.want)
			return nil, false
		}
		tree := map[string]any{}
		w.pairs(n, path, t.want, func(key, value *yaml.Node) {
			field := join(path, key.Value)
			w.mark(field, key, value)
			k, ok := w.scalar(key, t.keys, field)
			v, vok := w.typed(follow(value), t.values, field)
			if ok && vok {
				tree[k.(string)] = v
			}
		})
		return tree, true
	}
	return w.scalar(n, t, path)
}

func (w *walker) list(n *yaml.Node, t *valueType, path string) (any, bool) {
	if n.Kind != yaml.SequenceNode {
		w.problem(n, path, "is %s: write a list such as %s", describe(n), t.want)
		return nil, false
	}
	w.untagged(n, path)
	if t.max > 0 && int64(len(n.Content)) > t.max {
		w.problem(n, path, "has %d entries: write at most %d", len(n.Content), t.max)
		return nil, false
	}
	if int64(len(n.Content)) < t.min {
		w.problem(n, path, "is empty: write a list such as %s", t.want)
		return nil, false
	}
	list := []any{}
	seen := map[any]bool{}
	for i, item := range n.Content {
		field := path + "[" + strconv.Itoa(i) + "]"
		w.at[field] = w.pos(item)
		v, ok := w.typed(follow(item), t.list, field)
		if !ok {
			continue
		}
		if seen[v] && !t.again {
			w.problem(item, field, "%q is in the list twice: keep one of them", v)
			continue
		}
		seen[v] = true
		list = append(list, v)
	}
	return list, true
}

func (w *walker) scalar(n *yaml.Node, t *valueType, path string) (any, bool) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		w.problem(n, path, "is %s: write %s", describe(n), t.want)
		return nil, false
	}
	if !w.untagged(n, path) {
		return nil, false
	}
	// The text as it was written: 4.00 stays 4.00, and yes is no boolean.
	v, err := t.scalar(n.Value)
	if err != nil {
		w.problem(n, path, "%s", serai.Message(err))
		return nil, false
	}
	return v, true
}

func (w *walker) untagged(n *yaml.Node, path string) bool {
	if n.Style&yaml.TaggedStyle != 0 {
		w.problem(n, path, "has the tag %s: leave the tag out", n.Tag)
		return false
	}
	return true
}

// unknown says what is wrong with the name of a field.
func (s *schema) unknown(name string) string {
	if why, ok := serverSet[name]; ok && s.fields[why.beside] != nil {
		return why.msg
	}
	if m := meant(name, s.names); m != "" {
		return "unknown field, did you mean " + m + "?"
	}
	names := slices.DeleteFunc(slices.Clone(s.names), func(n string) bool { return s.fields[n].field.State == Later })
	return "unknown field: known here are " + strings.Join(names, ", ")
}

// serverSet are fields that the server prints and nobody writes. They stand
// beside a field that people do write.
var serverSet = map[string]struct{ beside, msg string }{
	"status":     {"spec", "is what the server has seen: leave it out"},
	"id":         {"name", "is given out by the server: leave it out"},
	"revision":   {"name", "is counted by the server: leave it out"},
	"generation": {"name", "is counted by the server: leave it out"},
	"created":    {"name", "is set by the server: leave it out"},
	"deleted":    {"name", "is set by the server: leave it out"},
	"finalizers": {"name", "is set by the server: leave it out"},
	"catalogue":  {"hosts", "is set by serai catalogue add: leave it out"},
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// join makes the path of a field: spec.workers, spec.files["/static"].
func join(path, key string) string {
	switch {
	case !plainKey.MatchString(key):
		return path + "[" + strconv.Quote(clip(key)) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}

// describe says what a node is, with its article.
func describe(n *yaml.Node) string {
	switch n = follow(n); {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "empty"
	}
	return strconv.Quote(clip(n.Value))
}

func quoted(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return strconv.Quote(clip(n.Value))
	}
	return describe(n)
}

// clip shortens what is quoted in a message.
func clip(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
