package member

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Offsets in an IPv6 header (RFC 8200 section 3).
const (
	nextHeader = 6
	sourceAt   = 8
	destAt     = 24
)

// mobile gives the machine of the clients' bindings an input.
func (m *Member) mobile(in node.Input) {
	out := m.machine.Step(m.now, in)
	for _, p := range out.Send {
		m.send(p)
	}
	for _, e := range slices.Clone(out.Events) {
		m.heard(e)
	}
}

// register does so with that of the home registration.
func (m *Member) register(in node.Input) {
	out := m.registrar.Step(m.now, in)
	for _, p := range out.Send {
		m.send(p)
	}
	for _, e := range slices.Clone(out.Events) {
		switch e.Kind {
		case node.Registered:
			if !m.registered {
				m.event(api.EventRegistered, netip.Addr{}, "", "at home agent "+m.cfg.HomeAgent.String())
			}
			m.registered = true
			m.endTakeover(nil)
		case node.RegistrationFailed:
			m.registered = false
			why := e.Reason.String()
			if e.Status != 0 {
				why = fmt.Sprintf("%s, status %d", why, e.Status)
			}
			m.event(api.EventDeregistered, netip.Addr{}, "", why)
			if e.Reason == node.Superseded && m.IsContact() {
				m.hesitating = true
				m.decide()
			}
		case node.Deregistered:
			m.registered = false
		}
	}
}

// send puts out a packet of a machine. One in a tunnel comes from the daemon's
// address, so that the answer comes back there; and if this is the contact, the
// tunnel to itself is the one to the home agent.
func (m *Member) send(p []byte) {
	p = slices.Clone(p)
	if len(p) >= wire.HeaderLen && wire.Protocol(p[nextHeader]) == wire.IPv6 {
		put(p[sourceAt:], m.self.Daemon)
		if dst(p) == m.self.Daemon {
			put(p[destAt:], m.cfg.HomeAgent)
		}
	}
	m.out.Send = append(m.out.Send, p)
}

// received takes a packet that may be for a machine. It undoes what send does.
func (m *Member) received(p []byte) {
	if len(p) < wire.HeaderLen || p[0]>>4 != 6 {
		return
	}
	tunnel := wire.Protocol(p[nextHeader]) == wire.IPv6
	switch {
	case dst(p) == m.self.CareOf && !tunnel:
		m.mobile(node.Received{Packet: p})
	case dst(p) == m.self.Daemon && tunnel:
		put(p[destAt:], m.self.CareOf)
		if src(p) == m.cfg.HomeAgent && m.IsContact() {
			put(p[sourceAt:], m.self.Daemon)
		}
		m.mobile(node.Received{Packet: p})
	case dst(p) == m.self.Daemon:
		m.register(node.Received{Packet: p})
	}
}

func src(p []byte) netip.Addr        { return netip.AddrFrom16([16]byte(p[sourceAt:])) }
func dst(p []byte) netip.Addr        { return netip.AddrFrom16([16]byte(p[destAt:])) }
func put(field []byte, a netip.Addr) { b := a.As16(); copy(field, b[:]) }

// heard acts on what the machine says of a client.
func (m *Member) heard(e node.Event) {
	c := m.clients[e.Client]
	switch e.Kind {
	case node.Ready:
		m.ready(e.Client, true)
	case node.Lapsed:
		m.ready(e.Client, false)
	case node.Bound:
		if c != nil && !c.bound {
			c.bound = true
			if !c.arriving {
				m.toApp(&api.Message{Kind: api.Bound, Client: e.Client})
			}
			m.event(api.EventBound, e.Client, "", "")
		}
	case node.Unsupported:
		m.ready(e.Client, false)
		if c != nil {
			m.setRelayed(c)
			m.unbound(c, e)
		}
	case node.Unbound, node.Released:
		if c != nil {
			m.unbound(c, e)
		} else if e.Kind == node.Released {
			m.toApp(&api.Message{Kind: api.Unbound, Client: e.Client})
		}
	}
}

func (m *Member) unbound(c *client, e node.Event) {
	if c.bound {
		c.bound = false
		m.toApp(&api.Message{Kind: api.Unbound, Client: c.addr})
	}
	why := e.Kind.String()
	if e.Reason != 0 {
		why += ": " + e.Reason.String()
	}
	m.event(api.EventUnbound, c.addr, "", why)
}

// setRelayed is that a client is known not to do route optimisation. It is tried
// again after a time: it may have been out of reach.
func (m *Member) setRelayed(c *client) {
	c.relayed = true
	m.timers.Set(c, m.now+retryAfter)
}

// retryAfter is longer than the machine remembers such a client.
const retryAfter = 11 * time.Minute

func (m *Member) optimise(addr netip.Addr) {
	if c := m.clients[addr]; c != nil {
		c.relayed = false
		m.timers.Remove(c)
		m.mobile(node.Optimise{Client: addr})
	}
}

// deleteBinding deletes a client's binding, and does not try for another until
// it is asked to.
func (m *Member) deleteBinding(addr netip.Addr) {
	if c := m.clients[addr]; c != nil {
		c.relayed = true
		m.mobile(node.Release{Client: addr})
	}
}
