package relay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// The world of the tests: a client's network, the home network, and a server
// network with three nodes, of which the first is the contact.
var (
	home      = addr("2001:db8:d::1")
	homeAgent = addr("2001:db8:d::a")
	contact   = addr("2001:db8:e::1")
	node2     = addr("2001:db8:e::2")
	node3     = addr("2001:db8:e::3")
	client    = addr("2001:db8:c::1")
	router    = addr("2001:db8:f::1")
	stranger  = addr("2001:db8:bad::1")
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func newRelay(t testing.TB, change ...func(*Config)) *Relay {
	t.Helper()
	c := Config{Home: home, CareOf: contact, HomeAgent: homeAgent}
	for _, f := range change {
		f(&c)
	}
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	r.Step(0, SetNodes{[]netip.Addr{contact, node2, node3}})
	return r
}

func pack(t testing.TB, p wire.Packet) []byte {
	t.Helper()
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tunnel(t testing.TB, src, dst netip.Addr, inner []byte) []byte {
	t.Helper()
	b, err := wire.AppendTunnel(nil, src, dst, inner)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// inside takes a tunnel packet apart.
func inside(t testing.TB, b []byte) (src, dst netip.Addr, inner []byte) {
	t.Helper()
	p, err := wire.ParsePacket(b)
	if err != nil {
		t.Fatal(err)
	}
	inner, err = p.Inner()
	if err != nil {
		t.Fatal(err)
	}
	return p.Src, p.Dst, inner
}

func data(t testing.TB, src, dst netip.Addr, size int) []byte {
	t.Helper()
	segment := make([]byte, 20+size)
	segment[12] = 5 << 4
	for i := range size {
		segment[20+i] = byte(i)
	}
	return pack(t, wire.Packet{TrafficClass: 0xb8, FlowLabel: 0x12345, Src: src, Dst: dst, Protocol: wire.TCP, Payload: segment})
}

func mobility(t testing.TB, src, dst netip.Addr, m wire.Message) []byte {
	t.Helper()
	return pack(t, wire.Packet{Src: src, Dst: dst, Protocol: wire.Mobility, Payload: m.Append(nil, src, dst)})
}

func icmpError(t testing.TB, src, dst netip.Addr, kind wire.ErrorKind, code uint8, param uint32, about []byte) []byte {
	t.Helper()
	about = about[:min(len(about), wire.MinMTU-wire.HeaderLen-8)]
	m := &wire.ICMPError{Kind: kind, Code: code, Param: param, Quoted: about}
	return pack(t, wire.Packet{Src: src, Dst: dst, Protocol: wire.ICMPv6, Payload: m.Append(nil, src, dst)})
}

// lowered is the packet with its hop limit lowered by n.
func lowered(b []byte, n byte) []byte {
	b = bytes.Clone(b)
	b[hopLimit] -= n
	return b
}

// where says what becomes of a packet that the contact receives: "local", the
// address that it is sent to, in a tunnel or not, or why it is dropped.
func where(t testing.TB, r *Relay, now time.Duration, b []byte) string {
	t.Helper()
	before := bytes.Clone(b)
	out := r.Step(now, Received{b})
	if !bytes.Equal(b, before) {
		t.Fatal("the packet passed in was changed")
	}
	if len(out.Send)+len(out.Local) > 1 {
		t.Fatalf("%d packets for one", len(out.Send)+len(out.Local))
	}
	switch {
	case len(out.Local) == 1:
		if !bytes.Equal(out.Local[0], before) {
			t.Fatal("what is for this node itself was changed")
		}
		return "local"
	case len(out.Send) == 1:
		p, err := wire.ParsePacket(out.Send[0])
		if err != nil {
			t.Fatal(err)
		}
		s := name(p.Dst)
		if p.Protocol != wire.IPv6 {
			s = "straight to " + s
		}
		if out.Dropped != None {
			s = out.Dropped.String() + ", error " + s
		}
		return s
	}
	return out.Dropped.String()
}

func name(a netip.Addr) string {
	for n, b := range map[string]netip.Addr{
		"home": home, "home agent": homeAgent, "contact": contact, "node 2": node2, "node 3": node3,
		"client": client, "router": router, "stranger": stranger,
	} {
		if a == b {
			return n
		}
	}
	return a.String()
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("went to: %s; want: %s", got, want)
	}
}

// clientNumber is the i-th of many clients.
func clientNumber(i int) netip.Addr {
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0xc}
	binary.BigEndian.PutUint64(a[8:], uint64(i))
	return netip.AddrFrom16(a)
}
