package monitor

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai/internal/privsep"
)

// A descriptor that eachFD forgets would be lost by an upgrade.
func TestEachFDKnowsAll(t *testing.T) {
	s := &state{}
	fill(reflect.ValueOf(s).Elem(), 0)
	want := count(reflect.ValueOf(s))
	got := 0
	s.eachFD(func(*fd) { got++ })
	if got != want || want < 12 {
		t.Errorf("eachFD calls for %d descriptors of %d", got, want)
	}
}

var fdType = reflect.TypeFor[fd]()

// fill makes one of everything that is written down.
func fill(v reflect.Value, depth int) {
	if depth > 8 || !v.CanSet() {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.Type() == reflect.TypeFor[*zygote]() && depth > 4 {
			return // Next of Next of …
		}
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), depth+1)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		elem := reflect.New(v.Type().Elem()).Elem()
		fill(elem, depth+1)
		v.SetMapIndex(reflect.Zero(v.Type().Key()), elem)
	case reflect.Int:
		v.SetInt(7)
	}
}

func count(v reflect.Value) (n int) {
	if v.Type() == fdType {
		return 1
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			return count(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				n += count(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			n += count(v.Index(i))
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			n += count(v.MapIndex(key))
		}
	}
	return n
}

// What is written down is read back the same, and every other version, part
// or field is refused.
func TestStateRoundTrip(t *testing.T) {
	m, _ := deskMonitor(t)
	m.Sites[1].Processes = []*process{{Leaf: 3, Phase: draining, PID: 77, Due: time.Now(), Waiter: &waiter{seraid, 1, 9}, site: m.Sites[1]}}
	m.Jobs = []*job{{Name: "create-account", Input: json.RawMessage(`{"uid":1}`)}}
	m.Leaving = []*leaving{{Waiter: waiter{proxy, 1, 9}, PID: 78, Due: time.Now()}}
	m.Peers[seraid].Out = []packet{{Data: []byte("later")}}
	text, err := json.Marshal(m.state)
	if err != nil {
		t.Fatal(err)
	}
	s, err := decodeState(text)
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(s)
	if err != nil || !bytes.Equal(again, text) {
		t.Errorf("read back:\n%s\nwritten:\n%s\n%v", again, text, err)
	}
	s.link()
	p := s.Sites[1].Processes[0]
	if p.site != s.Sites[1] || p.site.tenant != s.Tenants[testUID] || s.Tenants[testUID].running != 1 || s.Peers[seraid].size != 5 {
		t.Error("not linked as it was")
	}
	for name, change := range map[string]func(string) string{
		"newer version": func(s string) string { return strings.Replace(s, `"version":1`, `"version":2`, 1) },
		"no version":    func(s string) string { return strings.Replace(s, `"version":1,`, ``, 1) },
		"unknown field": func(s string) string { return strings.Replace(s, `"version":1`, `"version":1,"virtue":1`, 1) },
		"cut off":       func(s string) string { return s[:len(s)/2] },
		"nothing":       func(string) string { return "" },
		"no sites":      func(s string) string { return strings.Replace(s, `"sites":{`, `"sites":null,"x":{`, 1) },
		"lost tenant": func(s string) string {
			return strings.Replace(s, `"tenants":{"1900002001"`, `"tenants":{"1900002003"`, 1)
		},
		"wrong range": func(s string) string { return strings.Replace(s, `"first":1900002000`, `"first":1`, 1) },
	} {
		changed := change(string(text))
		if changed == string(text) {
			t.Fatalf("%s: nothing changed", name)
		}
		var out bytes.Buffer
		if err := CheckState(strings.NewReader(changed), &out); err != nil {
			t.Fatal(err)
		}
		var a Answer
		if err := json.Unmarshal(out.Bytes(), &a); err != nil || a.Error == nil {
			t.Errorf("%s: %s, want a no", name, out.Bytes())
		}
	}
	var out bytes.Buffer
	var a Answer
	if err := CheckState(bytes.NewReader(text), &out); err != nil || json.Unmarshal(out.Bytes(), &a) != nil || a.Error != nil {
		t.Errorf("%s, %v, want a yes", out.Bytes(), err)
	}
}

// A tenant whose sites end at once, each with status 0, does not keep us busy:
// a burst, then a steady few. Others are not held up by it.
func TestEndedSoon(t *testing.T) {
	mallory, alice := &tenant{}, &tenant{}
	s, other, neighbour := &site{tenant: mallory}, &site{tenant: mallory}, &site{tenant: alice}
	now := time.Now()
	starts := 0
	for end := now.Add(10 * time.Second); now.Before(end); now = now.Add(time.Millisecond) {
		if s.mayWake(now) {
			starts++
			mallory.endedSoon(now)
		}
	}
	if burst, steady := int(quickBurst/quickEvery), int(10*time.Second/quickEvery); starts < steady || starts > steady+burst+1 {
		t.Errorf("%d starts in 10 s", starts)
	}
	if mallory.endedSoon(now); other.mayWake(now) || !neighbour.mayWake(now) {
		t.Error("it is the tenant that waits, and nobody else")
	}
	if at := s.wakeAt(); !s.mayWake(at) || !at.After(now) || at.After(now.Add(2*quickEvery)) {
		t.Errorf("it wakes again after %v", at.Sub(now))
	}
}

func TestBackoff(t *testing.T) {
	want := []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 10 * time.Second, 10 * time.Second}
	for n, w := range want {
		if got := backoff(n); got != w {
			t.Errorf("backoff(%d) = %s, want %s", n, got, w)
		}
	}
	if backoff(1<<40) != 10*time.Second {
		t.Error("back-off overflows")
	}
}

