package wire

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
)

var (
	linkAddr  = []byte{0x52, 0x54, 0, 0, 0x0a, 1}
	solicited = netip.MustParseAddr("ff02::1:ff00:1234")
	allNodes  = netip.MustParseAddr("ff02::1")
)

// icmpMessages are ICMPv6 messages from home to correspondent.
var icmpMessages = []struct {
	name string
	m    ICMP
	hex  string
}{
	{"unreachable, RFC 4443 section 3.1", &ICMPError{Kind: Unreachable, Code: 3, Quoted: []byte{0x60, 1}},
		"01 03 30f9 00000000 6001"},
	{"packet too big, RFC 4443 section 3.2", &ICMPError{Kind: PacketTooBig, Param: 1400, Quoted: []byte{0x60, 1, 2}},
		"02 00 2883 00000578 600102"},
	{"time exceeded, RFC 4443 section 3.3", &ICMPError{Kind: TimeExceeded, Quoted: []byte{}},
		"03 00 8eff 00000000"},
	{"parameter problem, RFC 4443 section 3.4", &ICMPError{Kind: ParameterProblem, Code: 2, Param: 42, Quoted: []byte{0x60}},
		"04 02 2dd2 0000002a 60"},
	{"home agent address discovery request, RFC 6275 section 6.5", &AgentRequest{ID: 0x1234},
		"90 00 efca 1234 0000"},
	{"home agent address discovery reply, RFC 6275 section 6.6", &AgentReply{ID: 0x1234, Agents: []netip.Addr{agent, correspondent}},
		"91 00 931f 1234 0000 20010db8000a00000000000000000001 20010db8000c00000000000000000002"},
	{"home agent address discovery reply: no home agent", &AgentReply{ID: 1},
		"91 00 00fe 0001 0000"},
	{"mobile prefix solicitation, RFC 6275 section 6.7", &PrefixSolicitation{ID: 0x1234},
		"92 00 edca 1234 0000"},
	{"mobile prefix advertisement, RFC 6275 section 6.8, prefix information, RFC 4861 section 4.6.2",
		&PrefixAdvertisement{ID: 0x1234, Managed: true, Prefixes: []PrefixInfo{
			{Prefix: netip.MustParsePrefix("2001:db8:a::1/64"), OnLink: true, Autonomous: true, Router: true,
				Valid: 86400 * time.Second, Preferred: 14400 * time.Second},
			{Prefix: netip.MustParsePrefix("2001:db8:b::/48"), Valid: Infinite, Preferred: 0},
		}},
		"93 00 1058 1234 8000 " +
			"03 04 40 e0 00015180 00003840 00000000 20010db8000a00000000000000000001" +
			"03 04 30 00 ffffffff 00000000 00000000 20010db8000b00000000000000000000"},
	{"mobile prefix advertisement: other configuration", &PrefixAdvertisement{ID: 1, Other: true},
		"93 00 befd 0001 4000"},
	{"neighbor solicitation, RFC 4861 section 4.3", &NeighborSolicitation{Target: home, Source: linkAddr},
		"87 00 6d99 00000000 20010db8000a00000000000000001234 0101 525400000a01"},
	{"neighbor solicitation: no option", &NeighborSolicitation{Target: home},
		"87 00 caf7 00000000 20010db8000a00000000000000001234"},
	{"neighbor advertisement, RFC 4861 section 4.4",
		&NeighborAdvertisement{Router: true, Solicited: true, Override: true, Target: home, TargetLink: linkAddr},
		"88 00 8b98 e0000000 20010db8000a00000000000000001234 0201 525400000a01"},
	{"neighbor advertisement: solicited", &NeighborAdvertisement{Solicited: true, Target: home},
		"88 00 89f7 40000000 20010db8000a00000000000000001234"},
}

// icmp is a packet that has the ICMPv6 message b, with its checksum made right.
func icmp(src, dst netip.Addr, b []byte) Packet {
	b[2], b[3] = 0, 0
	binary.BigEndian.PutUint16(b[2:], checksum(b, src, dst, ICMPv6))
	return Packet{HopLimit: 255, Src: src, Dst: dst, Protocol: ICMPv6, Payload: b}
}

func TestICMP(t *testing.T) {
	for _, tt := range icmpMessages {
		t.Run(tt.name, func(t *testing.T) {
			want := unhex(t, tt.hex)
			got := tt.m.Append([]byte("before"), home, correspondent)
			same(t, "written", got, append([]byte("before"), want...))
			p := Packet{HopLimit: 255, Src: home, Dst: correspondent, Protocol: ICMPv6, Payload: want}
			m, err := ParseICMP(&p)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(m, tt.m) {
				t.Errorf("parsed\n%+v, want\n%+v", m, tt.m)
			}
		})
	}
}

