package reconcile

import (
	"bytes"
	"context"
	"io"
	"strconv"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

// A Size is the memory of one process in bytes, as the kernel shares it out.
type Size struct {
	Private int64 // pages that it has alone
	Shared  int64 // pages that others have too
	PSS     int64 // private, and of each shared page its part
	Swap    int64 // swapped out, of shared pages its part
}

// Size tells how large a process of a site is. NotFound where it has ended or
// was never the site's. It takes the kernel about a millisecond.
func (r *Reconciler) Size(ctx context.Context, site uint32, pid int) (Size, error) {
	files, err := r.mon.Call(ctx, privsep.OpSize, privsep.WorkerRef{Site: site, PID: pid}, nil)
	if err != nil {
		return Size{}, err
	}
	// The process can make who reads wait; nobody shall wait for that.
	read := make(chan []byte, 1)
	go func() {
		var text []byte
		for _, f := range files {
			text, _ = io.ReadAll(f) // an error is that it has ended
			f.Close()
		}
		read <- text
	}()
	select {
	case text := <-read:
		if len(text) == 0 {
			return Size{}, serai.Errorf(serai.NotFound, "%d has ended", pid)
		}
		return sizeOf(text), nil
	case <-ctx.Done():
		return Size{}, ctx.Err()
	}
}

// sizeOf reads the text of smaps_rollup: a name, a colon, and KiB in each line
// but the first.
func sizeOf(text []byte) (s Size) {
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) != 3 || string(f[2]) != "kB" {
			continue
		}
		kib, err := strconv.ParseInt(string(f[1]), 10, 64)
		if err != nil {
			continue
		}
		switch string(f[0]) {
		case "Private_Clean:", "Private_Dirty:", "Private_Hugetlb:":
			s.Private += kib << 10
		case "Shared_Clean:", "Shared_Dirty:", "Shared_Hugetlb:":
			s.Shared += kib << 10
		case "Pss:":
			s.PSS = kib << 10
		case "SwapPss:":
			s.Swap = kib << 10
		}
	}
	return s
}
