package homeagent

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// RFC 2473 section 7.1: larger than fits with the tunnel's header.
func TestTunnelMTU(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, 2*time.Hour))
	h := s.m.homes[home.As16()]

	s.receive(s.echo(cn, home, 1460))
	s.want("send: tunnel to coa1 [echo cn > home]")
	s.receive(s.echo(cn, home, 1461))
	s.want("send: ICMP error 2/0 1460 to cn")

	// A router on the way knows better, and the sender is told.
	s.receive(s.echo(cn, home, 1460))
	quoted := s.raw[s.log[0]]
	s.forget()
	tooBig := func(mtu uint32) {
		s.receive(s.icmp(wire.Packet{Src: stranger, Dst: agentAddr}, &wire.ICMPError{Kind: wire.PacketTooBig, Param: mtu, Quoted: quoted[:1200]}))
	}
	tooBig(1400)
	s.want("send: ICMP error 2/0 1360 to cn")
	s.receive(s.echo(cn, home, 1361))
	s.want("send: ICMP error 2/0 1360 to cn")
	s.receive(s.echo(cn, home, 1360))
	s.want("send: tunnel to coa1 [echo cn > home]")
	// It does not become larger by such a message, ...
	tooBig(1450)
	s.silence()
	if m := s.m.pathMTU(h); m != 1400 {
		t.Errorf("MTU %d", m)
	}
	// ... but with time,
	s.wait(mtuTimeout)
	s.step(Tick{})
	if m := s.m.pathMTU(h); m != 1500 {
		t.Errorf("MTU %d", m)
	}
	// and with another path.
	tooBig(1400)
	u := seq(16, 2*time.Hour)
	u.src = coa2
	s.bind(u)
	if m := s.m.pathMTU(h); m != 1500 {
		t.Errorf("MTU %d", m)
	}
}

// RFC 2473 section 7.1 (b): nobody may be told to send less than 1280 octets,
// so the tunnel packet is fragmented.
func TestTunnelFragments(t *testing.T) {
	s := newScene(t, func(cfg *Config) { cfg.TunnelMTU = 1280 })
	s.bind(seq(15, long))
	s.receive(s.echo(cn, home, 1240))
	s.want("send: tunnel to coa1 [echo cn > home]")
	s.receive(s.echo(cn, home, 1281))
	s.want("send: ICMP error 2/0 1280 to cn")

	for _, size := range []int{1241, 1279, 1280} {
		in := s.echo(cn, home, size)
		out := s.m.Step(s.now, Received{in})
		if len(out.Send) != 2 {
			t.Fatalf("%d octets become %d packets", size, len(out.Send))
		}
		var whole []byte
		for i, b := range out.Send {
			p, err := wire.ParsePacket(b)
			if err != nil {
				t.Fatal(err)
			}
			if p.Protocol != wire.Fragment || p.Src != agentAddr || p.Dst != coa1 || len(b) > 1280 {
				t.Fatalf("fragment %+v of %d octets", p, len(b))
			}
			offset := binary.BigEndian.Uint16(p.Payload[2:])
			if int(offset&^7) != len(whole) || offset&1 != uint16(1-i) || p.Payload[0] != byte(wire.IPv6) {
				t.Fatalf("fragment %d has offset %d", i, offset)
			}
			if id := binary.BigEndian.Uint32(p.Payload[4:]); id != s.m.fragment {
				t.Fatalf("identification %d", id)
			}
			whole = append(whole, p.Payload[8:]...)
		}
		in[7]--
		if !bytes.Equal(whole, in) {
			t.Fatalf("%d octets: the fragments are not the packet", size)
		}
	}

	// An error about a fragment is nothing that the sender could help.
	out := s.m.Step(s.now, Received{s.echo(cn, home, 1280)})
	s.receive(s.icmp(wire.Packet{Src: stranger, Dst: agentAddr}, &wire.ICMPError{Kind: wire.Unreachable, Quoted: bytes.Clone(out.Send[0])}))
	s.silence()
}

func TestHopLimit(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, long))
	in := s.echo(cn, home)
	in[7] = 2
	s.receive(in)
	s.want("send: tunnel to coa1 [echo cn > home]")
	if b := s.raw["send: tunnel to coa1 [echo cn > home]"]; b[7] != wire.DefaultHopLimit || b[40+7] != 1 {
		t.Errorf("hop limits %d, %d", b[7], b[47])
	}
	in[7] = 1
	s.receive(in)
	s.want("send: ICMP error 3/0 0 to cn")

	out := s.echo(home, cn)
	out[7] = 2
	s.receive(s.tunnelled(coa1, out))
	s.want("send: echo home > cn")
	if b := s.raw["send: echo home > cn"]; b[7] != 1 {
		t.Errorf("hop limit %d", b[7])
	}
	// The mobile node is told through the tunnel.
	out[7] = 1
	s.receive(s.tunnelled(coa1, out))
	s.want("send: tunnel to coa1 [ICMP error 3/0 0 to home]")
}

