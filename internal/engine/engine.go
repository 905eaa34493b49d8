// Package engine says how a site's code is run: it makes of a site's
// specification the launch record that serai-priv needs to start it. It starts
// nothing and reads no file of a tenant.
package engine

import (
	"maps"
	"slices"
	"strings"

	"serai.dev/serai"
	"serai.dev/serai/internal/engine/perl"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/route"
)

// An Engine is one way to run code. Its methods are pure and may be called
// concurrently.
type Engine interface {
	// Start sets the fields of a launch record that are the engine's own:
	// Zygote and Block. Invalid where the specification cannot be run.
	Start(l *privsep.Launch, s *serai.Site) error
	// Task is the block of a command that runs in the surroundings of the
	// site's code. Pure, like Start.
	Task(s *serai.Site, run []string) []byte
	// Prefixes are the URL prefixes that the site's code answers, in order;
	// none is all.
	Prefixes(s *serai.Site) []string
}

var engines = map[string]Engine{
	"perl": perl.Engine{},
}

// For returns the engine of a name, or Invalid.
func For(name string) (Engine, error) {
	if e, ok := engines[name]; ok {
		return e, nil
	}
	return nil, serai.Errorf(serai.Invalid, "there is no engine %q: use one of %s", name, strings.Join(Names(), ", "))
}

// Names are the engines that can be used, in order.
func Names() []string { return slices.Sorted(maps.Keys(engines)) }

// Launch makes the launch record of a site of a tenant that has an account. It
// is the same for the same specification, uid and Status.Launch. Off is left
// false.
func Launch(t *serai.Tenant, s *serai.Site) (privsep.Launch, error) {
	e, err := For(s.Spec.Engine)
	if err != nil {
		return privsep.Launch{}, err
	}
	l := privsep.Launch{
		Site: uint32(s.Meta.ID), UID: t.Status.UID, Launch: s.Status.Launch, Root: s.Spec.Root,
	}
	for _, prefix := range prefixes(s) {
		l.Files = append(l.Files, s.Spec.Files[prefix])
	}
	if err := e.Start(&l, s); err != nil {
		return privsep.Launch{}, err
	}
	if len(l.Block) > privsep.MaxBlock {
		return privsep.Launch{}, serai.Errorf(serai.Invalid,
			"the site's settings are %d bytes in all: at most %d; shorten spec.env", len(l.Block), privsep.MaxBlock)
	}
	return l, nil
}

// Task makes a task of a site: a command in the surroundings of its code. The
// number and what keeps the site awake are left to the caller.
func Task(s *serai.Site, run []string) (privsep.Task, error) {
	e, err := For(s.Spec.Engine)
	if err != nil {
		return privsep.Task{}, err
	}
	t := privsep.Task{Site: uint32(s.Meta.ID), Block: e.Task(s, run)}
	if len(t.Block) > privsep.MaxBlock {
		return t, serai.Errorf(serai.Invalid, "the command with the site's settings is %d bytes in all: at most %d", len(t.Block), privsep.MaxBlock)
	}
	return t, nil
}

// Files are the URL prefixes whose files the proxy serves, with the places of
// their directories in the Files of the site's launch record.
func Files(s *serai.Site) []route.Files {
	var fs []route.Files
	for i, prefix := range prefixes(s) {
		fs = append(fs, route.Files{Prefix: prefix, Index: i, Dir: s.Spec.Files[prefix]})
	}
	return fs
}

func prefixes(s *serai.Site) []string { return slices.Sorted(maps.Keys(s.Spec.Files)) }
