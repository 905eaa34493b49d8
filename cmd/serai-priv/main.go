// Serai-priv is the one process that keeps the root power: see package
// monitor. It is started by `serai serve`, and starts the others.
//
//	serai-priv --config-fd N     serve with the configuration (JSON) in descriptor N
//	serai-priv --restore-fd N    go on from the state that an older serai-priv left there
//	serai-priv check-state       say whether this binary could go on from the state on its input
//	serai-priv helper NAME       do one act that is too slow for the resident process
//
// SIGINT and SIGTERM stop everything, SIGHUP upgrades in place to the binary
// that is on disk.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/privsep/monitor"
)

func main() {
	os.Exit(exitCode(run(context.Background(), os.Args[1:], os.Stderr), os.Stderr))
}

// exitCode prints err as one sentence and what to try.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "serai-priv: %v\n", err)
	if hint := serai.HintOf(err); hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", hint)
	}
	if serai.KindOf(err) == serai.Invalid {
		return 2
	}
	return 1
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	if len(args) == 2 && args[0] == "helper" {
		return monitor.Helper(args[1])
	}
	if len(args) == 1 && args[0] == "check-state" {
		return monitor.CheckState(os.Stdin, os.NewFile(3, "answer"))
	}
	flags := flag.NewFlagSet("serai-priv", flag.ContinueOnError)
	flags.SetOutput(stderr)
	configFD := flags.Int("config-fd", 0, "serve with the configuration in this `descriptor`")
	restoreFD := flags.Int("restore-fd", 0, "go on from the state in this `descriptor`")
	if err := flags.Parse(args); err != nil {
		return &serai.Error{Kind: serai.Invalid, Msg: err.Error(), Hint: "serai serve starts it as it should be"}
	}
	if flags.NArg() > 0 || (*configFD == 0) == (*restoreFD == 0) {
		return serai.Errorf(serai.Invalid, "serai-priv is not started by hand").WithHint("serai serve")
	}
	log := slog.New(slog.NewTextHandler(stderr, nil)).With("process", "serai-priv")
	m, err := begin(*configFD, *restoreFD, log)
	if err != nil {
		return err
	}
	return m.Run(ctx)
}

func begin(configFD, restoreFD int, log *slog.Logger) (*monitor.Monitor, error) {
	if restoreFD != 0 {
		return monitor.Restore(os.NewFile(uintptr(restoreFD), "state"), log)
	}
	f := os.NewFile(uintptr(configFD), "configuration")
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	cfg := &config.Config{}
	if err := d.Decode(cfg); err != nil {
		return nil, serai.Errorf(serai.Invalid, "the configuration in descriptor %d is not what serai serve writes: %v", configFD, err)
	}
	return monitor.Start(cfg, log)
}
