package client

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"serai.dev/serai"
)

// The bodies of the API, as JSON. The server speaks these same types.

// Identity is who the server takes the caller for.
type Identity struct {
	Class  string `json:"class"` // operator, tenant, site
	UID    uint32 `json:"uid"`
	Tenant string `json:"tenant,omitempty"` // of a tenant, or of the tenant whose site the caller's code is
	Site   string `json:"site,omitempty"`   // of a site's code
}

// List is resources of one kind in order of name.
type List struct {
	Items []json.RawMessage `json:"items"`
	// Revision is opaque: the list was true at it.
	Revision string `json:"revision"`
}

// File is one file of manifests.
type File struct {
	Name string `json:"name"` // shown in messages only
	Text string `json:"text"`
}

// ApplyRequest asks for the resources of files. The whole is checked before
// the first write.
type ApplyRequest struct {
	Files  []File `json:"files"`
	DryRun bool   `json:"dryRun,omitempty"` // say what would be done
	// Prune deletes what the files do not name: sites of the tenants that the
	// files speak of; tenants, where the files hold a Tenant; plans, where
	// they hold a Plan.
	Prune bool `json:"prune,omitempty"`
}

// The actions of a Result.
const (
	Created   = "created"
	Updated   = "updated"
	Unchanged = "unchanged"
	Deleted   = "deleted"
	Refused   = "refused"
)

