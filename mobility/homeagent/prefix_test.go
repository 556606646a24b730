package homeagent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

func TestHomeAgentsAnycast(t *testing.T) {
	for prefix, want := range map[string]string{ // RFC 2526
		"2001:db8:a::/64":   "2001:db8:a:0:fdff:ffff:ffff:fffe",
		"2001:db8:a::/48":   "2001:db8:a:ffff:ffff:ffff:ffff:fffe",
		"2001:db8:a::/120":  "2001:db8:a::fe",
		"2001:db8:a::7f/65": "2001:db8:a:0:7fff:ffff:ffff:fffe",
	} {
		if a := homeAgents(netip.MustParsePrefix(prefix)); a != addr(want) {
			t.Errorf("%s: %v, want %s", prefix, a, want)
		}
	}
}

const unsolicited = "send: prefixes #0 to coa1 for home: 2001:db8:a::1/64 "

// RFC 6275 section 10.6.2.
func TestUnsolicitedPrefixes(t *testing.T) {
	s := newScene(t)
	prefix := s.cfg.Prefixes[0].Prefix
	s.bind(seq(15, 200000*time.Second))
	s.step(SetPrefixes{[]Prefix{{Prefix: prefix, Valid: 300000 * time.Second, Preferred: 2000 * time.Second}}})
	s.silence()

	// After a delay between MinPrefixInterval and the preferred lifetime, again
	// after 3, 6 and 12 s, and then no more.
	at, _ := s.m.NextDeadline()
	if d := at - s.now; d < 600*time.Second || d > 2000*time.Second {
		t.Errorf("scheduled in %v", d)
	}
	changed := s.now
	s.wait(at - s.now)
	for i, pause := range []time.Duration{3 * time.Second, 6 * time.Second, 12 * time.Second, time.Hour} {
		if len(s.log) != 1 || len(s.log[0]) < len(unsolicited) || s.log[0][:len(unsolicited)] != unsolicited {
			t.Fatalf("transmission %d: %q", i, s.log)
		}
		s.forget()
		s.wait(pause - 1)
		s.silence()
		s.wait(1)
	}
	s.silence()
	// It comes back: once more.
	s.update(seq(16, 200000*time.Second))
	s.wait(time.Second)
	if len(s.log) != 2 || s.log[1][:len(unsolicited)] != unsolicited {
		t.Fatalf("%q", s.log)
	}
	s.forget()
	// A solicitation is the acknowledgement, and has an answer of its own.
	s.solicitPrefixes()
	s.want(solicitedPrefixes + (300000*time.Second - (s.now - changed)).Truncate(time.Second).String() + " 0s")
	s.wait(time.Hour)
	s.silence()

	// After MaxPrefixInterval without any, one is due some time.
	at, _ = s.m.NextDeadline()
	if d := at - s.now + time.Hour; d < 86400*time.Second || d > 2*86400*time.Second {
		t.Errorf("the next in %v", d)
	}
	// Not after the binding has ended.
	s.step(SetPrefixes{s.cfg.Prefixes})
	s.update(seq(17, 0))
	s.forget()
	if at, ok := s.m.NextDeadline(); ok {
		t.Errorf("something is due at %v", at)
	}
}

// A solicitation in the middle of retransmissions ends them.
func TestPrefixesAcknowledged(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, 200000*time.Second))
	s.step(SetPrefixes{s.cfg.Prefixes})
	at, _ := s.m.NextDeadline()
	s.wait(at - s.now + 4*time.Second)
	if len(s.log) != 2 {
		t.Fatalf("%q", s.log)
	}
	s.forget()
	s.solicitPrefixes()
	s.want(solicitedPrefixes + "forever forever")
	s.wait(time.Hour)
	s.silence()
	// The next has all its retransmissions again.
	s.step(SetPrefixes{s.cfg.Prefixes})
	at, _ = s.m.NextDeadline()
	s.wait(at - s.now + time.Minute)
	if len(s.log) != 4 {
		t.Fatalf("%q", s.log)
	}
}

