package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A table is printed as Markdown: a column for each contender, and a last one.
type table struct {
	columns []string
	rows    []*row
}

type row struct {
	what  string
	cells map[string]string
	last  string
}

// set fills in a cell; rows are in the order in which they were first named.
func (t *table) set(what, column, format string, args ...any) {
	i := slices.IndexFunc(t.rows, func(r *row) bool { return r.what == what })
	if i < 0 {
		i = len(t.rows)
		t.rows = append(t.rows, &row{what: what, cells: make(map[string]string), last: limits[what]})
	}
	t.rows[i].cells[column] = fmt.Sprintf(format, args...)
}

func (t *table) print() {
	head := append([]string{"what"}, append(t.columns, "floor, **goal**")...)
	line := func(cells []string) { fmt.Printf("| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, r := range t.rows {
		cells := []string{r.what}
		for _, c := range t.columns {
			cells = append(cells, r.cells[c])
		}
		line(append(cells, r.last))
	}
}

// figure prints one figure as a row of a table of two columns.
func figure(what, format string, args ...any) {
	fmt.Printf("| %s | %s |\n", what, fmt.Sprintf(format, args...))
}

// quantiles is p50, p95 and max in milliseconds.
func quantiles(d []time.Duration) string {
	slices.Sort(d)
	at := func(q float64) string {
		return fmt.Sprintf("%.1f", float64(d[int(q*float64(len(d)-1))].Microseconds())/1000)
	}
	return fmt.Sprintf("%s / %s / %s", at(0.5), at(0.95), at(1))
}

func median[T ~int64 | ~float64](list []T) T {
	slices.Sort(list)
	return list[len(list)/2]
}
