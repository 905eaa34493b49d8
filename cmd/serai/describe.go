package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/manifest"
)

func (a *app) describeCmd() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:               "describe KIND NAME",
		Short:             "show one thing with its conditions, workers and last events",
		Args:              args("KIND", "NAME"),
		ValidArgsFunction: a.kindThenName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, "text", "json"); err != nil {
				return err
			}
			kind, err := parseKind(args[0])
			if err != nil {
				return err
			}
			key, err := a.key(cmd.Context(), kind, args[1])
			if err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			d, err := c.Describe(cmd.Context(), key)
			if err != nil {
				return err
			}
			if output == "json" {
				return a.json(d)
			}
			return a.describe(key, d)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`FORMAT`: text, json")
	mustComplete(cmd, "output", words("text", "json"))
	return cmd
}

func (a *app) describe(key serai.Key, d client.Description) error {
	r := serai.NewResource(key.Kind)
	if err := json.Unmarshal(d.Resource, r); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	text, err := manifest.Print(r)
	if err != nil {
		return fmt.Errorf("print %s: %w", key, err)
	}
	fmt.Fprint(a.out, clean(string(text)))
	m := r.GetMeta()
	a.section("Identity")
	fmt.Fprintf(a.out, "  number %d, generation %d, made %s\n", m.ID, m.Generation, m.Created.Format(time.RFC3339))
	if m.Deleted != nil {
		fmt.Fprintf(a.out, "  deletion was asked for at %s\n", m.Deleted.Format(time.RFC3339))
	}
	if t, ok := r.(*serai.Tenant); ok && t.Status.Account != "" {
		fmt.Fprintf(a.out, "  account %s, uid %d, home %s\n", t.Status.Account, t.Status.UID, t.Status.Home)
	}
	for _, path := range notEnforced(r) {
		fmt.Fprintf(a.out, "  %s is kept but not enforced yet\n", path)
	}
	if _, cs := serai.Progress(r); len(*cs) > 0 {
		a.section("Conditions")
		var t table
		for _, c := range *cs {
			t.add(c.Type, string(c.Status), c.Reason, c.Message)
		}
		a.indented(&t)
	}
	a.nameList("Tenants", d.Tenants)
	a.nameList("Sites", d.Sites)
	if m := d.Mail; m != nil {
		a.section("Mail")
		fmt.Fprintf(a.out, "  %d of %d mails this hour, %d of %d today (UTC)\n", m.Hour, m.OfHour, m.Day, m.OfDay)
	}
	if d.Running != nil {
		a.running(d.Running)
	}
	if s, ok := r.(*serai.Site); ok {
		a.tasks(&s.Status)
	}
	if d.Warning != "" {
		fmt.Fprintln(a.out, "\nWarning:", clean(d.Warning))
	}
	if len(d.Events) > 0 {
		a.section("Last events")
		for _, e := range d.Events {
			fmt.Fprint(a.out, "  ")
			a.event(e)
		}
	}
	return nil
}

func notEnforced(r serai.Resource) []string {
	var paths []string
	for _, f := range manifest.Fields(r.Key().Kind) {
		if _, ok := manifest.NotEnforced(r)[f.Path]; ok {
			paths = append(paths, f.Path)
		}
	}
	return paths
}

func (a *app) section(title string) { fmt.Fprintf(a.out, "\n%s\n", a.paint(bold, title)) }

func (a *app) nameList(title string, names []string) {
	if len(names) > 0 {
		a.section(title)
		fmt.Fprintln(a.out, "  "+strings.Join(names, " "))
	}
}

// running shows what runs of a site, the sizes first that a limit is about.
func (a *app) running(r *client.Running) {
	a.section("Running")
	phase := r.Phase
	if phase == "" {
		phase = "unknown"
	}
	fmt.Fprintf(a.out, "  %s", phase)
	if r.PID != 0 {
		fmt.Fprintf(a.out, ", pid %d, launch %d", r.PID, r.Launch)
	}
	if m := r.Memory; m != nil {
		fmt.Fprintf(a.out, ", %s private, %s shared, %s PSS", mebibytes(m.Private), mebibytes(m.Shared), mebibytes(m.PSS))
	}
	fmt.Fprintf(a.out, "\n  %d requests, %s in, %s out, %d wakes\n", r.Requests, serai.Bytes(r.BytesIn), serai.Bytes(r.BytesOut), r.Wakes)
	if st := r.Starts; st != nil {
		fmt.Fprintf(a.out, "  cold starts: %d ms at %s; median %d ms, longest %d ms of the last %d\n",
			st.Millis[len(st.Millis)-1], st.Last.Format(time.RFC3339), st.MedianMs, st.MaxMs, len(st.Millis))
	}
	fmt.Fprintf(a.out, "  %d workers busy, %d idle, %d requests queued\n", r.Busy, r.Idle, r.Queued)
	if len(r.Left) > 0 {
		fmt.Fprintf(a.out, "  workers that are gone: %s\n", counted(r.Left))
	}
	if len(r.Workers) == 0 {
		return
	}
	var t table
	t.add("PID", "LAUNCH", "AGE", "REQUESTS", "DOES", "PRIVATE", "SHARED", "PSS")
	for _, w := range r.Workers {
		does := "idle"
		if w.Busy {
			does = "busy for " + short(w.RequestMs)
		}
		row := []string{strconv.Itoa(w.PID), strconv.FormatInt(w.Launch, 10), short(w.SinceMs), strconv.FormatInt(w.Requests, 10), does}
		if m := w.Memory; m != nil {
			row = append(row, mebibytes(m.Private), mebibytes(m.Shared), mebibytes(m.PSS))
		}
		t.add(row...)
	}
	a.indented(&t)
}

// counted lists counts by name, the largest first.
func counted(counts map[string]int64) string {
	names := slices.SortedFunc(maps.Keys(counts), func(x, y string) int {
		return cmp.Or(cmp.Compare(counts[y], counts[x]), cmp.Compare(x, y))
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%d %s", counts[name], clean(name))
	}
	return strings.Join(names, ", ")
}

// short is a time as people read it.
func short(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	if d < 10*time.Second {
		return d.Truncate(100 * time.Millisecond).String()
	}
	return d.Truncate(time.Second).String()
}

// mebibytes is a size that nobody needs to the byte.
func mebibytes(n int64) string { return fmt.Sprintf("%.1fMi", float64(n)/(1<<20)) }
