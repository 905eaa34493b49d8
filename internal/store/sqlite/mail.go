package sqlite

import (
	"context"
	"time"

	"serai.dev/serai/internal/store"
)

var _ store.MailLedger = (*Store)(nil)

// hourOf is the number of an hour since 1970.
func hourOf(t time.Time) int64 { return t.Unix() / int64(store.MailHour/time.Second) }

const hoursOfDay = int64(store.MailDay / store.MailHour)

// TakeMail implements store.MailLedger.
func (s *Store) TakeMail(ctx context.Context, uid uint32, at time.Time, mails, hour, day int64) (full time.Duration, err error) {
	now := hourOf(at)
	midnight := now - now%hoursOfDay
	err = s.do(ctx, func(t *tx) error {
		full = 0
		var inHour, inDay int64
		err := t.row("SELECT coalesce(sum(mails) FILTER (WHERE hour = ?), 0), coalesce(sum(mails), 0) FROM mail WHERE uid = ? AND hour >= ? AND hour < ?",
			now, uid, midnight, midnight+hoursOfDay).Scan(&inHour, &inDay)
		switch {
		case err != nil:
			return err
		case inDay+mails > day:
			full = store.MailDay
			return nil
		case inHour+mails > hour:
			full = store.MailHour
			return nil
		}
		if inHour == 0 {
			if err := t.exec("DELETE FROM mail WHERE uid = ? AND hour < ?", uid, hourOf(at.Add(-store.MailKept))); err != nil {
				return err
			}
		}
		return t.exec("INSERT INTO mail (uid, hour, messages, mails) VALUES (?, ?, 1, ?) ON CONFLICT (uid, hour) DO UPDATE SET messages = messages + 1, mails = mails + excluded.mails",
			uid, now, mails)
	})
	return full, err
}

// GiveMail implements store.MailLedger.
func (s *Store) GiveMail(ctx context.Context, uid uint32, at time.Time, mails int64) error {
	return s.do(ctx, func(t *tx) error {
		return t.exec("UPDATE mail SET messages = max(messages - 1, 0), mails = max(mails - ?, 0) WHERE uid = ? AND hour = ?", mails, uid, hourOf(at))
	})
}

// Mailed implements store.MailLedger.
func (s *Store) Mailed(ctx context.Context, uid uint32, from, to time.Time) (messages, mails int64, err error) {
	err = s.read.QueryRowContext(ctx, "SELECT coalesce(sum(messages), 0), coalesce(sum(mails), 0) FROM mail WHERE uid = ? AND hour >= ? AND hour < ?",
		uid, hourOf(from), hourOf(to)).Scan(&messages, &mails)
	return messages, mails, s.explain(err)
}
