package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Protocol is a value of the Next Header field.
type Protocol uint8

// Protocols that matter here (IANA protocol numbers).
const (
	HopByHop    Protocol = 0
	TCP         Protocol = 6
	UDP         Protocol = 17
	IPv6        Protocol = 41
	Routing     Protocol = 43
	Fragment    Protocol = 44
	ESP         Protocol = 50
	AH          Protocol = 51
	ICMPv6      Protocol = 58
	NoNext      Protocol = 59
	DestOptions Protocol = 60
	Mobility    Protocol = 135
)

// Sizes in octets.
const (
	HeaderLen      = 40   // of the IPv6 header
	HomeAddressLen = 24   // of a destination options header with a Home Address option
	RoutingLen     = 24   // of a type 2 routing header
	TunnelLen      = 40   // what IPv6 in IPv6 adds
	MinMTU         = 1280 // of any IPv6 link (RFC 8200 section 5)

	maxPayload = 65535 // after the IPv6 header; there are no jumbograms here
)

// DefaultHopLimit is the hop limit of packets that are made here.
const DefaultHopLimit = 64

// Packet is an IPv6 packet. The zero value of a field that is an address means
// that the packet does not have it.
type Packet struct {
	TrafficClass uint8
	FlowLabel    uint32 // 20 bits
	HopLimit     uint8  // Append takes 0 for DefaultHopLimit

	// Src and Dst are the addresses of the IPv6 header, as on the wire.
	Src, Dst netip.Addr

	// Home is the address in the Home Address option (RFC 6275 section 6.3):
	// the sender is the mobile node with this home address.
	Home netip.Addr

	// Routing is the address in the type 2 routing header (RFC 6275 section
	// 6.4) with one segment left: the receiver is the mobile node with this
	// home address.
	Routing netip.Addr

	// Protocol is that of Payload: never an extension header that ParsePacket
	// understands.
	Protocol Protocol

	// Payload is what follows the extension headers. After ParsePacket it
	// points into the packet parsed.
	Payload []byte

	// Offset is where Payload begins in the packet parsed; Append ignores it.
	Offset int
}

// Source is who sent the packet, for upper layers and their checksums: Home if
// there is one, Src otherwise.
func (p *Packet) Source() netip.Addr {
	if p.Home.IsValid() {
		return p.Home
	}
	return p.Src
}

// Destination is whom the packet is for, for upper layers and their checksums:
// Routing if there is one, Dst otherwise.
func (p *Packet) Destination() netip.Addr {
	if p.Routing.IsValid() {
		return p.Routing
	}
	return p.Dst
}

// Append appends the packet: IPv6 header, type 2 routing header, destination
// options header with the Home Address option, payload, in this order
// (RFC 8200 section 4.1, RFC 6275 section 6.3).
//
// The addresses must be of IPv6, the flow label of 20 bits and what follows the
// IPv6 header of 65535 octets at most; otherwise nothing is appended. Payload
// must not overlap what b has room for.
func (p *Packet) Append(b []byte) ([]byte, error) {
	length := len(p.Payload)
	if p.Routing.IsValid() {
		length += RoutingLen
	}
	if p.Home.IsValid() {
		length += HomeAddressLen
	}
	switch {
	case !p.Src.Is6() || !p.Dst.Is6(),
		p.Home.IsValid() && !p.Home.Is6(),
		p.Routing.IsValid() && !p.Routing.Is6():
		return b, errNotIPv6
	case p.FlowLabel > 1<<20-1:
		return b, errFlowLabel
	case length > maxPayload:
		return b, errTooLong
	}
	second := p.Protocol // what follows the routing header, if there is one
	if p.Home.IsValid() {
		second = DestOptions
	}
	first := second
	if p.Routing.IsValid() {
		first = Routing
	}
	b = appendHeader(b, p.TrafficClass, p.FlowLabel, length, first, p.HopLimit, p.Src, p.Dst)
	if p.Routing.IsValid() {
		// RFC 6275 section 6.4: length 2, type 2, one segment left, reserved.
		b = append(b, byte(second), 2, 2, 1, 0, 0, 0, 0)
		b = appendAddr(b, p.Routing)
	}
	if p.Home.IsValid() {
		// RFC 6275 section 6.3: the option is at 8n+6.
		b = append(b, byte(p.Protocol), 2, optPadN, 2, 0, 0, optHomeAddress, 16)
		b = appendAddr(b, p.Home)
	}
	return append(b, p.Payload...), nil
}

// appendHeader appends an IPv6 header (RFC 8200 section 3).
func appendHeader(b []byte, class uint8, flow uint32, length int, next Protocol, hops uint8, src, dst netip.Addr) []byte {
	if hops == 0 {
		hops = DefaultHopLimit
	}
	b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(class)<<20|flow)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, byte(next), hops)
	b = appendAddr(b, src)
	return appendAddr(b, dst)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	a16 := a.As16()
	return append(b, a16[:]...)
}

var (
	errNotIPv6   = errors.New("wire: append packet: an address is missing or not of IPv6")
	errFlowLabel = errors.New("wire: append packet: flow label of more than 20 bits")
	errTooLong   = errors.New("wire: append packet: more than 65535 octets after the IPv6 header")
)

// Problem says why a packet is answered by an ICMPv6 Parameter Problem
// (RFC 4443 section 3.4).
type Problem struct {
	Code    uint8  // 0: erroneous header field, 1: unknown next header, 2: unknown option
	Pointer uint32 // the octet of the packet that is the cause
	Cause   string

	// EvenMulticast: answered even if the packet came to a multicast address
	// (RFC 8200 section 4.2).
	EvenMulticast bool
}

func (p *Problem) Error() string {
	return fmt.Sprintf("wire: parameter problem, code %d, at octet %d: %s", p.Code, p.Pointer, p.Cause)
}

// UnknownTypeError: a mobility header of a type that is not known. The answer
// is a Binding Error of status [UnknownMHType] (RFC 6275 section 9.2).
type UnknownTypeError struct{ Type Type }

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("wire: unknown mobility header type %d", e.Type)
}
