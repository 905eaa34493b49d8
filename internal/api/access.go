package api

import (
	"context"
	"net/http"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/cgroup"
	"serai.dev/serai/internal/peercred"
)

// A Class of callers, from the least.
type Class int

// The classes.
const (
	Stranger Class = iota // nothing
	SiteCode              // code that runs in a site, and may have been hacked
	Tenant                // a tenant's account outside its sites
	Operator              // root and the group of operators
)

func (c Class) String() string { return [...]string{"stranger", "site", "tenant", "operator"}[c] }

// An Access of a route is the least class that may use it. Below Operator a
// caller reaches only what is its own: anything else is not found.
type Access Class

// The accesses.
const (
	Operators Access = Access(Operator)
	Owners    Access = Access(Tenant)
	SiteToo   Access = Access(SiteCode)
)

func (a Access) String() string {
	return map[Access]string{
		Operators: "operator",
		Owners:    "operator; a tenant for its own",
		SiteToo:   "operator; a tenant for its own; a site's code for that site",
	}[a]
}

// A caller is who a request comes from.
type caller struct {
	class  Class
	uid    uint32
	tenant string // of a tenant, or of the tenant whose site the code is
	site   string // of a site's code
}

func (c caller) identity() client.Identity {
	return client.Identity{Class: c.class.String(), UID: c.uid, Tenant: c.tenant, Site: c.site}
}

// speaker is the tenant who writes manifests, or empty for the operator.
func (c caller) speaker() string {
	if c.class == Operator {
		return ""
	}
	return c.tenant
}

// who finds the class of a peer. The cgroup goes before the uid: what runs in
// a site is that site's code whoever it says it is. A tenant whose cgroup
// could not be read may be its site's code, and gets nothing.
func (s *Server) who(p peercred.Peer) caller {
	if uid, number, ok := cgroup.Locate(s.cgroupRoot, p.Cgroup); ok {
		site, known := s.index.site(int64(number))
		tenant, _ := s.index.tenant(uid)
		if !known || uid != p.UID || tenant != site.Tenant {
			return caller{uid: p.UID}
		}
		return caller{class: SiteCode, uid: uid, tenant: site.Tenant, site: site.Name}
	}
	if p.UID == 0 || s.adminGID != 0 && p.In(s.adminGID) {
		return caller{class: Operator, uid: p.UID}
	}
	if tenant, ok := s.index.tenant(p.UID); ok && p.Cgroup != nil {
		return caller{class: Tenant, uid: p.UID, tenant: tenant}
	}
	return caller{uid: p.UID}
}

// admit says whether a caller may use a route at all, and whether the things
// named in the path are its own.
func (c caller) admit(access Access, r *http.Request) error {
	switch {
	case c.class == Stranger:
		return serai.Errorf(serai.Denied, "this account may not use Serai").
			WithHint("ask as root, as a member of the operators' group, or as a tenant")
	case c.class < Class(access) && c.class == SiteCode:
		return serai.Errorf(serai.Denied, "code that runs in a site may only reload or restart that site, and send mail")
	case c.class < Class(access):
		return serai.Errorf(serai.Denied, "only an operator may do this")
	case c.class == Operator:
		return nil
	}
	if t := r.PathValue("tenant"); t != "" && t != c.tenant {
		if site := r.PathValue("site"); site != "" {
			return notFound(serai.Key{Kind: serai.KindSite, Tenant: t, Name: site})
		}
		return notFound(serai.Key{Kind: serai.KindTenant, Name: t})
	}
	if site := r.PathValue("site"); c.class == SiteCode && site != "" && site != c.site {
		return notFound(serai.Key{Kind: serai.KindSite, Tenant: c.tenant, Name: site})
	}
	return nil
}

// notFound is the one sentence for what is not there and for what the caller
// may not see: nobody can tell them apart.
func notFound(key serai.Key) error {
	return serai.Errorf(serai.NotFound, "there is no %s %s", lower(key.Kind), key)
}

type callerKey struct{}

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}
