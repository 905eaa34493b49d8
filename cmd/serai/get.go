package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/internal/manifest"
)

func (a *app) getCmd() *cobra.Command {
	var output, tenant string
	cmd := &cobra.Command{
		Use:               "get KIND [NAME]",
		Short:             "list plans, tenants or sites",
		Example:           "  serai get sites\n  serai get site alice/shop -o yaml",
		Args:              args("KIND", "[NAME]"),
		ValidArgsFunction: a.kindThenName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, "table", "json", "yaml"); err != nil {
				return err
			}
			kind, err := parseKind(args[0])
			if err != nil {
				return err
			}
			if tenant != "" && (kind != serai.KindSite || len(args) == 2) {
				return serai.Errorf(serai.Invalid, "--tenant is for lists of sites")
			}
			c := a.client()
			defer c.Close()
			if len(args) == 2 {
				key, err := a.key(cmd.Context(), kind, args[1])
				if err != nil {
					return err
				}
				r, err := c.Get(cmd.Context(), key)
				if err != nil {
					return err
				}
				if output == "json" {
					return a.json(r)
				}
				return a.resources(kind, []serai.Resource{r}, output)
			}
			rs, err := c.List(cmd.Context(), kind, tenant)
			if err != nil {
				return err
			}
			return a.resources(kind, rs, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "`FORMAT`: table, json, yaml")
	cmd.Flags().StringVar(&tenant, "tenant", "", "only sites of this `TENANT`")
	mustComplete(cmd, "tenant", a.names(serai.KindTenant))
	mustComplete(cmd, "output", words("table", "json", "yaml"))
	return cmd
}

func words(ws ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(ws, cobra.ShellCompDirectiveNoFileComp)
}

// mustComplete can fail only where the flag does not exist, which every start
// of the program would show.
func mustComplete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

func (a *app) resources(kind string, rs []serai.Resource, output string) error {
	switch output {
	case "json":
		if rs == nil {
			rs = []serai.Resource{}
		}
		return a.json(map[string]any{"items": rs})
	case "yaml":
		for i, r := range rs {
			text, err := manifest.PrintFull(r)
			if err != nil {
				return fmt.Errorf("print %s: %w", r.Key(), err)
			}
			if i > 0 {
				fmt.Fprintln(a.out, "---")
			}
			fmt.Fprint(a.out, string(text))
		}
		return nil
	}
	if len(rs) == 0 {
		fmt.Fprintf(a.err, "there are no %ss\n", noun(kind))
		return nil
	}
	var t table
	switch kind {
	case serai.KindPlan:
		t.add("NAME", "MEMORY", "CPU", "PROCESSES", "WORKERS", "SITES", "ISOLATION")
	case serai.KindTenant:
		t.add("NAME", "PLAN", "ACCOUNT", "UID", "READY", "WHY")
	case serai.KindSite:
		t.add("NAME", "HOSTS", "ENGINE", "READY", "WHY")
	}
	for _, r := range rs {
		row(&t, r)
	}
	a.table(&t)
	return nil
}

func row(t *table, r serai.Resource) {
	_, cs := serai.Progress(r)
	ready := cs.Get(serai.Ready)
	state, reason := string(ready.Status), why(*cs)
	if r.GetMeta().Deleted != nil {
		state, reason = "Deleting", ""
	}
	switch r := r.(type) {
	case *serai.Plan:
		s := r.Spec
		t.add(r.Meta.Name, s.Memory.String(), s.CPU.String(), strconv.FormatInt(s.Processes, 10),
			strconv.Itoa(s.Workers), strconv.Itoa(s.Sites), s.Isolation)
	case *serai.Tenant:
		uid := ""
		if r.Status.UID != 0 {
			uid = strconv.FormatUint(uint64(r.Status.UID), 10)
		}
		t.add(r.Meta.Name, r.Spec.Plan, r.Status.Account, uid, state, reason)
		t.colour(4, colourOf(ready.Status))
	case *serai.Site:
		t.add(r.Key().String(), strings.Join(r.Spec.Hosts, ","), r.Spec.Engine, state, reason)
		t.colour(3, colourOf(ready.Status))
	}
}
