package rawip

import (
	"encoding/binary"
	"math/bits"
)

// What is known of TCP here (RFC 9293 section 3.1).
const (
	tcpMinLen = 20
	tcpFlags  = 13 // offset
	flagFIN   = 0x01
	flagPSH   = 0x08
	flagACK   = 0x10
	flagCWR   = 0x80
)

// Protocols with a checksum (IANA protocol numbers).
const (
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// Lengths of an IPv6 header, and of what may follow (RFC 8200 section 3).
const (
	headerLen  = 40
	maxPayload = 65535
)

// segmenter cuts a TCP super-packet into packets of the wire.
type segmenter struct {
	headers []byte // all, TCP's included
	data    []byte
	inner   int    // where the last IPv6 header begins
	tcp     int    // where TCP's header begins
	size    int    // octets of data in a segment
	seed    uint64 // sum of the pseudo-header, but for the length
	at      int    // where the next segment begins in data
}

// next is the length of the next segment; 0: there is none.
func (s *segmenter) next() int {
	if s.at > 0 && s.at >= len(s.data) {
		return 0
	}
	return len(s.headers) + min(s.size, len(s.data)-s.at)
}

// append appends the next segment.
func (s *segmenter) append(b []byte) []byte {
	part := s.data[s.at:min(s.at+s.size, len(s.data))]
	n := len(b)
	b = append(append(b, s.headers...), part...)
	p := b[n:]
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-headerLen))
	if s.inner > 0 {
		binary.BigEndian.PutUint16(p[s.inner+4:], uint16(len(p)-s.inner-headerLen))
	}
	t := p[s.tcp:]
	binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(s.at))
	if s.at > 0 {
		t[tcpFlags] &^= flagCWR // RFC 3168: of the first alone
	}
	s.at += max(len(part), 1)
	if s.at < len(s.data) {
		t[tcpFlags] &^= flagFIN | flagPSH
	}
	t[16], t[17] = 0, 0
	binary.BigEndian.PutUint16(t[16:], ^fold(sum(s.seed+uint64(len(t)), t)))
	return b
}

// Cut is how a TCP super-packet is cut into packets of the wire, with checksums,
// whatever the one of the super-packet is.
type Cut struct {
	// TCP is where its header begins, behind an IPv6 header and any others.
	TCP int

	// Size is how many octets of data a segment has, at least 1.
	Size int

	// Src and Dst are the addresses that the checksum covers: the true source
	// and the final destination.
	Src, Dst [16]byte
}

// of is the segmenter for p; false: there is no TCP segment.
func (c Cut) of(p []byte) (s segmenter, ok bool) {
	if c.TCP < headerLen || c.Size < 1 || len(p) < c.TCP+tcpMinLen {
		return s, false
	}
	end := c.TCP + 4*int(p[c.TCP+12]>>4)
	if end < c.TCP+tcpMinLen || end > len(p) {
		return s, false
	}
	return segmenter{
		headers: p[:end], data: p[end:], tcp: c.TCP, size: c.Size,
		seed: sum(sum(protoTCP, c.Src[:]), c.Dst[:]),
	}, true
}

// Cutter cuts super-packets into memory of its own. The zero value is ready for
// use.
type Cutter struct {
	arena   []byte
	packets [][]byte
}

// Cut returns the packets of the wire that the super-packet p consists of; none
// if there is no TCP segment where c says. They are valid until the next call.
func (t *Cutter) Cut(p []byte, c Cut) [][]byte {
	t.arena, t.packets = t.arena[:0], t.packets[:0]
	cutter, _ := c.of(p)
	for cutter.size > 0 && cutter.next() > 0 {
		n := len(t.arena)
		t.arena = cutter.append(t.arena)
		t.packets = append(t.packets, t.arena[n:len(t.arena):len(t.arena)])
	}
	return t.packets
}

const (
	// longest is the length of the longest packet inside of a tunnel that is
	// taken for one packet of the wire: that of an Ethernet.
	longest = 1500

	// segment is how long the pieces of a longer one become, at most: with the
	// tunnel's header they fit an Ethernet, whatever they did before.
	segment = longest - headerLen
)

