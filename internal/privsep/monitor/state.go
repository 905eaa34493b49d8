package monitor

import (
	"encoding/json"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/privsep"
)

// stateVersion is raised with every change of state that an older or newer
// binary would misread.
const stateVersion = 1

// fd is a descriptor of ours that outlives an upgrade. 0 is none: 0, 1 and 2
// are never of this kind.
type fd int

func (f *fd) close() {
	if *f != 0 {
		unix.Close(int(*f))
		*f = 0
	}
}

// state is all that the monitor knows. It is plain data, so that an upgrade
// is: write it down, exec, read it. What can be found again (the epoll set,
// timers, indexes) is in Monitor.
type state struct {
	Version   int                    `json:"version"`
	Config    *config.Config         `json:"config"`
	Began     time.Time              `json:"began"`
	PerlDir   string                 `json:"perlDir"`
	Lock      fd                     `json:"lock"`
	UserNS    fd                     `json:"userNS"`
	MountNS   fd                     `json:"mountNS"`
	DaemonGID uint32                 `json:"daemonGID"`
	ProxyGID  uint32                 `json:"proxyGID"`
	API       fd                     `json:"api"`
	Control   fd                     `json:"control"`
	HTTP      []fd                   `json:"http"`
	Routes    fd                     `json:"routes"`
	Peers     map[string]*peer       `json:"peers"`
	Zygotes   map[string]*zygote     `json:"zygotes"`
	Retired   []int                  `json:"retired"` // pids of zygotes that were told to leave
	Tenants   map[uint32]*tenant     `json:"tenants"`
	Sites     map[uint32]*site       `json:"sites"`
	Jobs      []*job                 `json:"jobs"`
	Leaving   []*leaving             `json:"leaving"`
	Upgrades  []privsep.UpgradeEvent `json:"upgrades"` // to be told after the exec
}

// A peer is one of our two processes without power.
type peer struct {
	Name    string    `json:"name"`
	Gen     int       `json:"gen"` // counts the starts: an answer goes to the process that asked
	PID     int       `json:"pid"`
	Sock    fd        `json:"sock"`
	Began   time.Time `json:"began"`
	Fails   int       `json:"fails"`
	StartAt time.Time `json:"startAt"`
	Out     []packet  `json:"out"` // not taken by the socket yet
	size    int       // bytes in Out
}

// A packet waits for a slow peer.
type packet struct {
	Data []byte `json:"data"`
	File fd     `json:"file"`
}

// A waiter is a request that is answered later.
type waiter struct {
	Peer string `json:"peer"`
	Gen  int    `json:"gen"`
	ID   uint64 `json:"id"`
}

// A tenant is a record and what /etc/passwd said when it was set.
type tenant struct {
	privsep.Tenant
	Name    string    `json:"name"`
	GID     uint32    `json:"gid"`
	Home    string    `json:"home"`
	Live    bool      `json:"live"`    // its cgroup exists
	Dropped []waiter  `json:"dropped"` // wait for its end
	running int       // processes of its sites
	paid    time.Time // see endedSoon
	sites   map[uint32]*site
}

// A site is a launch record, its listener and what runs of it.
type site struct {
	Record    privsep.Launch `json:"record"`
	Hash      string         `json:"hash"`
	Listener  fd             `json:"listener"`
	Leaf      int            `json:"leaf"` // number of the newest leaf
	LogR      fd             `json:"logR"`
	LogW      fd             `json:"logW"`
	LogTaken  bool           `json:"logTaken"` // by the seraid that runs
	Processes []*process     `json:"processes"`
	Fails     int            `json:"fails"`   // in a row
	RetryAt   time.Time      `json:"retryAt"` // no start by a knock before
	Dropping  bool           `json:"dropping"`
	Ended     []waiter       `json:"ended"`  // wait until nothing of it runs
	Reload    bool           `json:"reload"` // asked for by its code, and not launched since
	// Over are the tasks that ended and that nobody has asked about.
	Over    []privsep.TaskEvent `json:"over"`
	tenant  *tenant
	watched bool // the listener is in the epoll set
	armed   bool // and a knock will be heard
}

// phase is where a process is in its life:
//
//	starting ──ready──► running ──newer one ready──► draining
//	    │                  │                            │
//	    └──failed, killed──┴────────────ended───────────┴──► ending ──► gone
//
// A task is running once it is up, and draining once it was asked to end. One
// that is ending was killed with all of its leaf; it is gone when the
// kernel let go of the leaf.
type phase string

