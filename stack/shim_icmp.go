package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// icmpSize is the length of an ICMPv6 error before the packet that it quotes:
// 0 type, 1 code, 2 checksum, 4 MTU or pointer (RFC 4443 §3).
const icmpSize = 8

// The ICMPv6 messages of home agent address discovery and mobile prefix
// discovery (RFC 6275 §6.5 to §6.8).
const (
	icmpHomeAgentRequest    = 144
	icmpPrefixAdvertisement = 147
)

func isDiscovery(icmpType uint8) bool {
	return icmpHomeAgentRequest <= icmpType && icmpType <= icmpPrefixAdvertisement
}

// classifyICMP is classify for the ICMPv6 message at p[at:].
func (s *shim) classifyICMP(p []byte, at int) upper {
	if len(p) < at+icmpSize {
		return upper{kind: broken}
	}
	m := p[at:]
	switch {
	case isDiscovery(m[0]):
		return upper{kind: signalling}
	case m[0]&0x80 != 0: // informational (RFC 4443 §2.1)
		return upper{kind: other, at: at}
	case m[0] == uint8(header.ICMPv6PacketTooBig) && binary.BigEndian.Uint32(m[4:]) < header.IPv6MinimumMTU:
		return upper{kind: broken} // RFC 8201 §4: discarded
	}
	u := s.quote(m[icmpSize:], true)
	// RFC 6275 §11.3.5: the client does not know the Home Address option. TCP
	// can do nothing about it.
	if pointer := int64(binary.BigEndian.Uint32(m[4:])); u.kind == quoting && u.cut == homeOptionSize &&
		m[0] == uint8(header.ICMPv6ParamProblem) && pointer < int64(u.cutAt+u.cut) &&
		(pointer >= int64(u.cutAt) || pointer == int64(u.at)) {
		u.kind = signalling
	}
	u.at = at
	u.cutAt += at + icmpSize
	return u
}

// quote finds out what a quoted packet, of which the end may be missing, was
// before it left the shim. Of an option, upper.at is where its header is
// announced.
func (s *shim) quote(q []byte, outermost bool) upper {
	if len(q) < ip6Size || q[0]>>4 != 6 {
		return upper{}
	}
	src := [16]byte(q[8:24])
	ours := src == s.home || src == s.careOf
	next, at := 6, ip6Size
	var option upper
walk:
	for range maxExtensions {
		if len(q) <= at {
			break
		}
		switch q[next] {
		case nextMobility:
			if ours {
				return upper{kind: signalling}
			}
			return upper{}
		case nextICMP:
			if ours && isDiscovery(q[at]) {
				return upper{kind: signalling}
			}
			break walk
		case nextIPv6:
			inner := q[at:]
			if !outermost || src != s.careOf || len(inner) < ip6Size {
				return upper{}
			}
			if u := s.quote(inner, false); u.kind == signalling {
				return u
			}
			if inner[0]>>4 != 6 || [16]byte(inner[8:24]) != s.home {
				return upper{} // a straggler
			}
			return upper{kind: quoting, cutAt: 0, cut: at}
		case nextDestOptions:
			if s.isHomeOption(q, at, src) {
				option = upper{kind: quoting, at: next, cutAt: at, cut: homeOptionSize}
			}
		case nextHopByHop, nextRouting:
		default:
			break walk
		}
		n := extensionSize(q, at)
		if n == 0 {
			break
		}
		next, at = at, at+n
	}
	return option
}

// isHomeOption tells whether the destination options header at q[at:] is the
// one that the shim inserts. A client may have exchanged its address and the
// source before it quoted the packet (RFC 6275 §9.3.1).
func (s *shim) isHomeOption(q []byte, at int, src [16]byte) bool {
	if len(q) < at+homeOptionSize || [homeOptionAddrAt - 1]byte(q[at+1:]) != [homeOptionAddrAt - 1]byte(s.homeOption[1:]) {
		return false
	}
	addr := [16]byte(q[at+homeOptionAddrAt:])
	return src == s.careOf && addr == s.home || src == s.home && addr == s.careOf
}

