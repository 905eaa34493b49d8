package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
	"serai.dev/serai/internal/manifest"
)

// kindCmd is `serai plan`, `serai tenant` or `serai site`, with add beneath.
func (a *app) kindCmd(kind string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   noun(kind),
		Short: "add a " + noun(kind) + " without a file",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	cmd.AddCommand(a.addCmd(kind))
	return cmd
}

func (a *app) addCmd(kind string) *cobra.Command {
	var w waiting
	var dry bool
	example := map[string]string{
		serai.KindPlan:   "  serai plan add small --memory 256Mi --workers 8",
		serai.KindTenant: "  serai tenant add alice --plan small --hosts example.com,*.example.com",
		serai.KindSite:   "  serai site add alice/shop --hosts shop.example.com --root shop --perl.app app.psgi",
	}[kind]
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "add a " + noun(kind),
		Long: fmt.Sprintf(`Add a %s, as a file of the same content and serai apply would. The flags are
the fields of a manifest's spec; lists have commas between their elements,
mappings are NAME=VALUE and may be repeated.`, noun(kind)),
		Example: example,
		Args:    args("NAME"),
	}
	values := specFlags(cmd, kind)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check, and print the manifest")
	w.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		key, err := a.key(cmd.Context(), kind, args[0])
		if err != nil {
			return err
		}
		c := a.client()
		defer c.Close()
		if _, err := c.Get(cmd.Context(), key); err == nil {
			return serai.Errorf(serai.Conflict, "%s exists already", named(key)).WithHint("to change it: serai get %s %s -o yaml, then serai apply -f", noun(kind), key)
		} else if serai.KindOf(err) != serai.NotFound {
			return err
		}
		text, err := document(key, values.spec(cmd))
		if err != nil {
			return err
		}
		req := client.ApplyRequest{Files: []client.File{{Name: "flags", Text: text}}, DryRun: dry}
		if dry {
			results, err := c.Apply(cmd.Context(), req)
			if err != nil {
				return flagProblems(kind, err)
			}
			for _, r := range results {
				fmt.Fprint(a.out, r.After)
			}
			return nil
		}
		return flagProblems(kind, a.apply(cmd.Context(), req, w))
	}
	return cmd
}

// A specFlag is a field of a manifest as a flag: its name is the field's path
// within spec.
type specFlag struct {
	field  manifest.Field
	name   string
	scalar string
	list   []string
	pairs  map[string]string
}

type specValues []*specFlag

// specFlags makes a flag of every field that has a value and is built, but for
// those named.
func specFlags(cmd *cobra.Command, kind string, but ...string) (flags specValues) {
	for _, f := range manifest.Fields(kind) {
		name, ok := strings.CutPrefix(f.Path, "spec.")
		if !ok || f.Type() == "group" || f.State == manifest.Later || strings.ContainsAny(name, "[*") || slices.Contains(but, name) {
			continue
		}
		s := &specFlag{field: f, name: name}
		meaning := strings.ReplaceAll(f.Meaning, "`", "'")
		switch {
		case f.List():
			cmd.Flags().StringSliceVar(&s.list, name, nil, meaning)
		case strings.HasPrefix(f.Type(), "mapping"):
			cmd.Flags().StringToStringVar(&s.pairs, name, nil, meaning)
		default:
			cmd.Flags().StringVar(&s.scalar, name, "", meaning)
			if f.Type() == "boolean" {
				cmd.Flags().Lookup(name).NoOptDefVal = "true"
			}
		}
		flags = append(flags, s)
	}
	return flags
}

// spec is what the flags stand for.
func (flags specValues) spec(cmd *cobra.Command) map[string]any {
	spec := map[string]any{}
	for _, s := range flags {
		if !cmd.Flags().Changed(s.name) {
			continue
		}
		at := spec
		names := strings.Split(s.name, ".")
		for _, n := range names[:len(names)-1] {
			below, ok := at[n].(map[string]any)
			if !ok {
				below = map[string]any{}
				at[n] = below
			}
			at = below
		}
		at[names[len(names)-1]] = s.value()
	}
	// The block says which engine is meant.
	if _, ok := spec["perl"]; ok && spec["engine"] == nil {
		spec["engine"] = "perl"
	}
	return spec
}

// document writes a manifest. JSON is YAML too.
func document(key serai.Key, spec map[string]any) (string, error) {
	meta := map[string]string{"name": key.Name}
	if key.Tenant != "" {
		meta["tenant"] = key.Tenant
	}
	text, err := json.Marshal(map[string]any{"kind": key.Kind, "metadata": meta, "spec": spec})
	return string(text), err
}

func (s *specFlag) value() any {
	switch {
	case s.field.List():
		return s.list
	case s.pairs != nil:
		return s.pairs
	}
	// A number in quotes is a text, and refused as such.
	var v any
	if typ := s.field.Type(); (typ == "number" || typ == "boolean") && json.Unmarshal([]byte(s.scalar), &v) == nil {
		switch v.(type) {
		case float64, bool:
			return json.RawMessage(s.scalar)
		}
	}
	return s.scalar
}

// flagProblems names the flag instead of the place in a file that nobody wrote.
func flagProblems(kind string, err error) error {
	ps, ok := errors.AsType[client.Problems](err)
	if !ok {
		return err
	}
	var e *serai.Error
	errors.As(err, &e)
	c := *e
	named := make(client.Problems, len(ps))
	for i, p := range ps {
		named[i] = client.Problem{File: noun(kind), Message: p.Message}
		if flag, ok := strings.CutPrefix(p.Path, "spec."); ok {
			named[i].File = "--" + flag
		} else if strings.HasPrefix(p.Path, "metadata.") {
			named[i].File = "NAME"
		}
	}
	c.Err = named
	c.Msg = "nothing was added"
	return &c
}
