package relay

import (
	"errors"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// received sorts packets by what they are and by who sent them.
func (r *Relay) received(now time.Duration, b []byte) Output {
	outer, err := wire.ParsePacket(b)
	switch {
	case err != nil:
		return drop(Malformed)
	case outer.Dst != r.careOf:
		return drop(NotTunnel)
	case outer.Protocol == wire.ICMPv6:
		return r.outside(now, b, &outer)
	case outer.Protocol != wire.IPv6:
		return drop(NotTunnel)
	case outer.Home.IsValid() || outer.Routing.IsValid():
		// With a binding there is no tunnel. A Home Address option would also
		// let a stranger name himself as he likes.
		return drop(Spoofed)
	}
	inner, err := outer.Inner()
	if err != nil {
		return drop(Malformed)
	}
	id, known := r.peers.byAddr[outer.Src.As16()]
	switch {
	case known && id == agent:
		return r.fromAgent(now, b, inner)
	case known && r.peers.list[id].member:
		return r.fromNode(now, b, inner, id)
	}
	// No tunnel of anybody else's ends here.
	return drop(Stranger)
}

// fromAgent has the rules for what clients send.
func (r *Relay) fromAgent(now time.Duration, b, inner []byte) Output {
	if key(dst(inner)) != r.homeKey || key(src(inner)) == r.homeKey || !routable(src(inner)) {
		return drop(Spoofed)
	}
	to := r.owner(src(inner))

	// Only these two need a look inside. What is no TCP or UDP might have
	// them behind extension headers.
	if p := wire.Protocol(inner[nextHeader]); p != wire.TCP && p != wire.UDP {
		if packet, err := wire.ParsePacket(inner); err == nil {
			switch packet.Protocol {
			case wire.Mobility:
				to = r.askerOf(&packet, to)
			case wire.ICMPv6:
				to = r.senderOf(&packet, to)
			}
		}
		// An error is for the owner to answer: on the way nobody looks at
		// extension headers (RFC 8200 section 4).
	}
	if to == self {
		return r.keep(b)
	}
	return r.tunnel(now, to, inner, self)
}

// askerOf is for whom a mobility header from a client is: a Home Test for the
// node whose cookie it has, anything else for the owner.
func (r *Relay) askerOf(p *wire.Packet, owner peerID) peerID {
	t, err := wire.TypeOf(p)
	if err != nil || t != wire.TypeHomeTest || wire.Decode(p, &r.hot) != nil {
		return owner
	}
	// A test that no other node has asked for is this node's own.
	node, _ := r.paths.take(pathKey{p.Src.As16(), r.hot.Cookie}, &r.peers)
	return node
}

// fromNode has the rules for what other nodes send.
func (r *Relay) fromNode(now time.Duration, b, inner []byte, node peerID) Output {
	fromHome, toHome := key(src(inner)) == r.homeKey, key(dst(inner)) == r.homeKey
	switch {
	case fromHome && !toHome && routable(dst(inner)):
	case toHome && !fromHome:
		// Another contact has relayed it. Once is enough.
		return r.keep(b)
	default:
		return drop(Spoofed)
	}
	direct := r.direct
	if p := wire.Protocol(inner[nextHeader]); p != wire.TCP && p != wire.UDP {
		if packet, err := wire.ParsePacket(inner); err == nil && packet.Protocol == wire.Mobility {
			// RFC 6275 section 11.6.1: a Home Test Init is tunnelled through
			// the home agent. The way is what it tests.
			direct = false
			t, err := wire.TypeOf(&packet)
			if err == nil && t == wire.TypeHomeTestInit && wire.Decode(&packet, &r.hoti) == nil &&
				!r.paths.add(now, pathKey{packet.Dst.As16(), r.hoti.Cookie}, node, &r.peers) {
				return drop(Limited)
			}
		}
	}
	if direct {
		return r.out(now, inner, node)
	}
	return r.tunnel(now, agent, inner, node)
}

// keep leaves a packet to this node.
func (r *Relay) keep(b []byte) Output {
	r.local[0] = b
	return Output{Local: r.local[:]}
}

// tunnel sends inner to a peer. Should that fail, node is where it came from:
// self for a client.
func (r *Relay) tunnel(now time.Duration, to peerID, inner []byte, node peerID) Output {
	p := &r.peers.list[to]
	// RFC 2473 section 7.1 (a): what does not fit is refused if its sender can
	// make it smaller. (b), fragments of what its sender cannot, would be of no
	// use: nobody puts tunnel packets together again.
	if p.mtu != 0 && now < p.mtuUntil && len(inner) > wire.MinMTU && len(inner)+wire.TunnelLen > p.mtu {
		return r.refuse(now, TooBig, wire.PacketTooBig, max(p.mtu-wire.TunnelLen, wire.MinMTU), inner, node)
	}
	var err error
	r.packet, err = wire.AppendTunnel(r.packet[:0], r.careOf, p.addr, inner)
	switch {
	case errors.Is(err, wire.ErrHopLimit):
		return r.refuse(now, HopLimit, wire.TimeExceeded, 0, inner, node)
	case err != nil:
		return drop(Malformed)
	}
	return r.sent(None)
}

// out sends inner as it is, but for its hop limit: this node forwards it
// (RFC 8200 section 3).
func (r *Relay) out(now time.Duration, inner []byte, node peerID) Output {
	if inner[hopLimit] <= 1 {
		return r.refuse(now, HopLimit, wire.TimeExceeded, 0, inner, node)
	}
	r.packet = append(r.packet[:0], inner...)
	r.packet[hopLimit]--
	return r.sent(None)
}

// sent sends r.packet.
func (r *Relay) sent(why Reason) Output {
	r.send[0] = r.packet
	return Output{Send: r.send[:], Dropped: why}
}

// Places in the IPv6 header. Forwarding needs no more of it.
const (
	nextHeader = 6
	hopLimit   = 7
)

func src(b []byte) []byte { return b[8:24] }
func dst(b []byte) []byte { return b[24:40] }

// routable reports whether packets with this address leave a link: RFC 6275
// section 10.4.2 lets none be tunnelled that may not.
func routable(addr []byte) bool { return netip.AddrFrom16(key(addr)).IsGlobalUnicast() }
