package manifest

import (
	"maps"
	"slices"
	"strings"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
)

var zygoteName = text("name", "a name such as standard", func(s string) (string, error) {
	v, err := nameType.scalar(s)
	if err == nil && s == serai.PreloadNone {
		err = invalid("%q is what a site writes that wants no zygote: write another name", s)
	}
	if err != nil {
		return "", err
	}
	return v.(string), nil
})

var accountName = matching("account", "a name such as serai-proxy", `^[a-z_][a-z0-9_-]{0,31}$`, 32)

var configFields = []Field{
	{Path: "stateDir", Default: "/var/lib/serai", typ: absType, Meaning: "what must survive"},
	{Path: "runDir", Default: "/run/serai", typ: absType, Meaning: "sockets; at most 85 bytes long"},
	{Path: "logDir", Default: "/var/log/serai", typ: absType, Meaning: "logs of the sites"},
	{Path: "cgroupRoot", Default: "serai", typ: matching("name", "one such as serai", `^[A-Za-z0-9][A-Za-z0-9_.-]*$`, 64),
		Meaning: "name of the cgroup above all that Serai runs"},
	{Path: "libexec", Default: "/usr/lib/serai", typ: absType, Meaning: "directory of serai-priv, seraid and serai-proxy"},
	{Path: "listen.http", Default: `["[::]:80"]`, typ: listOf(listenOn, "addresses", 1, 64, `["[::]:80"]`), Meaning: "addresses of the front proxy"},
	{Path: "listen.https", Default: `["[::]:443"]`, State: Stored, typ: listOf(listenOn, "addresses", 0, 64, `["[::]:443"]`), Meaning: "the same with TLS"},
	{Path: "accounts.range", Default: "1900000000-1900099999", typ: rangeType, Meaning: "uids of the accounts we make; they must meet no line of /etc/subuid and /etc/subgid"},
	{Path: "accounts.adopt", Default: `""`, typ: rangeType, Meaning: "uids of accounts that exist and may become tenants"},
	{Path: "accounts.prefix", Default: `""`, typ: matching("prefix", "up to 16 of a-z, 0-9 and -, a letter first", `^([a-z][a-z0-9-]*)?$`, 16),
		Meaning: "before the tenant's name in the name of an account we make"},
	{Path: "accounts.home", Default: "/srv/serai", typ: absType, Meaning: "directory of the homes of accounts we make"},
	{Path: "users.daemon", Default: "serai", typ: accountName, Meaning: "account of seraid"},
	{Path: "users.proxy", Default: "serai-proxy", typ: accountName, Meaning: "account of serai-proxy"},
	{Path: "users.admin", Default: "serai-admin", typ: accountName, Meaning: "group whose members are operators"},
	{Path: "mail.relay", Default: "localhost:25", typ: relayType, Meaning: "SMTP server for the tenants' mail"},
	{Path: "accessLog", Default: "combined", typ: oneOf("format", []string{"combined", "json"}, nil), Meaning: "format of the sites' access logs: combined or json"},
	{Path: "zygotes", typ: zygoteName, Meaning: "sets of modules that are loaded once for all tenants, by name"},
	{Path: "zygotes.*.modules", typ: listOf(moduleType, "modules", 1, 1000, "[CGI, JSON::PP]"), Meaning: "required but for the sets below, which have a list of their own"},
	{Path: "zygotes.*.restart", Default: "24h", typ: duration(time.Minute, 365*day, true), Meaning: "how often the zygote is started anew"},
	{Path: "zygotes.*.onDemand", Default: "false", typ: boolType, Meaning: "it starts when the first site that names it is applied, not with the server"},
	{Path: "ports.range", Default: "20000-29999", State: Stored, typ: rangeType, Meaning: "ports for servers of tenants"},
	{Path: "metrics.socket", Default: "metrics.sock", State: Stored, typ: lineType, Meaning: "a socket beneath runDir; an address asks for a token"},
	{Path: "meter.interval", Default: "10s", State: Stored, typ: duration(time.Second, time.Hour, true), Meaning: "between two readings"},
	{Path: "acme.email", State: Stored, typ: emailType, Meaning: "account with the certificate authority"},
	{Path: "acme.directory", State: Stored, typ: lineType, Meaning: "URL of the certificate authority"},
	{Path: "acme.ca", State: Stored, typ: absType, Meaning: "certificates to trust when talking to it"},
}

var configSchema = schemaOf(configFields)

