package homeagent

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// A Neighbor Solicitation of one of the kinds in chapter 4.
type nsKind struct {
	words     string
	multicast bool
	sll       bool
	probe     bool
}

var (
	nsMulticast = nsKind{words: "multicast NS w/ SLL", multicast: true, sll: true}
	nsUnicast   = nsKind{words: "unicast NS w/ SLL", sll: true}
	nsWithout   = nsKind{words: "unicast NS w/o SLL"}
	nsProbe     = nsKind{words: "DAD NS", probe: true}
)

func (s *scene) hearNS(k nsKind, target netip.Addr) {
	s.Helper()
	if k.probe {
		s.hear(s.probe(target))
		return
	}
	s.hear(s.solicitation(neighbor, target, k.multicast, k.sll))
}

// The four situations: the binding is there, it has ended, it does not include
// the link-local address, it is another's.
type nsSituation func(s *scene, k nsKind, target netip.Addr)

func nsAnswered(s *scene, k nsKind, target netip.Addr) {
	s.hearNS(k, target)
	if k.probe {
		s.want("link: NA " + name(target) + " to all")
	} else {
		s.want("link: NA " + name(target) + " to neighbor S")
	}
}

func nsIgnored(s *scene, k nsKind, target netip.Addr) {
	s.hearNS(k, target)
	s.silence()
}

func nsAfterEnd(s *scene, k nsKind, target netip.Addr) {
	nsAnswered(s, k, target)
	s.update(leaveAway(true))
	s.forget()
	nsIgnored(s, k, target)
}

func nsOther(s *scene, k nsKind, target netip.Addr) {
	other := home2
	if target.IsLinkLocalUnicast() {
		other = linkLocal(home2)
	}
	nsIgnored(s, k, other)
}

func nsCase(n string, k nsKind, global, l bool, what nsSituation, words string) tahiCase {
	target, scope := home, "global"
	if !global {
		target, scope = linkLocal(home), "link-local"
	}
	bit := 0
	if l {
		bit = 1
	}
	id := strings.Replace(n, ".", "_", -1)
	return tahiCase{fmt.Sprintf("HA_%s Receiving %s (target=%s%s), L=%d%s", id, k.words, scope, words, bit, informational(n)), false, func(s *scene) {
		u := seq(15, long)
		u.LinkLocal = l
		s.bind(u)
		what(s, k, target)
	}}
}

func informational(n string) string {
	switch n {
	case "4.2.7", "4.2.8", "4.2.15", "4.4.7", "4.4.8", "4.4.15":
		return " [Informational Test]"
	}
	return ""
}