// RFC 6040 section 4.2.
func TestCongestion(t *testing.T) {
	const notECT, ect1, ect0, ce = 0, 1, 2, 3
	for _, test := range []struct{ outer, inner, want int }{
		{notECT, notECT, notECT}, {ect0, notECT, notECT}, {ce, notECT, -1},
		{notECT, ect0, ect0}, {ect0, ect0, ect0}, {ce, ect0, ce},
		{ce, ect1, ce}, {ect0, ect1, ect1}, {ce, ce, ce}, {notECT, ce, ce},
	} {
		s := newScene(t)
		s.bind(seq(15, long))
		inner := s.echo(home, cn)
		inner[0], inner[1] = 0x6a, byte(0x8|test.inner)<<4|5 // traffic class 0xa8, flow label 5
		outer := wire.Packet{TrafficClass: uint8(test.outer), Src: coa1, Dst: agentAddr, Protocol: wire.IPv6, Payload: inner}
		out := s.m.Step(s.now, Received{s.bytes(&outer)})
		if test.want < 0 {
			if len(out.Send) > 0 {
				t.Errorf("%+v: not dropped", test)
			}
			continue
		}
		inner[1] = byte(0x8|test.want)<<4 | 5
		inner[7]--
		if len(out.Send) != 1 || !bytes.Equal(out.Send[0], inner) {
			t.Errorf("%+v: %x", test, out.Send)
		}
	}
}

// Other ends of tunnels add a limit of encapsulations (RFC 2473 section 5.1).
func TestEncapsulationLimit(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, long))
	limit := []byte{byte(wire.IPv6), 0, 4, 1, 4, 1, 1, 0}
	outer := wire.Packet{Src: coa1, Dst: agentAddr, Protocol: wire.DestOptions, Payload: append(limit, s.echo(home, cn)...)}
	s.receive(s.bytes(&outer))
	s.want("send: echo home > cn")
	outer.Src = coa2
	s.receive(s.bytes(&outer))
	s.silence()
}

// From one mobile node to another, both of this home agent.
func TestBothAway(t *testing.T) {
	for _, link := range []func(*Config){func(*Config) {}, virtual} {
		s := newScene(t, link)
		s.bind(seq(15, long))
		s.receive(s.tunnelled(coa1, s.echo(home, home2)))
		if s.real() {
			s.want("send: echo home > home2") // which is at home
		} else {
			s.silence()
		}
		u := seq(1, long)
		u.home, u.src = home2, coa2
		s.bind(u)
		s.receive(s.tunnelled(coa1, s.echo(home, home2)))
		s.want("send: tunnel to coa2 [echo home > home2]")
		s.receive(s.tunnelled(coa1, s.echo(home, home2, 1461)))
		s.want("send: tunnel to coa1 [ICMP error 2/0 1460 to home]")
	}
}

// What the home agent's host gets.
func TestLocal(t *testing.T) {
	s := newScene(t)
	s.receive(s.echo(cn, agentAddr))
	s.want("local: echo cn > agent")
	s.receive(s.mobility(cn, agentAddr, &wire.HomeTestInit{}))
	s.want("local: HomeTestInit cn > agent")
	u := seq(1, long)
	u.notHome, u.noAuth, u.Authenticated = true, true, true
	s.update(u)
	s.want("local: BindingUpdate coa1 > agent")

	s.bind(seq(15, long))
	s.receive(s.tunnelled(coa1, s.echo(home, agentAddr)))
	s.want("local: echo home > agent")
	// With a Home Address option: to upper layers it is from there.
	m := checksummed([]byte{128, 0, 0, 0, 0, 0, 0, 0}, home, agentAddr, 2)
	s.receive(s.bytes(&wire.Packet{Src: coa1, Dst: agentAddr, Home: home, Protocol: wire.ICMPv6, Payload: m}))
	s.want("local: echo home > agent")
	if p, _ := wire.ParsePacket(s.raw["local: echo home > agent"]); p.Src != home || p.Home.IsValid() {
		t.Errorf("from %v, home %v", p.Src, p.Home)
	}
	s.receive(s.bytes(&wire.Packet{Src: coa2, Dst: agentAddr, Home: home, Protocol: wire.ICMPv6, Payload: m}))
	s.want("send: BE 1 home to coa2")
}

