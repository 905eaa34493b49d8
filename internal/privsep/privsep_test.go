package privsep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"serai.dev/serai"
)

// pair is a connection and the monitor's end of it.
func pair(t *testing.T) (*Conn, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewConn(os.NewFile(uintptr(fds[0]), "peer"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		unix.Close(fds[1])
		<-c.Done()
	})
	return c, fds[1]
}

// next is the next request, as the monitor reads it.
func next(t *testing.T, fd int) (Request, []int) {
	t.Helper()
	packet, files, err := Receive(fd, make([]byte, MaxPacket+1), make([]byte, ControlSize))
	if err != nil {
		t.Errorf("Receive: %v", err)
		return Request{}, nil
	}
	r, err := DecodeRequest(packet)
	if err != nil {
		t.Errorf("DecodeRequest(%s): %v", packet, err)
	}
	return r, files
}

func say(t *testing.T, fd int, r Reply, files ...int) {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := Send(fd, text, files...); err != nil {
		t.Errorf("Send(%s): %v", text, err)
	}
}

func ctxFor(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestCall(t *testing.T) {
	c, fd := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	go func() {
		req, files := next(t, fd)
		var ref SiteRef
		if err := Strict(req.Args, &ref); err != nil || req.Op != OpLogs || ref.Site != 7 {
			t.Errorf("request %+v, %+v, %v", req, ref, err)
		}
		say(t, fd, Reply{ID: req.ID, Body: json.RawMessage(`{"pid":12}`)}, files...) // the same descriptor back
		CloseAll(files)
	}()
	var body LaunchResult
	got, err := c.Call(ctxFor(t), OpLogs, SiteRef{7}, &body, w)
	if err != nil || len(got) != 1 || body.PID != 12 {
		t.Fatalf("Call = %v, %v, body %+v", got, err, body)
	}
	fmt.Fprint(got[0], "through")
	got[0].Close()
	w.Close()
	if text, err := io.ReadAll(r); string(text) != "through" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
}

func TestCallRefused(t *testing.T) {
	c, fd := pair(t)
	go func() {
		req, _ := next(t, fd)
		say(t, fd, Reply{ID: req.ID, Error: &Error{Kind: "not found", Msg: "no such site", Hint: "look"}})
	}()
	_, err := c.Call(ctxFor(t), OpStop, SiteRef{1}, nil)
	if serai.KindOf(err) != serai.NotFound || err.Error() != "no such site" || serai.HintOf(err) != "look" {
		t.Errorf("err = %v, hint %q", err, serai.HintOf(err))
	}
}

func TestCallMany(t *testing.T) {
	c, fd := pair(t)
	const n = 5000
	go func() {
		req, _ := next(t, fd)
		for i := range n {
			text, _ := json.Marshal(Reply{ID: req.ID, More: i < n-1, Body: json.RawMessage(fmt.Sprintf(`{"site":%d}`, i))})
			for Send(fd, text) == unix.EAGAIN {
				unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
			}
		}
	}()
	want := uint32(0)
	err := c.CallMany(ctxFor(t), OpState, nil, func(b json.RawMessage) error {
		var ref SiteRef
		if err := json.Unmarshal(b, &ref); err != nil || ref.Site != want {
			return fmt.Errorf("reply %d is %s, %v", want, b, err)
		}
		want++
		return nil
	})
	if err != nil || want != n {
		t.Errorf("%d replies, %v", want, err)
	}
}

// A slow reader of events holds up no call, and the order of events stays.
func TestEventsDoNotBlockCalls(t *testing.T) {
	c, fd := pair(t)
	go func() {
		for i := range 1000 {
			text, _ := json.Marshal(Reply{Op: EvStarted, Body: json.RawMessage(fmt.Sprintf(`{"site":%d}`, i))})
			for Send(fd, text) == unix.EAGAIN {
				unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
			}
		}
		req, _ := next(t, fd)
		say(t, fd, Reply{ID: req.ID})
	}()
	if _, err := c.Call(ctxFor(t), OpStop, SiteRef{1}, nil); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(1000) {
		e := <-c.Events()
		var ref SiteEvent
		if err := e.Decode(&ref); err != nil || ref.Site != i || e.Op != EvStarted {
			t.Fatalf("event %d is %s %s, %v", i, e.Op, e.Body, err)
		}
	}
}

func TestEndOfConnection(t *testing.T) {
	c, fd := pair(t)
	result := make(chan error)
	go func() {
		_, err := c.Call(ctxFor(t), OpStop, SiteRef{1}, nil)
		result <- err
	}()
	next(t, fd)
	unix.Shutdown(fd, unix.SHUT_RDWR)
	if err := <-result; serai.KindOf(err) != serai.Unavailable {
		t.Errorf("call under way: %v", err)
	}
	<-c.Done()
	if _, err := c.Call(ctxFor(t), OpStop, SiteRef{1}, nil); serai.KindOf(err) != serai.Unavailable {
		t.Errorf("later call: %v", err)
	}
	if e, ok := <-c.Events(); ok {
		t.Errorf("event %v after the end", e)
	}
}

// An answer that nobody waits for any more leaves no descriptor behind.
func TestLateAnswer(t *testing.T) {
	c, fd := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := c.Call(ctx, OpRoutes, nil, nil)
		result <- err
	}()
	req, _ := next(t, fd)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	say(t, fd, Reply{ID: req.ID}, int(w.Fd()))
	w.Close()
	r.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the write end is still open: %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	c, fd := pair(t)
	_, err := c.Call(ctxFor(t), OpSetSite, Launch{Block: make([]byte, MaxPacket)}, nil)
	if serai.KindOf(err) != serai.Invalid {
		t.Errorf("err = %v", err)
	}
	if err := Send(fd, make([]byte, MaxPacket+2)); err != nil {
		t.Fatal(err)
	}
	<-c.Done() // the other side broke the protocol
}

