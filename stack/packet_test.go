package stack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
)

var (
	here6  = netip.MustParseAddr("fd00:2::1")
	there6 = netip.MustParseAddr("fd00:1::1")
	here4  = netip.MustParseAddr("198.51.100.1")
	there4 = netip.MustParseAddr("192.0.2.1")
)

// ip6 is an IPv6 packet with extension headers: pairs of type and body, of
// which the first two octets are filled in.
func ip6(src, dst netip.Addr, proto byte, payload []byte, extensions ...ext) []byte {
	p := make([]byte, 40)
	p[0] = 0x60
	p[6], p[7] = proto, 64
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	next := 6 // where to say what follows
	for _, e := range extensions {
		p[next] = e.kind
		next = len(p)
		body := e.body
		if e.kind != 44 {
			body[1] = byte(len(body)/8 - 1)
		}
		p = append(p, body...)
	}
	p[next] = proto
	p = append(p, payload...)
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	return p
}

type ext struct {
	kind byte
	body []byte
}

func extension(kind byte, n int) ext { return ext{kind, make([]byte, n)} }

func fragment6(offset uint16, more bool) ext {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b[2:], offset<<3)
	if more {
		b[3] |= 1
	}
	return ext{44, b}
}

func ip4(src, dst netip.Addr, proto byte, payload []byte, options int, fragment uint16) []byte {
	p := make([]byte, 20+options)
	p[0] = 0x40 | byte(len(p)/4)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)+len(payload)))
	binary.BigEndian.PutUint16(p[6:], fragment)
	p[8], p[9] = 64, proto
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	return append(p, payload...)
}

func tcpPorts(src, dst uint16) []byte {
	p := make([]byte, 20)
	binary.BigEndian.PutUint16(p, src)
	binary.BigEndian.PutUint16(p[2:], dst)
	p[12] = 5 << 4
	return p
}

// icmpMessage is one of a type with a packet quoted.
func icmpMessage(kind byte, quoted []byte) []byte {
	return append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, quoted...)
}

var (
	at6   = Tuple{netip.AddrPortFrom(here6, 80), netip.AddrPortFrom(there6, 4000)}
	at4   = Tuple{netip.AddrPortFrom(here4, 80), netip.AddrPortFrom(there4, 4000)}
	from6 = Tuple{netip.AddrPortFrom(here6, 0), netip.AddrPortFrom(there6, 0)}
	from4 = Tuple{netip.AddrPortFrom(here4, 0), netip.AddrPortFrom(there4, 0)}

	yes6, yes4 = flow{at6, true}, flow{at4, true}
	some6      = flow{from6, false}
	some4      = flow{from4, false}
	none       = flow{}
)

// toHere is an inbound TCP packet, toThere an outbound one.
var (
	toHere6  = ip6(there6, here6, 6, tcpPorts(4000, 80))
	toThere6 = ip6(here6, there6, 6, tcpPorts(80, 4000))
	toHere4  = ip4(there4, here4, 6, tcpPorts(4000, 80), 0, 0)
	toThere4 = ip4(here4, there4, 6, tcpPorts(80, 4000), 0, 0)
	router6  = netip.MustParseAddr("fd00:ff::1")
	router4  = netip.MustParseAddr("203.0.113.1")
)

func error6(kind byte, quoted []byte) []byte {
	return ip6(router6, here6, 58, icmpMessage(kind, quoted))
}
func error4(kind byte, quoted []byte) []byte {
	return ip4(router4, here4, 1, icmpMessage(kind, quoted), 0, 0)
}

