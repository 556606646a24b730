package correspondent

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// raw builds a packet of an IPv6 header and what follows it.
func raw(src, dst netip.Addr, next wire.Protocol, parts ...[]byte) []byte {
	s, d := src.As16(), dst.As16()
	body := slices.Concat(parts...)
	b := []byte{0x6a, 0xbc, 0xde, 0xf0, 0, 0, byte(next), 17}
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	return slices.Concat(b, s[:], d[:], body)
}

func ext(next wire.Protocol, content ...byte) []byte {
	b := append([]byte{byte(next), byte(len(content)+2)/8 - 1}, content...)
	if len(b)%8 != 0 {
		panic("extension header of odd length")
	}
	return b
}

func homeOption(a netip.Addr) []byte {
	a16 := a.As16()
	return append([]byte{homeAddressOption, 16}, a16[:]...)
}

var (
	padN4    = []byte{1, 2, 0, 0}
	unknown4 = []byte{0x1e, 2, 'h', 'i'} // an option to be skipped if unknown
	padN6    = []byte{1, 4, 0, 0, 0, 0}
	udp      = []byte{0x12, 0x34, 0x56, 0x78, 0, 9, 0, 0, 'x'}
	fragment = []byte{17, 0, 0, 1, 'i', 'd', 'n', 'o'} // the first one
	routeh   = slices.Concat([]byte{2, 1, 0, 0, 0, 0}, make([]byte, 16))
)

func routing2(a netip.Addr) []byte {
	a16 := a.As16()
	return append([]byte{2, 1, 0, 0, 0, 0}, a16[:]...)
}

// A packet with a Home Address option reaches the upper layers from the home
// address, without the option, and with all else that was in it (RFC 6275
// section 9.3.1).
func TestSection9_3_1Delivered(t *testing.T) {
	hopByHop := ext(wire.DestOptions, 0x05, 2, 0, 0, 1, 0) // router alert
	for _, test := range []struct {
		name     string
		in, want []byte
	}{
		{"alone", raw(coa1, cn, wire.DestOptions,
			ext(wire.UDP, slices.Concat(padN4, homeOption(home))...), udp),
			raw(home, cn, wire.UDP, udp)},
		{"padded with Pad1", raw(coa1, cn, wire.DestOptions,
			ext(wire.UDP, slices.Concat([]byte{0, 0, 0, 0}, homeOption(home))...), udp),
			raw(home, cn, wire.UDP, udp)},
		{"nothing behind it", raw(coa1, cn, wire.DestOptions,
			ext(wire.NoNext, slices.Concat(padN4, homeOption(home))...)),
			raw(home, cn, wire.NoNext)},
		{"after hop-by-hop options", raw(coa1, cn, wire.HopByHop, hopByHop,
			ext(wire.UDP, slices.Concat(padN4, homeOption(home))...), udp),
			raw(home, cn, wire.HopByHop, append([]byte{byte(wire.UDP)}, hopByHop[1:]...), udp)},
		{"before another option", raw(coa1, cn, wire.DestOptions,
			ext(wire.UDP, slices.Concat(padN4, homeOption(home), unknown4, padN4)...), udp),
			raw(home, cn, wire.DestOptions, ext(wire.UDP, slices.Concat(padN4, []byte{1, 0}, unknown4, padN4)...), udp)},
		{"behind another option", raw(coa1, cn, wire.DestOptions,
			ext(wire.UDP, slices.Concat(unknown4, homeOption(home))...), udp),
			raw(home, cn, wire.DestOptions, ext(wire.UDP, slices.Concat(unknown4, []byte{1, 0})...), udp)},
		{"before other destination options", raw(coa1, cn, wire.DestOptions,
			ext(wire.DestOptions, slices.Concat(padN4, homeOption(home))...), ext(wire.UDP, unknown4[0], 4, 1, 2, 3, 4), udp),
			raw(home, cn, wire.DestOptions, ext(wire.UDP, unknown4[0], 4, 1, 2, 3, 4), udp)},
		{"a fragment", raw(coa1, cn, wire.DestOptions,
			ext(wire.Fragment, slices.Concat(padN4, homeOption(home))...), fragment, udp),
			raw(home, cn, wire.Fragment, fragment, udp)},
		{"an encrypted one", raw(coa1, cn, wire.DestOptions,
			ext(wire.ESP, slices.Concat(padN4, homeOption(home))...), udp),
			raw(home, cn, wire.ESP, udp)},
		{"with octets after its end", append(raw(coa1, cn, wire.DestOptions,
			ext(wire.UDP, slices.Concat(padN4, homeOption(home))...), udp), "trailer"...),
			raw(home, cn, wire.UDP, udp)},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newHost(t).mobile().rr()
			m.bind(good)
			in := bytes.Clone(test.in)
			silence(t, m.receive(in))
			if len(m.delivered) != 1 || !bytes.Equal(m.delivered[0], test.want) {
				t.Errorf("delivered %x\nwant      %x", m.delivered, test.want)
			}
			if !bytes.Equal(in, test.in) {
				t.Error("the packet passed in was changed")
			}
			if len(m.delivered) == 1 {
				if p, err := wire.ParsePacket(m.delivered[0]); err != nil || p.Home.IsValid() {
					t.Errorf("what was delivered: %v, home address option %v", err, p.Home)
				}
			}
		})
	}
}

