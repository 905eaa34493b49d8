package manifest

import (
	"slices"
	"strings"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
)

// Existing is what is stored already.
type Existing interface {
	// Get returns a stored resource; one whose deletion was asked for too.
	Get(key serai.Key) (serai.Resource, bool)
	// HostHolder returns the site that holds the claim of a host, which is
	// compared as it is written.
	HostHolder(host string) (serai.Key, bool)
	// Grantees lists the stored tenants whose spec.hosts has this very grant.
	Grantees(grant string) []string
	// SitesOf lists the stored sites of a tenant.
	SitesOf(tenant string) []serai.Key
}

// Limits is what Check needs to know of the server and of the speaker.
type Limits struct {
	Operator  bool         // the operator speaks; else a tenant, see Parse
	Zygotes   []string     // names of the zygote sets
	PanelHost string       // nobody's; may be empty
	Adopt     config.Range // accounts.adopt of the configuration
	Prefix    string       // accounts.prefix of the configuration
}

// maxAccount is the length of the longest name of an account that we make.
const maxAccount = 31

// Check validates the set as a whole, against what is stored: references,
// duplicates, grants and claims of hosts, and what plans allow. Documents with
// problems of their own are not looked into again, but others may refer to
// them. Where a site leaves out spec.workers.max, Check lowers it to what the
// plan allows.
//
// What is stored may change until the set is applied; the claim of a host is
// decided by the store alone.
func (s *Set) Check(x Existing, l Limits) Problems {
	l.Operator = l.Operator && s.speaker == ""
	c := &checker{x: x, limits: l, docs: map[serai.Key]*Doc{}, hosts: map[string]*Doc{}, adopted: map[string]*Doc{}, sites: map[string][]*Doc{}}
	var first []*Doc
	for _, d := range s.Docs {
		key := d.Resource.Key()
		if key.Name == "" || key.Kind == serai.KindSite && key.Tenant == "" {
			continue
		}
		if other := c.docs[key]; other != nil {
			c.ps.add(d.At("metadata.name"), "metadata.name", "the %s %s is there twice, first at %s: keep one of them", strings.ToLower(key.Kind), key, other.Pos)
			continue
		}
		c.docs[key] = d
		first = append(first, d)
	}
	for _, d := range first {
		if !d.broken {
			c.doc(d)
		}
	}
	c.counts()
	c.ps.sort()
	return c.ps
}

type checker struct {
	x       Existing
	limits  Limits
	docs    map[serai.Key]*Doc
	hosts   map[string]*Doc   // claimed within the set
	adopted map[string]*Doc   // accounts adopted within the set
	sites   map[string][]*Doc // of the set, by tenant
	ps      Problems
}

func (c *checker) problem(d *Doc, path, format string, args ...any) {
	c.ps.add(d.At(path), path, format, args...)
}

func (c *checker) doc(d *Doc) {
	if old, ok := c.x.Get(d.Resource.Key()); ok && old.GetMeta().Deleted != nil {
		c.problem(d, "metadata.name", "%s is being deleted: wait until it is gone, or write another name", old.Key())
		return
	}
	switch r := d.Resource.(type) {
	case *serai.Tenant:
		c.tenant(d, r)
	case *serai.Site:
		c.site(d, r)
	}
}

// find looks a reference up: in the set, then in what is stored. The resource
// is nil where the set has it with problems.
func (c *checker) find(d *Doc, path string, key serai.Key) (serai.Resource, bool) {
	if other := c.docs[key]; other != nil {
		if other.broken {
			return nil, true
		}
		return other.Resource, true
	}
	noun := strings.ToLower(key.Kind)
	r, ok := c.x.Get(key)
	switch {
	case !ok:
		c.problem(d, path, "there is no %s %q: write a document for it into the same files, or add it before", noun, key.Name)
	case r.GetMeta().Deleted != nil:
		c.problem(d, path, "the %s %q is being deleted: write another one", noun, key.Name)
	default:
		return r, true
	}
	return nil, false
}

