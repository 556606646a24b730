package lab

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The addresses of a router that has none of its own, from which its ICMP
// messages come.
var (
	Router6 = netip.MustParseAddr("fd00:ff::1")
	Router4 = netip.MustParseAddr("192.0.2.1")
)

// Router makes a [Net] a router: it takes one from the hop limit of what it
// forwards, and says in an ICMP message when none is left or when it has no
// route. A Net that is none still sends Packet Too Big.
type Router struct {
	// Addr6 and Addr4 are where ICMP messages come from; the zero Addr means
	// Router6 and Router4.
	Addr6, Addr4 netip.Addr
}

// SetRouter makes the network a router, or changes its addresses.
func (n *Net) SetRouter(r Router) { n.router.Store(&r) }

func (r *Router) addr6() tcpip.Address {
	if r == nil || !r.Addr6.IsValid() {
		return tcpip.AddrFrom16(Router6.As16())
	}
	return tcpip.AddrFrom16(r.Addr6.As16())
}

func (r *Router) addr4() tcpip.Address {
	if r == nil || !r.Addr4.IsValid() {
		return tcpip.AddrFrom4(Router4.As4())
	}
	return tcpip.AddrFrom4(r.Addr4.As4())
}

// destination returns the destination address of an IP packet.
func destination(b []byte) (netip.Addr, bool) {
	switch header.IPVersion(b) {
	case header.IPv6Version:
		if len(b) >= header.IPv6MinimumSize {
			return netip.AddrFrom16([16]byte(b[24:40])), true
		}
	case header.IPv4Version:
		if len(b) >= header.IPv4MinimumSize {
			return netip.AddrFrom4([4]byte(b[16:20])), true
		}
	}
	return netip.Addr{}, false
}

// decrement returns a copy of the packet with one hop less, or alive false
// when it may not go on: "If the Hop Limit is zero or becomes zero after
// decrementing, the packet is discarded" (RFC 8200 section 3, RFC 1812
// section 5.3.1). What is no IP packet stays as it is.
func decrement(b []byte) (forwarded []byte, alive bool) {
	if _, ok := destination(b); !ok {
		return b, true
	}
	if header.IPVersion(b) == header.IPv6Version {
		if b[7] <= 1 {
			return nil, false
		}
		b = slices.Clone(b)
		b[7]--
		return b, true
	}
	if b[8] <= 1 {
		return nil, false
	}
	b = slices.Clone(b)
	b[8]--
	// The checksum goes up by what the header went down (RFC 1141).
	sum := uint32(binary.BigEndian.Uint16(b[10:])) + 0x100
	binary.BigEndian.PutUint16(b[10:], uint16(sum+sum>>16))
	return b, true
}

// tooBig is the router's answer to the packet b that does not fit into mtu, or
// nil when none may be sent.
func tooBig(b []byte, mtu int, r *Router) []byte {
	if header.IPVersion(b) == header.IPv6Version {
		// RFC 4443 section 3.2; sent in answer to a multicast packet too.
		return error6(b, r, header.ICMPv6PacketTooBig, 0, uint32(mtu), true)
	}
	// RFC 1191 section 4. A packet that may be fragmented is not: the lab
	// drops it without a word.
	if header.IPv4(b).Flags()&header.IPv4FlagDontFragment == 0 {
		return nil
	}
	return error4(b, r, header.ICMPv4DstUnreachable, header.ICMPv4FragmentationNeeded, uint16(mtu))
}

// timeExceeded is the answer to a packet whose hops are used up (RFC 4443
// section 3.3, RFC 792).
func timeExceeded(b []byte, r *Router) []byte {
	if header.IPVersion(b) == header.IPv6Version {
		return error6(b, r, header.ICMPv6TimeExceeded, header.ICMPv6HopLimitExceeded, 0, false)
	}
	return error4(b, r, header.ICMPv4TimeExceeded, header.ICMPv4TTLExceeded, 0)
}

// noRoute is the answer to a packet for which there is no route (RFC 4443
// section 3.1, RFC 792).
func noRoute(b []byte, r *Router) []byte {
	if _, ok := destination(b); !ok {
		return nil
	}
	if header.IPVersion(b) == header.IPv6Version {
		return error6(b, r, header.ICMPv6DstUnreachable, header.ICMPv6NetworkUnreachable, 0, false)
	}
	return error4(b, r, header.ICMPv4DstUnreachable, header.ICMPv4NetUnreachable, 0)
}

