// Package mail hands tenants' messages to the operator's relay: it reads them
// from processes that may be hostile, puts head and line ends in order, counts
// them against the plan, and writes a line for each into the tenant's log. It
// queues nothing: what it says to the sender is what the relay said.
package mail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

// The reasons of events. They are stable.
const (
	MailLimited = "MailLimited" // a tenant: the plan's mails of an hour or a day are used up
	RelayAway   = "RelayAway"   // the relay cannot be reached
	RelayBack   = "RelayBack"   // it can again
)

// How much goes on at once. Who finds no room waits.
const (
	atOnce   = 32 // connections to the relay
	ofTenant = 4  // messages of one tenant
	waitTime = 30 * time.Second
)

// Store is what is asked of the store.
type Store interface {
	Get(ctx context.Context, key serai.Key) (serai.Resource, error)
	AddEvent(ctx context.Context, e serai.Event) (serai.Event, error)
	store.MailLedger
}

// A Logbook keeps a tenant's log of mail.
type Logbook interface {
	// Mail adds a line, without its end. What is in it may be hostile.
	Mail(tenant, line string) error
}

// Options are what a Desk is made of. All are needed.
type Options struct {
	Store    Store
	Book     Logbook
	Relay    string // host:port of an SMTP server
	Hostname string // ours
	Spool    string // directory for messages that are too large for memory
	Log      *slog.Logger
}

// A Desk takes messages. Its methods may be called concurrently.
type Desk struct {
	o      Options
	now    func() time.Time
	relays chan struct{}

	mu    sync.Mutex
	desks map[uint32]chan struct{} // by uid
	told  map[window]bool          // events of limits
	away  bool
}

// A window is an hour or a day of a tenant in which it reached its limit.
type window struct {
	uid    uint32
	length time.Duration
	start  time.Time
}

// New makes a Desk.
func New(o Options) *Desk {
	return &Desk{o: o, now: time.Now, relays: make(chan struct{}, atOnce), desks: make(map[uint32]chan struct{}), told: make(map[window]bool)}
}

// A Sender is whose process sends, by the kernel's word.
type Sender struct {
	UID    uint32
	Tenant string
	Site   string // empty for what runs outside of the sites
	By     string // the script of the catalogue that sends for the site, else empty
}

func (s Sender) String() string {
	if s.Site == "" {
		return s.Tenant
	}
	return s.Tenant + "/" + s.Site
}

// Mailed is how many mails count for a uid in this hour and on this day.
func (d *Desk) Mailed(ctx context.Context, uid uint32) (hour, day int64, err error) {
	now := d.now().UTC()
	end := now.Truncate(store.MailHour).Add(store.MailHour)
	if _, hour, err = d.o.Store.Mailed(ctx, uid, now, end); err != nil {
		return 0, 0, err
	}
	_, day, err = d.o.Store.Mailed(ctx, uid, now.Truncate(store.MailDay), end)
	return hour, day, err
}

// A Receipt is what the relay said when it took a message.
type Receipt struct {
	ID     string // ours: in the log and in the message's Received field
	Answer string
}

// Submit reads an envelope and a message and hands them to the relay: to all
// recipients or to none. Errors are a serai.Error: Invalid where the message is
// wrong, NotFound where the relay knows a recipient not, Denied where it or the
// plan refuses for good, Unavailable where the same may go through later. What
// was read whole is handed on even if ctx ends.
func (d *Desk) Submit(ctx context.Context, from Sender, in io.Reader) (Receipt, error) {
	leave, err := wait(ctx, d.desk(from.UID))
	if err != nil {
		return Receipt{}, serai.Errorf(serai.Unavailable, "%d messages of %s are on their way, and do not come through: try later", ofTenant, from.Tenant)
	}
	defer leave()
	r := bufio.NewReader(in)
	e, err := readEnvelope(r)
	if err != nil {
		return Receipt{}, err
	}
	if e.For != "" {
		if from, err = d.behalf(ctx, from, e.For); err != nil {
			return Receipt{}, err
		}
	}
	limits, plan, err := d.limits(ctx, from)
	if err != nil {
		return Receipt{}, err
	}
	if len(e.To) > limits.Recipients {
		return Receipt{}, d.refuse(from, e, serai.Errorf(serai.Invalid, "the message has %d recipients: the plan %s allows %d", len(e.To), plan, limits.Recipients))
	}
	now := d.now().UTC()
	id := newID()
	m, err := readMessage(r, d.o.Spool, int64(limits.Size), d.trace(id, from, now))
	if errors.Is(err, errTooLarge) {
		err = serai.Errorf(serai.Invalid, "the message is larger than the %s that the plan %s allows", limits.Size, plan)
	}
	if err != nil {
		return Receipt{}, d.refuse(from, e, err)
	}
	defer m.close()
	return d.send(context.WithoutCancel(ctx), from, limits, plan, id, now, e, m)
}