func (c *checker) tenant(d *Doc, t *serai.Tenant) {
	c.find(d, "spec.plan", serai.Key{Kind: serai.KindPlan, Name: t.Spec.Plan})
	for i, h := range t.Spec.Hosts {
		if c.limits.PanelHost != "" && h == c.limits.PanelHost {
			c.problem(d, item("spec.hosts", i), "%q is the panel's own host: write another one", h)
		}
	}
	a := t.Spec.Account
	if old, ok := c.x.Get(t.Key()); ok {
		if was := old.(*serai.Tenant).Spec.Account; was != a {
			c.problem(d, "spec.account", "cannot be changed: write %s, or delete the tenant first", accountText(was))
		}
		return
	}
	switch {
	case a.Adopt != "" && c.limits.Adopt.Empty():
		c.problem(d, "spec.account.adopt", "no account may be adopted: set accounts.adopt in the server's configuration to a range of uids, or write {create: true}")
	case a.Adopt != "":
		if other := c.adopted[a.Adopt]; other != nil {
			c.problem(d, "spec.account.adopt", "%q is adopted by the tenant %s already, at %s: each tenant needs its own", a.Adopt, other.Resource.Key(), other.Pos)
		}
		c.adopted[a.Adopt] = d
	case len(c.limits.Prefix)+len(t.Meta.Name) > maxAccount:
		c.problem(d, "metadata.name", "the account %q would have more than %d characters: write a shorter name", c.limits.Prefix+t.Meta.Name, maxAccount)
	}
}

func accountText(a serai.Account) string {
	if a.Adopt != "" {
		return "{adopt: " + a.Adopt + "}"
	}
	return "{create: true}"
}

func (c *checker) site(d *Doc, s *serai.Site) {
	var old *serai.Site
	if r, ok := c.x.Get(s.Key()); ok {
		old = r.(*serai.Site)
	} else {
		c.sites[s.Meta.Tenant] = append(c.sites[s.Meta.Tenant], d)
	}
	var tenant *serai.Tenant
	if r, _ := c.find(d, "metadata.tenant", serai.Key{Kind: serai.KindTenant, Name: s.Meta.Tenant}); r != nil {
		tenant = r.(*serai.Tenant)
	}
	if old != nil && old.Spec.Catalogue != nil {
		c.problem(d, "metadata.name", "is an entry of the catalogue: change it with serai catalogue add %s", s.Meta.Name)
		return
	}
	c.mounts(d, s)
	for i, h := range s.Spec.Hosts {
		c.host(d, s, old, tenant, h, item("spec.hosts", i))
	}
	c.preload(d, s, old)
	if plan := c.planOf(tenant); plan != nil {
		c.workers(d, s, plan)
	}
}

// host checks whether the site may claim a host.
func (c *checker) host(d *Doc, s, old *serai.Site, tenant *serai.Tenant, host, path string) {
	// What the operator once wrote into a tenant's site stays when the tenant
	// changes something else of it.
	kept := old != nil && slices.Contains(old.Spec.Hosts, host)
	granted := c.limits.Operator || kept || tenant == nil ||
		c.granted(tenant, host)
	switch {
	case c.limits.PanelHost != "" && host == c.limits.PanelHost:
		c.problem(d, path, "%q is the panel's own host: write another one", host)
		return
	case !granted && IsAddress(host):
		c.problem(d, path, "%q is an address: only the operator may use addresses as hosts, write a name", host)
		return
	case !granted:
		c.problem(d, path, "%q is not granted to you: %s", host, grants(tenant))
		return
	}
	if other := c.hosts[host]; other != nil {
		c.problem(d, path, "%q is claimed by the site %s already, at %s: keep one of them", host, other.Resource.Key(), other.At("spec.hosts"))
		return
	}
	c.hosts[host] = d
	holder, taken := c.x.HostHolder(host)
	if !taken || holder == s.Key() {
		return
	}
	// A host may move from one site to another within the set.
	if giver := c.docs[holder]; giver != nil && (giver.broken || !slices.Contains(giver.Resource.(*serai.Site).Spec.Hosts, host)) {
		return
	}
	if c.limits.Operator || holder.Tenant == s.Meta.Tenant {
		c.problem(d, path, "%q belongs to the site %s: take it from there first, or write another one", host, holder)
		return
	}
	c.problem(d, path, "%q belongs to somebody else: write another one, or ask the operator", host)
}

