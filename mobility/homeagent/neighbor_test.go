package homeagent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

func TestDuplicateProbes(t *testing.T) {
	s := newScene(t, func(cfg *Config) { cfg.DADTransmits, cfg.RetransTimer = 3, 2*time.Second })
	s.update(seq(15, long))
	s.want("join ff02::1:ff00:1234", "link: NS home")
	for range 2 {
		s.wait(2*time.Second - 1)
		s.silence()
		s.wait(1)
		s.want("link: NS home")
	}
	s.wait(2 * time.Second)
	s.want("link: NA home to all O", "send: BA 0 #15 6m40s to coa1 for home")
}

// RFC 4862 section 5.4.3.
func TestSolicitedWhileTentative(t *testing.T) {
	s := newScene(t)
	s.update(seq(15, long))
	s.forget()
	// Somebody looks for the address: it is not ours to answer yet.
	s.hear(s.solicitation(neighbor, home, true, true))
	s.hear(s.probe(home2))
	s.silence()
	// Somebody else is about to use it.
	s.hear(s.probe(home))
	s.want("send: BA 134 #15 0s to coa1 for home", "leave ff02::1:ff00:1234")
	s.away(home)
	// When it has gone, another attempt succeeds.
	s.wait(time.Second)
	s.update(seq(16, long))
	s.accepted(16, long)
	// From then on the address is defended, and what others say does not matter.
	s.hear(s.probe(home))
	s.want("link: NA home to all")
	s.hear(s.advertisement(home))
	s.silence()
	s.bound(home, coa1)
}

// What RFC 4861 section 7.1 says to discard is no answer and no duplicate.
func TestInvalidNeighborDiscovery(t *testing.T) {
	s := newScene(t)
	bad := func(b []byte, at int, to byte) []byte {
		p, err := wire.ParsePacket(b)
		if err != nil {
			t.Fatal(err)
		}
		if at < 40 {
			b[at] = to
			return b
		}
		p.Payload[at-40] = to
		copy(p.Payload, checksummed(p.Payload, p.Src, p.Dst, 2))
		return b
	}
	packets := func() [][]byte {
		return [][]byte{
			bad(s.advertisement(home), 7, 254),
			bad(s.advertisement(home), 41, 1),
			bad(s.advertisement(home), 44, 0x40), // solicited, to a multicast address
			bad(s.advertisement(home), 42, 0)[:50],
			bad(s.solicitation(netip.IPv6Unspecified(), home, true, true), 41, 0),
			bad(s.solicitation(netip.IPv6Unspecified(), home, false, false), 41, 0),
			bad(s.solicitation(neighbor, home, true, true), 7, 64),
			bad(s.solicitation(neighbor, home, true, true), 41, 1),
			bad(s.solicitation(neighbor, home, true, true), 48, 0xff),
			s.solicitation(agentAddr, home, true, true), // our own
		}
	}
	s.update(seq(15, long))
	s.forget()
	for _, b := range packets() {
		s.hear(b)
		s.silence()
	}
	s.wait(dad)
	s.want("link: NA home to all O", "send: BA 0 #15 6m40s to coa1 for home")
	for _, b := range packets() {
		s.hear(b)
		s.silence()
	}
	wrong := s.solicitation(neighbor, home, true, true)
	wrong[42] ^= 1
	s.hear(wrong)
	s.silence()
}

// A neighbor that looks whether the home address is still there sends to it,
// so that the packet may come to us by the way of data. It is not tunnelled.
func TestUnreachabilityDetection(t *testing.T) {
	s := newScene(t)
	u := seq(15, long)
	u.LinkLocal = true
	s.bind(u)
	for _, target := range []netip.Addr{home, linkLocal(home)} {
		s.receive(s.solicitation(neighbor, target, false, true))
		s.want("link: NA " + name(target) + " to neighbor S")
	}
}

