package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Next header values (RFC 8200 §4, RFC 2473 §5, RFC 6275 §6.1).
const (
	nextHopByHop    = 0
	nextTCP         = uint8(header.TCPProtocolNumber)
	nextIPv6        = 41
	nextRouting     = 43
	nextFragment    = 44
	nextICMP        = uint8(header.ICMPv6ProtocolNumber)
	nextDestOptions = 60
	nextMobility    = 135
)

// ip6Size is the length of an IPv6 header. Offsets in it are written as numbers:
// 4 payload length, 6 next header, 7 hop limit, 8 source, 24 destination.
const ip6Size = header.IPv6MinimumSize

func payloadLength(p []byte) int       { return int(binary.BigEndian.Uint16(p[4:])) }
func setPayloadLength(p []byte, n int) { binary.BigEndian.PutUint16(p[4:], uint16(n)) }

// A type 2 routing header (RFC 6275 §6.4.1) and what it must say: two units of
// eight octets after the first, type 2, one segment left.
const (
	routingSize   = 24
	routingLen    = 2
	routingType   = 2
	routingAddrAt = 8
)

// A destination options header with nothing but a Home Address option, which
// is at 8n+6 (RFC 6275 §6.3).
const (
	homeOptionSize   = 24
	homeOptionAddrAt = 8
)

func homeOption(home [16]byte) (h [homeOptionSize]byte) {
	copy(h[:], []byte{
		0, 2, // next header; two units of eight octets after the first
		1, 2, 0, 0, // PadN (RFC 8200 §4.2)
		201, 16, // Home Address
	})
	copy(h[homeOptionAddrAt:], home[:])
	return h
}

// tunnelTo makes a tunnel's header. Its hop limit is the default of a host
// (RFC 2473 §6.3).
func tunnelTo(from, to [16]byte) (t tunnel) {
	t[0], t[6], t[7] = 6<<4, nextIPv6, 64
	copy(t[8:], from[:])
	copy(t[24:], to[:])
	return t
}

func (t *tunnel) dst() [16]byte { return [16]byte(t[24:]) }

// wrap puts the tunnel's header before the packet that begins at b[at:], of
// which rest octets are elsewhere. It returns nil for what cannot be in a tunnel,
// or is in this one already (RFC 2473 §4.1.2).
func (t *tunnel) wrap(b []byte, at, rest int) []byte {
	p := b[at:]
	if len(p) < ip6Size || p[0]>>4 != 6 || len(p)+rest > 0xffff || [32]byte(p[8:40]) == [32]byte(t[8:40]) {
		return nil
	}
	q := b[at-ip6Size:]
	copy(q, t[:])
	// The traffic class, with what congestion notification says, is that of
	// the packet (RFC 2473 §6.4, RFC 6040 §4.1); so is the flow label, which
	// keeps a flow on one path (RFC 6438 §3).
	copy(q, p[:4])
	setPayloadLength(q, len(p)+rest)
	return q
}

// way is how the shim sends a packet: the zero way as it is, or by a binding, or
// through a tunnel.
type way struct {
	binding bool
	via     *tunnel
}

// way looks at a packet of the netstack, of which it needs the first header.
func (s *shim) way(p []byte) (w way) {
	if len(p) < ip6Size || p[0]>>4 != 6 || [16]byte(p[8:24]) != s.home {
		return way{}
	}
	if s.bindings.state(p[24:40]) == bound {
		return way{binding: true}
	}
	// What does not leave the link has no way through the home agent.
	if p[24] == 0xfe && p[25]&0xc0 == 0x80 || p[24] == 0xff && p[25]&0xf <= 2 {
		return way{}
	}
	if p[6] == nextTCP && s.kernel.Load() {
		return way{}
	}
	return way{via: s.via.Load()}
}

// translate makes of the packet at b[shimHeadroom:], of which rest octets behind
// all headers are elsewhere, the beginning of what goes to the device; the octets
// before it are free. It returns nil if it drops it.
func (s *shim) translate(w way, b []byte, rest int) []byte {
	switch {
	case w.binding:
		return s.addHomeOption(b, rest)
	case w.via != nil:
		return w.via.wrap(b, shimHeadroom, rest)
	}
	return b[shimHeadroom:]
}

// addHomeOption makes the packet at b[shimHeadroom:] one from the care-of
// address. Its checksum remains right, since to the upper layers it is from the
// home address (RFC 6275 §11.3.1).
func (s *shim) addHomeOption(b []byte, rest int) []byte {
	p := b[shimHeadroom:]
	if len(p)+rest+homeOptionSize-ip6Size > 0xffff {
		return nil
	}
	// RFC 6275 §6.3: behind a routing header, before a fragment header; RFC
	// 8200 §4.1: behind hop-by-hop options.
	next, at := 6, ip6Size
	for p[next] == nextHopByHop || p[next] == nextRouting {
		if len(p) < at+8 || len(p) < at+8+int(p[at+1])*8 {
			return nil
		}
		next, at = at, at+8+int(p[at+1])*8
	}
	q := b[shimHeadroom-homeOptionSize:]
	copy(q, p[:at])
	copy(q[at:], s.homeOption[:])
	q[at] = q[next]
	q[next] = nextDestOptions
	copy(q[8:24], s.careOf[:])
	setPayloadLength(q, len(q)+rest-ip6Size)
	return q
}

