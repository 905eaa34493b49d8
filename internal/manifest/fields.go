package manifest

import (
	"slices"
	"time"

	"serai.dev/serai"
)

// A State says how far the work behind a field is.
type State int

const (
	Enforced State = iota
	Stored         // accepted and kept, but nothing acts on it yet
	Later          // refused with the words "not built yet"
)

func (s State) String() string { return [...]string{"yes", "no", "refused: not built yet"}[s] }

// A Field is one row of the table from which manifests and the configuration
// are read and the reference is made.
type Field struct {
	Path     string // spec.workers.max; * stands for a name of one's own choice
	Default  string // as it is written; empty where there is none
	Meaning  string // for the reference
	Operator bool   // only the operator may write it
	Required bool
	State    State
	Short    string // of a group: the field that a value which is no group stands for

	typ *valueType // nil for a group of fields
}

// Type is the name of the field's type, for people.
func (f Field) Type() string {
	if f.typ == nil {
		return "group"
	}
	return f.typ.name
}

// List reports whether the field holds a list.
func (f Field) List() bool { return f.typ != nil && f.typ.list != nil }

// Fields is the table of a kind, or nil for an unknown kind.
func Fields(kind string) []Field { return slices.Clone(tables[kind]) }

var kinds = []string{serai.KindPlan, serai.KindTenant, serai.KindSite}

var tables = map[string][]Field{
	serai.KindPlan:   slices.Concat(head, planFields),
	serai.KindTenant: slices.Concat(head, tenantFields),
	serai.KindSite:   slices.Concat(head, siteFields),
}

var schemas = map[string]*schema{
	serai.KindPlan:   schemaOf(tables[serai.KindPlan]),
	serai.KindTenant: schemaOf(tables[serai.KindTenant]),
	serai.KindSite:   schemaOf(tables[serai.KindSite]),
}

// StandardZygote is the zygote set that sites are forked from where they do not
// say otherwise. A tenant may choose between it and serai.PreloadNone.
const StandardZygote = "standard"

// The bounds of sizes. The largest is what a machine may have one day.
const (
	mebi, gibi, tebi = serai.Bytes(1 << 20), serai.Bytes(1 << 30), serai.Bytes(1 << 40)

	most = 1024 * tebi
	day  = 24 * time.Hour
)

var head = []Field{
	{Path: "apiVersion", Default: serai.APIVersion, typ: oneOf("API version", []string{serai.APIVersion}, nil),
		Meaning: "the version of this format"},
	{Path: "kind", Required: true, typ: oneOf("kind", kinds, nil), Meaning: "what the document is"},
	{Path: "metadata", Required: true},
	{Path: "metadata.name", Required: true, typ: nameType, Meaning: "the name, unique within the kind; a site's within its tenant"},
}

var planFields = []Field{
	{Path: "spec.memory", Default: "256Mi", typ: size(16*mebi, most), Meaning: "hard cap over all that the tenant runs"},
	{Path: "spec.cpu", Default: "500m", typ: cpuType, Meaning: "sustained CPU; unused CPU of others may be borrowed"},
	{Path: "spec.processes", Default: "100", typ: number(4, 1<<20), Meaning: "hard cap on processes and threads"},
	{Path: "spec.disk", State: Stored, typ: size(mebi, most), Meaning: "space in the home, spooled bodies and replies included"},
	{Path: "spec.workers", Default: "8", typ: number(1, 10000), Meaning: "requests at once in application code, over all sites"},
	{Path: "spec.queue.length", Default: "100", typ: number(0, 100000), Meaning: "requests of a site that may wait for a worker; more are answered 503"},
	{Path: "spec.queue.wait", Default: "10s", typ: duration(time.Millisecond, 10*time.Minute, false), Meaning: "how long one waits before it is answered 503"},
	{Path: "spec.sites", Default: "10", typ: number(0, 100000), Meaning: "number of sites"},
	{Path: "spec.traffic", State: Stored, typ: size(mebi, most), Meaning: "a month; soft: passing it is an event"},
	{Path: "spec.body.max", Default: "100Mi", typ: size(1024, tebi), Meaning: "largest body of a request; a larger one is answered 413"},
	{Path: "spec.body.buffer", Default: "1Mi", typ: size(4096, 256*mebi), Meaning: "of it in memory, the rest on disk"},
	{Path: "spec.reply.buffer", Default: "1Mi", typ: size(4096, 256*mebi), Meaning: "of a reply in memory ahead of a slow client"},
	{Path: "spec.reply.spool", Default: "64Mi", typ: sizeOrNone(4096, tebi), Meaning: "then on disk; then the worker waits for the client"},
	{Path: "spec.mail.hour", Default: "100", typ: number(0, 1e9), Meaning: "mails an hour, from the full hour, counted by recipient; more are put off"},
	{Path: "spec.mail.day", Default: "500", typ: number(0, 1e9), Meaning: "mails a day, from midnight UTC"},
	{Path: "spec.mail.recipients", Default: "50", typ: number(1, 1000), Meaning: "recipients of one message"},
	{Path: "spec.mail.size", Default: "10Mi", typ: size(4096, 256*mebi), Meaning: "largest message"},
	{Path: "spec.merge", Default: "false", typ: boolType,
		Meaning: "pages that are alike in sites of such plans are kept once, from their next start, where the kernel merges; what that lets a tenant find out: docs/explanation/sharing.md"},
	{Path: "spec.isolation", Default: "account", typ: oneOf("isolation", []string{"account"}, []string{"jail", "vserver", "uml", "vm"}),
		Meaning: "how strong the wall between tenants is"},
	{Path: "spec.price", State: Stored, Meaning: "the price table"},
	{Path: "spec.price.currency", Required: true, State: Stored, typ: currencyType, Meaning: "ISO 4217"},
	{Path: "spec.price.month", State: Stored, typ: amountType, Meaning: "a month, whatever is used"},
	{Path: "spec.price.memoryGiBHour", State: Stored, typ: amountType, Meaning: "a GiB of average memory for an hour"},
	{Path: "spec.price.cpuHour", State: Stored, typ: amountType, Meaning: "an hour of CPU"},
	{Path: "spec.price.trafficGiB", State: Stored, typ: amountType, Meaning: "a GiB sent"},
	{Path: "spec.price.diskGiBMonth", State: Stored, typ: amountType, Meaning: "a GiB of disk for a month"},
}

