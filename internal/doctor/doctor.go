// Package doctor says whether this machine is fit for Serai, and what to do
// where it is not. It changes nothing, and works without root too: what it then
// cannot see it says.
package doctor

import (
	"fmt"
	"os"

	"serai.dev/serai/internal/config"
)

// A Level says how much a finding matters.
type Level int

// The levels, from good to bad.
const (
	Good    Level = iota // as it should be
	Unknown              // could not be seen, mostly for want of root
	Warn                 // works, but with something less
	Bad                  // does not work like this
)

var levelNames = [...]string{"ok", "unknown", "warning", "problem"}

func (l Level) String() string {
	if l < 0 || int(l) >= len(levelNames) {
		return fmt.Sprintf("level %d", int(l))
	}
	return levelNames[l]
}

// MarshalText gives the level's name, for -o json.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// A Finding is the result of one check.
type Finding struct {
	Name  string `json:"name"`         // what was looked at, two or three words
	Level Level  `json:"level"`        //
	What  string `json:"what"`         // what was found, a phrase
	Do    string `json:"do,omitempty"` // what to do about it
}

// Worst is the greatest level among the findings.
func Worst(list []Finding) Level {
	worst := Good
	for _, f := range list {
		worst = max(worst, f.Level)
	}
	return worst
}

// checks are all that is looked at, in the order in which it is shown.
var checks = []struct {
	name  string
	check func(*config.Config) result
}{
	{"kernel", kernel},
	{"root", root},
	{"cgroups", cgroups},
	{"cgroup kill", cgroupKill},
	{"cgroup joins", cgroupJoins},
	{"swap accounting", swap},
	{"same pages", samePages},
	{"user namespaces", userNamespaces},
	{"process list", hidepid},
	{"sendmail", overlay},
	{"safe opening", openat2},
	{"process handles", pidfd},
	{"seccomp", seccomp},
	{"landlock", landlock},
	{"perl", perl},
	{"zygote modules", modules},
	{"account tools", tools},
	{"account ranges", ranges},
	{"cron and at", jobs},
	{"homes", homes},
	{"programs", programs},
	{"addresses", addresses},
	{"disk space", space},
	{"open files", files},
}

// A result is a finding without its name.
type result struct {
	level Level
	what  string
	do    string
}

func good(format string, args ...any) result {
	return result{level: Good, what: fmt.Sprintf(format, args...)}
}
func unknown(format string, args ...any) result {
	return result{level: Unknown, what: fmt.Sprintf(format, args...), do: "run it as root"}
}
func warn(do, format string, args ...any) result {
	return result{level: Warn, what: fmt.Sprintf(format, args...), do: do}
}
func bad(do, format string, args ...any) result {
	return result{level: Bad, what: fmt.Sprintf(format, args...), do: do}
}

// Check looks at everything. It may take a second or two: it starts perl.
func Check(cfg *config.Config) []Finding {
	var list []Finding
	for _, c := range checks {
		r := c.check(cfg)
		list = append(list, Finding{c.name, r.level, r.what, r.do})
	}
	return list
}

func isRoot() bool { return os.Geteuid() == 0 }
