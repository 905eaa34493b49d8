// Package store says what keeps the resources, so that it can be SQLite on one
// machine and the Kubernetes API for many. It holds no implementation: see
// store/sqlite, and store/storetest for the test that every one must pass.
package store

import (
	"context"
	"time"

	"serai.dev/serai"
)

// A Store keeps resources, host claims and events. All methods may be called
// concurrently. What a method acknowledged survives SIGKILL and power loss.
// There is no transaction over several objects. Errors are serai.Error of the
// kinds named; others are Internal. Resources passed in are not kept, those
// passed out are the caller's own.
type Store interface {
	// Get returns one resource, or NotFound.
	Get(ctx context.Context, key serai.Key) (serai.Resource, error)

	// List returns all resources of a kind in order of tenant and name, of one tenant
	// where tenant is not empty, and the revision at which the list was true:
	// Watch from it misses nothing.
	List(ctx context.Context, kind, tenant string) ([]serai.Resource, string, error)

	// Create keeps a new resource, gives it ID, Revision, Created and
	// Generation 1, and returns it. It is idempotent: where a resource of the
	// same key and the same specification exists, that one is returned. Where
	// the specification differs or deletion was asked for, it is a Conflict.
	// The status given is kept. A tenant that adopts an account brings its uid
	// as Meta.ID: Invalid without, Conflict where another tenant has it.
	// Unavailable where no ID is left.
	Create(ctx context.Context, r serai.Resource) (serai.Resource, error)

	// Update replaces the specification and the finalizers if Meta.Revision is
	// still the stored one, else Conflict; NotFound where it is gone. A
	// changed specification raises Generation. The stored status is kept. A
	// deleted resource whose last finalizer goes is removed. An update that
	// changes nothing keeps the revision and is no change to watch.
	Update(ctx context.Context, r serai.Resource) (serai.Resource, error)

	// UpdateStatus replaces the status alone, by the same rule.
	UpdateStatus(ctx context.Context, r serai.Resource) (serai.Resource, error)

	// Delete marks the resource as deleted, or removes it at once where it has
	// no finalizers. An empty revision means whatever it is. NotFound where it
	// is gone, Conflict where it changed since the revision; repeating it on a
	// marked one does nothing, whatever the revision.
	Delete(ctx context.Context, key serai.Key, revision string) error

	// Watch returns every change after a revision, in order, as a channel that
	// is closed when ctx ends, when the reader is too slow, or on an error:
	// then watch again from the last revision seen. Expired where the store no
	// longer knows the changes since then: list again. An empty revision is now.
	Watch(ctx context.Context, revision string) (<-chan Change, error)

	// Claim makes a host name the site's, unless it is somebody else's: it
	// returns who holds it then. Idempotent. The host is in lower case, exact
	// or a wildcard such as *.example.com, and is compared as it is written.
	// NotFound where the site does not exist; when it is removed for good, its
	// claims go with it.
	Claim(ctx context.Context, host string, site serai.Key) (holder serai.Key, err error)
	// Release gives up a claim; one that is not the site's is left alone.
	Release(ctx context.Context, host string, site serai.Key) error
	// Claims lists the hosts that a site holds, in order.
	Claims(ctx context.Context, site serai.Key) ([]string, error)

	// AddEvent keeps an event and returns it with its ID.
	AddEvent(ctx context.Context, e serai.Event) (serai.Event, error)
	// Events returns the events with an ID greater than after, oldest first,
	// at most limit, of one tenant where tenant is not empty. With a negative
	// after: the newest limit ones.
	Events(ctx context.Context, tenant string, after int64, limit int) ([]serai.Event, error)
	// WaitEvents returns when there may be events with an ID greater than
	// after, or ctx's error when ctx ends.
	WaitEvents(ctx context.Context, after int64) error
	// PruneEvents forgets events older than t.
	PruneEvents(ctx context.Context, t time.Time) error

	// Close ends the watches. All that comes later is Unavailable.
	Close() error
}

// A Change is what happened to one resource: as it is after the change, or as
// it last was where Removed.
type Change struct {
	Revision string
	Removed  bool
	Resource serai.Resource
}