var tenantFields = []Field{
	{Path: "spec", Required: true},
	{Path: "spec.plan", Required: true, typ: nameType, Meaning: "name of the plan"},
	{Path: "spec.account.create", typ: boolType, Meaning: "Serai makes the account, named as the tenant; this is so where account is left out"},
	{Path: "spec.account.adopt", typ: matching("account", "the name of an account that exists", `^[a-z_][a-z0-9_.-]*$`, 32),
		Meaning: "an account that exists, with a uid within accounts.adopt of the server's configuration"},
	{Path: "spec.hosts", typ: listOf(hostType, "hosts", 0, 1024, `[example.com, "*.example.com"]`),
		Meaning: "what the tenant's own sites may claim; a wildcard covers every name beneath it"},
	{Path: "spec.contact", State: Stored, typ: contactType, Meaning: "whom to write to"},
	{Path: "spec.suspended", Default: "false", typ: boolType, Meaning: "nothing of the tenant runs; its sites answer 503"},
}

var siteFields = []Field{
	{Path: "metadata.tenant", typ: nameType, Meaning: "whose site it is; a tenant may leave it out"},
	{Path: "spec", Required: true},
	{Path: "spec.hosts", Required: true, typ: listOf(hostType, "hosts", 1, 256, "[shop.example.com]"),
		Meaning: "names, wildcards such as *.shop.example.com, and addresses, which only the operator may write"},
	{Path: "spec.root", Required: true, typ: homeDir, Meaning: "directory in the tenant's home; links out of it are refused"},
	{Path: "spec.engine", Required: true, typ: oneOf("engine", []string{"perl"}, engines[1:]), Meaning: "how the code is run"},
	{Path: "spec.perl", Meaning: "for the engine perl"},
	{Path: "spec.perl.app", typ: fileType, Meaning: "a PSGI file; or else scripts"},
	{Path: "spec.perl.scripts", typ: mapOf(prefixType, dirType, 1, "{/cgi-bin: cgi-bin}"), Meaning: "URL prefixes and their directories of CGI scripts; or else app"},
	{Path: "spec.perl.startup", typ: fileType, Meaning: "run once, before the code is loaded"},
	{Path: "spec.perl.inc", typ: listOf(dirType, "directories", 0, 64, "[lib, local/lib/perl5]"), Meaning: "before @INC"},
	{Path: "spec.perl.preload", Default: StandardZygote, typ: nameType,
		Meaning: "zygote set to fork from, or none for a fresh perl; sets other than standard are the operator's to give"},
	{Path: "spec.perl.persistent", Default: "true", typ: boolType,
		Meaning: "scripts are compiled once and kept; false runs a process for each request, as plain CGI does"},
	{Path: "spec.perl.perRequest", typ: listOf(fileType, "files", 0, 256, "[cgi-bin/old.cgi]"), Meaning: "scripts that run in a process for each request"},
	{Path: "spec.perl.reload", typ: oneOf("reload", []string{serai.ReloadChange}, nil),
		Meaning: "change: the code is loaded anew when a file of it changes; left out: when somebody asks, or touches tmp/restart.txt beneath the root"},
	{Path: "spec.files", typ: mapOf(prefixType, dirType, 0, "{/static: public}"), Meaning: "URL prefixes and directories that the proxy serves without a worker"},
	{Path: "spec.workers.min", Default: "0", typ: number(0, 1000), Meaning: "workers that are kept while nothing is asked"},
	{Path: "spec.workers.max", Default: "4", typ: number(1, 1000), Meaning: "requests at once; where it is left out, no more than the plan's workers"},
	{Path: "spec.workers.idle", Default: "5m", typ: duration(time.Second, day, false), Meaning: "an idle worker is retired after it"},
	{Path: "spec.workers.requests", Default: "1000", typ: number(0, 1e9), Meaning: "a worker is replaced after so many; 0 is never"},
	{Path: "spec.workers.size", typ: sizeOrNone(8*mebi, tebi), Meaning: "a worker with more private memory is replaced; 0 is never"},
	{Path: "spec.workers.timeout", Default: "60s", typ: duration(time.Second, time.Hour, false), Meaning: "of one request in a worker; then the worker writes its stack to the site's log and is killed"},
	{Path: "spec.workers.slow", typ: durationOrNone(100*time.Millisecond, time.Hour), Meaning: "a request that takes longer has its stack written to the site's log; 0 is never"},
	{Path: "spec.env", typ: mapOf(envName, envValue, 0, "{APP_MODE: production}"), Meaning: "environment of the code; names with SERAI_ are ours"},
	{Path: "spec.stopped", Default: "false", typ: boolType, Meaning: "what serai stop and start change; a file that leaves it out changes nothing"},
	{Path: "spec.jobs[].name", Required: true, typ: nameType, Meaning: "of a command that runs at times; unique among the site's jobs and daemons"},
	{Path: "spec.jobs[].schedule", Required: true, typ: scheduleType, Meaning: "when, as cron reads it: minute, hour, day, month, weekday; a sixth field before them is seconds; or @daily, @every 10m"},
	{Path: "spec.jobs[].timeZone", typ: zoneType, Meaning: "of the schedule; left out: the machine's"},
	{Path: "spec.jobs[].run", Required: true, typ: runType, Meaning: "the program and its arguments, started in the site's root, without a shell"},
	{Path: "spec.jobs[].timeout", typ: duration(time.Second, 7*day, false), Meaning: "the job is ended after it; left out: never"},
	{Path: "spec.jobs[].overlap", Default: "false", typ: boolType, Meaning: "the job is started while an earlier run goes on; else that time is missed"},
	{Path: "spec.jobs[].catchUp", Default: "false", typ: boolType, Meaning: "times missed while the server was down are made up for by one run"},
	{Path: "spec.jobs[].keepAwake", Default: "false", typ: boolType, Meaning: "while it runs, the site's loaded code stays loaded"},
	{Path: "spec.daemons[].name", Required: true, typ: nameType, Meaning: "of a command that keeps running while the site is not stopped"},
	{Path: "spec.daemons[].run", Required: true, typ: runType, Meaning: "the program and its arguments, started in the site's root, without a shell"},
	{Path: "spec.daemons[].whileAwake", Default: "false", typ: boolType, Meaning: "the daemon runs only while the site's code is loaded"},
	{Path: "spec.daemons[].keepAwake", Default: "false", typ: boolType, Meaning: "the site's code, once it is loaded, stays loaded"},
	{Path: "spec.mount", typ: mountType, Meaning: "URL prefixes that scripts of the operator's catalogue answer; see serai catalogue list"},
	{Path: "spec.mount.*", Short: "use"},
	{Path: "spec.mount.*.use", Required: true, typ: nameType, Meaning: "the entry of the catalogue; where it is all, {/guestbook: guestbook} will do"},
	{Path: "spec.mount.*.settings", typ: mapOf(settingName, settingValue, 0, "{title: My guests}"), Meaning: "what the entry asks for"},
	{Path: "spec.apache", State: Later, Meaning: "for the engine apache"},
	{Path: "spec.command", State: Later, Meaning: "for the engine command"},
	{Path: "spec.fastcgi", State: Later, Meaning: "for the engine fastcgi"},
	{Path: "spec.cgi", State: Later, Meaning: "for the engine cgi"},
	{Path: "spec.static", State: Later, Meaning: "for the engine static"},
	{Path: "spec.remote", State: Later, Operator: true, Meaning: "for the engine remote"},
}

var engines = []string{"perl", "apache", "command", "fastcgi", "cgi", "static", "remote"}

// NotEnforced maps the path of each field of r that is set, but that nothing
// acts on yet, to "no". It is nil where there is none.
func NotEnforced(r serai.Resource) map[string]string {
	tree := jsonTree(r)
	var paths map[string]string
	for _, f := range tables[r.Key().Kind] {
		if f.State != Stored || f.typ == nil || !set(tree, f.Path) {
			continue
		}
		if paths == nil {
			paths = map[string]string{}
		}
		paths[f.Path] = Stored.String()
	}
	return paths
}
