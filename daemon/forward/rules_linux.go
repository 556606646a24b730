package forward

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

func tableName(queue uint16) string { return fmt.Sprintf("dsco-%d", queue) }

// chain is the only one of a table. It stands behind the raw table, where the
// filter's rules are, of what an application may not send among others, and ahead
// of connection tracking, which is to see packets as they leave.
const (
	chain    = "tunnels"
	priority = -290
)

// Names of sets that each table has.
const (
	setUpper = "upper" // protocols inside that are let through
	setOdd   = "odd"   // first octets of addresses that stay where they are
	mapHop   = "hop"   // hop limits of those who may go on: one less
)

// congested is the bit of the traffic class that congestion was met, or that the
// sender is ECT(1): both must be told to the packet inside (RFC 6040 section 4.2).
const congested = 0x10

// tunnelHops is the hop limit of a tunnel's header (RFC 2473 section 6.3).
const tunnelHops = 64

// begin makes chain and sets.
func (b *batch) begin() {
	b.chain(chain, priority)
	b.set(setUpper, 1, 0)
	b.insert(setUpper, element{key: []byte{unix.IPPROTO_TCP}}, element{key: []byte{unix.IPPROTO_UDP}})
	b.set(setOdd, 1, 0)
	for _, first := range []byte{0, 0xfe, 0xff} { // unspecified, loopback; link and site; groups
		b.insert(setOdd, element{key: []byte{first}})
	}
	b.set(mapHop, 1, 1)
	var hops []element
	for h := 2; h <= 255; h++ {
		hops = append(hops, element{[]byte{byte(h)}, []byte{byte(h - 1)}})
	}
	b.insert(mapHop, hops...)
}

// tunnelsOnly ends the chain for all packets but tunnels with TCP or UDP inside,
// and for those who would tell a stranger from us by our own means.
func (b *batch) tunnelsOnly(exit netip.Addr) {
	b.rule(chain, all(isNot(nextHeader, unix.IPPROTO_IPV6), one(verdict(accept)))...)
	b.rule(chain, all(is(destination, exit.AsSlice()...), one(verdict(drop)))...)
	b.rule(chain, all(bits(unix.NFT_CMP_NEQ, version, []byte{0xf0}, []byte{0x60}), one(verdict(accept)))...)
	b.rule(chain, load(innerNext, reg1), notIn(setUpper, reg1), verdict(accept))
}

// Conditions that rules have in common.

// usual holds for addresses that leave a link: field is the first octet.
func usual(f field) []expression { return one(load(f, reg1), notIn(setOdd, reg1)) }

// uncongested holds if there is nothing to be told to the packet inside.
func uncongested() []expression {
	return bits(unix.NFT_CMP_EQ, trafficClass, []byte{congested}, []byte{0})
}

// hop takes one off a hop limit, and holds if there is one to take.
func hop(f field) []expression {
	return one(load(f, reg1), find(mapHop, reg1, reg1), store(reg1, f))
}
