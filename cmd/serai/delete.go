package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"serai.dev/serai"
)

func (a *app) deleteCmd() *cobra.Command {
	var purge bool
	var w waiting
	cmd := &cobra.Command{
		Use:   "delete KIND NAME",
		Short: "delete a plan, a tenant or a site",
		Long: `Delete a plan that no tenant has, a tenant with all its sites, or a site.

A tenant's account goes where Serai made it. Its home stays, unless --purge is
given: then all the tenant's files are removed and cannot be brought back. A
site's files always stay.`,
		Args:              args("KIND", "NAME"),
		ValidArgsFunction: a.kindThenName,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := parseKind(args[0])
			if err != nil {
				return err
			}
			if purge && kind != serai.KindTenant {
				return serai.Errorf(serai.Invalid, "--purge is for tenants: a %s has no home", noun(kind))
			}
			key, err := a.key(cmd.Context(), kind, args[1])
			if err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			if err := c.Delete(cmd.Context(), key, purge); err != nil {
				return err
			}
			if w.none {
				fmt.Fprintln(a.out, named(key), "will be deleted")
				return nil
			}
			gone, err := c.WaitGone(cmd.Context(), key, w.timeout)
			if err != nil {
				return err
			}
			if !gone {
				return serai.Errorf(serai.Unavailable, "%s is not gone yet, after %s", named(key), serai.Duration(w.timeout)).
					WithHint("the server goes on with it: serai describe %s %s", noun(kind), key)
			}
			fmt.Fprintln(a.out, named(key), "deleted")
			return nil
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove a tenant's home too")
	w.flags(cmd)
	return cmd
}
