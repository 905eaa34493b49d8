package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// reference is docs/reference/cli.md, made from the tree of commands.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# The command line\n\nMade from the tree of commands in cmd/serai by its test (-update).\n\n" + root.Long + `

Errors are one sentence on the standard error, then "hint: …" where there is
something to try. Colour is for terminals only; NO_COLOR switches it off. The
JSON of -o json is stable.

Completion for a shell comes from "serai completion bash", zsh or fish.

## Flags of all commands

`)
	flagList(&b, root.PersistentFlags())
	for _, group := range root.Groups() {
		fmt.Fprintf(&b, "\n## %s\n", strings.TrimSuffix(group.Title, ":"))
		for _, c := range root.Commands() {
			if c.GroupID == group.ID {
				command(&b, c)
			}
		}
	}
	return b.String()
}

func command(b *strings.Builder, c *cobra.Command) {
	if c.HasSubCommands() {
		for _, sub := range c.Commands() {
			command(b, sub)
		}
		return
	}
	fmt.Fprintf(b, "\n### %s\n\n", c.UseLine())
	text := c.Long
	if text == "" {
		text = strings.ToUpper(c.Short[:1]) + c.Short[1:] + "."
	}
	b.WriteString(text + "\n\n")
	if c.Example != "" {
		b.WriteString("```\n" + strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n") + "\n```\n\n")
	}
	flagList(b, c.LocalNonPersistentFlags())
}

func flagList(b *strings.Builder, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		b.WriteString("- `")
		if f.Shorthand != "" {
			b.WriteString("-" + f.Shorthand + ", ")
		}
		b.WriteString("--" + f.Name)
		if value != "" {
			b.WriteString(" " + value)
		}
		b.WriteString("`: " + usage)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" {
			b.WriteString(" (" + f.DefValue + ")")
		}
		b.WriteString("\n")
	})
}
