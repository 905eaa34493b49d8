// Seraid wants, compares and asks: it keeps the resources, makes what runs
// equal to them, and answers the API. It has no root power, never forks, and
// may die and be started again without a site noticing.
//
// It is started by serai-priv, with everything it needs in descriptors:
//
//	seraid --config-fd 3 --priv-fd 4 --api-fd 5
//
// the configuration as JSON, the socket to serai-priv, the API's listener.
// SIGTERM lets requests end and leaves.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sync/errgroup"

	"serai.dev/serai"
	"serai.dev/serai/internal/api"
	"serai.dev/serai/internal/catalogue"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/isolate"
	"serai.dev/serai/internal/mail"
	"serai.dev/serai/internal/manifest"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/reconcile"
	"serai.dev/serai/internal/sitelog"
	"serai.dev/serai/internal/store/sqlite"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills at once
	err := run(ctx, os.Args[1:], os.Stderr)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "seraid: %v\n", err)
	if hint := serai.HintOf(err); hint != "" {
		fmt.Fprintf(os.Stderr, "hint: %s\n", hint)
	}
	if serai.KindOf(err) == serai.Invalid {
		os.Exit(2)
	}
	os.Exit(1)
}

// run is the whole program but for the process.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("seraid", flag.ContinueOnError)
	flags.SetOutput(stderr)
	configFD := flags.Int("config-fd", 3, "`descriptor` of the configuration")
	privFD := flags.Int("priv-fd", 4, "`descriptor` of the socket to serai-priv")
	apiFD := flags.Int("api-fd", 5, "`descriptor` of the API's listener")
	if err := flags.Parse(args); err != nil {
		return serai.Errorf(serai.Invalid, "%v", err).WithHint("serai serve starts it as it should be")
	}
	if err := isolate.ProveDropped(); err != nil {
		return err
	}
	cfg, err := readConfig(os.NewFile(uintptr(*configFD), "configuration"))
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil)).With("process", "seraid")
	listener, err := listenOn(os.NewFile(uintptr(*apiFD), "API listener"))
	if err != nil {
		return err
	}
	conn, err := privsep.NewConn(os.NewFile(uintptr(*privFD), "socket to serai-priv"))
	if err != nil {
		listener.Close()
		return err
	}
	defer conn.Close()
	return serve(ctx, cfg, conn, listener, log)
}

// serve wires the parts and returns when all have ended.
func serve(ctx context.Context, cfg *config.Config, conn *privsep.Conn, listener net.Listener, log *slog.Logger) error {
	defer listener.Close()
	raiseFileLimit(log)
	// The database holds tenants' environments: nobody else may read it.
	syscall.Umask(0o027)
	// The last ids of the range are ours.
	st, err := sqlite.Open(ctx, cfg.Database(), sqlite.Options{
		FirstUID: cfg.Accounts.Range.First, LastUID: cfg.Accounts.Range.Last - config.Reserved,
	})
	if err != nil {
		return err
	}
	defer st.Close()
	logs := sitelog.New(cfg, log)
	rec := reconcile.New(reconcile.Options{Config: cfg, Store: st, Monitor: conn, Logs: logs, Log: log})
	hostname, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("ask for the host's name: %w", err)
	}
	desk := mail.New(mail.Options{Store: st, Book: logs, Relay: cfg.Mail.Relay, Hostname: hostname, Spool: cfg.MailSpool(), Log: log})
	server := api.New(api.Options{
		Store: st, Controller: &controller{cfg: cfg, rec: rec, logs: logs, mail: desk, shelf: catalogue.Shelf{Dir: cfg.CatalogueDir()}},
		Limits:     manifest.Limits{Zygotes: zygotes(cfg), Adopt: cfg.Accounts.Adopt, Prefix: cfg.Accounts.Prefix},
		CgroupRoot: cfg.CgroupRoot, AdminGID: adminGroup(cfg, log), Version: serai.Version(), Log: log,
	})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return logs.Run(ctx) })
	g.Go(func() error { return rec.Run(ctx) })
	g.Go(func() error { return server.Run(ctx, listener) })
	log.Info("seraid started", "version", serai.Version())
	err = g.Wait()
	log.Info("seraid ended")
	return err
}

func readConfig(f *os.File) (*config.Config, error) {
	defer f.Close()
	// The descriptor's offset is shared with whoever read it before.
	d := json.NewDecoder(io.NewSectionReader(f, 0, math.MaxInt32))
	d.DisallowUnknownFields()
	cfg := new(config.Config)
	if err := d.Decode(cfg); err != nil {
		return nil, serai.Errorf(serai.Invalid, "the configuration in descriptor %d is not what serai serve writes: %v", f.Fd(), err).
			WithHint("seraid is started by serai serve")
	}
	return cfg, nil
}

func listenOn(f *os.File) (net.Listener, error) {
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, serai.Errorf(serai.Invalid, "descriptor %d is no listener: %v", f.Fd(), err).
			WithHint("seraid is started by serai serve")
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the socket is serai-priv's, and the next seraid's
	}
	return l, nil
}

func zygotes(cfg *config.Config) []string {
	names := make([]string, 0, len(cfg.Zygotes))
	for name := range cfg.Zygotes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// adminGroup is the gid of the operators' group, 0 where there is none.
func adminGroup(cfg *config.Config, log *slog.Logger) uint32 {
	g, err := user.LookupGroup(cfg.Users.Admin)
	if err != nil {
		log.Warn("no group of operators: root alone operates", "group", cfg.Users.Admin, "cause", err)
		return 0
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(gid)
}

// raiseFileLimit makes room for a log pipe of each site that runs.
func raiseFileLimit(log *slog.Logger) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur == l.Max {
		return
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		log.Warn("limit of open files not raised", "cause", err)
	}
}
