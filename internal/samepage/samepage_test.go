package samepage

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestMissing(t *testing.T) {
	for _, tt := range []struct {
		name           string
		run            string
		readErr, known error
		want           string
	}{
		{name: "merges", run: "1"},
		{name: "switched off", run: "0", want: "write 1 to /sys/kernel/mm/ksm/run"},
		{name: "unmerges", run: "2", want: "write 1 to /sys/kernel/mm/ksm/run"},
		{name: "old kernel", run: "1", known: syscall.EINVAL, want: "it needs Linux 6.4"},
		{name: "kernel without it", readErr: os.ErrNotExist, known: syscall.EINVAL, want: "CONFIG_KSM"},
		{name: "no /sys", readErr: os.ErrNotExist, want: "file does not exist"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := missing(tt.run, tt.readErr, tt.known)
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Fatalf("missing(%q, %v, %v) = %q; want %q", tt.run, tt.readErr, tt.known, got, tt.want)
			}
		})
	}
}
