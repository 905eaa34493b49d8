// Command bench measures a running Serai on this machine and prints a table:
// how long a new host takes to be served among many, how long a sleeping site
// takes to wake, and what a request costs. It needs root, and leaves nothing
// behind. Times are those of a shared machine: read ratios and CPU first.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"serai.dev/serai/client"
	"serai.dev/serai/internal/account"
	"serai.dev/serai/internal/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	bin := flag.String("bin", "bin", "directory of the programs")
	sites := flag.Int("sites", 10000, "sites that are there already, under 10 tenants")
	flag.Parse()
	b := &bench{bin: *bin, sites: *sites}
	err := b.run(ctx)
	if cleanErr := b.clean(); err == nil {
		err = cleanErr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const (
	tenants  = 10
	firstUID = 1900060000
)

// bench is one server under measurement.
type bench struct {
	bin   string
	sites int

	base, addr string
	cmd        *exec.Cmd
	made       []string // system accounts that were missing, and are not now
	client     *client.Client
}

func (b *bench) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{b.start, b.populate, b.addHost, b.wake, b.request, b.memory} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func row(what, format string, args ...any) {
	fmt.Printf("| %-58s | %s |\n", what, fmt.Sprintf(format, args...))
}

func (b *bench) start(ctx context.Context) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("the server under measurement needs root")
	}
	var err error
	if b.base, err = os.MkdirTemp("/var/lib", "serai-bench."); err != nil {
		return err
	}
	if err := os.Chmod(b.base, 0o755); err != nil {
		return err
	}
	if b.made, err = account.EnsureSystemUsers(config.Users{Daemon: "serai", Proxy: "serai-proxy", Admin: "serai-admin"}); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	b.addr = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	conf := fmt.Sprintf("stateDir: %[1]s/state\nrunDir: %[1]s/run\nlogDir: %[1]s/log\ncgroupRoot: serai-bench\n"+
		"listen: {http: [\"%[2]s\"], https: []}\naccounts: {range: %[3]d-%[4]d, prefix: bench-, home: %[1]s/home}\n", b.base, b.addr, firstUID, firstUID+999)
	if err := os.WriteFile(b.base+"/serai.yaml", []byte(conf), 0o644); err != nil {
		return err
	}
	b.cmd = exec.Command(filepath.Join(b.bin, "serai"), "serve", "--config", b.base+"/serai.yaml")
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log, err := b.cmd.StderrPipe()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := b.cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() && !strings.Contains(lines.Text(), "msg=ready") {
		fmt.Fprintln(os.Stderr, lines.Text())
	}
	go io.Copy(io.Discard, log)
	b.client = client.New(b.base + "/run/api.sock")
	if _, err := b.client.Status(ctx); err != nil {
		return err
	}
	host, err := exec.Command("uname", "-rm").Output()
	if err != nil {
		return err
	}
	fmt.Printf("%s CPUs, Linux %s\n", strconv.Itoa(len(cpus())), host)
	row("what", "figure")
	row("---", "---")
	row("start of the server, no site", "%s", time.Since(begin).Round(time.Millisecond))
	return nil
}

func cpus() []string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	return slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool { return !strings.HasPrefix(l, "processor") })
}

func (b *bench) apply(ctx context.Context, text string) error {
	_, err := b.client.Apply(ctx, client.ApplyRequest{Files: []client.File{{Name: "bench.yaml", Text: text}}})
	return err
}

func site(tenant int, name string) string {
	return fmt.Sprintf("---\nkind: Site\nmetadata: {name: %[2]s, tenant: t%[1]d}\nspec: {hosts: [%[2]s.example], root: app, engine: perl, perl: {app: app.psgi}, workers: {max: 1, idle: 1s, requests: 0}}\n", tenant, name)
}

