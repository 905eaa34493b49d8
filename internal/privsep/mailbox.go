package privsep

import (
	"context"
	"sync"
)

// A mailbox is a queue without bound between one writer, who never waits, and
// one reader.
type mailbox[T any] struct {
	mu    sync.Mutex
	items []T
	shut  bool          // no more will be put in
	wake  chan struct{} // one token when there is something to see
}

func newMailbox[T any]() *mailbox[T] {
	return &mailbox[T]{wake: make(chan struct{}, 1)}
}

// put reports whether the mailbox still takes anything.
func (m *mailbox[T]) put(v T) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shut {
		return false
	}
	m.items = append(m.items, v)
	m.signal()
	return true
}

// finish says that nothing more comes; what is in can still be taken.
func (m *mailbox[T]) finish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shut = true
	m.signal()
}

// empty is finish, and returns what nobody has taken.
func (m *mailbox[T]) empty() []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shut = true
	left := m.items
	m.items = nil
	return left
}

func (m *mailbox[T]) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take waits for the next item; ok is false after the last one.
func (m *mailbox[T]) take(ctx context.Context) (v T, ok bool, err error) {
	for {
		m.mu.Lock()
		if len(m.items) > 0 {
			v = m.items[0]
			m.items = m.items[1:]
			m.mu.Unlock()
			return v, true, nil
		}
		shut := m.shut
		m.mu.Unlock()
		if shut {
			return v, false, nil
		}
		select {
		case <-m.wake:
		case <-ctx.Done():
			return v, false, ctx.Err()
		}
	}
}