// Lifetimes of prefixes are whole seconds and do not wrap; without the R bit
// what is beyond the prefix does not count.
func TestPrefixInfo(t *testing.T) {
	in := PrefixAdvertisement{Prefixes: []PrefixInfo{
		{Prefix: netip.MustParsePrefix("2001:db8:a::1/64"), Valid: -1, Preferred: 1999 * time.Millisecond},
		{Prefix: netip.MustParsePrefix("2001:db8:a::1/64"), Valid: 1<<63 - 1, Preferred: Infinite + time.Second},
	}}
	p := Packet{Src: home, Dst: correspondent, Protocol: ICMPv6, Payload: in.Append(nil, home, correspondent)}
	m, err := ParseICMP(&p)
	if err != nil {
		t.Fatal(err)
	}
	want := &PrefixAdvertisement{Prefixes: []PrefixInfo{
		{Prefix: netip.MustParsePrefix("2001:db8:a::/64"), Valid: 0, Preferred: time.Second},
		{Prefix: netip.MustParsePrefix("2001:db8:a::/64"), Valid: Infinite, Preferred: Infinite},
	}}
	if !reflect.DeepEqual(m, ICMP(want)) {
		t.Errorf("got %+v, want %+v", m, want)
	}
}

func TestParseICMP(t *testing.T) {
	const target = "20010db8000a00000000000000001234"
	unspecified := netip.IPv6Unspecified()
	ok := func(p Packet) Packet { return p }
	hops := func(n uint8) func(Packet) Packet { return func(p Packet) Packet { p.HopLimit = n; return p } }
	tests := []struct {
		name     string
		src, dst netip.Addr
		hex      string
		change   func(Packet) Packet
		want     string // type, "nil" or "error"
	}{
		{"echo request", home, correspondent, "80 00 0000 00010001", ok, "nil"},
		{"an error of a kind that is unknown", home, correspondent, "64 00 0000 00010001", ok, "nil"},
		{"router advertisement", home, correspondent, "86 00 0000 4000 0708 00000000 00000000", ok, "nil"},
		{"wrong checksum", home, correspondent, "80 00 0000 00010001",
			func(p Packet) Packet { p.Payload[3]++; return p }, "error"},
		{"checksum over other addresses", home, correspondent, "80 00 0000 00010001",
			func(p Packet) Packet { p.Src = careOf; return p }, "error"},
		{"checksum over the home address", home, correspondent, "92 00 0000 00010000",
			func(p Packet) Packet { p.Src, p.Home = careOf, p.Src; return p }, "*wire.PrefixSolicitation"},
		{"not ICMPv6", home, correspondent, "80 00 0000 00010001",
			func(p Packet) Packet { p.Protocol = UDP; return p }, "error"},
		{"seven octets", home, correspondent, "80 00 0000 000100", ok, "error"},

		{"discovery reply with a part of an address", home, correspondent, "91 00 0000 0001 0000 20010db8", ok, "error"},
		{"MN-5-1-2-1-021: discovery reply, reserved is ignored", home, correspondent, "91 00 0000 0001 ffff " + target, ok, "*wire.AgentReply"},
		{"MN-4-2-1-1-015: prefix advertisement, reserved is ignored", home, correspondent, "93 00 0000 0001 3fff", ok, "*wire.PrefixAdvertisement"},
		{"MN-4-2-1-1-019: prefix advertisement, unknown option is skipped", home, correspondent,
			"93 00 0000 0001 0000 7f01 000000000000", ok, "*wire.PrefixAdvertisement"},
		{"prefix information of 40 octets", home, correspondent, "93 00 0000 0001 0000 0305 4000 00000000 00000000 00000000" + target + target[:16], ok, "error"},
		{"prefix of 129 bits", home, correspondent, "93 00 0000 0001 0000 0304 8100 00000000 00000000 00000000" + target, ok, "error"},
		{"option of length 0", home, correspondent, "93 00 0000 0001 0000 7f00 000000000000", ok, "error"},
		{"option that exceeds the message", home, correspondent, "93 00 0000 0001 0000 7f02 000000000000", ok, "error"},
		{"a part of an option", home, correspondent, "93 00 0000 0001 0000 7f01", ok, "error"},

		{"solicitation, RFC 4861 section 7.1.1", home, solicited, "87 00 0000 00000000" + target + "0101 525400000a01", ok, "*wire.NeighborSolicitation"},
		{"solicitation: reserved is ignored", home, solicited, "87 00 0000 ffffffff" + target, ok, "*wire.NeighborSolicitation"},
		{"solicitation: unknown option is skipped", home, solicited, "87 00 0000 00000000" + target + "0e01 525400000a01", ok, "*wire.NeighborSolicitation"},
		{"solicitation: not from the link", home, solicited, "87 00 0000 00000000" + target, hops(254), "error"},
		{"solicitation: code", home, solicited, "87 01 0000 00000000" + target, ok, "error"},
		{"solicitation: too short", home, solicited, "87 00 0000 00000000" + target[:30], ok, "error"},
		{"solicitation: multicast target", home, solicited, "87 00 0000 00000000 ff020000000000000000000000000001", ok, "error"},
		{"solicitation: option of length 0", home, solicited, "87 00 0000 00000000" + target + "0100 525400000a01", ok, "error"},
		{"duplicate address detection", unspecified, solicited, "87 00 0000 00000000" + target, ok, "*wire.NeighborSolicitation"},
		{"duplicate address detection to another group", unspecified, allNodes, "87 00 0000 00000000" + target, ok, "error"},
		{"duplicate address detection with an option", unspecified, solicited, "87 00 0000 00000000" + target + "0101 525400000a01", ok, "error"},

		{"advertisement, RFC 4861 section 7.1.2", home, allNodes, "88 00 0000 20000000" + target + "0201 525400000a01", ok, "*wire.NeighborAdvertisement"},
		{"advertisement: solicited, to all", home, allNodes, "88 00 0000 40000000" + target, ok, "error"},
		{"advertisement: not from the link", home, correspondent, "88 00 0000 40000000" + target, hops(64), "error"},
		{"advertisement: multicast target", home, correspondent, "88 00 0000 40000000 ff020000000000000000000000000001", ok, "error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.change(icmp(tt.src, tt.dst, unhex(t, tt.hex)))
			m, err := ParseICMP(&p)
			got := "nil"
			switch {
			case err != nil:
				got = "error"
			case m != nil:
				got = reflect.TypeOf(m).String()
			}
			if got != tt.want {
				t.Errorf("%s (%v), want %s", got, err, tt.want)
			}
		})
	}
}

