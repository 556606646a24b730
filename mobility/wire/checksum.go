package wire

import (
	"encoding/binary"
	"net/netip"
)

// checksum is the Internet checksum of b behind a pseudo-header (RFC 8200
// section 8.1): 0 if b holds a right one, what belongs into b's checksum field
// if that is 0.
func checksum(b []byte, src, dst netip.Addr, protocol Protocol) uint16 {
	s, d := src.As16(), dst.As16()
	total := sum(uint64(len(b))+uint64(protocol), s[:])
	total = sum(total, d[:])
	total = sum(total, b)
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

// sum adds the octets in 32-bit words, which fold to 16 bits in the end; b is
// too short for 64 bits to overflow.
func sum(total uint64, b []byte) uint64 {
	for len(b) >= 8 {
		w := binary.BigEndian.Uint64(b)
		total += w>>32 + w&0xffffffff
		b = b[8:]
	}
	for len(b) >= 2 {
		total += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		total += uint64(b[0]) << 8
	}
	return total
}
