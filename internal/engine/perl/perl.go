// Package perl makes the launch records of sites written in Perl: PSGI
// applications and directories of CGI scripts. The block it writes is read by
// the site's own process, under the tenant's uid; docs/reference/zygote-protocol.md
// lists its names.
package perl

import (
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// DefaultPreload is the zygote of a site that names none.
const DefaultPreload = "standard"

// Engine is the engine perl.
type Engine struct{}

// Start sets Zygote and Block.
func (Engine) Start(l *privsep.Launch, s *serai.Site) error {
	p := s.Spec.Perl
	if p == nil || (p.App == "") == (len(p.Scripts) == 0) {
		return serai.Errorf(serai.Invalid, "spec.perl: write either app or scripts")
	}
	l.Zygote = p.Preload
	if l.Zygote == "" {
		l.Zygote = DefaultPreload
	}
	var b block
	b.add("site", s.Key().String())
	if p.App != "" {
		b.add("app", p.App)
	}
	for _, prefix := range slices.Sorted(maps.Keys(p.Scripts)) {
		b.add("script", prefix+"\x00"+p.Scripts[prefix])
	}
	if p.Persistent != nil && !*p.Persistent {
		b.add("persistent", "0")
	}
	for _, file := range p.PerRequest {
		b.add("per-request", file)
	}
	if p.Startup != "" {
		b.add("startup", p.Startup)
	}
	if p.Reload == serai.ReloadChange {
		b.add("reload", p.Reload)
	}
	b.surroundings(s)
	w := s.Spec.Workers
	b.add("min", strconv.Itoa(w.Min))
	b.add("max", strconv.Itoa(w.Max))
	b.add("idle", strconv.FormatInt(time.Duration(w.Idle).Milliseconds(), 10))
	b.add("requests", strconv.Itoa(w.Requests))
	b.add("size", strconv.FormatInt(int64(w.Size), 10))
	b.add("slow", strconv.FormatInt(time.Duration(w.Slow).Milliseconds(), 10))
	l.Block = b
	return nil
}

// Task names the command; app is there for what it means to the environment.
func (Engine) Task(s *serai.Site, run []string) []byte {
	var b block
	b.add("site", s.Key().String())
	if p := s.Spec.Perl; p != nil && p.App != "" {
		b.add("app", p.App)
	}
	b.surroundings(s)
	for _, arg := range run {
		b.add("run", arg)
	}
	return b
}

// Prefixes are those of the scripts; an application answers all.
func (Engine) Prefixes(s *serai.Site) []string {
	if s.Spec.Perl == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(s.Spec.Perl.Scripts))
}

// A block is names and values, each a u32 length and its bytes: (N/a*)*.
type block []byte

func (b *block) add(name, value string) {
	for _, s := range []string{name, value} {
		*b = binary.BigEndian.AppendUint32(*b, uint32(len(s)))
		*b = append(*b, s...)
	}
}

// surroundings are what code finds around it.
func (b *block) surroundings(s *serai.Site) {
	if p := s.Spec.Perl; p != nil {
		for _, dir := range p.Inc {
			b.add("inc", dir)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Spec.Env)) {
		b.add("env", name+"="+s.Spec.Env[name])
	}
}