// What is not of Mobile IPv6 reaches the upper layers as it is, right or wrong:
// they know what to do about it. So do packets to groups and to others.
func TestNotOurs(t *testing.T) {
	m := newHost(t).mobile().rr()
	m.bind(good)
	for name, p := range map[string][]byte{
		"nothing":                          {},
		"IPv4":                             make([]byte, 40),
		"a short header":                   raw(router, cn, wire.UDP)[:39],
		"a short packet":                   raw(router, cn, wire.UDP, udp)[:44],
		"a chain that leads out":           raw(router, cn, wire.DestOptions, []byte{17, 9, 0, 0, 0, 0, 0, 0}),
		"UDP":                              raw(router, cn, wire.UDP, udp),
		"from the home address":            raw(home, cn, wire.UDP, udp),
		"from the care-of address":         raw(coa1, cn, wire.UDP, udp),
		"an unknown option":                raw(router, cn, wire.DestOptions, ext(wire.UDP, 0x9e, 4, 0, 0, 0, 0), udp),
		"a routing header of another type": raw(router, cn, wire.Routing, ext(wire.UDP, slices.Concat([]byte{4, 1}, make([]byte, 20))...), udp),
		"echo":                             raw(router, cn, wire.ICMPv6, echoMessage(echoReply, router, cn)),
		"to a group":                       raw(router, group, wire.UDP, udp),
		"an ICMPv6 error to a group":       raw(router, group, wire.ICMPv6, []byte{1, 0, 0, 0, 0, 0, 0, 0}),
		"to another, HAO":                  raw(coa1, router, wire.DestOptions, ext(wire.UDP, slices.Concat(padN4, homeOption(home))...), udp),
		"to another, mobility":             raw(coa1, router, wire.Mobility, testInit(wire.TypeHomeTestInit)),
		"an empty ICMPv6 error":            raw(router, cn, wire.ICMPv6, []byte{1, 0, 0, 0}),
		"an ICMPv6 error about another's":  raw(router, cn, wire.ICMPv6, []byte{1, 0, 0, 0, 0, 0, 0, 0}, raw(home, cn, wire.UDP, udp)),
		"an ICMPv6 error about another's routed packet":  raw(router, cn, wire.ICMPv6, []byte{1, 0, 0, 0, 0, 0, 0, 0}, raw(router, coa1, wire.Routing, ext(wire.UDP, routing2(home)...), udp)),
		"an ICMPv6 error about a packet without binding": m.errorAbout(wire.ICMPError{Kind: wire.Unreachable}, raw(cn, router, wire.UDP, udp)),
	} {
		t.Run(name, func(t *testing.T) {
			silence(t, m.receive(p))
			if len(m.delivered) != 1 || !bytes.Equal(m.delivered[0], p) {
				t.Errorf("delivered %x, want it as it was", m.delivered)
			}
		})
	}
}

