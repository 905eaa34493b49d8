package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

func (a *app) stopCmd() *cobra.Command {
	return a.stoppedCmd("stop SITE", "answer a site's requests with 503 until start", (*client.Client).Stop)
}

func (a *app) startCmd() *cobra.Command {
	return a.stoppedCmd("start SITE", "end a stop", (*client.Client).Start)
}

func (a *app) stoppedCmd(use, short string, do func(*client.Client, context.Context, serai.Key) (*serai.Site, error)) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args:              args("SITE"),
		ValidArgsFunction: a.names(serai.KindSite),
		RunE: a.onSite(func(ctx context.Context, c *client.Client, key serai.Key) error {
			site, err := do(c, ctx, key)
			if err != nil {
				return err
			}
			if w.none {
				fmt.Fprintln(a.out, named(key), "will be as asked")
				return nil
			}
			r, err := c.WaitReady(ctx, key, site.Meta.Generation, w.timeout)
			if err != nil {
				return err
			}
			if !a.condition(r, site.Meta.Generation) {
				return errSilent
			}
			return nil
		}),
	}
	w.flags(cmd)
	return cmd
}
