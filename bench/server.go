package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/config"
)

// The uids of a run.
const (
	tenants  = 10
	firstUID = 1900060000
	lastUID  = firstUID + 999
	peerUID  = firstUID + 500 // of the peers' instances, which have no account
)

// benchPlan is what the tenants of a measurement may have: enough.
const benchPlan = "{memory: 2Gi, cpu: 2, processes: 5000, workers: 50, sites: 5000}"

// A server is Serai under measurement.
type server struct {
	base, addr string
	tenants    int
	cmd        *exec.Cmd
	client     *client.Client
}

// startServer starts a server with n tenants of a plan, who have the
// applications in ~/app, and sees to it that it ends with b.
func (b *bench) startServer(ctx context.Context, n int, plan string) (*server, error) {
	base, err := os.MkdirTemp("/var/lib", "serai-bench.")
	if err != nil {
		return nil, err
	}
	s := &server{base: base, tenants: n}
	b.cleanup = append(b.cleanup, func() error { return os.RemoveAll(base) })
	if err := os.Chmod(base, 0o755); err != nil {
		return nil, err
	}
	// Our users must be able to run them, wherever the checkout is.
	if err := os.CopyFS(base+"/bin", os.DirFS(b.bin)); err != nil {
		return nil, err
	}
	made, err := account.EnsureSystemUsers(config.Users{Daemon: "serai", Proxy: "serai-proxy", Admin: "serai-admin"})
	b.cleanup = append(b.cleanup, func() error { return account.RemoveSystemUsers(made) })
	if err != nil {
		return nil, err
	}
	if s.addr, err = freeAddress(); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("stateDir: %[1]s/state\nrunDir: %[1]s/run\nlogDir: %[1]s/log\ncgroupRoot: serai-bench\n"+
		"listen: {http: [\"%[2]s\"], https: []}\naccounts: {range: %[3]d-%[4]d, prefix: bench-, home: %[1]s/home}\n"+
		"zygotes: {dancer2: {modules: [Dancer2]}}\n", base, s.addr, firstUID, lastUID)
	if err := os.WriteFile(base+"/serai.yaml", []byte(conf), 0o644); err != nil {
		return nil, err
	}
	s.cmd = exec.Command(base+"/bin/serai", "serve", "--config", base+"/serai.yaml")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us, who end it in order
	log, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	b.cleanup = append(b.cleanup, s.stop)
	lines, favor := bufio.NewScanner(log), "on"
	for lines.Scan() && !strings.Contains(lines.Text(), "msg=ready") {
		if strings.Contains(lines.Text(), "favordynmods cannot be set") {
			favor = "not to be had"
		}
		if strings.Contains(lines.Text(), "level=ERROR") {
			note("%s", lines.Text())
		}
	}
	go io.Copy(io.Discard, log)
	fmt.Printf("favordynmods: %s.\n", favor)
	s.client = client.New(base + "/run/api.sock")
	if _, err := s.client.Status(ctx); err != nil {
		return nil, err
	}
	return s, s.populate(ctx, plan)
}

// stop ends the server and removes its accounts. It may be called twice.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Wait() // its status is of no interest here
	s.cmd = nil
	ours := config.Accounts{Range: config.Range{First: firstUID, Last: lastUID}, Prefix: "bench-", Home: s.base + "/home"}
	var err error
	for uid := ours.Range.First; uid < ours.Range.First+uint32(s.tenants); uid++ {
		err = errors.Join(err, account.Remove(ours, uid, false))
	}
	return err
}

func (s *server) apply(ctx context.Context, text string) error {
	results, err := s.client.Apply(ctx, client.ApplyRequest{Files: []client.File{{Name: "bench.yaml", Text: text}}})
	for _, r := range results {
		if err == nil && r.Action == client.Refused {
			err = fmt.Errorf("%s: %s", r.Key, r.Message)
		}
	}
	return err
}

