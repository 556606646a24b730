package ladder

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

var (
	client = netip.MustParseAddr("2001:db8:c::1")
	home   = netip.MustParseAddr("2001:db8:d::1")
	careOf = netip.MustParseAddr("2001:db8:e::1")
	agent  = netip.MustParseAddr("2001:db8:d::a")
)

type sample struct {
	packet    []byte
	label     string
	class     string
	kind      Kind
	protocols string // as tshark names them; "": it need not know
}

func pack(t testing.TB, p wire.Packet) []byte {
	t.Helper()
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func segment(flags byte, size int) []byte {
	b := make([]byte, 20+size)
	binary.BigEndian.PutUint16(b[0:], 443)
	binary.BigEndian.PutUint16(b[2:], 50123)
	b[12], b[13] = 5<<4, flags
	return b
}

func samples(t testing.TB) []sample {
	t.Helper()
	tcp := func(flags byte, size int) []byte {
		return pack(t, wire.Packet{Src: home, Dst: client, Protocol: wire.TCP, Payload: segment(flags, size)})
	}
	mh := func(p wire.Packet, m wire.Message) []byte {
		p.Protocol, p.Payload = wire.Mobility, m.Append(nil, p.Source(), p.Destination())
		return pack(t, p)
	}
	out := func(m wire.Message) []byte { return mh(wire.Packet{Src: careOf, Dst: client}, m) }
	bound := func(m wire.Message) []byte { return mh(wire.Packet{Src: careOf, Dst: client, Home: home}, m) }
	back := func(m wire.Message) []byte { return mh(wire.Packet{Src: client, Dst: careOf, Routing: home}, m) }
	tunnel := func(inner []byte) []byte {
		b, err := wire.AppendTunnel(nil, careOf, agent, inner)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	icmp := func(m wire.ICMP) []byte {
		return pack(t, wire.Packet{Src: client, Dst: home, Protocol: wire.ICMPv6, Payload: m.Append(nil, client, home)})
	}
	fail := func(kind wire.ErrorKind, code uint8, param uint32) []byte {
		return icmp(&wire.ICMPError{Kind: kind, Code: code, Param: param, Quoted: tcp(tcpACK, 0)})
	}
	other := func(kind uint8) []byte { return icmp(&wire.ICMPError{Kind: wire.ErrorKind(kind)}) }
	local := func(m wire.ICMP) []byte { // Neighbor Discovery
		return pack(t, wire.Packet{HopLimit: 255, Src: client, Dst: home, Protocol: wire.ICMPv6, Payload: m.Append(nil, client, home)})
	}
	broken := func(b []byte, at int, value byte) []byte { b[at] = value; return b }
	const ip, tun, mip = "raw:ipv6", "raw:ipv6:ipv6", "raw:ipv6:mipv6"
	hoti := mh(wire.Packet{Src: home, Dst: client}, &wire.HomeTestInit{Cookie: wire.Cookie{1}})
	return []sample{
		{tcp(tcpSYN, 0), "TCP 443 -> 50123 SYN", "", Data, ip + ":tcp"},
		{tcp(tcpSYN|tcpACK, 0), "TCP 443 -> 50123 SYN ACK", "", Data, ip + ":tcp"},
		{tcp(tcpACK, 0), "TCP 443 -> 50123 ACK", "TCP ACK", Data, ip + ":tcp"},
		{tcp(tcpACK|tcpPSH, 1400), "TCP 443 -> 50123 PSH 1400", "TCP data", Data, ""},
		{tcp(tcpACK, 1), "TCP 443 -> 50123 1", "TCP data", Data, ""},
		{tcp(tcpACK|tcpFIN, 0), "TCP 443 -> 50123 FIN", "", Data, ip + ":tcp"},
		{tcp(tcpRST, 0), "TCP 443 -> 50123 RST", "", Error, ip + ":tcp"},
		{pack(t, wire.Packet{Src: careOf, Dst: client, Home: home, Protocol: wire.TCP, Payload: segment(tcpACK, 0)}),
			"TCP 443 -> 50123 ACK +HAO", "TCP ACK +HAO", Data, "raw:ipv6:ipv6.dstopts:tcp"},
		{pack(t, wire.Packet{Src: client, Dst: careOf, Routing: home, Protocol: wire.TCP, Payload: segment(tcpSYN, 0)}),
			"TCP 443 -> 50123 SYN +RH2", "", Data, "raw:ipv6:ipv6.routing:tcp"},
		{tunnel(tcp(tcpACK, 0)), "tunnel[TCP 443 -> 50123 ACK]", "tunnel[TCP ACK]", Data, tun + ":tcp"},
		{tcp(tcpACK, 0)[:59], "malformed, 59 octets", "", Error, ""},
		{pack(t, wire.Packet{Src: home, Dst: client, Protocol: wire.TCP, Payload: []byte{1, 2, 3}}), "malformed, 3 octets", "", Error, ""},
		{pack(t, wire.Packet{Src: home, Dst: client, Protocol: wire.UDP, Payload: []byte{0, 7, 0, 9, 0, 10, 0, 0, 1, 2}}), "UDP 7 -> 9 2", "UDP", Data, ""},
		{pack(t, wire.Packet{Src: home, Dst: client, Protocol: wire.NoNext}), "empty", "", Data, ""},
		{pack(t, wire.Packet{Src: home, Dst: client, Protocol: wire.ESP, Payload: make([]byte, 16)}), "protocol 50, 16 octets", "protocol 50", Data, ""},
		{append([]byte{0x45}, make([]byte, 19)...), "IPv4, 20 octets", "IPv4", Data, ""},
		{nil, "malformed, 0 octets", "", Error, ""},

		{out(&wire.CareOfTestInit{}), "CoTI", "", Signal, mip},
		{mh(wire.Packet{Src: client, Dst: careOf}, &wire.CareOfTest{NonceIndex: 3}), "CoT", "", Signal, mip},
		{hoti, "HoTI", "", Signal, mip},
		{tunnel(hoti), "tunnel[HoTI]", "", Signal, tun + ":mipv6"},
		{mh(wire.Packet{Src: client, Dst: home}, &wire.HomeTest{NonceIndex: 3}), "HoT", "", Signal, mip},
		{bound(&wire.BindingUpdate{Sequence: 7, Ack: true, Lifetime: 420 * time.Second, HasNonces: true, Authenticated: true}),
			"BU seq 7 420 s", "", Signal, "raw:ipv6:ipv6.dstopts:mipv6"},
		{bound(&wire.BindingUpdate{Sequence: 8, HasNonces: true, Authenticated: true}), "BU seq 8 delete", "", Signal, "raw:ipv6:ipv6.dstopts:mipv6"},
		{mh(wire.Packet{Src: careOf, Dst: agent, Home: home}, &wire.BindingUpdate{Sequence: 1, Ack: true, Home: true, Lifetime: 4 * time.Minute, AltCareOf: careOf}),
			"home BU seq 1 240 s", "", Signal, "raw:ipv6:ipv6.dstopts:mipv6"},
		{back(&wire.BindingAck{Sequence: 7, Lifetime: 420 * time.Second, Authenticated: true}), "BA seq 7 420 s", "", Signal, "raw:ipv6:ipv6.routing:mipv6"},
		{back(&wire.BindingAck{Status: wire.SequenceOutOfWindow, Sequence: 9}), "BA seq 9 status 135", "", Error, "raw:ipv6:ipv6.routing:mipv6"},
		{back(&wire.BindingRefreshRequest{}), "BRR", "", Signal, "raw:ipv6:ipv6.routing:mipv6"},
		{mh(wire.Packet{Src: client, Dst: careOf}, &wire.BindingError{Status: wire.UnknownBinding, Home: home}), "BE unknown binding", "", Error, mip},
		{mh(wire.Packet{Src: client, Dst: careOf}, &wire.BindingError{Status: wire.UnknownMHType, Home: home}), "BE unknown type", "", Error, mip},

		{fail(wire.Unreachable, 3, 0), "ICMPv6 Unreachable code 3", "", Error, "raw:ipv6:icmpv6:ipv6:tcp"},
		{fail(wire.PacketTooBig, 0, 1400), "ICMPv6 Packet Too Big 1400", "", Error, "raw:ipv6:icmpv6:ipv6:tcp"},
		{fail(wire.TimeExceeded, 0, 0), "ICMPv6 Time Exceeded", "", Error, "raw:ipv6:icmpv6:ipv6:tcp"},
		{fail(wire.ParameterProblem, 1, 6), "ICMPv6 Parameter Problem code 1 at 6", "", Error, "raw:ipv6:icmpv6:ipv6:tcp"},
		{icmp(&wire.AgentRequest{ID: 1}), "ICMPv6 Home Agent Address Discovery Request", "", Signal, "raw:ipv6:icmpv6"},
		{icmp(&wire.AgentReply{ID: 1, Agents: []netip.Addr{agent}}), "ICMPv6 Home Agent Address Discovery Reply", "", Signal, "raw:ipv6:icmpv6"},
		{icmp(&wire.PrefixSolicitation{ID: 1}), "ICMPv6 Mobile Prefix Solicitation", "", Signal, "raw:ipv6:icmpv6"},
		{icmp(&wire.PrefixAdvertisement{ID: 1}), "ICMPv6 Mobile Prefix Advertisement", "", Signal, ""},
		{local(&wire.NeighborSolicitation{Target: home}), "NS 2001:db8:d::1", "", Signal, "raw:ipv6:icmpv6"},
		{local(&wire.NeighborAdvertisement{Target: client}), "NA 2001:db8:c::1", "", Signal, "raw:ipv6:icmpv6"},
		{other(128), "ICMPv6 Echo Request", "ICMPv6 Echo", Data, "raw:ipv6:icmpv6"},
		{other(129), "ICMPv6 Echo Reply", "ICMPv6 Echo", Data, "raw:ipv6:icmpv6"},
		{other(143), "ICMPv6 type 143", "", Signal, ""},
		{broken(other(128), 47, 1), "ICMPv6 malformed", "", Error, ""},

		{broken(out(&wire.CareOfTestInit{}), 42, 99), "malformed mobility header", "", Error, ""}, // the checksum
		// Type 99, with the checksum kept right by the cookie.
		{broken(broken(out(&wire.CareOfTestInit{Cookie: wire.Cookie{97}}), 42, 99), 48, 0), "mobility header type 99", "", Signal, ""},
		{mh(wire.Packet{Src: client, Dst: careOf}, &wire.BindingError{Status: 7, Home: home}), "BE status 7", "", Error, ""},
		{pack(t, wire.Packet{Src: home, Dst: client, Protocol: wire.Fragment, Payload: append([]byte{6, 0, 0, 1, 0, 0, 0, 1}, make([]byte, 64)...)}),
			"fragment, 72 octets", "fragment", Data, ""},
		{pack(t, wire.Packet{Src: careOf, Dst: agent, Protocol: wire.IPv6, Payload: []byte{1}}), "tunnel[malformed]", "", Error, ""},
	}
}

func TestDescribe(t *testing.T) {
	for _, s := range samples(t) {
		t.Run(s.label, func(t *testing.T) {
			got := Packet(time.Second, "a", "b", s.packet)
			if got.Label != s.label || got.Class != s.class || got.Kind != s.kind {
				t.Errorf("got %q, class %q, kind %d; want %q, class %q, kind %d", got.Label, got.Class, got.Kind, s.label, s.class, s.kind)
			}
			if got.Tunnel != (len(s.label) > 7 && s.label[:7] == "tunnel[") {
				t.Errorf("tunnel %v", got.Tunnel)
			}
			if Describe(s.packet) != s.label {
				t.Errorf("Describe: %q", Describe(s.packet))
			}
		})
	}
}

// FuzzDescribe: whatever the packet, the label is one line, and not long.
func FuzzDescribe(f *testing.F) {
	for _, s := range samples(f) {
		f.Add(s.packet)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		label := Describe(b)
		if len(label) == 0 || len(label) > 300 {
			t.Errorf("%d octets: %s", len(label), label)
		}
		for _, c := range label {
			if c < ' ' {
				t.Errorf("control character in %q", label)
			}
		}
	})
}