// note is what is to be known of a packet that the shim has looked at.
type note uint8

const (
	plain  note = iota
	signal      // it is for Mobile.Signalling, unchanged, and for nobody else
	late        // it was in a tunnel from a peer
	direct      // it came by a binding
	early       // it came by one that the shim has not been told of
)

// inbound makes of a packet from the device what the filter and the netstack
// get, in its place. It returns nil if that is nothing.
func (s *shim) inbound(p []byte) (q []byte, is note) {
	if len(p) < ip6Size || p[0]>>4 != 6 {
		return p, plain
	}
	switch [16]byte(p[24:40]) {
	case s.careOf:
		return s.toCareOf(p)
	case s.home:
		return s.toHome(p)
	}
	return p, plain
}

func (s *shim) malformed() (q []byte, is note) {
	s.dropped.malformed.Add(1)
	return nil, plain
}

func (s *shim) unwanted() (q []byte, is note) {
	s.dropped.unwanted.Add(1)
	return nil, plain
}

// trimmed cuts off what is behind the end of a packet; nil if the end is
// missing, or if it has no payload or a jumbo's (RFC 2675).
func trimmed(p []byte) []byte {
	n := ip6Size + payloadLength(p)
	if n > len(p) || n == ip6Size {
		return nil
	}
	return p[:n]
}

// toHome handles a packet that has come to the home address without our help:
// the kernel or a router has taken it out of its tunnel.
func (s *shim) toHome(p []byte) (q []byte, is note) {
	if p = trimmed(p); p == nil {
		return s.malformed()
	}
	switch u := s.classify(p, 6, ip6Size); u.kind {
	case signalling:
		return nil, signal
	case broken:
		return s.malformed()
	default:
		return s.finish(p, u)
	}
}

// toCareOf handles a packet to the care-of address. It passes the extension
// headers by that are for this node as such, until it is clear what the packet
// is.
func (s *shim) toCareOf(p []byte) (q []byte, is note) {
	if p = trimmed(p); p == nil {
		return s.malformed()
	}
	next, at := 6, ip6Size
	for range maxExtensions {
		switch p[next] {
		case nextRouting:
			// Without segments left it is ignored (RFC 8200 §4.4).
			if len(p) >= at+8 && p[at+3] != 0 {
				return s.routed(p, next, at)
			}
		case nextIPv6:
			return s.tunnelled(p, at)
		case nextMobility:
			return nil, signal
		case nextICMP:
			switch u := s.classify(p, next, at); u.kind {
			case signalling:
				return nil, signal
			case broken:
				return s.malformed()
			case quoting:
				return s.finish(p, u)
			}
			return s.unwanted()
		case nextHopByHop, nextDestOptions:
			if !skippable(p, at) {
				return s.malformed()
			}
		default:
			return s.unwanted()
		}
		n := extensionSize(p, at)
		if n == 0 {
			break
		}
		next, at = at, at+n
	}
	return s.malformed()
}

// extensionSize is that of the extension header at p[at:], 0 if it is not all
// there or nothing is behind it.
func extensionSize(p []byte, at int) int {
	if len(p) < at+8 {
		return 0
	}
	if n := 8 + int(p[at+1])*8; len(p) > at+n {
		return n
	}
	return 0
}

// skippable tells whether all options of the header at p[at:] may be skipped by
// a node that knows none (RFC 8200 §4.2). A tunnel encapsulation limit is one
// of them: it concerns only whoever puts the packet into a further tunnel
// (RFC 2473 §4.1.1).
func skippable(p []byte, at int) bool {
	n := extensionSize(p, at)
	if n == 0 {
		return false
	}
	for o := p[at+2 : at+n]; len(o) > 0; {
		switch {
		case o[0] == 0: // Pad1
			o = o[1:]
		case len(o) < 2 || len(o) < 2+int(o[1]) || o[0]>>6 != 0:
			return false
		default:
			o = o[2+int(o[1]):]
		}
	}
	return true
}

// routed takes off the type 2 routing header at p[at:] (RFC 6275 §6.4, §11.3.3).
func (s *shim) routed(p []byte, next, at int) (q []byte, is note) {
	if len(p) <= at+routingSize || p[at+1] != routingLen || p[at+2] != routingType || p[at+3] != 1 ||
		[16]byte(p[at+routingAddrAt:at+routingSize]) != s.home {
		return s.malformed()
	}
	u := s.classify(p, at, at+routingSize)
	switch u.kind {
	case signalling: // from the home agent too, with which there is no binding here
		return nil, signal
	case broken:
		return s.malformed()
	}
	told := s.bindings.state(p[8:24]) != unbound
	p[next] = p[at]
	copy(p[routingSize:], p[:at]) // the headers before it move up
	q = p[routingSize:]
	copy(q[24:40], s.home[:])
	setPayloadLength(q, len(q)-ip6Size)
	u.at -= routingSize
	u.cutAt -= routingSize
	if q, is = s.finish(q, u); q == nil {
		return nil, is
	}
	if !told {
		return q, early
	}
	return q, direct
}