// A link-layer address that is not of Ethernet is not understood; what is
// parsed is a copy.
func TestLinkAddress(t *testing.T) {
	const target = "20010db8000a00000000000000001234"
	p := icmp(home, correspondent, unhex(t, "88 00 0000 40000000"+target+"0202 525400000a01 0000000000000000 0201 525400000a01"))
	m, err := ParseICMP(&p)
	if err != nil {
		t.Fatal(err)
	}
	clear(p.Payload)
	same(t, "link-layer address", m.(*NeighborAdvertisement).TargetLink, linkAddr)
	long := NeighborAdvertisement{Target: home, TargetLink: make([]byte, 8)}
	if n := len(long.Append(nil, home, correspondent)); n != 24 {
		t.Errorf("%d octets", n)
	}
}

// An error is a packet that fits 1280 octets and quotes as much as it can
// (RFC 4443 section 2.4 (c)).
func TestAppendError(t *testing.T) {
	for _, n := range []int{0, 8, 1191, 1192, 1193, 9000} {
		p := Packet{Src: careOf, Dst: correspondent, Home: home, Protocol: TCP, Payload: make([]byte, n)}
		invoking, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		b, ok := AppendError([]byte("before"), correspondent, ParameterProblem, 1, 6, append(invoking, "link"...), false)
		if !ok {
			t.Fatalf("%d: refused", n)
		}
		b = b[len("before"):]
		if want := min(48+len(invoking), MinMTU); len(b) != want {
			t.Errorf("%d: %d octets, want %d", n, len(b), want)
		}
		e, err := ParsePacket(b)
		if err != nil {
			t.Fatal(err)
		}
		if e.Src != correspondent || e.Dst != careOf { // not home: the option may be what is wrong
			t.Errorf("from %v to %v", e.Src, e.Dst)
		}
		m, err := ParseICMP(&e)
		if err != nil {
			t.Fatal(err)
		}
		want := &ICMPError{Kind: ParameterProblem, Code: 1, Param: 6, Quoted: invoking[:len(b)-48]}
		if !reflect.DeepEqual(m, ICMP(want)) {
			t.Errorf("%d: %+v, want %+v", n, m, want)
		}
	}
}

