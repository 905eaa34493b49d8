package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/api"
	"serai.dev/serai/internal/store"
)

// apply sends manifests as somebody and prints what became of them.
func (w *world) apply(t *testing.T, who, text string, more func(*client.ApplyRequest)) string {
	t.Helper()
	req := client.ApplyRequest{Files: []client.File{{Name: "t.yaml", Text: text}}}
	if more != nil {
		more(&req)
	}
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	code, answer := w.ask(t, who, "POST", "/v1/apply", string(body))
	var out []string
	if code != 200 {
		var e client.ErrorBody
		if err := json.Unmarshal([]byte(answer), &e); err != nil {
			t.Fatalf("%d %s", code, answer)
		}
		for _, p := range e.Error.Problems {
			out = append(out, p.String())
		}
		return strings.Join(append(out, e.Error.Kind+": "+e.Error.Message), "\n")
	}
	var resp client.ApplyResponse
	if err := json.Unmarshal([]byte(answer), &resp); err != nil {
		t.Fatal(err)
	}
	for _, r := range resp.Results {
		line := lowerKind(r.Key) + " " + r.Action
		if r.Message != "" {
			line += ": " + r.Message
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func lowerKind(k serai.Key) string { return strings.ToLower(k.Kind) + " " + k.String() }

func prune(r *client.ApplyRequest) { r.Prune = true }

func dry(r *client.ApplyRequest) { r.DryRun = true }

func site(tenant, name, host string) string {
	return fmt.Sprintf("---\nkind: Site\nmetadata: {name: %s, tenant: %s}\nspec: {hosts: [%s], root: %s, engine: perl, perl: {app: app.psgi}}\n", name, tenant, host, name)
}

func TestApply(t *testing.T) {
	const alice = "kind: Tenant\nmetadata: {name: alice}\nspec: {plan: small, account: {create: true}, hosts: [\"*.alice.example\"]}\n"
	for _, tt := range []struct {
		name, who, text string
		more            func(*client.ApplyRequest)
		want            string
	}{
		{"in order of reference", "root",
			site("carol", "one", "one.example") + "---\nkind: Tenant\nmetadata: {name: carol}\nspec: {plan: big}\n---\nkind: Plan\nmetadata: {name: big}\n", nil,
			"plan big created\ntenant carol created\nsite carol/one created"},
		{"again", "root", alice, nil, "tenant alice unchanged"},
		{"one changed, one not", "root", site("alice", "shop", "shop.alice.example") + site("alice", "blog", "new.alice.example"), nil,
			"site alice/shop unchanged\nsite alice/blog updated"},
		{"a tenant leaves its name out", "alice", strings.Replace(site("X", "new", "new.alice.example"), ", tenant: X", "", 1), nil, "site alice/new created"},
		{"a dry run", "root", site("alice", "new", "new.alice.example"), dry, "site alice/new created"},
		{"prune of a tenant's own", "alice", site("alice", "shop", "shop.alice.example"), prune,
			"site alice/shop unchanged\nsite alice/blog deleted"},
		{"prune leaves other tenants and other kinds alone", "root", site("alice", "shop", "shop.alice.example"), prune,
			"site alice/shop unchanged\nsite alice/blog deleted"},
		{"prune of tenants", "root", alice, prune,
			"tenant alice unchanged\nsite alice/blog deleted\nsite alice/shop deleted\ntenant bob deleted"},
		{"a host may go from a pruned site to a new one", "alice", site("alice", "shop2", "shop.alice.example"), prune,
			"site alice/shop2 created\nsite alice/blog deleted\nsite alice/shop deleted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if got := w.apply(t, tt.who, tt.text, tt.more); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// TestApplyNothing: where a set is refused nothing of it is written.
func TestApplyNothing(t *testing.T) {
	w := newWorld(t)
	good := site("alice", "new", "new.alice.example")
	for _, tt := range []struct{ name, who, text, says string }{
		{"unknown field", "root", good + "---\nkind: Plan\nmetadata: {name: p}\nspec: {wrokers: 3}\n", "t.yaml:8:8: spec.wrokers: "},
		{"missing plan", "root", good + "---\nkind: Tenant\nmetadata: {name: carol}\nspec: {plan: none}\n", "t.yaml:8:14: spec.plan: "},
		{"host of another", "alice", good + site("alice", "evil", "bob.example"), "spec.hosts[0]: "},
		{"site of another", "alice", good + site("bob", "evil", "evil.alice.example"), "metadata.tenant: "},
		{"plan of a tenant", "alice", good + "---\nkind: Plan\nmetadata: {name: p}\n", "a Plan is the operator's"},
		{"more sites than the plan has", "alice", good + site("alice", "new2", "new2.alice.example"), "the plan small allows 3"},
		{"account that may not be adopted", "root", good + "---\nkind: Tenant\nmetadata: {name: carol}\nspec: {plan: small, account: {adopt: root}}\n", "spec.account.adopt: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := w.apply(t, tt.who, tt.text, nil)
			if !strings.Contains(got, tt.says) || !strings.Contains(got, "invalid: ") || !strings.Contains(got, "nothing was changed") {
				t.Errorf("got %s\nwant %q", got, tt.says)
			}
		})
	}
	if got := w.apply(t, "root", good, dry); got != "site alice/new created" {
		t.Errorf("dry run: %s", got)
	}
	rs, _, err := w.store.List(t.Context(), serai.KindSite, "")
	if err != nil || len(rs) != 3 {
		t.Errorf("%d sites, %v; want 3", len(rs), err)
	}
}

// TestDryRunShowsChange: the texts before and after are manifests.
func TestDryRunShowsChange(t *testing.T) {
	w := newWorld(t)
	body, _ := json.Marshal(client.ApplyRequest{DryRun: true, Files: []client.File{{Name: "t", Text: site("alice", "shop", "other.alice.example")}}})
	_, answer := w.ask(t, "alice", "POST", "/v1/apply", string(body))
	var resp client.ApplyResponse
	if err := json.Unmarshal([]byte(answer), &resp); err != nil || len(resp.Results) != 1 {
		t.Fatal(answer, err)
	}
	r := resp.Results[0]
	if !strings.Contains(r.Before, "shop.alice.example") || !strings.Contains(r.After, "other.alice.example") || strings.Contains(r.After, "status") {
		t.Errorf("before\n%s\nafter\n%s", r.Before, r.After)
	}
}

// racing is a store in which somebody else is faster n times.
type racing struct {
	store.Store
	n int
}

func (s *racing) Update(ctx context.Context, r serai.Resource) (serai.Resource, error) {
	if s.n > 0 {
		s.n--
		now, err := s.Store.Get(ctx, r.Key())
		if err != nil {
			return nil, err
		}
		now.(*serai.Site).Spec.Env = map[string]string{"N": fmt.Sprint(s.n)}
		if _, err := s.Store.Update(ctx, now); err != nil {
			return nil, err
		}
	}
	return s.Store.Update(ctx, r)
}

func TestApplyRetries(t *testing.T) {
	for n, want := range map[int]string{
		3:   "site alice/shop updated",
		100: "site alice/shop refused: site alice/shop is changed by others all the time",
	} {
		w := newWorld(t)
		w.stop()
		w.store = &racing{w.store, n}
		w.start(t)
		if got := w.apply(t, "alice", site("alice", "shop", "new.alice.example"), nil); got != want {
			t.Errorf("%d times: %s; want %s", n, got, want)
		}
	}
}

func TestDeletePlanInUse(t *testing.T) {
	w := newWorld(t)
	code, body := w.ask(t, "root", "DELETE", "/v1/plans/small", "")
	if code != 409 || !strings.Contains(body, "tenant alice and 1 more has plan small") {
		t.Errorf("%d %s", code, body)
	}
}

// TestPurge: only a purge leaves a note for the reconciler.
func TestPurge(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		target string
		purge  bool
	}{{"/v1/tenants/alice?purge=1", true}, {"/v1/tenants/bob", false}} {
		ctx, cancel := context.WithCancel(t.Context())
		changes, err := w.store.Watch(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		if code, body := w.ask(t, "root", "DELETE", tt.target, ""); code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		marked := false
		for c := range changes {
			if c.Resource.Key().Kind != serai.KindTenant {
				continue
			}
			for _, f := range c.Resource.GetMeta().Finalizers {
				marked = marked || f == api.PurgeFinalizer
			}
			if c.Removed {
				break
			}
		}
		cancel()
		if marked != tt.purge {
			t.Errorf("%s: purge was noted: %v", tt.target, marked)
		}
	}
}

func TestStopAndLaunch(t *testing.T) {
	w := newWorld(t)
	const path = "/v1/tenants/alice/sites/shop"
	for _, tt := range []struct {
		who, act string
		code     int
		says     string
	}{
		{"shop", "/reload", 200, `"loaded":true`},
		{"alice", "/restart", 200, `"loaded":true`},
		{"alice", "/stop", 200, `"stopped":true`},
		{"alice", "/stop", 200, `"stopped":true`},
		{"shop", "/reload", 409, "site alice/shop is stopped"},
		{"alice", "/start", 200, `"name":"shop"`},
		{"shop", "/restart", 200, `"loaded":true`},
	} {
		code, body := w.ask(t, tt.who, "POST", path+tt.act, "")
		if code != tt.code || !strings.Contains(body, tt.says) {
			t.Errorf("%s as %s: %d %s", tt.act, tt.who, code, body)
		}
	}
	if got := strings.Join(w.ctl.Launches(), ", "); got != "reload alice/shop, restart alice/shop, restart alice/shop" {
		t.Errorf("launched: %s", got)
	}
	// A file that does not speak of it leaves a stopped site stopped.
	w.ask(t, "alice", "POST", path+"/stop", "")
	w.apply(t, "alice", site("alice", "shop", "new.alice.example"), nil)
	r, err := w.store.Get(t.Context(), serai.Key{Kind: serai.KindSite, Tenant: "alice", Name: "shop"})
	if err != nil || !r.(*serai.Site).Spec.Stopped {
		t.Errorf("apply has started a stopped site (%v)", err)
	}
}
