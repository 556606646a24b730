package wire

import (
	"encoding/binary"
	"net/netip"
)

// AppendError appends the packet that tells the sender of invoking, from src,
// of an error (RFC 4443 section 2.4): as much of invoking as fits 1280 octets,
// checksum, everything. ok is false, and nothing is appended, where no error
// may be sent: about an ICMPv6 error or redirect, to a source that is not one
// node, about a packet to a multicast address unless evenMulticast.
//
// The error goes to the address in the IPv6 header of invoking.
func AppendError(b []byte, src netip.Addr, kind ErrorKind, code uint8, param uint32, invoking []byte, evenMulticast bool) (_ []byte, ok bool) {
	invoking, enough := stated(invoking)
	if !enough || !src.Is6() || src.IsUnspecified() || src.IsMulticast() {
		return b, false
	}
	to := netip.AddrFrom16([16]byte(invoking[8:24]))
	dst := netip.AddrFrom16([16]byte(invoking[24:40]))
	switch {
	case to.IsUnspecified() || to.IsMulticast(): // (e.6)
		return b, false
	case dst.IsMulticast() && !evenMulticast && kind != PacketTooBig: // (e.3)
		return b, false
	case isICMPError(invoking): // (e.1), (e.2)
		return b, false
	}
	m := ICMPError{Kind: kind, Code: code, Param: param}
	m.Quoted = invoking[:min(len(invoking), MinMTU-HeaderLen-icmpErrorLen)] // (c)
	b = appendHeader(b, 0, 0, icmpErrorLen+len(m.Quoted), ICMPv6, 0, src, to)
	return m.Append(b, src, to), true
}

const icmpErrorLen = 8 // of an ICMPv6 error without what it quotes

// stated returns as much of the IPv6 packet at the beginning of b as is there.
func stated(b []byte) ([]byte, bool) {
	if len(b) < HeaderLen || b[0]>>4 != 6 {
		return nil, false
	}
	return b[:min(len(b), HeaderLen+int(binary.BigEndian.Uint16(b[4:])))], true
}

// isICMPError reports whether the packet b is an ICMPv6 error or a redirect, or
// cannot be told from one: a later fragment of an ICMPv6 message.
func isICMPError(b []byte) bool {
	next, off, first := upperLayer(b)
	switch {
	case next != ICMPv6:
		return false
	case !first || off >= len(b):
		return true
	}
	return b[off] < icmpInformational || b[off] == icmpRedirect
}

// upperLayer is the protocol of what is behind the extension headers of a
// packet, which need not be right or whole, and where it begins, which may be
// behind the end. first is false in a fragment that is not the first one.
func upperLayer(b []byte) (next Protocol, off int, first bool) {
	next, off = Protocol(b[6]), HeaderLen
	for off+8 <= len(b) {
		size := 8
		switch next {
		case HopByHop, Routing, DestOptions:
			size += 8 * int(b[off+1])
		case Fragment:
			if binary.BigEndian.Uint16(b[off+2:])>>3 != 0 {
				return Protocol(b[off]), off + size, false
			}
		default:
			return next, off, true
		}
		next, off = Protocol(b[off]), off+size
	}
	return next, off, true
}

// AppendRelayed appends the ICMPv6 error that the entrance of a tunnel sends to
// the source of a tunnelled packet when it has received err about the tunnel
// packet (RFC 2473 section 8): Packet Too Big becomes the same with an MTU
// lower by the tunnel's header (never below 1280), Time Exceeded and
// Unreachable become Unreachable code 3, a Parameter Problem about the tunnel
// header likewise. ok is false if the quoted packet does not hold the inner
// one's addresses.
func AppendRelayed(b []byte, src netip.Addr, err *ICMPError) (_ []byte, ok bool) {
	outer := err.Quoted
	if len(outer) < HeaderLen || outer[0]>>4 != 6 {
		return b, false
	}
	next, off, first := upperLayer(outer)
	if next != IPv6 || !first || len(outer)-off < HeaderLen {
		return b, false
	}
	inner := outer[off:]
	switch err.Kind {
	case PacketTooBig:
		mtu := uint32(MinMTU)
		if overhead := uint32(off); err.Param > MinMTU+overhead {
			mtu = err.Param - overhead
		}
		return AppendError(b, src, PacketTooBig, 0, mtu, inner, false)
	case ParameterProblem:
		if err.Param >= uint32(off) {
			return b, false // about the packet inside, which its destination judges
		}
		fallthrough
	case Unreachable, TimeExceeded:
		return AppendError(b, src, Unreachable, addressUnreachable, 0, inner, false)
	}
	return b, false
}

const addressUnreachable = 3 // a code of Unreachable
