package node

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/distributed-servers/ds/mobility/wire"
)

// arrival is a packet whose way here is in order.
type arrival struct {
	wire.Packet
	octets   []byte // the whole packet; without the tunnel, if there was one
	tunneled bool   // from Via, to the home address
}

// receive takes a packet to the care-of address (RFC 6275 section 11.3.3).
func (n *Node) receive(b []byte) {
	a := arrival{octets: b}
	var err error
	if a.Packet, err = wire.ParsePacket(b); err != nil {
		n.complain(b, false, err)
		return
	}
	if a.Dst != n.cfg.CareOf {
		return
	}
	if a.Protocol == wire.IPv6 {
		// Nobody but the home agent, or the contact in its stead, tunnels to us:
		// otherwise anyone could answer a home test.
		if a.Src != n.via || a.Routing.IsValid() || a.Home.IsValid() {
			return
		}
		if a.octets, err = a.Inner(); err != nil {
			return
		}
		if a.Packet, err = wire.ParsePacket(a.octets); err != nil {
			n.complain(a.octets, true, err)
			return
		}
		a.tunneled = true
		if a.Dst != n.home || a.Routing.IsValid() {
			return
		}
	}
	if a.Routing.IsValid() && a.Routing != n.home {
		return // RFC 6275 section 6.4.1
	}
	if a.Home.IsValid() {
		return // there is no binding here to check it with (RFC 6275 section 9.3.1)
	}
	switch a.Protocol {
	case wire.Mobility:
		n.mobility(&a)
	case wire.ICMPv6:
		n.icmp(&a)
	}
}

// mobility takes a mobility message (RFC 6275 section 9.2).
func (n *Node) mobility(a *arrival) {
	typ, err := wire.TypeOf(&a.Packet)
	if err != nil {
		n.complain(a.octets, a.tunneled, err)
		return
	}
	fromHome := a.Src == n.cfg.HomeAgent && !a.tunneled
	c := n.clients[a.Src]
	if c == nil && !fromHome {
		return
	}
	switch typ {
	case wire.TypeHomeTest:
		if a.tunneled && c != nil && wire.Decode(&a.Packet, &n.hot) == nil {
			n.homeTest(c)
		}
	case wire.TypeCareOfTest:
		if !a.tunneled && !a.Routing.IsValid() && c != nil && wire.Decode(&a.Packet, &n.cot) == nil {
			n.careOfTest(c)
		}
	case wire.TypeBindingAck:
		if wire.Decode(&a.Packet, &n.ba) != nil {
			return
		}
		if fromHome {
			n.homeAck(a.Payload)
		}
		if c != nil {
			n.clientAck(c, a.Payload)
		}
	case wire.TypeBindingRefreshRequest:
		if c != nil {
			n.refreshRequest(c)
		}
	case wire.TypeBindingError:
		if wire.Decode(&a.Packet, &n.be) != nil {
			return
		}
		n.bindingError(a, c, fromHome)
	}
}

// bindingError takes a Binding Error (RFC 6275 section 11.3.6).
func (n *Node) bindingError(a *arrival, c *client, fromHome bool) {
	switch n.be.Status {
	case wire.UnknownBinding:
		if n.be.Home != n.home {
			return
		}
		if fromHome {
			n.homeLost()
		}
		if c != nil {
			n.bindingLost(c)
		}
	case wire.UnknownMHType:
		// "If the mobile node is not expecting an acknowledgement or response,
		// it SHOULD ignore this."
		if fromHome && n.reg.pending {
			n.homeUnable()
		}
		if c != nil && (c.pending || c.home.pending || c.careOf.pending) {
			n.unable(c, Unsupported, NotSpoken, 0)
		}
	}
}

