package serai

import "encoding/json"

// A Site is one or more host names served by one engine from one directory of
// a tenant.
type Site struct {
	Type
	Meta   Meta       `json:"metadata"`
	Spec   SiteSpec   `json:"spec"`
	Status SiteStatus `json:"status,omitzero"`
}

// SiteSpec is what is wanted of a site.
type SiteSpec struct {
	Hosts  []string `json:"hosts"`
	Root   string   `json:"root"` // relative to the tenant's home, no links
	Engine string   `json:"engine"`
	Perl   *Perl    `json:"perl,omitempty"`
	// Files maps URL prefixes to directories relative to Root, served by the
	// proxy without a worker.
	Files   map[string]string `json:"files,omitempty"`
	Workers Workers           `json:"workers"`
	Env     map[string]string `json:"env,omitempty"`
	Jobs    []Job             `json:"jobs,omitempty"`
	Daemons []Daemon          `json:"daemons,omitempty"`
	// Mount maps URL prefixes to entries of the operator's catalogue, which
	// answer there.
	Mount map[string]Mount `json:"mount,omitempty"`
	// Catalogue makes the site an entry of the catalogue. The server writes it.
	Catalogue *Catalogue `json:"catalogue,omitempty"`
	// Stopped is what `serai stop` and `serai start` change.
	Stopped bool `json:"stopped,omitempty"`
}

// Perl is the block of the engine perl. Exactly one of App and Scripts is set.
// All paths are relative to the site's root.
type Perl struct {
	App     string            `json:"app,omitempty"`     // a PSGI file
	Scripts map[string]string `json:"scripts,omitempty"` // URL prefix → directory of CGI scripts
	Startup string            `json:"startup,omitempty"` // run once before the code is loaded
	Inc     []string          `json:"inc,omitempty"`     // before @INC
	Preload string            `json:"preload,omitempty"` // name of a zygote set, or "none"
	Reload  string            `json:"reload,omitempty"`  // ReloadChange, or empty: when somebody asks
	// Persistent is whether scripts are compiled once and kept; nil is true.
	Persistent *bool    `json:"persistent,omitempty"`
	PerRequest []string `json:"perRequest,omitempty"` // scripts that are not, as files beneath the root
}

// A Mount is an entry of the catalogue in a site, with the site's settings.
type Mount struct {
	Use      string            `json:"use"` // name of the entry
	Settings map[string]string `json:"settings,omitempty"`
}

// CatalogueTenant is the operator's own tenant, in which the scripts of the
// catalogue run. Its sites are the entries; they have no hosts.
const CatalogueTenant = "catalogue"

// Catalogue is what makes a Site an entry of the catalogue.
type Catalogue struct {
	Title    string             `json:"title"`
	Version  string             `json:"version"` // of its files
	Settings map[string]Setting `json:"settings,omitempty"`
}

// A Setting of an entry is given by the sites that mount it.
type Setting struct {
	Type     string `json:"type"` // text, number, boolean, addresses
	Default  string `json:"default,omitempty"`
	Required bool   `json:"required,omitempty"`
	Meaning  string `json:"meaning,omitempty"`
}

// EntryKey is the key of an entry of the catalogue.
func EntryKey(name string) Key { return Key{Kind: KindSite, Tenant: CatalogueTenant, Name: name} }

// ReloadChange has the code loaded anew when a file of it changes.
const ReloadChange = "change"

// PreloadNone asks for a fresh perl instead of a zygote.
const PreloadNone = "none"

// Workers bounds the processes that serve a site.
type Workers struct {
	Min      int      `json:"min"`
	Max      int      `json:"max"`
	Idle     Duration `json:"idle"`              // an idle worker is retired after it
	Requests int      `json:"requests"`          // a worker is replaced after so many; 0 is never
	Size     Bytes    `json:"size,omitempty"`    // a worker with more private memory is replaced; 0 is never
	Timeout  Duration `json:"timeout,omitempty"` // of one request in a worker
	Slow     Duration `json:"slow,omitempty"`    // a request that takes longer is told of in the site's log; 0 is none
}

// DefaultWorkers is what fields that a manifest leaves out are.
func DefaultWorkers() Workers {
	return Workers{Max: 4, Idle: Duration(5 * 60e9), Requests: 1000, Timeout: Duration(60e9)}
}

// SiteStatus is what was seen of a site.
type SiteStatus struct {
	ObservedGeneration int64      `json:"observedGeneration,omitempty"`
	Conditions         Conditions `json:"conditions,omitempty"`
	// Claimed are the hosts of the specification that the site holds.
	Claimed []string `json:"claimed,omitempty"`
	// Launch counts restarts and reloads that were asked for; a worker of an
	// older launch is retired.
	Launch int64 `json:"launch,omitempty"`
	// Serving is the newest launch whose code has loaded: what serves where
	// the newest of all did not load.
	Serving int64 `json:"serving,omitempty"`
	// Runs counts the processes of jobs and daemons that were started.
	Runs    int64          `json:"runs,omitempty"`
	Jobs    []JobStatus    `json:"jobs,omitempty"`
	Daemons []DaemonStatus `json:"daemons,omitempty"`
}

// Key implements Resource.
func (s *Site) Key() Key { return Key{Kind: KindSite, Tenant: s.Meta.Tenant, Name: s.Meta.Name} }

// GetMeta implements Resource.
func (s *Site) GetMeta() *Meta { return &s.Meta }

// SpecOf implements Resource.
func (s *Site) SpecOf() any { return &s.Spec }

// StatusOf implements Resource.
func (s *Site) StatusOf() any { return &s.Status }

// Clone implements Resource.
func (s *Site) Clone() Resource { return clone(s) }

// clone copies by way of JSON: a resource is made of nothing that JSON loses.
func clone[T any](v *T) *T {
	b, err := json.Marshal(v)
	if err != nil {
		panic("serai: a resource that is no JSON: " + err.Error())
	}
	c := new(T)
	if err := json.Unmarshal(b, c); err != nil {
		panic("serai: a resource that does not read back: " + err.Error())
	}
	return c
}
