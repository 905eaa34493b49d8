package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

// kept is the part of a store that a journal writes to.
type kept struct {
	store.Store
	mu     sync.Mutex
	events []serai.Event
}

func (k *kept) all() []serai.Event {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.events
}

func (k *kept) AddEvent(_ context.Context, e serai.Event) (serai.Event, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events = append(k.events, e)
	return e, nil
}

func (k *kept) PruneEvents(context.Context, time.Time) error { return nil }

func TestJournalCountsFloods(t *testing.T) {
	for _, tt := range []struct {
		name  string
		n     int
		event func(i int) serai.Event
		first int // events at once
		then  int // after the time of its flow
		count string
	}{
		{"one", 1, func(int) serai.Event { return serai.Event{Reason: "A"} }, 1, 1, ""},
		{"the same", 100, func(int) serai.Event { return serai.Event{Reason: "A", Message: "m"} }, 1, 2, "99"},
		{"different ones", 100, func(i int) serai.Event { return serai.Event{Reason: "A", Message: fmt.Sprint(i)} }, 10, 11, "90"},
		{"requests", 3, func(i int) serai.Event {
			return serai.Event{Reason: "A", Message: "m", Fields: map[string]string{"request": fmt.Sprint(i)}}
		}, 3, 3, ""},
		{"runs of a job by its schedule", 60, func(i int) serai.Event {
			return serai.Event{Reason: JobDone, Message: fmt.Sprint(i), Fields: map[string]string{"task": "a", "due": "noon"}}
		}, 1, 2, "59"},
		{"runs that were asked for", 5, func(i int) serai.Event {
			return serai.Event{Reason: JobDone, Message: fmt.Sprint(i), Fields: map[string]string{"task": "a"}}
		}, 5, 5, ""},
		{"different jobs", 30, func(i int) serai.Event {
			return serai.Event{Reason: JobFailed, Fields: map[string]string{"task": fmt.Sprint(i)}}
		}, 30, 30, ""},
		{"different sites", 30, func(i int) serai.Event { return serai.Event{Reason: "A", Site: fmt.Sprint(i)} }, 30, 30, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				k := &kept{}
				j := newJournal(k, slog.New(slog.DiscardHandler))
				done := make(chan struct{})
				go func() { j.run(ctx); close(done) }()
				for i := range tt.n {
					j.add(tt.event(i))
				}
				synctest.Wait()
				if len(k.all()) != tt.first {
					t.Errorf("%d events at once; want %d", len(k.all()), tt.first)
				}
				time.Sleep(routine.window + time.Second)
				synctest.Wait()
				if len(k.all()) != tt.then {
					t.Errorf("%d events after a minute; want %d", len(k.all()), tt.then)
				}
				if got := k.all()[len(k.all())-1].Fields["count"]; got != tt.count {
					t.Errorf("count %q; want %q", got, tt.count)
				}
				cancel()
				<-done
			})
		})
	}
}

// What is counted when seraid leaves is told.
func TestJournalEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		k := &kept{}
		j := newJournal(k, slog.New(slog.DiscardHandler))
		done := make(chan struct{})
		go func() { j.run(ctx); close(done) }()
		for range 5 {
			j.add(serai.Event{Reason: "A"})
		}
		cancel()
		<-done
		if len(k.all()) != 2 || k.all()[1].Fields["count"] != "4" {
			t.Errorf("kept %+v", k.all())
		}
	})
}

func TestPrintable(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain", "plain"},
		{" a\nb\tc\r\n", "a b c"},
		{"\x1b[2J\x07", "?[2J?"},
		{"ü € 日本", "ü € 日本"},
		{"\xff\xfe", "?"},
		{"\u202eevil\u2066", "?evil?"},
		{"\u009b31m", "?31m"},
		{strings.Repeat("é", 100), strings.Repeat("é", 23) + "…"},
	} {
		if got := printable(tt.in, 50); got != tt.want {
			t.Errorf("printable(%q) = %q; want %q", tt.in, got, tt.want)
		}
	}
}