var tahiNeighbors = []tahiCase{
	{"HA_4_1_1 Sending multicast NA, L=0", false, func(s *scene) {
		s.update(seq(15, long))
		s.accepted(15, long)
	}},
	{"HA_4_1_2 Sending multicast NA, L=1", false, func(s *scene) {
		u := seq(15, long)
		u.LinkLocal = true
		s.update(u)
		s.forget()
		s.wait(dad)
		s.want("link: NA home to all O", "link: NA home-ll to all O", "send: BA 0 #15 6m40s to coa1 for home")
	}},

	nsCase("4.2.1", nsMulticast, true, false, nsAnswered, ""),
	nsCase("4.2.2", nsUnicast, true, false, nsAnswered, ""),
	nsCase("4.2.3", nsProbe, true, false, nsAnswered, ""),
	nsCase("4.2.4", nsMulticast, true, true, nsAnswered, ""),
	nsCase("4.2.5", nsUnicast, true, true, nsAnswered, ""),
	nsCase("4.2.6", nsProbe, true, true, nsAnswered, ""),
	nsCase("4.2.7", nsMulticast, false, true, nsAnswered, ""),
	nsCase("4.2.8", nsUnicast, false, true, nsAnswered, ""),
	nsCase("4.2.9", nsProbe, false, true, nsAnswered, ""),
	nsCase("4.2.10", nsMulticast, false, false, nsIgnored, ""),
	nsCase("4.2.11", nsUnicast, false, false, nsIgnored, ""),
	nsCase("4.2.12", nsProbe, false, false, nsIgnored, ""),
	nsCase("4.2.13", nsWithout, true, false, nsAnswered, ""),
	nsCase("4.2.14", nsWithout, true, true, nsAnswered, ""),
	nsCase("4.2.15", nsWithout, false, true, nsAnswered, ""),
	nsCase("4.2.16", nsWithout, false, false, nsIgnored, ""),

	nsCase("4.3.1", nsMulticast, true, false, nsOther, ", invalid"),
	nsCase("4.3.2", nsUnicast, true, false, nsOther, ", invalid"),
	nsCase("4.3.3", nsProbe, true, false, nsOther, ", invalid"),
	nsCase("4.3.4", nsMulticast, true, true, nsOther, ", invalid"),
	nsCase("4.3.5", nsUnicast, true, true, nsOther, ", invalid"),
	nsCase("4.3.6", nsProbe, true, true, nsOther, ", invalid"),
	nsCase("4.3.7", nsMulticast, false, true, nsOther, ", invalid"),
	nsCase("4.3.8", nsUnicast, false, true, nsOther, ", invalid"),
	nsCase("4.3.9", nsProbe, false, true, nsOther, ", invalid"),
	nsCase("4.3.10", nsMulticast, false, false, nsOther, ", invalid"),
	nsCase("4.3.11", nsUnicast, false, false, nsOther, ", invalid"),
	nsCase("4.3.12", nsProbe, false, false, nsOther, ", invalid"),
	nsCase("4.3.13", nsWithout, true, false, nsOther, ", invalid"),
	nsCase("4.3.14", nsWithout, true, true, nsOther, ", invalid"),
	nsCase("4.3.15", nsWithout, false, true, nsOther, ", invalid"),
	nsCase("4.3.16", nsWithout, false, false, nsOther, ", invalid"),

	nsCase("4.4.1", nsMulticast, true, false, nsAfterEnd, ""),
	nsCase("4.4.2", nsUnicast, true, false, nsAfterEnd, ""),
	nsCase("4.4.3", nsProbe, true, false, nsAfterEnd, ""),
	nsCase("4.4.4", nsMulticast, true, true, nsAfterEnd, ""),
	nsCase("4.4.5", nsUnicast, true, true, nsAfterEnd, ""),
	nsCase("4.4.6", nsProbe, true, true, nsAfterEnd, ""),
	nsCase("4.4.7", nsMulticast, false, true, nsAfterEnd, ""),
	nsCase("4.4.8", nsUnicast, false, true, nsAfterEnd, ""),
	nsCase("4.4.9", nsProbe, false, true, nsAfterEnd, ""),
	nsCase("4.4.13", nsWithout, true, false, nsAfterEnd, ""),
	nsCase("4.4.14", nsWithout, true, true, nsAfterEnd, ""),
	nsCase("4.4.15", nsWithout, false, true, nsAfterEnd, ""),
}

var tahiTunnel = []tahiCase{
	{"HA_5_1_1 Echo Request from CN to MN (global)", false, tunnelIn},
	{"HA_5_1_2 Echo Request from CN to MN (link-local)", false, func(s *scene) {
		u := seq(15, long)
		u.LinkLocal = true
		s.bind(u)
		s.receive(s.echo(neighbor, linkLocal(home)))
		s.want("link: ICMP error 1/3 0 to neighbor")
	}},
	{"HA_5_1_3 Relay ICMP error while using bi-directional tunnel", false, relayError},
	{"HA_5_1_4 Update tunnel end point", false, tunnelMoves},
	{"HA_5_1_5 Echo Request from CN to MN (global)", true, tunnelIn},
	{"HA_5_1_6 Update tunnel end point", true, tunnelMoves},
	{"HA_5_1_7 Relay ICMP error while using bi-directional tunnel", true, relayError},

	{"HA_6_1_1 Reverse tunneling", false, tunnelOut},
	{"HA_6_1_2 Update tunnel end point", false, tunnelOutMoves},
	{"HA_6_1_3 Reverse tunneling", true, tunnelOut},
	{"HA_6_1_4 Update tunnel end point", true, tunnelOutMoves},
	{"HA_6_2_1 Invalid outer source address", false, tunnelSpoofed},
	{"HA_6_2_2 Invalid outer source address", true, tunnelSpoofed},

	{"HA_6_3_1 Protecting return routability packets (HoTI)", false, hoti(false)},
	{"HA_6_3_2 Update tunnel end point (HoTI)", false, hoti(true)},
	{"HA_6_3_3 Protecting return routability packets (HoT)", false, hot(false)},
	{"HA_6_3_4 Update tunnel end point (HoT)", false, hot(true)},
	{"HA_6_3_5 Protecting return routability packets (HoTI)", true, hoti(false)},
	{"HA_6_3_6 Update tunnel end point (HoTI)", true, hoti(true)},
	{"HA_6_3_7 Protecting return routability packets (HoT)", true, hot(false)},
	{"HA_6_3_8 Update tunnel end point (HoT)", true, hot(true)},
	{"HA_6_3_9 Receiving invalid HoTI (unauthorization)", false, hotiSpoofed},
	{"HA_6_3_10 Receiving invalid HoTI (unauthorization)", true, hotiSpoofed},
}

