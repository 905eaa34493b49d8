// Serai is the command line of Serai: it starts the server, and is a client of
// the server's API for all the rest. What a caller may do, the server decides.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program but for the process. It returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := newApp(in, out, errOut)
	root := a.root()
	root.SetArgs(args)
	_, err := root.ExecuteContextC(ctx)
	if err != nil && !a.ran {
		err = asUsage(err)
	}
	a.complain(err)
	return exitCode(err)
}

// asUsage makes what cobra says of a wrong command line an Invalid error.
func asUsage(err error) error {
	if serai.KindOf(err) != serai.Internal {
		return err
	}
	return serai.Errorf(serai.Invalid, "%s", err).WithHint("serai --help")
}

// exitCode is the only place where an error becomes an exit code: 0 done, 1
// failed, 2 wrong use or wrong input.
func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case serai.KindOf(err) == serai.Invalid:
		return 2
	}
	return 1
}

// errSilent ends with exit code 1 after a command has said itself what failed.
var errSilent = errors.New("said already")

// complain prints an error: every mistake of manifests on a line of its own,
// then one sentence, then what to try.
func (a *app) complain(err error) {
	if err == nil || errors.Is(err, errSilent) {
		return
	}
	if ps, ok := errors.AsType[client.Problems](err); ok {
		for _, p := range ps {
			fmt.Fprintln(a.err, clean(p.String()))
		}
	}
	// An Error of ours is safe to show and says it all; anything else is a
	// chain of what was tried.
	text := err.Error()
	if serai.KindOf(err) != serai.Internal || serai.Message(err) != "internal error" {
		text = serai.Message(err)
	}
	if errors.Is(err, context.Canceled) {
		text = "interrupted"
	}
	fmt.Fprintln(a.err, a.paintErr(red, "serai:"), clean(text))
	if hint := serai.HintOf(err); hint != "" {
		fmt.Fprintln(a.err, "hint:", clean(hint))
	}
}

// An app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
	socket   string
	terminal bool // out is one
	colour   bool // on out
	errColor bool // on err
	ran      bool // the command line was understood
}

func newApp(in io.Reader, out, errOut io.Writer) *app {
	plain := os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb"
	a := &app{in: in, out: out, err: errOut, terminal: isTerminal(out)}
	a.colour = a.terminal && !plain
	a.errColor = isTerminal(errOut) && !plain
	return a
}

func (a *app) client() *client.Client { return client.New(a.socket) }

// root makes the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "serai",
		Short: "host the persistent web servers of many customers on one machine",
		Long: `Serai hosts the persistent web servers of many customers on one machine.

Sites are named TENANT/SITE, or SITE by a tenant that speaks of its own.
Exit codes: 0 done, 1 failed, 2 wrong use or wrong input.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRun: func(*cobra.Command, []string) {
			a.ran = true
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	socket := os.Getenv("SERAI_SOCKET")
	if socket == "" {
		socket = client.DefaultSocket
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", socket, "the server's `PATH`; also SERAI_SOCKET")
	root.PersistentFlags().Lookup("socket").DefValue = client.DefaultSocket
	root.AddGroup(&cobra.Group{ID: "run", Title: "The server:"}, &cobra.Group{ID: "want", Title: "What is wanted:"},
		&cobra.Group{ID: "act", Title: "Sites at work:"}, &cobra.Group{ID: "see", Title: "What goes on:"})
	for _, group := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{"run", []*cobra.Command{a.serveCmd(), a.devCmd(), a.statusCmd(), a.doctorCmd(), a.versionCmd()}},
		{"want", []*cobra.Command{a.applyCmd(), a.diffCmd(), a.getCmd(), a.describeCmd(), a.deleteCmd(),
			a.kindCmd(serai.KindPlan), a.kindCmd(serai.KindTenant), a.kindCmd(serai.KindSite), a.catalogueCmd()}},
		{"act", []*cobra.Command{a.reloadCmd(), a.restartCmd(), a.stopCmd(), a.startCmd(), a.runCmd()}},
		{"see", []*cobra.Command{a.logsCmd(), a.eventsCmd()}},
	} {
		for _, c := range group.commands {
			c.GroupID = group.id
			root.AddCommand(c)
		}
	}
	return root
}