// ConfigFields is the table of the server's configuration. A path without a *
// may be a key of LoadConfig's overrides.
func ConfigFields() []Field { return slices.Clone(configFields) }

// StandardModules is what the zygote set "standard" loads where the
// configuration does not say otherwise. Modules that a machine does not have
// are left out by the zygote.
const StandardModules = `
	CGI CGI::Cookie DBI JSON::PP
	Plack::Request Plack::Response Plack::Builder Plack::Util
	HTTP::Headers HTTP::Date HTTP::Entity::Parser Hash::MultiValue
	URI URI::Escape Encode Storable Time::HiRes Time::Local
	List::Util Scalar::Util File::Temp File::Spec Cwd Data::Dumper
	MIME::Base64 Digest::MD5 Digest::SHA
	IO::File IO::Handle IO::Socket::UNIX Text::ParseWords Getopt::Long`

const zygoteRestart = 24 * time.Hour

// frameworks are sets for sites that the operator gives one: what standard
// has, and a framework, which the zygote rehearses. They cost nothing until the
// first site names one.
var frameworks = []struct{ set, module string }{
	{"dancer2", "Dancer2"},
	{"mojolicious", "Mojolicious"},
	{"catalyst", "Catalyst"},
}

func defaultZygotes() map[string]config.Zygote {
	standard := strings.Fields(StandardModules)
	zygotes := map[string]config.Zygote{StandardZygote: {Modules: standard, Restart: zygoteRestart}}
	for _, f := range frameworks {
		zygotes[f.set] = config.Zygote{Modules: append(slices.Clone(standard), f.module), Restart: zygoteRestart, OnDemand: true}
	}
	return zygotes
}

// DefaultConfig is the configuration of an empty file.
func DefaultConfig() *config.Config {
	return &config.Config{
		StateDir: "/var/lib/serai", RunDir: "/run/serai", LogDir: "/var/log/serai",
		CgroupRoot: "serai", Libexec: "/usr/lib/serai",
		Listen:   config.Listen{HTTP: []string{"[::]:80"}, HTTPS: []string{"[::]:443"}},
		Accounts: config.Accounts{Range: config.Range{First: 1900000000, Last: 1900099999}, Home: "/srv/serai"},
		Users:    config.Users{Daemon: "serai", Proxy: "serai-proxy", Admin: "serai-admin"},
		Mail:     config.Mail{Relay: "localhost:25"}, AccessLog: "combined",
		Zygotes: defaultZygotes(),
	}
}

// LoadConfig reads the server's configuration, by the same rules as manifests.
// An empty text is all defaults. The overrides are flags: paths of the table
// and their values, those of lists with commas between; they win over the
// file. A problem with one has the position "--PATH". Where there are problems
// the configuration is nil.
func LoadConfig(f File, overrides map[string]string) (*config.Config, Problems) {
	var ps Problems
	w, tree := readConfig(f, &ps)
	for _, path := range slices.Sorted(maps.Keys(overrides)) {
		w.override(tree, path, overrides[path])
	}
	c := DefaultConfig()
	fill(c, tree)
	checkConfig(c, w)
	if len(ps) > 0 {
		ps.sort()
		return nil, ps
	}
	return c, nil
}

// Unused lists the fields of a configuration that were written and are kept,
// but that nothing acts on yet.
func Unused(f File) Problems {
	var ignored, unused Problems
	w, _ := readConfig(f, &ignored)
	for _, field := range configFields {
		if pos, ok := w.at[field.Path]; ok && field.State == Stored {
			unused.add(pos, field.Path, "is accepted, but nothing uses it yet")
		}
	}
	unused.sort()
	return unused
}

func readConfig(f File, ps *Problems) (*walker, map[string]any) {
	w := &walker{file: f.Name, ps: ps, at: map[string]Pos{"": {File: f.Name, Line: 1, Column: 1}}}
	tree := map[string]any{}
	read := false
	for _, c := range split(f, ps) {
		root := c.parse(ps)
		if root == nil {
			continue
		}
		w.line = c.line
		if read {
			w.problem(root, "", "is a second document: a configuration is one, put all into the first")
			break
		}
		read = true
		if t := w.mapping(root, configSchema, ""); t != nil {
			tree = t
		}
	}
	return w, tree
}