func tunnelIn(s *scene) {
	s.bind(seq(15, long))
	s.receive(s.echo(cn, home))
	s.want("send: tunnel to coa1 [echo cn > home]")
}

func (s *scene) move(n uint16) {
	u := seq(n, long)
	u.src = coa2
	s.wait(time.Millisecond)
	s.bind(u)
}

func tunnelMoves(s *scene) {
	tunnelIn(s)
	s.move(16)
	s.receive(s.echo(cn, home))
	s.want("send: tunnel to coa2 [echo cn > home]")
}

func relayError(s *scene) {
	s.bind(seq(15, long))
	s.receive(s.echo(cn, home))
	quoted := s.raw[s.log[0]]
	s.forget()
	for _, kind := range []struct {
		wire.ICMPError
		want string
	}{
		{wire.ICMPError{Kind: wire.Unreachable, Code: 3}, "send: ICMP error 1/3 0 to cn"},
		{wire.ICMPError{Kind: wire.TimeExceeded}, "send: ICMP error 1/3 0 to cn"},
		{wire.ICMPError{Kind: wire.ParameterProblem, Code: 1, Param: 6}, "send: ICMP error 1/3 0 to cn"},
	} {
		kind.Quoted = quoted
		s.receive(s.icmp(wire.Packet{Src: stranger, Dst: agentAddr}, &kind.ICMPError))
		s.want(kind.want)
	}
	s.bound(home, coa1)
}

func tunnelOut(s *scene) {
	s.bind(seq(15, long))
	s.receive(s.tunnelled(coa1, s.echo(home, cn)))
	s.want("send: echo home > cn")
}

func tunnelOutMoves(s *scene) {
	tunnelOut(s)
	s.move(16)
	s.receive(s.tunnelled(coa2, s.echo(home, cn)))
	s.want("send: echo home > cn")
	s.receive(s.tunnelled(coa1, s.echo(home, cn)))
	s.silence()
}

func tunnelSpoofed(s *scene) {
	s.bind(seq(15, long))
	s.receive(s.tunnelled(stranger, s.echo(home, cn)))
	s.silence()
}

func hoti(moved bool) func(*scene) {
	return func(s *scene) {
		s.bind(seq(15, long))
		from := coa1
		if moved {
			s.move(16)
			from = coa2
		}
		s.receive(s.tunnelled(from, s.mobility(home, cn, &wire.HomeTestInit{})))
		s.want("send: HomeTestInit home > cn")
	}
}

func hot(moved bool) func(*scene) {
	return func(s *scene) {
		s.bind(seq(15, long))
		to := "coa1"
		if moved {
			s.move(16)
			to = "coa2"
		}
		s.receive(s.mobility(cn, home, &wire.HomeTest{}))
		s.want("send: tunnel to " + to + " [HomeTest cn > home]")
	}
}

func hotiSpoofed(s *scene) {
	s.bind(seq(15, long))
	s.receive(s.tunnelled(stranger, s.mobility(home, cn, &wire.HomeTestInit{})))
	s.silence()
}

// Other home agents on the home link.
var (
	ha0, ha0Link = addr("2001:db8:a::a0"), addr("fe80::a0")
	ha1, ha1Link = addr("2001:db8:a::a1"), addr("fe80::a1")
)

func init() { names[ha0], names[ha1] = "ha0", "ha1" }

// ra is a Router Advertisement. What is left out of it by default is in none.
type ra struct {
	src        netip.Addr
	addrs      []netip.Addr // in Prefix Information options
	notAgent   bool         // H clear
	notRouter  bool         // R clear
	lifetime   uint16       // of the router
	info       bool         // Home Agent Information option
	preference uint16
	agentLife  uint16
	hopLimit   uint8 // 0: 255
}

