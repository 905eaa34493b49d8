package schedule

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"serai.dev/serai"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct{ text, zone, from, want string }{
		{"15 3 * * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T03:15:00Z 2026-01-02T03:15:00Z"},
		{"15 3 * * *", "Asia/Tokyo", "2026-01-01T00:00:00Z", "2026-01-01T18:15:00Z 2026-01-02T18:15:00Z"},
		{"*/20 * * * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:20:00Z 2026-01-01T00:40:00Z"},
		{"30 * * * * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:00:30Z 2026-01-01T00:01:30Z"},
		{"0 0 13 * 5", "UTC", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z 2026-01-09T00:00:00Z 2026-01-13T00:00:00Z"}, // either day, as in cron
		{"0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z 2032-02-29T00:00:00Z"},
		{"@daily", "UTC", "2026-01-01T12:00:00Z", "2026-01-02T00:00:00Z"},
		{"@every 90s", "UTC", "2026-01-01T00:00:00.5Z", "2026-01-01T00:01:30Z 2026-01-01T00:03:00Z"},
		// The hour of summer time that is left out, and the one that comes twice.
		{"30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:30:00Z 2026-03-30T00:30:00Z"},
		{"0 * * * *", "Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z 2026-03-29T02:00:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z 2026-10-25T01:30:00Z 2026-10-26T01:30:00Z"},
		{"0 3 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T02:00:00Z 2026-10-26T02:00:00Z"},
	} {
		s, err := Parse(tt.text, tt.zone)
		if err != nil {
			t.Errorf("Parse(%q, %q): %v", tt.text, tt.zone, err)
			continue
		}
		at, got := date(t, tt.from), ""
		for len(got) < len(tt.want) {
			at = s.Next(at)
			got += at.Format(time.RFC3339) + " "
		}
		if got != tt.want+" " {
			t.Errorf("%q in %s from %s:\n%s\nwant\n%s", tt.text, tt.zone, tt.from, got, tt.want)
		}
	}
	for _, tt := range []struct{ text, zone string }{
		{"", ""}, {"* * * *", ""}, {"60 * * * *", ""}, {"a b c d e", ""}, {"0 0 31 2 *", ""}, {"@every 10ms", ""},
		{"@reboot", ""}, {"* * * * *", "Middle/Earth"}, {"* * * * *", "../../etc/passwd"}, {"* * * * *", "Local"}, {"TZ=UTC @daily", ""},
		{"CRON_TZ=UTC @daily", ""}, {"H * * * *", ""}, {"*/0 * * * *", ""},
	} {
		if _, err := Parse(tt.text, tt.zone); serai.KindOf(err) != serai.Invalid {
			t.Errorf("Parse(%q, %q): %v", tt.text, tt.zone, err)
		}
	}
}

func date(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestBetween(t *testing.T) {
	s, err := Parse("0 * * * *", "UTC")
	if err != nil {
		t.Fatal(err)
	}
	from := date(t, "2026-01-01T00:00:00Z")
	n, first, last := s.Between(from, from.Add(3*time.Hour))
	if n != 3 || !first.Equal(from.Add(time.Hour)) || !last.Equal(from.Add(3*time.Hour)) {
		t.Errorf("%d from %s to %s", n, first, last)
	}
	if n, first, _ := s.Between(from, from.Add(time.Hour-1)); n != 0 || !first.IsZero() {
		t.Errorf("%d from %s", n, first)
	}
	if n, _, _ := s.Between(from, from.AddDate(100, 0, 0)); n != Most {
		t.Errorf("a hundred years: %d", n)
	}
}

// What a schedule is given as never stops or crashes us, and its times rise.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"15 3 * * *", "*/5 1-3,7 L * MON#1", "@every 1h", "0 0 30 2 *", "? ? ? ? ?"} {
		f.Add(s, "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, text, zone string) {
		s, err := Parse(text, zone)
		if err != nil {
			return
		}
		for at, n := time.Unix(1.8e9, 0), 0; n < 5; n++ {
			next := s.Next(at)
			if next.IsZero() {
				return
			}
			if !next.After(at) {
				t.Fatalf("%q: %s after %s", text, next, at)
			}
			at = next
		}
	})
}

// Ten thousand keys, some set again or taken back: each is called once, at its
// time and in order.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClock[int]()
		ctx, cancel := context.WithCancel(t.Context())
		began, done := time.Now(), make(chan struct{})
		called := map[int]time.Duration{}
		go func() {
			defer close(done)
			c.Run(ctx, func(k int) {
				if _, twice := called[k]; twice {
					t.Errorf("%d was called twice", k)
				}
				called[k] = time.Since(began)
			})
		}()
		want := map[int]time.Duration{}
		for k := range 10000 {
			at := rand.N(24 * time.Hour)
			c.Set(k, began.Add(at))
			if k%3 == 0 {
				at = rand.N(24 * time.Hour)
				c.Set(k, began.Add(at))
			}
			if want[k] = at; k%5 == 0 {
				c.Set(k, time.Time{})
				delete(want, k)
			}
		}
		c.Set(-1, time.Time{})
		time.Sleep(25 * time.Hour)
		cancel()
		<-done
		if fmt.Sprint(called) != fmt.Sprint(want) {
			t.Errorf("%d were called, want %d, each at its time", len(called), len(want))
		}
	})
}
