package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

// catalogueCmd is `serai catalogue` with list, add and remove beneath.
func (a *app) catalogueCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "catalogue",
		Short: "scripts of the operator that sites may mount",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	cmd.AddCommand(a.catalogueListCmd(), a.catalogueAddCmd(), a.catalogueRemoveCmd())
	return cmd
}

func (a *app) catalogueListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list the scripts and their settings",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			entries, err := c.Catalogue(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tTITLE\tVERSION\tSETTINGS\tMOUNTED BY")
			for _, e := range entries {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.Name, clean(e.Title), e.Version, settingsText(e.Settings), strings.Join(e.Sites, " "))
			}
			return w.Flush()
		},
	}
}

// settingsText lists settings as they may be written: to!, title=Guest book.
func settingsText(settings map[string]serai.Setting) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		switch s := settings[name]; {
		case s.Required:
			name += "!"
		case s.Default != "":
			name += "=" + clean(s.Default)
		}
		list = append(list, name)
	}
	return strings.Join(list, ", ")
}

func (a *app) catalogueAddCmd() *cobra.Command {
	var plan string
	var w waiting
	cmd := &cobra.Command{
		Use:   "add NAME DIR",
		Short: "add a directory of scripts, or put it in place of the one that is there",
		Long: `Add a directory of scripts to the catalogue. Its file catalogue.yaml says what
they are. Sites that mount them get the new ones as soon as these are loaded.

The scripts run in a tenant of the operator's own, named catalogue, which the
first add makes: --plan is its plan.`,
		Example: "  serai catalogue add guestbook /usr/share/serai/catalogue/guestbook --plan shared",
		Args:    args("NAME", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			archive, err := pack(args[1])
			if err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			r, err := c.AddEntry(cmd.Context(), args[0], plan, archive)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, "catalogue", r.Key.Name, r.Action)
			if w.none {
				return nil
			}
			return a.entryReady(cmd.Context(), c, r, w)
		},
	}
	cmd.Flags().StringVar(&plan, "plan", "", "`PLAN` of the catalogue's tenant")
	w.flags(cmd)
	return cmd
}

// entryReady waits until an entry answers.
func (a *app) entryReady(ctx context.Context, c *client.Client, r client.Result, w waiting) error {
	res, err := c.WaitReady(ctx, r.Key, r.Generation, w.timeout)
	if err != nil {
		return err
	}
	_, conditions := serai.Progress(res)
	if ready := conditions.Get(serai.Ready); ready.Status != serai.True {
		return serai.Errorf(serai.Unavailable, "catalogue %s is not ready: %s", r.Key.Name, clean(ready.Message)).
			WithHint("serai describe site %s", r.Key)
	}
	fmt.Fprintln(a.out, "catalogue", r.Key.Name, "is ready")
	return nil
}

// pack makes a tar of a directory: of regular files, without what is hidden.
func pack(dir string) ([]byte, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, readError(dir, err)
	} else if !info.IsDir() {
		return nil, serai.Errorf(serai.Invalid, "%s is no directory", dir)
	}
	var out bytes.Buffer
	t := tar.NewWriter(&out)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return readError(path, err)
		case path != dir && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return nil
		case !d.Type().IsRegular():
			return serai.Errorf(serai.Invalid, "%s is neither a file nor a directory: the catalogue takes no links", path)
		}
		info, err := d.Info()
		if err != nil {
			return readError(path, err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return readError(path, err)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: int64(info.Mode().Perm()), Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = t.Write(text)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out.Bytes(), t.Close()
}

func (a *app) catalogueRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "remove scripts that no site mounts; what they have stored stays",
		Args:  args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			if err := c.RemoveEntry(cmd.Context(), args[0]); err != nil {
				return err
			}
			if _, err := c.WaitGone(cmd.Context(), serai.EntryKey(args[0]), defaultTimeout); err != nil {
				return err
			}
			fmt.Fprintln(a.out, "catalogue", args[0], "removed")
			return nil
		},
	}
}