// error6 builds an ICMPv6 error message about the IPv6 packet b, or returns
// nil when none may be sent (RFC 4443 section 2.4 (e)).
func error6(b []byte, r *Router, icmpType header.ICMPv6Type, code header.ICMPv6Code, param uint32, multicast bool) []byte {
	ip := header.IPv6(b)
	src := ip.SourceAddress()
	// Not to a source that is not a single node, nor about a packet to many.
	if src.Unspecified() || header.IsV6MulticastAddress(src) {
		return nil
	}
	if !multicast && header.IsV6MulticastAddress(ip.DestinationAddress()) {
		return nil
	}
	// Not in answer to an error message.
	payload := b[header.IPv6MinimumSize:]
	if ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber) && (len(payload) == 0 || payload[0] < 128) {
		return nil
	}

	// "as much of invoking packet as possible without the ICMPv6 packet
	// exceeding the minimum IPv6 MTU"
	quote := b[:min(len(b), header.IPv6MinimumMTU-header.IPv6MinimumSize-header.ICMPv6ErrorHeaderSize)]
	size := header.ICMPv6ErrorHeaderSize + len(quote)
	answer := make([]byte, header.IPv6MinimumSize+size)
	router := r.addr6()
	header.IPv6(answer).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(size),
		TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit:          64,
		SrcAddr:           router,
		DstAddr:           src,
	})
	icmp := header.ICMPv6(answer[header.IPv6MinimumSize:])
	icmp.SetType(icmpType)
	icmp.SetCode(code)
	binary.BigEndian.PutUint32(icmp[4:], param)
	copy(icmp[header.ICMPv6ErrorHeaderSize:], quote)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: router, Dst: src}))
	return answer
}

// error4 builds an ICMP error message about the IPv4 packet b, or returns nil
// when none may be sent (RFC 1122 section 3.2.2).
func error4(b []byte, r *Router, icmpType header.ICMPv4Type, code header.ICMPv4Code, mtu uint16) []byte {
	ip := header.IPv4(b)
	src := ip.SourceAddress()
	headerSize := int(ip.HeaderLength())
	if headerSize < header.IPv4MinimumSize || headerSize > len(b) {
		return nil
	}
	// Not in answer to an error message, to a fragment other than the first,
	// nor to a source that is not a single host.
	if src.Unspecified() || header.IsV4MulticastAddress(src) || src == header.IPv4Broadcast || ip.FragmentOffset() != 0 {
		return nil
	}
	if dst := ip.DestinationAddress(); header.IsV4MulticastAddress(dst) || dst == header.IPv4Broadcast {
		return nil
	}
	if ip.TransportProtocol() == header.ICMPv4ProtocolNumber {
		payload := b[headerSize:]
		if len(payload) == 0 || isICMPv4Error(header.ICMPv4Type(payload[0])) {
			return nil
		}
	}

	// RFC 1812 section 4.3.2.3: no more than 576 octets in all.
	quote := b[:min(len(b), 576-header.IPv4MinimumSize-header.ICMPv4MinimumSize)]
	answer := make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize+len(quote))
	out := header.IPv4(answer)
	out.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(answer)),
		TTL:         64,
		Protocol:    uint8(header.ICMPv4ProtocolNumber),
		SrcAddr:     r.addr4(),
		DstAddr:     src,
	})
	out.SetChecksum(^out.CalculateChecksum())
	icmp := header.ICMPv4(answer[header.IPv4MinimumSize:])
	icmp.SetType(icmpType)
	icmp.SetCode(code)
	if mtu != 0 {
		icmp.SetMTU(mtu)
	}
	copy(icmp[header.ICMPv4MinimumSize:], quote)
	icmp.SetChecksum(^checksum.Checksum(icmp, 0))
	return answer
}

func isICMPv4Error(t header.ICMPv4Type) bool {
	switch t {
	case header.ICMPv4DstUnreachable, header.ICMPv4SrcQuench, header.ICMPv4Redirect,
		header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
		return true
	}
	return false
}
