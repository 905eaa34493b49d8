package reconcile

// What is wanted of a site.
type want int

const (
	gone want = iota // deleted: nothing of it shall be left
	shut             // stopped or suspended: it holds its place, nothing runs
	open             // it serves
	anew             // it serves, and somebody asked to load its code once more
	wants
)

// What is seen of a site, compared with what is wanted.
//
//	            renew                load               loaded
//	fresh ────────┐  ┌─► unproven ────────► loading ──────────► serving
//	other ────────┼──┘       ▲                 │ not loaded        │
//	astray ───────┘          │ renew: asked    ▼                   │ the specification
//	                         └────────────── failed                ▼ changed
//	absent, turned ──set──► as before                            other
type seen int

const (
	fresh    seen = iota // it was never given to serai-priv
	absent               // serai-priv has no record of it any more: it was started anew
	other                // the record there says something else that a process would see
	turned               // the record there differs in its number, or in being off, alone
	astray               // a launch was under way when seraid ended: how it went is not known
	unproven             // the record is right; whether its code loads is not known
	loading              // it is being loaded
	failed               // the code of this record did not load: what ran before goes on
	serving              // the code of this record was loaded
	lingers              // wanted shut, but something of it runs
	sights
)

// What is done about it.
type action int

const (
	none  action = iota // nothing: all is as wanted, or what comes next is an event
	drop                // take it from the proxy, then from serai-priv, then from the store
	renew               // count a launch in the store, then give the record to serai-priv
	set                 // give the record to serai-priv
	load                // have its code loaded beside what runs
	stop                // end what runs
)

// decide is all that is ever done to a site. After an action that changes what
// is seen the table is read again.
var decide = [wants][sights]action{
	gone: {drop, drop, drop, drop, drop, drop, drop, drop, drop, drop},
	shut: {
		fresh: renew, absent: set, other: renew, turned: set, astray: renew,
		unproven: none, loading: none, failed: none, serving: none, lingers: stop,
	},
	open: {
		fresh: renew, absent: set, other: renew, turned: set, astray: renew,
		unproven: load, loading: none, failed: none, serving: none, lingers: none,
	},
	// A launch under way is waited for: what it loads may be older than the
	// wish to load.
	anew: {
		fresh: renew, absent: renew, other: renew, turned: renew, astray: renew,
		unproven: renew, loading: none, failed: renew, serving: renew, lingers: none,
	},
}

func (w want) String() string {
	return [...]string{"gone", "shut", "open", "anew"}[w]
}

func (s seen) String() string {
	return [...]string{"fresh", "absent", "other", "turned", "astray", "unproven", "loading", "failed", "serving", "lingers"}[s]
}

func (a action) String() string {
	return [...]string{"none", "drop", "renew", "set", "load", "stop"}[a]
}
