package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

func (a *app) applyCmd() *cobra.Command {
	var files []string
	var req client.ApplyRequest
	var w waiting
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "create and update what files say",
		Long: `Create and update the plans, tenants and sites that files say. All files are
checked as a whole before the first change: where they have a mistake, nothing
is done.

Then wait until what was applied is ready, and print the conditions of what is
not. With --prune what the files do not name is deleted: sites of the tenants
that the files speak of; tenants, where the files hold a Tenant; plans, where
they hold a Plan.`,
		Example: "  serai apply -f customers/\n  serai apply -f shop.yaml --dry-run",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Files, err = a.files(files); err != nil {
				return err
			}
			return a.apply(cmd.Context(), req, w)
		},
	}
	fileFlag(cmd, &files)
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "check, and say what would be done")
	cmd.Flags().BoolVar(&req.Prune, "prune", false, "delete what the files do not name")
	w.flags(cmd)
	return cmd
}

func fileFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "filename", "f", nil, "`FILE`, directory of *.yaml and *.yml, or - for the standard input; may be repeated")
}

// waiting says how long a command waits for what it asked for.
type waiting struct {
	none    bool
	timeout time.Duration
}

const defaultTimeout = 30 * time.Second

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.none, "no-wait", false, "do not wait until it is so")
	cmd.Flags().DurationVar(&w.timeout, "timeout", defaultTimeout, "how long to wait at most")
}

// files reads what -f names.
func (a *app) files(names []string) ([]client.File, error) {
	if len(names) == 0 {
		return nil, serai.Errorf(serai.Invalid, "-f is missing").WithHint("name a file or a directory of manifests: -f shop.yaml")
	}
	var out []client.File
	for _, name := range names {
		if name == "-" {
			text, err := io.ReadAll(a.in)
			if err != nil {
				return nil, fmt.Errorf("read the standard input: %w", err)
			}
			out = append(out, client.File{Name: "standard input", Text: string(text)})
			continue
		}
		found, err := walk(name)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// walk reads a file, or the manifests of a directory and those beneath it.
// What is hidden is passed over.
func walk(name string) (out []client.File, err error) {
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return readError(path, err)
		case path != name && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return nil
		case path != name && filepath.Ext(path) != ".yaml" && filepath.Ext(path) != ".yml":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return readError(path, err)
		}
		out = append(out, client.File{Name: path, Text: string(text)})
		return nil
	})
	if err == nil && len(out) == 0 {
		err = serai.Errorf(serai.Invalid, "%s holds no *.yaml or *.yml file", name)
	}
	return out, err
}

func readError(path string, err error) error {
	cause := err
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		cause = e.Err
	}
	return &serai.Error{Kind: serai.Invalid, Msg: fmt.Sprintf("%s cannot be read: %s", path, cause), Err: err}
}

// apply asks, prints what was done, and waits for it.
func (a *app) apply(ctx context.Context, req client.ApplyRequest, w waiting) error {
	c := a.client()
	defer c.Close()
	results, err := c.Apply(ctx, req)
	if err != nil {
		return err
	}
	failed := false
	for _, r := range results {
		a.result(r, req.DryRun)
		failed = failed || r.Action == client.Refused
	}
	if !req.DryRun && !w.none && !a.ready(ctx, c, results, w.timeout) {
		failed = true
	}
	if failed {
		return errSilent
	}
	return ctx.Err()
}

func (a *app) result(r client.Result, dry bool) {
	switch {
	case r.Action == client.Refused:
		fmt.Fprintf(a.err, "%s %s: %s\n", named(r.Key), a.paintErr(red, "refused"), clean(r.Message))
		if r.Hint != "" {
			fmt.Fprintln(a.err, "hint:", clean(r.Hint))
		}
	case dry:
		fmt.Fprintf(a.out, "%s would be %s\n", named(r.Key), r.Action)
	default:
		fmt.Fprintln(a.out, named(r.Key), r.Action)
	}
}

// ready waits for all results together, prints what is not ready and why, and
// reports whether all are.
func (a *app) ready(ctx context.Context, c *client.Client, results []client.Result, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	all := true
	for _, r := range results {
		switch {
		case r.Action == client.Refused:
			continue
		case r.Action == client.Deleted:
			gone, err := c.WaitGone(ctx, r.Key, time.Until(deadline))
			if err != nil || !gone {
				all = false
				a.notYet(r.Key, "is not gone yet", err)
			}
			continue
		}
		res, err := c.WaitReady(ctx, r.Key, r.Generation, time.Until(deadline))
		if err != nil {
			all = false
			a.notYet(r.Key, "is not known to be ready", err)
			continue
		}
		if !a.condition(res, r.Generation) {
			all = false
		}
	}
	return all
}

func (a *app) notYet(key serai.Key, what string, err error) {
	if err != nil {
		what += ": " + serai.Message(err)
	}
	fmt.Fprintln(a.err, named(key), clean(what))
}

// condition prints whether a resource is ready, and if not every condition
// that says why. What somebody stopped on purpose is as it shall be.
func (a *app) condition(r serai.Resource, generation int64) bool {
	observed, cs := serai.Progress(r)
	key := r.Key()
	ready := cs.Get(serai.Ready)
	if *observed < generation {
		fmt.Fprintf(a.err, "%s is %s: the server has not come to it yet\n", named(key), a.paintErr(yellow, "not ready"))
		return false
	}
	switch {
	case ready.Status == serai.True:
		fmt.Fprintln(a.out, named(key), "is", a.paint(green, "ready"))
		return true
	case ready.Reason == "Stopped" || ready.Reason == "Suspended":
		fmt.Fprintln(a.out, named(key), "is", a.paint(yellow, strings.ToLower(ready.Reason)))
		return true
	}
	fmt.Fprintf(a.err, "%s is %s: %s\n", named(key), a.paintErr(red, "not ready"), clean(why(*cs)))
	for _, c := range *cs {
		if c.Type != serai.Ready {
			fmt.Fprintf(a.err, "  %s=%s %s\n", c.Type, c.Status, clean(strings.TrimSpace(c.Reason+" "+c.Message)))
		}
	}
	if key.Kind == serai.KindSite && cs.Get(serai.Loaded).Status == serai.False {
		fmt.Fprintln(a.err, "hint: serai logs", key)
	}
	return false
}
