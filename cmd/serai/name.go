package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

// parseKind reads plan, plans, Plan and so on.
func parseKind(s string) (string, error) {
	for _, kind := range []string{serai.KindPlan, serai.KindTenant, serai.KindSite} {
		if word := strings.ToLower(s); word == noun(kind) || word == noun(kind)+"s" {
			return kind, nil
		}
	}
	return "", serai.Errorf(serai.Invalid, "%q is no kind", s).WithHint("write plan, tenant or site")
}

func noun(kind string) string { return strings.ToLower(kind) }

// named is how people speak of a resource: site alice/shop.
func named(key serai.Key) string { return noun(key.Kind) + " " + key.String() }

// key reads the name of a resource as people write it. Whose the site is that
// is named without its tenant, the server says.
func (a *app) key(ctx context.Context, kind, name string) (serai.Key, error) {
	tenant, site, full := strings.Cut(name, "/")
	switch {
	case kind != serai.KindSite:
		if full || name == "" {
			return serai.Key{}, serai.Errorf(serai.Invalid, "%q is no name of a %s", name, noun(kind))
		}
		return serai.Key{Kind: kind, Name: name}, nil
	case full && tenant != "" && site != "" && !strings.Contains(site, "/"):
		return serai.Key{Kind: kind, Tenant: tenant, Name: site}, nil
	case full || name == "":
		return serai.Key{}, serai.Errorf(serai.Invalid, "%q is no name of a site", name).WithHint("write TENANT/SITE")
	}
	c := a.client()
	defer c.Close()
	id, err := c.Whoami(ctx)
	if err != nil {
		return serai.Key{}, err
	}
	if id.Tenant == "" {
		return serai.Key{}, serai.Errorf(serai.Invalid, "whose site is %q?", name).WithHint("write TENANT/%s", name)
	}
	return serai.Key{Kind: kind, Tenant: id.Tenant, Name: name}, nil
}

// names completes the names of one kind. Completion never complains and never
// hangs: it has a second.
func (a *app) names(kind string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.list(cmd.Context(), kind), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) list(ctx context.Context, kind string) (names []string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c := a.client()
	defer c.Close()
	rs, err := c.List(ctx, kind, "")
	if err != nil {
		return nil
	}
	id, err := c.Whoami(ctx)
	for _, r := range rs {
		if err == nil && id.Tenant != "" {
			names = append(names, r.Key().Name)
		} else {
			names = append(names, r.Key().String())
		}
	}
	return names
}

// kindThenName completes KIND NAME.
func (a *app) kindThenName(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return []string{"plan", "tenant", "site"}, cobra.ShellCompDirectiveNoFileComp
	}
	kind, err := parseKind(args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.names(kind)(cmd, args[1:], word)
}

// args says what is missing or too much, in words.
func args(names ...string) cobra.PositionalArgs {
	optional := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, "[") })
	if optional < 0 {
		optional = len(names)
	}
	return func(cmd *cobra.Command, given []string) error {
		switch {
		case len(given) < optional:
			return serai.Errorf(serai.Invalid, "%s is missing", names[len(given)]).WithHint("%s", cmd.UseLine())
		case len(given) > len(names):
			return serai.Errorf(serai.Invalid, "%q is too much", given[len(names)]).WithHint("%s", cmd.UseLine())
		}
		return nil
	}
}

// onSite runs a command that is about one site.
func (a *app) onSite(f func(context.Context, *client.Client, serai.Key) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		key, err := a.key(cmd.Context(), serai.KindSite, args[0])
		if err != nil {
			return err
		}
		c := a.client()
		defer c.Close()
		return f(cmd.Context(), c, key)
	}
}
