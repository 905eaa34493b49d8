package reconcile

import (
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// The rules that every row of the table must keep.
func TestTable(t *testing.T) {
	for w := gone; w < wants; w++ {
		for s := fresh; s < sights; s++ {
			a := decide[w][s]
			switch {
			case w == gone && a != drop:
				t.Errorf("%s, %s: %s; what is deleted is dropped, whatever is seen", w, s, a)
			case w != gone && a == drop:
				t.Errorf("%s, %s: dropped without being deleted", w, s)
			case w != shut && a == stop:
				t.Errorf("%s, %s: stopped without being shut", w, s)
			case w == shut && a == load:
				t.Errorf("%s, %s: loaded while shut", w, s)
			case (s == loading) && w != gone && a != none:
				t.Errorf("%s, %s: %s; a launch under way is waited for", w, s, a)
			case s == failed && w == open && a != none:
				t.Errorf("%s, %s: %s; code that does not load is not tried again by itself", w, s, a)
			case w == open && s == serving && a != none:
				t.Errorf("%s, %s: %s; there is nothing to do", w, s, a)
			case w == anew && s != loading && s != lingers && a != renew:
				t.Errorf("%s, %s: %s; who asks gets a new launch", w, s, a)
			case (s == fresh || s == other || s == astray) && w != gone && a != renew:
				t.Errorf("%s, %s: %s; other code has another number", w, s, a)
			case (s == absent || s == turned) && (w == shut || w == open) && a != set:
				t.Errorf("%s, %s: %s; the same code keeps its number", w, s, a)
			}
		}
	}
}

// What a site's record and status are taken for.
func TestLook(t *testing.T) {
	rec := privsep.Launch{Site: 1, UID: firstUID, Launch: 3, Root: "shop", Block: []byte("x")}
	with := func(change func(*privsep.Launch)) *held {
		r := rec
		change(&r)
		return &held{hash: privsep.HashLaunch(r), launch: r.Launch}
	}
	same := with(func(*privsep.Launch) {})
	for _, tt := range []struct {
		name    string
		held    *held
		off     bool
		launch  int64
		serving int64
		loaded  serai.Status
		unseen  bool // a generation that was not observed
		memory  site
		want    seen
	}{
		{name: "never counted", want: fresh},
		{name: "no record, another generation", launch: 3, unseen: true, want: fresh},
		{name: "no record", launch: 3, want: absent},
		{name: "another root", held: with(func(l *privsep.Launch) { l.Root = "x" }), launch: 3, want: other},
		{name: "another root and off", held: with(func(l *privsep.Launch) { l.Root, l.Off = "x", true }), launch: 3, want: other},
		{name: "another number", held: with(func(l *privsep.Launch) { l.Launch = 2 }), launch: 3, want: turned},
		{name: "off there", held: with(func(l *privsep.Launch) { l.Off = true }), launch: 3, want: turned},
		{name: "off here", held: same, off: true, launch: 3, want: turned},
		{name: "off, runs", held: with(func(l *privsep.Launch) { l.Off = true }), off: true, launch: 3, want: lingers},
		{name: "off, quiet", held: with(func(l *privsep.Launch) { l.Off = true }), off: true, launch: 3, memory: site{quiet: true}, want: unproven},
		{name: "loading", held: same, launch: 3, memory: site{loading: 3}, want: loading},
		{name: "an older launch is loading", held: same, launch: 3, memory: site{loading: 2}, want: loading},
		{name: "loaded", held: same, launch: 3, serving: 3, loaded: serai.True, want: serving},
		{name: "an older launch serves", held: same, launch: 3, serving: 2, loaded: serai.Unknown, want: unproven},
		{name: "did not load", held: same, launch: 3, serving: 2, loaded: serai.False, want: failed},
		{name: "left in the middle", held: same, launch: 3, serving: 2, loaded: serai.Unknown, memory: site{busy: true}, want: astray},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := tt.memory
			m.held = tt.held
			s := &serai.Site{Meta: serai.Meta{Generation: 5}, Status: serai.SiteStatus{ObservedGeneration: 5, Launch: tt.launch, Serving: tt.serving}}
			if tt.unseen {
				s.Status.ObservedGeneration = 4
			}
			if tt.loaded != "" {
				s.Status.Conditions.Set(serai.Condition{Type: serai.Loaded, Status: tt.loaded}, now())
			}
			r := rec
			r.Off = tt.off
			j := &job{Reconciler: &Reconciler{}, m: &m, s: s, rec: r}
			if got := j.look(); got != tt.want {
				t.Errorf("seen as %s; want %s", got, tt.want)
			}
		})
	}
}
