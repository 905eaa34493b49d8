package worker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func frame(typ byte, payload string) string {
	return string(appendFrame(nil, typ, len(payload))) + payload
}

func list(items ...string) string {
	var b []byte
	for _, s := range items {
		b = AppendList(b, s)
	}
	return string(b)
}

func whole(flags byte, head, body string) string {
	return string(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(head)))) + head + body
}

func TestParseHead(t *testing.T) {
	h, err := parseHead([]byte(list("404", "X-A", "1", "Connection", "close", "content-length", " 12 ", "Set-Cookie", "a", "Set-Cookie", "b")))
	if err != nil || h.Status != 404 || h.Length != 12 {
		t.Fatalf("%+v, %v", h, err)
	}
	want := []Field{{"X-A", "1"}, {"Set-Cookie", "a"}, {"Set-Cookie", "b"}}
	if len(h.Fields) != len(want) {
		t.Fatalf("fields %v", h.Fields)
	}
	for i := range want {
		if h.Fields[i] != want[i] {
			t.Errorf("field %d is %v, want %v", i, h.Fields[i], want[i])
		}
	}
	if h, err := parseHead([]byte(list("200"))); err != nil || h.Length != -1 {
		t.Errorf("%+v, %v", h, err)
	}
}

// exchangeOn reads a stream as an exchange does, without a process.
func exchangeOn(r io.Reader) *Exchange {
	e := &Exchange{c: &Conn{died: make(chan struct{})}, d: newDecoder()}
	close(e.c.died) // so that an early end is a death, at once
	e.d.src = r
	return e
}

// FuzzReply: whatever a worker writes, in whatever pieces, reading it ends with
// a reply that keeps the rules or with a *Failure, the same for all pieces.
func FuzzReply(f *testing.F) {
	for _, s := range []string{
		frame('W', whole(0, list("200", "A", "b"), "body")),
		frame('W', whole(1, list("200"), "")),
		frame('h', list("200")) + frame('d', "one") + frame('d', "two") + frame('l', "\x01"),
		frame('h', list("200")) + frame('a', "\x00sorry"),
		frame('a', "\x00sorry"),
		frame('h', list("200")) + frame('d', ""),
		frame('W', "\x00\xff\xff\xff\xff"),
		frame('W', whole(0, list("200", "A", "b\r\nC: d"), "")),
		"\xff\xff\xff\xffW", "\x00\x00",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		at := readReply(t, bytes.NewReader(in))
		one := readReply(t, iotest.OneByteReader(bytes.NewReader(in)))
		// What comes after the end is seen only where it was read along.
		if at != one && !strings.Contains(at, "after the end") {
			t.Fatalf("read at once: %s\nbyte by byte: %s", at, one)
		}
	})
}

func readReply(t *testing.T, r io.Reader) string {
	e := exchangeOn(r)
	reply, err := e.Reply()
	if err != nil {
		return failure(t, err)
	}
	if reply.Status < 200 || reply.Status > 999 || len(reply.Body) > MaxData {
		t.Fatalf("%+v", reply)
	}
	for _, f := range reply.Fields {
		if !isToken(f.Name) || strings.ContainsAny(f.Value, "\r\n\x00") || hopByHop[strings.ToLower(f.Name)] {
			t.Fatalf("field %q", f)
		}
	}
	body := string(reply.Body)
	for {
		p, err := e.Data()
		body += string(p)
		if err == io.EOF {
			return "reply " + body
		}
		if err != nil {
			return failure(t, err) + " after " + body
		}
		if len(p) == 0 {
			t.Fatal("a piece of nothing")
		}
	}
}

func failure(t *testing.T, err error) string {
	if f, ok := errors.AsType[*Failure](err); !ok || f.Cause == "" {
		t.Fatalf("%T %v", err, err)
	}
	return err.Error()
}

