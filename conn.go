package ds

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/distributed-servers/ds/stack"
)

// Conn is a connection of a node: what its listeners accept, what arrives in
// handoffs and what [Node.Dial] returns are of this type, as the [net.Conn] that a
// state function gets is. It is a value, to be compared and to be a key of maps.
type Conn struct {
	*stack.Conn
	node *Node
}

// Handoff hands the connection and its client to another node, by name. It is for
// the goroutine that serves the connection, which is at rest while it waits here;
// what it knows of the connection, at most [MaxState] octets, arrives with it as the
// State of [Incoming]; what it has read and not dealt with is part of that. When Handoff
// succeeds, the connection is not the caller's any more: calls fail with [ErrMoved].
//
// A client moves as a whole. If others of its connections are served here, Handoff
// fails with [ErrSiblings] and nothing has happened; those that the application has
// closed, or not accepted yet, go along. Everything else is as with [Node.Handoff].
func (c Conn) Handoff(ctx context.Context, to string, state []byte) (*Report, error) {
	h := &handoff{client: clientOf(c), to: to, only: c.Conn}
	if state != nil {
		h.state = func(net.Conn) ([]byte, error) { return state, nil }
	}
	return c.node.handOff(ctx, h)
}

func clientOf(c net.Conn) netip.Addr {
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

var errEnded = fmt.Errorf("the connection has ended or moved: %w", net.ErrClosed)

// alone tells whether the connection that is handed off is the only one of the
// client that is served.
func (h *handoff) alone(conns []*stack.Conn) error {
	if !slices.Contains(conns, h.only) || h.only.Unattended() {
		return errEnded
	}
	others := 0
	for _, c := range conns {
		if c != nil && c != h.only && !c.Unattended() {
			others++
		}
	}
	if others > 0 {
		return fmt.Errorf("%w (%d)", ErrSiblings, others)
	}
	return nil
}

// listener accepts connections of a node.
type listener struct {
	*stack.Listener
	node *Node
}

// Accept implements [net.Listener].
func (l listener) Accept() (net.Conn, error) {
	c, err := l.AcceptConn()
	if err != nil {
		return nil, err
	}
	return Conn{c, l.node}, nil
}