// A peer that does not read what it asked for is not served further, gets all
// of it later, and is dropped where that is too much.
func TestSlowPeer(t *testing.T) {
	m, ends := deskMonitor(t)
	p := m.Peers[seraid]
	if err := m.watchPeer(p); err != nil {
		t.Fatal(err)
	}
	const n = 2000
	for i := range n {
		m.tell(privsep.EvStarted, privsep.SiteEvent{Site: uint32(i), Message: strings.Repeat("x", 200)}, seraid)
	}
	if len(p.Out) == 0 {
		t.Fatal("nothing waits")
	}
	buf, control := make([]byte, privsep.MaxPacket+1), make([]byte, privsep.ControlSize)
	if err := unix.SetNonblock(ends[seraid], true); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < n; {
		packet, _, err := privsep.Receive(ends[seraid], buf, control)
		if err == unix.EAGAIN {
			if err := m.turnOnce(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var r privsep.Reply
		var e privsep.SiteEvent
		if err != nil || json.Unmarshal(packet, &r) != nil || json.Unmarshal(r.Body, &e) != nil || e.Site != uint32(i) {
			t.Fatalf("packet %d: %s, %v", i, packet, err)
		}
		i++
	}
	if len(p.Out) != 0 || p.size != 0 {
		t.Errorf("%d packets, %d bytes left", len(p.Out), p.size)
	}
	for range maxOut/60000 + 10 {
		m.tell(privsep.EvStarted, privsep.SiteEvent{Message: strings.Repeat("x", 60000)}, seraid)
	}
	if p.Sock != 0 || len(p.Out) != 0 {
		t.Errorf("a deaf peer was not dropped: %d packets wait", len(p.Out))
	}
}

func FuzzFields(f *testing.F) {
	f.Add(encodeFields([]field{{"op", "up"}, {"missing", "DBI"}}))
	f.Add([]byte{0, 0, 0, 9, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := decodeFields(b)
		if err == nil && !bytes.Equal(encodeFields(fields), b) {
			t.Fatalf("%q is %v", b, fields)
		}
	})
}
