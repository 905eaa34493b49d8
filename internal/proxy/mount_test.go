package proxy

import (
	"strings"
	"sync"
	"testing"

	"serai.dev/serai"
	"serai.dev/serai/internal/route"
)

// What is mounted is answered by the catalogue's workers, who are told where
// and for whom; the longest prefix decides, and nothing that a client sends.
func TestMounts(t *testing.T) {
	w := newWorld(t)
	own := w.site(1, "app.test")
	own.Prefixes = []string{"/", "/book/own"}
	own.Mounts = []route.Mount{
		{Prefix: "/book", Site: 2, Env: map[string]string{"SERAI_MOUNT": "/book", "SERAI_SITE": "alice/site1"}},
		{Prefix: "/book/deep/er", Site: 2, Env: map[string]string{"SERAI_MOUNT": "/book/deep/er"}},
		{Prefix: "/gone", Site: 3},
		{Prefix: "/none"},
	}
	w.serve(own, echo)
	entry := w.site(2, "")
	entry.Hosts = nil
	w.serve(entry, echo)
	for _, tt := range []struct{ path, mount, script, info string }{
		{"/", "", "", "/"},
		{"/booked", "", "", "/booked"},
		{"/book", "/book", "/book", ""},
		{"/book/", "/book", "/book", "/"},
		{"/book/a%20b?page=2", "/book", "/book", "/a b"},
		{"/book/own/x", "", "", "/book/own/x"},
		{"/book/deep", "/book", "/book", "/deep"},
		{"/book/deep/er/x", "/book/deep/er", "/book/deep/er", "/x"},
	} {
		e := w.echo("GET", tt.path, "app.test", nil)
		if e.Env["SERAI_MOUNT"] != tt.mount || e.Env["SCRIPT_NAME"] != tt.script || e.Env["PATH_INFO"] != tt.info {
			t.Errorf("%s: mount %q, script %q, path %q", tt.path, e.Env["SERAI_MOUNT"], e.Env["SCRIPT_NAME"], e.Env["PATH_INFO"])
		}
		if want, _, _ := strings.Cut(tt.path, "?"); !strings.HasPrefix(e.Env["REQUEST_URI"], want) {
			t.Errorf("%s: REQUEST_URI %q", tt.path, e.Env["REQUEST_URI"])
		}
	}
	for _, path := range []string{"/gone", "/none/x"} {
		if resp, text := w.mustGet("GET", path, "app.test", nil); resp.StatusCode != 503 || !strings.Contains(text, "not there at the moment") {
			t.Errorf("%s: %s %s", path, resp.Status, text)
		}
	}
	got := w.raw("GET /book HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nSERAI_SITE: x\r\nSerai-Site: x\r\nSERAI-MOUNT: x\r\nSerai_Mount: x\r\n\r\n")
	_, text, _ := strings.Cut(got, "\r\n\r\n")
	if e := decodeEcho(t, text); e.Env["SERAI_SITE"] != "alice/site1" || e.Env["SERAI_MOUNT"] != "/book" {
		t.Errorf("forged: %v", e.Env)
	}
	// Both sites have worked: one of them for its visitors, one of them at all.
	if own, entry := w.stats(1), w.stats(2); own.Requests != 11 || entry.Requests != 6 {
		t.Errorf("%d requests of the site, %d of the entry", own.Requests, entry.Requests)
	}
	entry.Closed = "this site is stopped"
	w.set(route.Record{Site: entry})
	if resp, text := w.mustGet("GET", "/book", "app.test", nil); resp.StatusCode != 503 || !strings.Contains(text, "this site is stopped") {
		t.Errorf("stopped: %s %s", resp.Status, text)
	}
}

// A site that floods a script gets half of its places.
func TestMountShare(t *testing.T) {
	w := newWorld(t)
	for i, host := range []string{"app.test", "neighbour.test"} {
		rs := w.site(uint32(1+i), host)
		rs.Mounts = []route.Mount{{Prefix: "/", Site: 3}}
		w.set(route.Record{Site: rs})
	}
	entry := w.site(3, "")
	entry.Hosts, entry.Workers.Max, entry.Queue.Length = nil, 2, 2
	entry.Workers.Timeout = serai.Duration(patience)
	hold := make(chan struct{})
	w.serve(entry, each(func(c *fakeWorker, r *fakeRequest) {
		if r.env["PATH_INFO"] == "/hold" {
			<-hold
		}
		c.whole(0, head("200"), "done")
	}))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if resp, _, err := w.get("GET", "/hold", "app.test", nil); err != nil || resp.StatusCode != 200 {
				t.Errorf("held: %v, %v", resp, err)
			}
		})
	}
	await(t, "both are held", func() bool { return w.stats(3).Busy == 2 })
	if resp, text := w.mustGet("GET", "/x", "app.test", nil); resp.StatusCode != 503 || !strings.Contains(text, "too many requests") || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one more: %s %s", resp.Status, text)
	}
	wg.Go(func() {
		if resp, text, err := w.get("GET", "/x", "neighbour.test", nil); err != nil || resp.StatusCode != 200 || text != "done" {
			t.Errorf("the neighbour: %v, %v", resp, err)
		}
	})
	await(t, "the neighbour waits", func() bool { return w.stats(3).Queued == 1 })
	close(hold)
	wg.Wait()
	if resp, _ := w.mustGet("GET", "/x", "app.test", nil); resp.StatusCode != 200 {
		t.Errorf("after the flood: %s", resp.Status)
	}
}