// What is neither delivered nor answered.
func TestDropped(t *testing.T) {
	m := newHost(t).mobile().rr()
	m.bind(good)
	hao := func(a netip.Addr) []byte { return ext(wire.UDP, slices.Concat(padN4, homeOption(a))...) }
	for name, p := range map[string][]byte{
		"HAO to a group":                raw(coa1, group, wire.DestOptions, hao(home), udp),
		"mobility to a group":           raw(coa1, group, wire.Mobility, testInit(wire.TypeHomeTestInit)),
		"HAO from a group":              raw(group, cn, wire.DestOptions, hao(home), udp),
		"HAO from nobody":               raw(netip.IPv6Unspecified(), cn, wire.DestOptions, hao(home), udp),
		"HAO with a link-local":         raw(coa1, cn, wire.DestOptions, hao(linkLocal), udp),
		"HAO with an address of IPv4":   raw(coa1, cn, wire.DestOptions, hao(addr("::ffff:192.0.2.1")), udp),
		"HAO with the wrong length":     raw(coa1, cn, wire.DestOptions, ext(wire.UDP, homeAddressOption, 4, 1, 2, 3, 4), udp),
		"HAO with the loopback address": raw(coa1, cn, wire.DestOptions, ext(wire.Fragment, slices.Concat(padN4, homeOption(netip.IPv6Loopback()))...), fragment),
		"HAO behind a fragment header":  raw(coa1, cn, wire.Fragment, []byte{60, 0, 0, 0, 1, 2, 3, 4}, hao(home), udp),
		"RH2 with a stranger":           raw(router, cn, wire.Routing, ext(wire.UDP, routing2(home)...), udp),
		"RH2 without segments left":     raw(router, cn, wire.Routing, ext(wire.UDP, slices.Concat([]byte{2, 0}, make([]byte, 20))...), udp),
		"RH2 of a wrong length":         raw(router, cn, wire.Routing, ext(wire.UDP, 2, 1, 0, 0, 0, 0), udp),
		"a care-of test":                m.packet(coa1, addrNone, (&wire.CareOfTest{}).Append(nil, coa1, cn)),
		"a Binding Error with HAO":      m.packet(coa2, home, (&wire.BindingError{Status: wire.UnknownBinding, Home: home}).Append(nil, home, cn)),
		"HAO and an ICMPv6 error": build(t, wire.Packet{Src: coa2, Dst: cn, Home: home, Protocol: wire.ICMPv6,
			Payload: (&wire.ICMPError{Kind: wire.Unreachable, Quoted: raw(cn, home, wire.UDP, udp)}).Append(nil, home, cn)}),
	} {
		t.Run(name, func(t *testing.T) {
			silence(t, m.receive(p))
			if len(m.delivered) != 0 {
				t.Errorf("delivered %x", m.delivered)
			}
		})
	}
}

// A host that is a mobile node too gets what is routed to its own address.
func TestSection8_2AlsoMobileNode(t *testing.T) {
	m := newHost(t).mobile()
	p := raw(router, cn, wire.Routing, ext(wire.UDP, routing2(cn2)...), udp)
	silence(t, m.receive(p))
	if len(m.delivered) != 1 || !bytes.Equal(m.delivered[0], p) {
		t.Errorf("delivered %x", m.delivered)
	}
}

