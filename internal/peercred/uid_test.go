package peercred

import (
	"os"
	"testing"
)

// TestIsOf: what a kernel without SO_PEERPIDFD is asked instead.
func TestIsOf(t *testing.T) {
	uid := uint32(os.Geteuid())
	for _, tt := range []struct {
		uid  uint32
		pid  int
		want bool
	}{
		{uid, os.Getpid(), true},
		{uid + 1, os.Getpid(), false},
		{uid + 10, os.Getpid(), false},
		{uid, 1 << 30, false}, // above all pids
	} {
		if got := isOf(tt.uid, tt.pid); got != tt.want {
			t.Errorf("isOf(%d, %d) = %v", tt.uid, tt.pid, got)
		}
	}
}
