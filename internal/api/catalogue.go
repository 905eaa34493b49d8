package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/catalogue"
	"serai.dev/serai/internal/manifest"
)

// entries are the sites that are entries of the catalogue.
func (s *Server) entries(ctx context.Context) ([]*serai.Site, error) {
	rs, _, err := s.store.List(ctx, serai.KindSite, serai.CatalogueTenant)
	if err != nil {
		return nil, err
	}
	var entries []*serai.Site
	for _, r := range rs {
		if e := r.(*serai.Site); e.Spec.Catalogue != nil && e.Meta.Deleted == nil {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// catalogue lists what sites may mount.
func (s *Server) catalogue(c *call) (any, error) {
	entries, err := s.entries(c.r.Context())
	if err != nil {
		return nil, err
	}
	var mounts map[string][]string
	if c.class == Operator && len(entries) > 0 {
		if mounts, err = s.mounts(c.r.Context()); err != nil {
			return nil, err
		}
	}
	list := client.Catalogue{Items: []client.Entry{}}
	for _, e := range entries {
		about := e.Spec.Catalogue
		list.Items = append(list.Items, client.Entry{Name: e.Meta.Name, Title: about.Title, Version: about.Version,
			Settings: about.Settings, Sites: mounts[e.Meta.Name]})
	}
	return list, nil
}

// mounts are the sites that mount each entry.
func (s *Server) mounts(ctx context.Context) (map[string][]string, error) {
	sites, _, err := s.store.List(ctx, serai.KindSite, "")
	if err != nil {
		return nil, err
	}
	by := map[string][]string{}
	for _, r := range sites {
		for _, m := range r.(*serai.Site).Spec.Mount {
			if name := r.Key().String(); !slices.Contains(by[m.Use], name) {
				by[m.Use] = append(by[m.Use], name)
			}
		}
	}
	return by, nil
}

// addEntry takes the files of an entry and makes them what its site runs. The
// version of before goes on until the new one is loaded.
func (s *Server) addEntry(c *call) (any, error) {
	ctx, name := c.r.Context(), c.r.PathValue("entry")
	if err := manifest.CheckName(name); err != nil {
		return nil, err
	}
	defer s.writing.lock("/catalogue")() // no tenant is called so
	v, err := s.ctl.Shelve(ctx, name, c.r.Body)
	if err != nil {
		return nil, err
	}
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Time{})
	plan, err := s.catalogueTenant(ctx, c.r.URL.Query().Get("plan"))
	if err != nil {
		return nil, err
	}
	return s.putEntry(ctx, name, v, plan)
}

// catalogueTenant makes sure of the operator's own tenant, on a plan that is
// named or that it has.
func (s *Server) catalogueTenant(ctx context.Context, name string) (*serai.Plan, error) {
	key := serai.Key{Kind: serai.KindTenant, Name: serai.CatalogueTenant}
	r, err := s.store.Get(ctx, key)
	missing := err != nil && serai.KindOf(err) == serai.NotFound
	switch {
	case err != nil && !missing:
		return nil, err
	case missing && name == "":
		return nil, serai.Errorf(serai.Invalid, "the catalogue has no plan yet: its scripts run in a tenant of their own, %s", key.Name).
			WithHint("serai catalogue add --plan PLAN …")
	case name == "":
		name = r.(*serai.Tenant).Spec.Plan
	}
	plan, err := s.store.Get(ctx, serai.Key{Kind: serai.KindPlan, Name: name})
	if err != nil {
		if serai.KindOf(err) == serai.NotFound {
			return nil, serai.Errorf(serai.Invalid, "there is no plan %s", name).WithHint("serai get plans")
		}
		return nil, err
	}
	if missing {
		t := serai.NewResource(serai.KindTenant).(*serai.Tenant)
		t.Meta.Name = key.Name
		t.Spec = serai.TenantSpec{Plan: name, Account: serai.Account{Create: true}}
		if r, err = s.store.Create(ctx, t); err == nil {
			s.index.put(r)
		}
		return plan.(*serai.Plan), err
	}
	if len(r.(*serai.Tenant).Spec.Hosts) > 0 {
		return nil, serai.Errorf(serai.Conflict, "the tenant %s has hosts: it is somebody's, and not the catalogue's own", key.Name).
			WithHint("that name is the catalogue's: move the customer to another one")
	}
	_, err = s.change(ctx, key, func(r serai.Resource) (bool, error) {
		if r.GetMeta().Deleted != nil {
			return false, beingDeleted(key)
		}
		spec := &r.(*serai.Tenant).Spec
		changed := spec.Plan != name
		spec.Plan = name
		return changed, nil
	})
	return plan.(*serai.Plan), err
}

// putEntry makes a version what the site of an entry runs.
func (s *Server) putEntry(ctx context.Context, name string, v catalogue.Version, plan *serai.Plan) (client.Result, error) {
	key := serai.EntryKey(name)
	spec := serai.SiteSpec{
		Root: ".", Engine: "perl", Catalogue: &v.Catalogue, Workers: serai.DefaultWorkers(),
		Perl: &serai.Perl{Scripts: map[string]string{"/": v.Script}, Preload: manifest.StandardZygote},
	}
	spec.Workers.Max = plan.Spec.Workers
	result := client.Result{Key: key, Action: client.Unchanged}
	r, err := s.store.Get(ctx, key)
	if err != nil && serai.KindOf(err) == serai.NotFound {
		site := serai.NewResource(serai.KindSite).(*serai.Site)
		site.Meta.Name, site.Meta.Tenant, site.Spec = name, key.Tenant, spec
		result.Action = client.Created
		if r, err = s.store.Create(ctx, site); err == nil {
			s.index.put(r)
		}
	} else if err == nil {
		if old := r.(*serai.Site); old.Spec.Catalogue == nil {
			return result, serai.Errorf(serai.Conflict, "there is a site %s that is no entry of the catalogue", key).WithHint("delete it first")
		}
		r, err = s.change(ctx, key, func(r serai.Resource) (bool, error) {
			if r.GetMeta().Deleted != nil {
				return false, beingDeleted(key)
			}
			site := r.(*serai.Site)
			next := site.Clone().(*serai.Site)
			next.Spec = spec
			next.Spec.Stopped = site.Spec.Stopped
			if manifest.Same(site, next) {
				return false, nil
			}
			site.Spec, result.Action = next.Spec, client.Updated
			return true, nil
		})
	}
	if err != nil {
		return result, fmt.Errorf("put %s into the catalogue: %w", name, err)
	}
	m := r.GetMeta()
	result.Revision, result.Generation = m.Revision, m.Generation
	return result, nil
}

// removeEntry removes an entry that no site mounts.
func (s *Server) removeEntry(c *call) (any, error) {
	ctx, name := c.r.Context(), c.r.PathValue("entry")
	defer s.writing.lock("/catalogue")()
	entries, err := s.entries(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(entries, func(e *serai.Site) bool { return e.Meta.Name == name }) {
		return nil, serai.Errorf(serai.NotFound, "there is no %q in the catalogue", name).WithHint("serai catalogue list")
	}
	mounts, err := s.mounts(ctx)
	if err != nil {
		return nil, err
	}
	if by := mounts[name]; len(by) > 0 {
		more := ""
		if len(by) > 1 {
			more = fmt.Sprintf(" and %d more", len(by)-1)
		}
		return nil, serai.Errorf(serai.Conflict, "site %s%s mounts %s", by[0], more, name).WithHint("they must leave it out of spec.mount first")
	}
	key := serai.EntryKey(name)
	if err := s.store.Delete(ctx, key, ""); err != nil && serai.KindOf(err) != serai.NotFound {
		return nil, err
	}
	return client.Result{Key: key, Action: client.Deleted}, s.ctl.Unshelve(ctx, name)
}
