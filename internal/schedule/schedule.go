// Package schedule says when something is due: it reads what cron reads, and
// wakes at the earliest of many times. It starts nothing.
package schedule

import (
	"strings"
	"time"

	"github.com/netresearch/go-cron"

	"serai.dev/serai"
)

// parser reads the five fields of cron(5), a sixth for seconds before them, and
// @hourly and its like. As in cron a day is due where its number or its
// weekday fits, if both are given.
var parser = cron.MustNewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor | cron.DowOrDom)

// A Schedule is times, without an end. It may be used concurrently.
type Schedule struct {
	times cron.Schedule
	zone  *time.Location
}

// Parse reads a schedule in the style of cron, for a time zone such as
// Europe/Berlin; an empty one is the machine's. Errors are Invalid.
func Parse(text, zone string) (Schedule, error) {
	at := time.Local
	if zone != "" {
		var err error
		if at, err = time.LoadLocation(zone); err != nil || zone == "Local" {
			return Schedule{}, serai.Errorf(serai.Invalid, "%.80q is no time zone of this machine: write one such as Europe/Berlin, or UTC", zone)
		}
	}
	if strings.Contains(text, "TZ=") {
		return Schedule{}, serai.Errorf(serai.Invalid, "%.80q names a time zone: write it as timeZone beside the schedule", text)
	}
	times, err := parser.Parse(text)
	if err != nil {
		return Schedule{}, serai.Errorf(serai.Invalid, "%.80q is no schedule: %v; write minute, hour, day, month and weekday such as \"15 3 * * *\"", text, err)
	}
	s := Schedule{times, at}
	if s.Next(time.Now()).IsZero() {
		return Schedule{}, serai.Errorf(serai.Invalid, "%.80q never comes: write a day that the month has", text)
	}
	return s, nil
}

// Next is the first time after t; zero where there is none within years.
func (s Schedule) Next(t time.Time) time.Time {
	next := s.times.Next(t.In(s.zone))
	if next.IsZero() {
		return next
	}
	return next.UTC()
}

// Most is the largest number that Between counts to.
const Most = 10000

// Between counts the times after from that are not after to, and returns the
// first and the last of them. It counts no further than Most.
func (s Schedule) Between(from, to time.Time) (n int, first, last time.Time) {
	for t := s.Next(from); !t.IsZero() && !t.After(to) && n < Most; t = s.Next(t) {
		if n == 0 {
			first = t
		}
		n, last = n+1, t
	}
	return n, first, last
}
