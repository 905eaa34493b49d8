package api

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/catalogue"
)

// An endpoint is one row of the API. What it takes and gives is said by values of
// the types: they are read for the description only.
type endpoint struct {
	method  string
	path    string
	access  Access
	do      func(*Server, *call) (any, error)
	summary string
	query   []param
	in, out any    // nil is none
	stream  string // content type, where the answer is no JSON of type out
}

// raw is the in of an endpoint that takes a body which is no JSON.
type raw struct {
	contentType string
	max         int64 // bytes
}

// A param is one parameter of the query.
type param struct {
	name    string
	meaning string
}

var (
	linesParam  = param{"lines", "past lines, 0 to 10000; left out: 100"}
	followParam = param{"follow", "1: go on with what is added"}

	waitQuery = []param{
		{"wait", "Ready: answer when the resource is ready or cannot become so; Gone: when it is removed, as 404"},
		{"generation", "with wait=Ready: what was seen of an older generation does not count"},
		{"timeout", "of wait, such as 30s, at most 5m; then the answer is the resource as it is"},
	}
	eventQuery = []param{
		{"tenant", "only of this tenant"},
		{"after", "only with a greater id; left out: the newest ones"},
		{"limit", "at most so many, 1 to 1000; left out: 100"},
	}
	logQuery = []param{
		{"kind", "site: what the site's processes wrote; access: requests. Left out: site"},
		linesParam, followParam,
	}
	mailLogQuery = []param{linesParam, followParam}
)

const (
	planPath   = "/v1/plans/{plan}"
	tenantPath = "/v1/tenants/{tenant}"
	entryPath  = "/v1/catalogue/{entry}"
	sitePath   = "/v1/tenants/{tenant}/sites/{site}"
)

// routes is the whole API: the server, the checks of access, the OpenAPI
// description and the reference are made from it.
func routes() []endpoint {
	return []endpoint{
		{"GET", "/openapi.json", Owners, (*Server).openAPI, "this description", nil, nil, nil, "application/json"},
		{"GET", "/v1/whoami", SiteToo, (*Server).whoami, "who the server takes the caller for", nil, nil, client.Identity{}, ""},
		{"GET", "/v1/status", Operators, (*Server).status, "what runs of Serai itself", nil, nil, client.Status{}, ""},
		{"GET", "/v1/events", Owners, (*Server).events, "what happened; with Accept: text/event-stream goes on, and resumes after Last-Event-ID", eventQuery, nil, client.Events{}, ""},
		{"POST", "/v1/apply", Owners, (*Server).apply, "create and update what files say; all is checked before the first write", nil, client.ApplyRequest{}, client.ApplyResponse{}, ""},
		{"POST", "/v1/mail", SiteToo, (*Server).sendMail, "hand a message to the relay: a line of JSON with from and to, then the message; answered when the relay has taken it or not", nil, raw{"message/rfc822", maxMail}, client.Sent{}, ""},

		{"GET", "/v1/catalogue", Owners, (*Server).catalogue, "the scripts that sites may mount", nil, nil, client.Catalogue{}, ""},
		{"PUT", entryPath, Operators, (*Server).addEntry, "add scripts to the catalogue, or put others in their place", []param{{"plan", "of the catalogue's own tenant; needed for the first entry"}}, raw{"application/x-tar", catalogue.MaxTar}, client.Result{}, ""},
		{"DELETE", entryPath, Operators, (*Server).removeEntry, "remove scripts that no site mounts; their data stay", nil, nil, client.Result{}, ""},

		{"GET", "/v1/plans", Owners, list(serai.KindPlan), "all plans; a tenant's own", nil, nil, client.List{}, ""},
		{"GET", planPath, Owners, (*Server).get, "one plan", waitQuery, nil, &serai.Plan{}, ""},
		{"DELETE", planPath, Operators, (*Server).remove, "delete a plan that no tenant has", nil, nil, client.Result{}, ""},
		{"GET", planPath + "/describe", Owners, (*Server).describe, "a plan and its tenants", nil, nil, client.Description{}, ""},

		{"GET", "/v1/tenants", Owners, list(serai.KindTenant), "all tenants; a tenant itself", nil, nil, client.List{}, ""},
		{"GET", tenantPath, Owners, (*Server).get, "one tenant", waitQuery, nil, &serai.Tenant{}, ""},
		{"DELETE", tenantPath, Operators, (*Server).remove, "delete a tenant, its sites and the account that was made for it", []param{{"purge", "1: the home too"}}, nil, client.Result{}, ""},
		{"GET", tenantPath + "/describe", Owners, (*Server).describe, "a tenant, its sites and last events", nil, nil, client.Description{}, ""},
		{"GET", tenantPath + "/mail", Owners, (*Server).mailLog, "lines of the log of a tenant's mail", mailLogQuery, nil, nil, "text/plain; charset=utf-8"},

		{"GET", "/v1/sites", Owners, list(serai.KindSite), "all sites; a tenant's own", nil, nil, client.List{}, ""},
		{"GET", tenantPath + "/sites", Owners, list(serai.KindSite), "the sites of a tenant", nil, nil, client.List{}, ""},
		{"GET", sitePath, Owners, (*Server).get, "one site", waitQuery, nil, &serai.Site{}, ""},
		{"DELETE", sitePath, Owners, (*Server).remove, "delete a site; its files stay", nil, nil, client.Result{}, ""},
		{"GET", sitePath + "/describe", Owners, (*Server).describe, "a site, what runs of it, and its last events", nil, nil, client.Description{}, ""},
		{"GET", sitePath + "/logs", Owners, (*Server).logs, "lines of a site's log", logQuery, nil, nil, "text/plain; charset=utf-8"},
		{"POST", sitePath + "/reload", SiteToo, launch(Reload), "load the code anew beside what runs, which then drains; where the code does not load, what runs stays", nil, nil, client.LaunchResult{}, ""},
		{"POST", sitePath + "/restart", SiteToo, launch(Restart), "start the processes anew; for the engine perl the same as reload", nil, nil, client.LaunchResult{}, ""},
		{"POST", sitePath + "/jobs/{job}/run", Owners, (*Server).runJob, "start a job now, beside its schedule; the answer does not wait for its end", nil, nil, serai.Run{}, ""},
		{"POST", sitePath + "/stop", Owners, setStopped(true), "answer requests with 503 until start", nil, nil, &serai.Site{}, ""},
		{"POST", sitePath + "/start", Owners, setStopped(false), "end a stop", nil, nil, &serai.Site{}, ""},
	}
}

