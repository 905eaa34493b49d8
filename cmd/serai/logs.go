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
	cmd := &cobra.Command{
		Use:               "logs SITE",
		Short:             "show what a site's processes wrote, or its access log",
		Args:              args("SITE"),
		ValidArgsFunction: a.names(serai.KindSite),
		RunE: a.onSite(func(ctx context.Context, c *client.Client, site serai.Key) error {
			if q.Lines < 0 {
				return serai.Errorf(serai.Invalid, "-n %d: write a number from 0 on", q.Lines)
			}
			text, err := c.Logs(ctx, site, q)
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
		}),
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what is added")
	cmd.Flags().BoolVar(&q.Access, "access", false, "the access log")
	cmd.Flags().IntVarP(&q.Lines, "lines", "n", 100, "how many past `LINES`, at most 10000")
	return cmd
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
