package api_test

import (
	"encoding/json"
	"slices"
	"strconv"
	"testing"
	"time"

	"serai.dev/serai"
	"serai.dev/serai/client"
)

// TestStarts: a description tells of the site's own starts, the last twenty.
func TestStarts(t *testing.T) {
	w := newWorld(t)
	describe := func() *client.Starts {
		t.Helper()
		code, body := w.ask(t, "alice", "GET", "/v1/tenants/alice/sites/shop/describe", "")
		var d client.Description
		if err := json.Unmarshal([]byte(body), &d); code != 200 || err != nil || d.Running == nil {
			t.Fatalf("%d %s %v", code, body, err)
		}
		return d.Running.Starts
	}
	add := func(site, reason, millis string, at int64) {
		t.Helper()
		_, err := w.store.AddEvent(t.Context(), serai.Event{Time: time.Unix(at, 0), Severity: "info", Reason: reason, Tenant: "alice", Site: site,
			Message: "it happened", Fields: map[string]string{"millis": millis}})
		if err != nil {
			t.Fatal(err)
		}
	}
	add("blog", "Started", "999", 1)
	add("shop", "Loaded", "999", 1)
	add("shop", "Started", "soon", 1)
	if st := describe(); st != nil {
		t.Errorf("before any start: %+v", st)
	}
	add("shop", "Started", "3000", 2)
	for i := range int64(20) {
		add("shop", "Started", strconv.FormatInt(100-i, 10), 3+i)
	}
	st := describe()
	if st == nil || len(st.Millis) != 20 || st.MaxMs != 100 || st.MedianMs != 91 || !slices.Equal(st.Millis[18:], []int64{82, 81}) || st.Last.Unix() != 22 {
		t.Errorf("%+v", st)
	}
}
