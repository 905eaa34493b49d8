package mail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
	"serai.dev/serai/internal/store/sqlite"
)

// A sink is a relay that answers by what it is told: a recipient unknown@ is
// refused, later@ put off, a message with SPAM in it refused, one with VANISH
// never answered; one with HOLD is answered when hold is closed.
type sink struct {
	address string
	offers  string
	hold    chan struct{}
	holding chan struct{} // gets a value for each HOLD

	mu  sync.Mutex
	got []string // envelope and text
}

func newSink(t *testing.T) *sink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &sink{address: ln.Addr().String(), offers: "8BITMIME", hold: make(chan struct{}), holding: make(chan struct{}, 100)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { k.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return k
}

func (k *sink) serve(c net.Conn) {
	t := textproto.NewConn(c)
	defer t.Close()
	say := func(s string) { _ = t.PrintfLine("%s", s) }
	say("220-sink\r\n220 ready")
	from, to := "", []string{}
	for {
		line, err := t.ReadLine()
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "EHLO":
			say("250-sink\r\n250-" + k.offers + "\r\n250 SIZE")
		case "MAIL":
			from = rest
			say("250 ok")
		case "RCPT":
			switch {
			case strings.Contains(rest, "unknown@"):
				say("550-5.1.1 no such\r\n550 5.1.1 user")
			case strings.Contains(rest, "later@"):
				say("450 4.2.1 try later")
			default:
				to = append(to, rest)
				say("250 ok")
			}
		case "DATA":
			say("354 go")
			text, err := io.ReadAll(t.DotReader())
			if err != nil {
				return
			}
			s := string(text)
			switch {
			case strings.Contains(s, "SPAM"):
				say("554 5.7.1 spam\x1b[31m")
				continue
			case strings.Contains(s, "VANISH"):
				return
			case strings.Contains(s, "HOLD"):
				k.holding <- struct{}{}
				<-k.hold
			}
			k.mu.Lock()
			k.got = append(k.got, from+" "+strings.Join(to, " ")+"\n"+s)
			k.mu.Unlock()
			say("250 2.0.0 queued as 4711")
		case "QUIT":
			return
		default:
			say("500 what")
		}
	}
}

// book is a Logbook in memory.
type book struct {
	mu    sync.Mutex
	lines []string
}

func (b *book) Mail(tenant, line string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, tenant+": "+line)
	return nil
}

func (b *book) last() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) == 0 {
		return ""
	}
	return b.lines[len(b.lines)-1]
}

type world struct {
	*Desk
	sink  *sink
	book  *book
	store *sqlite.Store
	dir   string
}

const uid = 1900000000

var (
	shop = Sender{UID: uid, Tenant: "alice", Site: "shop"}
	wiki = Sender{UID: uid + 1, Tenant: "bob", Site: "wiki"}
)