func (s *scene) advertise(r ra) {
	s.Helper()
	m := make([]byte, 16)
	m[0] = icmpRouterAdvertisement
	if !r.notAgent {
		m[5] = raHomeAgent
	}
	binary.BigEndian.PutUint16(m[6:], r.lifetime)
	for _, a := range r.addrs {
		flags := byte(0xe0)
		if r.notRouter {
			flags = 0xc0
		}
		m = append(m, 3, 4, 64, flags)
		m = append(m, make([]byte, 12)...)
		m = append(m, a.AsSlice()...)
	}
	if r.info {
		m = append(m, 8, 1, 0, 0)
		m = binary.BigEndian.AppendUint16(m, r.preference)
		m = binary.BigEndian.AppendUint16(m, r.agentLife)
	}
	if r.hopLimit == 0 {
		r.hopLimit = 255
	}
	s.hear(s.bytes(&wire.Packet{Src: r.src, Dst: allNodes, HopLimit: r.hopLimit, Protocol: wire.ICMPv6,
		Payload: checksummed(m, r.src, allNodes, 2)}))
	s.silence()
}

func (s *scene) discover(agents string) {
	s.Helper()
	s.receive(s.icmp(wire.Packet{Src: coa1, Dst: anycast}, &wire.AgentRequest{ID: 77}))
	s.want("send: agents #77 to coa1: " + agents)
}

func preferences(agent, of0, of1 uint16, want string) func(*scene) {
	return func(s *scene) {
		s.cfg.Preference = agent
		s.m = s.agent(s.cfg)
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: of0, agentLife: 1800})
		s.advertise(ra{src: ha1Link, addrs: []netip.Addr{ha1}, lifetime: 1800, info: true, preference: of1, agentLife: 1800})
		for range 10 {
			s.wait(time.Second)
			s.discover(want)
		}
	}
}

func reservedRequest(s *scene) {
	m := checksummed([]byte{144, 0, 0, 0, 0, 77, 0xff, 0xff}, coa1, anycast, 2)
	s.receive(s.bytes(&wire.Packet{Src: coa1, Dst: anycast, Protocol: wire.ICMPv6, Payload: m}))
	s.want("send: agents #77 to coa1: agent")
}

