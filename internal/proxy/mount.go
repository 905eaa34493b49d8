package proxy

import (
	"net/http"
	"strings"
	"time"

	"serai.dev/serai/internal/route"
)

// mounted returns the mount that a path lies at or beneath, or nil: the one
// with the longest prefix.
func (s *site) mounted(path string) (best *route.Mount) {
	for i := range s.Mounts {
		if m := &s.Mounts[i]; hasPrefix(path, m.Prefix) && (best == nil || len(m.Prefix) > len(best.Prefix)) {
			best = m
		}
	}
	return best
}

// cutMount divides a path as the script there sees it: SCRIPT_NAME, PATH_INFO.
func cutMount(path, prefix string) (name, rest string) {
	name = strings.TrimSuffix(prefix, "/")
	return name, strings.TrimPrefix(path, name)
}

// workMounted has a site of the catalogue answer. A site may take half of the
// places there, those of the queue included, so that no flood of one site takes
// the script from all.
func (x *exchange) workMounted(t *table, m *route.Mount) {
	app, ok := t.number.Load(m.Site)
	if !ok {
		x.fail(http.StatusServiceUnavailable, "What is mounted here is not there at the moment.", time.Minute)
		return
	}
	if x.app = app.(*site); x.app.Closed != "" {
		x.fail(http.StatusServiceUnavailable, x.app.Closed, time.Minute)
		return
	}
	x.mount = m
	share := int64(max(1, (x.app.Workers.Max+x.app.Queue.Length)/2))
	under := &x.site.pool.mounted
	defer under.Add(-1)
	if under.Add(1) > share {
		x.fail(http.StatusServiceUnavailable, "This site has too many requests there at once.", time.Second)
		return
	}
	x.work()
}
