package reconcile

import (
	"context"
	"fmt"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// launchLimit is how long a launch may take: longer than serai-priv gives a
// site to load.
const launchLimit = 90 * time.Second

// Launch loads a site's code once more, beside what runs, and returns how that
// ended. Where the code does not load what ran goes on. A launch under way is
// waited for first; requests that come meanwhile share the next one.
//
// Old workers finish what they do; serai-priv ends those that are still busy
// after its grace time. A site that failed again and again, and is waited
// for, is tried at once.
func (r *Reconciler) Launch(ctx context.Context, key serai.Key) (privsep.LaunchResult, error) {
	answer := make(chan result, 1)
	r.mu.Lock()
	m := r.sites[key]
	if m == nil {
		r.mu.Unlock()
		return privsep.LaunchResult{}, serai.Errorf(serai.NotFound, "there is no site %s", key)
	}
	m.asks = append(m.asks, answer)
	r.mu.Unlock()
	r.queue.add(key)
	select {
	case res := <-answer:
		return res.LaunchResult, res.err
	case <-ctx.Done():
		return privsep.LaunchResult{}, ctx.Err()
	}
}

// reloadAsked loads a site's code once more because its own process asked for
// it. Nobody waits for the outcome but the events.
func (r *Reconciler) reloadAsked(number uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key, ok := r.numbers[number]; ok && r.sites[key] != nil {
		r.sites[key].askReload()
		r.queue.add(key)
	}
}

// askReload is a wish for a launch, unless there is one; mu is held.
func (m *site) askReload() {
	if len(m.asks) == 0 {
		m.asks = append(m.asks, make(chan result, 1))
	}
}

// launch is the work of one launch. It keeps no worker of objects waiting.
func (r *Reconciler) launch(ctx context.Context, key serai.Key) (retry bool) {
	r.mu.Lock()
	m := r.sites[key]
	var n int64
	if m != nil {
		n = m.loading
	}
	r.mu.Unlock()
	if n == 0 { // stopped or deleted meanwhile
		return false
	}
	out := &result{launch: n, asked: true}
	limited, cancel := context.WithTimeout(ctx, launchLimit)
	defer cancel()
	_, err := r.mon.Call(limited, privsep.OpLaunch, privsep.SiteRef{Site: m.number}, &out.LaunchResult)
	if ctx.Err() != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.loading == 0 {
		return false
	}
	defer r.queue.add(key)
	if err != nil {
		// A zygote that is down, another launch under way: not the code's fault.
		r.log.Warn("launch to be tried again", "site", key.String(), "cause", err)
		m.trouble = sentence(err)
		return true
	}
	m.loading, m.trouble = 0, ""
	m.outcome = out
	r.tellLaunch(key, out)
	return false
}

func (r *Reconciler) tellLaunch(key serai.Key, out *result) {
	e := serai.Event{Tenant: key.Tenant, Site: key.Name}
	if out.Loaded {
		e.Severity, e.Reason = "info", Loaded
		e.Message = fmt.Sprintf("the code of %s was loaded", key)
		e.Fields = map[string]string{"millis": fmt.Sprint(out.Millis), "launch": fmt.Sprint(out.launch)}
	} else {
		e.Severity, e.Reason = "error", NotLoaded
		e.Message = fmt.Sprintf("the code of %s did not load, what ran goes on: %s", key, out.Message)
		e.Fields = map[string]string{"launch": fmt.Sprint(out.launch)}
	}
	r.journal.add(e)
}

// settled tells who waited, once the store has the outcome.
func (j *job) settled() {
	j.mu.Lock()
	defer j.mu.Unlock()
	m := j.m
	if m.outcome == nil {
		return
	}
	if m.outcome != j.out {
		j.queue.add(j.s.Key()) // another came meanwhile
		return
	}
	var rest []asked
	for _, a := range m.waiting {
		if a.launch <= m.outcome.launch {
			a.answer <- *m.outcome
		} else {
			rest = append(rest, a)
		}
	}
	m.waiting, m.told, m.outcome = rest, m.outcome, nil
}

// fail answers all who wait for a launch of the site.
func (j *job) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.m.fail(err)
}

func (m *site) fail(err error) {
	for _, c := range m.asks {
		c <- result{err: err}
	}
	for _, a := range m.waiting {
		a.answer <- result{err: err}
	}
	for _, w := range m.wishes {
		w.answer <- wished{err: err}
	}
	m.asks, m.waiting, m.wishes = nil, nil, nil
}
