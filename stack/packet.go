package stack

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Tuple names a TCP connection from this node's side.
type Tuple struct {
	Local, Remote netip.AddrPort
}

func (t Tuple) String() string { return t.Local.String() + "–" + t.Remote.String() }

// flow is what the filter needs to know of a packet. An unknown part is zero.
type flow struct {
	tuple Tuple
	// ports is false for a later fragment, which does not say whose it is: it
	// counts as any connection's between its two addresses.
	ports bool
}

// maxExtensions bounds the walk along IPv6 extension headers. RFC 8200 §4.1
// allows each once, destination options twice.
const maxExtensions = 8

// inboundFlow reads the flow of a packet from the link; ok is false if it is
// neither TCP nor an ICMP error about TCP. The ICMP error's quoted packet went
// the other way, so its source is the local end.
func inboundFlow(p []byte) (f flow, ok bool) {
	src, dst, proto, payload, first, ok := parseIP(p)
	if !ok {
		return flow{}, false
	}
	switch proto {
	case uint8(header.TCPProtocolNumber):
		return tcpFlow(dst, src, payload, first, true)
	case uint8(header.ICMPv6ProtocolNumber):
		// RFC 4443 §2.1: error types have the high bit clear; 8 octets precede
		// the quoted packet.
		if !first || len(payload) < header.ICMPv6MinimumSize || payload[0]&0x80 != 0 {
			return flow{}, false
		}
		return quotedFlow(payload[header.ICMPv6MinimumSize:])
	case uint8(header.ICMPv4ProtocolNumber):
		if !first || len(payload) < header.ICMPv4MinimumSize {
			return flow{}, false
		}
		switch header.ICMPv4Type(payload[0]) { // RFC 792, RFC 1122 §3.2.2
		case header.ICMPv4DstUnreachable, header.ICMPv4SrcQuench, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
			return quotedFlow(payload[header.ICMPv4MinimumSize:])
		}
	}
	return flow{}, false
}

// hop returns a copy of a packet as a router passes it on, with a hop less to
// go (RFC 8200 §3, RFC 791 §3.2), or nil if it has come too far. So packets do
// not go round for ever between nodes that each think the other has a client.
func hop(p []byte) []byte {
	p = slices.Clone(p)
	switch {
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6:
		h := header.IPv6(p)
		if h.HopLimit() <= 1 {
			return nil
		}
		h.SetHopLimit(h.HopLimit() - 1)
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4:
		h := header.IPv4(p)
		if h.TTL() <= 1 || len(p) < int(h.HeaderLength()) {
			return nil
		}
		h.SetTTL(h.TTL() - 1)
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	}
	return p
}

// InboundTuple names the TCP connection that a whole packet from the link
// belongs to; ok is false if it does not say.
func InboundTuple(p []byte) (t Tuple, ok bool) {
	src, dst, proto, payload, first, ok := parseIP(p)
	if !ok || proto != uint8(header.TCPProtocolNumber) {
		return Tuple{}, false
	}
	f, _ := tcpFlow(dst, src, payload, first, true)
	return f.tuple, f.ports
}

// outboundFlow is inboundFlow for what the netstack sends.
func outboundFlow(p []byte) (f flow, ok bool) {
	src, dst, proto, payload, first, ok := parseIP(p)
	if !ok || proto != uint8(header.TCPProtocolNumber) {
		return flow{}, false
	}
	return tcpFlow(src, dst, payload, first, false)
}

func quotedFlow(p []byte) (flow, bool) {
	src, dst, proto, payload, first, ok := parseIP(p)
	if !ok || proto != uint8(header.TCPProtocolNumber) {
		return flow{}, false
	}
	return tcpFlow(src, dst, payload, first, false)
}

// tcpFlow reads the ports, of which the source is the remote one inbound.
func tcpFlow(local, remote netip.Addr, tcp []byte, first, inbound bool) (flow, bool) {
	f := flow{tuple: Tuple{netip.AddrPortFrom(local, 0), netip.AddrPortFrom(remote, 0)}}
	if !first || len(tcp) < 4 {
		return f, true
	}
	lp, rp := binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])
	if inbound {
		lp, rp = rp, lp
	}
	f.tuple = Tuple{netip.AddrPortFrom(local, lp), netip.AddrPortFrom(remote, rp)}
	f.ports = true
	return f, true
}

// parseIP finds the upper-layer protocol of an IPv6 or IPv4 packet. first is
// false for a fragment other than the first, whose payload starts elsewhere.
func parseIP(p []byte) (src, dst netip.Addr, proto uint8, payload []byte, first, ok bool) {
	if len(p) == 0 {
		return
	}
	switch p[0] >> 4 {
	case 6:
		if len(p) < header.IPv6MinimumSize {
			return
		}
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		proto, payload, first, ok = skipExtensions(p[6], p[header.IPv6MinimumSize:])
		return
	case 4:
		n := int(p[0]&0xf) * 4
		if n < header.IPv4MinimumSize || len(p) < n {
			return
		}
		src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		offset := binary.BigEndian.Uint16(p[6:]) & 0x1fff
		return src, dst, p[9], p[n:], offset == 0, true
	}
	return
}

// skipExtensions walks the IPv6 extension headers (RFC 8200 §4).
func skipExtensions(next uint8, p []byte) (proto uint8, payload []byte, first, ok bool) {
	first = true
	for range maxExtensions {
		switch next {
		case 0, 43, 60, 135: // hop-by-hop, routing, destination options, mobility
			if len(p) < 8 || len(p) < 8+int(p[1])*8 {
				return 0, nil, false, false
			}
			next, p = p[0], p[8+int(p[1])*8:]
		case 44: // fragment
			if len(p) < 8 {
				return 0, nil, false, false
			}
			if binary.BigEndian.Uint16(p[2:])&^7 != 0 {
				return p[0], nil, false, true
			}
			next, p = p[0], p[8:]
		default:
			return next, p, first, true
		}
	}
	return 0, nil, false, false
}
