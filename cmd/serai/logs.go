package main

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

func (a *app) logsCmd() *cobra.Command {
	var q client.LogQuery
	var mail bool
	cmd := &cobra.Command{
		Use:   "logs SITE",
		Short: "show what a site's processes wrote, its access log, or a tenant's log of mail",
		Example: `  serai logs -f alice/shop
  serai logs --mail alice`,
		Args: func(cmd *cobra.Command, given []string) error {
			if mail {
				return args("[TENANT]")(cmd, given)
			}
			return args("SITE")(cmd, given)
		},
		ValidArgsFunction: func(cmd *cobra.Command, given []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if mail {
				return a.names(serai.KindTenant)(cmd, given, word)
			}
			return a.names(serai.KindSite)(cmd, given, word)
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			ctx := cmd.Context()
			switch {
			case q.Lines < 0:
				return serai.Errorf(serai.Invalid, "-n %d: write a number from 0 on", q.Lines)
			case mail && q.Access:
				return serai.Errorf(serai.Invalid, "--mail and --access are two logs: ask for one of them")
			}
			c := a.client()
			defer c.Close()
			text, err := a.openLog(ctx, c, q, mail, given)
			if err != nil {
				return err
			}
			defer text.Close()
			err = a.copyLog(text)
			if ctx.Err() != nil && q.Follow {
				return nil // an interrupt is how one stops to follow
			}
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return serai.Errorf(serai.Unavailable, "the server ended the log before its end").WithHint("try again")
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what is added")
	cmd.Flags().BoolVar(&q.Access, "access", false, "the access log")
	cmd.Flags().BoolVar(&mail, "mail", false, "the log of a tenant's mail; without a TENANT, one's own")
	cmd.Flags().IntVarP(&q.Lines, "lines", "n", 100, "how many past `LINES`, at most 10000")
	return cmd
}

// openLog asks for a site's log, or for the mail log of a tenant: one's own
// where none is named.
func (a *app) openLog(ctx context.Context, c *client.Client, q client.LogQuery, mail bool, given []string) (io.ReadCloser, error) {
	if !mail {
		site, err := a.key(ctx, serai.KindSite, given[0])
		if err != nil {
			return nil, err
		}
		return c.Logs(ctx, site, q)
	}
	if len(given) == 1 {
		tenant, err := a.key(ctx, serai.KindTenant, given[0])
		if err != nil {
			return nil, err
		}
		return c.MailLog(ctx, tenant.Name, q)
	}
	id, err := c.Whoami(ctx)
	if err != nil {
		return nil, err
	}
	if id.Tenant == "" {
		return nil, serai.Errorf(serai.Invalid, "whose mail?").WithHint("serai logs --mail TENANT")
	}
	return c.MailLog(ctx, id.Tenant, q)
}

// copyLog prints a log. A terminal gets it without control characters, a file
// or a pipe as it is.
func (a *app) copyLog(text io.Reader) error {
	if !a.terminal {
		_, err := io.Copy(a.out, text)
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := text.Read(buf)
		if _, werr := io.WriteString(a.out, clean(strings.ReplaceAll(string(buf[:n]), "\r\n", "\n"))); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