// icmp takes an ICMPv6 error about one of our messages (RFC 6275 section
// 11.3.5). None of them starts anything, and none is believed that does not
// quote what only who has seen the message can know. Errors from on the way,
// like Destination Unreachable, pass or end in silence: nothing to do.
func (n *Node) icmp(a *arrival) {
	m, err := wire.ParseICMP(&a.Packet)
	if err != nil {
		return
	}
	e, ok := m.(*wire.ICMPError)
	if !ok || e.Kind != wire.ParameterProblem || e.Code != 1 && e.Code != 2 {
		return
	}
	p, ok := n.quote(e.Quoted)
	if !ok || p.Dst != a.Src {
		return
	}
	c := n.clients[a.Src]
	typ, err := wire.TypeOf(&p)
	if p.Protocol != wire.Mobility || err != nil {
		// Data, of which we know nothing but where it went.
		if e.Code == 2 && c != nil && p.Src == n.cfg.CareOf && p.Home == n.home {
			n.optionRefused(c)
		}
		return
	}
	// Code 1 is about protocol 135 itself; code 2 about the Home Address option,
	// which a node without Mobile IPv6 meets first.
	switch typ {
	case wire.TypeHomeTestInit:
		if c != nil && e.Code == 1 && p.Src == n.home && c.home.pending &&
			wire.Decode(&p, &n.hoti) == nil && n.hoti.Cookie == c.home.cookie {
			n.unable(c, Unsupported, NotSpoken, 0)
		}
	case wire.TypeCareOfTestInit:
		if c != nil && e.Code == 1 && p.Src == n.cfg.CareOf && c.careOf.pending &&
			wire.Decode(&p, &n.coti) == nil && n.coti.Cookie == c.careOf.cookie {
			n.unable(c, Unsupported, NotSpoken, 0)
		}
	case wire.TypeBindingUpdate:
		if p.Src != n.cfg.CareOf || p.Home != n.home || wire.Decode(&p, &n.bu) != nil {
			return
		}
		if r := &n.reg; a.Src == n.cfg.HomeAgent && n.bu.Home && r.pending && ours(n.bu.Sequence, r.seq, r.tries) {
			n.homeUnable()
		}
		if c != nil && !n.bu.Home && c.pending && ours(n.bu.Sequence, c.seq, c.tries) {
			n.unable(c, Unsupported, NotSpoken, 0)
		}
	}
}

// quote parses the packet in an ICMPv6 error, which may be cut short.
func (n *Node) quote(b []byte) (p wire.Packet, ok bool) {
	if len(b) < wire.HeaderLen {
		return p, false
	}
	if whole := wire.HeaderLen + int(binary.BigEndian.Uint16(b[4:])); whole > len(b) {
		n.quoted = append(n.quoted[:0], b...)
		b = n.quoted
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-wire.HeaderLen))
	}
	p, err := wire.ParsePacket(b)
	return p, err == nil
}

// complain answers a packet that is wrong in a way that its sender is told of:
// a Parameter Problem, or a Binding Error (RFC 6275 sections 9.2, 9.3.3).
func (n *Node) complain(b []byte, tunneled bool, err error) {
	var problem *wire.Problem
	var unknown *wire.UnknownTypeError
	src := n.cfg.CareOf
	if tunneled {
		src = n.home
	}
	if len(b) < wire.HeaderLen || netip.AddrFrom16([16]byte(b[24:40])) != src {
		return // not to us
	}
	switch {
	case errors.As(err, &problem):
		if !n.errors.take(n.now) {
			return
		}
		var ok bool
		n.inner, ok = wire.AppendError(n.inner[:0], src, wire.ParameterProblem, problem.Code, problem.Pointer, b, false)
		if !ok {
			return
		}
	case errors.As(err, &unknown):
		dst := netip.AddrFrom16([16]byte(b[8:24]))
		if !n.acceptable(dst) || !n.errors.take(n.now) {
			return
		}
		n.be = wire.BindingError{Status: wire.UnknownMHType, Home: netip.IPv6Unspecified()}
		n.mh = n.be.Append(n.mh[:0], src, dst)
		p := wire.Packet{Src: src, Dst: dst, Protocol: wire.Mobility, Payload: n.mh}
		var err error
		if n.inner, err = p.Append(n.inner[:0]); err != nil {
			return
		}
	default:
		return
	}
	// By the way that the packet came.
	if tunneled {
		n.enclose()
	} else {
		n.emit(append(n.buf, n.inner...))
	}
}
