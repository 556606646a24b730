package homeagent

import (
	"errors"
	"net/netip"

	"github.com/distributed-servers/ds/mobility/wire"
)

// received sorts packets by their destination.
func (m *HomeAgent) received(b []byte) {
	b, ok := whole(b)
	if !ok {
		return
	}
	dst := address(b[24:40])
	if dst == m.addr {
		m.local(b)
		return
	}
	if h := m.homes[dst]; h != nil {
		m.intercepted(h, b)
		return
	}
	if h := m.links[dst]; h != nil {
		m.interceptedLinkLocal(h, b)
		return
	}
	m.stray(b, netip.AddrFrom16(dst))
}

// stray takes a packet for neither us nor a home address.
func (m *HomeAgent) stray(b []byte, dst netip.Addr) {
	for i := range m.prefixes {
		p := &m.prefixes[i]
		switch {
		case p.anycast == dst:
			m.discoveryRequest(b)
			return
		case p.Contains(dst) && m.cfg.Link == nil:
			// We are the router that the prefix is routed to, and it has no such
			// address (RFC 4443 section 3.1).
			m.sendError(wire.Unreachable, addressUnreachable, 0, b, false)
			return
		}
	}
}

// addressUnreachable is the code of an Unreachable (RFC 4443 section 3.1).
const addressUnreachable = 3

// local takes a packet to Addr.
func (m *HomeAgent) local(b []byte) {
	if wire.Protocol(b[6]) == wire.IPv6 { // the way of data: nothing else to look at
		m.reverseTunnelled(netip.AddrFrom16([16]byte(b[8:24])), b[0]<<4|b[1]>>4, b[wire.HeaderLen:])
		return
	}
	p, err := wire.ParsePacket(b)
	if err != nil {
		if problem := (*wire.Problem)(nil); errors.As(err, &problem) {
			m.problem(problem, b)
		}
		return
	}
	if p.Routing.IsValid() {
		return // type 2 routing headers are for mobile nodes
	}
	var mh wire.Type
	if p.Protocol == wire.Mobility {
		if mh, err = wire.TypeOf(&p); err != nil {
			m.mobilityError(&p, b, err)
			return
		}
		if mh == wire.TypeBindingUpdate {
			m.bindingUpdate(&p, b)
			return
		}
	}
	if p.Home.IsValid() {
		// RFC 6275 section 9.3.1: of all but Binding Updates the home address
		// is that of a binding, whose care-of address is the source.
		h := m.homes[p.Home.As16()]
		if h == nil || !m.bound(h) || h.careOf != p.Src {
			m.bindingError(wire.UnknownBinding, &p)
			return
		}
	}
	switch p.Protocol {
	case wire.IPv6:
		m.reverseTunnelled(p.Src, p.TrafficClass, p.Payload)
		return
	case wire.ICMPv6:
		if len(p.Payload) > 0 && isHomeAgentICMP(p.Payload[0]) {
			m.icmp(&p, b)
			return
		}
	}
	m.deliver(&p, b)
}

// Types of ICMPv6 message.
const (
	icmpLastError           = 4 // of those that are known
	icmpRouterAdvertisement = 134
	icmpNDFirst, icmpNDLast = 133, 137
	icmpPrefixSolicitation  = 146
)

func isHomeAgentICMP(t byte) bool {
	return 0 < t && t <= icmpLastError || t == icmpPrefixSolicitation
}

// icmp takes an ICMPv6 message to Addr that may be the home agent's.
func (m *HomeAgent) icmp(p *wire.Packet, b []byte) {
	msg, err := wire.ParseICMP(p)
	if err != nil {
		return
	}
	switch msg := msg.(type) {
	case *wire.ICMPError:
		if !m.tunnelError(msg) {
			m.deliver(p, b)
		}
	case *wire.PrefixSolicitation:
		m.prefixSolicitation(p, msg)
	}
}

// deliver passes a packet on to the host. It need not know of Home Address
// options: to upper layers the source is the home address (RFC 6275 section 9.3.1).
func (m *HomeAgent) deliver(p *wire.Packet, b []byte) {
	if p.Home.IsValid() {
		q := *p
		q.Src, q.Home = p.Home, netip.Addr{}
		if b, ok := m.append(&q); ok {
			m.out.Local = append(m.out.Local, b)
		}
		return
	}
	m.out.Local = append(m.out.Local, m.copy(b))
}

// whole is the IPv6 packet at the beginning of b.
func whole(b []byte) ([]byte, bool) {
	if len(b) < wire.HeaderLen || b[0]>>4 != 6 {
		return nil, false
	}
	n := wire.HeaderLen + int(b[4])<<8 + int(b[5])
	if len(b) < n {
		return nil, false
	}
	return b[:n], true
}

// routable reports whether a is a unicast routable address (RFC 6275 section 3.1).
func routable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast()
}
