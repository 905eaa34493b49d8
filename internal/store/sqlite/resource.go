package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"serai.dev/serai"
)

// A record is a resource as its row has it.
type record struct {
	key          serai.Key
	meta         serai.Meta
	spec, status []byte // JSON
}

const columns = "kind, tenant, name, id, revision, generation, spec, status, finalizers, created, deleted"

func newRecord(r serai.Resource) (rec record, err error) {
	rec = record{key: r.Key(), meta: *r.GetMeta()}
	rec.meta.Finalizers = slices.Clone(rec.meta.Finalizers)
	rec.meta.Name, rec.meta.Tenant = rec.key.Name, rec.key.Tenant
	if rec.spec, err = json.Marshal(r.SpecOf()); err != nil {
		return rec, fmt.Errorf("encode the specification of %s: %w", rec.key, err)
	}
	if rec.status, err = json.Marshal(r.StatusOf()); err != nil {
		return rec, fmt.Errorf("encode the status of %s: %w", rec.key, err)
	}
	return rec, nil
}

func (rec record) resource() (serai.Resource, error) {
	r := serai.NewResource(rec.key.Kind)
	if r == nil {
		return nil, fmt.Errorf("read %s: unknown kind %q", rec.key, rec.key.Kind)
	}
	if err := json.Unmarshal(rec.spec, r.SpecOf()); err != nil {
		return nil, fmt.Errorf("read the specification of %s: %w", rec.key, err)
	}
	if err := json.Unmarshal(rec.status, r.StatusOf()); err != nil {
		return nil, fmt.Errorf("read the status of %s: %w", rec.key, err)
	}
	*r.GetMeta() = rec.meta
	return r, nil
}

func scan(row scanner) (rec record, err error) {
	var (
		revision, created int64
		deleted           sql.NullInt64
		finalizers        []byte
	)
	m := &rec.meta
	err = row.Scan(&rec.key.Kind, &rec.key.Tenant, &rec.key.Name, &m.ID, &revision, &m.Generation,
		&rec.spec, &rec.status, &finalizers, &created, &deleted)
	if err != nil {
		return rec, err
	}
	m.Name, m.Tenant = rec.key.Name, rec.key.Tenant
	m.Revision = strconv.FormatInt(revision, 10)
	m.Created = time.Unix(0, created).UTC()
	if deleted.Valid {
		t := time.Unix(0, deleted.Int64).UTC()
		m.Deleted = &t
	}
	if err := json.Unmarshal(finalizers, &m.Finalizers); err != nil {
		return rec, fmt.Errorf("read the finalizers of %s: %w", rec.key, err)
	}
	return rec, nil
}

// find returns the record of a key, or sql.ErrNoRows. Its JSON is as this
// program writes it, also where an older one wrote the row: so specifications
// can be compared as bytes.
func (t *tx) find(k serai.Key) (record, error) {
	rec, err := scan(t.row("SELECT "+columns+" FROM resources WHERE kind = ? AND tenant = ? AND name = ?",
		k.Kind, k.Tenant, k.Name))
	if err != nil {
		return rec, err
	}
	r, err := rec.resource()
	if err != nil {
		return rec, err
	}
	return newRecord(r)
}

// findRevision is find where the revision must still be the given one.
func (t *tx) findRevision(k serai.Key, revision string) (record, error) {
	rec, err := t.find(k)
	if errors.Is(err, sql.ErrNoRows) {
		return rec, notFound(k)
	}
	if err == nil && rec.meta.Revision != revision {
		return rec, changed(k)
	}
	return rec, err
}

// put writes the record as the next revision, to its row and to the log.
func (t *tx) put(rec *record) error {
	revision, body, err := t.next(rec)
	if err != nil {
		return err
	}
	finalizers, err := json.Marshal(rec.meta.Finalizers)
	if err != nil {
		return err
	}
	var deleted sql.NullInt64
	if d := rec.meta.Deleted; d != nil {
		deleted = sql.NullInt64{Int64: d.UnixNano(), Valid: true}
	}
	err = t.exec("INSERT INTO resources ("+columns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"+
		" ON CONFLICT (kind, tenant, name) DO UPDATE SET revision = excluded.revision, generation = excluded.generation,"+
		" spec = excluded.spec, status = excluded.status, finalizers = excluded.finalizers, deleted = excluded.deleted",
		rec.key.Kind, rec.key.Tenant, rec.key.Name, rec.meta.ID, revision, rec.meta.Generation,
		string(rec.spec), string(rec.status), string(finalizers), rec.meta.Created.UnixNano(), deleted)
	if err != nil {
		return err
	}
	return t.log(revision, rec.key.Kind, false, body)
}