// tunnelled takes the packet at p[at:] out of its tunnel.
func (s *shim) tunnelled(p []byte, at int) (q []byte, is note) {
	may, peer := s.mayTunnel([16]byte(p[8:24]))
	if !may {
		s.dropped.stranger.Add(1)
		return nil, plain
	}
	q = p[at:]
	if len(q) < ip6Size || q[0]>>4 != 6 || [16]byte(q[24:40]) != s.home {
		return s.malformed()
	}
	// Nobody but us sends from these.
	if src := [16]byte(q[8:24]); src == s.home || src == s.careOf || src[0] == 0xff {
		return s.malformed()
	}
	if q = trimmed(q); q == nil {
		return s.malformed()
	}
	u := s.classify(q, 6, ip6Size)
	switch u.kind {
	case signalling:
		return nil, signal
	case broken:
		return s.malformed()
	}
	// RFC 6040 §4.2: congestion that the tunnel met must not be hidden.
	const notECT, ect1, ce = 0, 1, 3
	switch outer, inner := p[1]>>4&3, q[1]>>4&3; {
	case outer == ce && inner == notECT:
		return s.malformed()
	case inner != notECT && inner != ce && (outer == ce || outer == ect1):
		q[1] = q[1]&^0x30 | outer<<4
	}
	if q, is = s.finish(q, u); q != nil && peer {
		is = late
	}
	return q, is
}

// upper is what the shim needs to know of what a packet carries.
type upper struct {
	kind kind
	at   int // where the upper-layer header is

	// Of a quoting one: which octets we had put into the quoted packet.
	cutAt, cut int
}

type kind uint8

const (
	other      kind = iota
	tcpSegment      // or the first fragment of one
	quoting         // an ICMPv6 error that quotes a packet as it left the shim
	signalling      // for Mobile.Signalling
	broken
)

// classify finds out what a packet carries whose next header, as p[next] says,
// is at p[at:].
func (s *shim) classify(p []byte, next, at int) upper {
	for range maxExtensions {
		switch p[next] {
		case nextTCP:
			return upper{kind: tcpSegment, at: at}
		case nextMobility:
			return upper{kind: signalling}
		case nextICMP:
			return s.classifyICMP(p, at)
		case nextFragment:
			// RFC 6275 §6.1: a mobility header is the last one, and small. The
			// netstack must not answer for it.
			if len(p) < at+8 || p[at] == nextMobility {
				return upper{kind: broken}
			}
			return upper{kind: other}
		case nextHopByHop, nextRouting, nextDestOptions:
			n := extensionSize(p, at)
			if n == 0 {
				return upper{kind: broken}
			}
			next, at = at, at+n
		default:
			return upper{kind: other}
		}
	}
	return upper{kind: broken}
}

// finish makes of a packet for the home address, or of an ICMPv6 error to
// either, what the netstack can understand.
func (s *shim) finish(p []byte, u upper) ([]byte, note) {
	switch u.kind {
	case tcpSegment:
		if len(p) >= u.at+header.TCPMinimumSize && p[u.at+header.TCPFlagsOffset]&uint8(header.TCPFlagSyn) != 0 {
			clampMSS(p[u.at:])
		}
	case quoting:
		if p = s.unquote(p, u); p == nil {
			return s.malformed()
		}
	}
	return p, plain
}

// leastMSS is a segment size that fits any link even with the Home Address
// option (RFC 8200 §5).
const leastMSS = header.IPv6MinimumMTU - ip6Size - header.TCPMinimumSize - homeOptionSize

// clampMSS lowers the MSS that a client announces by the size of the Home
// Address option, which it does not account for but our segments will have:
// the sender is to subtract what it puts before the segment (RFC 6691 §2).
func clampMSS(t []byte) {
	end := min(int(t[header.TCPDataOffset]>>4)*4, len(t))
	for i := header.TCPMinimumSize; i < end; {
		switch t[i] {
		case header.TCPOptionEOL:
			return
		case header.TCPOptionNOP:
			i++
			continue
		}
		if i+2 > end || t[i+1] < 2 || i+int(t[i+1]) > end {
			return
		}
		if t[i] == header.TCPOptionMSS && t[i+1] == header.TCPOptionMSSLength {
			old := binary.BigEndian.Uint16(t[i+2:])
			if old <= leastMSS {
				return
			}
			now := max(old-homeOptionSize, leastMSS)
			binary.BigEndian.PutUint16(t[i+2:], now)
			if i%2 == 1 { // the value lies across two words of the checksum
				old, now = old<<8|old>>8, now<<8|now>>8
			}
			// RFC 1624 §3.
			sum := t[header.TCPChecksumOffset:]
			x := uint32(^binary.BigEndian.Uint16(sum)) + uint32(^old) + uint32(now)
			x = x&0xffff + x>>16
			x = x&0xffff + x>>16
			binary.BigEndian.PutUint16(sum, ^uint16(x))
			return
		}
		i += int(t[i+1])
	}
}