// RFC 6275 section 8.4: an operator may want none, asked for or not.
func TestSection8_4NoPrefixAdvertisements(t *testing.T) {
	for _, none := range []bool{false, true} {
		s := newScene(t, virtual, func(cfg *Config) { cfg.NoPrefixAdvertisements = none })
		s.update(seq(15, 200000*time.Second))
		s.want("send: BA 0 #15 55h33m20s to coa1 for home")
		s.solicitPrefixes()
		s.step(SetPrefixes{s.cfg.Prefixes})
		s.wait(199999 * time.Second)
		if sent := len(s.log) > 0; sent == none {
			t.Errorf("none wanted: %t; sent: %q", none, s.log)
		}
		s.forget()
		s.bound(home, coa1)
		s.wait(time.Second) // its end is not missed
		s.away(home)
	}
}

// RFC 6275 sections 10.3.1, 10.6.4.
func TestPrefixWithdrawn(t *testing.T) {
	s := newScene(t)
	other := Prefix{Prefix: netip.MustParsePrefix("2001:db8:b::/64")}
	s.bind(seq(15, long))
	u := seq(1, long)
	u.home = offLink
	// Lifetimes that became shorter.
	s.step(SetPrefixes{[]Prefix{{Prefix: s.cfg.Prefixes[0].Prefix, Valid: 50 * time.Second}, other}})
	s.bind(u)
	s.wait(49*time.Second - dad)
	s.bound(home, coa1)
	s.wait(time.Second)
	s.away(home)
	s.update(seq(16, long))
	s.want("send: BA 132 #16 0s to coa1 for home")
	s.bound(offLink, coa1)
	// Refused, as by New: nothing happens.
	s.step(SetPrefixes{nil})
	s.bound(offLink, coa1)
	// Withdrawn.
	s.changes = nil
	s.step(SetPrefixes{s.cfg.Prefixes})
	s.want("leave ff02::1:ff00:1234")
	if len(s.changes) != 1 || s.changes[0] != (Change{Home: offLink, Status: wire.NotHomeSubnet}) {
		t.Errorf("changes %v", s.changes)
	}
	s.away(offLink)
	// Withdrawn in the middle of Duplicate Address Detection.
	s.update(seq(17, long))
	s.forget()
	s.step(SetPrefixes{[]Prefix{other}})
	s.want("leave ff02::1:ff00:1234")
	s.wait(dad)
	s.silence()
	// One that ends within the four seconds that lifetimes are counted in.
	s.step(SetPrefixes{[]Prefix{{Prefix: s.cfg.Prefixes[0].Prefix, Valid: 4500 * time.Millisecond}}})
	s.update(seq(18, long))
	s.forget()
	s.wait(dad)
	s.want("send: BA 132 #18 0s to coa1 for home", "leave ff02::1:ff00:1234")
	s.away(home)
}

// Other home agents that are configured.
func TestConfiguredAgents(t *testing.T) {
	s := newScene(t, func(cfg *Config) {
		cfg.Preference = 10
		cfg.Agents = []Agent{{ha0, 5}, {ha1, 20}}
	})
	s.discover("ha1 agent ha0")
	// Heard as well: once.
	s.advertise(ra{src: ha0Link, addrs: []netip.Addr{ha0}, lifetime: 1800, info: true, preference: 30, agentLife: 1800})
	s.discover("ha0 ha1 agent")
	// Our own host's advertisement makes no difference.
	s.advertise(ra{src: addr("fe80::1"), addrs: []netip.Addr{agentAddr}, lifetime: 1800, info: true, preference: 99, agentLife: 1800})
	s.discover("ha0 ha1 agent")
	// Nor do those that RFC 4861 section 6.1.2 says to discard.
	s.advertise(ra{src: stranger, addrs: []netip.Addr{addr("2001:db8:a::ee")}, lifetime: 1800})
	s.advertise(ra{src: addr("fe80::2"), addrs: []netip.Addr{addr("ff02::1")}, lifetime: 1800})
	s.advertise(ra{src: addr("fe80::3"), addrs: []netip.Addr{addr("2001:db8:a::ef")}, lifetime: 1800, hopLimit: 254})
	s.discover("ha0 ha1 agent")
	// A request from nobody, or with a Home Address option, has no answer.
	s.receive(s.icmp(wire.Packet{Src: netip.IPv6Unspecified(), Dst: anycast}, &wire.AgentRequest{}))
	s.receive(s.icmp(wire.Packet{Src: coa1, Dst: anycast, Home: home}, &wire.AgentRequest{}))
	s.silence()
}
