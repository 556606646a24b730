package ds

import (
	"net/netip"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/stack"
)

// leaveAway has a new stack send on what still comes of clients that an application
// before this one has given away: it does not know their connections, and would reset
// them.
func (n *Node) leaveAway(s *stack.Stack, clients []api.Away) map[netip.Addr]*stack.Hold {
	away := make(map[netip.Addr]*stack.Hold)
	for _, c := range clients {
		h, err := s.HoldClient(c.Client)
		if err != nil { // nothing is held yet, so this cannot be
			n.logger().Error("ds: a client that is at another node", "client", c.Client, "error", err)
			continue
		}
		h.Forward(func(p []byte) { s.Tunnel(c.CareOf, p) }, grace)
		s.Leave(c.Client, grace)
		away[c.Client] = h
	}
	return away
}

// back is that a client may be answered here.
func (n *Node) back(client netip.Addr) {
	if h := n.away[client]; h != nil {
		delete(n.away, client)
		h.Release()
	}
}
