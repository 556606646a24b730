package filter

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/mobility/wire"
)

// Addresses that the tests' packets have.
var (
	here    = netip.MustParseAddr("2001:db8:1::1")
	away    = netip.MustParseAddr("2001:db8:1::2")
	careOf  = netip.MustParseAddr("2001:db8:c::1")
	service = netip.MustParseAddr("2001:db8:d::1")
	peer    = netip.MustParseAddr("2001:db8:c:2::1") // care-of address of another node
	other   = netip.MustParseAddr("2001:db8:e::1")
)

func build(t testing.TB, p wire.Packet) []byte {
	t.Helper()
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func udp(t testing.TB, src, dst netip.Addr, payload string) []byte {
	b := append([]byte{0, 7, 0, 7, 0, byte(8 + len(payload)), 0, 0}, payload...)
	return build(t, wire.Packet{Src: src, Dst: dst, Protocol: wire.UDP, Payload: sumUDP(b, src, dst)})
}

// sumUDP puts the checksum in.
func sumUDP(b []byte, src, dst netip.Addr) []byte {
	binary.BigEndian.PutUint16(b[6:], 0)
	sum := ^fold(append(pseudo(src, dst, wire.UDP, len(b)), b...))
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

func pseudo(src, dst netip.Addr, proto wire.Protocol, n int) []byte {
	s, d := src.As16(), dst.As16()
	b := append(s[:], d[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, 0, 0, 0, byte(proto))
}

func mobility(t testing.TB, p wire.Packet, m wire.Message) []byte {
	p.Protocol, p.Payload = wire.Mobility, m.Append(nil, p.Source(), p.Destination())
	return build(t, p)
}

func icmpError(t testing.TB, src, dst netip.Addr, kind wire.ErrorKind, code uint8, quoted []byte) []byte {
	m := wire.ICMPError{Kind: kind, Code: code, Quoted: quoted}
	return build(t, wire.Packet{Src: src, Dst: dst, Protocol: wire.ICMPv6, Payload: m.Append(nil, src, dst)})
}

// insert puts an extension header, whose first octet it fills, behind the IPv6
// header of b.
func insert(b []byte, kind wire.Protocol, header ...byte) []byte {
	out := append(append(append([]byte{}, b[:40]...), header...), b[40:]...)
	out[40] = b[6]
	out[6] = byte(kind)
	binary.BigEndian.PutUint16(out[4:], uint16(len(out)-40))
	return out
}