// A splitter undoes what receive offload has done to tunnel packets. The zero
// value is ready for use.
type splitter struct{ arena []byte }

// reset makes room again: the packets so far are not used any more.
func (s *splitter) reset() { s.arena = s.arena[:0] }

// appendSegments appends the tunnel packet b, outer header first, as packets of
// the wire, and reports whether it had been coalesced of several. Its checksum
// is completed in place. What is not TCP right behind two IPv6 headers is not cut.
func (s *splitter) appendSegments(to [][]byte, b []byte) (_ [][]byte, cut bool) {
	tcp, ok := tcpIn(b)
	if !ok || len(b)-headerLen <= longest {
		complete(b)
		return append(to, b), false
	}
	header := 4 * int(tcp[12]>>4)
	cutter := segmenter{
		headers: b[:2*headerLen+header], data: tcp[header:],
		inner: headerLen, tcp: 2 * headerLen,
		size: segment - headerLen - header, seed: pseudo(b[headerLen:2*headerLen], 0, protoTCP),
	}
	for need := cutter.next(); need > 0; need = cutter.next() {
		if cap(s.arena)-len(s.arena) < need {
			s.arena = make([]byte, 0, max(need, 2*maxCoalesced)) // what is in the old one stays valid
		}
		n := len(s.arena)
		s.arena = cutter.append(s.arena)
		to = append(to, s.arena[n:len(s.arena):len(s.arena)])
	}
	return to, true
}

// maxCoalesced is the length of the longest packet that comes coalesced.
const maxCoalesced = 1 << 16

// tcpIn is the TCP segment in the tunnel packet b, if there is one, whole.
func tcpIn(b []byte) (tcp []byte, ok bool) {
	if len(b) < 2*headerLen+tcpMinLen || b[headerLen]>>4 != 6 || b[headerLen+6] != protoTCP {
		return nil, false
	}
	tcp = b[2*headerLen:]
	if int(binary.BigEndian.Uint16(b[headerLen+4:])) != len(tcp) {
		return nil, false
	}
	header := 4 * int(tcp[12]>>4)
	return tcp, tcpMinLen <= header && header <= len(tcp)
}

// complete completes the checksum in the tunnel packet b if it is that of the
// pseudo-header alone, as coalescing leaves it, and a sender whose packets have met
// no wire. One in 65536 true checksums looks like that.
func complete(b []byte) {
	if len(b) < 2*headerLen || b[headerLen]>>4 != 6 {
		return
	}
	ip, upper := b[headerLen:2*headerLen], b[2*headerLen:]
	at := 0 // of the checksum
	switch ip[6] {
	case protoTCP:
		at = 16
	case protoUDP:
		at = 6
	case protoICMPv6:
		at = 2
	}
	if at == 0 || len(upper) < at+2 || int(binary.BigEndian.Uint16(ip[4:])) != len(upper) {
		return
	}
	seed := pseudo(ip, len(upper), ip[6])
	if binary.BigEndian.Uint16(upper[at:]) != fold(seed) || fold(sum(seed, upper)) == 0xffff {
		return
	}
	CompleteChecksum(upper, 0, at)
}

// pseudo is the sum of the pseudo-header (RFC 8200 section 8.1) of n octets of a
// protocol behind the IPv6 header ip.
func pseudo(ip []byte, n int, protocol byte) uint64 {
	return sum(uint64(n)+uint64(protocol), ip[8:40])
}

// sum adds the 16-bit words of b to acc, in ones' complement of 64 bits.
func sum(acc uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(last[:]), carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}

// fold makes 16 bits of a sum.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// CompleteChecksum completes the checksum of a packet that a device would have
// completed: that of all from at on, whose field, offset further on, has the sum
// of the pseudo-header. Offsets out of the packet change nothing.
func CompleteChecksum(p []byte, at, offset int) {
	if at < 0 || offset < 0 || at+offset+2 > len(p) {
		return
	}
	c := ^fold(sum(0, p[at:]))
	if c == 0 {
		c = 0xffff // what UDP takes for none (RFC 768); to others it is the same
	}
	binary.BigEndian.PutUint16(p[at+offset:], c)
}
