package filter

import (
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/mobility/wire"
)

// icmpFrom accepts an ICMPv6 message of a type.
func icmpFrom(src netip.Addr, kind byte) func([]byte) bool {
	return func(b []byte) bool {
		return len(b) > 40 && b[6] == 58 && b[40] == kind && netip.AddrFrom16([16]byte(b[8:24])) == src
	}
}

func echoRequest(t testing.TB, src, dst netip.Addr, mark byte) []byte {
	m := []byte{128, 0, 0, 0, 0, 0, 0, mark}
	sum := ^fold(append(pseudo(src, dst, wire.ICMPv6, len(m)), m...))
	m[2], m[3] = byte(sum>>8), byte(sum)
	return build(t, wire.Packet{Src: src, Dst: dst, Protocol: wire.ICMPv6, Payload: m})
}

func icmp(t testing.TB, src, dst netip.Addr, m wire.ICMP) []byte {
	return build(t, wire.Packet{Src: src, Dst: dst, Protocol: wire.ICMPv6, Payload: m.Append(nil, src, dst)})
}

// queues sends packets and says which of them are queued. When the kernel has
// answered the echo request behind one, it is in the queue or never will be; and
// what is in it comes before the mobility header that is sent then.
func queues(t *testing.T, s *scene, q queued, packets map[string][]byte) map[string]bool {
	t.Helper()
	got := make(map[string]bool)
	mark := byte(0)
	for name, b := range packets {
		mark++
		s.net.send(b)
		s.net.send(echoRequest(t, away, here, mark))
		s.net.receive(func(b []byte) bool { return icmpFrom(here, 129)(b) && b[47] == mark })
		last := mobility(t, wire.Packet{Src: away, Dst: here}, &wire.CareOfTestInit{Cookie: wire.Cookie{mark}})
		s.net.send(last)
		was := false
		for {
			p := q.next(t).Payload
			if is(last)(p) {
				break
			}
			if !is(b)(p) {
				t.Errorf("%s: queued %x", name, p)
			}
			was = true
		}
		got[name] = was
	}
	return got
}

func TestHomeAgentQueues(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	prefix := netip.MustParsePrefix("2001:db8:d::/64")
	_, q := open(t, HomeAgentRules(here, []netip.Prefix{prefix}), dropping)
	anycast := netip.MustParseAddr("2001:db8:d::fdff:ffff:ffff:fffe")
	home := netip.MustParseAddr("2001:db8:d::77")

	tunnel, err := wire.AppendTunnel(nil, here, away, udp(t, other, home, "1"))
	if err != nil {
		t.Fatal(err)
	}
	solicitation := wire.PrefixSolicitation{ID: 1}
	withHome := wire.Packet{Src: away, Dst: here, Home: home, Protocol: wire.ICMPv6, Payload: solicitation.Append(nil, home, here)}
	packets := map[string][]byte{
		"home registration":           mobility(t, wire.Packet{Src: away, Dst: here, Home: home}, &wire.BindingUpdate{Home: true, Ack: true}),
		"mobility header":             mobility(t, wire.Packet{Src: away, Dst: here}, &wire.BindingUpdate{Home: true}),
		"discovery":                   icmp(t, away, anycast, &wire.AgentRequest{ID: 1}),
		"solicitation":                build(t, withHome),
		"error about a tunnel packet": icmpError(t, away, here, wire.PacketTooBig, 0, tunnel),
	}
	for name, queued := range queues(t, s, q, packets) {
		if !queued {
			t.Errorf("%s: not queued", name)
		}
	}
	packets = map[string][]byte{
		"tunnel":                    tunnel,
		"error about others":        icmpError(t, away, here, wire.Unreachable, 0, udp(t, here, away, "1")),
		"data for a home address":   udp(t, away, home, "1"),
		"signalling for a home":     mobility(t, wire.Packet{Src: away, Dst: home}, &wire.HomeTest{}),
		"prefix solicitation aside": icmp(t, away, other, &wire.PrefixSolicitation{}),
	}
	for name, queued := range queues(t, s, q, packets) {
		if queued {
			t.Errorf("%s: queued", name)
		}
	}
}

func dropping(Packet) Verdict { return Drop() }

func TestCorrespondentQueues(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	for name, rules := range map[string]Rules{
		"all addresses": CorrespondentRules(nil),
		"one address":   CorrespondentRules([]netip.Addr{here}),
	} {
		f, q := open(t, rules, dropping)
		routed := build(t, wire.Packet{Src: here, Dst: away, Routing: service, Protocol: wire.UDP, Payload: make([]byte, 8)})
		optimised := func(dst netip.Addr) []byte {
			return build(t, wire.Packet{Src: away, Dst: dst, Home: service, Protocol: wire.UDP, Payload: sumUDP(make([]byte, 8), service, here)})
		}
		for packet, queued := range queues(t, s, q, map[string][]byte{
			"binding update":               mobility(t, wire.Packet{Src: away, Dst: here, Home: service}, &wire.BindingUpdate{}),
			"home test init":               mobility(t, wire.Packet{Src: away, Dst: here}, &wire.HomeTestInit{}),
			"data":                         optimised(here),
			"error about a routing header": icmpError(t, away, here, wire.PacketTooBig, 0, routed),
		}) {
			if !queued {
				t.Errorf("%s: %s: not queued", name, packet)
			}
		}
		for packet, queued := range queues(t, s, q, map[string][]byte{
			"data without an option":       udp(t, away, here, "1"),
			"error about data":             icmpError(t, away, here, wire.Unreachable, 0, udp(t, here, away, "1")),
			"data that is forwarded":       optimised(careOf),
			"signalling that is forwarded": mobility(t, wire.Packet{Src: away, Dst: careOf}, &wire.HomeTestInit{}),
		}) {
			if queued {
				t.Errorf("%s: %s: queued", name, packet)
			}
		}
		f.Close()
	}
}

// A correspondent that has been killed leaves its host one that knows no Mobile
// IPv6: the kernel says so.
func TestCorrespondentBypass(t *testing.T) {
	if !own(t) {
		return
	}
	s := newScene(t)
	if err := install(7846, CorrespondentRules(nil)); err != nil {
		t.Fatal(err)
	}
	s.net.send(build(t, wire.Packet{Src: away, Dst: here, Home: service, Protocol: wire.UDP, Payload: sumUDP(make([]byte, 8), service, here)}))
	if b := s.net.receive(icmpFrom(here, 4)); b[41] != 2 {
		t.Errorf("code %d for a Home Address option", b[41])
	}
	s.net.send(mobility(t, wire.Packet{Src: away, Dst: here}, &wire.HomeTestInit{}))
	if b := s.net.receive(icmpFrom(here, 4)); b[41] != 1 {
		t.Errorf("code %d for a mobility header", b[41])
	}
	if err := Cleanup(7846); err != nil {
		t.Error(err)
	}
}
