// Serai-proxy is the front proxy of Serai. It is started by serai-priv, under
// a user of its own, with its listeners as descriptors.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/isolate"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy"
	"serai.dev/serai/internal/proxy/worker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills at once
	os.Exit(exitCode(run(ctx, os.Args[1:], os.Stderr), os.Stderr))
}

func exitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case serai.KindOf(err) == serai.Invalid:
		fmt.Fprintf(stderr, "serai-proxy: %v\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "serai-proxy: %v\n", err)
	return 1
}

// grace is how long requests under way may take when the proxy is to end.
const grace = 30 * time.Second

// arguments are what serai-priv passes on: numbers of descriptors.
type arguments struct {
	config, priv, control int
	http                  []int
}

func parse(args []string, stderr io.Writer) (arguments, error) {
	var a arguments
	flags := flag.NewFlagSet("serai-proxy", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&a.config, "config-fd", 3, "descriptor to read the configuration from, as JSON")
	flags.IntVar(&a.priv, "priv-fd", 4, "descriptor of the connection to serai-priv")
	flags.IntVar(&a.control, "control-fd", 5, "descriptor of the listener that seraid connects to")
	listeners := flags.String("http-fds", "", "descriptors of the listeners for HTTP, separated by commas")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return a, err
		}
		return a, serai.Errorf(serai.Invalid, "%v", err)
	}
	for n := range strings.SplitSeq(*listeners, ",") {
		if n == "" {
			continue
		}
		fd, err := strconv.Atoi(n)
		if err != nil || fd < 3 {
			return a, serai.Errorf(serai.Invalid, "--http-fds: %q is no descriptor", n)
		}
		a.http = append(a.http, fd)
	}
	return a, nil
}

// run is the whole program but for the process.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	a, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if err := isolate.ProveDropped(); err != nil {
		return fmt.Errorf("prove that privileges are dropped: %w", err)
	}
	unix.Umask(0o027)
	cfg, err := readConfig(a.config)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	daemon, err := uidOf(cfg.Users.Daemon)
	if err != nil {
		return err
	}
	listeners, err := listen(a.http)
	if err != nil {
		return err
	}
	control, err := inherit(a.control, "control listener")
	if err != nil {
		return err
	}
	priv, err := privsep.NewConn(os.NewFile(uintptr(a.priv), "serai-priv"))
	if err != nil {
		return err
	}
	defer priv.Close()
	attest, err := worker.ByCgroup()
	if err != nil {
		return err
	}
	server, err := proxy.New(proxy.Options{
		SpoolDir:  filepath.Join(cfg.StateDir, "spool"),
		AccessDir: filepath.Join(cfg.LogDir, "access"),
		Format:    cfg.AccessLog,
		Socket:    cfg.SiteSocket,
		Attest:    attest,
		Monitor:   priv,
		Grace:     grace,
		Log:       log,
	})
	if err != nil {
		return err
	}
	return serve(ctx, server, priv, listeners, control, func(uid uint32) bool { return uid == 0 || uid == daemon })
}

// errMonitorGone ends the proxy: the next serai-priv needs its addresses.
var errMonitorGone = errors.New("serai-priv is gone")

// serve runs the server until ctx or serai-priv ends.
func serve(ctx context.Context, server *proxy.Server, priv *privsep.Conn, listeners []net.Listener, control net.Listener, allowed func(uint32) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for e := range priv.Events() {
			for _, f := range e.Files {
				f.Close()
			}
			server.Event(e.Op, e.Body)
		}
		cancel(errMonitorGone)
	}()
	err := server.Run(ctx, listeners, control, allowed)
	priv.Close()
	<-heard
	if err == nil && errors.Is(context.Cause(ctx), errMonitorGone) {
		return errMonitorGone
	}
	return err
}

func readConfig(fd int) (*config.Config, error) {
	f := os.NewFile(uintptr(fd), "configuration")
	if f == nil {
		return nil, serai.Errorf(serai.Invalid, "--config-fd: %d is no descriptor", fd)
	}
	defer f.Close()
	f.Seek(0, io.SeekStart) // a proxy before us may have read the same file; a pipe has no start
	cfg := new(config.Config)
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(cfg); err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	// A server that was started by an earlier version did not write all fields.
	cfg.AccessLog = cmp.Or(cfg.AccessLog, "combined")
	return cfg, nil
}

func uidOf(name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("look up the user of seraid: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("look up the user of seraid: %w", err)
	}
	return uint32(uid), nil
}

func listen(fds []int) (listeners []net.Listener, err error) {
	for _, fd := range fds {
		l, err := inherit(fd, "listener")
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// inherit takes over a listener that was passed as a descriptor.
func inherit(fd int, name string) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), name)
	if f == nil {
		return nil, serai.Errorf(serai.Invalid, "%d is no descriptor of a %s", fd, name)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("use descriptor %d as %s: %w", fd, name, err)
	}
	return l, nil
}
