package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/synctest"
)

// TestStreamKeepsOrder: whatever the sizes of what is put and taken, what comes
// out is what went in.
func TestStreamKeepsOrder(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		in := make([]byte, r.IntN(300_000))
		for i := range in {
			in[i] = byte(r.Uint32())
		}
		waits := 0
		st := newStream(newSpool(t.TempDir()), int64(1+r.IntN(5000)), int64(r.IntN(2)*r.IntN(20_000)), func() { waits++ })
		sizes := rand.New(rand.NewPCG(seed, 2))
		go func() {
			for rest := in; len(rest) > 0; {
				n := min(len(rest), 1+sizes.IntN(10_000))
				st.put(rest[:n])
				rest = rest[n:]
			}
			st.finish(io.EOF)
		}()
		var out []byte
		buf := make([]byte, 1+r.IntN(9000))
		for {
			n, err := st.take(t.Context(), buf[:1+r.IntN(len(buf))], func() {})
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, buf[:n]...)
		}
		if !bytes.Equal(in, out) {
			t.Fatalf("seed %d: %d bytes went in, %d others came out", seed, len(in), len(out))
		}
		if waits > 1 {
			t.Fatalf("said %d times that it waits", waits)
		}
		st.leave()
	}
}

func TestStreamEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStream(newSpool("/nonexistent"), 10, 1000, nil) // a disk that takes nothing is one without room
		put := make(chan error)
		go func() { put <- st.put([]byte("0123456789abcdef")) }()
		synctest.Wait()
		st.leave()
		if err := <-put; !errors.Is(err, errGone) {
			t.Errorf("put to nobody: %v", err)
		}
		st = newStream(newSpool("/nonexistent"), 10, 0, nil)
		ctx, cancel := context.WithCancel(t.Context())
		idle := 0
		taken := make(chan error)
		go func() {
			_, err := st.take(ctx, make([]byte, 1), func() { idle++ })
			taken <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-taken; !errors.Is(err, context.Canceled) || idle != 1 {
			t.Errorf("take: %v, idle %d", err, idle)
		}
	})
}

func TestSpoolLimits(t *testing.T) {
	s := newSpool(t.TempDir())
	for _, tt := range []struct {
		size, limit, buffer int
		inFile              bool
		err                 error
	}{
		{0, 10, 10, false, nil}, {10, 10, 10, false, nil}, {11, 10, 10, false, errTooLarge},
		{11, 100, 10, true, nil}, {100_000, 100_000, 40_000, true, nil}, {5, 100, 0, true, nil},
	} {
		b, err := s.readBody(strings.NewReader(strings.Repeat("x", tt.size)), int64(tt.limit), int64(tt.buffer))
		if !errors.Is(err, tt.err) {
			t.Errorf("%+v: %v", tt, err)
		}
		if err != nil {
			continue
		}
		got, err := io.ReadAll(b.reader())
		if again, _ := io.ReadAll(b.reader()); err != nil || len(got) != tt.size || len(again) != tt.size || (b.file != nil) != tt.inFile {
			t.Errorf("%+v: %d then %d bytes, in a file %v, %v", tt, len(got), len(again), b.file != nil, err)
		}
		b.close()
	}
	s.memory.Store(5) // all others' bodies have the rest
	b, err := s.readBody(strings.NewReader("0123456789"), 100, 100)
	if err != nil || b.file == nil {
		t.Errorf("without memory left: %v, %+v", err, b)
	}
	b.close()
	if got := s.memory.Load(); got != 5 {
		t.Errorf("%d bytes of memory left, it were 5", got)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
	if _, err := newSpool("/nonexistent").readBody(strings.NewReader("x"), 1, 0); !errors.Is(err, errSpool) {
		t.Errorf("without a disk: %v", err)
	}
}

func TestPages(t *testing.T) {
	p := page{status: 503, why: `<script>"x"</script>`, id: "0123456789abcdef"}
	for accept, want := range map[string]string{
		"": "text/html; charset=utf-8", "*/*": "text/html; charset=utf-8", "text/html,application/json": "text/html; charset=utf-8",
		"application/json": "application/json", "application/problem+json;q=1": "application/json",
		"image/png, text/plain": "text/plain; charset=utf-8", "garbage;;;": "text/html; charset=utf-8",
	} {
		got, text := p.as(accept)
		if got != want || !strings.Contains(text, p.id) || !strings.Contains(text, "503") {
			t.Errorf("%q: %s %s", accept, got, text)
		}
		if strings.HasPrefix(got, "text/html") && strings.Contains(text, "<script>") {
			t.Errorf("not escaped: %s", text)
		}
	}
}
