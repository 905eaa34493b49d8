package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

func (a *app) eventsCmd() *cobra.Command {
	var q client.EventQuery
	var follow bool
	var output string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "show what happened",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "text", "json"); err != nil {
				return err
			}
			show := func(e serai.Event) error { a.event(e); return nil }
			if output == "json" {
				show = func(e serai.Event) error { return a.jsonLine(e) }
			}
			c := a.client()
			defer c.Close()
			if follow {
				err := c.FollowEvents(cmd.Context(), q, show)
				if cmd.Context().Err() != nil {
					return nil // an interrupt is how one stops to follow
				}
				return err
			}
			es, err := c.Events(cmd.Context(), q)
			for _, e := range es {
				if err := show(e); err != nil {
					return err
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens")
	cmd.Flags().StringVar(&q.Tenant, "tenant", "", "only of this `TENANT`")
	cmd.Flags().IntVarP(&q.Limit, "lines", "n", 100, "how many past events, at most 1000")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`FORMAT`: text, or json with one event a line")
	mustComplete(cmd, "tenant", a.names(serai.KindTenant))
	mustComplete(cmd, "output", words("text", "json"))
	return cmd
}

// event prints one line: time, severity, whose, what, and the fields.
func (a *app) event(e serai.Event) {
	whose := e.Tenant
	if e.Site != "" {
		whose += "/" + e.Site
	}
	if whose == "" {
		whose = "-"
	}
	colour := map[string]string{"warning": yellow, "error": red}[e.Severity]
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
		fmt.Fprintf(&b, " %s=%s", name, oneLine(e.Fields[name]))
	}
	fmt.Fprintf(a.out, "%s %s %s %s: %s%s\n", e.Time.Format(time.RFC3339), a.paint(colour, fmt.Sprintf("%-7s", e.Severity)),
		whose, e.Reason, oneLine(e.Message), clean(b.String()))
}
