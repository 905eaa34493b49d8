// Command bench measures Serai on this machine, and prints Markdown: what
// 10,000 sites cost (section hosts), and one table side by side with Starman,
// uWSGI and Apache mod_perl (section perl). Section soak, which runs only when
// it is asked for, keeps sick customers beside good ones. It needs root, and leaves nothing
// behind. Times are those of a shared machine: read ratios, sizes and CPU first.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// A bench is one run.
type bench struct {
	bin     string // directory of the programs
	sites   int    // of section hosts
	times   int    // rounds of each measure of CPU time
	quick   bool
	soakFor time.Duration
	bodies  map[string][]byte // what applications say, by name
	cleanup []func() error    // last one first
}

// sections are what can be measured, in their order.
var sections = []struct {
	name  string
	asked bool // runs only when it is named
	run   func(*bench, context.Context) error
}{
	{"perl", false, (*bench).perl},
	{"hosts", false, (*bench).hosts},
	{"soak", true, (*bench).soak},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal kills at once
	var b bench
	flag.StringVar(&b.bin, "bin", "bin", "directory of the programs")
	only := flag.String("only", "", "the one section to run: perl, hosts or soak")
	flag.IntVar(&b.sites, "sites", 10000, "sites in section hosts, under 10 tenants")
	flag.DurationVar(&b.soakFor, "for", 10*time.Minute, "how long section soak asks")
	flag.BoolVar(&b.quick, "quick", false, "few instances and requests: shows that it works, its figures mean little")
	flag.Parse()
	err := b.run(ctx, *only)
	if cleanErr := b.clean(); err == nil {
		err = cleanErr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context, only string) error {
	if os.Getuid() != 0 {
		return errors.New("the servers under measurement need root")
	}
	b.times = 5
	if b.quick {
		b.times, b.sites = 1, min(b.sites, 100)
	}
	fmt.Printf("%s\n", machine())
	known := false
	for _, s := range sections {
		if only != s.name && (only != "" || s.asked) {
			continue
		}
		known = true
		begin := time.Now()
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("section %s: %w", s.name, err)
		}
		fmt.Printf("\nSection %s took %s.\n", s.name, time.Since(begin).Round(time.Second))
	}
	if !known {
		return fmt.Errorf("there is no section %q: use perl, hosts or soak", only)
	}
	return nil
}

// clean undoes what was done, last first.
func (b *bench) clean() error {
	var err error
	for len(b.cleanup) > 0 {
		last := len(b.cleanup) - 1
		undo := b.cleanup[last]
		b.cleanup = b.cleanup[:last]
		err = errors.Join(err, undo())
	}
	return err
}

// note tells on standard error how far the run is.
func note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// machine says what was measured on.
func machine() string {
	said := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%s: %v", name, err)
		}
		return strings.TrimSpace(string(out))
	}
	model, count := processors()
	versions := strings.Fields(said("dpkg-query", "-W", "-f", "${Package}=${Version} ",
		"perl", "starman", "uwsgi-plugin-psgi", "libapache2-mod-perl2", "apache2-bin", "libplack-perl", "libdancer2-perl", "libcgi-pm-perl"))
	return fmt.Sprintf("Tree %s, %s, %d CPUs (%s), %s, Linux %s, load %s.\nPackages: %s.",
		said("git", "describe", "--always", "--dirty"), time.Now().UTC().Format("2006-01-02 15:04"), count, model,
		memory(), said("uname", "-rm"), firstWord("/proc/loadavg"), strings.Join(versions, ", "))
}

func firstWord(path string) string {
	text, err := os.ReadFile(path)
	if f := strings.Fields(string(text)); err == nil && len(f) > 0 {
		return f[0]
	}
	return "?"
}

func processors() (model string, count int) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "?", 0
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "processor":
			count++
		case "model name":
			model = strings.TrimSpace(value)
		}
	}
	return model, count
}

func memory() string {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return "?"
	}
	return fmt.Sprintf("%.0f GiB", float64(info.Totalram)*float64(info.Unit)/(1<<30))
}
