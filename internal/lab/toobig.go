package lab

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The addresses of the router, from which its ICMP messages come.
var (
	Router6 = netip.MustParseAddr("fd00:ff::1")
	Router4 = netip.MustParseAddr("192.0.2.1")
)

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

// tooBig is the router's answer to the packet b that does not fit into mtu, or
// nil when none may be sent.
func tooBig(b []byte, mtu int) []byte {
	if header.IPVersion(b) == header.IPv6Version {
		return tooBig6(b, mtu)
	}
	return tooBig4(b, mtu)
}

// tooBig6 builds a Packet Too Big message (RFC 4443 section 3.2).
func tooBig6(b []byte, mtu int) []byte {
	ip := header.IPv6(b)
	src := ip.SourceAddress()
	// RFC 4443 section 2.4 (e): not in answer to an error message, nor to a
	// source that is not a single node.
	if src.Unspecified() || header.IsV6MulticastAddress(src) {
		return nil
	}
	payload := b[header.IPv6MinimumSize:]
	if ip.NextHeader() == uint8(header.ICMPv6ProtocolNumber) && (len(payload) == 0 || payload[0] < 128) {
		return nil
	}

	// "as much of invoking packet as possible without the ICMPv6 packet
	// exceeding the minimum IPv6 MTU"
	quote := b[:min(len(b), header.IPv6MinimumMTU-header.IPv6MinimumSize-header.ICMPv6PacketTooBigMinimumSize)]
	size := header.ICMPv6PacketTooBigMinimumSize + len(quote)
	answer := make([]byte, header.IPv6MinimumSize+size)
	router := tcpip.AddrFrom16(Router6.As16())
	header.IPv6(answer).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(size),
		TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit:          64,
		SrcAddr:           router,
		DstAddr:           src,
	})
	icmp := header.ICMPv6(answer[header.IPv6MinimumSize:])
	icmp.SetType(header.ICMPv6PacketTooBig)
	icmp.SetMTU(uint32(mtu))
	copy(icmp[header.ICMPv6PacketTooBigMinimumSize:], quote)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: router, Dst: src}))
	return answer
}

// tooBig4 builds a Destination Unreachable, Fragmentation Needed message
// (RFC 1191 section 4). A packet that may be fragmented is not: the lab drops
// it without a word.
func tooBig4(b []byte, mtu int) []byte {
	ip := header.IPv4(b)
	src := ip.SourceAddress()
	headerSize := int(ip.HeaderLength())
	if ip.Flags()&header.IPv4FlagDontFragment == 0 || headerSize < header.IPv4MinimumSize || headerSize > len(b) {
		return nil
	}
	// RFC 1122 section 3.2.2: not in answer to an error message, to a fragment
	// other than the first, nor to a source that is not a single host.
	if src.Unspecified() || header.IsV4MulticastAddress(src) || src == header.IPv4Broadcast || ip.FragmentOffset() != 0 {
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
		SrcAddr:     tcpip.AddrFrom4(Router4.As4()),
		DstAddr:     src,
	})
	out.SetChecksum(^out.CalculateChecksum())
	icmp := header.ICMPv4(answer[header.IPv4MinimumSize:])
	icmp.SetType(header.ICMPv4DstUnreachable)
	icmp.SetCode(header.ICMPv4FragmentationNeeded)
	icmp.SetMTU(uint16(mtu))
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
