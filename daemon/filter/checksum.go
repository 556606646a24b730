package filter

import (
	"encoding/binary"
	"math/bits"

	"github.com/distributed-servers/ds/mobility/wire"
)

// CompleteChecksum completes the checksum of the upper layer of a packet of
// which [Packet.Partial] is true, in place. It has to be done once. It reports
// whether there is a checksum that it knows, TCP's, UDP's or ICMPv6's.
//
// The field holds the sum over the pseudo-header; it and all that follows is
// added up. So it does not matter which addresses the packet has by now.
func CompleteChecksum(b []byte) bool {
	s, ok := look(b)
	if !ok || s.part {
		return false
	}
	var field int
	switch s.proto {
	case wire.TCP:
		field = 16
	case wire.UDP:
		field = 6
	case wire.ICMPv6:
		field = 2
	default:
		return false
	}
	end := min(len(b), wire.HeaderLen+int(binary.BigEndian.Uint16(b[4:])))
	if s.upper+field+2 > end {
		return false
	}
	sum := ^fold(b[s.upper:end])
	if sum == 0 && s.proto == wire.UDP {
		sum = 0xffff // 0 is for no checksum (RFC 768)
	}
	binary.BigEndian.PutUint16(b[s.upper+field:], sum)
	return true
}

// fold is the one's complement sum of b in 16 bits (RFC 1071).
func fold(b []byte) uint16 {
	var sum, carry uint64
	for ; len(b) >= 32; b = b[32:] {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b[24:]), carry)
	}
	for ; len(b) >= 8; b = b[8:] {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(rest[:]), carry)
	}
	sum, carry = bits.Add64(sum, 0, carry)
	sum += carry
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}