var tahiDiscovery = []tahiCase{
	{"HA_7_1_1 Dynamic home agent address discovery", false, func(s *scene) { s.discover("agent") }},
	{"HA_7_1_2 Dynamic home agent address discovery", true, func(s *scene) { s.discover("agent") }},
	{"HA_7_1_3 Dynamic home agent address discovery (non-zero reserved field)", false, reservedRequest},
	{"HA_7_1_4 Dynamic home agent address discovery (non-zero reserved field)", true, reservedRequest},

	{"HA_7_2_1 receiving RA w/ Home Agent Information Option (preference=0)", false, func(s *scene) {
		s.cfg.Preference = 1
		s.m = s.agent(s.cfg)
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, agentLife: 1800})
		s.discover("agent ha0")
	}},
	{"HA_7_2_2 receiving RA w/ Home Agent Information Option (preference=0xffff)", false, func(s *scene) {
		s.cfg.Preference = 0x7fff
		s.m = s.agent(s.cfg)
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 0xffff, agentLife: 1800})
		s.discover("ha0 agent")
	}},
	{"HA_7_2_3 receiving RA messages (preference: RUT > HA0 > HA1):", false, preferences(30, 20, 10, "agent ha0 ha1")},
	{"HA_7_2_4 receiving RA messages (preference: RUT > HA1 > HA0):", false, preferences(30, 10, 20, "agent ha1 ha0")},
	{"HA_7_2_5 receiving RA messages (preference: HA0 > RUT > HA1):", false, preferences(20, 30, 10, "ha0 agent ha1")},
	{"HA_7_2_6 receiving RA messages (preference: HA1 > RUT > HA0):", false, preferences(20, 10, 30, "ha1 agent ha0")},
	{"HA_7_2_7 receiving RA messages (preference: HA0 > HA1 > RUT):", false, preferences(10, 30, 20, "ha0 ha1 agent")},
	{"HA_7_2_8 receiving RA messages (preference: HA1 > HA0 > RUT):", false, preferences(10, 20, 30, "ha1 ha0 agent")},
	{"HA_7_2_9 receiving RA w/o Home Agent Information Option (preference=0)", false, func(s *scene) {
		s.cfg.Preference = 1
		s.m = s.agent(s.cfg)
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800})
		s.discover("agent ha0")
	}},
	{"HA_7_2_10 Lifetime expired w/ Home Agent Information Option", false, func(s *scene) {
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 9, agentLife: 15})
		s.wait(15*time.Second - 1)
		s.discover("ha0 agent")
		s.wait(1)
		s.discover("agent")
	}},
	{"HA_7_2_11 Lifetime expired w/o Home Agent Information Option", false, func(s *scene) {
		s.cfg.Preference = 9
		s.m = s.agent(s.cfg)
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 15})
		s.wait(15*time.Second - 1)
		s.discover("agent ha0")
		s.wait(1)
		s.discover("agent")
	}},
	{"HA_7_2_12 update Home Agent Preference", false, func(s *scene) {
		s.cfg.Preference = 9
		s.m = s.agent(s.cfg)
		r := ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 10, agentLife: 1800}
		s.advertise(r)
		s.discover("ha0 agent")
		r.preference = 8
		s.advertise(r)
		s.discover("agent ha0")
	}},
	{"HA_7_2_13 Update Home Agent Lifetime", false, func(s *scene) {
		r := ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 10, agentLife: 1800}
		s.advertise(r)
		r.agentLife = 5
		s.advertise(r)
		s.discover("ha0 agent")
		s.wait(5 * time.Second)
		s.discover("agent")
	}},
	{"HA_7_2_14 equal preference (preference: HA0 = HA1 > RUT):", false, func(s *scene) {
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 5, agentLife: 1800})
		s.advertise(ra{src: ha1Link, addrs: []netip.Addr{ha1}, lifetime: 1800, info: true, preference: 5, agentLife: 1800})
		seen := map[string]int{}
		for range 100 {
			s.wait(time.Second)
			s.receive(s.icmp(wire.Packet{Src: coa1, Dst: anycast}, &wire.AgentRequest{}))
			seen[s.log[0]]++
			s.forget()
		}
		for _, order := range []string{"ha0 ha1", "ha1 ha0"} {
			if n := seen["send: agents #0 to coa1: "+order+" agent"]; n < 20 {
				s.Errorf("%s: %d of 100", order, n)
			}
		}
	}},
	{"HA_7_2_15 HA has more than one global IP address:", false, func(s *scene) {
		second := addr("2001:db8:a:1::a0")
		names[second] = "ha0-second"
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 5, agentLife: 1800})
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{second}, lifetime: 1800, info: true, preference: 5, agentLife: 1800})
		seen := map[string]int{}
		for range 100 {
			s.wait(time.Second)
			s.receive(s.icmp(wire.Packet{Src: coa1, Dst: anycast}, &wire.AgentRequest{}))
			seen[s.log[0]]++
			s.forget()
		}
		for _, order := range []string{"ha0 ha0-second", "ha0-second ha0"} {
			if n := seen["send: agents #0 to coa1: "+order+" agent"]; n < 20 {
				s.Errorf("%s: %d of 100", order, n)
			}
		}
	}},

	{"HA_7_3_1 receiving RA w/ Home Agent Information Option (lifetime=0)", false, func(s *scene) {
		r := ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 10}
		s.advertise(r)
		s.discover("agent")
		r.agentLife = 1800
		s.advertise(r)
		s.discover("ha0 agent")
		r.agentLife = 0
		s.advertise(r)
		s.discover("agent")
	}},
	{"HA_7_3_2 receiving RA w/o Home Agent Information Option (lifetime=0)", false, func(s *scene) {
		s.cfg.Preference = 1
		s.m = s.agent(s.cfg)
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800})
		s.discover("agent ha0")
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}})
		s.discover("agent")
	}},
	{"HA_7_4_1 receiving RA (H=0)", false, func(s *scene) {
		r := ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 10, agentLife: 1800}
		s.advertise(r)
		s.discover("ha0 agent")
		r.notAgent = true
		s.advertise(r)
		s.discover("agent")
	}},
	{"HA_7_4_2 receiving RA w/ Prefix Information Option (R=0)", false, func(s *scene) {
		s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 10, agentLife: 1800, notRouter: true})
		s.discover("agent")
	}},
	{"HA_7_5_1 fit within minimum IPv6 MTU", false, func(s *scene) {
		for i := range 20 {
			r := ra{src: addr(fmt.Sprintf("fe80::b:%x", i)), lifetime: 1800, info: true, preference: uint16(100 - i), agentLife: 1800}
			for j := range 4 {
				r.addrs = append(r.addrs, addr(fmt.Sprintf("2001:db8:a:%x::b:%x", j, i)))
			}
			s.advertise(r)
		}
		s.receive(s.icmp(wire.Packet{Src: coa1, Dst: anycast}, &wire.AgentRequest{}))
		b := s.raw[s.log[0]]
		if len(b) > wire.MinMTU || len(b)+16 <= wire.MinMTU {
			s.Errorf("reply of %d octets", len(b))
		}
		if strings.Contains(s.log[0]+" ", " agent ") || strings.Count(s.log[0], "b:13") != 1 {
			s.Errorf("not the best: %s", s.log[0])
		}
	}},
}

