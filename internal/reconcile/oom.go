package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// A join finds out which broken request belongs to which kill for memory. The
// proxy tells of requests whose worker died; the kernel counts its kills in
// the site's cgroup. Either may be seen first, and each waits for the other
// for joinWait; each kill is told of once, with or without a request.
//
// All state belongs to run; the other methods send it work.
type join struct {
	add  func(serai.Event)
	name func(site uint32) (tenant, name string, ok bool)
	// leaf finds the cgroup of a process, read the counters of one.
	leaf func(pid int) (dir string, ok bool)
	read func(dir string) (privsep.Memory, error)

	in    chan func()
	sites map[uint32]*victims
	open  int // broken requests and kills that wait
}

type victims struct {
	leaves map[int]*leaf // by pid of the main process
	broken []brokenAt
	kills  []killAt
}

type leaf struct {
	dir     string
	counted int64
}

type brokenAt struct {
	route.Broken
	at time.Time
}

type killAt struct {
	privsep.Memory
	at time.Time
}

const (
	joinWait  = 2 * time.Second
	joinLook  = 100 * time.Millisecond // between looks while something waits
	joinSweep = 10 * time.Second       // between looks at all that runs: a kill may meet no request
)

func newJoin(add func(serai.Event), name func(uint32) (string, string, bool)) *join {
	return &join{
		add: add, name: name, leaf: findLeaf, read: readLeaf,
		in: make(chan func(), 256), sites: make(map[uint32]*victims),
	}
}

// started takes note of a main process; where the process was there before
// this seraid, kills so far are not news.
func (j *join) started(ctx context.Context, site uint32, pid int, old bool) {
	j.do(ctx, func() {
		dir, ok := j.leaf(pid)
		if !ok {
			return
		}
		l := &leaf{dir: dir}
		if old {
			if m, err := j.read(dir); err == nil {
				l.counted = m.OOMKills
			}
		}
		j.site(site).leaves[pid] = l
	})
}

// exited takes the last counters of a main process's cgroup.
func (j *join) exited(ctx context.Context, e privsep.SiteEvent) {
	j.do(ctx, func() {
		v := j.site(e.Site)
		l := v.leaves[e.PID]
		if l == nil {
			l = new(leaf)
		}
		delete(v.leaves, e.PID)
		j.count(v, l, e.Memory)
		j.match(e.Site, v)
	})
}

// broke takes a request whose worker died. Where the proxy saw that it was not
// killed for memory, no kill is its.
func (j *join) broke(ctx context.Context, b route.Broken) {
	j.do(ctx, func() {
		if b.Killed == route.KilledNo {
			if tenant, name, ok := j.name(b.Site); ok {
				j.add(died(tenant, name, b))
			}
			return
		}
		v := j.site(b.Site)
		v.broken = append(v.broken, brokenAt{b, time.Now()})
		j.open++
		j.look(b.Site, v)
	})
}

func (j *join) do(ctx context.Context, f func()) {
	select {
	case j.in <- f:
	case <-ctx.Done():
	}
}

func (j *join) site(number uint32) *victims {
	v := j.sites[number]
	if v == nil {
		v = &victims{leaves: make(map[int]*leaf)}
		j.sites[number] = v
	}
	return v
}

func (j *join) run(ctx context.Context) {
	sweep := time.NewTicker(joinSweep)
	defer sweep.Stop()
	look := time.NewTicker(joinLook)
	defer look.Stop()
	look.Stop()
	looking := false
	for {
		select {
		case f := <-j.in:
			f()
		case <-look.C:
			j.lookAll(true)
		case <-sweep.C:
			j.lookAll(false)
		case <-ctx.Done():
			return
		}
		if busy := j.open > 0; busy != looking {
			looking = busy
			if look.Stop(); busy {
				look.Reset(joinLook)
			}
		}
	}
}

func (j *join) lookAll(waitingOnly bool) {
	for number, v := range j.sites {
		if waitingOnly && len(v.broken) == 0 && len(v.kills) == 0 {
			continue
		}
		j.look(number, v)
		if len(v.leaves) == 0 && len(v.broken) == 0 && len(v.kills) == 0 {
			delete(j.sites, number)
		}
	}
}

// look reads the live counters of a site, then tells what is known.
func (j *join) look(number uint32, v *victims) {
	for _, l := range v.leaves {
		if m, err := j.read(l.dir); err == nil {
			j.count(v, l, m)
		}
	}
	j.match(number, v)
}

// count makes kills of what a counter has grown.
func (j *join) count(v *victims, l *leaf, m privsep.Memory) {
	for ; l.counted < m.OOMKills; l.counted++ {
		v.kills = append(v.kills, killAt{m, time.Now()})
		j.open++
	}
}

// match tells of requests and kills that belong together, and of those that
// have waited long enough.
func (j *join) match(number uint32, v *victims) {
	tenant, name, ok := j.name(number)
	for len(v.broken) > 0 && len(v.kills) > 0 {
		j.open -= 2
		// One that the proxy saw killed goes before one of which nobody knows.
		i := max(0, slices.IndexFunc(v.broken, func(b brokenAt) bool { return b.Killed == route.KilledYes }))
		if ok {
			j.add(killed(tenant, name, &v.broken[i].Broken, v.kills[0].Memory))
		}
		v.broken, v.kills = slices.Delete(v.broken, i, i+1), v.kills[1:]
	}
	for len(v.broken) > 0 && time.Since(v.broken[0].at) >= joinWait {
		j.open--
		if ok {
			j.add(died(tenant, name, v.broken[0].Broken))
		}
		v.broken = v.broken[1:]
	}
	for len(v.kills) > 0 && time.Since(v.kills[0].at) >= joinWait {
		j.open--
		if ok {
			j.add(killed(tenant, name, nil, v.kills[0].Memory))
		}
		v.kills = v.kills[1:]
	}
}

// killed tells of a kill for memory, in the middle of a request where b is not nil.
func killed(tenant, site string, b *route.Broken, m privsep.Memory) serai.Event {
	limit, peak := serai.Bytes(m.Limit), serai.Bytes(m.Peak)
	e := serai.Event{
		Severity: "error", Reason: OutOfMemory, Tenant: tenant, Site: site,
		Message: fmt.Sprintf("%s/%s had a process killed for memory outside of a request: cap %s, peak %s", tenant, site, limit, peak),
		Fields:  map[string]string{"cap": limit.String(), "peak": peak.String()},
	}
	if b != nil {
		addRequest(e.Fields, *b)
		e.Message = fmt.Sprintf("%s/%s was killed for memory while serving %s %s: cap %s, peak %s",
			tenant, site, printable(b.Method, 20), printable(b.Path, 200), limit, peak)
	}
	return e
}

func died(tenant, site string, b route.Broken) serai.Event {
	e := serai.Event{
		Severity: "error", Reason: WorkerDied, Tenant: tenant, Site: site,
		Message: fmt.Sprintf("a worker of %s/%s died while serving %s %s", tenant, site, printable(b.Method, 20), printable(b.Path, 200)),
		Fields:  make(map[string]string),
	}
	addRequest(e.Fields, b)
	return e
}

func addRequest(fields map[string]string, b route.Broken) {
	fields["request"] = b.Request
	fields["pid"] = strconv.Itoa(b.PID)
	fields["host"] = printable(b.Host, 255)
	fields["path"] = printable(b.Path, 500)
	if b.Detail != "" {
		fields["detail"] = printable(b.Detail, 200)
	}
}
