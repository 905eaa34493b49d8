package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"serai.dev/serai"
)

// AddEvent implements store.Store. An event without a time is of now.
func (s *Store) AddEvent(ctx context.Context, e serai.Event) (serai.Event, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = time.Unix(0, e.Time.UnixNano()).UTC()
	fields, err := json.Marshal(e.Fields)
	if err != nil {
		return serai.Event{}, fmt.Errorf("encode the fields of an event: %w", err)
	}
	err = s.do(ctx, func(t *tx) (err error) {
		if e.ID, err = t.nextID("Event"); err != nil {
			return err
		}
		t.event = true
		return t.exec("INSERT INTO events (id, time, severity, reason, tenant, site, message, fields) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			e.ID, e.Time.UnixNano(), e.Severity, e.Reason, e.Tenant, e.Site, e.Message, string(fields))
	})
	if err != nil {
		return serai.Event{}, err
	}
	return e, nil
}

// Events implements store.Store.
func (s *Store) Events(ctx context.Context, tenant string, after int64, limit int) ([]serai.Event, error) {
	if limit <= 0 {
		return nil, nil // to SQLite a negative limit is none
	}
	es, err := s.eventsAfter(ctx, tenant, after, limit)
	return es, s.explain(err)
}

func (s *Store) eventsAfter(ctx context.Context, tenant string, after int64, limit int) (es []serai.Event, err error) {
	query, args := "SELECT id, time, severity, reason, tenant, site, message, fields FROM events WHERE id > ?", []any{after}
	if tenant != "" {
		query, args = query+" AND tenant = ?", append(args, tenant)
	}
	query += " ORDER BY id"
	if after < 0 {
		query += " DESC"
	}
	rows, err := s.read.QueryContext(ctx, query+" LIMIT ?", append(args, limit)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			e      serai.Event
			nanos  int64
			fields []byte
		)
		if err := rows.Scan(&e.ID, &nanos, &e.Severity, &e.Reason, &e.Tenant, &e.Site, &e.Message, &fields); err != nil {
			return nil, err
		}
		e.Time = time.Unix(0, nanos).UTC()
		if err := json.Unmarshal(fields, &e.Fields); err != nil {
			return nil, fmt.Errorf("read event %d: %w", e.ID, err)
		}
		es = append(es, e)
	}
	if after < 0 {
		slices.Reverse(es)
	}
	return es, rows.Err()
}

// WaitEvents implements store.Store: ctx's error where ctx ended.
func (s *Store) WaitEvents(ctx context.Context, after int64) error {
	for {
		news := s.events.heard()
		var there bool
		if err := s.read.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM events WHERE id > ?)", after).Scan(&there); err != nil {
			return s.explain(err)
		}
		if there {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.quit:
			return errClosed
		}
	}
}

// eventsAtOnce is how many events are forgotten at a time, so that a month of
// them holds no other writer up.
const eventsAtOnce = 1000

// PruneEvents implements store.Store.
func (s *Store) PruneEvents(ctx context.Context, t time.Time) error {
	for {
		var left bool
		err := s.do(ctx, func(tx *tx) error {
			err := tx.exec("DELETE FROM events WHERE id IN (SELECT id FROM events WHERE time < ? LIMIT ?)", t.UnixNano(), eventsAtOnce)
			if err != nil {
				return err
			}
			return tx.row("SELECT EXISTS (SELECT 1 FROM events WHERE time < ?)", t.UnixNano()).Scan(&left)
		})
		if err != nil || !left {
			return err
		}
	}
}
