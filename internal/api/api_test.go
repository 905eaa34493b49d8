package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/api"
	"serai.dev/serai/internal/api/apitest"
	"serai.dev/serai/internal/manifest"
	"serai.dev/serai/internal/peercred"
	"serai.dev/serai/internal/store"
	"serai.dev/serai/internal/store/sqlite"
)

var update = flag.Bool("update", false, "rewrite docs/reference/api.md")

const (
	aliceUID = 1900005000
	bobUID   = 1900005001
	adminGID = 1900005090
	cgRoot   = "serai-test-g1"
)

// world is a server over a store with plan small, tenants alice and bob, and
// sites alice/shop, alice/blog, bob/wiki.
type world struct {
	store  store.Store
	ctl    *apitest.Controller
	server *api.Server
	socket string
	stop   func() // ends the server
	sites  map[string]int64
}

const manifests = `
kind: Plan
metadata: {name: small}
spec: {sites: 3}
---
kind: Tenant
metadata: {name: alice}
spec: {plan: small, account: {create: true}, hosts: ["*.alice.example"]}
---
kind: Tenant
metadata: {name: bob}
spec: {plan: small, account: {create: true}, hosts: [bob.example]}
---
kind: Site
metadata: {name: shop, tenant: alice}
spec: {hosts: [shop.alice.example], root: shop, engine: perl, perl: {app: app.psgi}}
---
kind: Site
metadata: {name: blog, tenant: alice}
spec: {hosts: [blog.alice.example], root: blog, engine: perl, perl: {app: app.psgi}}
---
kind: Site
metadata: {name: wiki, tenant: bob}
spec: {hosts: [bob.example], root: wiki, engine: perl, perl: {app: app.psgi}}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	st, err := sqlite.Open(t.Context(), filepath.Join(dir, "serai.db"), sqlite.Options{FirstUID: aliceUID, LastUID: aliceUID + 50})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	w := &world{store: st, ctl: &apitest.Controller{Store: st}, socket: filepath.Join(dir, "api.sock"), sites: map[string]int64{}}
	set, ps := manifest.Parse([]manifest.File{{Name: "world", Text: []byte(manifests)}}, "")
	if len(ps) > 0 {
		t.Fatal(ps)
	}
	for _, d := range set.Docs {
		r, err := st.Create(t.Context(), d.Resource)
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := r.(*serai.Site); ok {
			w.sites[r.Key().String()] = s.Meta.ID
		}
	}
	apitest.Reconcile(t, st)
	w.start(t)
	return w
}

// start starts a server, again after stop.
func (w *world) start(t *testing.T) {
	t.Helper()
	w.server = api.New(api.Options{Store: w.store, Controller: w.ctl, Limits: manifest.Limits{Zygotes: []string{"standard"}},
		CgroupRoot: cgRoot, AdminGID: adminGID, Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	_ = os.Remove(w.socket)
	ln, err := net.Listen("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx, ln) }()
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(w.stop)
	until(t, "the tenants are known", func() bool { return w.server.Knows(aliceUID) && w.server.Knows(bobUID) })
}

// until waits for a condition, with a deadline.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// The callers.
func (w *world) peer(who string) peercred.Peer {
	outside := []byte("0::/user.slice\n")
	inside := func(uid, site int64) []byte {
		return fmt.Appendf(nil, "1:memory:/%s/tenants/%d/%d.1\n0::/\n", cgRoot, uid, site)
	}
	switch who {
	case "root":
		return peercred.Peer{UID: 0}
	case "admin":
		return peercred.Peer{UID: 1900005080, GID: 1900005080, Groups: []uint32{1, adminGID}, Cgroup: outside}
	case "alice":
		return peercred.Peer{UID: aliceUID, GID: aliceUID, Cgroup: outside}
	case "bob":
		return peercred.Peer{UID: bobUID, GID: bobUID, Cgroup: outside}
	case "shop": // code of alice/shop
		return peercred.Peer{UID: aliceUID, GID: aliceUID, Cgroup: inside(aliceUID, w.sites["alice/shop"])}
	case "blog": // code of alice/blog
		return peercred.Peer{UID: aliceUID, GID: aliceUID, Cgroup: inside(aliceUID, w.sites["alice/blog"])}
	case "forger": // bob's process in a group that is named like alice's site
		return peercred.Peer{UID: bobUID, GID: bobUID, Cgroup: inside(aliceUID, w.sites["alice/shop"])}
	case "hidden": // alice's uid, but it was gone before we looked
		return peercred.Peer{UID: aliceUID, GID: aliceUID}
	case "stranger":
		return peercred.Peer{UID: 1900005099, GID: 1900005099, Cgroup: outside}
	}
	panic("who is " + who)
}

// ask sends one request as somebody and returns status and body.
func (w *world) ask(t *testing.T, who, method, target, body string, header ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	if who != "nobody" {
		r = r.WithContext(peercred.With(r.Context(), w.peer(who)))
	}
	rec := httptest.NewRecorder()
	w.server.Handler().ServeHTTP(rec, r)
	return rec.Code, rec.Body.String()
}

var siteManifest = `{"files":[{"name":"new.yaml","text":"kind: Site\nmetadata: {name: new, tenant: alice}\nspec: {hosts: [new.alice.example], root: new, engine: perl, perl: {app: app.psgi}}\n"}]}`

// TestAccess asks every route as every class of caller.
func TestAccess(t *testing.T) {
	classes := []string{"root", "admin", "alice", "bob", "shop", "blog", "forger", "hidden", "stranger", "nobody"}
	// What each caller gets, in that order, where the thing asked for is
	// alice's shop, alice, or plan small, which both tenants have.
	const (
		operators = "200 200 403 403 403 403 403 403 403 403"
		all       = "200 200 200 200 403 403 403 403 403 403"
		alices    = "200 200 200 404 403 403 403 403 403 403"
		shops     = "200 200 200 404 200 404 403 403 403 403"
		self      = "200 200 200 200 200 200 403 403 403 403"
	)
	tests := map[string]struct{ target, body, want string }{
		"GET /openapi.json":                                     {want: all},
		"GET /v1/whoami":                                        {want: self},
		"GET /v1/status":                                        {want: operators},
		"GET /v1/events":                                        {want: all},
		"POST /v1/apply":                                        {body: siteManifest, want: strings.Replace(alices, "404", "422", 1)},
		"POST /v1/mail":                                         {want: "403 403 200 200 200 200 403 403 403 403"},
		"GET /v1/catalogue":                                     {want: all},
		"PUT /v1/catalogue/{entry}":                             {want: strings.ReplaceAll(operators, "200", "422")}, // it has no plan
		"DELETE /v1/catalogue/{entry}":                          {want: strings.ReplaceAll(operators, "200", "404")},
		"GET /v1/plans":                                         {want: all},
		"GET /v1/plans/{plan}":                                  {want: all},
		"DELETE /v1/plans/{plan}":                               {want: strings.ReplaceAll(operators, "200", "409")},
		"GET /v1/plans/{plan}/describe":                         {want: all},
		"GET /v1/tenants":                                       {want: all},
		"GET /v1/tenants/{tenant}":                              {want: alices},
		"DELETE /v1/tenants/{tenant}":                           {want: operators},
		"GET /v1/tenants/{tenant}/describe":                     {want: alices},
		"GET /v1/tenants/{tenant}/mail":                         {want: alices},
		"GET /v1/sites":                                         {want: all},
		"GET /v1/tenants/{tenant}/sites":                        {want: alices},
		"GET /v1/tenants/{tenant}/sites/{site}":                 {want: alices},
		"DELETE /v1/tenants/{tenant}/sites/{site}":              {want: alices},
		"GET /v1/tenants/{tenant}/sites/{site}/describe":        {want: alices},
		"GET /v1/tenants/{tenant}/sites/{site}/logs":            {want: alices},
		"POST /v1/tenants/{tenant}/sites/{site}/reload":         {want: shops},
		"POST /v1/tenants/{tenant}/sites/{site}/restart":        {want: shops},
		"POST /v1/tenants/{tenant}/sites/{site}/jobs/{job}/run": {want: strings.ReplaceAll(alices, "200", "404")},
		"POST /v1/tenants/{tenant}/sites/{site}/stop":           {want: alices},
		"POST /v1/tenants/{tenant}/sites/{site}/start":          {want: alices},
	}
	seen := map[string]bool{}
	shared := newWorld(t)
	for _, e := range api.Endpoints() {
		name := e.Method + " " + e.Path
		tt, ok := tests[name]
		if !ok {
			t.Errorf("%s: nobody says who may", name)
			continue
		}
		seen[name] = true
		target := strings.NewReplacer("{plan}", "small", "{tenant}", "alice", "{site}", "shop", "{job}", "nightly", "{entry}", "book").Replace(e.Path)
		want := strings.Fields(tt.want)
		for i, who := range classes {
			t.Run(name+" as "+who, func(t *testing.T) {
				w := shared
				if e.Method != "GET" && want[i] == "200" {
					w = newWorld(t)
				}
				code, body := w.ask(t, who, e.Method, target, tt.body)
				if fmt.Sprint(code) != want[i] {
					t.Fatalf("got %d %s, want %s", code, body, want[i])
				}
				if code == 403 && (strings.Contains(body, "alice") || strings.Contains(body, "small")) {
					t.Fatalf("a refusal tells facts: %s", body)
				}
				if code != 200 && !strings.Contains(body, `"message":"`) {
					t.Fatalf("an error without a sentence: %s", body)
				}
			})
		}
	}
	for name := range tests {
		if !seen[name] {
			t.Errorf("%s is no route", name)
		}
	}
}

