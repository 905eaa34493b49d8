// Package manifest reads what people write: YAML files with Plans, Tenants and
// Sites, and the server's own configuration. It finds all mistakes of all files
// at once, each with file, line and column, the path of the field and what
// would be right; it fills in defaults and yields plain typed values. It also
// prints resources as a person would have written them.
//
// One table of fields (see Fields and ConfigFields) drives reading, defaults
// and the reference in docs/reference/manifests.md. The package does no input
// or output: texts come in, values go out.
package manifest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"serai.dev/serai"
)

// A File is one text and the name it goes by in messages.
type File struct {
	Name string `json:"name"`
	Text []byte `json:"text"`
}

// MaxFile is the size of the largest text that is read, in bytes.
const MaxFile = 16 << 20

// Pos is a place in a file. Line and Column count from 1, columns in
// characters; both are 0 where only the file is known.
type Pos struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

// String is shop.yaml:7:11.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// A Problem is one thing that is wrong.
type Problem struct {
	Pos
	Path string `json:"path,omitempty"` // of the field, such as spec.workers.max; empty for a whole document
	Msg  string `json:"msg"`            // what is wrong and what would be right
}

// String is shop.yaml:7:11: spec.workers.max: "many" is not a number.
func (p Problem) String() string {
	if p.Path == "" {
		return p.Pos.String() + ": " + p.Msg
	}
	return p.Pos.String() + ": " + p.Path + ": " + p.Msg
}

// Problems are all that is wrong, in order of file, line and column. As an
// error they are of the kind serai.Invalid. An empty list is no error: use Err.
type Problems []Problem

// Error is one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Err is the problems as an error, or nil where there are none.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// As makes serai.KindOf and serai.Message see an Invalid error that may be
// shown to the caller.
func (ps Problems) As(target any) bool {
	e, ok := target.(**serai.Error)
	if ok {
		*e = serai.Errorf(serai.Invalid, "%s", ps.Error())
	}
	return ok
}

// With returns the problems of both lists in order.
func (ps Problems) With(more Problems) Problems {
	all := slices.Concat(ps, more)
	all.sort()
	return all
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		if a.Column != b.Column {
			return a.Column - b.Column
		}
		return strings.Compare(a.Path, b.Path)
	})
}

// maxProblems bounds what a hostile file can make us say.
const maxProblems = 1000

func (ps *Problems) add(pos Pos, path, format string, args ...any) {
	switch {
	case len(*ps) < maxProblems-1:
		*ps = append(*ps, Problem{pos, path, fmt.Sprintf(format, args...)})
	case len(*ps) == maxProblems-1:
		*ps = append(*ps, Problem{Pos: pos, Msg: "more problems follow that are not listed: mend these first"})
	}
}

// A Doc is one document of a file: a resource, and where each of its fields
// was written.
type Doc struct {
	// Resource has its defaults filled in and no status. Where the document has
	// problems it holds what could be read.
	Resource serai.Resource
	Pos      Pos // of the document's first field

	at     map[string]Pos
	broken bool // Parse had a problem with it
}

// At is the position of a field such as spec.workers.max, or of its nearest
// parent where the field was not written.
func (d *Doc) At(path string) Pos {
	for path != "" {
		if pos, ok := d.at[path]; ok {
			return pos
		}
		path = parentOf(path)
	}
	return d.Pos
}

// Has reports whether a field was written, rather than left to its default.
func (d *Doc) Has(path string) bool {
	_, ok := d.at[path]
	return ok
}

// Onto returns what is to be stored where old is what is stored now: the
// document's specification with old's metadata and status. A site whose
// document does not mention spec.stopped stays stopped or started. A nil old
// is one that does not exist yet.
func (d *Doc) Onto(old serai.Resource) serai.Resource {
	if old == nil {
		return d.Resource.Clone()
	}
	r := old.Clone()
	switch n := d.Resource.Clone().(type) {
	case *serai.Plan:
		r.(*serai.Plan).Spec = n.Spec
	case *serai.Tenant:
		r.(*serai.Tenant).Spec = n.Spec
	case *serai.Site:
		s := r.(*serai.Site)
		stopped := s.Spec.Stopped
		s.Spec = n.Spec
		if !d.Has("spec.stopped") {
			s.Spec.Stopped = stopped
		}
	}
	return r
}

// A Set is the documents of some files, in order.
type Set struct {
	Docs []*Doc

	speaker string
}

// Parse reads files of zero or more documents each. Where a tenant speaks,
// speaker is its name: a Site's metadata.tenant may then be left out and must
// else be that name, and Plans and Tenants are refused. The operator is "".
//
// All problems of all files come back at once. The set holds every document of
// a known kind, those with problems too, so that Check can find more; apply
// nothing of it unless both have found no problem.
func Parse(files []File, speaker string) (*Set, Problems) {
	s, ps := &Set{speaker: speaker}, Problems{}
	for _, f := range files {
		for _, c := range split(f, &ps) {
			if d := parseDoc(c, speaker, &ps); d != nil {
				s.Docs = append(s.Docs, d)
			}
		}
	}
	if len(s.Docs) == 0 && len(ps) == 0 && len(files) > 0 {
		ps.add(Pos{File: files[0].Name}, "", "holds no document: write at least one Plan, Tenant or Site")
	}
	ps.sort()
	return s, ps
}

// parseDoc reads one document. It returns nil for an empty one and where it
// cannot tell the kind.
func parseDoc(c chunk, speaker string, ps *Problems) *Doc {
	root := c.parse(ps)
	if root == nil {
		return nil
	}
	before := len(*ps)
	w := &walker{file: c.file, line: c.line, ps: ps, at: map[string]Pos{}}
	kind, ok := w.kind(root)
	if !ok {
		return nil
	}
	d := &Doc{Resource: serai.NewResource(kind), Pos: w.pos(root), at: w.at}
	if speaker != "" && kind != serai.KindSite {
		w.ps.add(d.Pos, "kind", "a %s is the operator's: write Sites only", kind)
		d.broken = true
		return d
	}
	tree := w.mapping(root, schemas[kind], "")
	setDefaults(d.Resource)
	fill(d.Resource, tree)
	d.rules(speaker, ps)
	d.broken = len(*ps) > before
	return d
}

// setDefaults fills in what does not depend on other fields.
func setDefaults(r serai.Resource) {
	switch r := r.(type) {
	case *serai.Plan:
		r.Spec = serai.DefaultPlanSpec()
	case *serai.Site:
		r.Spec.Workers = serai.DefaultWorkers()
	}
}

// fill puts a tree that the walker made into a struct. The walker has checked
// every value against the table, and a test the table against the structs, so
// that an error here is ours.
func fill(into any, tree map[string]any) {
	text, err := json.Marshal(tree)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		panic("manifest: a checked document does not fit: " + err.Error())
	}
}

// parentOf cuts the last element off a path: spec.hosts of spec.hosts[1], and
// spec.files of spec.files["/static"].
func parentOf(path string) string {
	if strings.HasSuffix(path, "]") {
		i := strings.Index(path, "[")
		if last := strings.LastIndexByte(path, '['); strings.Trim(path[last:], "[0123456789]") == "" {
			i = last // spec.jobs[0].run[1]
		}
		return path[:max(i, 0)]
	}
	return path[:max(strings.LastIndexByte(path, '.'), 0)]
}

// CheckName refuses what is no name of a resource.
func CheckName(name string) error {
	_, err := nameType.scalar(name)
	return err
}