// Result is what became of one resource.
type Result struct {
	Key        serai.Key `json:"key"`
	Action     string    `json:"action"`            // created, updated, unchanged, deleted, refused
	Message    string    `json:"message,omitempty"` // why it was refused
	Hint       string    `json:"hint,omitempty"`
	Revision   string    `json:"revision,omitempty"`
	Generation int64     `json:"generation,omitempty"`
	// Before and After are YAML, in the answer to a dry run only.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// ApplyResponse has a Result for each resource, in the order they were done.
type ApplyResponse struct {
	Results []Result `json:"results"`
}

// LaunchResult tells how a restart or reload ended.
type LaunchResult struct {
	Loaded  bool   `json:"loaded"`
	PID     int    `json:"pid,omitempty"`
	Millis  int64  `json:"millis"`            // from the request to loaded
	Message string `json:"message,omitempty"` // of the site's code, where not loaded
}

// Running is what runs of a site. Counters are those since the front proxy
// started; what cannot be asked is left out.
type Running struct {
	Phase    string           `json:"phase,omitempty"`  // off, asleep, starting, running, backoff; empty is unknown
	PID      int              `json:"pid,omitempty"`    // of the main process: the loaded process, or the only worker
	Memory   *Memory          `json:"memory,omitempty"` // of the main process
	Launch   int64            `json:"launch,omitempty"`
	Requests int64            `json:"requests"`
	Status   map[string]int64 `json:"status,omitempty"` // requests by kind of answer: "2xx" …
	BytesIn  int64            `json:"bytesIn"`
	BytesOut int64            `json:"bytesOut"`
	Idle     int              `json:"idle"` // workers
	Busy     int              `json:"busy"`
	Queued   int              `json:"queued"` // requests
	Wakes    int64            `json:"wakes"`
	Workers  []Worker         `json:"workers,omitempty"` // in order of age, the oldest first
	// Left counts the workers that are no more, by reason: requests, size,
	// timeout (the limits of spec.workers), memory (killed by the kernel in a
	// request), died, protocol (killed for a breach of the worker protocol), code
	// (the site's code wanted it), idle, reload, proxy (given up in a request
	// whose client had gone).
	Left   map[string]int64 `json:"left,omitempty"`
	Starts *Starts          `json:"starts,omitempty"`
}

// Worker is one process that serves a site.
type Worker struct {
	PID       int     `json:"pid"`
	Launch    int64   `json:"launch"`
	Requests  int64   `json:"requests"` // served by it, with the one that it serves
	Busy      bool    `json:"busy"`
	RequestMs int64   `json:"requestMs,omitempty"` // it has had its request for so long, in milliseconds
	SinceMs   int64   `json:"sinceMs"`             // connected for so long, in milliseconds
	Memory    *Memory `json:"memory,omitempty"`
}

// Memory is that of one process, in bytes.
type Memory struct {
	Private int64 `json:"private"` // pages that it has alone: what spec.workers.size bounds
	Shared  int64 `json:"shared"`  // pages that other processes have too
	PSS     int64 `json:"pss"`     // private, and of each shared page its part
	Swap    int64 `json:"swap"`    // swapped out
}

// Starts are the last starts of a site's main process: from the request that
// woke it, or from the wish for a launch, to loaded code.
type Starts struct {
	Last     time.Time `json:"last"`
	Millis   []int64   `json:"millis"` // at most 20, the newest last
	MedianMs int64     `json:"medianMs"`
	MaxMs    int64     `json:"maxMs"`
}

// Sent is a message that the relay took.
type Sent struct {
	ID     string `json:"id"`     // in the log and in the message's Received field
	Answer string `json:"answer"` // the relay's
}

// Mailed is what a tenant has mailed, counted as its plan counts.
type Mailed struct {
	Hour   int64 `json:"hour"`   // since the full hour
	OfHour int64 `json:"ofHour"` // that the plan allows
	Day    int64 `json:"day"`    // since midnight UTC
	OfDay  int64 `json:"ofDay"`  // that the plan allows
}

// Catalogue is what sites may mount, in order of name.
type Catalogue struct {
	Items []Entry `json:"items"`
}

// Entry is scripts of the operator that sites may mount.
type Entry struct {
	Name     string                   `json:"name"`
	Title    string                   `json:"title"`
	Version  string                   `json:"version"`
	Settings map[string]serai.Setting `json:"settings,omitempty"`
	Sites    []string                 `json:"sites,omitempty"` // that mount it; for operators
}

// Description is one resource with what surrounds it.
type Description struct {
	Resource json.RawMessage `json:"resource"`
	Running  *Running        `json:"running,omitempty"` // of a Site
	Sites    []string        `json:"sites,omitempty"`   // of a Tenant
	Tenants  []string        `json:"tenants,omitempty"` // of a Plan
	Mail     *Mailed         `json:"mail,omitempty"`    // of a Tenant
	Events   []serai.Event   `json:"events,omitempty"`  // the last ones, oldest first
	Warning  string          `json:"warning,omitempty"` // what could not be asked, and why
}

// Events is a list of events, oldest first.
type Events struct {
	Items []serai.Event `json:"items"`
}

// Status is what runs of Serai itself.
type Status struct {
	Version   string    `json:"version"`
	Started   time.Time `json:"started"` // seraid
	Processes []Process `json:"processes,omitempty"`
	Zygotes   []Zygote  `json:"zygotes,omitempty"`
	Cgroup    string    `json:"cgroup,omitempty"` // version and place of the cgroups
	Listen    []string  `json:"listen,omitempty"` // addresses of the front proxy
	Plans     int       `json:"plans"`
	Tenants   int       `json:"tenants"`
	Sites     int       `json:"sites"`
	// Phases counts the sites by phase.
	Phases map[string]int `json:"phases,omitempty"`
	// Pending is how many resources wait to be reconciled.
	Pending int `json:"pending"`
}

// Process is one of Serai's own.
type Process struct {
	Name    string    `json:"name"` // serai-priv, seraid, serai-proxy
	State   string    `json:"state"`
	PID     int       `json:"pid,omitempty"`
	Version string    `json:"version,omitempty"`
	Started time.Time `json:"started,omitzero"`
}

// Zygote is a process from which sites are forked.
type Zygote struct {
	Name    string   `json:"name"`
	State   string   `json:"state"` // up, down
	PID     int      `json:"pid,omitempty"`
	Missing []string `json:"missing,omitempty"` // modules that are not installed
	Message string   `json:"message,omitempty"`
}

// ErrorBody is the body of every answer that is an error.
type ErrorBody struct {
	Error Failure `json:"error"`
}

// Failure is an error on its way to the caller.
type Failure struct {
	Kind     string    `json:"kind"` // a name of serai.Kind
	Message  string    `json:"message"`
	Hint     string    `json:"hint,omitempty"`
	Problems []Problem `json:"problems,omitempty"`
}

// Problem is one mistake in a file of manifests.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // from 1; 0 where only the file is known
	Column  int    `json:"column,omitempty"`
	Path    string `json:"path,omitempty"` // of the field
	Message string `json:"message"`
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	return b.String() + p.Message
}

// Problems is all the mistakes of a set of files, and the cause of the error
// that Apply returns for them.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}