// TestOthersAreNotThere: what belongs to another tenant and what does not exist
// get the same answer.
func TestOthersAreNotThere(t *testing.T) {
	w := newWorld(t)
	for _, e := range api.Endpoints() {
		if !strings.Contains(e.Path, "{") {
			continue
		}
		fill := func(plan, tenant, site string) string {
			return strings.NewReplacer("{plan}", plan, "{tenant}", tenant, "{site}", site).Replace(e.Path)
		}
		if _, err := w.store.Create(t.Context(), &serai.Plan{Meta: serai.Meta{Name: "large"}, Spec: serai.DefaultPlanSpec()}); err != nil {
			t.Fatal(err)
		}
		code, there := w.ask(t, "alice", e.Method, fill("large", "bob", "wiki"), "")
		code2, not := w.ask(t, "alice", e.Method, fill("zarge", "zob", "ziki"), "")
		same := strings.NewReplacer("zarge", "large", "zob", "bob", "ziki", "wiki").Replace(not)
		if code != code2 || there != same {
			t.Errorf("%s %s: %d %s, but for what does not exist %d %s", e.Method, e.Path, code, there, code2, not)
		}
	}
	for _, target := range []string{"/v1/sites", "/v1/tenants", "/v1/events", "/v1/tenants/alice/sites"} {
		if _, body := w.ask(t, "alice", "GET", target, ""); strings.Contains(body, "bob") {
			t.Errorf("alice sees bob in %s: %s", target, body)
		}
	}
}

