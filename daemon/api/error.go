package api

import (
	"errors"
	"fmt"
	"net/http"
)

// Error is why a call has failed. In HTTP it is the body of an answer whose
// status is Code.
type Error struct {
	Code    int    `json:"code"` // HTTP status
	Message string `json:"error"`
	Cure    string `json:"cure,omitempty"` // what to do about it
}

func (e *Error) Error() string {
	s := e.Message
	if s == "" {
		s = http.StatusText(e.Code)
	}
	if e.Cure != "" {
		s += "; " + e.Cure
	}
	return s
}

// Is makes errors with the same Code match the Err… values of this package.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == "" && t.Cure == ""
}

// Kinds of errors, for [errors.Is].
var (
	ErrInvalid     = &Error{Code: http.StatusBadRequest}          // the request makes no sense
	ErrForbidden   = &Error{Code: http.StatusForbidden}           // this user may not
	ErrNotFound    = &Error{Code: http.StatusNotFound}            // no such server, client or node
	ErrConflict    = &Error{Code: http.StatusConflict}            // not in the present state
	ErrFailed      = &Error{Code: http.StatusInternalServerError} // it was tried, in vain
	ErrUnsupported = &Error{Code: http.StatusNotImplemented}      // this role of a daemon has no such call
	ErrUnreachable = &Error{Code: http.StatusBadGateway}          // another node or the home agent does not answer
	ErrBusy        = &Error{Code: http.StatusServiceUnavailable}  // for the time being
	ErrTimeout     = &Error{Code: http.StatusGatewayTimeout}      // no answer in time
)

// ErrNotRunning is for a socket behind which there is no daemon.
var ErrNotRunning = errors.New("api: no daemon")

// Errorf returns an error of a kind, one of the Err… values, with its message
// and cure.
func Errorf(kind *Error, cure, format string, args ...any) *Error {
	return &Error{Code: kind.Code, Message: fmt.Sprintf(format, args...), Cure: cure}
}

// AsError returns err as an Error: itself if it is one or wraps one, else
// ErrFailed with its text.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: ErrFailed.Code, Message: err.Error()}
}
