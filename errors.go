package ds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/distributed-servers/ds/migrate"
)

// Errors that a caller may want to tell apart, with errors.Is.
var (
	// ErrMoved is returned by calls on a connection that has been handed off.
	// It is also a [net.ErrClosed].
	ErrMoved = migrate.ErrMoved

	// ErrClosed is returned by calls on a closed Node. It is also a
	// [net.ErrClosed].
	ErrClosed error = closedError{}

	// ErrDetached means that there is no daemon at the moment. The connections
	// live on; nothing can be handed off until it is back.
	ErrDetached = errors.New("the daemon is gone; the node attaches again as soon as it is back")

	// ErrBusy means that the client is being handed off already.
	ErrBusy = errors.New("the client is being handed off already")

	// ErrUnknown means that in an earlier handoff the client was given away, but the
	// daemon was lost before it could say what has become of it.
	ErrUnknown = errors.New("the outcome of an earlier handoff of the client is not known yet")

	// ErrSelf means that the target is this very node.
	ErrSelf = errors.New("the client is to be handed off to this node itself")

	// ErrSiblings means that [Conn.Handoff] was called for one of several
	// connections of a client.
	ErrSiblings = errors.New("the client has other connections here, and all of a client's move at once: use Node.Handoff, which asks for the state of each")

	// ErrRefused means that the daemon or the target said no, and why.
	ErrRefused = errors.New("refused")

	// ErrRestless means that a handler did not come to rest within
	// [Node.Patience].
	ErrRestless = errors.New("the handler of a connection did not come to rest in time: it neither waits in Read nor has it closed the connection")

	// ErrState means that the application's function for a connection's state
	// failed, panicked, took longer than [Node.Patience], or gave more than
	// [MaxState].
	ErrState = errors.New("the application's state cannot be had")
)

type closedError struct{}

func (closedError) Error() string        { return "node closed" }
func (closedError) Is(target error) bool { return target == net.ErrClosed }

// HandoffError says where a handoff failed, and what has become of the client.
type HandoffError struct {
	Stage  Stage
	Client netip.Addr
	To     string

	// Committed tells whether the point of no return was crossed. If not, the
	// client is served here as before. If so, it is not known whether it is
	// served at To: its connections here stay frozen and silent, so that nobody
	// sends twice, until the daemon answers after all, the client comes back in
	// a handoff, or the Node is closed. Outcome waits for that.
	Committed bool

	Err error

	of *handoff // that is in doubt, nil if none is
}

// Outcome tells what has become of the client in the end, and waits until that is
// known: whether it is served at To now, or here as before. The latter is known at
// once unless Committed. The error is ctx's, or [ErrClosed] if the Node was closed
// before anybody knew.
func (e *HandoffError) Outcome(ctx context.Context) (moved bool, err error) {
	if e.of == nil {
		return false, nil
	}
	select {
	case <-e.of.decided:
		return e.of.moved, nil
	default:
	}
	select {
	case <-e.of.decided:
		return e.of.moved, nil
	case <-e.of.node.life.Done():
		return false, ErrClosed
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

func (e *HandoffError) Error() string {
	where := "it is served here as before"
	if e.Committed {
		where = "whether it is served there is not known yet"
	}
	return fmt.Sprintf("ds: hand off %s to %s: %s: %v; %s", e.Client, e.To, e.Stage, e.Err, where)
}

func (e *HandoffError) Unwrap() error { return e.Err }