// Home addresses whose last three octets are the same share a group.
func TestGroups(t *testing.T) {
	twin := addr("2001:db8:a::77:0:1234")
	s := newScene(t, func(cfg *Config) { cfg.Keys[twin] = Credential{spi, secret} })
	u := seq(1, 40*time.Second)
	u.home = twin
	s.update(u)
	s.want("join ff02::1:ff00:1234", "link: NS 2001:db8:a::77:0:1234")
	s.wait(dad)
	s.forget()
	s.update(seq(15, long))
	s.want("link: NS home")
	s.wait(dad)
	s.forget()
	s.wait(38 * time.Second)
	s.silence()
	s.wait(time.Second)
	s.silence() // twin has ended, home needs the group
	s.update(seq(16, 40*time.Second))
	s.forget()
	// In one step home ends and twin begins: the group is not touched.
	s.now += 40 * time.Second
	u.Sequence = 2
	s.update(u)
	s.want("link: NS 2001:db8:a::77:0:1234")
	s.update(seq(1, 0)) // not bound
	s.forget()
	u.Sequence, u.Lifetime = 3, 0
	s.update(u)
	s.want("send: BA 0 #3 0s to coa1 for 2001:db8:a::77:0:1234", "leave ff02::1:ff00:1234")
}

// The link-local address comes and goes with L.
func TestLinkLocalChanges(t *testing.T) {
	s := newScene(t)
	l := linkLocal(home)
	s.bind(seq(15, long))
	s.hear(s.solicitation(neighbor, l, true, true))
	s.silence()
	u := seq(16, long)
	u.LinkLocal = true
	s.update(u)
	s.want("link: NA home-ll to all O", "send: BA 0 #16 6m40s to coa1 for home")
	s.hear(s.probe(l))
	s.want("link: NA home-ll to all")
	s.update(seq(17, long))
	s.forget()
	s.hear(s.probe(l))
	s.silence()
	if len(s.m.links) != 0 {
		t.Error("the link-local address is still there")
	}

	// While tentative.
	s.update(seq(18, 0))
	s.forget()
	s.wait(maxDeleteTimeout)
	s.update(seq(1, long))
	s.want("join ff02::1:ff00:1234", "link: NS home")
	s.wait(dad / 2)
	u.Sequence = 2
	s.update(u)
	s.want("link: NS home", "link: NS home-ll")
	s.wait(dad - 1)
	s.silence()
	s.wait(1)
	s.want("link: NA home to all O", "link: NA home-ll to all O", "send: BA 0 #2 6m40s to coa1 for home")
	u.Sequence, u.Lifetime = 3, 0
	s.update(u)
	s.forget()
	u.Sequence, u.Lifetime = 4, long
	s.update(u)
	s.forget()
	s.update(seq(5, long))
	s.hear(s.advertisement(l)) // does not matter any more
	s.wait(dad)
	s.want("link: NA home to all O", "send: BA 0 #5 6m40s to coa1 for home")
	if len(s.m.links) != 0 {
		t.Error("the link-local address is still there")
	}
}

// Two home addresses on different prefixes, one interface identifier: the
// link-local address can be only one's.
func TestLinkLocalTwice(t *testing.T) {
	other := addr("2001:db8:aa::1234")
	s := newScene(t, func(cfg *Config) {
		cfg.Prefixes = append(cfg.Prefixes, Prefix{Prefix: netip.MustParsePrefix("2001:db8:aa::/64")})
		cfg.Keys[other] = Credential{spi, secret}
	})
	u := seq(15, long)
	u.LinkLocal = true
	s.bind(u)
	u.home = other
	s.update(u)
	s.want("send: BA 134 #15 0s to coa1 for 2001:db8:aa::1234")
	s.away(other)
	s.hear(s.probe(linkLocal(home)))
	s.want("link: NA home-ll to all")
	// Without L both are served.
	u.LinkLocal, u.Sequence = false, 16
	s.wait(time.Second)
	s.bind(u)
	s.bound(other, coa1)
	// To ask for it later is of no use, but no harm.
	u.LinkLocal, u.Sequence = true, 17
	s.update(u)
	s.want("send: BA 0 #17 6m40s to coa1 for 2001:db8:aa::1234")
	s.update(seq(16, 0))
	s.forget()
	s.bound(other, coa1)
}

// Without a home link there is nobody to hear.
func TestNoLink(t *testing.T) {
	s := newScene(t, virtual)
	u := seq(15, long)
	u.LinkLocal = true
	s.update(u)
	s.want("send: BA 0 #15 6m40s to coa1 for home")
	s.hear(s.probe(home))
	s.hear(s.solicitation(neighbor, home, true, true))
	s.hear(s.advertisement(home))
	s.silence()
	s.bound(home, coa1)
}
