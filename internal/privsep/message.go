// Package privsep is the language between serai-priv, which holds the root
// power, and the two processes that have none: one JSON object a packet over a
// SOCK_SEQPACKET socket pair, with descriptors beside it where a message says
// so. It also holds the unprivileged side's stub.
//
// A peer asks with a Request that has an ID, and gets one Reply with the same
// ID. Events come unasked, with ID 0. Messages carry names and numbers, never
// a path or command that the monitor could derive itself. A packet that is too
// large, is no such object, has an unknown field or an unknown op is a breach:
// the monitor drops the peer and starts it anew.
package privsep

import (
	"encoding/json"
	"time"

	"golang.org/x/sys/unix"
)

// MaxPacket is the size of the largest packet, in bytes.
const MaxPacket = 128 << 10

// MaxBlock is the size of the largest Launch.Block, in bytes.
const MaxBlock = 64 << 10

// A Request to the monitor.
type Request struct {
	ID   uint64          `json:"id"` // greater than 0, chosen by the peer
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// A Reply to a request, or an event where ID is 0 and Op is set.
type Reply struct {
	ID    uint64          `json:"id"`
	Op    string          `json:"op,omitempty"` // of an event
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
	More  bool            `json:"more,omitempty"` // another Reply of this ID follows
}

// Error is a refusal: the kind is a name of serai.Kind.
type Error struct {
	Kind string `json:"kind"`
	Msg  string `json:"msg"`
	Hint string `json:"hint,omitempty"`
}

// The requests. Who may ask is in brackets; what the arguments are, what
// comes back and which descriptors travel follows the arrow.
const (
	OpState         = "state"          // [seraid] → many State, More set on all but the last
	OpCreateAccount = "create-account" // [seraid] CreateAccount → AccountInfo; one-shot helper
	OpLookupAccount = "lookup-account" // [seraid] LookupAccount → AccountInfo (adopting); refuses ids outside accounts.adopt
	OpRemoveAccount = "remove-account" // [seraid] RemoveAccount → {}; one-shot helper
	OpSetTenant     = "set-tenant"     // [seraid] Tenant → {}; takes effect at once on a live cgroup
	OpDropTenant    = "drop-tenant"    // [seraid] TenantRef → {}; drops its sites too, answers when nothing of it runs
	OpSetSite       = "set-site"       // [seraid] Launch → {}; holds a listener from now on; a running site goes on as it was started until "launch"
	OpDropSite      = "drop-site"      // [seraid] SiteRef → {}; ends what runs, removes the listener, answers when nothing of it runs
	OpLaunch        = "launch"         // [seraid] SiteRef → LaunchResult; starts the record's present code beside what runs, waits until it is loaded, then lets the old drain. What runs stays where the new failed.
	OpStop          = "stop"           // [seraid] SiteRef → {}; kills what runs; the listener stays and is polled again unless Launch.Off
	OpRun           = "run"            // [seraid] Task → TaskResult; starts a process beside the site's own, of the same walls, and waits until it is up
	OpEndTask       = "end-task"       // [seraid] EndTask → {}; SIGTERM, and SIGKILL to its leaf after the grace; answers when nothing of it runs, and forgets how it ended
	OpLogs          = "logs"           // [seraid] SiteRef → {} and the read end of the site's log pipe; Unavailable where the site sleeps
	OpSize          = "size"           // [seraid] WorkerRef → {} and a descriptor of the process's /proc/PID/smaps_rollup, which can be read again and again
	OpSetRoutes     = "set-routes"     // [seraid] {} and a memfd sealed against shrinking → {}; kept for the proxy, see package route
	OpRoutes        = "routes"         // [proxy] → {} and that memfd; NotFound before the first set-routes
	OpFiles         = "files"          // [proxy] FilesRef → {} and an O_PATH descriptor of the directory
	OpCheckListener = "check-listener" // [proxy] SiteRef → {}; a connect was refused: make the listener anew if it is dead
	OpKillWorker    = "kill-worker"    // [proxy] KillWorker → Killed; ends a process that was seen in the site's cgroup
	OpAskWorker     = "ask-worker"     // [proxy] WorkerRef → {}; has such a process write its stack to the site's log and go on
)

// The events.
const (
	EvStarted  = "started"        // to seraid, proxy: SiteEvent; the main process of a launch has loaded and accepts
	EvFailed   = "failed"         // to seraid, proxy: SiteEvent with Message and RetryMs: it did not load
	EvExited   = "exited"         // to seraid, proxy: SiteEvent with Status and Memory: the main process ended
	EvTask     = "task-ended"     // to seraid: TaskEvent; the main process of a task ended, or did not come up; kept until "end-task"
	EvReload   = "reload"         // to seraid: SiteRef; the site's own process asks for its code to be loaded anew; kept until "launch"
	EvLogs     = "logs-ready"     // to seraid: SiteRef; a log pipe exists: ask for it
	EvZygote   = "zygote"         // to seraid: ZygoteEvent; one started, failed or ended
	EvUpgrade  = "upgrade"        // to seraid: UpgradeEvent
	EvListener = "listener-renew" // to seraid: SiteRef; a site's listener was dead and was made anew
)

// SiteRef names a site by its number.
type SiteRef struct {
	Site uint32 `json:"site"`
}

// TenantRef names a tenant by uid.
type TenantRef struct {
	UID uint32 `json:"uid"`
}

// WorkerRef names a process of a site.
type WorkerRef struct {
	Site uint32 `json:"site"`
	PID  int    `json:"pid"`
}

// KillWorker ends a process of a site: at once, or, where Ask is set, after it
// was asked to write its stack to the site's log and to leave, and has had
// AskTime to do so.
type KillWorker struct {
	WorkerRef
	Ask bool `json:"ask,omitempty"`
}

// AskTime is how long a worker that was asked has got.
const AskTime = time.Second

// Killed tells how a process ended. State and Wait are set where it was asked
// and did not leave by itself: what the kernel said of it then.
type Killed struct {
	State string `json:"state,omitempty"` // the letter of proc(5): R S D T t Z
	Wait  string `json:"wait,omitempty"`  // wait channel: a function of the kernel's, or "0" for none
}

// The signals that a worker answers, see docs/reference/worker-protocol.md.
// A worker that has not said hello yet would end of them.
const (
	SignalTell  = unix.Signal(44)
	SignalLeave = unix.Signal(45)
	SignalNow   = unix.Signal(46)
)

// FilesRef names an entry of Launch.Files.
type FilesRef struct {
	Site  uint32 `json:"site"`
	Index int    `json:"index"`
}

// CreateAccount asks for an account. The monitor prefixes the name, and
// derives home and group (of the same number as the uid).
type CreateAccount struct {
	UID  uint32 `json:"uid"`
	Name string `json:"name"` // ^[a-z][a-z0-9-]{0,30}$
}

// LookupAccount asks for an account that exists.
type LookupAccount struct {
	Name string `json:"name"`
}

// RemoveAccount removes an account that create-account made; with Purge its
// home too, by a process of the tenant's uid.
type RemoveAccount struct {
	UID   uint32 `json:"uid"`
	Purge bool   `json:"purge"`
}

// AccountInfo is what /etc/passwd says.
type AccountInfo struct {
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	Name string `json:"name"`
	Home string `json:"home"`
}

// Tenant is the record of a tenant: limits of its cgroup. Name, gid and home
// come from /etc/passwd.
type Tenant struct {
	UID       uint32 `json:"uid"`
	Memory    int64  `json:"memory"`    // bytes
	CPU       int64  `json:"cpu"`       // thousandths of a CPU
	Processes int64  `json:"processes"` // count
	// Merge lets the kernel merge pages of the processes that are started from
	// now on with pages alike of others that have it.
	Merge bool `json:"merge,omitempty"`
}

// Launch is the launch record of a site: all that serai-priv needs to start it
// while seraid is down.
type Launch struct {
	Site   uint32 `json:"site"`   // number, given out once
	UID    uint32 `json:"uid"`    // of a tenant set before
	Launch int64  `json:"launch"` // SiteStatus.Launch; passed to the workers
	Root   string `json:"root"`   // relative to the home, clean, no ".."
	Zygote string `json:"zygote"` // a name of the configuration's zygotes, or "none"
	Off    bool   `json:"off"`    // stopped or suspended: hold the listener, do not poll it
	// Files are directories relative to Root that the proxy may be given.
	Files []string `json:"files,omitempty"`
	// Block is passed on to the site's own process as it is, and read there
	// under the tenant's uid. It holds environment values that may be secret.
	Block []byte `json:"block"`
}

// LaunchResult tells how a launch ended.
type LaunchResult struct {
	Loaded  bool   `json:"loaded"`
	PID     int    `json:"pid,omitempty"`
	Millis  int64  `json:"millis"`            // from the request to loaded
	Message string `json:"message,omitempty"` // of the site's code, where not loaded; hostile text
}

// Task is one process of a site that serves no request: a run of a job or of a
// daemon.
type Task struct {
	Site uint32 `json:"site"`
	Task int64  `json:"task"` // given out once by the site, see serai.Run
	// Awake keeps the site's loaded code loaded while the task runs.
	Awake bool `json:"awake,omitempty"`
	// Block is passed on to the task's process as it is, and read there under
	// the tenant's uid. It names the command.
	Block []byte `json:"block"`
}

// TaskResult tells whether a task is up: it has given up all but the tenant's
// rights and goes on to its command.
type TaskResult struct {
	Up  bool `json:"up"`
	PID int  `json:"pid,omitempty"`
}

// EndTask ends a task.
type EndTask struct {
	Site    uint32 `json:"site"`
	Task    int64  `json:"task"`
	GraceMs int64  `json:"graceMs"` // between SIGTERM and SIGKILL, at most a minute
}

// TaskState is a task that runs or whose end was not asked about.
type TaskState struct {
	Task  int64      `json:"task"`
	PID   int        `json:"pid,omitempty"`
	Ended *TaskEvent `json:"ended,omitempty"`
}

// TaskEvent tells how a task ended.
type TaskEvent struct {
	Site    uint32    `json:"site"`
	Task    int64     `json:"task"`
	PID     int       `json:"pid,omitempty"`
	Time    time.Time `json:"time"`
	Status  int       `json:"status,omitempty"`  // as wait(2) gives it
	Message string    `json:"message,omitempty"` // why it did not come up
	Memory  Memory    `json:"memory,omitzero"`   // read before the cgroup went
}

// State is what the monitor holds of one tenant or of one site.
type State struct {
	Tenant *Tenant    `json:"tenant,omitempty"`
	Site   *SiteState `json:"site,omitempty"`
}

// SiteState is the record of a site without its block, and what runs.
type SiteState struct {
	Site   uint32 `json:"site"`
	UID    uint32 `json:"uid"`
	Launch int64  `json:"launch"`
	// Hash of the JSON of the Launch, see HashLaunch.
	Hash  string `json:"hash"`
	Phase string `json:"phase"` // off asleep starting running backoff
	PID   int    `json:"pid,omitempty"`
	// Reload: its process asked for a launch, and there was none yet.
	Reload bool `json:"reload,omitempty"`
	// Tasks of the site, those too that ended and were not asked about.
	Tasks []TaskState `json:"tasks,omitempty"`
}

// SiteEvent is something that happened to a site's main process.
type SiteEvent struct {
	Site    uint32 `json:"site"`
	UID     uint32 `json:"uid"`
	Launch  int64  `json:"launch"`
	PID     int    `json:"pid,omitempty"`
	Millis  int64  `json:"millis,omitempty"`  // started: from knock or request to loaded
	Message string `json:"message,omitempty"` // failed: what the site's process said; hostile text
	RetryMs int64  `json:"retryMs,omitempty"` // failed: no new try before that many milliseconds
	Status  int    `json:"status,omitempty"`  // exited: as wait(2) gives it
	Memory  Memory `json:"memory,omitzero"`   // exited: read before the cgroup went
}

// Memory is what the kernel says of a tenant's memory and of a site's kills.
type Memory struct {
	OOMKills int64 `json:"oomKills"` // of the site's cgroup, since it was made
	Peak     int64 `json:"peak"`     // of the tenant's cgroup, bytes
	Limit    int64 `json:"limit"`    // of the tenant's cgroup, bytes
}

// ZygoteEvent is something that happened to a zygote.
type ZygoteEvent struct {
	Name    string   `json:"name"`
	PID     int      `json:"pid,omitempty"`
	State   string   `json:"state"`             // up, down
	Missing []string `json:"missing,omitempty"` // modules that are not installed
	Message string   `json:"message,omitempty"`
}

// UpgradeEvent tells how a request to upgrade ended.
type UpgradeEvent struct {
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"`
}
