package proxy

import (
	"slices"
	"strings"
	"sync"

	"serai.dev/serai/internal/route"
)

// A table says which site serves a host. Reads take no lock, and a change costs
// the same with ten sites or ten thousand: the maps are hash tries, of which a
// change touches one path. Changes must not be made concurrently.
type table struct {
	exact  sync.Map // host → *site
	suffix sync.Map // of a wildcard, such as ".example.com" → *site
	sites  map[uint32]*site
	number sync.Map // of a site → *site, for mounts

	// What tenants were granted, whether a site serves it or not.
	granted       sync.Map // host → []uint32 uids
	grantedSuffix sync.Map // suffix → []uint32 uids
	tenants       map[uint32]*route.Tenant
}

// A site is a route with what is needed to serve it.
type site struct {
	*route.Site
	pool *pool
}

func newTable() *table {
	return &table{sites: make(map[uint32]*site), tenants: make(map[uint32]*route.Tenant)}
}

// find returns the site that serves a host in the form of parseHost, or nil.
// An exact name wins over wildcards, a longer wildcard over a shorter. A
// wildcard stands for one or more labels, and never for a name that another
// tenant was granted.
func (t *table) find(host string) *site {
	if s, ok := t.exact.Load(host); ok {
		return s.(*site)
	}
	for i := strings.IndexByte(host, '.'); i >= 0; {
		suffix := host[i:]
		if s, ok := t.suffix.Load(suffix); ok && t.mayServe(s.(*site).UID, host, len(suffix)) {
			return s.(*site)
		}
		next := strings.IndexByte(host[i+1:], '.')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return nil
}

// mayServe reports whether a wildcard site of a tenant covers a name: the most
// specific grant that is at least as specific as the wildcard decides.
func (t *table) mayServe(uid uint32, host string, suffix int) bool {
	if uids, ok := t.granted.Load(host); ok {
		return slices.Contains(uids.([]uint32), uid)
	}
	for i := 0; len(host)-i >= suffix; i++ {
		if host[i] != '.' {
			continue
		}
		if uids, ok := t.grantedSuffix.Load(host[i:]); ok {
			return slices.Contains(uids.([]uint32), uid)
		}
	}
	return true
}

// setSite puts a site in place of the one of the same number. Its new hosts
// are served before the old ones stop being.
func (t *table) setSite(s *site) {
	old := t.sites[s.Number]
	t.sites[s.Number] = s
	t.number.Store(s.Number, s)
	for _, h := range s.Hosts {
		if m, key := t.hosts(h); m != nil {
			m.Store(key, s)
		}
	}
	if old != nil {
		t.unserve(old)
	}
}

func (t *table) dropSite(number uint32) {
	if old := t.sites[number]; old != nil {
		delete(t.sites, number)
		t.number.Delete(number)
		t.unserve(old)
	}
}

// unserve removes the hosts that are still this site's, not those that another
// record gave to somebody since.
func (t *table) unserve(s *site) {
	for _, h := range s.Hosts {
		if m, key := t.hosts(h); m != nil {
			m.CompareAndDelete(key, s)
		}
	}
}

// hosts is where a host of a route belongs, or nil for one that no request can
// have.
func (t *table) hosts(h string) (*sync.Map, string) {
	return place(h, &t.exact, &t.suffix)
}

func place(h string, exact, suffix *sync.Map) (*sync.Map, string) {
	if base, ok := strings.CutPrefix(h, "*."); ok {
		if base, ok = parseHost(base); ok {
			return suffix, "." + base
		}
		return nil, ""
	}
	if h, ok := parseHost(h); ok {
		return exact, h
	}
	return nil, ""
}

// setTenant replaces a tenant and its grants.
func (t *table) setTenant(rt *route.Tenant) {
	old := t.tenants[rt.UID]
	t.tenants[rt.UID] = rt
	for _, h := range rt.Hosts {
		t.grant(h, func(uids []uint32) []uint32 {
			if slices.Contains(uids, rt.UID) {
				return uids
			}
			return append(slices.Clone(uids), rt.UID)
		})
	}
	if old != nil {
		t.revoke(old, rt.Hosts)
	}
}

func (t *table) dropTenant(uid uint32) {
	if old := t.tenants[uid]; old != nil {
		delete(t.tenants, uid)
		t.revoke(old, nil)
	}
}

func (t *table) revoke(old *route.Tenant, but []string) {
	for _, h := range old.Hosts {
		if !slices.Contains(but, h) {
			t.grant(h, func(uids []uint32) []uint32 {
				return slices.DeleteFunc(slices.Clone(uids), func(u uint32) bool { return u == old.UID })
			})
		}
	}
}

// grant changes the list of those that were granted a host.
func (t *table) grant(h string, change func([]uint32) []uint32) {
	m, key := place(h, &t.granted, &t.grantedSuffix)
	if m == nil {
		return
	}
	var uids []uint32
	if v, ok := m.Load(key); ok {
		uids = v.([]uint32)
	}
	if uids = change(uids); len(uids) == 0 {
		m.Delete(key)
	} else {
		m.Store(key, uids)
	}
}