// populate makes the tenants and writes their applications.
func (s *server) populate(ctx context.Context, plan string) error {
	text := "kind: Plan\nmetadata: {name: bench}\nspec: " + plan + "\n"
	for t := range s.tenants {
		text += fmt.Sprintf("---\nkind: Tenant\nmetadata: {name: t%d}\nspec: {plan: bench, account: {create: true}}\n", t)
	}
	if err := s.apply(ctx, text); err != nil {
		return err
	}
	files := filepath.Join(s.base, "apps")
	if err := writeApps(files); err != nil {
		return err
	}
	for t := range s.tenants {
		u, err := s.account(ctx, t)
		if err != nil {
			return err
		}
		write := exec.Command("setpriv", "--reuid="+u.Uid, "--regid="+u.Gid, "--clear-groups", "cp", "-R", files, u.HomeDir+"/app")
		if out, err := write.CombinedOutput(); err != nil {
			return fmt.Errorf("write the applications: %w: %s", err, out)
		}
	}
	return nil
}

// account waits for a tenant's account.
func (s *server) account(ctx context.Context, tenant int) (*user.User, error) {
	for end := time.Now().Add(time.Minute); ; {
		u, err := user.Lookup(fmt.Sprintf("bench-t%d", tenant))
		if err == nil {
			if _, err := os.Stat(u.HomeDir); err == nil {
				return u, nil
			}
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return nil, fmt.Errorf("tenant t%d got no account: %v", tenant, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A site is one to be hosted.
type site struct {
	tenant  int
	name    string
	app     application
	workers string // in YAML, "" for the default
	env     string // in YAML
}

func (s site) key() serai.Key {
	return serai.Key{Kind: serai.KindSite, Tenant: fmt.Sprintf("t%d", s.tenant), Name: s.name}
}

func (s site) host() string { return s.name + ".example" }

func (s site) manifest() string {
	text := fmt.Sprintf("---\nkind: Site\nmetadata: {name: %s, tenant: t%d}\nspec:\n  hosts: [%s]\n  root: app\n  engine: perl\n  perl: {app: %s.psgi, preload: %s}\n",
		s.name, s.tenant, s.host(), s.app.name, s.app.set)
	if s.workers != "" {
		text += "  workers: " + s.workers + "\n"
	}
	if s.env != "" {
		text += "  env: " + s.env + "\n"
	}
	return text
}

// host applies sites, some hundred at once.
func (s *server) host(ctx context.Context, sites []site) error {
	const batch = 500
	for begin := 0; begin < len(sites); begin += batch {
		var text strings.Builder
		for _, site := range sites[begin:min(begin+batch, len(sites))] {
			text.WriteString(site.manifest())
		}
		if err := s.apply(ctx, text.String()); err != nil {
			return err
		}
	}
	return nil
}

// remove takes sites away again.
func (s *server) remove(ctx context.Context, sites []site) error {
	for _, site := range sites {
		if err := s.client.Delete(ctx, site.key(), false); err != nil {
			return err
		}
	}
	for _, site := range sites {
		if gone, err := s.client.WaitGone(ctx, site.key(), time.Minute); err != nil || !gone {
			return fmt.Errorf("site %s is not gone: %v", site.key(), err)
		}
	}
	return nil
}

// ready waits until a site is.
func (s *server) ready(ctx context.Context, of site) error {
	r, err := s.client.WaitReady(ctx, of.key(), 1, time.Minute)
	if err != nil {
		return err
	}
	if c := r.(*serai.Site).Status.Conditions.Get(serai.Ready); c.Status != "True" {
		return fmt.Errorf("site %s is not ready: %+v", of.key(), c)
	}
	return nil
}

// quiet waits until nothing is left to be done and every site sleeps or is
// stopped.
func (s *server) quiet(ctx context.Context) error {
	for end := time.Now().Add(10 * time.Minute); ; {
		st, err := s.client.Status(ctx)
		if err != nil {
			return err
		}
		awake := 0
		for phase, n := range st.Phases {
			if phase != "asleep" && phase != "off" {
				awake += n
			}
		}
		if st.Pending == 0 && awake == 0 {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("the server does not come to rest: %d to do, %v", st.Pending, st.Phases)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// in are the server's processes in a control group, or beneath it.
func (s *server) in(group string) ([]int, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range all {
		if strings.Contains(strings.ReplaceAll(p.cgroups, "\n", "/\n"), "/serai-bench/"+group+"/") {
			pids = append(pids, p.pid)
		}
	}
	return pids, nil
}