// Packets that are for nobody here.
func TestStray(t *testing.T) {
	nobody := addr("2001:db8:a::99")
	s := newScene(t)
	s.receive(s.echo(cn, nobody))
	s.receive(s.echo(cn, stranger))
	s.receive(s.echo(cn, anycast))
	s.receive(s.echo(neighbor, linkLocal(home)))
	s.silence()

	// The prefix is routed to us, and only we can know.
	s = newScene(t, virtual)
	s.receive(s.echo(cn, nobody))
	s.want("send: ICMP error 1/3 0 to cn")
	s.receive(s.echo(cn, stranger))
	s.silence()
	s.bind(seq(15, long))
	s.receive(s.tunnelled(coa1, s.echo(home, nobody)))
	s.want("send: tunnel to coa1 [ICMP error 1/3 0 to home]")

	for _, b := range [][]byte{nil, {6 << 4}, s.echo(cn, home)[:47], make([]byte, 60)} {
		s.receive(b)
		s.hear(b)
	}
	s.silence()
	// A type 2 routing header is for mobile nodes, an unknown option for nobody.
	s.receive(s.bytes(&wire.Packet{Src: cn, Dst: agentAddr, Routing: home, Protocol: wire.NoNext}))
	s.silence()
	b := s.bytes(&wire.Packet{Src: cn, Dst: agentAddr, Protocol: wire.DestOptions, Payload: []byte{59, 0, 0x80, 4, 0, 0, 0, 0}})
	s.receive(b)
	s.want("send: ICMP error 4/2 42 to cn")
}

// What comes behind the length in the header, as padding of short frames, is
// not taken along.
func TestPadding(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, long))
	out := s.m.Step(s.now, Received{append(s.echo(cn, home), 1, 2, 3)})
	if len(out.Send) != 1 || len(out.Send[0]) != 40+48 {
		t.Errorf("%x", out.Send)
	}
	out = s.m.Step(s.now, Received{append(s.tunnelled(coa1, s.echo(home, cn)), 1, 2, 3)})
	if len(out.Send) != 1 || len(out.Send[0]) != 48 {
		t.Errorf("%x", out.Send)
	}
}

// The input is neither changed nor kept.
func TestInputStays(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, long))
	for _, b := range [][]byte{
		s.packet(seq(16, long)), s.echo(cn, home), s.tunnelled(coa1, s.echo(home, cn)),
		s.tunnelled(coa1, s.echo(home, home2)), s.echo(cn, agentAddr),
	} {
		before := bytes.Clone(b)
		out := s.m.Step(s.now, Received{b})
		if !bytes.Equal(b, before) {
			t.Errorf("%x became %x", before, b)
		}
		var sent [][]byte
		for _, o := range append(out.Send, out.Local...) {
			sent = append(sent, bytes.Clone(o))
		}
		clear(b)
		for i, o := range append(out.Send, out.Local...) {
			if !bytes.Equal(o, sent[i]) {
				t.Errorf("the output %x points into the input", sent[i])
			}
		}
	}
}

func TestConfig(t *testing.T) {
	for _, test := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Addr = netip.Addr{} }, "not a global unicast"},
		{func(c *Config) { c.Addr = addr("fe80::1") }, "not a global unicast"},
		{func(c *Config) { c.Link = []byte{1} }, "link-layer"},
		{func(c *Config) { c.Epoch = time.Time{} }, "epoch"},
		{func(c *Config) { c.Rand = nil }, "random"},
		{func(c *Config) { c.TunnelMTU = 1279 }, "MTU"},
		{func(c *Config) { c.MaxLifetime = time.Second }, "lifetime"},
		{func(c *Config) { c.Agents = []Agent{{Addr: netip.IPv6Unspecified()}} }, "home agent ::"},
		{func(c *Config) { c.Prefixes = nil }, "no prefix"},
		{func(c *Config) { c.Prefixes = make([]Prefix, 33) }, "33 prefixes"},
		{func(c *Config) { c.Prefixes = []Prefix{{}} }, "not a prefix"},
		{func(c *Config) { c.Prefixes = append(c.Prefixes, c.Prefixes[0]) }, "twice"},
		{func(c *Config) { c.Prefixes[0].Valid = -1 }, "negative"},
		{func(c *Config) { c.Keys = map[netip.Addr]Credential{home: {}} }, "0 octets"},
		{func(c *Config) { c.Keys = map[netip.Addr]Credential{agentAddr: {Key: secret}} }, "is the home agent's"},
		{func(c *Config) { c.Keys = map[netip.Addr]Credential{neighbor: {Key: secret}} }, "not unicast and routable"},
	} {
		cfg := config()
		test.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), "homeagent: new: ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
	cfg := config()
	cfg.Link = []byte{}
	if m, err := New(cfg); err != nil || m.cfg.Link != nil {
		t.Errorf("an empty link-layer address: %v", err)
	}
}
