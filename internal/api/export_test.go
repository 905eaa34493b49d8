package api

import (
	"net/http"

	"serai.dev/serai"
)

// Endpoint is a row of the table, for tests.
type Endpoint struct{ Method, Path string }

// Endpoints is the table.
func Endpoints() (out []Endpoint) {
	for _, e := range routes() {
		out = append(out, Endpoint{e.method, e.path})
	}
	return out
}

// Handler is what Run serves.
func (s *Server) Handler() http.Handler { return s.handler() }

// Waiting reports whether a request waits for a change of the resource.
func (s *Server) Waiting(key serai.Key) bool {
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	return len(s.index.waiters[key]) > 0
}

// Knows reports whether the index has a tenant with that uid.
func (s *Server) Knows(uid uint32) bool {
	_, ok := s.index.tenant(uid)
	return ok
}

// Drain ends the streams.
func (s *Server) Drain() { s.drain() }
