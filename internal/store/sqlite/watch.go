package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"

	"serai.dev/serai"
	"serai.dev/serai/internal/store"
)

// A bell tells all that wait that something is new. The zero bell is ready.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

// heard is closed at the next ring. Take it first, then look for news: so
// none is missed.
func (b *bell) heard() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// changesAtOnce is how many changes a watch reads from the log at a time.
const changesAtOnce = 128

// log keeps a change for the watchers and forgets the one that is now too old.
func (t *tx) log(revision int64, kind string, removed bool, resource []byte) error {
	err := t.exec("INSERT INTO changes (revision, kind, removed, resource) VALUES (?, ?, ?, ?)",
		revision, kind, removed, string(resource))
	if err != nil {
		return err
	}
	t.changed = true
	return t.exec("DELETE FROM changes WHERE revision <= ?", revision-t.w.keep)
}

// Watch implements store.Store. A reader is too slow when it is more than
// Options.KeepChanges behind.
func (s *Store) Watch(ctx context.Context, revision string) (<-chan store.Change, error) {
	// One statement sees one state of the database.
	var last, oldest int64
	err := s.read.QueryRowContext(ctx, "SELECT last, (SELECT coalesce(min(revision), last + 1) FROM changes)"+
		" FROM sequences WHERE name = 'revision'").Scan(&last, &oldest)
	if err != nil {
		return nil, s.explain(err)
	}
	after := last
	if revision != "" {
		if after, err = strconv.ParseInt(revision, 10, 64); err != nil {
			return nil, serai.Errorf(serai.Invalid, "%q is not a revision", revision)
		}
	}
	// A revision of the future is one from before a backup was restored.
	if after < oldest-1 || after > last {
		return nil, serai.Errorf(serai.Expired, "the changes since revision %d are not known any more", after).
			WithHint("list again and watch from there")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.quit:
		return nil, errClosed
	default:
	}
	ch := make(chan store.Change)
	s.watchers.Go(func() {
		defer close(ch)
		s.follow(ctx, after, ch)
	})
	return ch, nil
}

// follow sends what comes after a revision until it cannot.
func (s *Store) follow(ctx context.Context, after int64, ch chan<- store.Change) {
	for {
		news := s.changes.heard()
		changes, err := s.changesAfter(ctx, after)
		if err != nil {
			return
		}
		for _, c := range changes {
			select {
			case ch <- c:
				after++
			case <-ctx.Done():
				return
			case <-s.quit:
				return
			}
		}
		if len(changes) > 0 {
			continue
		}
		select {
		case <-news:
		case <-ctx.Done():
			return
		case <-s.quit:
			return
		}
	}
}

// changesAfter reads the next changes of the log. It is an error where they
// were forgotten: revisions have no gaps.
func (s *Store) changesAfter(ctx context.Context, after int64) (changes []store.Change, err error) {
	rows, err := s.read.QueryContext(ctx, "SELECT revision, kind, removed, resource FROM changes"+
		" WHERE revision > ? ORDER BY revision LIMIT ?", after, changesAtOnce)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			revision int64
			kind     string
			body     []byte
			c        store.Change
		)
		if err := rows.Scan(&revision, &kind, &c.Removed, &body); err != nil {
			return nil, err
		}
		if after++; revision != after {
			return nil, fmt.Errorf("revision %d is forgotten", after)
		}
		c.Revision = strconv.FormatInt(revision, 10)
		if c.Resource = serai.NewResource(kind); c.Resource == nil {
			return nil, fmt.Errorf("read revision %d: unknown kind %q", revision, kind)
		}
		if err := json.Unmarshal(body, c.Resource); err != nil {
			return nil, fmt.Errorf("read revision %d: %w", revision, err)
		}
		changes = append(changes, c)
	}
	return changes, rows.Err()
}