// What is sent to a home address goes to the care-of address, with all that is
// in it in the order of RFC 8200 section 4.1 (RFC 6275 section 9.3.2).
func TestSection9_3_2Transmitted(t *testing.T) {
	alert := []byte{0x05, 2, 0, 0, 1, 0}
	for _, test := range []struct {
		name     string
		in, want []byte
	}{
		{"upper layer", raw(cn, home, wire.UDP, udp),
			raw(cn, coa1, wire.Routing, ext(wire.UDP, routing2(home)...), udp)},
		{"hop-by-hop options stay first", raw(cn, home, wire.HopByHop, ext(wire.UDP, alert...), udp),
			raw(cn, coa1, wire.HopByHop, ext(wire.Routing, alert...), ext(wire.UDP, routing2(home)...), udp)},
		{"destination options come after", raw(cn, home, wire.DestOptions, ext(wire.UDP, padN6...), udp),
			raw(cn, coa1, wire.Routing, ext(wire.DestOptions, routing2(home)...), ext(wire.UDP, padN6...), udp)},
		{"a fragment", raw(cn, home, wire.Fragment, fragment, udp),
			raw(cn, coa1, wire.Routing, ext(wire.Fragment, routing2(home)...), fragment, udp)},
		{"encrypted", raw(cn, home, wire.ESP, udp),
			raw(cn, coa1, wire.Routing, ext(wire.ESP, routing2(home)...), udp)},
		{"the longest", raw(cn, home, wire.UDP, make([]byte, 65535-Overhead)),
			raw(cn, coa1, wire.Routing, ext(wire.UDP, routing2(home)...), make([]byte, 65535-Overhead))},
		{"too long", raw(cn, home, wire.UDP, make([]byte, 65535-Overhead+1)), nil},
		{"to another", raw(cn, home2, wire.UDP, udp), nil},
		{"from another of ours", raw(cn2, home, wire.UDP, udp), nil},
		{"to the care-of address", raw(cn, coa1, wire.UDP, udp), nil},
		{"mobility", raw(cn, home, wire.Mobility, testInit(wire.TypeHomeTestInit)), nil},
		{"authenticated", raw(cn, home, wire.AH, make([]byte, 24)), nil},
		{"routed already", raw(cn, home, wire.Routing, ext(wire.UDP, routing2(home2)...), udp), nil},
		{"routed by its sender", raw(cn, home, wire.Routing, ext(wire.UDP, routeh...), udp), nil},
		{"no packet", []byte{0x60, 1, 2}, nil},
		{"IPv4", slices.Concat([]byte{0x45}, raw(cn, home, wire.UDP, udp)[1:]), nil},
		{"nothing", raw(cn, home, wire.NoNext), raw(cn, coa1, wire.Routing, ext(wire.NoNext, routing2(home)...))},
		{"a jumbogram", raw(cn, home, wire.HopByHop), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newHost(t).mobile().rr()
			m.bind(good)
			in, want := bytes.Clone(test.in), test.want
			if want == nil {
				want = test.in
			}
			sent := m.step(Transmit{in})
			if len(sent) != 1 || !bytes.Equal(sent[0], want) {
				t.Errorf("sent %x\nwant %x", sent, want)
			}
			if !bytes.Equal(in, test.in) {
				t.Error("the packet passed in was changed")
			}
			m.advance(420 * time.Second)
			if sent := m.step(Transmit{in}); len(sent) != 1 || !bytes.Equal(sent[0], in) {
				t.Errorf("without a binding: sent %x", sent)
			}
		})
	}
}

