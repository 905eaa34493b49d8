package root

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"serai.dev/serai"
)

// cmdPeak looks at the memory of the proxy and of a site's processes, the
// kernel's VmHWM: peak reset TENANT/SITE lets it begin anew, peak within SIZE
// TENANT/SITE fails where one of them has grown by more than SIZE since.
func cmdPeak(ts *testscript.TestScript, neg bool, args []string) {
	s := serverOf(ts)
	if neg || len(args) < 2 {
		ts.Fatalf("usage: peak reset TENANT/SITE, or peak within SIZE TENANT/SITE")
	}
	pids, err := s.sitePIDs(ts, args[len(args)-1])
	ts.Check(err)
	proxy, err := s.pidOf("serai-proxy")
	ts.Check(err)
	pids = append(pids, strconv.Itoa(proxy))
	if args[0] == "reset" {
		s.resident = map[string]serai.Bytes{}
		for _, pid := range pids {
			ts.Check(os.WriteFile("/proc/"+pid+"/clear_refs", []byte("5"), 0))
			s.resident[pid] = residentOf(ts, pid, "VmRSS:")
		}
		return
	}
	limit, err := serai.ParseBytes(args[1])
	ts.Check(err)
	for _, pid := range pids {
		before, ok := s.resident[pid]
		if !ok {
			ts.Fatalf("pid %s was not there when the peak was reset", pid)
		}
		grown := residentOf(ts, pid, "VmHWM:") - before
		fmt.Fprintf(ts.Stdout(), "pid %s grew by %v from %v\n", pid, grown, before)
		if grown > limit {
			ts.Fatalf("pid %s took %v more than at rest, and may take %v", pid, grown, limit)
		}
	}
}

// residentOf is a line of /proc/PID/status.
func residentOf(ts *testscript.TestScript, pid, name string) serai.Bytes {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	ts.Check(err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			ts.Check(err)
			return serai.Bytes(kib << 10)
		}
	}
	ts.Fatalf("no %s for pid %s", name, pid)
	return 0
}
