package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A peer is a server that a provider would run today, once for each customer
// and under the customer's uid, as Debian's package has it.
type peer struct {
	title string
	base  string // directory of its instances
	// command starts one in the foreground; one says with a single worker, else
	// by the peer's own defaults.
	command func(i instance, one bool) ([]string, error)
}

// An instance is what a peer's command is made of.
type instance struct{ dir, addr, app string }

var peers = []*peer{
	{title: "Starman", command: func(i instance, one bool) ([]string, error) {
		args := []string{"starman", "--preload-app", "--env", "deployment", "--max-requests", "1000000000", "--listen", i.addr, "--error-log", i.dir + "/error.log"}
		if one {
			args = append(args, "--workers", "1")
		}
		return append(args, i.app), nil
	}},
	{title: "uWSGI", command: func(i instance, one bool) ([]string, error) {
		args := []string{"uwsgi", "--plugin", "psgi", "--psgi", i.app, "--http11-socket", i.addr, "--disable-logging", "--die-on-term", "--buffer-size", "32768"}
		if one {
			args = append(args, "--master", "--processes", "1")
		}
		return args, nil
	}},
	{title: "mod_perl", command: func(i instance, one bool) ([]string, error) {
		template, err := apps.ReadFile("apps/apache.conf")
		if err != nil {
			return nil, err
		}
		workers := ""
		if one {
			workers = "StartServers 1\nMinSpareServers 1\nMaxSpareServers 1\nServerLimit 1\nMaxRequestWorkers 1"
		}
		conf := strings.NewReplacer("__DIR__", i.dir, "__ADDRESS__", i.addr, "__APP__", i.app, "__WORKERS__", workers).Replace(string(template))
		file := filepath.Join(i.dir, "apache.conf")
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			return nil, err
		}
		return []string{"apache2", "-f", file, "-DFOREGROUND"}, nil
	}},
}

func (p *peer) name() string { return p.title }

func (p *peer) open(ctx context.Context, b *bench) error {
	var err error
	p.base, err = os.MkdirTemp("/var/tmp", "serai-bench.")
	if err != nil {
		return err
	}
	base := p.base
	b.cleanup = append(b.cleanup, func() error { return os.RemoveAll(base) })
	if err := os.Chmod(base, 0o755); err != nil {
		return err
	}
	return writeApps(base)
}

func (p *peer) close() error { return os.RemoveAll(p.base) }

// A running is an instance that was started.
type running struct {
	at  endpoint
	cmd *exec.Cmd
}

// run starts instance number n and returns before it answers.
func (p *peer) run(n int, app application, one bool) (*running, error) {
	uid := peerUID + n
	i := instance{dir: filepath.Join(p.base, strconv.Itoa(n)), app: filepath.Join(p.base, app.name+".psgi")}
	if err := os.MkdirAll(i.dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chown(i.dir, uid, uid); err != nil {
		return nil, err
	}
	var err error
	if i.addr, err = freeAddress(); err != nil {
		return nil, err
	}
	args, err := p.command(i, one)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = i.dir
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + i.dir, "LANG=C.UTF-8", "PLACK_ENV=deployment"}
	// A session, since apache2 ends its whole process group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	out, err := os.Create(filepath.Join(i.dir, "output"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &running{endpoint{i.addr, "customer.example"}, cmd}, nil
}

// answer asks until the instance has answered its first request.
func (r *running) answer(ctx context.Context) ([]byte, error) {
	for end := time.Now().Add(patience); ; {
		body, _, err := once(ctx, r.at)
		if err == nil {
			return body, nil
		}
		if ctx.Err() != nil || time.Now().After(end) || !errors.Is(err, syscall.ECONNREFUSED) {
			out, _ := os.ReadFile(filepath.Join(r.cmd.Dir, "output"))
			return nil, fmt.Errorf("%s does not answer: %w: %s", r.cmd.Path, err, out)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// end stops an instance with all its processes.
func (r *running) end() {
	r.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(5*time.Second, func() { syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) })
	r.cmd.Wait() // its status is of no interest here
	late.Stop()
	syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) // what it left behind
}

// A peerFleet is instances of one peer.
type peerFleet []*running

func (p *peer) up(ctx context.Context, app application, n int, one bool) (fleet, error) {
	var f peerFleet
	for i := range n {
		r, err := p.run(i, app, one)
		if err == nil {
			f = append(f, r)
			_, err = r.answer(ctx)
		}
		if err != nil {
			f.down()
			return nil, err
		}
	}
	return f, nil
}

func (f peerFleet) at(i int) endpoint { return f[i].at }

func (f peerFleet) pids() ([]int, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, r := range f {
		pids = append(pids, family(all, r.cmd.Process.Pid)...)
	}
	return pids, nil
}

func (f peerFleet) servers(i int) (worker, proxy []int, err error) {
	all, err := processes()
	return family(all, f[i].cmd.Process.Pid), nil, err
}

func (f peerFleet) down() error {
	for _, r := range f {
		r.end()
	}
	return nil
}

// starts measures from exec to the reply to the first request.
func (p *peer) starts(ctx context.Context, app application, n int) ([]time.Duration, error) {
	var took []time.Duration
	for i := range n {
		begin := time.Now()
		r, err := p.run(i, app, true)
		if err != nil {
			return nil, err
		}
		_, err = r.answer(ctx)
		took = append(took, time.Since(begin))
		r.end()
		if err != nil {
			return nil, err
		}
		time.Sleep(apart)
	}
	return took, nil
}
