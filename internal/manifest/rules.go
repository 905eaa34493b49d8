package manifest

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"serai.dev/serai"
	"serai.dev/serai/internal/schedule"
)

// The bounds of what a site's launch record may carry, in bytes. The block is
// the list of names and values of docs/reference/zygote-protocol.md; package
// privsep refuses larger ones.
const (
	maxBlock = 64 << 10
	maxFiles = 24 << 10 // directories of spec.files, as JSON
)

// rules checks what concerns several fields of one document, and fills in the
// defaults that depend on other fields.
func (d *Doc) rules(speaker string, ps *Problems) {
	problem := func(path, format string, args ...any) { ps.add(d.At(path), path, format, args...) }
	switch r := d.Resource.(type) {
	case *serai.Plan:
		if r.Spec.Body.Buffer > r.Spec.Body.Max {
			if d.Has("spec.body.buffer") {
				problem("spec.body.buffer", "%s is more than spec.body.max, %s: write at most that", r.Spec.Body.Buffer, r.Spec.Body.Max)
			} else {
				r.Spec.Body.Buffer = r.Spec.Body.Max
			}
		}
	case *serai.Tenant:
		d.account(&r.Spec.Account, problem)
		for i, h := range r.Spec.Hosts {
			if IsAddress(h) {
				problem(item("spec.hosts", i), "%q is an address, which cannot be granted: only the operator's own sites may have one", h)
			}
		}
	case *serai.Site:
		d.tenant(&r.Meta, speaker, problem)
		d.perl(r, problem)
		tasks(r, problem)
		if w := r.Spec.Workers; w.Min > w.Max {
			problem("spec.workers.min", "%d is more than spec.workers.max, %d: write a smaller one, or a larger max", w.Min, w.Max)
		}
		if w := r.Spec.Workers; w.Slow >= w.Timeout && w.Slow > 0 {
			problem("spec.workers.slow", "%s is not less than spec.workers.timeout, %s: no request lives so long", w.Slow, w.Timeout)
		}
		d.mounts(r, problem)
		d.size(r, problem)
	}
}

