package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

func (a *app) reloadCmd() *cobra.Command {
	return a.launchCmd("reload SITE", "load a site's code anew; requests under way finish",
		`Load a site's code anew beside what runs. When it is loaded the old workers
finish what they serve and leave; those that take longer than the server's
grace time are ended. Where the code does not load, what runs stays as it was,
and the error is printed.`, (*client.Client).Reload, "reloaded")
}

func (a *app) restartCmd() *cobra.Command {
	return a.launchCmd("restart SITE", "start a site's processes anew",
		`Start a site's processes anew. For the engine perl this is what reload does:
the new ones load beside the old ones, and where they do not load, what runs
stays as it was.`, (*client.Client).Restart, "restarted")
}

func (a *app) launchCmd(use, short, long string, do func(*client.Client, context.Context, serai.Key) (client.LaunchResult, error), done string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long,
		Args:              args("SITE"),
		ValidArgsFunction: a.names(serai.KindSite),
		RunE: a.onSite(func(ctx context.Context, c *client.Client, site serai.Key) error {
			r, err := do(c, ctx, site)
			if err != nil {
				return err
			}
			if !r.Loaded {
				return serai.Errorf(serai.Unavailable, "%s did not load: %s", named(site), r.Message).
					WithHint("what ran before goes on; mend the code, or look at: serai logs %s", site)
			}
			fmt.Fprintf(a.out, "%s %s in %d ms\n", named(site), done, r.Millis)
			return nil
		}),
	}
}