// populate makes the tenants, their one application, and all sites.
func (b *bench) populate(ctx context.Context) error {
	text := "kind: Plan\nmetadata: {name: bench}\nspec: {memory: 2Gi, cpu: 2, processes: 5000, workers: 50, sites: 5000}\n"
	for t := range tenants {
		text += fmt.Sprintf("---\nkind: Tenant\nmetadata: {name: t%d}\nspec: {plan: bench, account: {create: true}}\n", t)
	}
	if err := b.apply(ctx, text); err != nil {
		return err
	}
	for t := range tenants {
		u, err := b.account(ctx, t)
		if err != nil {
			return err
		}
		write := exec.Command("setpriv", "--reuid="+u.Uid, "--regid="+u.Gid, "--clear-groups", "sh", "-c",
			`mkdir -p "$0/app" && printf '%s' "sub { [200, ['Content-Type', 'text/plain'], [\"hello\n\"]] }" >"$0/app/app.psgi"`, u.HomeDir)
		if out, err := write.CombinedOutput(); err != nil {
			return fmt.Errorf("write the application: %w: %s", err, out)
		}
	}
	begin := time.Now()
	const batch = 500
	for i := 0; i < b.sites; i += batch {
		var text strings.Builder
		for j := i; j < min(i+batch, b.sites); j++ {
			text.WriteString(site(j%tenants, fmt.Sprintf("s%d", j)))
		}
		if err := b.apply(ctx, text.String()); err != nil {
			return err
		}
	}
	row(fmt.Sprintf("%d sites committed", b.sites), "%s", time.Since(begin).Round(time.Millisecond))
	if b.sites == 0 {
		return nil
	}
	for _, last := range []string{"s0", fmt.Sprintf("s%d", b.sites-1)} {
		if err := b.served(ctx, http.DefaultClient, last+".example", 10*time.Minute); err != nil {
			return err
		}
	}
	row(fmt.Sprintf("%d sites served", b.sites), "%s", time.Since(begin).Round(time.Millisecond))
	if err := b.quiet(ctx); err != nil {
		return err
	}
	row(fmt.Sprintf("%d sites loaded once on trial, and asleep", b.sites), "%s", time.Since(begin).Round(time.Millisecond))
	return nil
}