// RFC 6275 section 9.3.4: the upper layers are told of an error about a packet
// of theirs as they have sent it.
func TestSection9_3_4ErrorsTranslated(t *testing.T) {
	original := raw(cn, home, wire.HopByHop, ext(wire.UDP, 0x05, 2, 0, 0, 1, 0), udp, make([]byte, 1000))
	for _, test := range []struct {
		name string
		in   wire.ICMPError
		cut  int // octets of the packet that are quoted; 0: all
		want wire.ICMPError
	}{
		{"Packet Too Big", wire.ICMPError{Kind: wire.PacketTooBig, Param: 1400}, 0, wire.ICMPError{Kind: wire.PacketTooBig, Param: 1376}},
		{"Packet Too Big, at the limit", wire.ICMPError{Kind: wire.PacketTooBig, Param: 1300}, 0, wire.ICMPError{Kind: wire.PacketTooBig, Param: 1280}},
		{"Packet Too Big, nonsense", wire.ICMPError{Kind: wire.PacketTooBig, Param: 3}, 0, wire.ICMPError{Kind: wire.PacketTooBig, Param: 1280}},
		{"Time Exceeded", wire.ICMPError{Kind: wire.TimeExceeded}, 0, wire.ICMPError{Kind: wire.TimeExceeded}},
		{"Unreachable", wire.ICMPError{Kind: wire.Unreachable, Code: 1}, 0, wire.ICMPError{Kind: wire.Unreachable, Code: 1}},
		{"short quotation", wire.ICMPError{Kind: wire.Unreachable, Code: 4}, 40 + 8 + 24, wire.ICMPError{Kind: wire.Unreachable, Code: 4}},
		{"Parameter Problem before the routing header", wire.ICMPError{Kind: wire.ParameterProblem, Code: 2, Param: 42}, 0, wire.ICMPError{Kind: wire.ParameterProblem, Code: 2, Param: 42}},
		{"Parameter Problem behind it", wire.ICMPError{Kind: wire.ParameterProblem, Code: 1, Param: 72}, 0, wire.ICMPError{Kind: wire.ParameterProblem, Code: 1, Param: 48}},
		{"Parameter Problem with it", wire.ICMPError{Kind: wire.ParameterProblem, Param: 50}, 0, wire.ICMPError{Kind: wire.Unreachable, Code: 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newHost(t).mobile().rr()
			m.bind(good)
			sent := m.step(Transmit{original})[0]
			quoted, want := sent, original
			if test.cut != 0 {
				quoted, want = sent[:test.cut], original[:test.cut-Overhead]
			}
			silence(t, m.receive(m.errorAbout(test.in, quoted)))
			if len(m.delivered) != 1 {
				t.Fatalf("%d packets delivered", len(m.delivered))
			}
			p := parse(t, m.delivered[0])
			if p.err == nil || p.Src != router || p.Dst != cn ||
				p.err.Kind != test.want.Kind || p.err.Code != test.want.Code || p.err.Param != test.want.Param {
				t.Errorf("delivered %v, want %+v", p, test.want)
			}
			if !bytes.Equal(p.err.Quoted, want) {
				t.Errorf("quoted %x\nwant   %x", p.err.Quoted, want)
			}
			m.bound()
		})
	}
}

