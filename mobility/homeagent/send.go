package homeagent

import (
	"io"
	"net/netip"

	"github.com/distributed-servers/ds/mobility/wire"
)

// mobilityError answers a mobility header that is not understood (RFC 6275
// section 9.2).
func (m *HomeAgent) mobilityError(p *wire.Packet, b []byte, err error) {
	switch err := err.(type) {
	case *wire.UnknownTypeError:
		m.bindingError(wire.UnknownMHType, p)
	case *wire.Problem:
		m.problem(err, b)
	}
}

// bindingError tells the sender of p of an error (RFC 6275 section 9.3.3).
func (m *HomeAgent) bindingError(status wire.ErrorStatus, p *wire.Packet) {
	if !routable(p.Src) || !m.errors.allow(m.now, errorInterval, errorBurst) {
		return
	}
	e := wire.BindingError{Status: status, Home: netip.IPv6Unspecified()}
	if p.Home.IsValid() {
		e.Home = p.Home
	}
	m.payload = e.Append(m.payload[:0], m.cfg.Addr, p.Src)
	m.sendPacket(&wire.Packet{Src: m.cfg.Addr, Dst: p.Src, Protocol: wire.Mobility, Payload: m.payload})
}

func (m *HomeAgent) problem(p *wire.Problem, b []byte) {
	m.sendError(wire.ParameterProblem, p.Code, p.Pointer, b, p.EvenMulticast)
}

// sendError sends an ICMPv6 error about the packet b.
func (m *HomeAgent) sendError(kind wire.ErrorKind, code uint8, param uint32, b []byte, evenMulticast bool) {
	if !m.errors.allow(m.now, errorInterval, errorBurst) {
		return
	}
	n := len(m.buf)
	buf, ok := wire.AppendError(m.buf, m.cfg.Addr, kind, code, param, b, evenMulticast)
	if !ok {
		return
	}
	m.buf = buf
	m.route(m.buf[n:len(m.buf):len(m.buf)])
}

// append adds p to the buffer.
func (m *HomeAgent) append(p *wire.Packet) (b []byte, ok bool) {
	n := len(m.buf)
	buf, err := p.Append(m.buf)
	if err != nil {
		return nil, false
	}
	m.buf = buf
	return buf[n:len(buf):len(buf)], true
}

// copy adds b to the buffer.
func (m *HomeAgent) copy(b []byte) []byte {
	n := len(m.buf)
	m.buf = append(m.buf, b...)
	return m.buf[n:len(m.buf):len(m.buf)]
}

func (m *HomeAgent) sendPacket(p *wire.Packet) {
	if b, ok := m.append(p); ok {
		m.out.Send = append(m.out.Send, b)
	}
}

// onLink sends p on the home link; hop limit 255, as Neighbor Discovery demands.
func (m *HomeAgent) onLink(dst, src netip.Addr, msg wire.ICMP) {
	m.payload = msg.Append(m.payload[:0], src, dst)
	p := wire.Packet{Src: src, Dst: dst, HopLimit: 255, Protocol: wire.ICMPv6, Payload: m.payload}
	if b, ok := m.append(&p); ok {
		m.out.Link = append(m.out.Link, b)
	}
}

// route sends the packet b, which is in the buffer, by its destination: to
// mobile nodes through the tunnel, to link-local addresses on the link.
func (m *HomeAgent) route(b []byte) {
	dst := address(b[24:40])
	switch h := m.homes[dst]; {
	case h != nil && m.bound(h):
		m.tunnel(h, b)
	case h != nil && m.cfg.Link == nil:
		// It would come back to us.
	case netip.AddrFrom16(dst).IsLinkLocalUnicast():
		if m.cfg.Link != nil {
			m.out.Link = append(m.out.Link, b)
		}
	default:
		m.out.Send = append(m.out.Send, b)
	}
}

func (m *HomeAgent) uint64() uint64 {
	// A source that fails costs the order its randomness, and nothing else.
	_, _ = io.ReadFull(m.cfg.Rand, m.random[:])
	var v uint64
	for _, b := range m.random {
		v = v<<8 | uint64(b)
	}
	return v
}
