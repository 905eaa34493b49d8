package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/config"
	"serai.dev/serai/internal/doctor"
	"serai.dev/serai/internal/manifest"
)

func (a *app) serveCmd() *cobra.Command {
	var s settings
	var check bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "start everything (as root)",
		Long: `Read the configuration and start Serai: this process becomes serai-priv, which
starts the others and runs until it is interrupted. The flags are the settings
of the configuration file and win over it; lists have commas between their
elements.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := s.load(cmd)
			if err != nil {
				return err
			}
			if check {
				fmt.Fprintln(a.out, "configuration OK")
				return nil
			}
			return become(cfg)
		},
	}
	s.flags(cmd)
	cmd.Flags().BoolVarP(&check, "check", "t", false, "read the configuration, say whether it is right, and end")
	return cmd
}

// defaultConfig is read where no other file is named, and need not exist.
const defaultConfig = "/etc/serai/serai.yaml"

// settings are the flags that say where the configuration is and what wins
// over it.
type settings struct{ file string }

func (s *settings) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.file, "config", defaultConfig, "`FILE` with the configuration")
	for _, f := range manifest.ConfigFields() {
		if !settable(f) {
			continue
		}
		usage := strings.ReplaceAll(f.Meaning, "`", "'")
		if f.Path == "libexec" {
			usage += "; default: where this program is, else " + f.Default
		} else if f.Default != "" && f.Default != `""` {
			usage += "; default: " + f.Default
		}
		cmd.Flags().String(f.Path, "", usage)
	}
}

func settable(f manifest.Field) bool {
	return f.Type() != "group" && !strings.Contains(f.Path, "*") && f.Path != "zygotes"
}

func (s *settings) load(cmd *cobra.Command) (*config.Config, error) {
	text, err := os.ReadFile(s.file)
	if err != nil && (!errors.Is(err, fs.ErrNotExist) || cmd.Flags().Changed("config")) {
		return nil, readError(s.file, err)
	}
	over := map[string]string{}
	for _, f := range manifest.ConfigFields() {
		if settable(f) && cmd.Flags().Changed(f.Path) {
			over[f.Path] = cmd.Flags().Lookup(f.Path).Value.String()
		}
	}
	cfg, ps := manifest.LoadConfig(manifest.File{Name: s.file, Text: text}, over)
	if len(ps) == 0 {
		return cfg, ownLibexec(cfg)
	}
	return nil, mistakes(ps, "the configuration has")
}

// mistakes is the error of a file that was read here, not by the server.
func mistakes(ps manifest.Problems, what string) error {
	wrong := make(client.Problems, len(ps))
	for i, p := range ps {
		wrong[i] = client.Problem{File: p.File, Line: p.Line, Column: p.Column, Path: p.Path, Message: p.Msg}
	}
	e := serai.Errorf(serai.Invalid, "%s %s", what, count(len(ps), "mistake", "mistakes"))
	e.Err = wrong
	return e
}

// ownLibexec prefers the serai-priv that lies beside this program to the one of
// the default directory: whoever has built all of it means that.
func ownLibexec(cfg *config.Config) error {
	if cfg.Libexec != manifest.DefaultConfig().Libexec {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if own := filepath.Dir(exe); unix.Access(filepath.Join(own, "serai-priv"), unix.X_OK) == nil {
		cfg.Libexec = own
	}
	return nil
}

// perl is what sites are run by.
const perl = "/usr/bin/perl"

// become checks what only a start needs, hands the configuration over and is
// serai-priv from then on. It returns only where that fails.
func become(cfg *config.Config) error {
	if os.Geteuid() != 0 {
		return serai.Errorf(serai.Denied, "serai serve must run as root").WithHint("sudo serai serve")
	}
	if unix.Access(perl, unix.X_OK) != nil {
		return serai.Errorf(serai.Unavailable, "%s is missing: it runs the sites", perl).WithHint("apt install perl")
	}
	priv := filepath.Join(cfg.Libexec, "serai-priv")
	if unix.Access(priv, unix.X_OK) != nil {
		return serai.Errorf(serai.Unavailable, "%s is missing or cannot be run", priv).WithHint("name the directory of serai-priv with --libexec")
	}
	for _, name := range []string{"seraid", "serai-proxy"} {
		path := filepath.Join(cfg.Libexec, name)
		if part := doctor.Closed(path); part != "" {
			return serai.Errorf(serai.Unavailable, "%s runs under an account of its own, and %s is closed to it", path, part).
				WithHint("copy the four programs to where all accounts may run them, or chmod o+x %s", part)
		}
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("print the configuration: %w", err)
	}
	fd, err := unix.MemfdCreate("serai-config", 0)
	if err != nil {
		return fmt.Errorf("make a place for the configuration: %w", err)
	}
	if _, err := unix.Pwrite(fd, text, 0); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	err = syscall.Exec(priv, []string{priv, "--config-fd", strconv.Itoa(fd)}, os.Environ())
	return fmt.Errorf("start %s: %w", priv, err)
}
