package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// routes is the proxy's table as it shall be, the log it stands in, and how
// far the proxy has read it.
type routes struct {
	mon   Monitor
	acked func(...serai.Key) // told of sites whose record the proxy has

	mu      sync.Mutex
	log     *route.Log
	end     route.Extent
	records map[string]*routed // by site or tenant, see siteID, tenantID
	last    uint64             // number of the newest record
	seen    uint64             // number up to which the proxy has the records
	marks   []mark             // ends of records that the proxy may not have yet
	waiting []waiter
	moved   chan struct{} // holds one token while the proxy is to be told
}

type routed struct {
	number  uint64 // of the record, rising
	initial bool   // written by the start, not by a change
	text    []byte
	record  route.Record
}

type mark struct {
	offset int64
	number uint64
}

type waiter struct {
	number uint64
	key    serai.Key
}

func newRoutes(mon Monitor, acked func(...serai.Key)) *routes {
	return &routes{mon: mon, acked: acked, records: make(map[string]*routed), moved: make(chan struct{}, 1)}
}

func siteID(number uint32) string { return fmt.Sprint("site ", number) }
func tenantID(uid uint32) string  { return fmt.Sprint("tenant ", uid) }

// start writes the first log and hands it to serai-priv, whole: until then the
// proxy goes on with the one before.
func (t *routes) start(ctx context.Context, records []route.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range records {
		if err := t.keep(r, true); err != nil {
			return err
		}
	}
	return t.rewrite(ctx)
}

func (t *routes) keep(r route.Record, initial bool) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write route record: %w", err)
	}
	t.last++
	t.records[idOf(r)] = &routed{number: t.last, initial: initial, text: text, record: r}
	return nil
}

func idOf(r route.Record) string {
	if r.Site != nil {
		return siteID(r.Site.Number)
	}
	return tenantID(r.Tenant.UID)
}

// rewrite makes a new log of what is true now.
func (t *routes) rewrite(ctx context.Context) error {
	log, err := route.Create()
	if err != nil {
		return fmt.Errorf("make route log: %w", err)
	}
	end := log.Extent()
	for _, r := range t.records {
		if end, err = log.Append(r.record); err != nil {
			log.Close()
			return fmt.Errorf("write route log: %w", err)
		}
	}
	if _, err := t.mon.Call(ctx, privsep.OpSetRoutes, nil, nil, log.File()); err != nil {
		log.Close()
		return fmt.Errorf("hand over route log: %w", err)
	}
	if t.log != nil {
		t.log.Close()
	}
	t.log, t.end = log, end
	t.marks = []mark{{end.Offset, t.last}}
	t.tell()
	return nil
}

// put makes a record true: nothing is written where it is already.
func (t *routes) put(ctx context.Context, r route.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.records[idOf(r)]; old != nil {
		text, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("write route record: %w", err)
		}
		if bytes.Equal(old.text, text) {
			return nil
		}
	}
	if err := t.keep(r, false); err != nil {
		return err
	}
	return t.write(ctx, idOf(r), r)
}

// drop takes a site or tenant out: nothing is written where it is not there.
func (t *routes) drop(ctx context.Context, id string, r route.Record) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records[id] == nil {
		return nil
	}
	delete(t.records, id)
	t.last++
	return t.write(ctx, id, r)
}

func (t *routes) dropSite(ctx context.Context, number uint32) error {
	return t.drop(ctx, siteID(number), route.Record{Drop: number})
}

func (t *routes) forgetTenant(ctx context.Context, uid uint32) error {
	return t.drop(ctx, tenantID(uid), route.Record{Forget: uid})
}

// write appends the newest record, or starts a new log where more than half of
// this one is out of date. What could not be written is forgotten, so that it
// is tried again.
func (t *routes) write(ctx context.Context, id string, r route.Record) error {
	if ratio, size := t.log.Garbage(); size > minCompact && ratio > 0.5 {
		// Where this fails the old log serves on, only longer.
		if err := t.rewrite(ctx); err == nil {
			return nil
		}
	}
	end, err := t.log.Append(r)
	if err != nil {
		delete(t.records, id)
		return fmt.Errorf("write route log: %w", err)
	}
	t.end = end
	t.marks = append(t.marks, mark{end.Offset, t.last})
	t.tell()
	return nil
}

// minCompact is the size in bytes of a log that is worth writing anew.
const minCompact = 1 << 20

func (t *routes) tell() {
	select {
	case t.moved <- struct{}{}:
	default:
	}
}

// extent is how far the log reaches.
func (t *routes) extent() route.Extent {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.end
}

// applied takes note of how far the proxy's table is.
func (t *routes) applied(x route.Extent) {
	t.mu.Lock()
	if x.Epoch != t.end.Epoch {
		t.mu.Unlock()
		return
	}
	for len(t.marks) > 0 && t.marks[0].offset <= x.Offset {
		t.seen = t.marks[0].number
		t.marks = t.marks[1:]
	}
	var keys []serai.Key
	for len(t.waiting) > 0 && t.waiting[0].number <= t.seen {
		keys = append(keys, t.waiting[0].key)
		t.waiting = t.waiting[1:]
	}
	t.mu.Unlock()
	if len(keys) > 0 {
		t.acked(keys...)
	}
}

// A place is how far a site's record has come.
type place int

const (
	nowhere place = iota // there is none
	written              // the proxy may not have it
	taken                // as written, but the same stood in the log of an earlier seraid, or would have
	there                // the proxy has it
)

// place tells how far the record of a site is. Where the proxy does not have it
// yet, acked tells of the key once it has.
func (t *routes) place(key serai.Key, number uint32) place {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.records[siteID(number)]
	switch {
	case r == nil:
		return nowhere
	case r.number <= t.seen:
		return there
	case r.initial:
		return taken
	}
	if n := len(t.waiting); n == 0 || t.waiting[n-1] != (waiter{r.number, key}) {
		t.waiting = append(t.waiting, waiter{r.number, key})
	}
	return written
}

// site is the record of a site, or nil.
func (t *routes) site(number uint32) *route.Site {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.records[siteID(number)]; r != nil {
		return r.record.Site
	}
	return nil
}

func (t *routes) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.log != nil {
		t.log.Close()
	}
}
