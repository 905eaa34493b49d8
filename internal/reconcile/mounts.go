package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"serai.dev/serai"
	"serai.dev/serai/internal/route"
)

// mountRoutes says where the mounts of a site lead, and what the scripts there
// are told of the site. find looks a resource up; nil is none.
func mountRoutes(t *serai.Tenant, s *serai.Site, find func(serai.Key) (serai.Resource, error)) ([]route.Mount, error) {
	var ms []route.Mount
	for _, prefix := range slices.Sorted(maps.Keys(s.Spec.Mount)) {
		m := s.Spec.Mount[prefix]
		rm := route.Mount{Prefix: prefix}
		entry, err := find(serai.EntryKey(m.Use))
		if err != nil {
			return nil, err
		}
		owner, err := find(serai.Key{Kind: serai.KindTenant, Name: serai.CatalogueTenant})
		if err != nil {
			return nil, err
		}
		if e, ok := entry.(*serai.Site); ok && e.Spec.Catalogue != nil && e.Meta.Deleted == nil {
			if o, ok := owner.(*serai.Tenant); ok && o.Status.Home != "" {
				rm.Site = uint32(e.Meta.ID)
				rm.Env = mountEnv(o.Status.Home, t, s, prefix, m, e)
			}
		}
		ms = append(ms, rm)
	}
	return ms, nil
}

// mountEnv is the environment of a script that a site has mounted. The data of
// a mount belong to the tenant by its number, so that no later tenant of that
// name finds them.
func mountEnv(home string, t *serai.Tenant, s *serai.Site, prefix string, m serai.Mount, e *serai.Site) map[string]string {
	env := map[string]string{
		"SERAI_SITE":  s.Key().String(),
		"SERAI_MOUNT": prefix,
		"SERAI_DATA":  path.Join(home, e.Meta.Name, fmt.Sprint(t.Status.UID), s.Meta.Name, url.PathEscape(prefix)),
	}
	for name, setting := range e.Spec.Catalogue.Settings {
		value, given := m.Settings[name]
		if !given {
			value = setting.Default
		}
		env["SERAI_SETTING_"+strings.ToUpper(name)] = value
	}
	return env
}

// stored finds a resource in the store.
func (r *Reconciler) stored(ctx context.Context) func(serai.Key) (serai.Resource, error) {
	return func(key serai.Key) (serai.Resource, error) {
		o, err := r.store.Get(ctx, key)
		if err != nil && serai.KindOf(err) == serai.NotFound {
			return nil, nil
		}
		return o, err
	}
}

// tellMounts queues the sites that have an entry of the catalogue mounted. All
// sites are looked at: the operator changes an entry now and then.
func (r *Reconciler) tellMounts(ctx context.Context, entry serai.Key) error {
	sites, _, err := r.store.List(ctx, serai.KindSite, "")
	if err != nil {
		return fmt.Errorf("list the sites that mount %s: %w", entry.Name, err)
	}
	for _, o := range sites {
		for _, m := range o.(*serai.Site).Spec.Mount {
			if m.Use == entry.Name {
				r.queue.lazy(o.Key())
				break
			}
		}
	}
	return nil
}
