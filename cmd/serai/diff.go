package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"serai.dev/serai/client"
)

func (a *app) diffCmd() *cobra.Command {
	var files []string
	req := client.ApplyRequest{DryRun: true}
	cmd := &cobra.Command{
		Use:   "diff -f FILE|DIR|-",
		Short: "show what apply would change",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Files, err = a.files(files); err != nil {
				return err
			}
			c := a.client()
			defer c.Close()
			results, err := c.Apply(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.diff(results)
		},
	}
	fileFlag(cmd, &files)
	cmd.Flags().BoolVar(&req.Prune, "prune", false, "also what the files do not name")
	return cmd
}

func (a *app) diff(results []client.Result) error {
	refused := false
	for _, r := range results {
		switch r.Action {
		case client.Unchanged:
			continue
		case client.Refused:
			a.result(r, true)
			refused = true
			continue
		}
		fmt.Fprintln(a.out, a.paint(bold, fmt.Sprintf("%s (%s)", named(r.Key), r.Action)))
		for _, line := range diffLines(split(r.Before), split(r.After)) {
			colour := map[byte]string{'-': red, '+': green}[line[0]]
			fmt.Fprintln(a.out, a.paint(colour, clean(line)))
		}
	}
	if refused {
		return errSilent
	}
	return nil
}

func split(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// diffLines is the shortest way from one list of lines to the other, each with
// "  ", "- " or "+ " before it. Manifests are short: a table of all pairs will
// do, and beyond some size all old lines go and all new ones come.
func diffLines(from, to []string) (out []string) {
	if len(from)*len(to) > 4<<20 {
		for _, l := range from {
			out = append(out, "- "+l)
		}
		for _, l := range to {
			out = append(out, "+ "+l)
		}
		return out
	}
	// same[i][j] is how many lines from[i:] and to[j:] have in common, in order.
	same := make([][]int, len(from)+1)
	for i := range same {
		same[i] = make([]int, len(to)+1)
	}
	for i := len(from) - 1; i >= 0; i-- {
		for j := len(to) - 1; j >= 0; j-- {
			if from[i] == to[j] {
				same[i][j] = same[i+1][j+1] + 1
			} else {
				same[i][j] = max(same[i+1][j], same[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(from) || j < len(to) {
		switch {
		case i < len(from) && j < len(to) && from[i] == to[j]:
			out = append(out, "  "+from[i])
			i, j = i+1, j+1
		case j == len(to) || i < len(from) && same[i+1][j] >= same[i][j+1]:
			out = append(out, "- "+from[i])
			i++
		default:
			out = append(out, "+ "+to[j])
			j++
		}
	}
	return out
}
