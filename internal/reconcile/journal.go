package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

// A journal keeps events, and keeps a flood of them out of the store: of one
// reason of one site, or of one of its jobs, an event that says the same as the one before, and any
// after the tenth within a minute, are counted and told once at its end. Of the
// runs of a job that went as they should, one in an hour is told.
type journal struct {
	store store.Store
	log   *slog.Logger
	queue chan serai.Event

	mu     sync.Mutex
	recent map[source]*recent
}

type source struct {
	reason, tenant, site, task string
	timed                      bool // a run at a time of its schedule
}

type recent struct {
	flow  flow
	kept  int
	last  serai.Event
	more  int
	timer *time.Timer
}

// A flow is how many events of a source are told within a time.
type flow struct {
	window time.Duration
	burst  int
	within string
}

var (
	usual   = flow{time.Minute, 10, "a minute"}
	routine = flow{time.Hour, 1, "an hour"}
)

func flowOf(e serai.Event) flow {
	if e.Reason == JobDone && e.Fields["due"] != "" {
		return routine
	}
	return usual
}

const (
	journalBacklog = 1024
	journalKeep    = 90 * 24 * time.Hour
	maxMessage     = 1000 // bytes of an event's message
)

func newJournal(st store.Store, log *slog.Logger) *journal {
	return &journal{store: st, log: log, queue: make(chan serai.Event, journalBacklog), recent: make(map[source]*recent)}
}

// add keeps an event, soon. It does not wait for the store.
func (j *journal) add(e serai.Event) {
	e.Time = time.Now()
	e.Message = printable(e.Message, maxMessage)
	src := source{e.Reason, e.Tenant, e.Site, e.Fields["task"], e.Fields["due"] != ""}
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.recent[src]
	if r == nil {
		r = &recent{flow: flowOf(e)}
		r.timer = time.AfterFunc(r.flow.window, func() { j.close(src) })
		j.recent[src] = r
	} else if r.kept >= r.flow.burst || same(r.last, e) {
		r.more++
		r.last = e
		return
	}
	r.kept++
	r.last = e
	j.send(e)
}

// close ends the minute of a source.
func (j *journal) close(src source) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.recent[src]
	delete(j.recent, src)
	if r == nil || r.more == 0 {
		return
	}
	e := r.last
	fields := map[string]string{"count": strconv.Itoa(r.more)}
	for k, v := range e.Fields {
		fields[k] = v
	}
	e.Fields = fields
	if r.more > 1 {
		e.Message = fmt.Sprintf("%s (and %d more within %s)", e.Message, r.more-1, r.flow.within)
	}
	j.send(e)
}

func (j *journal) send(e serai.Event) {
	select {
	case j.queue <- e:
	default:
		j.log.Warn("event lost: the store is too slow", "reason", e.Reason, "tenant", e.Tenant, "site", e.Site)
	}
}

// run writes events to the store until ctx ends, then what is left. Old ones
// are forgotten.
func (j *journal) run(ctx context.Context) {
	prune := time.NewTicker(time.Hour)
	defer prune.Stop()
	for {
		select {
		case <-prune.C:
			if err := j.store.PruneEvents(ctx, time.Now().Add(-journalKeep)); err != nil && ctx.Err() == nil {
				j.log.Warn("old events not forgotten", "cause", err)
			}
		case e := <-j.queue:
			j.write(context.WithoutCancel(ctx), e)
		case <-ctx.Done():
			j.flush(context.WithoutCancel(ctx))
			return
		}
	}
}

func (j *journal) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	j.mu.Lock()
	var open []source
	for src, r := range j.recent {
		r.timer.Stop()
		open = append(open, src)
	}
	j.mu.Unlock()
	for _, src := range open {
		j.close(src)
	}
	for {
		select {
		case e := <-j.queue:
			j.write(ctx, e)
		default:
			return
		}
	}
}

func (j *journal) write(ctx context.Context, e serai.Event) {
	if _, err := j.store.AddEvent(ctx, e); err != nil {
		j.log.Error("event lost", "reason", e.Reason, "tenant", e.Tenant, "site", e.Site, "cause", err)
	}
}

// same reports whether b says nothing that a did not say.
func same(a, b serai.Event) bool {
	return a.Severity == b.Severity && a.Message == b.Message && a.Fields["request"] == b.Fields["request"]
}

// printable makes one line of hostile text that is safe on a terminal.
func printable(s string, limit int) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case c == '\n' || c == '\t' || c == '\r':
			return ' '
		case c < 0x20 || 0x7f <= c && c < 0xa0 || c == 0x2028 || c == 0x2029 || 0x202a <= c && c <= 0x202e || 0x2066 <= c && c <= 0x2069:
			return '?'
		}
		return c
	}, strings.ToValidUTF8(strings.TrimSpace(s), "?"))
	if len(s) <= limit {
		return s
	}
	cut := limit - len("…")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
