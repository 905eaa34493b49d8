// Package dev runs one site for its author, on the author's own computer and
// without any privilege: the front proxy and the Perl engine are those of the
// provider, and what seraid and serai-priv do there is left out or done here in
// a few lines. It isolates nothing, limits nothing and stores nothing.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/internal/engine"
	"serai.dev/serai/internal/privsep"
	"serai.dev/serai/internal/proxy"
	"serai.dev/serai/internal/proxy/worker"
	"serai.dev/serai/internal/route"
	"serai.dev/serai/perl"
)

// Options say what is run. All are required.
type Options struct {
	Site   *serai.Site // with its defaults; spec.root is not looked at
	Dir    string      // where the code is: what spec.root is at the provider
	Perl   string      // the interpreter, a path or a name in $PATH
	Listen string      // HOST:PORT
	Out    io.Writer   // where the site is, and what became of its code
	Err    *os.File    // access lines and what the code writes to STDERR
}

// The only site has the number 1.
const number = 1

// grace is how long requests may take, and then processes, when all is to end.
const grace = time.Second

// look is how often files are looked at while no request comes, so that a
// mistake is told when its file is saved.
const look = 300 * time.Millisecond

// Run serves the site until ctx ends. Nothing of it is left then: no process, no
// file. The errors are sentences for the author.
func Run(ctx context.Context, o Options) error {
	var err error
	if o.Perl, err = findPerl(ctx, o.Perl); err != nil {
		return err
	}
	front, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return refused(o.Listen, err)
	}
	defer front.Close()
	dir, err := os.MkdirTemp("", "serai-dev-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	s, err := newSite(ctx, o, dir, front.Addr().(*net.TCPAddr))
	if err != nil {
		return err
	}
	defer s.close()
	control, err := net.Listen("unix", filepath.Join(dir, "control"))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	// What the code leaves behind becomes ours, and ends with us.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	defer endOrphans()
	defer s.end()
	s.fresh(false)
	fmt.Fprintf(o.Out, "http://%s serves %s; Ctrl-C ends it\n", shown(front.Addr().(*net.TCPAddr)), s.what())
	if names := missing(&o.Site.Spec); len(names) > 0 {
		fmt.Fprintf(o.Out, "jobs, daemons and mounts are not here: %s\n", strings.Join(names, ", "))
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.watch(gctx) })
	g.Go(func() error {
		return s.server.Run(gctx, []net.Listener{front}, control, func(uint32) bool { return false })
	})
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil // who ends it does not wait for requests that go on
}

// missing names what only a server runs of a site: jobs, daemons, and what it
// mounts of the operator's catalogue.
func missing(s *serai.SiteSpec) (names []string) {
	for _, j := range s.Jobs {
		names = append(names, j.Name)
	}
	for _, d := range s.Daemons {
		names = append(names, d.Name)
	}
	return append(names, slices.Sorted(maps.Keys(s.Mount))...)
}

// oldest is the Perl that the engine is written for.
const oldest = "5.036"

// findPerl is the path of an interpreter that is new enough.
func findPerl(ctx context.Context, name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", serai.Errorf(serai.Unavailable, "%s cannot be run, and runs the site: %v", name, err).WithHint("install Perl, or say with --perl where it is")
	}
	out, err := exec.CommandContext(ctx, path, "-e", "print $]").Output()
	if err != nil {
		return "", serai.Errorf(serai.Unavailable, "%s does not say its version: %v", path, err).WithHint("say with --perl where another one is")
	}
	if string(out) < oldest {
		return "", serai.Errorf(serai.Unavailable, "%s is Perl %s: 5.36 or newer is needed", path, out).WithHint("say with --perl where a newer one is")
	}
	return path, nil
}

// refused says why an address cannot be listened on.
func refused(address string, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return serai.Errorf(serai.Unavailable, "another program listens on %s", address).WithHint("choose another address with --listen")
	case errors.Is(err, unix.EACCES):
		return serai.Errorf(serai.Unavailable, "ports below 1024 are for root: %s", address).WithHint("choose another address with --listen")
	}
	return serai.Errorf(serai.Invalid, "%s cannot be listened on: %v", address, err)
}

// shown is an address as a browser wants it.
func shown(a *net.TCPAddr) string {
	if a.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", a.Port)
	}
	return a.String()
}