// quiet waits until nothing is left to be done and every site sleeps.
func (b *bench) quiet(ctx context.Context) error {
	for end := time.Now().Add(10 * time.Minute); ; {
		st, err := b.client.Status(ctx)
		if err != nil {
			return err
		}
		awake := 0
		for phase, n := range st.Phases {
			if phase != "asleep" {
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

// account waits for a tenant's account.
func (b *bench) account(ctx context.Context, tenant int) (*user.User, error) {
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

// served asks until the proxy knows the host.
func (b *bench) served(ctx context.Context, c *http.Client, host string, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		req, err := http.NewRequestWithContext(ctx, "HEAD", "http://"+b.addr+"/", nil)
		if err != nil {
			return err
		}
		req.Host = host
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMisdirectedRequest {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not served after %s: %s", host, limit, resp.Status)
		}
		time.Sleep(500 * time.Microsecond) // leave the processor to what is measured
	}
}

func quantiles(d []time.Duration) string {
	slices.Sort(d)
	at := func(q float64) string {
		return fmt.Sprintf("%.1f", float64(d[int(q*float64(len(d)-1))].Microseconds())/1000)
	}
	return fmt.Sprintf("p50 %s, p95 %s, max %s ms (n=%d)", at(0.5), at(0.95), at(1), len(d))
}

// addHost measures from the commit of one more site to its first answer, while
// a kept connection to another site must stay open.
func (b *bench) addHost(ctx context.Context) error {
	var dials int
	kept := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}}
	var took []time.Duration
	for i := range 30 {
		name := fmt.Sprintf("new%d", i)
		if err := b.apply(ctx, site(i%tenants, name)); err != nil {
			return err
		}
		committed := time.Now()
		if err := b.served(ctx, kept, name+".example", 10*time.Second); err != nil {
			return err
		}
		took = append(took, time.Since(committed))
	}
	row(fmt.Sprintf("one host more among %d: commit to first answer", b.sites), "%s", quantiles(took))
	row("connections that it closed", "%d", dials-1)
	return nil
}

// get is one whole request.
func (b *bench) get(ctx context.Context, c *http.Client, host string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+b.addr+"/", nil)
	if err != nil {
		return err
	}
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "hello\n" {
		err = fmt.Errorf("%s answered %s: %.100q", host, resp.Status, body)
	}
	return err
}

// wake measures the first request to sites that sleep.
func (b *bench) wake(ctx context.Context) error {
	var took []time.Duration
	for i := range 60 {
		time.Sleep(100 * time.Millisecond) // apart, as real wakes are
		begin := time.Now()
		if err := b.get(ctx, http.DefaultClient, fmt.Sprintf("new%d.example", i%30)); err != nil {
			return err
		}
		if i >= 30 { // by then the first have slept again: idle is 1 s
			took = append(took, time.Since(begin))
		}
	}
	row("wake of a sleeping site, hello PSGI, 100 ms apart", "%s", quantiles(took))
	return nil
}

// request measures CPU per request over one kept connection.
func (b *bench) request(ctx context.Context) error {
	const n = 20000
	proxy, err := b.pid("serai-proxy")
	if err != nil {
		return err
	}
	for range 100 {
		if err := b.get(ctx, http.DefaultClient, "new0.example"); err != nil {
			return err
		}
	}
	worker, err := b.pid("serai t0/new0")
	if err != nil {
		return err
	}
	p0, w0, begin := cpu(proxy), cpu(worker), time.Now()
	for range n {
		if err := b.get(ctx, http.DefaultClient, "new0.example"); err != nil {
			return err
		}
	}
	took := time.Since(begin)
	row("CPU a request, hello PSGI, one kept connection: proxy", "%.1f µs", float64((cpu(proxy)-p0).Microseconds())/n)
	if now, err := b.pid("serai t0/new0"); err == nil && now == worker {
		row("CPU a request: worker", "%.1f µs", float64((cpu(worker)-w0).Microseconds())/n)
	}
	row("requests a second over that connection", "%.0f", n/took.Seconds())
	return nil
}

// memory prints what our own processes hold.
func (b *bench) memory(context.Context) error {
	for _, name := range []string{"serai-priv", "seraid", "serai-proxy", "serai zygote standard"} {
		pid, err := b.pid(name)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kib, err := strconv.Atoi(f[1])
				if err != nil {
					return err
				}
				row("memory (PSS) of "+name, "%.1f MiB", float64(kib)/1024)
			}
		}
	}
	return nil
}

// pid finds a process of this server by the beginning of its command line.
func (b *bench) pid(name string) (int, error) {
	if name == "serai-priv" {
		return b.cmd.Process.Pid, nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range dirs {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		args := strings.ReplaceAll(string(text), "\x00", " ")
		group, err := os.ReadFile(filepath.Dir(path) + "/cgroup")
		if err == nil && strings.Contains(string(group), "/serai-bench/") && (strings.HasPrefix(args, name) || strings.HasPrefix(filepath.Base(strings.SplitN(args, " ", 2)[0]), name)) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("no process %q runs", name)
}

// cpu is the time a process has run, of all its threads.
func cpu(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// clean ends the server and removes what it made.
func (b *bench) clean() error {
	if b.cmd != nil && b.cmd.Process != nil {
		if err := b.cmd.Process.Signal(syscall.SIGTERM); err == nil {
			_ = b.cmd.Wait() // its status is of no interest here
		}
	}
	if b.base == "" {
		return nil
	}
	ours := config.Accounts{Range: config.Range{First: firstUID, Last: firstUID + 999}, Prefix: "bench-", Home: b.base + "/home"}
	var err error
	for uid := ours.Range.First; uid < ours.Range.First+tenants; uid++ {
		err = errors.Join(err, account.Remove(ours, uid, false))
	}
	return errors.Join(err, account.RemoveSystemUsers(b.made), os.RemoveAll(b.base))
}