// TestDecoderDoesNotTrustLengths: memory grows with what comes.
func TestDecoderDoesNotTrustLengths(t *testing.T) {
	d := newDecoder()
	d.src = strings.NewReader(string(appendFrame(nil, typeWhole, MaxData)) + "x")
	_, n, err := d.header()
	if err != nil || n != MaxData {
		t.Fatal(n, err)
	}
	if _, err := d.payload(n); err != io.ErrUnexpectedEOF {
		t.Errorf("payload: %v", err)
	}
	if len(d.buf) > 2*keep {
		t.Errorf("%d bytes were kept ready for a frame of which one came", len(d.buf))
	}
}

func TestMemoryMounts(t *testing.T) {
	const v1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
		"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n" +
		"39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n" +
		"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
	const v2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	const inside = "31 23 0:28 /pod /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	const nested = "35 31 0:32 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	for _, tt := range []struct{ name, mountinfo, cgroup, want string }{
		{"v1", v1, "8:pids:/serai/tenants/5/1.1\n4:memory:/serai/tenants/5/1.1\n0::/serai/x\n", "/sys/fs/cgroup/memory/serai/tenants/5/1.1/memory.oom_control"},
		{"v2", v2, "0::/system.slice/serai.service/tenants/5/1.1\n", "/sys/fs/cgroup/system.slice/serai.service/tenants/5/1.1/memory.events"},
		{"v2, part of the tree", inside, "0::/pod/tenants/5/1.1\n", "/sys/fs/cgroup/tenants/5/1.1/memory.events"},
		{"v1, part of the tree", nested, "4:memory:/docker/1/serai\n", "/sys/fs/cgroup/memory/serai/memory.oom_control"},
		{"several controllers", strings.Replace(v1, "rw,memory", "rw,cpu,memory", 1), "4:cpu,memory:/a\n", "/sys/fs/cgroup/memory/a/memory.oom_control"},
		{"none", "", "0::/x\n", ""},
		{"nonsense", "- - -\n x\n", "x\n::\n\n", ""},
	} {
		if got := memoryMounts([]byte(tt.mountinfo)).counter([]byte(tt.cgroup)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestInSite(t *testing.T) {
	const (
		ownV1 = "4:memory:/serai/ops/proxy\n2:cpu,cpuacct:/serai/ops/proxy\n1:name=systemd:/\n0::/serai/ops/proxy\n"
		ownV2 = "0::/system.slice/serai.service/ops/proxy\n"
	)
	for _, tt := range []struct {
		name, own, worker string
		ok                bool
	}{
		{"v1", ownV1, "4:memory:/serai/tenants/7/3.1\n2:cpu,cpuacct:/serai/tenants/7/3.1\n1:name=systemd:/x\n0::/serai/tenants/7/3.1\n", true},
		{"v1, one hierarchy elsewhere", ownV1, "4:memory:/\n2:cpu,cpuacct:/serai/tenants/7/3.1\n0::/serai/tenants/7/3.1\n", false},
		{"v2", ownV2, "0::/system.slice/serai.service/tenants/7/3.12\n", true},
		{"another site", ownV2, "0::/system.slice/serai.service/tenants/7/33.1\n", false},
		{"another tenant", ownV2, "0::/system.slice/serai.service/tenants/77/3.1\n", false},
		{"a shell", ownV2, "0::/system.slice/serai.service/tenants/7/shell\n", false},
		{"the same name elsewhere", ownV2, "0::/user.slice/user-7.slice/user@7.service/serai/tenants/7/3.1\n", false},
		{"beneath the leaf", ownV2, "0::/system.slice/serai.service/tenants/7/3.1/x\n", false},
		{"no leaf", ownV2, "0::/system.slice/serai.service/tenants/7/3.\n", false},
		{"removed group", ownV2, "0::/system.slice/serai.service/tenants/7/3.1 (deleted)\n", true}, // its processes are in it still
		{"nothing", ownV2, "", false},
		{"we are nowhere", "0::/\n", "0::/tenants/7/3.1\n", false},
	} {
		if err := inSite(groupsOf([]byte(tt.own)), groupsOf([]byte(tt.worker)), Target{Site: 3, UID: 7}); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
