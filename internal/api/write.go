package api

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/manifest"
)

func (s *Server) remove(c *call) (any, error) {
	key := c.key()
	purge := false
	if key.Kind == serai.KindTenant {
		var err error
		if purge, err = c.flag("purge"); err != nil {
			return nil, err
		}
	}
	if _, err := s.find(c, key); err != nil {
		return nil, err
	}
	r, err := s.delete(c.r.Context(), key, purge, false, nil)
	r.Key = key
	return r, err
}

// delete asks for the end of one resource; also lists what will be deleted
// with it in the same breath.
func (s *Server) delete(ctx context.Context, key serai.Key, purge, dry bool, also []serai.Key) (r client.Result, err error) {
	old, err := s.store.Get(ctx, key)
	if serai.KindOf(err) == serai.NotFound {
		return r, notFound(key)
	}
	if err != nil {
		return r, err
	}
	if s, ok := old.(*serai.Site); ok && s.Spec.Catalogue != nil {
		return r, serai.Errorf(serai.Conflict, "site %s is an entry of the catalogue", key).WithHint("serai catalogue remove %s", key.Name)
	}
	if key.Kind == serai.KindPlan {
		if err := s.unused(ctx, key, also); err != nil {
			return r, err
		}
	}
	r.Action = client.Deleted
	if dry {
		r.Before, err = printed(old)
		return r, err
	}
	if purge {
		if err := s.markPurge(ctx, key); err != nil {
			return r, err
		}
	}
	if err := s.store.Delete(ctx, key, ""); err != nil && serai.KindOf(err) != serai.NotFound {
		return r, err
	}
	return r, nil
}

// unused refuses to delete a plan that a tenant has.
func (s *Server) unused(ctx context.Context, plan serai.Key, also []serai.Key) error {
	var users []string
	for _, name := range s.index.under(plan) {
		key := serai.Key{Kind: serai.KindTenant, Name: name}
		t, err := s.store.Get(ctx, key)
		if serai.KindOf(err) == serai.NotFound || slices.Contains(also, key) {
			continue
		}
		if err != nil {
			return err
		}
		if t.GetMeta().Deleted == nil && t.(*serai.Tenant).Spec.Plan == plan.Name {
			users = append(users, name)
		}
	}
	if len(users) == 0 {
		return nil
	}
	more := ""
	if len(users) > 1 {
		more = fmt.Sprintf(" and %d more", len(users)-1)
	}
	return serai.Errorf(serai.Conflict, "tenant %s%s has plan %s", users[0], more, plan.Name).WithHint("give them another plan first")
}

// markPurge notes on a tenant that its home goes too.
func (s *Server) markPurge(ctx context.Context, key serai.Key) error {
	_, err := s.change(ctx, key, func(r serai.Resource) (bool, error) {
		if a := r.(*serai.Tenant).Spec.Account.Adopt; a != "" {
			return false, serai.Errorf(serai.Conflict, "account %s was there before tenant %s: its home is not Serai's to remove", a, key.Name).
				WithHint("delete without purge; remove the account by hand")
		}
		m := r.GetMeta()
		if slices.Contains(m.Finalizers, PurgeFinalizer) {
			return false, nil
		}
		m.Finalizers = append(m.Finalizers, PurgeFinalizer)
		return true, nil
	})
	return err
}

// change reads, changes and writes one resource, again where somebody else
// came before. edit reports whether it changed anything.
func (s *Server) change(ctx context.Context, key serai.Key, edit func(serai.Resource) (bool, error)) (serai.Resource, error) {
	for range maxTries {
		r, err := s.store.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		changed, err := edit(r)
		if err != nil || !changed {
			return r, err
		}
		stored, err := s.store.Update(ctx, r)
		if serai.KindOf(err) == serai.Conflict && err != nil {
			continue
		}
		if err == nil {
			s.index.put(stored)
		}
		return stored, err
	}
	return nil, serai.Errorf(serai.Conflict, "%s %s is changed by others all the time", lower(key.Kind), key).WithHint("try again")
}

// setStopped makes the handler of stop or of start.
func setStopped(stopped bool) func(*Server, *call) (any, error) {
	return func(s *Server, c *call) (any, error) {
		key := c.key()
		if _, err := s.find(c, key); err != nil {
			return nil, err
		}
		return s.change(c.r.Context(), key, func(r serai.Resource) (bool, error) {
			if r.GetMeta().Deleted != nil {
				return false, beingDeleted(key)
			}
			spec := &r.(*serai.Site).Spec
			changed := spec.Stopped != stopped
			spec.Stopped = stopped
			return changed, nil
		})
	}
}

// launch makes the handler of reload or of restart.
func launch(how How) func(*Server, *call) (any, error) {
	return func(s *Server, c *call) (any, error) {
		key := c.key()
		r, err := s.find(c, key)
		if err != nil {
			return nil, err
		}
		switch {
		case r.GetMeta().Deleted != nil:
			return nil, beingDeleted(key)
		case r.(*serai.Site).Spec.Stopped:
			return nil, serai.Errorf(serai.Conflict, "site %s is stopped", key).WithHint("serai start %s", key)
		}
		res, err := s.ctl.Launch(c.r.Context(), key, how)
		return client.LaunchResult(res), err
	}
}

func (s *Server) runJob(c *call) (any, error) {
	key := c.key()
	r, err := s.find(c, key)
	if err != nil {
		return nil, err
	}
	if r.GetMeta().Deleted != nil {
		return nil, beingDeleted(key)
	}
	return s.ctl.RunJob(c.r.Context(), key, c.r.PathValue("job"))
}

// lookupUID finds the uid of an account that exists and may be adopted. The
// error is a sentence for the writer of a manifest.
func lookupUID(account string, allowed config.Range) (uint32, error) {
	u, err := user.Lookup(account)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		return 0, fmt.Errorf("there is no account %q on this machine; to have one made write account: {create: true}", account)
	}
	if err != nil {
		return 0, fmt.Errorf("look up account %q: %w", account, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("account %q has the uid %q, which is no number", account, u.Uid)
	}
	if !allowed.Has(uint32(uid)) {
		return 0, fmt.Errorf("account %q has uid %d, which may not be adopted: accounts.adopt in the server's configuration is %s", account, uid, allowed)
	}
	return uint32(uid), nil
}

// problems translates for the wire.
func problems(ps manifest.Problems) []client.Problem {
	out := make([]client.Problem, len(ps))
	for i, p := range ps {
		out[i] = client.Problem{File: p.File, Line: p.Line, Column: p.Column, Path: p.Path, Message: p.Msg}
	}
	return out
}