// checkQuery refuses parameters that the route does not know, and repeated
// ones: a misspelt "purge" must not be passed over.
func (rt *endpoint) checkQuery(r *http.Request) error {
	q := r.URL.Query()
	for _, name := range slices.Sorted(maps.Keys(q)) {
		if !slices.ContainsFunc(rt.query, func(p param) bool { return p.name == name }) {
			return serai.Errorf(serai.Invalid, "%s is no parameter of %s %s", strconv.Quote(name), rt.method, rt.path)
		}
		if len(q[name]) > 1 {
			return serai.Errorf(serai.Invalid, "the parameter %s is given twice", name)
		}
	}
	return nil
}

// key is the resource that the path names.
func (c *call) key() serai.Key {
	switch plan, tenant, site := c.r.PathValue("plan"), c.r.PathValue("tenant"), c.r.PathValue("site"); {
	case site != "":
		return serai.Key{Kind: serai.KindSite, Tenant: tenant, Name: site}
	case tenant != "":
		return serai.Key{Kind: serai.KindTenant, Name: tenant}
	default:
		return serai.Key{Kind: serai.KindPlan, Name: plan}
	}
}

// flag reads a parameter that is 1, 0 or left out.
func (c *call) flag(name string) (bool, error) {
	switch v := c.r.URL.Query().Get(name); v {
	case "", "0":
		return false, nil
	case "1":
		return true, nil
	default:
		return false, serai.Errorf(serai.Invalid, "%s=%s: write 1 or 0", name, v)
	}
}

// number reads a parameter between min and max; left out it is def.
func (c *call) number(name string, def, min, max int64) (int64, error) {
	v := c.r.URL.Query().Get(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < min || n > max {
		return 0, serai.Errorf(serai.Invalid, "%s=%s: write a number from %d to %d", name, v, min, max)
	}
	return n, nil
}

// duration reads a parameter up to max; left out it is def.
func (c *call) duration(name string, def, max time.Duration) (time.Duration, error) {
	v := c.r.URL.Query().Get(name)
	if v == "" {
		return def, nil
	}
	d, err := serai.ParseDuration(v)
	if err != nil || time.Duration(d) > max {
		return 0, serai.Errorf(serai.Invalid, "%s=%s: write a duration up to %s", name, v, serai.Duration(max))
	}
	return time.Duration(d), nil
}

// oneOf reads a parameter that is one of a few words; left out it is the first.
func (c *call) oneOf(name string, words ...string) (string, error) {
	v := c.r.URL.Query().Get(name)
	if v == "" {
		return words[0], nil
	}
	if !slices.Contains(words, v) {
		return "", serai.Errorf(serai.Invalid, "%s=%s: write %s", name, v, strings.TrimPrefix(strings.Join(words, " or "), " or "))
	}
	return v, nil
}