// override puts a flag's value into the tree.
func (w *walker) override(tree map[string]any, path, value string) {
	pos := Pos{File: "--" + path}
	i := slices.IndexFunc(configFields, func(f Field) bool { return f.Path == path })
	if i < 0 || strings.Contains(path, "*") || configFields[i].Path == "zygotes" {
		w.ps.add(pos, "", "is no setting: see the table in docs/reference/manifests.md")
		return
	}
	w.at[path] = pos
	t := configFields[i].typ
	var v any
	var err error
	if t.list == nil {
		v, err = t.scalar(value)
	} else {
		v, err = commaList(t, value)
	}
	if err != nil {
		w.ps.add(pos, "", "%s", serai.Message(err))
		return
	}
	names := strings.Split(path, ".")
	for _, name := range names[:len(names)-1] {
		below, ok := tree[name].(map[string]any)
		if !ok {
			below = map[string]any{}
			tree[name] = below
		}
		tree = below
	}
	tree[names[len(names)-1]] = v
}

func commaList(t *valueType, value string) (any, error) {
	list := []any{}
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		v, err := t.list.scalar(item)
		if err != nil {
			return nil, err
		}
		if slices.Contains(list, v) {
			return nil, invalid("%q is in the list twice: keep one of them", item)
		}
		list = append(list, v)
	}
	if int64(len(list)) < t.min {
		return nil, invalid("is empty: write a list such as %s", t.want)
	}
	return list, nil
}

// maxRunDir leaves room for the longest path of a socket beneath it, which the
// kernel limits to 107 bytes.
const maxRunDir = 107 - len("/sites/4294967295.sock")

// checkConfig checks what concerns several settings, and fills in what depends
// on others.
func checkConfig(c *config.Config, w *walker) {
	problem := func(path, format string, args ...any) {
		pos, ok := w.at[path]
		for at := path; !ok; {
			at = parentOf(at)
			pos, ok = w.at[at]
		}
		if strings.HasPrefix(pos.File, "--") {
			path = ""
		}
		w.ps.add(pos, path, format, args...)
	}
	if len(c.RunDir) > maxRunDir {
		problem("runDir", "is %d bytes long: write at most %d, for sockets beneath it have longer paths", len(c.RunDir), maxRunDir)
	}
	dirs := map[string]string{}
	for _, d := range []struct{ path, dir string }{
		{"stateDir", c.StateDir}, {"runDir", c.RunDir}, {"logDir", c.LogDir}, {"accounts.home", c.Accounts.Home}, {"libexec", c.Libexec},
	} {
		if other, twice := dirs[d.dir]; twice {
			problem(d.path, "is the same directory as %s: write another one", other)
		}
		dirs[d.dir] = d.path
	}
	if c.Users.Daemon == c.Users.Proxy {
		problem("users.proxy", "is the same account as users.daemon: write another one, for the proxy must not reach the store")
	}
	checkRange(c.Accounts.Range, "accounts.range", problem)
	checkRange(c.Accounts.Adopt, "accounts.adopt", problem)
	if r := c.Accounts.Range; r.Last-r.First < config.Reserved {
		problem("accounts.range", "%q is too small: write at least %d numbers, %d of them are our own", r, config.Reserved+1, config.Reserved)
	}
	if c.Accounts.Adopt.Meets(c.Accounts.Range) {
		problem("accounts.adopt", "%q meets accounts.range, %s: write a range apart from it", c.Accounts.Adopt, c.Accounts.Range)
	}
	for name, z := range c.Zygotes {
		if z.Restart == 0 {
			z.Restart = zygoteRestart
		}
		path := "zygotes." + name + ".modules"
		if own, ok := defaultZygotes()[name]; len(z.Modules) == 0 && ok {
			z.Modules = own.Modules
		} else if _, written := w.at[path]; len(z.Modules) == 0 && !written {
			problem(path, "is missing: write %s", configSchema.fields["zygotes"].any.fields["modules"].want())
		}
		c.Zygotes[name] = z
	}
}

// checkRange refuses uids that mean something else on every machine.
func checkRange(r config.Range, path string, problem reporter) {
	const firstPerson, nobody, none = 1000, 65534, 1<<32 - 1
	switch {
	case r.Empty():
	case r.First < firstPerson:
		problem(path, "%q holds uids below %d, which are the system's own: write a range above", r, firstPerson)
	case r.Has(nobody), r.Has(nobody + 1):
		problem(path, "%q holds %d or %d, which stand for nobody: write a range without them", r, nobody, nobody+1)
	case r.Has(none):
		problem(path, "%q holds %d, which is no uid: write a range that ends before it", r, uint32(none))
	}
}