func TestInboundFlow(t *testing.T) {
	manyExtensions := func(n int) []ext {
		var all []ext
		for range n {
			all = append(all, extension(60, 8))
		}
		return all
	}
	for _, c := range []struct {
		name string
		p    []byte
		want flow
	}{
		{"TCP over IPv6", toHere6, yes6},
		{"TCP over IPv4", toHere4, yes4},
		{"IPv4 options", ip4(there4, here4, 6, tcpPorts(4000, 80), 40, 0), yes4},
		{"only ports", toHere6[:44], yes6},
		{"half a port", toHere6[:43], some6},
		{"no ports", toHere4[:20], some4},

		{"hop-by-hop", ip6(there6, here6, 6, tcpPorts(4000, 80), extension(0, 8)), yes6},
		{"routing", ip6(there6, here6, 6, tcpPorts(4000, 80), extension(43, 24)), yes6},
		{"destination options", ip6(there6, here6, 6, tcpPorts(4000, 80), extension(60, 24)), yes6},
		{"mobility", ip6(there6, here6, 6, tcpPorts(4000, 80), extension(135, 16)), yes6},
		{"all of them", ip6(there6, here6, 6, tcpPorts(4000, 80), extension(0, 8), extension(60, 16), extension(43, 24), fragment6(0, true), extension(60, 24)), yes6},
		{"seven extensions", ip6(there6, here6, 6, tcpPorts(4000, 80), manyExtensions(7)...), yes6},
		{"too many extensions", ip6(there6, here6, 6, tcpPorts(4000, 80), manyExtensions(9)...), none},
		{"extension cut short", ip6(there6, here6, 6, nil, extension(60, 24))[:56], none},
		{"extension of one octet", ip6(there6, here6, 6, nil, extension(60, 8))[:41], none},
		{"fragment header cut short", ip6(there6, here6, 6, nil, fragment6(0, true))[:47], none},

		{"first fragment", ip6(there6, here6, 6, tcpPorts(4000, 80), fragment6(0, true)), yes6},
		{"atomic fragment", ip6(there6, here6, 6, tcpPorts(4000, 80), fragment6(0, false)), yes6},
		{"later fragment", ip6(there6, here6, 6, tcpPorts(4000, 80), fragment6(1, true)), some6},
		{"last fragment", ip6(there6, here6, 6, tcpPorts(4000, 80), fragment6(8191, false)), some6},
		{"later fragment behind options", ip6(there6, here6, 6, tcpPorts(1, 2), extension(60, 8), fragment6(5, true)), some6},
		{"first fragment, IPv4", ip4(there4, here4, 6, tcpPorts(4000, 80), 0, 0x2000), yes4},
		{"later fragment, IPv4", ip4(there4, here4, 6, tcpPorts(4000, 80), 0, 0x2001), some4},
		{"last fragment, IPv4", ip4(there4, here4, 6, tcpPorts(4000, 80), 4, 0x1fff), some4},
		{"do not fragment", ip4(there4, here4, 6, tcpPorts(4000, 80), 0, 0x4000), yes4},
		{"later fragment of UDP", ip6(there6, here6, 17, tcpPorts(4000, 80), fragment6(1, true)), none},

		{"unreachable", error6(1, toThere6), yes6},
		{"packet too big", error6(2, toThere6), yes6},
		{"time exceeded", error6(3, toThere6), yes6},
		{"parameter problem", error6(4, toThere6), yes6},
		{"unknown error", error6(127, toThere6), yes6},
		{"echo request", error6(128, toThere6), none},
		{"neighbour solicitation", error6(135, toThere6), none},
		{"error behind options", ip6(router6, here6, 58, icmpMessage(2, toThere6), extension(60, 8)), yes6},
		{"first fragment of an error", ip6(router6, here6, 58, icmpMessage(2, toThere6), fragment6(0, true)), yes6},
		{"later fragment of an error", ip6(router6, here6, 58, icmpMessage(2, toThere6), fragment6(1, true)), none},
		{"quoted with options", error6(2, ip6(here6, there6, 6, tcpPorts(80, 4000), extension(60, 24))), yes6},
		{"quoted first fragment", error6(2, ip6(here6, there6, 6, tcpPorts(80, 4000), fragment6(0, true))), yes6},
		{"quoted later fragment", error6(3, ip6(here6, there6, 6, tcpPorts(80, 4000), fragment6(1, true))), some6},
		{"quoted only the ports", error6(2, toThere6[:44]), yes6},
		{"quoted without ports", error6(2, toThere6[:40]), some6},
		{"quoted half a header", error6(2, toThere6[:39]), none},
		{"quoted nothing", error6(2, nil), none},
		{"error cut short", error6(2, nil)[:47], none},
		{"no ICMP header", error6(2, nil)[:40], none},
		{"quoted UDP", error6(2, ip6(here6, there6, 17, tcpPorts(80, 4000))), none},
		{"quoted error", error6(2, error6(2, toThere6)), none},
		{"quoted IPv4", error6(2, toThere4), yes4}, // by a translator: harmless

		{"unreachable, IPv4", error4(3, toThere4), yes4},
		{"source quench", error4(4, toThere4), yes4},
		{"time exceeded, IPv4", error4(11, toThere4), yes4},
		{"parameter problem, IPv4", error4(12, toThere4), yes4},
		{"echo reply", error4(0, toThere4), none},
		{"redirect", error4(5, toThere4), none},
		{"echo", error4(8, toThere4), none},
		{"timestamp", error4(13, toThere4), none},
		{"quoted eight octets", error4(3, toThere4[:28]), yes4},
		{"quoted IPv4 without ports", error4(3, toThere4[:20]), some4},
		{"quoted half an IPv4 header", error4(3, toThere4[:19]), none},
		{"quoted with IPv4 options", error4(3, ip4(here4, there4, 6, tcpPorts(80, 4000), 8, 0)), yes4},
		{"quoted later fragment, IPv4", error4(11, ip4(here4, there4, 6, tcpPorts(80, 4000), 0, 7)), some4},
		{"later fragment of an IPv4 error", ip4(router4, here4, 1, icmpMessage(3, toThere4), 0, 5), none},
		{"IPv4 error cut short", error4(3, nil)[:27], none},

		{"UDP", ip6(there6, here6, 17, tcpPorts(4000, 80)), none},
		{"no next header", ip6(there6, here6, 59, nil), none},
		{"ESP", ip6(there6, here6, 50, tcpPorts(4000, 80)), none},
		{"a tunnel", ip6(there6, here6, 41, toHere6), none},
		{"nothing", nil, none},
		{"one octet of IPv6", []byte{0x60}, none},
		{"one octet of IPv4", []byte{0x45}, none},
		{"IPv6 header cut short", toHere6[:39], none},
		{"IPv4 header cut short", toHere4[:19], none},
		{"IPv4 header without length", append([]byte{0x44}, toHere4[1:]...), none},
		{"IPv4 header of all", append([]byte{0x4f}, toHere4[1:]...), none},
		{"version 5", append([]byte{0x50}, toHere6[1:]...), none},
		{"ethernet", append(make([]byte, 14), toHere6...), none},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := inboundFlow(c.p)
			if ok != (c.want != none) || got != c.want {
				t.Errorf("%x: %+v, %v: want %+v", c.p, got, ok, c.want)
			}
		})
	}
}

