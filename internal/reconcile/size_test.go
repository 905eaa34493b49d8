package reconcile

import (
	"os"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/internal/privsep"
)

func TestSize(t *testing.T) {
	w := newWorld(t)
	w.create(aPlan(), aTenant("alice"), aSite("alice", "shop", "shop.example.com"))
	w.start()
	w.awaitReady(siteKey("alice", "shop"))
	want := Size{Private: (12 + 2496) << 10, Shared: (5524 + 412) << 10, PSS: 3121 << 10, Swap: 7 << 10}
	if got, err := w.rec.Size(t.Context(), 1, 4242); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	w.mon.mu.Lock()
	w.mon.refuse[privsep.OpSize] = serai.Errorf(serai.NotFound, "4242 is no process of site 1")
	w.mon.mu.Unlock()
	if got, err := w.rec.Size(t.Context(), 1, 4242); serai.KindOf(err) != serai.NotFound {
		t.Errorf("%+v, %v", got, err)
	}
}

// What is no line of numbers counts nothing.
func TestSizeOfNonsense(t *testing.T) {
	for _, text := range []string{"", "Private_Clean:", "Private_Clean: x kB", "Private_Clean: 1 2 kB", "Private_Clean: 99999999999999999999 kB"} {
		if got := sizeOf([]byte(text)); got != (Size{}) {
			t.Errorf("%q: %+v", text, got)
		}
	}
	own, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	if got := sizeOf(own); got.Private == 0 || got.PSS < got.Private {
		t.Errorf("of this process: %+v", got)
	}
}