func TestReceiveBreach(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer CloseAll(fds[:])
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	many := make([]int, 3*maxFiles)
	for i := range many {
		many[i] = int(w.Fd())
	}
	for name, send := range map[string]func() error{
		"too many descriptors": func() error { return Send(fds[0], []byte("{}"), many...) },
		"too large":            func() error { return Send(fds[0], make([]byte, MaxPacket+2), int(w.Fd())) },
	} {
		if err := send(); err != nil {
			t.Fatal(name, err)
		}
		_, files, err := Receive(fds[1], make([]byte, MaxPacket+1), make([]byte, ControlSize))
		if !errors.Is(err, ErrBreach) || files != nil {
			t.Errorf("%s: %v, %v", name, files, err)
		}
	}
	w.Close()
	r.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a descriptor of a breach was kept: %v", err)
	}
}

func TestDecodeRequest(t *testing.T) {
	for _, tt := range []struct {
		in string
		ok bool
	}{
		{`{"id":1,"op":"state"}`, true},
		{`{"id":1,"op":"stop","args":{"site":1}}`, true},
		{``, false},
		{`null`, false},
		{`[]`, false},
		{`"x"`, false},
		{`{}`, false},
		{`{"id":0,"op":"state"}`, false},
		{`{"id":-1,"op":"state"}`, false},
		{`{"id":1}`, false},
		{`{"id":1,"op":"state","uid":0}`, false},
		{`{"id":1,"op":"state"}{}`, false},
		{`{"id":1,"op":"state"} x`, false},
		{`{"id":1,"op":["state"]}`, false},
		{`{"id":18446744073709551616,"op":"state"}`, false},
		{strings.Repeat(`{"args":`, 9999), false},
	} {
		_, err := DecodeRequest([]byte(tt.in))
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrBreach) {
			t.Errorf("DecodeRequest(%.60s) = %v, want ok %v", tt.in, err, tt.ok)
		}
	}
}

// FuzzDecode: whatever comes, it is a request that survives being written
// again, or a breach.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"id":1,"op":"set-site","args":{"site":1,"uid":2,"block":"AAE="}}`))
	f.Add([]byte(`{"id":1,"op":"state"}`))
	f.Add([]byte(`{"id":1,"op":"x","args":null}{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRequest(b)
		if err != nil {
			if !errors.Is(err, ErrBreach) {
				t.Fatalf("%v is no breach", err)
			}
			return
		}
		if r.ID == 0 || r.Op == "" {
			t.Fatalf("accepted %+v", r)
		}
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeRequest(text)
		if err != nil || again.ID != r.ID {
			t.Fatalf("%s: %v", text, err)
		}
		for _, args := range []any{&Launch{}, &Tenant{}, &CreateAccount{}, &FilesRef{}, &SiteRef{}} {
			if err := Strict(r.Args, args); err != nil && !errors.Is(err, ErrBreach) {
				t.Fatalf("%v is no breach", err)
			}
		}
	})
}

func TestHashLaunch(t *testing.T) {
	a := Launch{Site: 1, UID: 2, Block: []byte("x")}
	b := a
	if HashLaunch(a) != HashLaunch(b) {
		t.Error("the same record has two hashes")
	}
	b.Off = true
	if HashLaunch(a) == HashLaunch(b) {
		t.Error("two records have one hash")
	}
}
