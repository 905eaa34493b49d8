package manifest

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"serai.dev/serai"
)

// An Entry is the catalogue.yaml of an entry of the catalogue.
type Entry struct {
	Title    string                   `json:"title"`
	Script   string                   `json:"script"` // relative to the entry's directory
	Settings map[string]serai.Setting `json:"settings"`
}

// EntryFile is the file in an entry's directory that describes it.
const EntryFile = "catalogue.yaml"

// maxSettings is how many settings an entry may have.
const maxSettings = 32

var entryFields = []Field{
	{Path: "title", Required: true, typ: settingValue, Meaning: "one line that says what it is"},
	{Path: "script", Required: true, typ: relative("script", "a script such as guestbook.cgi", "the entry's directory", false),
		Meaning: "the CGI script that answers all requests"},
	{Path: "settings", typ: settingName, Meaning: "what sites that mount it may say"},
	{Path: "settings.*.type", Default: "text", typ: oneOf("type", slices.Sorted(maps.Keys(settingTypes)), nil), Meaning: "of the value"},
	{Path: "settings.*.default", typ: settingValue, Meaning: "where a site says nothing"},
	{Path: "settings.*.required", Default: "false", typ: boolType, Meaning: "a site must say it"},
	{Path: "settings.*.meaning", typ: settingValue, Meaning: "for people"},
}

var entrySchema = schemaOf(entryFields)

// settingTypes check the value of a setting; the error says what would be
// right. An empty value is none, which any type allows.
var settingTypes = map[string]func(string) error{
	"text":    func(string) error { return nil },
	"number":  func(s string) error { _, err := number(-1e15, 1e15).scalar(s); return err },
	"boolean": func(s string) error { _, err := readBool(s); return err },
	"addresses": func(s string) error {
		for a := range strings.SplitSeq(s, ",") {
			if _, err := emailType.scalar(strings.TrimSpace(a)); err != nil || strings.ContainsAny(a, `<>"()\;:`) {
				return invalid("%q is not a list of mail addresses: write one such as a@example.com, b@example.com", clip(s))
			}
		}
		return nil
	},
}

// ParseEntry reads a catalogue.yaml.
func ParseEntry(f File) (*Entry, error) {
	var ps Problems
	w := &walker{file: f.Name, ps: &ps, at: map[string]Pos{"": {File: f.Name, Line: 1, Column: 1}}}
	e := new(Entry)
	read := false
	for _, c := range split(f, &ps) {
		root := c.parse(&ps)
		if root == nil {
			continue
		}
		w.line = c.line
		if read {
			w.problem(root, "", "is a second document: an entry is one")
			break
		}
		read = true
		fill(e, w.mapping(root, entrySchema, ""))
	}
	if !read && len(ps) == 0 {
		ps.add(w.at[""], "", "says nothing: write title: and script:")
	}
	if n := len(e.Settings); n > maxSettings {
		ps.add(w.at["settings"], "settings", "has %d entries: write at most %d", n, maxSettings)
	}
	for name, s := range e.Settings {
		if s.Type == "" {
			s.Type = "text"
			e.Settings[name] = s
		}
		if err := checkSetting(s, s.Default); err != nil {
			path := "settings." + name + ".default"
			ps.add(w.at[path], path, "%s", serai.Message(err))
		}
	}
	ps.sort()
	return e, ps.Err()
}

func checkSetting(s serai.Setting, value string) error {
	check := settingTypes[s.Type]
	if value == "" || check == nil {
		return nil
	}
	return check(value)
}

// mounts checks what a site mounts: entries that are there, with settings that
// they know.
func (c *checker) mounts(d *Doc, s *serai.Site) {
	for _, prefix := range slices.Sorted(maps.Keys(s.Spec.Mount)) {
		m, path := s.Spec.Mount[prefix], join("spec.mount", prefix)
		entry := c.entry(m.Use)
		if entry == nil {
			at := path
			if d.Has(path + ".use") { // not written in short
				at += ".use"
			}
			c.problem(d, at, "there is no %q in the catalogue: %s", m.Use, c.catalogue(m.Use))
			continue
		}
		for name, value := range m.Settings {
			at := join(path+".settings", name)
			setting, known := entry.Settings[name]
			names := slices.Sorted(maps.Keys(entry.Settings))
			switch err := checkSetting(setting, value); {
			case known && err != nil:
				c.problem(d, at, "%s", serai.Message(err))
			case known:
			case meant(name, names) != "":
				c.problem(d, at, "%s has no such setting, did you mean %s?", m.Use, meant(name, names))
			case len(names) == 0:
				c.problem(d, at, "%s has no settings: leave it out", m.Use)
			default:
				c.problem(d, at, "%s has no such setting: known are %s", m.Use, strings.Join(names, ", "))
			}
		}
		for name, setting := range entry.Settings {
			if setting.Required && m.Settings[name] == "" {
				c.problem(d, path, "%s needs the setting %s: write {use: %s, settings: {%s: …}}", m.Use, name, m.Use, name)
			}
		}
	}
}

func (c *checker) entry(name string) *serai.Catalogue {
	r, ok := c.x.Get(serai.EntryKey(name))
	if !ok || r.GetMeta().Deleted != nil {
		return nil
	}
	return r.(*serai.Site).Spec.Catalogue
}

// catalogue says what there is instead of name.
func (c *checker) catalogue(name string) string {
	var names []string
	for _, key := range c.x.SitesOf(serai.CatalogueTenant) {
		if c.entry(key.Name) != nil {
			names = append(names, key.Name)
		}
	}
	slices.Sort(names)
	switch m := meant(name, names); {
	case m != "":
		return "did you mean " + m + "?"
	case len(names) == 0:
		return "it is empty"
	case len(names) > 20:
		return "there are " + strings.Join(names[:20], ", ") + " and " + strconv.Itoa(len(names)-20) + " more"
	}
	return "there are " + strings.Join(names, ", ")
}
