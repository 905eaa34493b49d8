package serai

// A Plan is a set of limits, an isolation tier and prices. It is the
// operator's.
type Plan struct {
	Type
	Meta   Meta       `json:"metadata"`
	Spec   PlanSpec   `json:"spec"`
	Status PlanStatus `json:"status,omitzero"`
}

// PlanSpec is what a plan grants each tenant.
type PlanSpec struct {
	Memory    Bytes    `json:"memory"`    // hard cap over all the tenant runs
	CPU       MilliCPU `json:"cpu"`       // sustained; unused CPU may be borrowed
	Processes int64    `json:"processes"` // hard cap
	Disk      Bytes    `json:"disk,omitempty"`
	Workers   int      `json:"workers"` // requests at once in application code
	Queue     Queue    `json:"queue"`
	Sites     int      `json:"sites"`
	Traffic   Bytes    `json:"traffic,omitempty"` // a month, soft
	Body      Body     `json:"body"`
	Reply     Reply    `json:"reply"`
	Mail      Mail     `json:"mail"`
	Merge     bool     `json:"merge,omitempty"` // pages of its sites that are alike are kept once
	Isolation string   `json:"isolation"`
	Price     *Price   `json:"price,omitempty"`
}

// Queue bounds the requests of a site that wait for a worker.
type Queue struct {
	Length int      `json:"length"`
	Wait   Duration `json:"wait"`
}

// Body bounds a request's body: Max in all, Buffer of it in memory before a
// worker is taken, the rest on disk.
type Body struct {
	Max    Bytes `json:"max"`
	Buffer Bytes `json:"buffer"`
}

// Reply bounds what is taken off a worker ahead of a slow client: Buffer in
// memory, then Spool on disk.
type Reply struct {
	Buffer Bytes `json:"buffer"`
	Spool  Bytes `json:"spool"`
}

// Mail bounds what a tenant sends. A message counts once for each recipient,
// hours from the full hour, days from midnight UTC.
type Mail struct {
	Hour       int64 `json:"hour"`       // mails an hour
	Day        int64 `json:"day"`        // mails a day
	Recipients int   `json:"recipients"` // of one message
	Size       Bytes `json:"size"`       // of one message
}

// Price is the price table of a plan.
type Price struct {
	Currency      string  `json:"currency"` // ISO 4217
	Month         Decimal `json:"month,omitempty"`
	MemoryGiBHour Decimal `json:"memoryGiBHour,omitempty"`
	CPUHour       Decimal `json:"cpuHour,omitempty"`
	TrafficGiB    Decimal `json:"trafficGiB,omitempty"`
	DiskGiBMonth  Decimal `json:"diskGiBMonth,omitempty"`
}

// PlanStatus says which fields are stored but not yet enforced.
type PlanStatus struct {
	ObservedGeneration int64             `json:"observedGeneration,omitempty"`
	Conditions         Conditions        `json:"conditions,omitempty"`
	Enforced           map[string]string `json:"enforced,omitempty"` // field path → "no"
}

// DefaultPlanSpec is what fields that a manifest leaves out are.
func DefaultPlanSpec() PlanSpec {
	return PlanSpec{
		Memory: 256 << 20, CPU: 500, Processes: 100, Workers: 8,
		Queue: Queue{Length: 100, Wait: Duration(10e9)}, Sites: 10,
		Body:  Body{Max: 100 << 20, Buffer: 1 << 20},
		Reply: Reply{Buffer: 1 << 20, Spool: 64 << 20},
		Mail:  Mail{Hour: 100, Day: 500, Recipients: 50, Size: 10 << 20}, Isolation: "account",
	}
}

// Key implements Resource.
func (p *Plan) Key() Key { return Key{Kind: KindPlan, Name: p.Meta.Name} }

// GetMeta implements Resource.
func (p *Plan) GetMeta() *Meta { return &p.Meta }

// SpecOf implements Resource.
func (p *Plan) SpecOf() any { return &p.Spec }

// StatusOf implements Resource.
func (p *Plan) StatusOf() any { return &p.Status }

// Clone implements Resource.
func (p *Plan) Clone() Resource { return clone(p) }
