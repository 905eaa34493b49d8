package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
	"serai.dev/serai"
)

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "show the version of this program",
		Args:  args(),
		Run: func(*cobra.Command, []string) {
			fmt.Fprintf(a.out, "serai %s %s/%s\n", serai.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}
