package correspondent

import (
	"encoding/binary"

	"github.com/distributed-servers/ds/mobility/wire"
)

// homeAddressOption is the type of the Home Address option, and homeAddressLen
// its length with type and length (RFC 6275 section 6.3).
const (
	homeAddressOption = 0xc9
	homeAddressLen    = 2 + 16
)

// shape says where things are in an IPv6 packet. It is for finding out
// quickly whether a packet is our concern, and for taking out and putting in
// a header without touching the others; whether the packet is as it should be is
// for package wire to say.
type shape struct {
	proto wire.Protocol // what follows the extension headers
	upper int           // where that is
	total int           // length of the packet, or of what there is of it

	options int // destination options header with a Home Address option; 0: none
	link    int // Next Header field that leads to options
	option  int // that option

	routing int // first routing header; 0: none
	insert  int // where a type 2 routing header goes
	before  int // Next Header field that will lead to it
}

// shapeOf follows the extension headers of b. ok is false if that leads out of
// it. b may be shorter than it says, as in an ICMPv6 error.
func shapeOf(b []byte) (s shape, ok bool) {
	if len(b) < wire.HeaderLen || b[0]>>4 != 6 {
		return s, false
	}
	s.total = min(len(b), wire.HeaderLen+int(binary.BigEndian.Uint16(b[4:])))
	b = b[:s.total]
	s.insert, s.before = wire.HeaderLen, 6

	link, at := 6, wire.HeaderLen
	for {
		s.proto, s.upper = wire.Protocol(b[link]), at
		switch s.proto {
		case wire.HopByHop, wire.DestOptions, wire.Routing, wire.Fragment:
		default:
			return s, true
		}
		if at+8 > len(b) {
			return s, false
		}
		size := 8 * (1 + int(b[at+1]))
		if s.proto == wire.Fragment {
			if binary.BigEndian.Uint16(b[at+2:])&^0b110 != 0 {
				return s, true // not atomic: the rest waits for reassembly
			}
			size = 8
		}
		if at+size > len(b) {
			return s, false
		}
		switch {
		case s.proto == wire.HopByHop && at == wire.HeaderLen:
			s.insert, s.before = at+size, at
		case s.proto == wire.Routing && s.routing == 0:
			s.routing = at
		case s.proto == wire.DestOptions && s.options == 0:
			if o := findOption(b[at:at+size], homeAddressOption); o != 0 {
				s.options, s.link, s.option = at, link, at+o
			}
		}
		link, at = at, at+size
	}
}

// plainHome reports whether the packet b is laid out as nearly all with a Home
// Address option are, so there is nothing else in it to be checked: IPv6
// header, destination options header with that option alone, upper layer.
func (s *shape) plainHome(b []byte) bool {
	return s.options == wire.HeaderLen && s.upper == wire.HeaderLen+wire.HomeAddressLen && s.option == s.upper-homeAddressLen &&
		b[s.options+2] == 1 && b[s.options+3] == 2 && b[s.option+1] == 16 // PadN of four octets, the option
}

// findOption is where in the options header h the first option of a type
// is; 0: nowhere.
func findOption(h []byte, kind byte) int {
	for i := 2; i < len(h); {
		if h[i] == 0 { // Pad1
			i++
			continue
		}
		if i+2 > len(h) || i+2+int(h[i+1]) > len(h) {
			return 0
		}
		if h[i] == kind {
			return i
		}
		i += 2 + int(h[i+1])
	}
	return 0
}

// onlyPadding reports whether the options header h has, but for the 18 octets
// at o, only padding.
func onlyPadding(h []byte, o int) bool {
	for i := 2; i < len(h); {
		switch {
		case i == o:
			i += homeAddressLen
		case h[i] == 0:
			i++
		case h[i] == 1 && i+2 <= len(h):
			i += 2 + int(h[i+1])
		default:
			return false
		}
	}
	return true
}

// appendWithoutHome appends the packet p, of shape s with a Home Address
// option, as its upper layers shall see it: from the home address, without the
// option (RFC 6275 section 9.3.1). A header with nothing else in it goes
// too. From another, 16 of the option's 18 octets are taken, and the other two
// become padding, so the options behind it keep their alignment.
func appendWithoutHome(b, p []byte, s *shape) []byte {
	start := len(b)
	header := p[s.options : s.options+8*(1+int(p[s.options+1]))]
	gone := len(header)
	if onlyPadding(header, s.option-s.options) {
		b = append(b, p[:s.options]...)
		b = append(b, p[s.options+gone:s.total]...)
		b[start+s.link] = header[0]
	} else {
		gone = homeAddressLen - 2
		b = append(b, p[:s.option]...)
		b = append(b, 1, 0) // PadN
		b = append(b, p[s.option+homeAddressLen:s.total]...)
		b[start+s.options+1] -= 2
	}
	q := b[start:]
	copy(q[8:24], p[s.option+2:]) // source
	binary.BigEndian.PutUint16(q[4:], uint16(s.total-wire.HeaderLen-gone))
	return b
}

// appendRouted appends the packet p, of shape s, with careOf as its
// destination and what was its destination in a type 2 routing header
// (RFC 6275 sections 6.4.1, 9.3.2). That comes after hop-by-hop options, which
// routers on the way read, and before all that is for the destination alone
// (RFC 8200 section 4.1).
func appendRouted(b, p []byte, s *shape, careOf [16]byte) []byte {
	start := len(b)
	b = append(b, p[:s.insert]...)
	b = append(b, p[s.before], 2, 2, 1, 0, 0, 0, 0) // next header, length, type, segments left
	b = append(b, p[24:40]...)
	b = append(b, p[s.insert:s.total]...)
	q := b[start:]
	q[s.before] = byte(wire.Routing)
	copy(q[24:40], careOf[:])
	binary.BigEndian.PutUint16(q[4:], uint16(s.total-wire.HeaderLen+Overhead))
	return b
}

// routedHome is the home address in the type 2 routing header of a packet that
// Transmit has made, or what there is of it; ok is false for another packet.
func routedHome(p []byte, s *shape) (home [16]byte, ok bool) {
	if s.routing == 0 || s.routing != s.insert {
		return home, false
	}
	h := p[s.routing:]
	if h[1] != 2 || h[2] != 2 || h[3] != 1 {
		return home, false
	}
	return [16]byte(h[8:]), true
}

// appendUnrouted undoes appendRouted.
func appendUnrouted(b, p []byte, s *shape) []byte {
	start := len(b)
	b = append(b, p[:s.routing]...)
	b = append(b, p[s.routing+Overhead:s.total]...)
	q := b[start:]
	q[s.before] = p[s.routing]
	copy(q[24:40], p[s.routing+8:])
	length := binary.BigEndian.Uint16(p[4:]) // of the whole packet, not of what is quoted
	binary.BigEndian.PutUint16(q[4:], length-Overhead)
	return b
}
