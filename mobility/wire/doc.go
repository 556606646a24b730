// Package wire reads and writes the packets of Mobile IPv6: the mobility header
// and its messages and options, the Home Address option, the type 2 routing
// header and the ICMPv6 messages of RFC 6275, the authentication option of
// RFC 4285, and IPv6 in IPv6 of RFC 2473.
//
// It imports nothing of this module, keeps no state and reads no clock.
//
// # Theory of operation
//
// A [Packet] is an IPv6 packet with its extension headers understood and its
// payload still octets. [ParsePacket] takes it apart, [Packet.Append] puts it
// together. What is in the payload is for others: [ParseMobility] for protocol
// 135, [ParseICMP] for 58, [Packet.Inner] for 41.
//
// The checksum of a mobility header covers the addresses of the packet's final
// destination and of its true source. That is the home address where there is
// a Home Address option or a type 2 routing header (RFC 6275 sections 6.1.1,
// 11.3.1): [Packet.Source] and [Packet.Destination] say which.
//
// An error that is a [*Problem] asks for an ICMPv6 Parameter Problem, one that
// is an [*UnknownTypeError] for a Binding Error. Any other means that the
// packet is dropped in silence.
//
// Nothing here keeps the octets that it is given, except that results of
// parsing point into them where their documentation says so. Appending and
// parsing the messages of the fast path (HoTI, CoTI, HoT, CoT, BU, BA)
// allocates nothing but what append needs.
package wire