func item(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

type reporter = func(path, format string, args ...any)

// account makes sure that exactly one way to an account is chosen.
func (d *Doc) account(a *serai.Account, problem reporter) {
	switch {
	case d.Has("spec.account.adopt") && a.Create:
		problem("spec.account", "has both create and adopt: write {create: true}, or {adopt: NAME} for an account that exists")
	case d.Has("spec.account.adopt"):
	case d.Has("spec.account.create") && !a.Create:
		problem("spec.account.create", "leaves the tenant without an account: write {create: true}, or {adopt: NAME} for an account that exists")
	default:
		a.Create = true
	}
}

// tenant makes sure that a site has a tenant, and the right one.
func (d *Doc) tenant(m *serai.Meta, speaker string, problem reporter) {
	const path = "metadata.tenant"
	switch {
	case speaker != "" && m.Tenant != "" && m.Tenant != speaker:
		problem(path, "is not you: write %s, or leave it out", speaker)
	case speaker != "":
		m.Tenant = speaker
	case !d.Has(path) && d.Has("metadata"):
		problem(path, "is missing: write the name of the site's tenant")
	}
}

// perl checks the block of the engine perl.
func (d *Doc) perl(s *serai.Site, problem reporter) {
	p := s.Spec.Perl
	if p == nil {
		if s.Spec.Engine == "perl" && !d.Has("spec.perl") {
			problem("spec.perl", "is missing: write {app: app.psgi}, or {scripts: {/cgi-bin: cgi-bin}}")
		}
		return
	}
	app, scripts := d.Has("spec.perl.app"), d.Has("spec.perl.scripts")
	switch {
	case app && scripts:
		problem("spec.perl.scripts", "stands beside app: keep one of them, and make two sites where you need both")
	case !app && !scripts:
		problem("spec.perl", "says nothing to run: write app: app.psgi, or scripts: {/cgi-bin: cgi-bin}")
	}
	if p.Preload == "" && !d.Has("spec.perl.preload") {
		p.Preload = StandardZygote
	}
	for _, path := range []string{"spec.perl.persistent", "spec.perl.perRequest"} {
		if app && d.Has(path) {
			problem(path, "is about scripts: leave it out beside app")
		}
	}
	if p.Persistent == nil && scripts {
		p.Persistent = new(true)
	}
	for prefix := range s.Spec.Files {
		if _, both := p.Scripts[prefix]; both {
			problem(join("spec.files", prefix), "is in perl.scripts too: keep one of them")
		}
	}
	for name := range s.Spec.Env {
		if strings.HasPrefix(name, "SERAI_") {
			problem(join("spec.env", name), "starts with SERAI_, which is for the server's own: write another name")
		}
	}
}

// tasks checks the jobs and daemons of a site, whose names share one list.
func tasks(s *serai.Site, problem reporter) {
	seen := map[string]string{}
	name := func(path, name string) {
		if first, twice := seen[name]; twice && name != "" {
			problem(path+".name", "%q is the name of %s too: write another one", name, first)
		}
		seen[name] = path
	}
	for i, j := range s.Spec.Jobs {
		path := item("spec.jobs", i)
		name(path, j.Name)
		if j.TimeZone == "" {
			continue // looked at with the field itself
		}
		if _, err := schedule.Parse(j.Schedule, j.TimeZone); err != nil && j.Schedule != "" {
			problem(path+".timeZone", "%s", serai.Message(err))
		}
	}
	for i, d := range s.Spec.Daemons {
		path := item("spec.daemons", i)
		name(path, d.Name)
		if d.WhileAwake && d.KeepAwake {
			problem(path+".whileAwake", "stands beside keepAwake, and each would wait for the other's end: keep one of them")
		}
	}
}

// maxMounts is how many mounts a site may have: the front proxy holds the
// settings of all of them.
const maxMounts = 32

// mounts checks the places of what is mounted.
func (d *Doc) mounts(s *serai.Site, problem reporter) {
	if n := len(s.Spec.Mount); n > maxMounts {
		problem("spec.mount", "has %d entries: write at most %d", n, maxMounts)
	}
	for prefix := range s.Spec.Mount {
		if _, both := s.Spec.Files[prefix]; both {
			problem(join("spec.mount", prefix), "is in spec.files too: keep one of them")
		}
		if s.Spec.Perl == nil {
			continue
		}
		if _, both := s.Spec.Perl.Scripts[prefix]; both {
			problem(join("spec.mount", prefix), "is in spec.perl.scripts too: keep one of them")
		}
	}
}

// size checks that the launch record of a site will not be too large.
func (d *Doc) size(s *serai.Site, problem reporter) {
	block, env := 0, 0
	pair := func(name string, value int) { block += 4 + len(name) + 4 + value }
	pair("site", len(s.Key().String()))
	for _, number := range []string{"min", "max", "idle", "requests", "size", "slow"} {
		pair(number, 20)
	}
	if p := s.Spec.Perl; p != nil {
		pair("app", len(p.App))
		pair("startup", len(p.Startup))
		for _, dir := range p.Inc {
			pair("inc", len(dir))
		}
		pair("persistent", 1)
		for _, file := range p.PerRequest {
			pair("per-request", len(file))
		}
		for prefix, dir := range p.Scripts {
			pair("script", len(prefix)+1+len(dir))
		}
	}
	rest := block
	for name, value := range s.Spec.Env {
		pair("env", len(name)+1+len(value))
	}
	env = block - rest
	if block > maxBlock {
		path := "spec.env"
		if rest > env {
			path = "spec.perl"
		}
		problem(path, "makes the site's settings %d bytes long: write at most %d, and keep the rest in a file", block, maxBlock)
	}
	run := func(path string, args []string) {
		size := block
		for _, arg := range args {
			size += 4 + len("run") + 4 + len(arg)
		}
		if size > maxBlock {
			problem(path, "makes the command with the site's settings %d bytes long: write at most %d, and keep the rest in a file", size, maxBlock)
		}
	}
	for i, j := range s.Spec.Jobs {
		run(item("spec.jobs", i)+".run", j.Run)
	}
	for i, dm := range s.Spec.Daemons {
		run(item("spec.daemons", i)+".run", dm.Run)
	}
	dirs := make([]string, 0, len(s.Spec.Files))
	for _, dir := range s.Spec.Files {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	if text, err := json.Marshal(dirs); err != nil || len(text) > maxFiles {
		problem("spec.files", "lists %d bytes of directories: write at most %d", len(text), maxFiles)
	}
}
