package filter

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/distributed-servers/ds/mobility/wire"
)

func TestClassify(t *testing.T) {
	type classes struct{ node, agent, correspondent Class }
	all := func(c Class) classes { return classes{c, c, c} }
	pad := []byte{0, 0, 1, 4, 0, 0, 0, 0}                       // destination options
	coti := wire.CareOfTestInit{}                               // any mobility message
	mh := mobility(t, wire.Packet{Src: away, Dst: here}, &coti) // with it
	tcp := wire.Packet{Protocol: wire.TCP, Payload: make([]byte, 20)}
	with := func(p wire.Packet, f func(p *wire.Packet)) []byte {
		p.Src, p.Dst = away, here
		f(&p)
		return build(t, p)
	}
	fragment := func(next byte, at uint16, payload ...byte) wire.Packet {
		h := append([]byte{next, 0, byte(at >> 8), byte(at), 0, 0, 0, 1}, payload...)
		return wire.Packet{Protocol: wire.Fragment, Payload: h}
	}
	quoting := func(kind wire.ErrorKind, quoted []byte) []byte { return icmpError(t, away, here, kind, 1, quoted) }
	echo := func(kind byte) []byte {
		return with(wire.Packet{Protocol: wire.ICMPv6, Payload: []byte{kind, 0, 0, 0, 0, 0, 0, 0}}, func(*wire.Packet) {})
	}
	plain := func(*wire.Packet) {}
	home := func(p *wire.Packet) { p.Home = other }
	routed := func(p *wire.Packet) { p.Routing = other }
	tunnel, err := wire.AppendTunnel(nil, here, away, with(tcp, plain))
	if err != nil {
		t.Fatal(err)
	}
	ah := make([]byte, 12)
	ah[1] = 1

	for _, tc := range []struct {
		name string
		b    []byte
		want classes
	}{
		{"mobility header", mh, all(Take)},
		{"mobility header behind options", insert(mh, wire.DestOptions, pad...), all(Take)},
		{"mobility header behind hop-by-hop options", insert(mh, wire.HopByHop, pad...), all(Take)},
		{"mobility header with a Home Address option", mobility(t, wire.Packet{Src: away, Dst: here, Home: other}, &coti), all(Take)},
		{"mobility header with a routing header", mobility(t, wire.Packet{Src: away, Dst: here, Routing: other}, &coti), all(Take)},
		{"mobility header behind an Authentication Header", insert(mh, wire.AH, ah...), all(Take)},
		{"mobility header in an atomic fragment", insert(mh, wire.Fragment, 0, 0, 0, 0, 0, 0, 0, 1), all(Take)},
		{"mobility header of no octets", with(wire.Packet{Protocol: wire.Mobility}, plain), all(Take)},
		{"mobility header of an unknown type", with(wire.Packet{Protocol: wire.Mobility, Payload: []byte{59, 0, 99, 0, 0, 0, 0, 0}}, plain), all(Take)},
		{"first fragment of a mobility header", with(fragment(135, 1, 59, 1, 5, 0, 0, 0, 0, 0), plain), all(Discard)},
		{"second fragment of a mobility header", with(fragment(135, 8, 59, 1, 5, 0, 0, 0, 0, 0), plain), all(Discard)},

		{"data", with(tcp, plain), all(Pass)},
		{"data with options", insert(with(tcp, plain), wire.DestOptions, pad...), all(Pass)},
		{"data with a Home Address option", with(tcp, home), classes{Pass, Pass, Take}},
		{"fragment with a Home Address option", with(fragment(17, 8, 1, 2, 3), home), classes{Pass, Pass, Take}},
		{"data with a routing header", with(tcp, routed), all(Pass)},
		{"tunnel", tunnel, all(Pass)},
		{"no upper layer", with(wire.Packet{Protocol: wire.NoNext}, plain), all(Pass)},

		{"echo request", echo(128), all(Pass)},
		{"neighbour solicitation", echo(135), all(Pass)},
		{"Home Agent Address Discovery Request", echo(144), classes{Pass, Take, Pass}},
		{"Home Agent Address Discovery Reply", echo(145), all(Pass)},
		{"Mobile Prefix Solicitation", echo(146), classes{Pass, Take, Pass}},
		{"Mobile Prefix Advertisement", echo(147), all(Pass)},

		{"error about a mobility header", quoting(wire.ParameterProblem, mh), classes{Take, Take, Pass}},
		{"error about the beginning of a mobility header", quoting(wire.ParameterProblem, mh[:41]), classes{Take, Take, Pass}},
		{"unreachable, about a mobility header", quoting(wire.Unreachable, mh), classes{Take, Take, Pass}},
		{"error about a Home Address option", quoting(wire.ParameterProblem, with(tcp, home)), classes{Copy, Pass, Pass}},
		{"packet too big, about route optimised data", quoting(wire.PacketTooBig, with(tcp, home)), all(Pass)},
		{"error about a routing header", quoting(wire.PacketTooBig, with(tcp, routed)), classes{Pass, Pass, Take}},
		{"error about a tunnel", quoting(wire.PacketTooBig, tunnel), classes{Copy, Take, Pass}},
		{"error about a fragment of a tunnel", quoting(wire.Unreachable, with(fragment(41, 8, 1, 2, 3), plain)), classes{Copy, Take, Pass}},
		{"error about data", quoting(wire.Unreachable, with(tcp, plain)), all(Pass)},
		{"error about nothing", quoting(wire.Unreachable, nil), all(Pass)},
		{"error without its rest", with(wire.Packet{Protocol: wire.ICMPv6, Payload: []byte{4, 1, 0}}, plain), all(Pass)},
		{"ICMPv6 of no octets", with(wire.Packet{Protocol: wire.ICMPv6}, plain), all(Pass)},
		{"fragment of an error", with(fragment(58, 1, 4, 1, 0, 0, 0, 0, 0, 0), plain), all(Pass)},

		{"nothing", nil, all(Pass)},
		{"IPv4", append([]byte{0x45}, make([]byte, 39)...), all(Pass)},
		{"no header where one is announced", with(wire.Packet{Protocol: wire.DestOptions}, plain), all(Pass)},
		{"header longer than the packet", with(wire.Packet{Protocol: wire.DestOptions, Payload: []byte{135, 2, 1, 4, 0, 0, 0, 0}}, plain), all(Pass)},
	} {
		got := classes{Classify(Node, tc.b), Classify(HomeAgent, tc.b), Classify(Correspondent, tc.b)}
		if got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func seeds(f *testing.F) {
	for _, b := range [][]byte{
		nil,
		mobility(f, wire.Packet{Src: away, Dst: here, Home: other, Routing: service}, &wire.BindingAck{}),
		udp(f, away, here, "data"),
		icmpError(f, away, here, wire.ParameterProblem, 2, mobility(f, wire.Packet{Src: here, Dst: away, Home: other}, &wire.BindingUpdate{})),
		insert(udp(f, away, here, "data"), wire.AH, make([]byte, 12)...),
		build(f, wire.Packet{Src: away, Dst: here, Protocol: wire.Fragment, Payload: []byte{135, 0, 0, 8, 0, 0, 0, 1, 59}}),
	} {
		f.Add(b)
	}
}

// Every packet has a class, which its octets behind its end do not change. What
// package wire takes for a mobility message or a packet with a home address goes
// to the machine.
func FuzzClassify(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		p, err := wire.ParsePacket(b)
		for _, role := range []Role{Node, HomeAgent, Correspondent} {
			c := Classify(role, b)
			if c > Discard || c.String() == "" {
				t.Fatalf("class %d", c)
			}
			if err == nil && p.Protocol == wire.Mobility && c != Take {
				t.Errorf("role %d: a mobility header: %v", role, c)
			}
			if err == nil && role == Correspondent && p.Home.IsValid() && c != Take && c != Discard {
				t.Errorf("a Home Address option: %v", c)
			}
		}
		if !bytes.Equal(b, before) {
			t.Error("the packet has changed")
		}
	})
}

