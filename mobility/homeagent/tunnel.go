package homeagent

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// intercepted takes a packet to the home address of h (RFC 6275 section 10.4.2).
func (m *HomeAgent) intercepted(h *entry, b []byte) {
	switch {
	case !m.bound(h):
		// Nowhere to go, yet or again. Silence: see the package's documentation.
	case isNeighborDiscovery(b):
		m.heard(b) // a neighbor that looks whether the home address is still there
	default:
		m.tunnel(h, b)
	}
}

// interceptedLinkLocal takes a packet to the link-local address of h. Such
// packets do not leave the link (RFC 6275 section 10.4.2).
func (m *HomeAgent) interceptedLinkLocal(h *entry, b []byte) {
	switch {
	case !m.bound(h):
	case isNeighborDiscovery(b):
		m.heard(b)
	default:
		m.sendError(wire.Unreachable, addressUnreachable, 0, b, false)
	}
}

func isNeighborDiscovery(b []byte) bool {
	return wire.Protocol(b[6]) == wire.ICMPv6 && b[7] == 255 && len(b) > wire.HeaderLen &&
		icmpNDFirst <= b[wire.HeaderLen] && b[wire.HeaderLen] <= icmpNDLast
}

// tunnel sends the packet inner to the mobile node at h, in IPv6 from us to its
// care-of address (RFC 6275 section 10.4.2, RFC 2473).
func (m *HomeAgent) tunnel(h *entry, inner []byte) {
	mtu := m.pathMTU(h)
	long := len(inner) > mtu-wire.TunnelLen
	if long && len(inner) > wire.MinMTU {
		// RFC 2473 section 7.1 (a).
		m.sendError(wire.PacketTooBig, 0, uint32(max(mtu-wire.TunnelLen, wire.MinMTU)), inner, true)
		return
	}
	n := len(m.buf)
	buf, err := wire.AppendTunnel(m.buf, m.cfg.Addr, h.careOf, inner)
	switch {
	case err == wire.ErrHopLimit:
		m.sendError(wire.TimeExceeded, 0, 0, inner, false)
		return
	case err != nil:
		return
	}
	m.buf = buf
	b := buf[n:len(buf):len(buf)]
	if long {
		m.sendFragments(b, mtu)
		return
	}
	m.out.Send = append(m.out.Send, b)
}

// sendFragments sends the tunnel packet b, which is longer than the path's MTU
// although what is inside is not longer than an IPv6 host may send anywhere
// (RFC 2473 section 7.1 (b), RFC 8200 section 4.5). There are two.
func (m *HomeAgent) sendFragments(b []byte, mtu int) {
	const fragmentLen, more = 8, 1
	room := (mtu - wire.HeaderLen - fragmentLen) &^ 7
	m.fragment++
	for at := wire.HeaderLen; at < len(b); at += room {
		part := b[at:min(at+room, len(b))]
		flags := uint16(at - wire.HeaderLen)
		if at+len(part) < len(b) {
			flags |= more
		}
		n := len(m.buf)
		m.buf = append(m.buf, b[:wire.HeaderLen]...)
		binary.BigEndian.PutUint16(m.buf[n+4:], uint16(fragmentLen+len(part)))
		m.buf[n+6] = byte(wire.Fragment)
		m.buf = append(m.buf, byte(wire.IPv6), 0)
		m.buf = binary.BigEndian.AppendUint16(m.buf, flags)
		m.buf = binary.BigEndian.AppendUint32(m.buf, m.fragment)
		m.buf = append(m.buf, part...)
		m.out.Send = append(m.out.Send, m.buf[n:len(m.buf):len(m.buf)])
	}
}

// mtuTimeout is how long a smaller path MTU is believed (RFC 8201 section 4).
const mtuTimeout = 10 * time.Minute

// pathMTU is the MTU of the path to the care-of address of h.
func (m *HomeAgent) pathMTU(h *entry) int {
	if h.mtu != 0 && m.now < h.mtuUntil {
		return int(h.mtu)
	}
	return m.cfg.TunnelMTU
}

