// Package samepage says whether this machine merges pages of memory that are
// alike (Linux's KSM). It switches nothing on.
package samepage

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// prGetMemoryMerge asks whether the calling process lets its pages be merged;
// kernels before 6.4 do not know the question.
const prGetMemoryMerge = 68

const runFile = "/sys/kernel/mm/ksm/run"

// Missing is why plans with merge have no effect on this machine, a sentence
// with what to do about it; "" where they have.
func Missing() string {
	run, err := os.ReadFile(runFile)
	_, known := unix.PrctlRetInt(prGetMemoryMerge, 0, 0, 0, 0)
	return missing(strings.TrimSpace(string(run)), err, known)
}

// missing decides by what was read of runFile, and by the answer to
// prGetMemoryMerge.
func missing(run string, readErr, known error) string {
	switch {
	case known != nil:
		return "the kernel cannot merge the pages of a whole process: it needs Linux 6.4 with CONFIG_KSM"
	case readErr != nil:
		return "the kernel does not say whether it merges pages: " + readErr.Error()
	case run != "1":
		return "the kernel merges no pages: write 1 to " + runFile
	}
	return ""
}