const solicitedPrefixes = "send: prefixes #9 to coa1 for home: 2001:db8:a::1/64 "

func (s *scene) prefixSolicitation() []byte {
	s.Helper()
	return s.icmp(wire.Packet{Src: coa1, Dst: agentAddr, Home: home}, &wire.PrefixSolicitation{ID: 9})
}

func (s *scene) solicitPrefixes() { s.Helper(); s.receive(s.prefixSolicitation()) }

func prefixesAsked(s *scene) {
	s.bind(seq(15, long))
	s.solicitPrefixes()
	s.want(solicitedPrefixes + "forever forever")
}

func prefixesUnbound(s *scene) {
	s.solicitPrefixes()
	s.want("send: BE 1 home to coa1")
	// From the binding's home address, but not its care-of address.
	u := seq(15, long)
	u.src = coa2
	s.bind(u)
	s.solicitPrefixes()
	s.want("send: BE 1 home to coa1")
	// Without Home Address option.
	s.receive(s.icmp(wire.Packet{Src: coa2, Dst: agentAddr}, &wire.PrefixSolicitation{ID: 9}))
	s.silence()
}

func prefixesLifetime(s *scene) {
	s.step(SetPrefixes{[]Prefix{{s.cfg.Prefixes[0].Prefix, 1000 * time.Second, 500 * time.Second}}})
	begin := s.now
	s.bind(seq(15, long))
	s.wait(begin + 100*time.Second - s.now)
	s.solicitPrefixes()
	s.want(solicitedPrefixes + "15m0s 6m40s")
	// The binding's lifetime is within these.
	s.update(seq(16, 2000*time.Second))
	s.want("send: BA 1 #16 15m0s to coa1 for home")
}

func prefixesReserved(s *scene) {
	s.bind(seq(15, long))
	m := checksummed([]byte{146, 0, 0, 0, 0, 9, 0xff, 0xff}, home, agentAddr, 2)
	s.receive(s.bytes(&wire.Packet{Src: coa1, Dst: agentAddr, Home: home, Protocol: wire.ICMPv6, Payload: m}))
	s.want(solicitedPrefixes + "forever forever")
}

var tahiPrefixes = []tahiCase{
	{"HA_8_1_1 Receiving valid Mobile Prefix Solicitation", false, prefixesAsked},
	{"HA_8_1_2 Receiving valid Mobile Prefix Solicitation", true, prefixesAsked},
	{"HA_8_1_3 Receiving Mobile Prefix Solicitation without home registration", false, prefixesUnbound},
	{"HA_8_1_4 Receiving Mobile Prefix Solicitation without home registration", true, prefixesUnbound},
	{"HA_8_1_7 Comparison of binding lifetime and prefix lifetime in Mobile Prefix Advertisement", false, prefixesLifetime},
	{"HA_8_1_8 Comparison of binding lifetime and prefix lifetime in Mobile Prefix Advertisement", true, prefixesLifetime},
	{"HA_8_1_15 Receiving suspicious Mobile Prefix Solicitation non-zero reserved field", false, prefixesReserved},
	{"HA_8_1_16 Receiving suspicious Mobile Prefix Solicitation non-zero reserved field", true, prefixesReserved},
}