// remove forgets the record for good, and its claims with it.
func (t *tx) remove(rec *record) error {
	revision, body, err := t.next(rec)
	if err != nil {
		return err
	}
	err = t.exec("DELETE FROM resources WHERE kind = ? AND tenant = ? AND name = ?", rec.key.Kind, rec.key.Tenant, rec.key.Name)
	if err != nil {
		return err
	}
	return t.log(revision, rec.key.Kind, true, body)
}

// next gives the record its next revision and returns it as the log keeps it.
func (t *tx) next(rec *record) (revision int64, body []byte, err error) {
	if revision, err = t.nextID("revision"); err != nil {
		return 0, nil, err
	}
	rec.meta.Revision = strconv.FormatInt(revision, 10)
	r, err := rec.resource()
	if err != nil {
		return 0, nil, err
	}
	body, err = json.Marshal(r)
	return revision, body, err
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, k serai.Key) (serai.Resource, error) {
	rec, err := scan(s.read.QueryRowContext(ctx, "SELECT "+columns+
		" FROM resources WHERE kind = ? AND tenant = ? AND name = ?", k.Kind, k.Tenant, k.Name))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, notFound(k)
	}
	if err != nil {
		return nil, s.explain(err)
	}
	return rec.resource()
}

// List implements store.Store. Sites are in order of tenant, then of name.
func (s *Store) List(ctx context.Context, kind, tenant string) ([]serai.Resource, string, error) {
	if serai.NewResource(kind) == nil {
		return nil, "", unknownKind(kind)
	}
	all, revision, err := s.list(ctx, kind, tenant)
	return all, revision, s.explain(err)
}

func (s *Store) list(ctx context.Context, kind, tenant string) (all []serai.Resource, revision string, err error) {
	// One transaction: the list is of the revision that goes with it.
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return nil, "", err
	}
	defer tx.Rollback() // it only reads
	var last int64
	if err := tx.QueryRowContext(ctx, "SELECT last FROM sequences WHERE name = 'revision'").Scan(&last); err != nil {
		return nil, "", err
	}
	query, args := "SELECT "+columns+" FROM resources WHERE kind = ?", []any{kind}
	if tenant != "" {
		query, args = query+" AND tenant = ?", append(args, tenant)
	}
	rows, err := tx.QueryContext(ctx, query+" ORDER BY tenant, name", args...)
	if err != nil {
		return nil, "", err
	}
	defer rows.Close()
	for rows.Next() {
		rec, err := scan(rows)
		if err != nil {
			return nil, "", err
		}
		r, err := rec.resource()
		if err != nil {
			return nil, "", err
		}
		all = append(all, r)
	}
	return all, strconv.FormatInt(last, 10), rows.Err()
}

// Create implements store.Store. Meta.ID is taken from a tenant whose account
// is adopted: it is the uid of that account, Conflict where another tenant has
// it. Unavailable where no uid is left.
func (s *Store) Create(ctx context.Context, r serai.Resource) (serai.Resource, error) {
	rec, err := newRecord(r)
	if err != nil {
		return nil, err
	}
	if serai.NewResource(rec.key.Kind) == nil {
		return nil, unknownKind(rec.key.Kind)
	}
	if rec.key.Name == "" || rec.key.Kind == serai.KindSite && rec.key.Tenant == "" {
		return nil, serai.Errorf(serai.Invalid, "a %s needs a name, and a site a tenant", strings.ToLower(rec.key.Kind))
	}
	out := rec
	err = s.do(ctx, func(t *tx) error {
		old, err := t.find(rec.key)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return err
		case old.meta.Deleted != nil:
			return serai.Errorf(serai.Conflict, "%s is being deleted", describe(rec.key)).WithHint("wait until it is gone")
		case !bytes.Equal(old.spec, rec.spec):
			return serai.Errorf(serai.Conflict, "%s exists with another specification", describe(rec.key)).
				WithHint("read it, then update it")
		default:
			out = old
			return nil
		}
		if out.meta.ID, err = t.newID(r, s.o); err != nil {
			return err
		}
		out.meta.Generation = 1
		out.meta.Created = now()
		out.meta.Deleted = nil
		return t.put(&out)
	})
	if err != nil {
		return nil, err
	}
	return out.resource()
}