func newWorld(t *testing.T, limits serai.Mail) *world {
	t.Helper()
	w := &world{sink: newSink(t), book: &book{}, dir: t.TempDir()}
	st, err := sqlite.Open(t.Context(), filepath.Join(w.dir, "serai.db"), sqlite.Options{FirstUID: uid, LastUID: uid + 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	w.store = st
	spec := serai.DefaultPlanSpec()
	spec.Mail = limits
	for _, r := range []serai.Resource{
		&serai.Plan{Type: serai.Type{Kind: serai.KindPlan}, Meta: serai.Meta{Name: "small"}, Spec: spec},
		&serai.Tenant{Type: serai.Type{Kind: serai.KindTenant}, Meta: serai.Meta{Name: "alice"}, Spec: serai.TenantSpec{Plan: "small", Account: serai.Account{Create: true}}},
		&serai.Tenant{Type: serai.Type{Kind: serai.KindTenant}, Meta: serai.Meta{Name: "bob"}, Spec: serai.TenantSpec{Plan: "small", Account: serai.Account{Create: true}}},
	} {
		if _, err := st.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	w.renew(t)
	return w
}

// renew is a new seraid over the same state.
func (w *world) renew(t *testing.T) {
	w.Desk = New(Options{Store: w.store, Book: w.book, Relay: w.sink.address, Hostname: "mx.example", Spool: w.dir,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
}

func (w *world) submit(from Sender, envelope, text string) (Receipt, error) {
	return w.Submit(context.Background(), from, strings.NewReader(envelope+"\n"+text))
}

var many = serai.Mail{Hour: 1000, Day: 1000, Recipients: 10, Size: 64 << 10}

func TestSubmit(t *testing.T) {
	const one = `{"from": "a@example.com", "to": ["b@example.net"]}`
	for _, tt := range []struct {
		name, envelope, text string
		kind                 serai.Kind
		says, log            string // of the error, of the last line of the log
		mails                int64  // that count in the end
	}{
		{name: "sent", envelope: one, text: "Subject: x\n\nhello\n.\n..x\n",
			log: "alice: ID alice/shop from=<a@example.com> to=<b@example.net> size=SIZE sent: 2.0.0 queued as 4711", mails: 1},
		{name: "two recipients, nobody for failures", envelope: `{"to": ["b@x", "c@y"]}`, text: "\nhello",
			log: "from=<> to=<b@x>,<c@y> size=SIZE sent:", mails: 2},
		{name: "unknown recipient", envelope: `{"to": ["b@x", "unknown@y"]}`, kind: serai.NotFound,
			says: "the relay refused the recipient unknown@y: 550 5.1.1 no such 5.1.1 user", log: "refused: the relay refused", mails: 2},
		{name: "not now", envelope: `{"to": ["later@y"]}`, kind: serai.Unavailable, says: "450 4.2.1 try later", log: "put off:"},
		{name: "refused", envelope: one, text: "\nSPAM\n", kind: serai.Denied, says: "the relay refused the message: 554 5.7.1 spam", log: "refused:", mails: 1},
		{name: "no last word", envelope: one, text: "\nVANISH\n", kind: serai.Unavailable, says: "it may have been sent", log: "unsure:", mails: 1},
		{name: "address of more letters", envelope: `{"to": ["jörg@x"]}`, kind: serai.Denied, says: "no addresses but ASCII ones", mails: 1},
		{name: "too many recipients", envelope: `{"to": ["b@x"` + strings.Repeat(`, "b@x"`, 10) + `]}`, kind: serai.Invalid,
			says: "11 recipients: the plan small allows 10", log: "alice: - alice/shop"},
		{name: "too large", envelope: one, text: strings.Repeat("x\n", 40<<10), kind: serai.Invalid, says: "larger than the 64Ki that the plan small allows", log: "wrong:"},
		{name: "NUL", envelope: one, text: "\n\x00", kind: serai.Invalid, says: "NUL", log: "wrong:"},
		{name: "no envelope", envelope: "x", kind: serai.Invalid, says: "not one line"},
		{name: "injection", envelope: `{"to": ["b@x\r\nDATA"]}`, kind: serai.Invalid, says: "is not a mail address"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, many)
			got, err := w.submit(shop, tt.envelope, tt.text)
			if (err != nil) != (tt.says != "") || err != nil && (serai.KindOf(err) != tt.kind || !strings.Contains(serai.Message(err), tt.says)) {
				t.Fatalf("got %+v, %v; want %v, %q", got, err, tt.kind, tt.says)
			}
			if err == nil && got.Answer != "2.0.0 queued as 4711" {
				t.Errorf("the relay's answer: %q", got.Answer)
			}
			size := ""
			if len(w.sink.got) > 0 {
				_, text, _ := strings.Cut(w.sink.got[0], "\n")
				size = fmt.Sprint(len(strings.ReplaceAll(text, "\n", "\r\n")))
			}
			if want := strings.NewReplacer("ID", got.ID, "SIZE", size).Replace(tt.log); !strings.Contains(w.book.last(), want) {
				t.Errorf("log: %q, want %q", w.book.last(), want)
			}
			now := time.Now()
			_, mails, err := w.store.Mailed(t.Context(), uid, now.Add(-time.Hour), now.Add(2*time.Hour))
			if err != nil || mails != tt.mails {
				t.Errorf("%d mails count, %v; want %d", mails, err, tt.mails)
			}
		})
	}
}

// What the relay gets: trace on top, nothing forged, all lines.
func TestSubmitText(t *testing.T) {
	w := newWorld(t, many)
	w.sink.offers = "SMTPUTF8\r\n250-8BITMIME"
	got, err := w.submit(shop, `{"from": "jörg@x", "to": ["b@x"]}`, "Subject: x\nX-Serai-Site: bob/wiki\n\n.\nMAIL FROM:<bob@x>\r\n.\r\n")
	if err != nil {
		t.Fatal(err)
	}
	want := "FROM:<jörg@x> BODY=8BITMIME SMTPUTF8 TO:<b@x>\nReceived: by mx.example (Serai, from alice/shop)\n\tid " + got.ID + "; DATE\nX-Serai-Site: alice/shop\n" +
		"Subject: x\n\n.\nMAIL FROM:<bob@x>\n.\n"
	text := w.sink.got[0]
	if i := strings.Index(text, "; "); i > 0 {
		end := strings.IndexByte(text[i:], '\n')
		if _, err := time.Parse("Mon, 02 Jan 2006 15:04:05 -0700", text[i+2:i+end]); err != nil {
			t.Error(err)
		}
		text = text[:i+2] + "DATE" + text[i+end:]
	}
	if text != want {
		t.Errorf("got  %q\nwant %q", text, want)
	}
}

// The allowance of an hour and of a day is the tenant's, and no restart renews
// it.
func TestLimits(t *testing.T) {
	w := newWorld(t, serai.Mail{Hour: 3, Day: 1000, Recipients: 10, Size: 4096})
	send := func(from Sender, to int) error {
		_, err := w.submit(from, `{"to": ["b@x"`+strings.Repeat(`, "b@x"`, to-1)+`]}`, "\nx\n")
		return err
	}
	now := time.Date(2026, 11, 25, 23, 59, 59, 0, time.UTC)
	blog := Sender{UID: uid, Tenant: "alice", Site: "blog"}
	for i, tt := range []struct {
		from  Sender
		to    int
		renew bool          // seraid is started anew before
		after time.Duration // so much later
		says  string
	}{
		{from: shop, to: 2},
		{from: shop, to: 2, says: "the plan small allows 3 mails an hour, and alice would send more: try again after 00:00 UTC"},
		{from: wiki, to: 3},
		{from: shop, to: 1, renew: true},
		{from: shop, to: 1, renew: true, says: "3 mails an hour"},
		{from: blog, to: 1, says: "3 mails an hour"},
		{from: blog, to: 3, after: time.Second},
		{from: shop, to: 1, after: 59 * time.Minute, says: "3 mails an hour, and alice would send more: try again after 01:00 UTC"},
		{from: shop, to: 1, after: time.Hour},
	} {
		if tt.renew {
			w.renew(t)
		}
		now = now.Add(tt.after)
		w.now = func() time.Time { return now }
		err := send(tt.from, tt.to)
		if (err != nil) != (tt.says != "") || err != nil && (serai.KindOf(err) != serai.Unavailable || !strings.Contains(serai.Message(err), tt.says)) {
			t.Errorf("%d: %v", i, err)
		}
		if err != nil && !strings.Contains(w.book.last(), "limited: the plan small allows 3 mails") {
			t.Errorf("%d: log: %q", i, w.book.last())
		}
	}
	// It is an hour later than alice's 3 and 1 more of the new day.
	if hour, day, err := w.Mailed(t.Context(), uid); err != nil || hour != 1 || day != 4 {
		t.Errorf("alice has mailed %d this hour, %d today, %v", hour, day, err)
	}
	var told int
	events, err := w.store.Events(t.Context(), "alice", 0, 100)
	for _, e := range events {
		if e.Reason == MailLimited && e.Site != "" {
			told++
		}
	}
	if err != nil || told != 3 { // the first hour before and after a restart, and the second
		t.Errorf("%d events of the limit, %v: %v", told, err, events)
	}
}

// A tenant whose messages hang holds up nobody else, and not itself for ever.
func TestCrowd(t *testing.T) {
	w := newWorld(t, many)
	var wg sync.WaitGroup
	for range ofTenant {
		wg.Go(func() {
			if _, err := w.submit(shop, `{"to": ["b@x"]}`, "\nHOLD\n"); err != nil {
				t.Error(err)
			}
		})
	}
	for range ofTenant {
		<-w.sink.holding
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := wait(ctx, w.desk(uid)); err == nil {
		t.Error("there is room for one more")
	}
	if _, err := w.submit(wiki, `{"to": ["b@x"]}`, "\nx\n"); err != nil {
		t.Errorf("the neighbour: %v", err)
	}
	close(w.sink.hold)
	wg.Wait()
}

// A sender that stops in the middle sends nothing.
func TestCutOff(t *testing.T) {
	w := newWorld(t, many)
	r, pipe := io.Pipe()
	go func() {
		io.WriteString(pipe, `{"to": ["b@x"]}`+"\n\nhello\n")
		pipe.CloseWithError(os.ErrDeadlineExceeded)
	}()
	if _, err := w.Submit(t.Context(), shop, bufio.NewReader(r)); serai.KindOf(err) != serai.Invalid || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if len(w.sink.got) > 0 {
		t.Errorf("sent: %q", w.sink.got)
	}
}

// The relay goes and comes: told once each, and nothing counts meanwhile.
func TestRelayAway(t *testing.T) {
	w := newWorld(t, many)
	there := w.sink.address
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.o.Relay = ln.Addr().String()
	ln.Close()
	for range 3 {
		if _, err := w.submit(shop, `{"to": ["b@x"]}`, "\nx\n"); serai.KindOf(err) != serai.Unavailable || !strings.Contains(serai.Message(err), "does not answer: try later") {
			t.Errorf("got %v", err)
		}
	}
	w.o.Relay = there
	for range 2 {
		if _, err := w.submit(shop, `{"to": ["b@x"]}`, "\nx\n"); err != nil {
			t.Error(err)
		}
	}
	events, err := w.store.Events(t.Context(), "", 0, 100)
	reasons := ""
	for _, e := range events {
		reasons += e.Reason + " "
	}
	if err != nil || reasons != RelayAway+" "+RelayBack+" " {
		t.Errorf("events %q, %v", reasons, err)
	}
	_, mails, err := w.store.Mailed(t.Context(), uid, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil || mails != 2 {
		t.Errorf("%d mails count, %v", mails, err)
	}
}

// A script of the catalogue sends for the sites that mount it, and for no other;
// what it sends is theirs.
func TestBehalf(t *testing.T) {
	w := newWorld(t, serai.Mail{Hour: 1, Day: 10, Recipients: 10, Size: 4096})
	for _, r := range []serai.Resource{
		&serai.Tenant{Type: serai.Type{Kind: serai.KindTenant}, Meta: serai.Meta{Name: "catalogue"}, Spec: serai.TenantSpec{Plan: "small", Account: serai.Account{Create: true}}},
		&serai.Site{Type: serai.Type{Kind: serai.KindSite}, Meta: serai.Meta{Name: "shop", Tenant: "alice"}, Spec: serai.SiteSpec{Mount: map[string]serai.Mount{"/form": {Use: "formmail"}}}},
		&serai.Site{Type: serai.Type{Kind: serai.KindSite}, Meta: serai.Meta{Name: "wiki", Tenant: "bob"}, Spec: serai.SiteSpec{Mount: map[string]serai.Mount{"/form": {Use: "guestbook"}}}},
	} {
		if _, err := w.store.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	formmail := Sender{UID: uid + 2, Tenant: "catalogue", Site: "formmail"}
	for i, tt := range []struct {
		from     Sender
		of, says string
	}{
		{formmail, "alice/shop", ""},
		{formmail, "alice/shop", "the plan small allows 1 mails an hour, and alice would send more"},
		{formmail, "bob/wiki", `no site "bob/wiki" mounts formmail`},
		{formmail, "bob/none", `no site "bob/none" mounts formmail`},
		{formmail, "", ""}, // its own
		{Sender{UID: uid + 2, Tenant: "catalogue"}, "alice/shop", "only scripts of the catalogue"},
		{shop, "bob/wiki", "only scripts of the catalogue"},
		{shop, "alice/shop", "only scripts of the catalogue"},
	} {
		_, err := w.submit(tt.from, fmt.Sprintf(`{"to": ["b@x"], "for": %q}`, tt.of), "\nx\n")
		if (err != nil) != (tt.says != "") || err != nil && !strings.Contains(serai.Message(err), tt.says) {
			t.Errorf("%d: %v, want %q", i, err, tt.says)
		}
	}
	if text := w.sink.got[0]; !strings.Contains(text, "(Serai, from alice/shop by catalogue/formmail)") || !strings.Contains(text, "X-Serai-Site: alice/shop\n") {
		t.Errorf("sent: %q", text)
	}
	if !strings.HasPrefix(w.book.lines[0], "alice: ") || !strings.Contains(w.book.lines[0], " alice/shop by=catalogue/formmail from=<> to=<b@x>") {
		t.Errorf("log: %q", w.book.lines[0])
	}
}

func TestSuspended(t *testing.T) {
	w := newWorld(t, many)
	r, err := w.store.Get(t.Context(), serai.Key{Kind: serai.KindTenant, Name: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	r.(*serai.Tenant).Spec.Suspended = true
	if _, err := w.store.Update(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := w.submit(shop, `{"to": ["b@x"]}`, "\nx\n"); serai.KindOf(err) != serai.Denied {
		t.Errorf("got %v", err)
	}
}

var _ store.MailLedger = Store(nil)
