package watch

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Packet is a TCP segment in a capture. Addresses of IP headers that the
// connection does not know of are beside it.
type Packet struct {
	At       time.Time
	Src, Dst netip.AddrPort

	// CareOf is where a packet with a Home Address option comes from, or one
	// with a type 2 routing header goes to. Tunnel is the source of the
	// innermost tunnel. Else they are invalid.
	CareOf netip.Addr
	Tunnel netip.Addr

	Flags    uint8
	Seq, Ack uint32
	Payload  int // octets

	TSVal    uint32 // of the timestamps option (RFC 7323)
	HasTSVal bool
}

// Flags of a segment.
const (
	FIN = 1 << 0
	SYN = 1 << 1
	RST = 1 << 2
	ACK = 1 << 4
)

// Numbers of headers and options.
const (
	protoHopByHop = 0
	protoTCP      = 6
	protoIPv6     = 41
	protoRouting  = 43
	protoDest     = 60

	optPad1        = 0
	optHomeAddress = 201 // RFC 6275 section 6.3
	routingType2   = 2   // RFC 6275 section 6.4

	optEnd        = 0
	optNop        = 1
	optTimestamps = 8 // RFC 7323
)

const (
	ipv6Len = 40
	tcpLen  = 20
)

// Decode reads the beginning p of an IPv6 packet of length octets. It is not ok
// if there is no TCP segment in it.
func Decode(p []byte, length int) (pkt Packet, ok bool) {
	var src, dst netip.Addr
	next := uint8(protoIPv6)
	for range 16 { // more headers than there are
		size := 0
		switch next {
		case protoIPv6:
			if len(p) < ipv6Len || p[0]>>4 != 6 {
				return pkt, false
			}
			if n := int(binary.BigEndian.Uint16(p[4:])); n > 0 { // 0: a super-packet
				length = min(length, ipv6Len+n)
			}
			pkt.Tunnel, pkt.CareOf = src, netip.Addr{}
			src, dst = address(p[8:]), address(p[24:])
			next, size = p[6], ipv6Len
		case protoHopByHop, protoDest, protoRouting:
			if len(p) < 8 || len(p) < 8+8*int(p[1]) {
				return pkt, false
			}
			size = 8 + 8*int(p[1])
			switch {
			case next == protoDest:
				if home := homeAddress(p[2:size]); home.IsValid() {
					pkt.CareOf, src = src, home
				}
			case next == protoRouting && p[2] == routingType2 && size == 24:
				pkt.CareOf, dst = dst, address(p[8:])
			}
			next = p[0]
		case protoTCP:
			return pkt, pkt.segment(src, dst, p, length)
		default:
			return pkt, false
		}
		p, length = p[size:], length-size
	}
	return pkt, false
}

func address(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b[:16])) }

// homeAddress finds the option in a destination options header.
func homeAddress(options []byte) netip.Addr {
	for len(options) > 0 {
		if options[0] == optPad1 {
			options = options[1:]
			continue
		}
		if len(options) < 2 {
			break
		}
		size := 2 + int(options[1])
		if len(options) < size {
			break
		}
		body := options[2:size]
		if options[0] == optHomeAddress && len(body) == 16 {
			return address(body)
		}
		options = options[size:]
	}
	return netip.Addr{}
}

// segment reads a TCP segment of length octets, of which p is the beginning.
func (pkt *Packet) segment(src, dst netip.Addr, p []byte, length int) bool {
	if len(p) < tcpLen {
		return false
	}
	header := 4 * int(p[12]>>4)
	if header < tcpLen || header > len(p) || header > length {
		return false
	}
	pkt.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(p))
	pkt.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(p[2:]))
	pkt.Seq, pkt.Ack = binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint32(p[8:])
	pkt.Flags = p[13]
	pkt.Payload = length - header
	for o := p[tcpLen:header]; len(o) > 0; {
		switch {
		case o[0] == optEnd:
			return true
		case o[0] == optNop:
			o = o[1:]
			continue
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return true
		case o[0] == optTimestamps && o[1] == 10:
			pkt.TSVal, pkt.HasTSVal = binary.BigEndian.Uint32(o[2:]), true
		}
		o = o[o[1]:]
	}
	return true
}