// newSite unpacks the engine and makes what the site's processes and the proxy
// share: the listener, the route.
func newSite(ctx context.Context, o Options, dir string, front *net.TCPAddr) (*site, error) {
	code, err := filepath.Abs(o.Dir)
	if err == nil {
		code, err = filepath.EvalSymlinks(code)
	}
	if err != nil {
		return nil, serai.Errorf(serai.Invalid, "the directory of the code: %v", err)
	}
	if err := os.CopyFS(filepath.Join(dir, "perl"), perl.Files); err != nil {
		return nil, fmt.Errorf("unpack the engine: %w", err)
	}
	r := o.Site.Clone().(*serai.Site)
	r.Meta.ID, r.Status.Launch = number, 1
	r.Spec.Workers.Min = max(r.Spec.Workers.Min, 1)
	r.Spec.Env = environment(r)
	tenant := &serai.Tenant{Status: serai.TenantStatus{UID: uint32(os.Getuid())}}
	launch, err := engine.Launch(tenant, r)
	if err != nil {
		return nil, err
	}
	s := &site{options: o, done: ctx.Done(), engine: filepath.Join(dir, "perl"), code: code, launch: launch, lock: make(chan struct{}, 1)}
	e, err := engine.For(r.Spec.Engine)
	if err != nil {
		return nil, err
	}
	plan, workers := serai.DefaultPlanSpec(), r.Spec.Workers
	workers.Idle = 0 // none is sent away
	s.route = route.Site{
		Number: number, UID: tenant.Status.UID, Tenant: r.Meta.Tenant, Name: r.Meta.Name, Hosts: hosts(r.Spec.Hosts, front),
		Files: engine.Files(r), Prefixes: e.Prefixes(r), Workers: workers, Queue: plan.Queue, Body: plan.Body, Reply: plan.Reply,
	}
	path := filepath.Join(dir, "site")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	if s.listener, err = listener.File(); err != nil {
		return nil, fmt.Errorf("pass the listener on: %w", err)
	}
	if s.routes, err = route.Create(); err != nil {
		return nil, err
	}
	s.server, err = proxy.New(proxy.Options{
		SpoolDir: dir, Format: "short", Access: o.Err, Before: func(context.Context) { s.fresh(true) },
		Socket: func(uint32) string { return path }, Monitor: s, Grace: grace,
		Attest: func(worker.Target, int) (worker.Kills, error) {
			return func() (int64, bool) { return 0, false }, nil
		},
		Log: slog.New(slog.NewTextHandler(o.Err, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	return s, err
}

// environment is that of the manifest, beside what differs on the author's
// computer: where programs and modules are, whose home it is.
func environment(r *serai.Site) map[string]string {
	env := map[string]string{}
	for _, name := range []string{"PATH", "HOME", "PERL5LIB", "PERL_LOCAL_LIB_ROOT"} {
		if v := os.Getenv(name); v != "" {
			env[name] = v
		}
	}
	if r.Spec.Perl != nil && r.Spec.Perl.App != "" {
		env["PLACK_ENV"] = "development"
	}
	maps.Copy(env, r.Spec.Env)
	return env
}

// hosts are the names under which the site is reached: those of the manifest,
// and those of this computer that the listener is reached by.
func hosts(of []string, front *net.TCPAddr) []string {
	all := append(slices.Clone(of), "localhost", "*.localhost", front.IP.String())
	if front.IP.IsUnspecified() {
		addrs, _ := net.InterfaceAddrs() // without them it is reached by name
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				all = append(all, n.IP.String())
			}
		}
		if name, err := os.Hostname(); err == nil {
			all = append(all, name)
		}
	}
	return all
}

// account is the name that the code finds in $USER.
func account() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "you"
}

// Call is what the proxy asks of serai-priv.
func (s *site) Call(_ context.Context, op string, args, _ any, _ ...*os.File) ([]*os.File, error) {
	switch op {
	case privsep.OpRoutes:
		fd, err := unix.FcntlInt(s.routes.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return []*os.File{os.NewFile(uintptr(fd), "routes")}, nil
	case privsep.OpFiles:
		f, err := os.OpenInRoot(s.code, s.launch.Files[args.(privsep.FilesRef).Index])
		if err != nil {
			return nil, serai.Errorf(serai.NotFound, "%v", err)
		}
		return []*os.File{f}, nil
	case privsep.OpKillWorker:
		return nil, end(args.(privsep.KillWorker))
	case privsep.OpAskWorker:
		return nil, unix.Kill(args.(privsep.WorkerRef).PID, privsep.SignalTell)
	}
	return nil, serai.Errorf(serai.Unavailable, "serai dev does not %s", op)
}

// end kills a worker, after it had time to write where it is.
func end(k privsep.KillWorker) error {
	pidfd, err := unix.PidfdOpen(k.PID, 0)
	if err != nil { // it has ended
		return nil
	}
	defer unix.Close(pidfd)
	if k.Ask && unix.PidfdSendSignal(pidfd, privsep.SignalNow, nil, 0) == nil {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(privsep.AskTime.Milliseconds()))
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// endOrphans ends what is left of the site's processes: those that have made
// themselves sessions of their own, say.
func endOrphans() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR || pid > 0:
		case err != nil: // no child is left
			return
		default:
			lists, _ := filepath.Glob("/proc/self/task/*/children")
			for _, list := range lists {
				text, _ := os.ReadFile(list) // a thread that has ended has none
				for child := range strings.FieldsSeq(string(text)) {
					kill(child)
				}
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func kill(pid string) {
	var n int
	if _, err := fmt.Sscan(pid, &n); err == nil && n > 1 {
		_ = syscall.Kill(n, syscall.SIGKILL) // it may have ended meanwhile
	}
}
