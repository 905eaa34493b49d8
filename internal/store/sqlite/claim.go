package sqlite

import (
	"context"
	"database/sql"
	"errors"

	"serai.dev/serai"
)

// Claim implements store.Store. NotFound where the site does not exist: its
// claims go when it goes.
func (s *Store) Claim(ctx context.Context, host string, site serai.Key) (holder serai.Key, err error) {
	err = s.do(ctx, func(t *tx) error {
		holder = serai.Key{Kind: serai.KindSite}
		err := t.row("SELECT tenant, site FROM claims WHERE host = ?", host).Scan(&holder.Tenant, &holder.Name)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		var id int64
		err = t.row("SELECT id FROM resources WHERE kind = ? AND tenant = ? AND name = ?",
			serai.KindSite, site.Tenant, site.Name).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) || err == nil && site.Kind != serai.KindSite {
			return notFound(site)
		}
		if err != nil {
			return err
		}
		holder = site
		return t.exec("INSERT INTO claims (host, kind, tenant, site) VALUES (?, 'Site', ?, ?)", host, site.Tenant, site.Name)
	})
	if err != nil {
		return serai.Key{}, err
	}
	return holder, nil
}

// Release implements store.Store.
func (s *Store) Release(ctx context.Context, host string, site serai.Key) error {
	return s.do(ctx, func(t *tx) error {
		return t.exec("DELETE FROM claims WHERE host = ? AND tenant = ? AND site = ?", host, site.Tenant, site.Name)
	})
}

// Claims implements store.Store.
func (s *Store) Claims(ctx context.Context, site serai.Key) ([]string, error) {
	hosts, err := s.claims(ctx, site)
	return hosts, s.explain(err)
}

func (s *Store) claims(ctx context.Context, site serai.Key) (hosts []string, err error) {
	rows, err := s.read.QueryContext(ctx,
		"SELECT host FROM claims WHERE kind = 'Site' AND tenant = ? AND site = ? ORDER BY host", site.Tenant, site.Name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var host string
		if err := rows.Scan(&host); err != nil {
			return nil, err
		}
		hosts = append(hosts, host)
	}
	return hosts, rows.Err()
}