func TestWhoami(t *testing.T) {
	w := newWorld(t)
	for who, want := range map[string]client.Identity{
		"root":  {Class: "operator"},
		"admin": {Class: "operator", UID: 1900005080},
		"alice": {Class: "tenant", UID: aliceUID, Tenant: "alice"},
		"shop":  {Class: "site", UID: aliceUID, Tenant: "alice", Site: "shop"},
	} {
		_, body := w.ask(t, who, "GET", "/v1/whoami", "")
		var got client.Identity
		if err := json.Unmarshal([]byte(body), &got); err != nil || got != want {
			t.Errorf("whoami of %s = %s, want %+v", who, body, want)
		}
	}
}

func TestWrongUse(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		method, target, body string
		code                 int
		says                 string
	}{
		{"GET", "/v1/nothing", "", 404, "there is no path /v1/nothing"},
		{"PUT", "/v1/plans", "", 405, "PUT is no method of /v1/plans: use GET"},
		{"DELETE", "/v1/tenants/alice?prge=1", "", 422, `\"prge\" is no parameter`},
		{"DELETE", "/v1/tenants/alice?purge=yes", "", 422, "purge=yes: write 1 or 0"},
		{"DELETE", "/v1/tenants/alice?purge=0&purge=1", "", 422, "purge is given twice"},
		{"GET", "/v1/events?limit=0", "", 422, "limit=0: write a number from 1 to 1000"},
		{"GET", "/v1/tenants/alice?wait=Soon", "", 422, "wait=Soon: write Ready or Gone"},
		{"GET", "/v1/tenants/alice?wait=Ready&timeout=1h", "", 422, "write a duration up to 5m"},
		{"GET", "/v1/tenants/alice/sites/shop/logs?kind=secret", "", 422, "kind=secret: write site or access"},
		{"POST", "/v1/apply", "{", 422, "not the JSON that is expected"},
		{"POST", "/v1/apply", `{"fils": []}`, 422, "not the JSON that is expected"},
		{"POST", "/v1/apply", `{"files": []} {}`, 422, "not the JSON that is expected"},
	} {
		code, body := w.ask(t, "root", tt.method, tt.target, tt.body)
		if code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s %s: %d %s; want %d, %q", tt.method, tt.target, code, body, tt.code, tt.says)
		}
	}
	big, _ := json.Marshal(client.ApplyRequest{Files: []client.File{{Name: "big", Text: strings.Repeat("#", 2<<20)}}})
	if code, body := w.ask(t, "alice", "POST", "/v1/apply", string(big)); code != 422 || !strings.Contains(body, "larger than 1Mi") {
		t.Errorf("a tenant's body of 2 MiB: %d %s", code, body)
	}
}

func TestReferenceIsFresh(t *testing.T) {
	var b bytes.Buffer
	if err := api.WriteReference(&b); err != nil {
		t.Fatal(err)
	}
	const path = "../../docs/reference/api.md"
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if old, err := os.ReadFile(path); err != nil || !bytes.Equal(old, b.Bytes()) {
		t.Errorf("%s is stale (%v): go test ./internal/api -update", path, err)
	}
}

func TestOpenAPI(t *testing.T) {
	w := newWorld(t)
	code, body := w.ask(t, "root", "GET", "/openapi.json", "")
	var doc struct {
		Paths      map[string]map[string]any
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal([]byte(body), &doc); code != http.StatusOK || err != nil {
		t.Fatalf("%d, %v", code, err)
	}
	for _, e := range api.Endpoints() {
		if doc.Paths[e.Path][strings.ToLower(e.Method)] == nil {
			t.Errorf("%s %s is not described", e.Method, e.Path)
		}
	}
	for _, ref := range strings.Split(body, `"$ref":"#/components/schemas/`)[1:] {
		name, _, _ := strings.Cut(ref, `"`)
		if doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is referred to but missing", name)
		}
	}
}
