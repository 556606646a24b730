package migrate

import (
	"errors"
	"fmt"

	"github.com/distributed-servers/ds/migrate/internal/gvtcp"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// Errors that a caller may want to tell apart, with errors.Is.
var (
	// ErrMoved is returned by calls on a connection that has moved away. It
	// is also a net.ErrClosed.
	ErrMoved = stack.ErrMoved

	// ErrOrder means that a method was called when it makes no sense, such as
	// Export before Freeze. Nothing has happened.
	ErrOrder = errors.New("called in the wrong order")

	// ErrHandshake means that the client has a TCP handshake in progress. Let
	// it finish, and try again.
	ErrHandshake = gvtcp.ErrHandshake

	// ErrEnded means that there is no connection to move (any more).
	ErrEnded = gvtcp.ErrEnded

	// ErrBusy means that somebody else is moving the connection or client.
	ErrBusy = errors.New("is being moved already")

	// ErrLocal means that the peer is in the same stack, so that there is no
	// link to hold packets at.
	ErrLocal = errors.New("the peer is in the same stack")

	// ErrNoAddress means that the target does not answer for the
	// connection's local address. Give it the address, as in stack.Config.
	ErrNoAddress = gvtcp.ErrNoAddress

	// ErrNoRoute means that the target cannot reach the peer.
	ErrNoRoute = gvtcp.ErrNoRoute

	// ErrInUse means that the target has a connection of the same four-tuple.
	ErrInUse = gvtcp.ErrInUse

	// ErrTooLarge means that a connection brings more segments or octets along
	// than a target takes in.
	ErrTooLarge = gvtcp.ErrTooLarge

	// ErrNoListener means that the snapshot has a connection that no
	// application had accepted yet, and that the target has no listener to
	// accept it. Listen first.
	ErrNoListener = errors.New("no listener for a connection not yet accepted")

	// ErrFormat and ErrVersion mean that a snapshot cannot be read.
	ErrFormat  = snapshot.ErrFormat
	ErrVersion = snapshot.ErrVersion

	// ErrUnsupported means that the binary contains a gVisor whose internals
	// are unknown here. The message names what differs.
	ErrUnsupported = gvtcp.ErrUnsupported
)

// failed wraps the cause of a failed operation.
func failed(op string, of fmt.Stringer, err error) error {
	switch {
	case errors.Is(err, stack.ErrHeld), errors.Is(err, stack.ErrSuspended):
		err = fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return fmt.Errorf("migrate: %s %s: %w", op, of, err)
}
