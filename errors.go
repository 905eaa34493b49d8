package serai

import (
	"errors"
	"fmt"
)

// A Kind of error says who must act on it.
type Kind int

// The kinds of errors. Their numbers are not stable; their names are.
const (
	Internal    Kind = iota // the operator of the machine, or us
	Invalid                 // the caller: the input is wrong
	NotFound                // the caller; also where the caller may not see the thing
	Denied                  // the caller may see the thing but not do this
	Conflict                // somebody else changed it: read again, decide again
	Expired                 // a watch is too old: list again
	Unavailable             // a part is not there at the moment: try again
)

var kindNames = [...]string{"internal", "invalid", "not found", "denied", "conflict", "expired", "unavailable"}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("kind %d", int(k))
	}
	return kindNames[k]
}

// ParseKind is the inverse of Kind.String. An unknown name is Internal.
func ParseKind(s string) Kind {
	for k, name := range kindNames {
		if name == s {
			return Kind(k)
		}
	}
	return Internal
}

// An Error is an error that may be shown to the caller.
type Error struct {
	Kind Kind
	Msg  string // one sentence, no capital, no full stop; safe to show
	Hint string // what to try, or empty
	Err  error  // the cause, for the log only
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Msg + ": " + e.Err.Error()
	}
	return e.Msg
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error whose message is safe to show.
func Errorf(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Msg: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e that also says what to try.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// KindOf is the Kind of the first Error in the chain, else Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// HintOf is the hint of the first Error in the chain, or empty.
func HintOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Hint
	}
	return ""
}

// Message is what a caller may see of err: the whole text where an Error of
// the chain is meant for callers, else only that something failed inside.
func Message(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Msg
	}
	return "internal error"
}
