package relay

import (
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// ICMPv6 errors come to a contact in two ways.
//
// Inside the home agent's tunnel they are about what was sent to clients with
// the home address as its source: senderOf finds out which node has sent it.
//
// Outside of tunnels they are about tunnel packets from here. Whoever sent the
// packet inside must be told (RFC 2473 section 8), which is a client for
// packets to a node, and a node for packets to the home agent.
//
// An error comes from any router, so nothing is known of its sender. It is
// believed if what it quotes can have been sent from here, and then too it can
// do little: lower an MTU, within limits, and cause one error to a client that
// is known, or to its owner, at a limited rate.

// Limits of what is learned, and caused.
const (
	// RFC 8201 section 4: a larger MTU may be tried after 10 minutes.
	mtuLifetime = 10 * time.Minute

	// RFC 4443 section 2.4 (f) wants a token bucket. These are for a router of
	// some size.
	errorInterval = time.Millisecond
	errorBurst    = 100
)

// bucket is a token bucket: full is when it is full again.
type bucket struct{ full time.Duration }

func (b *bucket) take(now time.Duration) bool {
	full := max(b.full, now) + errorInterval
	if full-now > errorBurst*errorInterval {
		return false
	}
	b.full = full
	return true
}

// senderOf is for whom an ICMPv6 message to the home address is: an error for
// the node that has sent what it is about, anything else for the owner of the
// client that it comes from.
func (r *Relay) senderOf(p *wire.Packet, owner peerID) peerID {
	message, err := wire.ParseICMP(p)
	if err != nil {
		return owner
	}
	e, ok := message.(*wire.ICMPError)
	if !ok || !whole(e.Quoted) || key(src(e.Quoted)) != r.homeKey {
		return owner
	}
	return r.sender(e.Quoted)
}

// sender is who has sent a packet, or the beginning of one, from the home
// address to a client.
func (r *Relay) sender(b []byte) peerID {
	// RFC 6275 section 11.3.5: a Parameter Problem about a test tells that the
	// client has no route optimisation. The one who asked wants to know.
	if p, err := wire.ParsePacket(b); err == nil && p.Protocol == wire.Mobility {
		if t, err := wire.TypeOf(&p); err == nil && t == wire.TypeHomeTestInit && wire.Decode(&p, &r.hoti) == nil {
			if node, ok := r.paths.find(pathKey{p.Dst.As16(), r.hoti.Cookie}); ok {
				return node
			}
		}
	}
	return r.owner(dst(b))
}

// outside has the rules for ICMPv6 that comes outside of a tunnel.
func (r *Relay) outside(now time.Duration, b []byte, outer *wire.Packet) Output {
	message, err := wire.ParseICMP(outer)
	if err != nil {
		return drop(Malformed)
	}
	e, ok := message.(*wire.ICMPError)
	if !ok {
		return r.keep(b)
	}
	// RFC 2473 section 8: the quoted packet is a tunnel packet of ours, and
	// enough of what is inside is there to know its sender.
	if !whole(e.Quoted) || wire.Protocol(e.Quoted[nextHeader]) != wire.IPv6 || key(src(e.Quoted)) != r.careOfKey {
		return r.keep(b)
	}
	inner := e.Quoted[wire.HeaderLen:]
	to, known := r.peers.byAddr[key(dst(e.Quoted))]
	if !known || !whole(inner) {
		return r.keep(b)
	}
	var node peerID // to be told; self: the client
	switch {
	case to == agent && key(src(inner)) == r.homeKey:
		if node = r.sender(inner); node == self {
			return r.keep(b) // this node has sent it
		}
	case to != agent && key(dst(inner)) == r.homeKey && r.owner(src(inner)) == to:
	default:
		return r.keep(b)
	}
	r.learn(now, to, e)
	if !r.errors.take(now) {
		return drop(Limited)
	}
	if node == self {
		r.packet, ok = wire.AppendRelayed(r.packet[:0], r.careOf, e)
	} else {
		r.scratch, ok = wire.AppendRelayed(r.scratch[:0], r.careOf, e)
	}
	if !ok {
		return drop(NoAnswer)
	}
	return r.report(node, None)
}

// learn lowers the MTU of the way to a peer.
func (r *Relay) learn(now time.Duration, to peerID, e *wire.ICMPError) {
	if e.Kind != wire.PacketTooBig {
		return
	}
	// RFC 8201 section 4: a smaller MTU than the smallest is no MTU. Neither
	// is one that the packet it is about would fit.
	length := wire.HeaderLen + int(e.Quoted[4])<<8 + int(e.Quoted[5])
	if e.Param < wire.MinMTU || int64(e.Param) >= int64(length) {
		return
	}
	p := &r.peers.list[to]
	if p.mtu == 0 || now >= p.mtuUntil || int(e.Param) < p.mtu {
		p.mtu, p.mtuUntil = int(e.Param), now+mtuLifetime
	}
}

// refuse tells the sender of inner that it cannot be sent on. node is the node
// that it came from, self for a client.
func (r *Relay) refuse(now time.Duration, why Reason, kind wire.ErrorKind, param int, inner []byte, node peerID) Output {
	if !r.errors.take(now) {
		return drop(why)
	}
	var ok bool
	if node == self {
		r.packet, ok = wire.AppendError(r.packet[:0], r.careOf, kind, 0, uint32(param), inner, false)
	} else {
		r.scratch, ok = wire.AppendError(r.scratch[:0], r.careOf, kind, 0, uint32(param), inner, false)
	}
	if !ok {
		return drop(why)
	}
	return r.report(node, why)
}

// report sends an error: r.packet to a client, r.scratch to a node. For the
// node it is an error to the home address, and goes into a tunnel.
func (r *Relay) report(node peerID, why Reason) Output {
	if node != self {
		var err error
		if r.packet, err = wire.AppendTunnel(r.packet[:0], r.careOf, r.peers.list[node].addr, r.scratch); err != nil {
			return drop(Malformed)
		}
	}
	return r.sent(why)
}

// whole reports whether b begins with an IPv6 header.
func whole(b []byte) bool { return len(b) >= wire.HeaderLen && b[0]>>4 == 6 }
