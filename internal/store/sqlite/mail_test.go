package sqlite

import (
	"path/filepath"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

func TestMailLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serai.db")
	s := openTest(t, path, testOptions())
	at := func(text string) time.Time {
		v, err := time.Parse("2006-01-02 15:04:05", text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for i, tt := range []struct {
		uid              uint32
		at               string
		mails, hour, day int64
		full             time.Duration
		anew             bool // the store is opened anew before
	}{
		{uid: 1, at: "2026-11-25 10:00:00", mails: 3, hour: 4, day: 6},
		{uid: 1, at: "2026-11-25 10:30:00", mails: 2, hour: 4, day: 6, full: store.MailHour},
		{uid: 2, at: "2026-11-25 10:30:00", mails: 4, hour: 4, day: 6},
		{uid: 1, at: "2026-11-25 10:59:59", mails: 1, hour: 4, day: 6, anew: true},
		{uid: 1, at: "2026-11-25 10:59:59", mails: 1, hour: 4, day: 6, full: store.MailHour},
		{uid: 1, at: "2026-11-25 10:59:59", mails: 1, hour: 5, day: 6},                       // a larger plan
		{uid: 1, at: "2026-11-25 11:00:00", mails: 2, hour: 4, day: 6, full: store.MailDay},  // of which 5 are gone
		{uid: 1, at: "2026-11-25 23:59:59", mails: 1, hour: 4, day: 6},                       // the last of the day
		{uid: 1, at: "2026-11-25 23:59:59", mails: 1, hour: 4, day: 6, full: store.MailDay},  //
		{uid: 1, at: "2026-11-26 00:00:00", mails: 4, hour: 4, day: 6},                       // a new day
		{uid: 1, at: "2026-11-25 09:00:00", mails: 1, hour: 4, day: 6, full: store.MailDay},  // a clock that was set back gives no new day
		{uid: 3, at: "2026-11-25 09:00:00", mails: 1, hour: 0, day: 6, full: store.MailHour}, // a plan without mail
		{uid: 3, at: "2026-11-25 09:00:00", mails: 1, hour: 10, day: 0, full: store.MailDay}, //
		{uid: 1, at: "2028-01-01 00:00:00", mails: 4, hour: 4, day: 6, full: 0, anew: false}, // forgets what is old
	} {
		if tt.anew {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openTest(t, path, testOptions())
		}
		full, err := s.TakeMail(t.Context(), tt.uid, at(tt.at), tt.mails, tt.hour, tt.day)
		if err != nil || full != tt.full {
			t.Errorf("%d: full %v, %v; want %v", i, full, err, tt.full)
		}
		if tt.at == "2026-11-26 00:00:00" {
			check := func(what string, wantMessages, wantMails int64) {
				messages, mails, err := s.Mailed(t.Context(), 1, at("2026-11-25 00:00:00"), at("2026-11-27 00:00:00"))
				if err != nil || messages != wantMessages || mails != wantMails {
					t.Errorf("%s: %d messages, %d mails, %v; want %d, %d", what, messages, mails, err, wantMessages, wantMails)
				}
			}
			check("all", 5, 10)
			if err := s.GiveMail(t.Context(), 1, at(tt.at), 4); err != nil {
				t.Fatal(err)
			}
			check("but the last", 4, 6)
		}
	}
	messages, _, err := s.Mailed(t.Context(), 1, at("2020-01-01 00:00:00"), at("2027-12-31 00:00:00"))
	if err != nil || messages != 0 {
		t.Errorf("%d messages are remembered after a year and more, %v", messages, err)
	}
}

// A plan that was stored before there were limits of mail has the default ones.
func TestPlansGetMail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serai.db")
	s := openTest(t, path, testOptions())
	if _, err := s.Create(t.Context(), &serai.Plan{Type: serai.Type{Kind: serai.KindPlan}, Meta: serai.Meta{Name: "old"}, Spec: serai.DefaultPlanSpec()}); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"UPDATE resources SET spec = json_remove(spec, '$.mail')", "DROP TABLE mail", "PRAGMA user_version = 1"} {
		if _, err := s.write.conn.ExecContext(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, path, testOptions())
	r, err := s.Get(t.Context(), serai.Key{Kind: serai.KindPlan, Name: "old"})
	if err != nil || r.(*serai.Plan).Spec != serai.DefaultPlanSpec() {
		t.Errorf("got %+v, %v", r, err)
	}
}
