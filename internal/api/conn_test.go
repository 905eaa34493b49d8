package api_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// dialAs connects as another user: a thread of its own takes the uid, and ends
// with it.
func dialAs(t *testing.T, uid uintptr, path string, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uid, ^uintptr(0)); errno != 0 {
			done <- errno
			return
		}
		for i := range conns {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
			}
			if err != nil {
				done <- err
				return
			}
			f := os.NewFile(uintptr(fd), "conn")
			conns[i], err = net.FileConn(f)
			f.Close()
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	return conns
}

// answered asks on a connection and returns the status, or 0 where it is
// closed.
func answered(c net.Conn) int {
	_, _ = io.WriteString(c, "GET /v1/whoami HTTP/1.1\r\nHost: serai\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}

// TestConnectionLimit: one account cannot take all connections; those of
// others go on.
func TestConnectionLimit(t *testing.T) {
	w := newWorld(t)
	for d := filepath.Dir(w.socket); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(w.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	alice := dialAs(t, aliceUID, w.socket, 65)
	for i, c := range alice {
		want := http.StatusOK
		if i == 64 {
			want = 0
		}
		if got := answered(c); got != want {
			t.Fatalf("alice's connection %d: %d, want %d", i+1, got, want)
		}
	}
	for who, uid := range map[string]uintptr{"bob": bobUID, "root": 0} {
		if got := answered(dialAs(t, uid, w.socket, 1)[0]); got != http.StatusOK {
			t.Errorf("%s gets %d", who, got)
		}
	}
	if got := answered(dialAs(t, 1900005099, w.socket, 1)[0]); got != http.StatusForbidden {
		t.Errorf("a stranger gets %d", got)
	}
	alice[0].Close()
	until(t, "a place is free again", func() bool { return answered(dialAs(t, aliceUID, w.socket, 1)[0]) == http.StatusOK })
}
