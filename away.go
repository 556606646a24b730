package ds

import (
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/stack"
)

// leaveAway has a new stack send on what still comes of clients that an application
// before this one has given away: it does not know their connections, and would reset
// them.
func (n *Node) leaveAway(s *stack.Stack, clients []api.Away, left []netip.Addr) map[netip.Addr]*stack.Hold {
	away := make(map[netip.Addr]*stack.Hold)
	for _, c := range clients {
		if !c.CareOf.IsValid() { // it may have a binding, which would not count here
			s.Leave(c.Client, grace)
			continue
		}
		h, err := s.HoldClient(c.Client)
		if err != nil { // nothing is held yet, so this cannot be
			n.logger().Error("ds: a client that is at another node", "client", c.Client, "error", err)
			continue
		}
		h.Forward(func(p []byte) { s.Tunnel(c.CareOf, p) }, grace)
		s.Leave(c.Client, grace)
		away[c.Client] = h
	}
	for _, client := range left {
		n.answerNew(s, client)
	}
	return away
}

// answerNew has new connections of a client that has left begin here, as long as this node
// is the contact. What begins them is here because the contact knows of no other node that has
// the client: to send it where the client went would have the handshake depend on this
// application, which may end, and its daemon may have forgotten to whom it went. What
// was sent here before the contact knew is sent on.
func (n *Node) answerNew(s *stack.Stack, client netip.Addr) {
	then := time.Now().Add(newTime)
	s.AnswerNew(client, func() bool { return n.contact.Load() && time.Now().After(then) })
}

// back is that a client may be answered here.
func (n *Node) back(client netip.Addr) {
	if h := n.away[client]; h != nil {
		delete(n.away, client)
		h.Release()
	}
}