// A completed checksum is right: the sum over it, and the pseudo-header, is -0.
func FuzzCompleteChecksum(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		s, ok := look(b)
		changed := CompleteChecksum(b)
		if !ok && changed {
			t.Fatal("completed what is no packet")
		}
		at, n := 0, 0
		for i := range b {
			if b[i] != before[i] {
				at, n = i, n+1
			}
		}
		if n > 2 || n > 0 && (!changed || at < s.upper) {
			t.Errorf("%d octets changed, the last one at %d", n, at)
		}
	})
}

func TestCompleteChecksum(t *testing.T) {
	for n := range 200 {
		payload := bytes.Repeat([]byte{0xa5, 0x01, 0xff}, n)[:n]
		for _, home := range []bool{false, true} {
			p := wire.Packet{Src: away, Dst: here, Protocol: wire.TCP, Payload: append(make([]byte, 20), payload...)}
			if home {
				p.Home = other
			}
			// As the kernel leaves it for a device.
			binary.BigEndian.PutUint16(p.Payload[16:], fold(pseudo(p.Source(), p.Dst, wire.TCP, len(p.Payload))))
			b := build(t, p)
			if !CompleteChecksum(b) {
				t.Fatal("not completed")
			}
			if sum := fold(append(pseudo(p.Source(), p.Dst, wire.TCP, len(p.Payload)), b[len(b)-len(p.Payload):]...)); sum != 0xffff {
				t.Fatalf("%d octets: the sum is %#x", n, sum)
			}
		}
	}
	for name, b := range map[string][]byte{
		"mobility header": mobility(t, wire.Packet{Src: away, Dst: here}, &wire.CareOfTest{}),
		"too short":       build(t, wire.Packet{Src: away, Dst: here, Protocol: wire.TCP, Payload: make([]byte, 17)}),
		"no packet":       {0x60},
	} {
		if CompleteChecksum(b) {
			t.Errorf("%s: completed", name)
		}
	}
}
