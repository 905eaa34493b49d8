package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"serai.dev/serai"
	"serai.dev/serai/internal/doctor"
)

func (a *app) doctorCmd() *cobra.Command {
	var output string
	var s settings
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "tell whether this machine is fit, and what is missing",
		Long: `Look at this machine: kernel, cgroups, namespaces, Perl and its modules, ranges
of uids, addresses. Nothing is changed, and no server is needed. As root more
can be seen. The exit code is 1 where something does not work like this.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "text", "json"); err != nil {
				return err
			}
			cfg, err := s.load(cmd)
			if err != nil {
				return err
			}
			return a.doctor(doctor.Check(cfg), output)
		},
	}
	s.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`FORMAT`: text, json")
	mustComplete(cmd, "output", words("text", "json"))
	return cmd
}

// levels are the words and colours of the doctor's findings.
var levels = map[doctor.Level]struct{ word, colour string }{
	doctor.Good:    {"good", green},
	doctor.Unknown: {"unknown", yellow},
	doctor.Warn:    {"warning", yellow},
	doctor.Bad:     {"bad", red},
}

func (a *app) doctor(findings []doctor.Finding, output string) error {
	bad := 0
	for _, f := range findings {
		if f.Level == doctor.Bad {
			bad++
		}
	}
	if output == "json" {
		type finding struct {
			Name  string `json:"name"`
			Level string `json:"level"`
			What  string `json:"what"`
			Do    string `json:"do,omitempty"`
		}
		out := make([]finding, len(findings))
		for i, f := range findings {
			out[i] = finding{f.Name, levels[f.Level].word, f.What, f.Do}
		}
		if err := a.json(map[string]any{"findings": out}); err != nil {
			return err
		}
	} else {
		t := table{plain: true}
		for _, f := range findings {
			t.add(levels[f.Level].word, f.Name, f.What)
			t.colour(0, levels[f.Level].colour)
			if f.Do != "" {
				t.add("", "", "do: "+f.Do)
			}
		}
		a.table(&t)
	}
	if bad > 0 {
		return serai.Errorf(serai.Unavailable, "%s not work on this machine as it is", count(bad, "thing does", "things do"))
	}
	return nil
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