// behalf is the site for which a script of the catalogue sends: one that has it
// mounted.
func (d *Desk) behalf(ctx context.Context, from Sender, site string) (Sender, error) {
	if from.Tenant != serai.CatalogueTenant || from.Site == "" {
		return from, serai.Errorf(serai.Invalid, "only scripts of the catalogue send for other sites")
	}
	tenant, name, _ := strings.Cut(site, "/")
	r, err := d.o.Store.Get(ctx, serai.Key{Kind: serai.KindSite, Tenant: tenant, Name: name})
	if err != nil && serai.KindOf(err) != serai.NotFound {
		return from, err
	}
	if err == nil {
		for _, m := range r.(*serai.Site).Spec.Mount {
			if m.Use != from.Site {
				continue
			}
			t, err := d.tenant(ctx, tenant)
			if err != nil {
				return from, err
			}
			return Sender{UID: t.Status.UID, Tenant: tenant, Site: name, By: from.String()}, nil
		}
	}
	return from, serai.Errorf(serai.Invalid, "no site %q mounts %s", clip(site), from.Site)
}

func (d *Desk) tenant(ctx context.Context, name string) (*serai.Tenant, error) {
	r, err := d.o.Store.Get(ctx, serai.Key{Kind: serai.KindTenant, Name: name})
	if err != nil {
		return nil, err
	}
	return r.(*serai.Tenant), nil
}

// limits are the sender's, as of now.
func (d *Desk) limits(ctx context.Context, from Sender) (serai.Mail, string, error) {
	t, err := d.tenant(ctx, from.Tenant)
	if err != nil {
		return serai.Mail{}, "", err
	}
	if t.Spec.Suspended {
		return serai.Mail{}, "", serai.Errorf(serai.Denied, "%s is suspended", from.Tenant)
	}
	r, err := d.o.Store.Get(ctx, serai.Key{Kind: serai.KindPlan, Name: t.Spec.Plan})
	if err != nil {
		return serai.Mail{}, "", err
	}
	return r.(*serai.Plan).Spec.Mail, t.Spec.Plan, nil
}

// send is the way of a message that is in order: counted, handed over, noted.
func (d *Desk) send(ctx context.Context, from Sender, limits serai.Mail, plan, id string, now time.Time, e Envelope, m *message) (Receipt, error) {
	mails := int64(len(e.To))
	full, err := d.o.Store.TakeMail(ctx, from.UID, now, mails, limits.Hour, limits.Day)
	if err != nil {
		return Receipt{}, err
	}
	if full != 0 {
		return Receipt{}, d.limited(ctx, from, limits, plan, now, full, id, e, m.size)
	}
	leave, err := wait(ctx, d.relays)
	if err != nil {
		d.giveBack(ctx, from, now, mails)
		return Receipt{}, d.failed(from, id, e, m.size, "put off", serai.Errorf(serai.Unavailable, "too many messages are on their way: try later"))
	}
	answer, err := deliver(ctx, d.o.Relay, d.o.Hostname, e, m)
	leave()
	refused, no := errors.AsType[*refusal](err)
	d.reached(ctx, err == nil || no)
	switch {
	case err == nil:
		d.note(from, id, e, m.size, "sent", answer)
		return Receipt{ID: id, Answer: answer}, nil
	case no && refused.final():
		// It counts: who guesses at addresses must not do it for nothing.
		kind := serai.Denied
		if refused.to {
			kind = serai.NotFound
		}
		return Receipt{}, d.failed(from, id, e, m.size, "refused", serai.Errorf(kind, "%s", refused))
	case errors.Is(err, errUnsure):
		return Receipt{}, d.failed(from, id, e, m.size, "unsure", &serai.Error{Kind: serai.Unavailable, Msg: errUnsure.Error(), Err: err})
	}
	d.giveBack(ctx, from, now, mails)
	msg := "the relay for mail does not answer: try later"
	if no {
		msg = refused.Error()
	}
	return Receipt{}, d.failed(from, id, e, m.size, "put off", &serai.Error{Kind: serai.Unavailable, Msg: msg, Err: err})
}

