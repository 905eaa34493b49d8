package api

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/manifest"
)

// kinds in the order of reference: what is created later may refer to what was
// created before. Deletion goes the other way.
var kinds = []string{serai.KindPlan, serai.KindTenant, serai.KindSite}

// maxTries bounds how often a write is repeated that somebody else came
// before.
const maxTries = 10

// apply reads the files as the caller, checks the whole against what exists,
// and only then writes, object by object.
func (s *Server) apply(c *call) (any, error) {
	var in client.ApplyRequest
	if err := c.in(&in); err != nil {
		return nil, err
	}
	// Two sets of one tenant at once could together pass a limit that each
	// keeps. The operator is not bound by those limits.
	if c.class == Tenant {
		defer s.writing.lock(c.tenant)()
	}
	p, err := s.plan(c, in)
	if err != nil {
		return nil, err
	}
	return client.ApplyResponse{Results: s.carryOut(c.r.Context(), p, in.DryRun)}, nil
}

// A plan is what an apply will do.
type plan struct {
	docs   []*manifest.Doc // in order of kind
	prune  []serai.Key     // in order of deletion
	adopts map[serai.Key]int64
}

func (s *Server) plan(c *call, in client.ApplyRequest) (*plan, error) {
	files := make([]manifest.File, len(in.Files))
	for i, f := range in.Files {
		files[i] = manifest.File{Name: f.Name, Text: []byte(f.Text)}
	}
	set, found := manifest.Parse(files, c.speaker())
	p := &plan{docs: slices.Clone(set.Docs), adopts: map[serai.Key]int64{}}
	slices.SortStableFunc(p.docs, func(a, b *manifest.Doc) int {
		return slices.Index(kinds, a.Resource.Key().Kind) - slices.Index(kinds, b.Resource.Key().Kind)
	})
	if in.Prune && len(found) == 0 {
		if err := s.pruned(c, p); err != nil {
			return nil, err
		}
	}
	v := &view{ctx: c.r.Context(), s: s, gone: map[serai.Key]bool{}, seen: map[serai.Key]serai.Resource{}}
	for _, key := range p.prune {
		v.gone[key] = true
	}
	limits := s.limits
	limits.Operator = c.class == Operator
	found = found.With(set.Check(v, limits)).With(s.accounts(v, p))
	if v.err != nil {
		return nil, v.err
	}
	return p, found.Err()
}

// accounts finds the uids of the accounts that tenants of the set adopt, since
// a tenant's ID is its uid from the first write on.
func (s *Server) accounts(v *view, p *plan) (found manifest.Problems) {
	for _, d := range p.docs {
		t, ok := d.Resource.(*serai.Tenant)
		// Check says it where nothing may be adopted.
		if !ok || t.Spec.Account.Adopt == "" || s.limits.Adopt.Empty() {
			continue
		}
		if _, exists := v.Get(t.Key()); exists {
			continue
		}
		uid, err := lookupUID(t.Spec.Account.Adopt, s.limits.Adopt)
		if err != nil {
			const path = "spec.account.adopt"
			found = append(found, manifest.Problem{Pos: d.At(path), Path: path, Msg: err.Error()})
			continue
		}
		p.adopts[t.Key()] = int64(uid)
	}
	return found
}

// pruned finds what an apply with prune deletes: what is of a kind and, for
// sites, of a tenant that the set speaks of, and is not in it.
func (s *Server) pruned(c *call, p *plan) error {
	named, spoken, tenants := map[serai.Key]bool{}, map[string]bool{}, map[string]bool{}
	if c.class == Tenant {
		tenants[c.tenant] = true
	}
	for _, d := range p.docs {
		key := d.Resource.Key()
		named[key], spoken[key.Kind] = true, true
		switch key.Kind {
		case serai.KindTenant:
			tenants[key.Name] = true
		case serai.KindSite:
			tenants[key.Tenant] = true
		}
	}
	gone := map[string][]serai.Key{}
	for _, kind := range []string{serai.KindTenant, serai.KindPlan} {
		if !spoken[kind] {
			continue
		}
		all, _, err := s.store.List(c.r.Context(), kind, "")
		if err != nil {
			return err
		}
		for _, r := range all {
			// The catalogue is no matter of files.
			if key := r.Key(); !named[key] && r.GetMeta().Deleted == nil && key.Name != serai.CatalogueTenant {
				gone[kind] = append(gone[kind], key)
			}
		}
	}
	delete(tenants, serai.CatalogueTenant)
	for tenant := range tenants {
		for _, site := range s.index.under(serai.Key{Kind: serai.KindTenant, Name: tenant}) {
			if key := (serai.Key{Kind: serai.KindSite, Tenant: tenant, Name: site}); !named[key] {
				gone[serai.KindSite] = append(gone[serai.KindSite], key)
			}
		}
	}
	for _, kind := range slices.Backward(kinds) {
		slices.SortFunc(gone[kind], func(a, b serai.Key) int { return strings.Compare(a.String(), b.String()) })
		p.prune = append(p.prune, gone[kind]...)
	}
	return nil
}

// A step is one write or deletion of a plan.
type step struct {
	key    serai.Key
	delete bool
	do     func() (client.Result, error)
}

// atOnce is how many resources of a kind are written at the same time: the
// store makes one transaction of what comes together.
const atOnce = 64