// unquote makes an ICMPv6 error one about the packet that the netstack sent, so
// that it finds the connection and learns what MTU is left to it. It returns
// nil if the error's checksum is wrong.
func (s *shim) unquote(p []byte, u upper) []byte {
	src := tcpip.AddrFrom16([16]byte(p[8:24]))
	sum := header.ICMPv6ChecksumParams{Header: header.ICMPv6(p[u.at:]), Src: src, Dst: tcpip.AddrFrom16([16]byte(p[24:40]))}
	if header.ICMPv6Checksum(sum) != sum.Header.Checksum() {
		return nil
	}
	m := p[u.at:]
	value := binary.BigEndian.Uint32(m[4:])
	quoted := m[icmpSize:]
	cutAt := u.cutAt - u.at - icmpSize // in quoted
	tunnelled := cutAt == 0
	switch {
	case m[0] == uint8(header.ICMPv6PacketTooBig):
		value -= uint32(u.cut) // RFC 2473 §7.1
	case tunnelled:
		// RFC 2473 §8.2: whatever is wrong in the tunnel, to the source of the
		// packet in it, its destination cannot be reached.
		m[0], m[1] = uint8(header.ICMPv6DstUnreachable), uint8(header.ICMPv6AddressUnreachable)
		value = 0
	case m[0] == uint8(header.ICMPv6ParamProblem) && value >= uint32(cutAt):
		value -= uint32(u.cut)
	}
	binary.BigEndian.PutUint32(m[4:], value)
	if !tunnelled {
		next := 6
		for at := ip6Size; at < cutAt; at += extensionSize(quoted, at) {
			next = at
		}
		quoted[next] = quoted[cutAt]
		copy(quoted[8:24], s.home[:])
		setPayloadLength(quoted, payloadLength(quoted)-u.cut)
	}

	copy(p[u.cut:], p[:u.cutAt])
	p = p[u.cut:]
	copy(p[24:40], s.home[:])
	setPayloadLength(p, len(p)-ip6Size)
	sum.Header, sum.Dst = header.ICMPv6(p[u.at:]), tcpip.AddrFrom16(s.home)
	sum.Header.SetChecksum(header.ICMPv6Checksum(sum))
	return p
}

// smallPathMTU is a Packet Too Big message with less than IPv6's minimum, as
// one is once the shim has taken the size of its headers off. The netstack
// would not believe it, and send segments of one octet for want of an MTU.
type smallPathMTU uint32

func (smallPathMTU) Origin() tcpip.SockErrOrigin     { return tcpip.SockExtErrorOriginICMP6 }
func (smallPathMTU) Type() uint8                     { return uint8(header.ICMPv6PacketTooBig) }
func (smallPathMTU) Code() uint8                     { return 0 }
func (m smallPathMTU) Info() uint32                  { return uint32(m) - ip6Size } // what an IPv6 packet carries
func (smallPathMTU) Kind() gstack.TransportErrorKind { return gstack.PacketTooBigTransportError }

// deliverSmallMTU takes a Packet Too Big message with less than IPv6's minimum
// MTU past netstack's IPv6 to TCP. It tells whether p is one, which netstack must
// not get then. Only the shim makes believable ones.
func (l *link) deliverSmallMTU(p []byte) bool {
	const at, quoted = ip6Size, ip6Size + icmpSize
	if len(p) < quoted || p[0]>>4 != 6 || p[6] != nextICMP || p[at] != uint8(header.ICMPv6PacketTooBig) {
		return false
	}
	mtu := binary.BigEndian.Uint32(p[at+4:])
	if mtu >= header.IPv6MinimumMTU {
		return false
	}
	q := p[quoted:]
	if l.shim == nil || mtu < header.IPv6MinimumMTU-shimHeadroom || len(q) < ip6Size+header.TCPMinimumSize ||
		q[0]>>4 != 6 || q[6] != nextTCP || [16]byte(q[8:24]) != l.shim.home {
		return true // RFC 8201 §4: discarded
	}
	dispatcher, ok := l.dispatcher.(gstack.TransportDispatcher)
	if !ok {
		return true
	}
	pkt := gstack.NewPacketBuffer(gstack.PacketBufferOptions{Payload: buffer.MakeWithData(q[ip6Size:])})
	defer pkt.DecRef()
	pkt.NetworkProtocolNumber = ipv6.ProtocolNumber
	dispatcher.DeliverTransportError(tcpip.AddrFrom16([16]byte(q[8:24])), tcpip.AddrFrom16([16]byte(q[24:40])),
		ipv6.ProtocolNumber, header.TCPProtocolNumber, smallPathMTU(mtu), pkt)
	return true
}
