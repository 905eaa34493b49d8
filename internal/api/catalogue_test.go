package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

// An entry's life, and what keeps it from others' hands.
func TestCatalogue(t *testing.T) {
	w := newWorld(t)
	apply := func(who, text string) (int, string) {
		body, err := json.Marshal(client.ApplyRequest{Files: []client.File{{Name: "f", Text: text}}, Prune: strings.Contains(text, "# prune")})
		if err != nil {
			t.Fatal(err)
		}
		return w.ask(t, who, "POST", "/v1/apply", string(body))
	}
	const shop = "kind: Site\nmetadata: {name: shop, tenant: alice}\nspec: {hosts: [shop.alice.example], root: shop, engine: perl, perl: {app: app.psgi}"
	steps := []struct {
		name, who, method, target, body string
		code                            int
		says, not                       string
	}{
		{name: "no name", who: "root", method: "PUT", target: "/v1/catalogue/Book", code: 422, says: "is not a name"},
		{name: "no plan yet", who: "root", method: "PUT", target: "/v1/catalogue/book", body: "A book", code: 422, says: "has no plan yet"},
		{name: "no such plan", who: "root", method: "PUT", target: "/v1/catalogue/book?plan=none", body: "A book", code: 422, says: "there is no plan none"},
		{name: "the first", who: "root", method: "PUT", target: "/v1/catalogue/book?plan=small", body: "A book", code: 200, says: `"action":"created"`},
		{name: "the same", who: "admin", method: "PUT", target: "/v1/catalogue/book", body: "A book", code: 200, says: `"action":"unchanged"`},
		{name: "another", who: "root", method: "PUT", target: "/v1/catalogue/book", body: "A better book", code: 200, says: `"action":"updated"`},
		{name: "listed", who: "alice", method: "GET", target: "/v1/catalogue", code: 200, says: `"title":"A better book"`, not: "sites"},
		{name: "not there", who: "alice", method: "apply", body: shop + ", mount: {/b: boom}}", code: 422, says: "in the catalogue: did you mean book?"},
		{name: "no setting", who: "alice", method: "apply", body: shop + ", mount: {/b: {use: book, settings: {to: a@b, titel: x}}}}", code: 422, says: "did you mean title?"},
		{name: "wrong setting", who: "alice", method: "apply", body: shop + ", mount: {/b: {use: book, settings: {to: nobody}}}}", code: 422, says: "is not a list of mail addresses"},
		{name: "a missing one", who: "alice", method: "apply", body: shop + ", mount: {/b: book}}", code: 422, says: "book needs the setting to"},
		{name: "mounted", who: "alice", method: "apply", body: shop + ", mount: {/b: {use: book, settings: {to: a@b}}}}", code: 200, says: "updated"},
		{name: "who mounts it", who: "root", method: "GET", target: "/v1/catalogue", code: 200, says: `"sites":["alice/shop"]`},
		{name: "not while it is mounted", who: "root", method: "DELETE", target: "/v1/catalogue/book", code: 409, says: "site alice/shop mounts book"},
		{name: "not as a site", who: "root", method: "DELETE", target: "/v1/tenants/catalogue/sites/book", code: 409, says: "is an entry of the catalogue"},
		{name: "not by a file", who: "root", method: "apply", body: "kind: Site\nmetadata: {name: book, tenant: catalogue}\nspec: {hosts: [x.example], root: x, engine: perl, perl: {app: x}}", code: 422, says: "change it with serai catalogue add book"},
		{name: "not pruned", who: "root", method: "apply", body: manifests + "\n# prune", code: 200, says: `"results"`, not: `catalogue`},
		{name: "no more mounted", who: "root", method: "DELETE", target: "/v1/catalogue/book", code: 200, says: `"action":"deleted"`},
		{name: "gone", who: "root", method: "DELETE", target: "/v1/catalogue/book", code: 404, says: `there is no \"book\" in the catalogue`},
		{name: "empty", who: "alice", method: "apply", body: shop + ", mount: {/b: book}}", code: 422, says: "it is empty"},
	}
	for _, tt := range steps {
		code, body := 0, ""
		if tt.method == "apply" {
			code, body = apply(tt.who, tt.body)
		} else {
			code, body = w.ask(t, tt.who, tt.method, tt.target, tt.body)
		}
		if code != tt.code || !strings.Contains(body, tt.says) || tt.not != "" && strings.Contains(body, tt.not) {
			t.Fatalf("%s: %d %s; want %d, %q, not %q", tt.name, code, body, tt.code, tt.says, tt.not)
		}
	}
}

// The catalogue takes no customer's tenant for its own.
func TestCatalogueOfACustomer(t *testing.T) {
	w := newWorld(t)
	tenant := serai.NewResource(serai.KindTenant).(*serai.Tenant)
	tenant.Meta.Name = serai.CatalogueTenant
	tenant.Spec = serai.TenantSpec{Plan: "small", Account: serai.Account{Create: true}, Hosts: []string{"catalogue.example"}}
	if _, err := w.store.Create(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	if code, body := w.ask(t, "root", "PUT", "/v1/catalogue/book", "A book"); code != 409 || !strings.Contains(body, "not the catalogue's own") {
		t.Errorf("%d %s", code, body)
	}
}