// granted reports whether a host is the tenant's to claim: of all grants that
// cover it the closest counts. Who has *.example.com has not the
// shop.example.com that somebody else was given by name, used or not.
func (c *checker) granted(t *serai.Tenant, host string) bool {
	for _, grant := range grantsOf(host) {
		if slices.Contains(t.Spec.Hosts, grant) {
			return true
		}
		if len(c.x.Grantees(grant)) > 0 {
			return false
		}
	}
	return false
}

func grants(t *serai.Tenant) string {
	switch n := len(t.Spec.Hosts); {
	case n == 0:
		return "ask the operator for a grant, you have none"
	case n > 5:
		return "yours are " + strings.Join(t.Spec.Hosts[:5], ", ") + " and others, ask the operator for more"
	}
	return "yours are " + strings.Join(t.Spec.Hosts, ", ") + ", ask the operator for more"
}

// preload checks the zygote set. Sets of the operator's own making are the
// operator's to give out, but a tenant may keep the one it was given.
func (c *checker) preload(d *Doc, s, old *serai.Site) {
	if s.Spec.Perl == nil {
		return
	}
	name := s.Spec.Perl.Preload
	if name == serai.PreloadNone || old != nil && old.Spec.Perl != nil && old.Spec.Perl.Preload == name && !c.limits.Operator {
		return
	}
	choice := []string{serai.PreloadNone}
	for _, z := range c.limits.Zygotes {
		if c.limits.Operator || z == StandardZygote {
			choice = append(choice, z)
		}
	}
	if slices.Contains(choice, name) {
		return
	}
	slices.Sort(choice)
	c.problem(d, "spec.perl.preload", "there is no zygote set %q to choose: write one of %s", name, strings.Join(choice, ", "))
}

// planOf returns the plan of a tenant as it will be, or nil where it is not
// known.
func (c *checker) planOf(t *serai.Tenant) *serai.Plan {
	if t == nil {
		return nil
	}
	key := serai.Key{Kind: serai.KindPlan, Name: t.Spec.Plan}
	if d := c.docs[key]; d != nil {
		if d.broken {
			return nil
		}
		return d.Resource.(*serai.Plan)
	}
	if r, ok := c.x.Get(key); ok {
		return r.(*serai.Plan)
	}
	return nil
}

func (c *checker) workers(d *Doc, s *serai.Site, plan *serai.Plan) {
	w := &s.Spec.Workers
	switch {
	case w.Max <= plan.Spec.Workers:
	case d.Has("spec.workers.max"):
		c.problem(d, "spec.workers.max", "%d is more than the plan %s allows: write at most %d", w.Max, plan.Key(), plan.Spec.Workers)
	case w.Min > plan.Spec.Workers:
		c.problem(d, "spec.workers.min", "%d is more than the plan %s allows: write at most %d", w.Min, plan.Key(), plan.Spec.Workers)
	default:
		w.Max = plan.Spec.Workers
	}
}

// counts checks the number of sites. A plan that was lowered takes no site
// away: only new ones are too many.
func (c *checker) counts() {
	for name, added := range c.sites {
		var tenant *serai.Tenant
		key := serai.Key{Kind: serai.KindTenant, Name: name}
		if d := c.docs[key]; d != nil {
			if !d.broken {
				tenant = d.Resource.(*serai.Tenant)
			}
		} else if r, ok := c.x.Get(key); ok {
			tenant = r.(*serai.Tenant)
		}
		plan := c.planOf(tenant)
		if plan == nil {
			continue
		}
		room := max(plan.Spec.Sites-len(c.x.SitesOf(name)), 0)
		for _, d := range added[min(room, len(added)):] {
			c.problem(d, "metadata.name", "is one site too many: the plan %s allows %d", plan.Key(), plan.Spec.Sites)
		}
	}
}