// Where no error may be sent (RFC 4443 section 2.4 (e)).
func TestAppendErrorRefuses(t *testing.T) {
	group := netip.MustParseAddr("ff0e::1")
	packet := func(src, dst netip.Addr, next Protocol, rest string) []byte {
		b, err := (&Packet{Src: src, Dst: dst, Protocol: next, Payload: unhex(t, rest)}).Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain := packet(home, correspondent, UDP, "0001000200080000")
	tests := []struct {
		name     string
		kind     ErrorKind
		even     bool
		invoking []byte
		ok       bool
	}{
		{"a datagram", Unreachable, false, plain, true},
		{"an echo request", Unreachable, false, packet(home, correspondent, ICMPv6, "8000000000000000"), true},
		{"an error (e.1)", Unreachable, false, packet(home, correspondent, ICMPv6, "0100000000000000"), false},
		{"an error of an unknown kind", Unreachable, false, packet(home, correspondent, ICMPv6, "7f00000000000000"), false},
		{"a redirect (e.2)", Unreachable, false, packet(home, correspondent, ICMPv6, "8900000000000000"), false},
		{"an error behind options", Unreachable, false, packet(home, correspondent, DestOptions, "3a00010400000000 0100000000000000"), false},
		{"an error behind a routing header", Unreachable, false, packet(home, correspondent, Routing, "3a00000000000000 0100000000000000"), false},
		{"an error behind hop-by-hop options", Unreachable, true, packet(home, correspondent, HopByHop, "3a00010400000000 0100000000000000"), false},
		{"the first fragment of an error", Unreachable, false, packet(home, correspondent, Fragment, "3a00000100000001 0100000000000000"), false},
		{"a later fragment of ICMPv6", Unreachable, false, packet(home, correspondent, Fragment, "3a00000900000001 0100000000000000"), false},
		{"a later fragment of UDP", Unreachable, false, packet(home, correspondent, Fragment, "1100000900000001 0100000000000000"), true},
		{"ICMPv6 without a type", Unreachable, false, packet(home, correspondent, ICMPv6, ""), false},
		{"truncated options", Unreachable, false, packet(home, correspondent, DestOptions, "3a05010400000000"), false},
		{"what is no ICMPv6 at the end", Unreachable, false, packet(home, correspondent, DestOptions, "1105010400000000"), true},
		{"to a group (e.3)", Unreachable, false, packet(home, group, UDP, "0001000200080000"), false},
		{"to a group, too big", PacketTooBig, false, packet(home, group, UDP, "0001000200080000"), true},
		{"to a group, unknown option", ParameterProblem, true, packet(home, group, UDP, "0001000200080000"), true},
		{"from a group (e.6)", PacketTooBig, true, packet(group, correspondent, UDP, "0001000200080000"), false},
		{"from nowhere (e.6)", PacketTooBig, true, packet(netip.IPv6Unspecified(), correspondent, UDP, "0001000200080000"), false},
		{"a part of a header", Unreachable, false, plain[:39], false},
		{"a header alone", Unreachable, false, plain[:40], true},
		{"IPv4", Unreachable, false, append([]byte{0x45}, plain[1:]...), false},
		{"nothing", Unreachable, false, nil, false},
	}
	for _, tt := range tests {
		b, ok := AppendError([]byte("before"), agent, tt.kind, 0, 0, tt.invoking, tt.even)
		if ok != tt.ok || !ok && string(b) != "before" {
			t.Errorf("%s: %t", tt.name, ok)
		}
	}
	for _, src := range []netip.Addr{{}, netip.IPv6Unspecified(), group, netip.MustParseAddr("192.0.2.1")} {
		if _, ok := AppendError(nil, src, Unreachable, 0, 0, plain, false); ok {
			t.Errorf("from %v", src)
		}
	}
}

// What the entrance of a tunnel tells the source of a packet when it hears of
// an error in the tunnel (RFC 2473 section 8).
func TestAppendRelayed(t *testing.T) {
	inner, err := (&Packet{Src: correspondent, Dst: home, Protocol: UDP, Payload: make([]byte, 1400)}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	icmpInside, err := (&Packet{Src: correspondent, Dst: home, Protocol: ICMPv6,
		Payload: (&ICMPError{Kind: Unreachable}).Append(nil, correspondent, home)}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	outer, err := AppendTunnel(nil, agent, careOf, inner)
	if err != nil {
		t.Fatal(err)
	}
	outerOfError, err := AppendTunnel(nil, agent, careOf, icmpInside)
	if err != nil {
		t.Fatal(err)
	}
	// With a tunnel encapsulation limit, RFC 2473 section 4.1.1.
	limited, err := (&Packet{Src: agent, Dst: careOf, Protocol: DestOptions,
		Payload: slices.Concat([]byte{byte(IPv6), 0, 4, 1, 0, 1, 1, 0}, outer[40:])}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	fragment, err := (&Packet{Src: agent, Dst: careOf, Protocol: Fragment,
		Payload: slices.Concat([]byte{byte(IPv6), 0, 0, 9, 0, 0, 0, 1}, inner)}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	refused := ICMPError{}
	tests := []struct {
		name string
		in   ICMPError
		want ICMPError // without what it quotes
	}{
		{"too big: less by the header", ICMPError{Kind: PacketTooBig, Param: 1400, Quoted: outer}, ICMPError{Kind: PacketTooBig, Param: 1360}},
		{"too big: less by all headers", ICMPError{Kind: PacketTooBig, Param: 1400, Quoted: limited}, ICMPError{Kind: PacketTooBig, Param: 1352}},
		{"too big: never below 1280", ICMPError{Kind: PacketTooBig, Param: 1300, Quoted: outer}, ICMPError{Kind: PacketTooBig, Param: 1280}},
		{"too big: nonsense", ICMPError{Kind: PacketTooBig, Param: 0, Quoted: outer}, ICMPError{Kind: PacketTooBig, Param: 1280}},
		{"too big: more nonsense", ICMPError{Kind: PacketTooBig, Param: 0xffffffff, Quoted: outer}, ICMPError{Kind: PacketTooBig, Param: 0xffffffff - 40}},
		{"time exceeded", ICMPError{Kind: TimeExceeded, Quoted: outer}, ICMPError{Kind: Unreachable, Code: 3}},
		{"unreachable", ICMPError{Kind: Unreachable, Code: 1, Quoted: outer}, ICMPError{Kind: Unreachable, Code: 3}},
		{"parameter problem: no tunnel there", ICMPError{Kind: ParameterProblem, Code: 1, Param: 6, Quoted: outer}, ICMPError{Kind: Unreachable, Code: 3}},
		{"parameter problem: encapsulation limit", ICMPError{Kind: ParameterProblem, Param: 42, Quoted: limited}, ICMPError{Kind: Unreachable, Code: 3}},
		{"parameter problem about what is inside", ICMPError{Kind: ParameterProblem, Code: 1, Param: 46, Quoted: outer}, refused},
		{"an error inside", ICMPError{Kind: Unreachable, Quoted: outerOfError}, refused},
		{"the inner header and no more", ICMPError{Kind: Unreachable, Quoted: outer[:80]}, ICMPError{Kind: Unreachable, Code: 3}},
		{"a part of the inner header", ICMPError{Kind: Unreachable, Quoted: outer[:79]}, refused},
		{"a part of the outer header", ICMPError{Kind: Unreachable, Quoted: outer[:39]}, refused},
		{"not a tunnel", ICMPError{Kind: Unreachable, Quoted: inner}, refused},
		{"a later fragment", ICMPError{Kind: Unreachable, Quoted: fragment}, refused},
		{"IPv4", ICMPError{Kind: Unreachable, Quoted: append([]byte{0x45}, outer[1:]...)}, refused},
		{"another kind", ICMPError{Kind: 100, Quoted: outer}, refused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, ok := AppendRelayed([]byte("before"), agent, &tt.in)
			if !ok {
				if tt.want.Kind != 0 || string(b) != "before" {
					t.Errorf("refused: %q", b)
				}
				return
			}
			b = b[len("before"):]
			p, err := ParsePacket(b)
			if err != nil {
				t.Fatal(err)
			}
			if p.Src != agent || p.Dst != correspondent || len(b) > MinMTU {
				t.Errorf("from %v to %v, %d octets", p.Src, p.Dst, len(b))
			}
			m, err := ParseICMP(&p)
			if err != nil {
				t.Fatal(err)
			}
			e := *m.(*ICMPError)
			quoted := e.Quoted
			e.Quoted = nil
			if !reflect.DeepEqual(e, tt.want) {
				t.Errorf("got %+v, want %+v", e, tt.want)
			}
			lowered := slices.Clone(inner)
			lowered[7]--
			if len(quoted) < 40 || !slices.Equal(quoted, lowered[:len(quoted)]) {
				t.Errorf("quotes %x", quoted)
			}
		})
	}
}
