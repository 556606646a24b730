package forward

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// expression is one of a rule. A rule is done from left to right, until one does
// not hold.
type expression struct {
	name       string
	attributes func(*netlink.AttributeEncoder)
}

// Registers have 16 octets; the first two are neighbors, so that together they
// are the key of a pair.
const (
	reg1 = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
)

// field is a part of an IPv6 packet that is no longer than a register: of its own
// header, or of the one inside of a tunnel's. Offsets are those of RFC 8200
// section 3.
type field struct{ at, size uint32 }

const inside = 40

var (
	trafficClass   = field{1, 1} // the four bits of it that congestion is told with
	nextHeader     = field{6, 1}
	hopLimit       = field{7, 1}
	source         = field{8, 16}
	destination    = field{24, 16}
	version        = field{inside, 1} // and four bits of the traffic class
	innerNext      = field{inside + 6, 1}
	innerHop       = field{inside + 7, 1}
	innerSource    = field{inside + 8, 16}
	innerDest      = field{inside + 24, 16}
	innerSrcFirst  = field{inside + 8, 1}
	innerDestFirst = field{inside + 24, 1}
)

// load loads a field into a register.
func load(f field, to uint32) expression {
	return expression{"payload", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_PAYLOAD_DREG, to)
		e.Uint32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
		e.Uint32(unix.NFTA_PAYLOAD_OFFSET, f.at)
		e.Uint32(unix.NFTA_PAYLOAD_LEN, f.size)
	}}
}

// store writes a register to a field. No checksum covers those of IPv6 that are
// written here.
func store(from uint32, f field) expression {
	return expression{"payload", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_PAYLOAD_SREG, from)
		e.Uint32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
		e.Uint32(unix.NFTA_PAYLOAD_OFFSET, f.at)
		e.Uint32(unix.NFTA_PAYLOAD_LEN, f.size)
		e.Uint32(unix.NFTA_PAYLOAD_CSUM_TYPE, unix.NFT_PAYLOAD_CSUM_NONE)
	}}
}

func compare(op, reg uint32, b []byte) expression {
	return expression{"cmp", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_CMP_SREG, reg)
		e.Uint32(unix.NFTA_CMP_OP, op)
		value(e, unix.NFTA_CMP_DATA, b)
	}}
}

// masked leaves those bits of a register that mask has.
func masked(reg uint32, mask []byte) expression {
	return expression{"bitwise", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_BITWISE_SREG, reg)
		e.Uint32(unix.NFTA_BITWISE_DREG, reg)
		e.Uint32(unix.NFTA_BITWISE_LEN, uint32(len(mask)))
		value(e, unix.NFTA_BITWISE_MASK, mask)
		value(e, unix.NFTA_BITWISE_XOR, make([]byte, len(mask)))
	}}
}

// immediate loads a value into a register.
func immediate(to uint32, b []byte) expression {
	return expression{"immediate", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_IMMEDIATE_DREG, to)
		value(e, unix.NFTA_IMMEDIATE_DATA, b)
	}}
}

// in holds if a set has what is in a register.
func in(set string, reg uint32) expression {
	return expression{"lookup", func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_LOOKUP_SET, set)
		e.Uint32(unix.NFTA_LOOKUP_SREG, reg)
	}}
}

// notIn holds if a set does not have it.
func notIn(set string, reg uint32) expression {
	return expression{"lookup", func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_LOOKUP_SET, set)
		e.Uint32(unix.NFTA_LOOKUP_SREG, reg)
		e.Uint32(unix.NFTA_LOOKUP_FLAGS, unix.NFT_LOOKUP_F_INV)
	}}
}

// find loads what a map has for what is in a register, and holds if there is any.
func find(set string, reg, to uint32) expression {
	return expression{"lookup", func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_LOOKUP_SET, set)
		e.Uint32(unix.NFTA_LOOKUP_SREG, reg)
		e.Uint32(unix.NFTA_LOOKUP_DREG, to)
	}}
}

// verdict ends the chain.
func verdict(code int32) expression {
	return expression{"immediate", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
		nested(e, unix.NFTA_IMMEDIATE_DATA, func(e *netlink.AttributeEncoder) {
			nested(e, unix.NFTA_DATA_VERDICT, func(e *netlink.AttributeEncoder) {
				e.Uint32(unix.NFTA_VERDICT_CODE, uint32(code))
			})
		})
	}}
}

// count counts a packet.
func count(counter string) expression {
	return expression{"objref", func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER)
		e.String(unix.NFTA_OBJREF_IMM_NAME, counter)
	}}
}

const (
	drop   = 0 // NF_DROP
	accept = 1 // NF_ACCEPT
)

// is and isNot compare a field with a value.
func is(f field, b ...byte) []expression {
	return []expression{load(f, reg1), compare(unix.NFT_CMP_EQ, reg1, b)}
}

func isNot(f field, b ...byte) []expression {
	return []expression{load(f, reg1), compare(unix.NFT_CMP_NEQ, reg1, b)}
}

// bits compares some bits of a field.
func bits(op uint32, f field, mask, b []byte) []expression {
	return []expression{load(f, reg1), masked(reg1, mask), compare(op, reg1, b)}
}

// write writes a value to a field.
func write(f field, b ...byte) []expression {
	return []expression{immediate(reg1, b), store(reg1, f)}
}

// all are expressions in a row.
func all(parts ...[]expression) (x []expression) {
	for _, p := range parts {
		x = append(x, p...)
	}
	return x
}

func one(x ...expression) []expression { return x }
