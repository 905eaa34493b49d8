package api

import (
	"context"
	"io"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/catalogue"
	"serai.dev/serai/internal/mail"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// PurgeFinalizer on a deleted Tenant says that its home goes too. The API adds
// it before it deletes; the reconciler removes it when the home is gone.
const PurgeFinalizer = "serai.dev/purge"

// How a site's code is started anew.
type How string

// The two ways. Both leave what runs alone where the new code does not load,
// and for an engine that loads beside what runs they are the same.
const (
	Reload  How = "reload"
	Restart How = "restart"
)

// Log says which log of a site is read.
type Log string

// The logs of a site.
const (
	SiteLog   Log = "site"   // what the site's processes wrote
	AccessLog Log = "access" // the front proxy's
)

// A Controller is what the API needs of the running system beyond the store.
// Its methods may be called concurrently. Errors are serai.Error: NotFound
// where the site is gone, Unavailable where serai-priv or the proxy is away.
//
// What the API writes it writes to the store, and the reconciler sees it there:
// specifications, deletions, Spec.Stopped.
//
// A client that waits for Ready is answered when Ready is True and the status'
// ObservedGeneration has reached the generation asked for, or at once when the
// wish has failed for that generation: Loaded is False, HostTaken is True, or
// Ready is False for the reason "Stopped" or "Suspended". Set
// ObservedGeneration and the conditions in one update.
type Controller interface {
	// Launch starts a site's code anew and returns when it is loaded or has
	// failed to: that is LaunchResult.Loaded, not an error. Conflict where a
	// launch is under way.
	Launch(ctx context.Context, site serai.Key, how How) (privsep.LaunchResult, error)

	// RunJob starts a job of a site now and returns its run. NotFound where the
	// site has no such job; Conflict where it runs already and may not overlap,
	// or the site is stopped.
	RunJob(ctx context.Context, site serai.Key, job string) (serai.Run, error)

	// Stats are the proxy's counters of all sites.
	Stats(ctx context.Context) ([]route.SiteStats, error)

	// Site tells what runs of one site. A part that is away leaves its fields
	// empty.
	Site(ctx context.Context, site serai.Key) (client.Running, error)

	// State tells what runs of Serai itself. The API fills in the counts of
	// resources, the version and the time.
	State(ctx context.Context) (client.Status, error)

	// Logs returns the last lines of a log as text and, where follow is true,
	// goes on with what is added until ctx ends or the reader is closed.
	// A log that does not exist yet is an empty one. lines is 0 to MaxLogLines.
	Logs(ctx context.Context, site serai.Key, log Log, lines int, follow bool) (io.ReadCloser, error)

	// SendMail reads an envelope and a message and hands them to the relay;
	// see mail.Desk.
	SendMail(ctx context.Context, from mail.Sender, in io.Reader) (client.Sent, error)

	// Mailed is how many mails count for a uid in this hour and on this day.
	Mailed(ctx context.Context, uid uint32) (hour, day int64, err error)

	// Shelve reads the files of an entry of the catalogue as a tar and keeps
	// them as a version of its own; see catalogue.Shelf.
	Shelve(ctx context.Context, entry string, archive io.Reader) (catalogue.Version, error)
	// Unshelve forgets the files of an entry.
	Unshelve(ctx context.Context, entry string) error

	// MailLog is Logs for the log of a tenant's mail.
	MailLog(ctx context.Context, tenant string, lines int, follow bool) (io.ReadCloser, error)
}

// MaxLogLines is how many past lines of a log may be asked for.
const MaxLogLines = 10000
