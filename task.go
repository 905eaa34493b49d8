package serai

import "time"

// A Job is a command of a site that runs at times.
type Job struct {
	Name      string   `json:"name"`
	Schedule  string   `json:"schedule"`           // as cron reads it; see package schedule
	TimeZone  string   `json:"timeZone,omitempty"` // of the schedule; empty is the machine's
	Run       []string `json:"run"`                // the program and its arguments; no shell
	Timeout   Duration `json:"timeout,omitempty"`  // ended after it; 0 is never
	Overlap   bool     `json:"overlap,omitempty"`  // runs while an earlier run goes on
	CatchUp   bool     `json:"catchUp,omitempty"`  // runs once, late, for times that were missed
	KeepAwake bool     `json:"keepAwake,omitempty"`
}

// A Daemon is a command of a site that keeps running while the site is open.
type Daemon struct {
	Name       string   `json:"name"`
	Run        []string `json:"run"`
	WhileAwake bool     `json:"whileAwake,omitempty"` // only while the site's code is loaded
	KeepAwake  bool     `json:"keepAwake,omitempty"`  // the site's code, once loaded, stays so
}

// A Run is one process of a job or daemon, by a number that its site gives out
// once.
type Run struct {
	Number  int64     `json:"number"`
	Due     time.Time `json:"due,omitzero"` // the time of the schedule; zero where somebody asked for it
	Started time.Time `json:"started"`
	PID     int       `json:"pid,omitempty"` // once it is up
	Ended   time.Time `json:"ended,omitzero"`
	Outcome string    `json:"outcome,omitempty"` // how it ended: exit status 0
	Failed  bool      `json:"failed,omitempty"`
}

// JobStatus is what was seen of a job.
type JobStatus struct {
	Name string `json:"name"`
	// Times is the schedule that Handled speaks of, with its zone.
	Times   string    `json:"times,omitempty"`
	Handled time.Time `json:"handled,omitzero"` // what was due until then was started or missed
	Next    time.Time `json:"next,omitzero"`
	Running []Run     `json:"running,omitempty"`
	Last    *Run      `json:"last,omitempty"` // the one that ended last
}

// DaemonStatus is what was seen of a daemon.
type DaemonStatus struct {
	Name    string    `json:"name"`
	Launch  int64     `json:"launch,omitempty"` // of the site's code when it was started
	Hash    string    `json:"hash,omitempty"`   // of what it was started with
	Running *Run      `json:"running,omitempty"`
	Last    *Run      `json:"last,omitempty"`
	Fails   int       `json:"fails,omitempty"` // ends in a row that nobody asked for
	Next    time.Time `json:"next,omitzero"`   // when it is started again
}
