package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"serai.dev/serai/client"
)

func (a *app) statusCmd() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show what runs of Serai itself",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "text", "json"); err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return a.json(s)
			}
			a.status(s)
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`FORMAT`: text, json")
	mustComplete(cmd, "output", words("text", "json"))
	return cmd
}

func (a *app) status(s client.Status) {
	fmt.Fprintf(a.out, "serai %s, seraid up since %s\n", s.Version, s.Started.Format(time.RFC3339))
	fmt.Fprintf(a.out, "%d plans, %d tenants, %d sites", s.Plans, s.Tenants, s.Sites)
	for i, phase := range slices.Sorted(maps.Keys(s.Phases)) {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(a.out, "%s%d %s", sep, s.Phases[phase], clean(phase))
	}
	fmt.Fprintln(a.out)
	if s.Pending > 0 {
		fmt.Fprintf(a.out, "%d changes are under way\n", s.Pending)
	}
	if len(s.Listen) > 0 {
		fmt.Fprintln(a.out, "listens on", strings.Join(s.Listen, ", "))
	}
	if s.Cgroup != "" {
		fmt.Fprintln(a.out, "cgroups:", s.Cgroup)
	}
	var t table
	for _, p := range s.Processes {
		pid := ""
		if p.PID != 0 {
			pid = "pid " + strconv.Itoa(p.PID)
		}
		t.add(p.Name, p.State, pid, p.Version)
	}
	for _, z := range s.Zygotes {
		what := z.Message
		if len(z.Missing) > 0 {
			what = strings.TrimSpace(what + " not installed: " + strings.Join(z.Missing, " "))
		}
		pid := ""
		if z.PID != 0 {
			pid = "pid " + strconv.Itoa(z.PID)
		}
		t.add("zygote "+z.Name, z.State, pid, what)
	}
	if len(t.rows) > 0 {
		fmt.Fprintln(a.out)
		a.table(&t)
	}
}
