package serai

import "time"

// The kinds of resources.
const (
	KindPlan   = "Plan"
	KindTenant = "Tenant"
	KindSite   = "Site"
)

// A Resource is a *Plan, *Tenant or *Site.
type Resource interface {
	Key() Key
	GetMeta() *Meta
	// Clone is a deep copy.
	Clone() Resource
	// SpecOf points to the specification, StatusOf to the status, so that a
	// store can compare, keep and replace either without knowing the kind.
	SpecOf() any
	StatusOf() any
}

// Progress points into a resource's status: the generation of the specification
// that it speaks of, and the conditions.
func Progress(r Resource) (observed *int64, conditions *Conditions) {
	switch r := r.(type) {
	case *Plan:
		return &r.Status.ObservedGeneration, &r.Status.Conditions
	case *Tenant:
		return &r.Status.ObservedGeneration, &r.Status.Conditions
	case *Site:
		return &r.Status.ObservedGeneration, &r.Status.Conditions
	}
	return new(int64), new(Conditions)
}

// Key names one resource. Tenant is set for a Site only.
type Key struct {
	Kind   string `json:"kind"`
	Tenant string `json:"tenant,omitempty"`
	Name   string `json:"name"`
}

// String is how people write the name: small, alice, alice/shop.
func (k Key) String() string {
	if k.Tenant != "" {
		return k.Tenant + "/" + k.Name
	}
	return k.Name
}

// NewResource makes an empty resource of a kind, or nil for an unknown kind.
func NewResource(kind string) Resource {
	switch kind {
	case KindPlan:
		return &Plan{Type: Type{APIVersion, KindPlan}}
	case KindTenant:
		return &Tenant{Type: Type{APIVersion, KindTenant}}
	case KindSite:
		return &Site{Type: Type{APIVersion, KindSite}}
	}
	return nil
}

// Type says what a document is.
type Type struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// Meta is what all resources have. All but Name, Tenant and Finalizers is set
// by the store.
type Meta struct {
	Name   string `json:"name"`
	Tenant string `json:"tenant,omitempty"` // a Site's
	// ID is given out once within a state directory and never again. A
	// tenant's is its uid, a site's its number.
	ID int64 `json:"id,omitempty"`
	// Revision is opaque. An update must carry the revision that was read.
	Revision string `json:"revision,omitempty"`
	// Generation counts the changes of the specification, from 1.
	Generation int64      `json:"generation,omitempty"`
	Created    time.Time  `json:"created,omitzero"`
	Deleted    *time.Time `json:"deleted,omitempty"` // set once deletion was asked for
	// Finalizers hold a deleted resource until their owners removed them.
	Finalizers []string `json:"finalizers,omitempty"`
}

// A Condition is one thing that is true, false or unknown of a resource.
type Condition struct {
	Type    string    `json:"type"`   // Ready, Routed, Loaded, HostTaken, …
	Status  Status    `json:"status"` // True, False, Unknown
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"` // one sentence for a person
	Since   time.Time `json:"since,omitzero"`
}

// Status of a condition.
type Status string

// The three values of Status.
const (
	True    Status = "True"
	False   Status = "False"
	Unknown Status = "Unknown"
)

// The types of conditions.
const (
	Ready     = "Ready"     // all is as the specification wants it
	Routed    = "Routed"    // a site: the proxy serves its hosts
	Loaded    = "Loaded"    // a site: its code loaded at the last try
	Merging   = "Merging"   // a plan with merge: the kernel merges pages that are alike
	HostTaken = "HostTaken" // a site: a host of it belongs to somebody else
)

// Conditions is a list with at most one entry a type.
type Conditions []Condition

// Get returns the condition of a type; its Status is Unknown if there is none.
func (cs Conditions) Get(typ string) Condition {
	for _, c := range cs {
		if c.Type == typ {
			return c
		}
	}
	return Condition{Type: typ, Status: Unknown}
}

// Set replaces the condition of c's type and reports whether anything but the
// time changed. Since is kept while the status stays the same.
func (cs *Conditions) Set(c Condition, now time.Time) bool {
	for i, old := range *cs {
		if old.Type != c.Type {
			continue
		}
		c.Since = old.Since
		if old == c {
			return false
		}
		if old.Status != c.Status {
			c.Since = now
		}
		(*cs)[i] = c
		return true
	}
	c.Since = now
	*cs = append(*cs, c)
	return true
}

// Remove drops the condition of a type and reports whether there was one.
func (cs *Conditions) Remove(typ string) bool {
	for i, c := range *cs {
		if c.Type == typ {
			*cs = append((*cs)[:i], (*cs)[i+1:]...)
			return true
		}
	}
	return false
}

// An Event is something that happened, kept for `serai events`.
type Event struct {
	ID       int64             `json:"id,omitempty"` // rises; set by the store
	Time     time.Time         `json:"time"`
	Severity string            `json:"severity"` // info, warning, error
	Reason   string            `json:"reason"`   // one CamelCase word, stable: Started, OutOfMemory, …
	Tenant   string            `json:"tenant,omitempty"`
	Site     string            `json:"site,omitempty"`
	Message  string            `json:"message"`          // one sentence
	Fields   map[string]string `json:"fields,omitempty"` // request, pid, cap, peak, …
}
