package sqlite

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"serai.dev/serai"
)

// An ack is what the writer says once the store acknowledged it. A site's
// Step tells what was done with it last; steps only rise.
type ack struct {
	Site     string
	ID       int64
	Revision string
	Step     step
	Event    int64 // its ID, else 0
	Tenant   string
	UID      int64
}

// The life of a site of the writer.
type step int

const (
	absent step = iota
	created
	claimed
	updated
	observed // its status
	told     // an event of it
	removed  // every third one
)

const (
	killRounds    = 25
	roundsPerFile = 5
	killWriters   = 4
)

// TestKill kills a process that writes, at random moments, and looks after
// each time at what it left.
func TestKill(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SERAI_STORE_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("SERAI_STORE_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()

	var path string
	var ids, uids map[int64]string
	acks := 0
	for round := range killRounds {
		if round%roundsPerFile == 0 { // small files are looked through quickly
			path = filepath.Join(dir, fmt.Sprint(round, ".db"))
			ids, uids = map[int64]string{}, map[int64]string{}
		}
		sites, events, tenants := map[string]ack{}, map[int64]string{}, map[string]int64{}
		for _, a := range killAfter(t, path, round, random.IntN(150), time.Duration(random.IntN(4000))*time.Microsecond) {
			acks++
			switch {
			case a.Tenant != "":
				tenants[a.Tenant] = a.UID
				unique(t, uids, a.UID, a.Tenant)
			case a.Event != 0:
				events[a.Event] = a.Site
				fallthrough
			default:
				sites[a.Site] = a
				unique(t, ids, a.ID, a.Site)
			}
		}
		s, err := Open(t.Context(), path, testOptions())
		must(t, err)
		for _, a := range sites {
			if err := checkSite(t.Context(), s, a); err != nil {
				t.Errorf("round %d: %s (%+v): %v", round, a.Site, a, err)
			}
		}
		for name, uid := range tenants {
			r, err := s.Get(t.Context(), serai.Key{Kind: serai.KindTenant, Name: name})
			if err != nil || r.GetMeta().ID != uid {
				t.Errorf("round %d: tenant %s with uid %d: %v, %v", round, name, uid, r, err)
			}
		}
		for id, site := range events {
			es, err := s.Events(t.Context(), "", id-1, 1)
			if err != nil || len(es) != 1 || es[0].ID != id || es[0].Site != site {
				t.Errorf("round %d: event %d of %s: %v, %v", round, id, site, es, err)
			}
		}
		if err := consistent(t.Context(), s); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		must(t, s.Close())
		if t.Failed() {
			return
		}
	}
	t.Logf("%d writes were acknowledged in %d rounds", acks, killRounds)
}

func unique(t *testing.T, seen map[int64]string, id int64, name string) {
	t.Helper()
	if old, ok := seen[id]; ok && old != name {
		t.Errorf("the number %d was given to %s and to %s", id, old, name)
	}
	seen[id] = name
}

// killAfter runs the writer, kills it some time after so many writes and
// returns all that were acknowledged before it died.
func killAfter(t *testing.T, path string, round, n int, then time.Duration) (acks []ack) {
	t.Helper()
	cmd := childCommand(t, "writer", path)
	cmd.Env = append(cmd.Env, fmt.Sprint("SERAI_STORE_ROUND=", round))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer cmd.Wait() // it was killed: that is its error
	defer cmd.Process.Kill()
	lines := bufio.NewReader(out)
	for {
		if len(acks) == n {
			defer time.AfterFunc(then, func() { cmd.Process.Kill() }).Stop()
		}
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(acks) < n {
				t.Fatalf("the writer ended by itself after %d writes", len(acks))
			}
			return acks // a line without its end was never said
		}
		must(t, err)
		var a ack
		must(t, json.Unmarshal(line, &a))
		acks = append(acks, a)
	}
}

// checkSite compares a site with what was acknowledged of it last. The writer
// had at most one further step under way.
func checkSite(ctx context.Context, s *Store, a ack) error {
	key := serai.Key{Kind: serai.KindSite, Tenant: "alice", Name: a.Site}
	r, err := s.Get(ctx, key)
	mayBeGone := goes(a.Site) && a.Step >= told
	if serai.KindOf(err) == serai.NotFound && err != nil {
		if mayBeGone {
			return nil
		}
		return errors.New("it is lost")
	}
	if err != nil {
		return err
	}
	site := r.(*serai.Site)
	hosts, err := s.Claims(ctx, key)
	if err != nil {
		return err
	}
	for _, broken := range []struct {
		is   bool
		what string
	}{
		{a.Step == removed, "it is back"},
		{site.Meta.ID != a.ID, fmt.Sprint("its ID is ", site.Meta.ID)},
		{a.Step >= claimed && !slices.Equal(hosts, []string{a.Site + ".example"}), fmt.Sprint("it holds ", hosts)},
		{a.Step >= updated && (site.Spec.Env["N"] != "1" || site.Meta.Generation != 2), "its update is lost"},
		{a.Step < claimed && site.Meta.Generation != 1, "it has an update that was never asked for"},
		{a.Step >= observed && site.Status.Launch != 1, "its status is lost"},
		{a.Step < updated && site.Status.Launch != 0, "it has a status that was never written"},
		{a.Step >= observed && site.Meta.Revision != a.Revision, "its revision is " + site.Meta.Revision},
	} {
		if broken.is {
			return errors.New(broken.what)
		}
	}
	return nil
}

