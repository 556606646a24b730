package filter

import (
	"encoding/binary"

	"github.com/distributed-servers/ds/mobility/wire"
)

// Role is the part that a daemon plays.
type Role uint8

// Roles.
const (
	Node Role = iota
	HomeAgent
	Correspondent
)

// Class says whose a queued packet is.
type Class uint8

// Classes of packets.
const (
	// Pass is not about mobility, or what it tells is not for the machine:
	// [Accept].
	Pass Class = iota
	// Take is for the machine of the role and nobody else: [Drop] it here. It
	// may be malformed; what is to be answered to that, the machine knows
	// (RFC 6275 section 9.2).
	Take
	// Copy is for the machine, and for whom it was sent to as well: [Accept].
	Copy
	// Discard is for nobody: [Drop].
	Discard
)

func (c Class) String() string {
	return [...]string{"pass", "take", "copy", "discard"}[c&3]
}

// ICMPv6 types that a home agent takes (RFC 6275 sections 6.5, 6.7).
const (
	icmpLastError          = 4 // of those that are known
	icmpDiscoveryRequest   = 144
	icmpPrefixSolicitation = 146
)

// Classify says whose a packet is that the rules of a role have queued.
func Classify(role Role, b []byte) Class {
	s, ok := look(b)
	if !ok {
		return Pass // the kernel judges what is no mobility message
	}
	switch {
	case s.proto == wire.Mobility:
		// Mobility messages fit the smallest MTU, and a part of one means nothing
		// to a machine; what it does mean is for no application.
		if s.part {
			return Discard
		}
		return Take
	case role == Correspondent && s.home:
		return Take // of a fragment too: the option is in each
	case s.proto == wire.ICMPv6 && !s.part && s.upper < len(b):
		return classifyICMP(role, b[s.upper:])
	}
	return Pass
}

// classifyICMP says whose the ICMPv6 message m is.
func classifyICMP(role Role, m []byte) Class {
	switch kind := m[0]; {
	case role == HomeAgent && (kind == icmpDiscoveryRequest || kind == icmpPrefixSolicitation):
		return Take
	case kind < 1 || kind > icmpLastError || len(m) < 8:
		return Pass
	}
	q, ok := look(m[8:])
	if !ok {
		return Pass
	}
	switch role {
	case Node:
		switch {
		case q.proto == wire.Mobility:
			return Take
		case q.proto == wire.IPv6:
			// About a tunnel: the daemon's own, or the application's.
			return Copy
		case q.home && wire.ErrorKind(m[0]) == wire.ParameterProblem:
			// The client does not take Home Address options any more. What that
			// means for the connection, TCP has to know too.
			return Copy
		}
	case HomeAgent:
		if q.proto == wire.Mobility || q.proto == wire.IPv6 {
			return Take
		}
	case Correspondent:
		if q.routed {
			return Take // the upper layers do not know what it is about
		}
	}
	return Pass
}

// sight is what a look at a packet's headers tells.
type sight struct {
	proto  wire.Protocol // of the upper layer
	upper  int           // where that begins
	part   bool          // a fragment
	home   bool          // there is a Home Address option
	routed bool          // there is a type 2 routing header
}

// look follows the extension headers of a packet, which need not be whole or
// right, as the kernel does when it matches a rule: the upper layer behind a
// fragment header is the one that it names. ok is false where that leads out of
// the packet.
func look(b []byte) (s sight, ok bool) {
	if len(b) < wire.HeaderLen || b[0]>>4 != 6 {
		return s, false
	}
	s.proto, s.upper = wire.Protocol(b[6]), wire.HeaderLen
	for {
		var size int
		switch s.proto {
		case wire.HopByHop, wire.DestOptions, wire.Routing, wire.Fragment, wire.AH:
			if len(b)-s.upper < 8 {
				return s, false
			}
			size = 8 + 8*int(b[s.upper+1])
		default:
			return s, true
		}
		switch s.proto {
		case wire.Fragment:
			// Offset and M flag; both 0: the packet is whole.
			if at := binary.BigEndian.Uint16(b[s.upper+2:]); at&^6 != 0 {
				s.part = true
				if at&^7 != 0 { // not the first: what follows is no header
					s.proto, s.upper = wire.Protocol(b[s.upper]), s.upper+8
					return s, true
				}
			}
			size = 8
		case wire.AH:
			size = 8 + 4*int(b[s.upper+1]) // RFC 4302 section 2.2
		case wire.Routing:
			s.routed = s.routed || b[s.upper+2] == 2
		case wire.DestOptions:
			s.home = s.home || hasHome(b[s.upper:min(len(b), s.upper+size)])
		}
		s.proto, s.upper = wire.Protocol(b[s.upper]), s.upper+size
		if s.upper > len(b) {
			return s, false
		}
	}
}

// hasHome reports whether there is a Home Address option (RFC 6275 section 6.3),
// right or not, in a destination options header.
func hasHome(h []byte) bool {
	const pad1, home = 0, 0xc9
	for i := 2; i < len(h); {
		switch {
		case h[i] == pad1:
			i++
			continue
		case h[i] == home:
			return true
		case i+1 == len(h):
			return false
		}
		i += 2 + int(h[i+1])
	}
	return false
}