// newID gives a new resource its ID.
func (t *tx) newID(r serai.Resource, o Options) (int64, error) {
	tenant, ok := r.(*serai.Tenant)
	if !ok {
		return t.nextID(r.Key().Kind)
	}
	if tenant.Spec.Account.Adopt == "" {
		return t.newUID(o)
	}
	uid := tenant.Meta.ID
	if uid <= 0 || uid >= math.MaxUint32 {
		return 0, serai.Errorf(serai.Invalid, "the uid of the account %q, which the tenant %s adopts, is not known",
			tenant.Spec.Account.Adopt, tenant.Meta.Name)
	}
	var other string
	err := t.row("SELECT name FROM resources WHERE kind = 'Tenant' AND id = ?", uid).Scan(&other)
	if err == nil {
		return 0, serai.Errorf(serai.Conflict, "uid %d is the tenant %s's already", uid, other)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	return uid, t.exec("INSERT INTO uids (uid, created) VALUES (?, 0) ON CONFLICT DO NOTHING", uid)
}

// newUID gives the uid after the last one given out of the range, so that none
// comes back. It goes around those adopted, and around a range that moved.
func (t *tx) newUID(o Options) (int64, error) {
	uid := int64(o.FirstUID)
	err := t.row("SELECT uid + 1 FROM uids WHERE created AND uid BETWEEN ? AND ? ORDER BY uid DESC LIMIT 1",
		o.FirstUID, o.LastUID).Scan(&uid)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, err
	}
	for ; uid != 0 && uid <= int64(o.LastUID); uid++ {
		var id int64
		err := t.row("INSERT INTO uids (uid, created) VALUES (?, 1) ON CONFLICT DO NOTHING RETURNING uid", uid).Scan(&id)
		if !errors.Is(err, sql.ErrNoRows) {
			return uid, err
		}
	}
	return 0, serai.Errorf(serai.Unavailable, "no uid is left in accounts.range %d-%d", o.FirstUID, o.LastUID).
		WithHint("uids are never given out twice: widen accounts.range in serai.yaml")
}

// Update implements store.Store. One that changes nothing keeps the revision.
func (s *Store) Update(ctx context.Context, r serai.Resource) (serai.Resource, error) {
	return s.update(ctx, r, func(rec *record, in record) bool {
		if bytes.Equal(rec.spec, in.spec) && slices.Equal(rec.meta.Finalizers, in.meta.Finalizers) {
			return false
		}
		if !bytes.Equal(rec.spec, in.spec) {
			rec.spec = in.spec
			rec.meta.Generation++
		}
		rec.meta.Finalizers = in.meta.Finalizers
		return true
	})
}

// UpdateStatus implements store.Store. One that changes nothing keeps the
// revision.
func (s *Store) UpdateStatus(ctx context.Context, r serai.Resource) (serai.Resource, error) {
	return s.update(ctx, r, func(rec *record, in record) bool {
		if bytes.Equal(rec.status, in.status) {
			return false
		}
		rec.status = in.status
		return true
	})
}

// update changes what is stored if it is still at r's revision. The function
// says whether there was anything to change.
func (s *Store) update(ctx context.Context, r serai.Resource, change func(rec *record, in record) bool) (serai.Resource, error) {
	in, err := newRecord(r)
	if err != nil {
		return nil, err
	}
	var rec record
	err = s.do(ctx, func(t *tx) (err error) {
		if rec, err = t.findRevision(in.key, in.meta.Revision); err != nil || !change(&rec, in) {
			return err
		}
		if rec.meta.Deleted != nil && len(rec.meta.Finalizers) == 0 {
			return t.remove(&rec)
		}
		return t.put(&rec)
	})
	if err != nil {
		return nil, err
	}
	return rec.resource()
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, k serai.Key, revision string) error {
	return s.do(ctx, func(t *tx) error {
		rec, err := t.find(k)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return notFound(k)
		case err != nil || rec.meta.Deleted != nil:
			return err
		case revision != "" && revision != rec.meta.Revision:
			return changed(k)
		}
		when := now()
		rec.meta.Deleted = &when
		if len(rec.meta.Finalizers) == 0 {
			return t.remove(&rec)
		}
		return t.put(&rec)
	})
}

// now is the time as it is read back.
func now() time.Time { return time.Unix(0, time.Now().UnixNano()).UTC() }

// describe is how sentences call a resource: site alice/shop.
func describe(k serai.Key) string { return strings.ToLower(k.Kind) + " " + k.String() }

func notFound(k serai.Key) error { return serai.Errorf(serai.NotFound, "there is no %s", describe(k)) }

func changed(k serai.Key) error {
	return serai.Errorf(serai.Conflict, "%s was changed by somebody else", describe(k)).
		WithHint("read it again, then decide again")
}

func unknownKind(kind string) error {
	return serai.Errorf(serai.Invalid, "%q is not a kind of resource", kind)
}