// consistent checks what must hold in every database, whatever was written.
func consistent(ctx context.Context, s *Store) error {
	for _, check := range []struct{ what, query, want string }{
		{"SQLite finds damage", "PRAGMA integrity_check", "ok"},
		{"rows refer to rows that are not there", "SELECT count(*) FROM pragma_foreign_key_check", "0"},
		{"the log does not end with the last revision", "SELECT count(*) FROM sequences" +
			" WHERE name = 'revision' AND last <> (SELECT coalesce(max(revision), 0) FROM changes)", "0"},
		{"the log has gaps", "SELECT count(*) FROM (SELECT max(revision) - min(revision) + 1 - count(*) AS n FROM changes) WHERE n <> 0", "0"},
		// The last change of each key is its row, or that it was removed.
		{"log and rows disagree", `WITH named AS (
			SELECT revision, kind, coalesce(resource ->> '$.metadata.tenant', '') AS tenant, resource ->> '$.metadata.name' AS name,
				removed, resource ->> '$.metadata.revision' AS said FROM changes),
		latest AS (SELECT max(revision) AS revision, kind, tenant, name, removed, said FROM named GROUP BY kind, tenant, name)
		SELECT count(*) FROM latest FULL JOIN resources USING (kind, tenant, name)
		WHERE latest.revision IS NULL
			OR latest.said <> CAST(latest.revision AS TEXT)
			OR (latest.removed = 0) <> (resources.revision IS NOT NULL)
			OR latest.removed = 0 AND latest.revision <> resources.revision`, "0"},
		{"the log has another state than the rows", `SELECT count(*) FROM resources JOIN changes USING (revision)
		WHERE json(resources.spec) <> json(changes.resource -> '$.spec')
			OR resources.status <> '{}' AND json(resources.status) <> json(changes.resource -> '$.status')
			OR resources.generation <> changes.resource ->> '$.metadata.generation'`, "0"},
		{"a number was not counted", "SELECT count(*) FROM resources JOIN sequences ON sequences.name = kind WHERE id > last", "0"},
		{"a uid was not written down", "SELECT count(*) FROM resources WHERE kind = 'Tenant' AND id NOT IN (SELECT uid FROM uids)", "0"},
		{"an event was not counted", "SELECT count(*) FROM events JOIN sequences ON sequences.name = 'Event' WHERE id > last", "0"},
	} {
		var got string
		if err := s.read.QueryRowContext(ctx, check.query).Scan(&got); err != nil {
			return fmt.Errorf("check whether %s: %w", check.what, err)
		}
		if got != check.want {
			return fmt.Errorf("%s: %s", check.what, got)
		}
	}
	return nil
}

func goes(site string) bool { return site[len(site)-1]%3 == 0 }

// writeUntilKilled is the child: each of its writers leads one site after the
// other through its life and says each step once it is acknowledged.
func writeUntilKilled(path string) error {
	ctx := context.Background()
	s, err := Open(ctx, path, testOptions())
	if err != nil {
		return err
	}
	round := os.Getenv("SERAI_STORE_ROUND")
	ended := make(chan error)
	for w := range killWriters {
		go func() {
			for i := 0; ; i++ {
				if err := lead(ctx, s, fmt.Sprintf("r%sw%dn%d", round, w, i)); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	return <-ended
}

func lead(ctx context.Context, s *Store, name string) error {
	r, err := s.Create(ctx, newSite("alice", name, 0))
	if err != nil {
		return err
	}
	a := ack{Site: name, ID: r.GetMeta().ID}
	say := func(to step) error {
		a.Step, a.Revision = to, r.GetMeta().Revision
		line, err := json.Marshal(a)
		if err == nil {
			_, err = os.Stdout.Write(append(line, '\n')) // one write: lines do not mix
		}
		return err
	}
	if err := say(created); err != nil {
		return err
	}
	if _, err := s.Claim(ctx, name+".example", r.Key()); err != nil {
		return err
	}
	if err := say(claimed); err != nil {
		return err
	}
	r.(*serai.Site).Spec.Env["N"] = "1"
	if r, err = s.Update(ctx, r); err != nil {
		return err
	}
	if err := say(updated); err != nil {
		return err
	}
	r.(*serai.Site).Status.Launch = 1
	if r, err = s.UpdateStatus(ctx, r); err != nil {
		return err
	}
	if err := say(observed); err != nil {
		return err
	}
	e, err := s.AddEvent(ctx, serai.Event{Reason: "Started", Tenant: "alice", Site: name})
	if err != nil {
		return err
	}
	a.Event = e.ID
	if err := say(told); err != nil {
		return err
	}
	a.Event = 0
	if !goes(name) {
		return nil
	}
	if err := s.Delete(ctx, r.Key(), r.GetMeta().Revision); err != nil {
		return err
	}
	if err := say(removed); err != nil {
		return err
	}
	// Now and then a tenant: uids are few.
	if name[len(name)-1] != '0' {
		return nil
	}
	tenant, err := s.Create(ctx, newTenant(name))
	if err != nil {
		return err
	}
	a = ack{Tenant: name, UID: tenant.GetMeta().ID}
	r = tenant
	return say(absent)
}