// carryOut does what was planned, the resources of a kind at once. After a
// refusal those that come later are not tried.
func (s *Server) carryOut(ctx context.Context, p *plan, dry bool) []client.Result {
	var steps []step
	for _, d := range p.docs {
		key := d.Resource.Key()
		steps = append(steps, step{key, false, func() (client.Result, error) { return s.write(ctx, d, p.adopts[key], dry) }})
	}
	for _, key := range p.prune {
		steps = append(steps, step{key, true, func() (client.Result, error) { return s.delete(ctx, key, false, dry, p.prune) }})
	}
	results := make([]client.Result, len(steps))
	refused := ""
	for first := 0; first < len(steps); {
		last := first
		var g errgroup.Group
		g.SetLimit(atOnce)
		for ; last < len(steps) && steps[last].key.Kind == steps[first].key.Kind && steps[last].delete == steps[first].delete; last++ {
			step, r := steps[last], &results[last]
			if refused != "" {
				*r = client.Result{Key: step.key, Action: client.Refused, Message: "not tried, since " + refused + " was refused"}
				continue
			}
			g.Go(func() error { *r = s.take(step); return nil })
		}
		_ = g.Wait() // nothing returns an error: refusals are results
		for _, r := range results[first:last] {
			if r.Action == client.Refused && refused == "" {
				refused = lower(r.Key.Kind) + " " + r.Key.String()
			}
		}
		first = last
	}
	return results
}

// take does one step and makes a result of its error.
func (s *Server) take(st step) client.Result {
	r, err := st.do()
	if err != nil {
		if serai.KindOf(err) == serai.Internal {
			s.log.Error("write refused", "kind", st.key.Kind, "name", st.key.String(), "cause", err)
		}
		r = client.Result{Action: client.Refused, Message: serai.Message(err), Hint: serai.HintOf(err)}
	}
	r.Key = st.key
	return r
}

// write brings one document into the store, again and again while somebody
// else writes the same resource.
func (s *Server) write(ctx context.Context, d *manifest.Doc, id int64, dry bool) (r client.Result, err error) {
	key := d.Resource.Key()
	for range maxTries {
		old, err := s.store.Get(ctx, key)
		if err != nil && serai.KindOf(err) != serai.NotFound {
			return r, err
		}
		if err != nil {
			old = nil
		} else if old.GetMeta().Deleted != nil {
			return r, beingDeleted(key)
		}
		next := d.Onto(old)
		if old == nil {
			next.GetMeta().ID = id
		}
		switch {
		case old == nil:
			r.Action = client.Created
		case manifest.Same(old, next):
			r.Action = client.Unchanged
		default:
			r.Action = client.Updated
		}
		if dry {
			if r.Before, err = printed(old); err != nil {
				return r, err
			}
			if r.After, err = printed(next); err != nil {
				return r, err
			}
			return r, nil
		}
		stored := old
		switch r.Action {
		case client.Created:
			stored, err = s.store.Create(ctx, next)
		case client.Updated:
			stored, err = s.store.Update(ctx, next)
		}
		if kind := serai.KindOf(err); err != nil && (kind == serai.Conflict && r.Action == client.Updated || kind == serai.NotFound) {
			continue
		}
		if err != nil {
			// A Create that somebody else came before, or an id that is taken.
			if _, gone := s.store.Get(ctx, key); serai.KindOf(err) == serai.Conflict && gone == nil {
				continue
			}
			return r, err
		}
		if r.Action != client.Unchanged {
			s.index.put(stored)
		}
		m := stored.GetMeta()
		r.Revision, r.Generation = m.Revision, m.Generation
		return r, nil
	}
	return r, serai.Errorf(serai.Conflict, "%s %s is changed by others all the time", lower(key.Kind), key).WithHint("try again")
}

func printed(r serai.Resource) (string, error) {
	if r == nil {
		return "", nil
	}
	text, err := manifest.Print(r)
	if err != nil {
		return "", fmt.Errorf("print %s: %w", r.Key(), err)
	}
	return string(text), nil
}

func beingDeleted(key serai.Key) error {
	return serai.Errorf(serai.Conflict, "%s %s is being deleted", lower(key.Kind), key).
		WithHint("wait until it is gone: serai get %s %s", lower(key.Kind), key)
}

// A view is what exists, as a check of manifests sees it: without what will be
// pruned.
type view struct {
	ctx  context.Context
	s    *Server
	gone map[serai.Key]bool
	seen map[serai.Key]serai.Resource // nil where there is none: many sites refer to one tenant
	err  error                        // the first that was not NotFound: then the check is worth nothing
}

func (v *view) removed(key serai.Key) bool {
	return v.gone[key] || key.Tenant != "" && v.gone[serai.Key{Kind: serai.KindTenant, Name: key.Tenant}]
}

// Get implements manifest.Existing.
func (v *view) Get(key serai.Key) (serai.Resource, bool) {
	if v.removed(key) {
		return nil, false
	}
	r, known := v.seen[key]
	if !known {
		var err error
		if r, err = v.s.store.Get(v.ctx, key); err != nil {
			r = nil
			if serai.KindOf(err) != serai.NotFound && v.err == nil {
				v.err = err
			}
		}
		v.seen[key] = r
	}
	return r, r != nil
}

// HostHolder implements manifest.Existing.
func (v *view) HostHolder(host string) (serai.Key, bool) {
	key, ok := v.s.index.holder(host)
	return key, ok && !v.removed(key)
}

// Grantees implements manifest.Existing.
func (v *view) Grantees(grant string) []string {
	return slices.DeleteFunc(v.s.index.grantees(grant), func(name string) bool {
		return v.removed(serai.Key{Kind: serai.KindTenant, Name: name})
	})
}

// SitesOf implements manifest.Existing.
func (v *view) SitesOf(tenant string) []serai.Key {
	var keys []serai.Key
	for _, name := range v.s.index.under(serai.Key{Kind: serai.KindTenant, Name: tenant}) {
		if key := (serai.Key{Kind: serai.KindSite, Tenant: tenant, Name: name}); !v.removed(key) {
			keys = append(keys, key)
		}
	}
	return keys
}
