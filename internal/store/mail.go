package store

import (
	"context"
	"time"
)

// A MailLedger counts what tenants mail, by uid, in hours and days of UTC. Its
// methods may be called concurrently, and what they acknowledged survives
// SIGKILL and power loss. Counts are kept for MailKept.
type MailLedger interface {
	// TakeMail counts a message of so many mails (recipients), unless the hour
	// or the day would then hold more than granted. Where it does not, it
	// counts nothing and full says which of the two is used up.
	TakeMail(ctx context.Context, uid uint32, at time.Time, mails, hour, day int64) (full time.Duration, err error)
	// GiveMail takes back what TakeMail counted at that time: the message was
	// not sent.
	GiveMail(ctx context.Context, uid uint32, at time.Time, mails int64) error
	// Mailed is what a tenant mailed from one time up to another, in whole
	// hours.
	Mailed(ctx context.Context, uid uint32, from, to time.Time) (messages, mails int64, err error)
}

// The windows in which mail is counted.
const (
	MailHour = time.Hour
	MailDay  = 24 * time.Hour
)

// MailKept is how long counts are kept at least.
const MailKept = 400 * 24 * time.Hour