func TestOutboundFlow(t *testing.T) {
	for _, c := range []struct {
		name string
		p    []byte
		want flow
	}{
		{"TCP over IPv6", toThere6, yes6},
		{"TCP over IPv4", toThere4, yes4},
		{"options", ip6(here6, there6, 6, tcpPorts(80, 4000), extension(60, 24)), yes6},
		{"first fragment", ip6(here6, there6, 6, tcpPorts(80, 4000), fragment6(0, true)), yes6},
		{"later fragment", ip4(here4, there4, 6, tcpPorts(80, 4000), 0, 9), some4},
		{"an error of ours", ip6(here6, there6, 58, icmpMessage(2, toHere6)), none},
		{"UDP", ip4(here4, there4, 17, tcpPorts(80, 4000), 0, 0), none},
		{"nothing", nil, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := outboundFlow(c.p)
			if ok != (c.want != none) || got != c.want {
				t.Errorf("%x: %+v, %v: want %+v", c.p, got, ok, c.want)
			}
		})
	}
}

// TestFlowsMirror: what one end sends the other receives as the same
// connection, seen from its side.
func TestFlowsMirror(t *testing.T) {
	for _, p := range [][]byte{toHere6, toHere4, toThere6, toThere4, ip6(there6, here6, 6, nil, fragment6(3, true))} {
		in, ok1 := inboundFlow(p)
		out, ok2 := outboundFlow(p)
		if ok1 != ok2 || in.tuple != (Tuple{out.tuple.Remote, out.tuple.Local}) || in.ports != out.ports {
			t.Errorf("%x: in %+v, out %+v", p, in, out)
		}
	}
}

// FuzzPacket: the filter looks at every packet from the network.
func FuzzPacket(f *testing.F) {
	seeds := [][]byte{
		toHere6, toHere4, toThere6, toThere4, error6(2, toThere6), error4(3, toThere4),
		ip6(there6, here6, 6, tcpPorts(4000, 80), extension(0, 8), extension(43, 24), fragment6(0, true), extension(60, 24)),
		ip6(there6, here6, 6, tcpPorts(4000, 80), fragment6(1, false)),
		ip4(there4, here4, 6, tcpPorts(4000, 80), 40, 0x2001),
		error6(2, ip6(here6, there6, 6, tcpPorts(80, 4000), extension(60, 24), fragment6(2, true))),
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, p := range seeds {
		f.Add(p)
		for range 5 {
			m := bytes.Clone(p)
			m[r.IntN(len(m))] ^= 1 << r.IntN(8)
			f.Add(m[:r.IntN(len(m)+1)])
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		before := bytes.Clone(p)
		for _, parse := range []func([]byte) (flow, bool){inboundFlow, outboundFlow} {
			got, ok := parse(p)
			if !ok && got != none {
				t.Errorf("not a flow: %+v", got)
			}
			if !ok {
				continue
			}
			l, r := got.tuple.Local, got.tuple.Remote
			if !l.Addr().IsValid() || !r.Addr().IsValid() || l.Addr().Is4() != r.Addr().Is4() {
				t.Errorf("a flow without addresses: %+v", got)
			}
			if !got.ports && (l.Port() != 0 || r.Port() != 0) {
				t.Errorf("ports that are not known: %+v", got)
			}
			// What lies behind does not matter.
			if more, ok := parse(append(p[:len(p):len(p)], 0)); got.ports && (!ok || more != got) {
				t.Errorf("with one octet more: %+v, %v: want %+v", more, ok, got)
			}
		}
		if !bytes.Equal(before, p) {
			t.Errorf("changed to %x", p)
		}
	})
}