const (
	starting phase = "starting"
	running  phase = "running"
	draining phase = "draining"
	ending   phase = "ending"
)

// A process is the main process of one launch of a site, or of a task, with a
// leaf of its own in the tenant's cgroup.
type process struct {
	Leaf    int           `json:"leaf"`
	Launch  int64         `json:"launch"`
	Hash    string        `json:"hash"`
	Phase   phase         `json:"phase"`
	Spawned bool          `json:"spawned"` // handed to a zygote
	Tries   int           `json:"tries"`   // how often
	PID     int           `json:"pid"`     // as the kernel attested it; 0 before "up" and after it was reaped
	Loaded  bool          `json:"loaded"`
	Status  fd            `json:"status"`
	Began   time.Time     `json:"began"` // knock or request
	Ready   time.Time     `json:"ready"`
	Due     time.Time     `json:"due"` // when patience ends: loading, draining; ending: the next look
	Pause   time.Duration `json:"pause"`
	Waiter  *waiter       `json:"waiter"` // of the launch
	Task    *privsep.Task `json:"task"`   // nil for the site's own
	Kept    bool          `json:"kept"`   // was told to stay awake
	Told    bool          `json:"told"`   // how the task ended
	Enders  []waiter      `json:"enders"` // of the task: wait for its end
	site    *site
}

// A zygote of a set; Next is its successor while that is loading.
type zygote struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Control fd        `json:"control"`
	Up      bool      `json:"up"`
	PerlDir string    `json:"perlDir"`
	Began   time.Time `json:"began"`
	Fails   int       `json:"fails"`
	StartAt time.Time `json:"startAt"`
	Next    *zygote   `json:"next"`
	// Event is what was told when it came up, and is told again to each new seraid.
	Event   privsep.ZygoteEvent `json:"event"`
	told    bool                // came up, or failed, once
	waiting []*process
}

// A job is a one-shot helper process, or one that waits for its turn.
type job struct {
	Name   string          `json:"name"`
	Waiter *waiter         `json:"waiter"`
	Input  json.RawMessage `json:"input"`
	PID    int             `json:"pid"`
	Out    fd              `json:"out"`
	Text   []byte          `json:"text"`
	Due    time.Time       `json:"due"`
	Status *int            `json:"status"` // of the ended process
}

// eachFD calls f with every descriptor that an upgrade must hand on.
func (s *state) eachFD(f func(*fd)) {
	for _, p := range []*fd{&s.Lock, &s.UserNS, &s.MountNS, &s.API, &s.Control, &s.Routes} {
		f(p)
	}
	for i := range s.HTTP {
		f(&s.HTTP[i])
	}
	for _, p := range s.Peers {
		f(&p.Sock)
		for i := range p.Out {
			f(&p.Out[i].File)
		}
	}
	for _, z := range s.Zygotes {
		for ; z != nil; z = z.Next {
			f(&z.Control)
		}
	}
	for _, site := range s.Sites {
		f(&site.Listener)
		f(&site.LogR)
		f(&site.LogW)
		for _, p := range site.Processes {
			f(&p.Status)
		}
	}
	for _, j := range s.Jobs {
		f(&j.Out)
	}
	for _, l := range s.Leaving {
		f(&l.Pidfd)
	}
}

// decodeState reads what another binary wrote, and says no to all that it
// would not write itself.
func decodeState(text []byte) (*state, error) {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	if v.Version != stateVersion {
		return nil, fmt.Errorf("the state is of version %d, this binary knows %d", v.Version, stateVersion)
	}
	s := &state{}
	if err := privsep.Strict(text, s); err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	if s.Config == nil || s.Peers == nil || s.Zygotes == nil || s.Tenants == nil || s.Sites == nil {
		return nil, fmt.Errorf("read the state: a part is missing")
	}
	for n, site := range s.Sites {
		t := s.Tenants[site.Record.UID]
		if site.Record.Site != n || t == nil {
			return nil, fmt.Errorf("read the state: site %d does not fit", n)
		}
	}
	if err := checkConfig(s.Config); err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	return s, nil
}

// link sets what is not written down.
func (s *state) link() {
	for _, t := range s.Tenants {
		t.sites = make(map[uint32]*site)
	}
	for n, site := range s.Sites {
		site.tenant = s.Tenants[site.Record.UID]
		site.tenant.sites[n] = site
		site.tenant.running += len(site.Processes)
		for _, p := range site.Processes {
			p.site = site
		}
	}
	for _, p := range s.Peers {
		for _, out := range p.Out {
			p.size += len(out.Data)
		}
	}
}
