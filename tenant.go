package serai

// A Tenant is a customer: one account, one plan. It is the operator's.
type Tenant struct {
	Type
	Meta   Meta         `json:"metadata"`
	Spec   TenantSpec   `json:"spec"`
	Status TenantStatus `json:"status,omitzero"`
}

// TenantSpec is what the operator wants of a tenant.
type TenantSpec struct {
	Plan    string  `json:"plan"`
	Account Account `json:"account"`
	// Hosts is what the tenant's own Sites may claim: exact names and
	// wildcards such as *.example.com.
	Hosts     []string `json:"hosts,omitempty"`
	Contact   string   `json:"contact,omitempty"`
	Suspended bool     `json:"suspended,omitempty"`
}

// Account says where the tenant's account comes from: exactly one is set.
type Account struct {
	Create bool   `json:"create,omitempty"` // made by us, named as the tenant (with the configured prefix)
	Adopt  string `json:"adopt,omitempty"`  // an account that exists
}

// TenantStatus is what was seen of a tenant.
type TenantStatus struct {
	ObservedGeneration int64             `json:"observedGeneration,omitempty"`
	Conditions         Conditions        `json:"conditions,omitempty"`
	UID                uint32            `json:"uid,omitempty"`
	Account            string            `json:"account,omitempty"` // name of the account
	Home               string            `json:"home,omitempty"`
	Enforced           map[string]string `json:"enforced,omitempty"`
}

// Key implements Resource.
func (t *Tenant) Key() Key { return Key{Kind: KindTenant, Name: t.Meta.Name} }

// GetMeta implements Resource.
func (t *Tenant) GetMeta() *Meta { return &t.Meta }

// SpecOf implements Resource.
func (t *Tenant) SpecOf() any { return &t.Spec }

// StatusOf implements Resource.
func (t *Tenant) StatusOf() any { return &t.Status }

// Clone implements Resource.
func (t *Tenant) Clone() Resource { return clone(t) }
