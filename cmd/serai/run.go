package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"serai.dev/serai"
)

func (a *app) runCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "run SITE JOB",
		Short: "start a job of a site now, beside its schedule",
		Long: `Start a job of a site now, beside its schedule. Its output goes to the site's
log; how it ends is an event. A job that runs already is not started again,
unless it may overlap.`,
		Args: args("SITE", "JOB"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.names(serai.KindSite)(cmd, args, toComplete)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := a.key(cmd.Context(), serai.KindSite, args[0])
			if err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			run, err := c.RunJob(cmd.Context(), key, args[1])
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "job %s of %s started, run %d\n", args[1], key, run.Number)
			return nil
		},
	}
}

// tasks shows the jobs and daemons of a site.
func (a *app) tasks(st *serai.SiteStatus) {
	if len(st.Jobs) > 0 {
		a.section("Jobs")
		var t table
		t.add("JOB", "NEXT", "RUNNING", "LAST", "OUTCOME")
		for _, j := range st.Jobs {
			running := ""
			for _, r := range j.Running {
				running = since(&r)
			}
			if n := len(j.Running); n > 1 {
				running += fmt.Sprintf(" and %d more", n-1)
			}
			last, outcome := ended(j.Last)
			t.add(j.Name, stamp(j.Next), running, last, outcome)
		}
		a.indented(&t)
	}
	if len(st.Daemons) > 0 {
		a.section("Daemons")
		var t table
		t.add("DAEMON", "RUNNING", "NEXT", "LAST", "OUTCOME")
		for _, d := range st.Daemons {
			running := ""
			if d.Running != nil {
				running = since(d.Running)
			}
			last, outcome := ended(d.Last)
			t.add(d.Name, running, stamp(d.Next), last, outcome)
		}
		a.indented(&t)
	}
}

func since(r *serai.Run) string {
	if r.PID == 0 {
		return "starting"
	}
	return "pid " + strconv.Itoa(r.PID) + " since " + stamp(r.Started)
}

func ended(r *serai.Run) (at, outcome string) {
	if r == nil {
		return "", ""
	}
	return stamp(r.Ended), r.Outcome
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.RFC3339)
}
