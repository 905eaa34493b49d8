// Package route is the language in which seraid tells the front proxy which
// host names it serves and how: records in a log in a memfd that is sealed
// against shrinking and held by serai-priv, so that a restarted proxy serves
// at once. Each record is a u32 length, a u32 CRC-32C, and a JSON Record; a
// torn last record is one whose sum does not fit.
//
// seraid appends a record for each change and tells the proxy how far the log
// reaches. When half of the log is out of date it writes a new one.
package route

import "serai.dev/serai"

// A Record changes the table: exactly one field is set.
type Record struct {
	Site   *Site   `json:"site,omitempty"`   // replaces the site of the same number
	Drop   uint32  `json:"drop,omitempty"`   // number of a site that is gone
	Tenant *Tenant `json:"tenant,omitempty"` // replaces the tenant of the same uid
	Forget uint32  `json:"forget,omitempty"` // uid of a tenant that is gone
}

// A Tenant as the proxy sees it.
type Tenant struct {
	UID     uint32 `json:"uid"`
	Name    string `json:"name"`
	Workers int    `json:"workers"` // requests at once over all its sites
	// Hosts are the tenant's grants: a wildcard of another tenant covers none
	// of them, even while no site serves them.
	Hosts []string `json:"hosts,omitempty"`
}

// A Site as the proxy sees it.
type Site struct {
	Number uint32   `json:"number"`
	UID    uint32   `json:"uid"`
	Tenant string   `json:"tenant"`
	Name   string   `json:"name"`
	Hosts  []string `json:"hosts"` // claimed: exact, or *.suffix
	// Closed answers every request with 503 and this sentence where not empty.
	Closed string  `json:"closed,omitempty"`
	Launch int64   `json:"launch"` // workers of an older launch are retired
	Files  []Files `json:"files,omitempty"`
	// Prefixes are the URL prefixes the engine answers; empty is all. Others
	// that no Files entry answers are 404.
	Prefixes []string      `json:"prefixes,omitempty"`
	Mounts   []Mount       `json:"mounts,omitempty"`
	Workers  serai.Workers `json:"workers"`
	Queue    serai.Queue   `json:"queue"`
	Body     serai.Body    `json:"body"`
	Reply    serai.Reply   `json:"reply"`
}

// Files is a URL prefix whose files the proxy serves. Index is its place in
// the launch record's Files. Dir is what stands there: it is never opened by
// that name, but tells that another directory has taken the place.
type Files struct {
	Prefix string `json:"prefix"`
	Index  int    `json:"index"`
	Dir    string `json:"dir,omitempty"`
}

// A Mount is a URL prefix that the workers of another site answer, one of the
// operator's catalogue, whatever else is there.
type Mount struct {
	Prefix string `json:"prefix"`
	Site   uint32 `json:"site,omitempty"` // number; 0 where there is none now
	// Env is what its workers are told with each request of this mount.
	Env map[string]string `json:"env,omitempty"`
}

// The messages between seraid and the proxy on proxy.sock: one JSON object a
// line, both ways. seraid connects; the newest connection is the one served.

// ToProxy is a line from seraid: exactly one field is set.
type ToProxy struct {
	// Routes: the log of this epoch reaches to this offset. A new epoch is a
	// new log: ask serai-priv for it.
	Routes *Extent `json:"routes,omitempty"`
	Stats  bool    `json:"stats,omitempty"` // answer with Stats
}

// FromProxy is a line from the proxy: exactly one field is set, but for PID.
type FromProxy struct {
	Applied *Extent     `json:"applied,omitempty"` // the table is that far
	PID     int         `json:"pid,omitempty"`     // of the proxy; comes with Applied
	Broken  *Broken     `json:"broken,omitempty"`
	Stats   []SiteStats `json:"stats,omitempty"`
	// StatsEnd ends the answer to Stats, which comes in several lines.
	StatsEnd bool `json:"statsEnd,omitempty"`
}

// Extent is a place in a log. The epoch is the first 8 bytes of the log, big
// endian, before the first record; offsets count from the log's start.
type Extent struct {
	Epoch  uint64 `json:"epoch"`
	Offset int64  `json:"offset"`
}

// Broken is a request whose worker went away in the middle of it.
type Broken struct {
	Site    uint32 `json:"site"`
	PID     int    `json:"pid"`
	Request string `json:"request"` // id, as in the error page and the log
	Method  string `json:"method"`
	Host    string `json:"host"`
	Path    string `json:"path"`
	Cause   string `json:"cause"`            // died, timeout, protocol
	Killed  string `json:"killed,omitempty"` // for memory: KilledYes, KilledNo, or "" where that is not known
	Detail  string `json:"detail,omitempty"`
	// State and Wait are those of privsep.Killed, of a worker that took too
	// long and did not leave when it was asked to.
	State string `json:"state,omitempty"`
	Wait  string `json:"wait,omitempty"`
}

// What is known of the end of a worker.
const (
	KilledYes = "yes"
	KilledNo  = "no"
)

// SiteStats are the counters of a site since the proxy started.
type SiteStats struct {
	Site     uint32           `json:"site"`
	Requests int64            `json:"requests"`
	Status   map[string]int64 `json:"status,omitempty"` // "2xx" …
	BytesIn  int64            `json:"bytesIn"`
	BytesOut int64            `json:"bytesOut"`
	QueueNs  int64            `json:"queueNs"`
	WorkerNs int64            `json:"workerNs"`
	Idle     int              `json:"idle"`
	Busy     int              `json:"busy"`
	Queued   int              `json:"queued"`
	Wakes    int64            `json:"wakes"` // requests that found no worker and no loaded process
	Workers  []WorkerStats    `json:"workers,omitempty"`
	Left     map[string]int64 `json:"left,omitempty"` // workers that are no more, by reason: LeftRequests …
}

// Why a worker is no more.
const (
	LeftRequests = "requests" // it has served workers.requests
	LeftSize     = "size"     // it has grown above workers.size
	LeftCode     = "code"     // the site's code wanted it
	LeftIdle     = "idle"     // too little to do
	LeftReload   = "reload"   // of an older launch, or of a site that was closed
	LeftTimeout  = "timeout"  // a request took longer than workers.timeout
	LeftMemory   = "memory"   // the kernel killed it for memory in a request
	LeftDied     = "died"
	LeftProtocol = "protocol" // it broke the worker protocol
	LeftProxy    = "proxy"    // left alone in a request: its client had gone, or our disk failed
)

// WorkerStats is one connected worker.
type WorkerStats struct {
	PID      int   `json:"pid"`
	Launch   int64 `json:"launch"`
	Requests int64 `json:"requests"`
	Busy     bool  `json:"busy"`
	SinceMs  int64 `json:"sinceMs"` // connected since
	// RequestMs is for how long it has had the request that it serves.
	RequestMs int64 `json:"requestMs,omitempty"`
}