// reverseTunnelled takes what has come through a tunnel from outer with the
// given traffic class (RFC 6275 section 10.4.5): a packet from a home address,
// with the care-of address that is registered for it outside. Without a
// binding, nobody may send here.
func (m *HomeAgent) reverseTunnelled(outer netip.Addr, class uint8, b []byte) {
	inner, ok := whole(b)
	if !ok {
		return
	}
	h := m.homes[address(inner[8:24])]
	if h == nil || !m.bound(h) || h.careOf != outer {
		return
	}
	n := len(m.buf)
	m.buf = append(m.buf, inner...)
	b = m.buf[n:len(m.buf):len(m.buf)]
	if !congestion(b, class) {
		return
	}
	m.forward(b)
}

// congestion carries a mark of congestion from the tunnel's traffic class into
// the packet that was inside; false: the packet cannot carry it and is to be
// dropped (RFC 6040 section 4.2).
func congestion(b []byte, class uint8) bool {
	const mask, experienced = 3, 3
	if class&mask != experienced {
		return true
	}
	if b[1]>>4&mask == 0 {
		return false
	}
	b[1] |= experienced << 4
	return true
}

// forward sends a mobile node's packet b, which is in the buffer, where it is
// to go. It is a router's work; the packet's path goes through us.
func (m *HomeAgent) forward(b []byte) {
	to := address(b[24:40])
	dst := netip.AddrFrom16(to)
	switch h := m.homes[to]; {
	case to == m.addr:
		m.out.Local = append(m.out.Local, b)
	case !dst.IsGlobalUnicast():
		// Link-local ones do not leave the mobile node's link. There is no
		// multicast routing here (RFC 6275 section 10.4.3).
	case h != nil && m.bound(h):
		m.tunnel(h, b) // from one mobile node to another
	case m.cfg.Link == nil && m.homePrefix(dst) != nil:
		// It would come back to us. If it is a mobile node's, that is away.
		if h == nil {
			m.sendError(wire.Unreachable, addressUnreachable, 0, b, false)
		}
	case b[7] <= 1:
		m.sendError(wire.TimeExceeded, 0, 0, b, false)
	default:
		b[7]--
		m.out.Send = append(m.out.Send, b)
	}
}

// tunnelError takes an ICMPv6 error; false: it is not about a tunnel of ours.
// It is believed only if the packet that it quotes is one that we would send
// now. The source of the packet inside is told (RFC 2473 section 8).
//
// The binding stays whatever happens (RFC 6275 section 10.3.1).
func (m *HomeAgent) tunnelError(e *wire.ICMPError) bool {
	q := e.Quoted
	if len(q) < wire.HeaderLen || q[0]>>4 != 6 || address(q[8:24]) != m.addr {
		return false
	}
	at := wire.HeaderLen
	if wire.Protocol(q[6]) == wire.Fragment && len(q) > at && wire.Protocol(q[at]) == wire.IPv6 {
		return true // as above; what is inside is small already, and the sender can do nothing
	}
	if wire.Protocol(q[6]) != wire.IPv6 {
		return false
	}
	inner := q[at:]
	if len(inner) < wire.HeaderLen || inner[0]>>4 != 6 {
		return true
	}
	h := m.homes[address(inner[24:40])]
	if h == nil || !m.bound(h) || h.careOf != netip.AddrFrom16([16]byte(q[24:40])) {
		return true
	}
	if e.Kind == wire.PacketTooBig && !m.tooBig(h, e.Param, inner) {
		return true
	}
	if !m.errors.allow(m.now, errorInterval, errorBurst) {
		return true
	}
	n := len(m.buf)
	if buf, ok := wire.AppendRelayed(m.buf, m.cfg.Addr, e); ok {
		m.buf = buf
		m.route(buf[n:len(buf):len(buf)])
	}
	return true
}

// tooBig learns a path MTU (RFC 8201 section 4, RFC 2473 section 7.1): lower
// than the one that is known, but never below that of all IPv6 links. It
// reports whether the source of the packet inside should be told.
func (m *HomeAgent) tooBig(h *entry, mtu uint32, inner []byte) bool {
	lower := max(mtu, wire.MinMTU)
	if lower >= uint32(m.pathMTU(h)) {
		return false // then it would not have been too big
	}
	h.mtu, h.mtuUntil = uint16(lower), m.now+mtuTimeout
	return wire.HeaderLen+int(binary.BigEndian.Uint16(inner[4:])) > wire.MinMTU
}