// trace is what we write before the head of a message.
func (d *Desk) trace(id string, from Sender, now time.Time) string {
	by := ""
	if from.By != "" {
		by = " by " + from.By
	}
	return fmt.Sprintf("Received: by %s (Serai, from %s%s)\r\n\tid %s; %s\r\nX-Serai-Site: %s\r\n",
		d.o.Hostname, from, by, id, now.Format("Mon, 02 Jan 2006 15:04:05 -0700"), from)
}

// limited answers a message over a limit, and tells of it once.
func (d *Desk) limited(ctx context.Context, from Sender, limits serai.Mail, plan string, now time.Time, length time.Duration, id string, e Envelope, size int64) error {
	name, grant := "an hour", limits.Hour
	if length == store.MailDay {
		name, grant = "a day", limits.Day
	}
	start := now.Truncate(length)
	until := start.Add(length).Format("15:04")
	d.mu.Lock()
	for w := range d.told { // of times that are over
		if w.start.Add(w.length).Before(now) {
			delete(d.told, w)
		}
	}
	w := window{from.UID, length, start}
	first := !d.told[w]
	d.told[w] = true
	d.mu.Unlock()
	if first {
		d.event(ctx, serai.Event{Severity: "warning", Reason: MailLimited, Tenant: from.Tenant, Site: from.Site,
			Message: fmt.Sprintf("%s has used up the %d mails %s of its plan %s: what comes until %s UTC is put off", from.Tenant, grant, name, plan, until)})
	}
	return d.failed(from, id, e, size, "limited", serai.Errorf(serai.Unavailable, "the plan %s allows %d mails %s, and %s would send more: try again after %s UTC", plan, grant, name, from.Tenant, until))
}

// refuse notes a message that was not worth an id.
func (d *Desk) refuse(from Sender, e Envelope, err error) error {
	return d.failed(from, "-", e, 0, "wrong", err)
}

// failed notes a message that was not sent, and returns why.
func (d *Desk) failed(from Sender, id string, e Envelope, size int64, outcome string, err error) error {
	d.note(from, id, e, size, outcome, serai.Message(err))
	return err
}

// note writes the line of a message.
func (d *Desk) note(from Sender, id string, e Envelope, size int64, outcome, text string) {
	by := ""
	if from.By != "" {
		by = "by=" + from.By + " "
	}
	line := fmt.Sprintf("%s %s %sfrom=<%s> to=<%s> size=%d %s: %s", id, from, by, e.From, strings.Join(e.To, ">,<"), size, outcome, text)
	if err := d.o.Book.Mail(from.Tenant, line); err != nil {
		d.o.Log.Error("line of the mail log lost", "tenant", from.Tenant, "cause", err)
	}
}

func (d *Desk) giveBack(ctx context.Context, from Sender, at time.Time, mails int64) {
	if err := d.o.Store.GiveMail(ctx, from.UID, at, mails); err != nil {
		d.o.Log.Warn("mail that was not sent counts as sent", "tenant", from.Tenant, "cause", err)
	}
}

// reached tells when the relay goes away and when it is back.
func (d *Desk) reached(ctx context.Context, there bool) {
	d.mu.Lock()
	turned := d.away == there
	d.away = !there
	d.mu.Unlock()
	switch {
	case !turned:
	case there:
		d.event(ctx, serai.Event{Severity: "info", Reason: RelayBack, Message: fmt.Sprintf("the relay for mail %s answers again", d.o.Relay)})
	default:
		d.event(ctx, serai.Event{Severity: "error", Reason: RelayAway,
			Message: fmt.Sprintf("the relay for mail %s does not answer: the tenants' mail is put off; look at that server, or set mail.relay", d.o.Relay)})
	}
}

func (d *Desk) event(ctx context.Context, e serai.Event) {
	if _, err := d.o.Store.AddEvent(ctx, e); err != nil {
		d.o.Log.Error("event lost", "reason", e.Reason, "tenant", e.Tenant, "cause", err)
	}
}

// desk is where the messages of one tenant wait.
func (d *Desk) desk(uid uint32) chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.desks[uid]
	if c == nil {
		c = make(chan struct{}, ofTenant)
		d.desks[uid] = c
	}
	return c
}

// wait takes a place, for a while.
func wait(ctx context.Context, places chan struct{}) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newID() string { return fmt.Sprintf("%016x", rand.Uint64()) }