// Only persistent reports from a binding in use end it: not one, not a volley,
// none about what was not sent, not those that are wrong.
func TestSection9_3_4Persistent(t *testing.T) {
	about := func(src, dst, routing netip.Addr) []byte {
		return raw(src, dst, wire.Routing, ext(wire.UDP, routing2(routing)...), udp)
	}
	right := about(cn, coa1, home)
	unreachable := wire.ICMPError{Kind: wire.Unreachable, Code: 3}
	for _, test := range []struct {
		name   string
		err    wire.ICMPError
		about  []byte
		every  time.Duration
		mangle func([]byte) []byte
		gone   bool
	}{
		{"persistent", unreachable, right, time.Second, nil, true},
		{"no route", wire.ICMPError{Kind: wire.Unreachable}, right, time.Second, nil, true},
		{"not a mobile node", wire.ICMPError{Kind: wire.ParameterProblem, Param: 42}, right, time.Second, nil, true},
		{"a volley", unreachable, right, time.Millisecond, nil, false},
		{"now and then", unreachable, right, 61 * time.Second, nil, false},
		{"port unreachable", wire.ICMPError{Kind: wire.Unreachable, Code: 4}, right, time.Second, nil, false},
		{"Time Exceeded", wire.ICMPError{Kind: wire.TimeExceeded}, right, time.Second, nil, false},
		{"another care-of address", unreachable, about(cn, coa2, home), time.Second, nil, false},
		{"another home address", unreachable, about(cn, coa1, home2), time.Second, nil, false},
		{"another of ours", unreachable, about(cn2, coa1, home), time.Second, nil, false},
		{"another's packet", unreachable, about(router, coa1, home), time.Second, nil, false},
		{"no routing header", unreachable, raw(cn, coa1, wire.UDP, udp), time.Second, nil, false},
		{"without binding", unreachable, raw(cn, home, wire.UDP, udp), time.Second, nil, false},
		{"quoted too short", unreachable, right[:63], time.Second, nil, false},
		{"wrong checksum", unreachable, right, time.Second, func(b []byte) []byte { b[42]++; return b }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newHost(t).mobile().rr()
			m.bind(good)
			for range 6 {
				p := bytes.Clone(m.errorAbout(test.err, test.about))
				if test.mangle != nil {
					p = test.mangle(p)
				}
				if dst := netip.AddrFrom16([16]byte(p[24:40])); !m.c.cfg.Local(dst) {
					continue
				}
				silence(t, m.receive(p))
				m.advance(test.every)
				if _, ok := m.c.Lookup(cn, home); ok {
					m.step(Transmit{raw(cn, home, wire.UDP, udp)})
				}
			}
			if _, ok := m.c.Lookup(cn, home); ok == test.gone {
				t.Errorf("bound: %t", ok)
			}
		})
	}

	// Nothing was sent for a while: nothing of ours can have caused it.
	m := newHost(t).mobile().rr()
	m.bind(good)
	m.step(Transmit{raw(cn, home, wire.UDP, udp)})
	m.advance(time.Minute + 1)
	for range 6 {
		m.receive(m.errorAbout(unreachable, right))
		m.advance(time.Second)
	}
	m.bound()

	// A Binding Update starts the count again.
	for range 4 {
		m.step(Transmit{raw(cn, home, wire.UDP, udp)})
		m.receive(m.errorAbout(unreachable, right))
		m.advance(time.Second)
		m.bound().rr().bind(good)
	}
	m.bound()
}

// An error about our own messages is no concern of the upper layers, but counts.
func TestErrorsAboutAcknowledgements(t *testing.T) {
	m := newHost(t).mobile().rr()
	p := m.send(good)
	for range 3 {
		m.receive(m.errorAbout(wire.ICMPError{Kind: wire.Unreachable}, p[0].raw))
		if len(m.delivered) != 0 {
			t.Error("delivered")
		}
		m.advance(time.Second)
	}
	m.bound()
	m.receive(m.errorAbout(wire.ICMPError{Kind: wire.Unreachable}, p[0].raw))
	m.unbound()
}

// A deletion is good with either address that implementations sign.
func TestSection6_2_7DeletionSigned(t *testing.T) {
	for _, signed := range []netip.Addr{coa1, home} {
		m := newHost(t).mobile().rr()
		m.bind(good)
		b := bu{lifetime: -1, signed: signed}
		m.accepted(m.send(b), coa1, home, &b)
		m.unbound()
	}
}

// Nested bindings are followed to their end before another is added.
func TestSection6_1_7Circular(t *testing.T) {
	h := newHost(t, unlimited)
	a := func(i int) netip.Addr { return numbered(0x3000, i+1) }
	for i := range 6 {
		m := h.mobile()
		m.home, m.coa = a(i), a(i+1)
		m.rr().bind(good)
	}
	m := h.mobile()
	m.home, m.coa = a(6), a(0)
	silence(t, m.rr().send(good))
	m.coa = a(7)
	m.coti().bind(good)
	m.home, m.coa = a(20), a(0)
	m.rr().bind(good)
	m.home, m.coa = a(7), a(8)
	m.rr().bind(good)
	m.home, m.coa = a(21), a(20) // nine deep, and no circle: nobody needs that
	silence(t, m.rr().send(good))
}
