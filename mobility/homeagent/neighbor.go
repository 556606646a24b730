package homeagent

import (
	"net/netip"

	"github.com/distributed-servers/ds/mobility/wire"
)

var allNodes = netip.IPv6LinkLocalAllNodes()

// detectDuplicates begins Duplicate Address Detection for the home address of
// h, and for the link-local one if the request says so (RFC 6275 section
// 10.3.1, RFC 4862 section 5.4).
func (m *HomeAgent) detectDuplicates(h *entry) {
	if h.pending.linkLocal && !m.claimLinkLocal(h) {
		m.duplicate(h) // we speak for it already, on behalf of another
		return
	}
	h.probes = uint8(min(m.cfg.DADTransmits, 255))
	m.probe(h)
	m.schedule(h)
}

// probe sends the next Neighbor Solicitation, or finds that the addresses are
// not in use.
func (m *HomeAgent) probe(h *entry) {
	if h.probes == 0 {
		m.bind(h, h.pending)
		return
	}
	h.probes--
	h.timer = m.now + m.cfg.RetransTimer
	m.solicit(h.addr)
	if h.linkLocal {
		m.solicit(linkLocal(h.addr))
	}
}

func (m *HomeAgent) solicit(target netip.Addr) {
	m.onLink(solicitedNode(target), netip.IPv6Unspecified(), &wire.NeighborSolicitation{Target: target})
}

// duplicate ends Duplicate Address Detection: an address is in use. The whole
// Binding Update is refused.
func (m *HomeAgent) duplicate(h *entry) {
	r := *h.pending
	m.release(h, wire.DuplicateAddress)
	m.refuse(h, &r, wire.DuplicateAddress)
}

// speakFor makes us the proxy of h on the home link (RFC 6275 section 10.4.1),
// for the link-local address too if wanted. Neighbors are told when it begins.
func (m *HomeAgent) speakFor(h *entry, wantLinkLocal, begins bool) {
	if begins {
		m.advertise(allNodes, h.addr, false, true)
	}
	hadLinkLocal := h.linkLocal
	if !wantLinkLocal {
		m.forgetLinkLocal(h)
		return
	}
	// Where there was a binding, section 10.3.1 asks for no Duplicate Address
	// Detection of the link-local address that is added to it.
	if m.claimLinkLocal(h) && (begins || !hadLinkLocal) {
		m.advertise(allNodes, linkLocal(h.addr), false, true)
	}
}

// advertise sends a Neighbor Advertisement on behalf of the mobile node: our
// link-layer address, R clear (RFC 6275 section 10.4.1).
func (m *HomeAgent) advertise(dst, target netip.Addr, solicited, override bool) {
	m.onLink(dst, m.cfg.Addr, &wire.NeighborAdvertisement{
		Solicited: solicited, Override: override, Target: target, TargetLink: m.cfg.Link,
	})
}

// heard takes a packet of Neighbor Discovery from the home link.
func (m *HomeAgent) heard(b []byte) {
	if m.cfg.Link == nil {
		return
	}
	p, err := wire.ParsePacket(b)
	if err != nil || p.Protocol != wire.ICMPv6 || p.HopLimit != 255 || p.Src == m.cfg.Addr {
		return
	}
	if p.Home.IsValid() || p.Routing.IsValid() {
		return
	}
	msg, err := wire.ParseICMP(&p)
	if err != nil {
		return
	}
	switch msg := msg.(type) {
	case *wire.NeighborSolicitation:
		m.solicited(&p, msg)
	case *wire.NeighborAdvertisement:
		if h := m.neighbor(msg.Target); h != nil && h.state == tentative {
			m.duplicate(h)
		}
	default:
		if p.Payload[0] == icmpRouterAdvertisement {
			m.routerAdvertisement(&p)
		}
	}
}

// neighbor is the home address that we speak for, or are about to, at target.
func (m *HomeAgent) neighbor(target netip.Addr) *entry {
	if !target.Is6() {
		return nil
	}
	h := m.homes[target.As16()]
	if h == nil {
		h = m.links[target.As16()]
	}
	if h == nil || h.state == away {
		return nil
	}
	return h
}

// solicited answers a Neighbor Solicitation for an address that we speak for
// (RFC 6275 section 10.4.1).
func (m *HomeAgent) solicited(p *wire.Packet, s *wire.NeighborSolicitation) {
	h := m.neighbor(s.Target)
	if h == nil {
		return
	}
	probe := p.Src.IsUnspecified()
	switch {
	case h.state == tentative && probe:
		// RFC 4862 section 5.4.3: somebody else is about to use it.
		m.duplicate(h)
	case h.state == tentative || !m.bound(h):
	case probe:
		m.advertise(allNodes, s.Target, false, false)
	case p.Src.IsGlobalUnicast() || p.Src.IsLinkLocalUnicast():
		// Override is clear: we are a proxy (RFC 4861 section 7.2.8).
		m.advertise(p.Src, s.Target, true, false)
	}
}
