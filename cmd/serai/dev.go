package main

import (
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/internal/dev"
	"serai.dev/serai/internal/manifest"
)

func (a *app) devCmd() *cobra.Command {
	var listen, perl, file string
	cmd := &cobra.Command{
		Use:   "dev [APP.psgi|DIR]",
		Short: "run a site of your own computer, without root, for its author",
		Long: `Run a PSGI file, or a directory with an app.psgi or with CGI scripts, on this
computer: by the same engine and the same front proxy as at the provider, under
your own account, without a server and without root. A file of the code that has
changed is loaded anew before the next request. Code that does not load and
requests that fail are shown in the browser, with the lines of the source; what
the code writes to STDERR comes to the terminal, and a line for each request.
Ctrl-C ends it, and nothing is left.

With --site it is run as the manifest of a Site says, from the directory of the
manifest or the one that is named. Else the flags are the fields of one: lists
have commas between their elements, mappings are NAME=VALUE and may be repeated.

It is for development: nothing is isolated or limited, and the pages on errors
show source. Listen on other than the computer's own addresses only in a network
that you trust.`,
		Example: `  serai dev
  serai dev app.psgi --env MODE=test --perl.inc lib,local/lib/perl5
  serai dev --site site.yaml`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:5000", "`HOST:PORT` to listen on; a port alone is one of 127.0.0.1")
	cmd.Flags().StringVar(&perl, "perl", "perl", "the `PROGRAM` that runs the code: Perl 5.36 or newer")
	cmd.Flags().StringVar(&file, "site", "", "`FILE` with the manifest of the Site")
	values := specFlags(cmd, serai.KindSite, "root", "hosts", "engine", "stopped", "perl.preload")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o := dev.Options{Perl: perl, Listen: address(listen), Out: a.out, Err: os.Stderr}
		var err error
		if file != "" {
			o.Site, o.Dir, err = siteOf(cmd, values, file, args)
		} else {
			o.Site, o.Dir, err = siteAt(cmd, values, append(args, ".")[0])
		}
		if err != nil {
			return err
		}
		// To end takes two seconds at most, which a second Ctrl-C does not cut
		// short: it would leave processes. SIGHUP: the terminal was closed.
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		return dev.Run(ctx, o)
	}
	return cmd
}

// address makes HOST:PORT of a port.
func address(s string) string {
	if !strings.Contains(s, ":") {
		return "127.0.0.1:" + s
	}
	return s
}

// siteOf reads the site of a manifest. Its code is where the manifest is, where
// no other directory is named.
func siteOf(cmd *cobra.Command, values specValues, file string, args []string) (*serai.Site, string, error) {
	for _, v := range values {
		if cmd.Flags().Changed(v.name) {
			return nil, "", serai.Errorf(serai.Invalid, "--%s stands beside --site: write it into %s", v.name, file)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, "", readError(file, err)
	}
	s, err := parseSite(manifest.File{Name: file, Text: text})
	return s, append(args, filepath.Dir(file))[0], err
}

// siteAt makes a site of a file or directory and the flags.
func siteAt(cmd *cobra.Command, values specValues, path string) (*serai.Site, string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, "", readError(path, err)
	}
	dir, set := path, cmd.Flags().Set
	given := cmd.Flags().Changed("perl.app") || cmd.Flags().Changed("perl.scripts")
	switch {
	case given && !info.IsDir():
		return nil, "", serai.Errorf(serai.Invalid, "%s stands beside --perl.app or --perl.scripts: name one of them", path)
	case given:
	case strings.HasSuffix(path, ".psgi"):
		dir = filepath.Dir(path)
		err = set("perl.app", filepath.Base(path))
	case !info.IsDir():
		dir = filepath.Dir(path)
		err = set("perl.scripts", "/=.")
	default:
		if _, missing := os.Stat(filepath.Join(path, "app.psgi")); errors.Is(missing, fs.ErrNotExist) {
			err = set("perl.scripts", "/=.")
		} else {
			err = set("perl.app", "app.psgi")
		}
	}
	if err != nil {
		return nil, "", err
	}
	spec := values.spec(cmd)
	spec["hosts"], spec["root"] = []string{"localhost"}, "here"
	text, err := document(serai.Key{Kind: serai.KindSite, Tenant: "you", Name: "dev"}, spec)
	if err != nil {
		return nil, "", err
	}
	s, err := parseSite(manifest.File{Name: "flags", Text: []byte(text)})
	return s, dir, flagProblems(serai.KindSite, err)
}

// parseSite reads the only Site of a file, which its tenant may have written or
// the operator.
func parseSite(f manifest.File) (*serai.Site, error) {
	set, ps := manifest.Parse([]manifest.File{f}, "")
	if slices.ContainsFunc(ps, func(p manifest.Problem) bool { return p.Path == "metadata.tenant" }) {
		set, ps = manifest.Parse([]manifest.File{f}, "you")
	}
	if len(ps) > 0 {
		return nil, mistakes(ps, f.Name+" has")
	}
	var sites []*serai.Site
	for _, d := range set.Docs {
		if s, ok := d.Resource.(*serai.Site); ok {
			sites = append(sites, s)
		}
	}
	if len(sites) != 1 {
		return nil, serai.Errorf(serai.Invalid, "%s has %s: serai dev runs one, from a file of its own", f.Name, count(len(sites), "Site", "Sites"))
	}
	return sites[0], nil
}
