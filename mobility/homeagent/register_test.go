package homeagent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// RFC 6275 section 10.3.1: retransmissions while Duplicate Address Detection
// goes on have one answer, to the last.
func TestRetransmittedWhileTentative(t *testing.T) {
	s := newScene(t)
	s.update(seq(15, long))
	s.want("join ff02::1:ff00:1234", "link: NS home")
	s.wait(300 * time.Millisecond)
	s.update(seq(16, long))
	s.silence()
	s.wait(300 * time.Millisecond)
	u := seq(17, 80*time.Second)
	u.src = coa2 // the contact has changed already
	s.update(u)
	s.silence()
	s.update(seq(16, long))
	s.want("send: BA 135 #17 0s to coa1 for home")
	// Nothing is tunnelled yet, and nobody told that the address is ours.
	s.away(home)
	s.wait(399 * time.Millisecond)
	s.silence()
	s.wait(time.Millisecond)
	s.want("link: NA home to all O", "send: BA 0 #17 1m20s to coa2 for home")
	s.bound(home, coa2)
}

func TestDeregisteredWhileTentative(t *testing.T) {
	s := newScene(t)
	s.update(seq(15, long))
	s.forget()
	s.update(seq(16, 0))
	s.want("send: BA 0 #16 0s to coa1 for home", "leave ff02::1:ff00:1234")
	s.wait(dad)
	s.silence()
	s.away(home)
}

// RFC 6275 section 10.3.2: a Binding Update that has been delayed must not bring
// back what has been deregistered since, and its sender is told why. For 10 s the
// home agent remembers the number, though nothing is intercepted any more.
func TestSection10_3_2Delayed(t *testing.T) {
	for _, link := range []func(*Config){func(*Config) {}, virtual} {
		s := newScene(t, link)
		s.bind(seq(15, long))
		delayed := s.packet(seq(16, long))
		s.update(seq(17, 0))
		s.forget()
		s.receive(s.echo(cn, home))
		s.silence()
		s.receive(delayed)
		s.want("send: BA 135 #17 0s to coa1 for home")

		// It is the number that counts: another clock does not help.
		s.wait(maxDeleteTimeout - 1)
		s.update(seq(17, long))
		s.want("send: BA 135 #17 0s to coa1 for home")
		s.away(home)

		// The answer was lost: what is said again has the same one, and counts.
		s.update(seq(18, 0))
		s.want("send: BA 0 #18 0s to coa1 for home")
		s.wait(maxDeleteTimeout - 1)
		s.update(seq(18, long))
		s.want("send: BA 135 #18 0s to coa1 for home")

		s.wait(1)
		s.update(seq(19, 0))
		s.want("send: BA 133 #19 0s to coa1 for home")
		s.wait(time.Millisecond)
		s.update(seq(2, long))
		s.accepted(2, long)
		s.bound(home, coa1)
	}
}

// The heart of it: another node takes over with a greater sequence number, and
// the very next packet goes to it.
func TestTakeover(t *testing.T) {
	for _, link := range []func(*Config){func(*Config) {}, virtual} {
		s := newScene(t, link)
		s.bind(seq(15, long))
		s.wait(time.Second)
		s.receive(s.echo(cn, home))
		s.want("send: tunnel to coa1 [echo cn > home]")
		u := seq(16, long)
		u.src = coa2
		s.update(u)
		s.want("send: BA 0 #16 6m40s to coa2 for home") // no Duplicate Address Detection, no advertisement
		s.receive(s.echo(cn, home))
		s.want("send: tunnel to coa2 [echo cn > home]")
		s.receive(s.tunnelled(coa1, s.echo(home, cn)))
		s.silence()
		// The old contact, which does not know yet.
		s.update(seq(16, long))
		s.want("send: BA 135 #16 0s to coa1 for home")
		s.bound(home, coa2)
	}
}

// With an Alternate Care-of Address option: that is where packets go.
func TestAlternateCareOf(t *testing.T) {
	s := newScene(t, virtual)
	u := seq(15, long)
	u.AltCareOf = coa2
	s.update(u)
	s.want("send: BA 0 #15 6m40s to coa2 for home")
	s.bound(home, coa2)
	// A refusal goes where the packet came from (RFC 6275 section 9.5.4).
	s.update(u)
	s.want("send: BA 135 #15 0s to coa1 for home")
}

func TestSeveralHomeAddresses(t *testing.T) {
	s := newScene(t)
	// All at one care-of address, then one moves.
	u := seq(100, long)
	u.home = home2
	s.bind(u)
	s.bind(seq(15, 80*time.Second))
	s.bound(home, coa1)
	s.bound(home2, coa1)
	u.Sequence, u.src = 101, coa2
	s.wait(time.Second)
	s.bind(u)
	s.bound(home, coa1)
	s.bound(home2, coa2)
	s.wait(80 * time.Second)
	s.away(home)
	s.bound(home2, coa2)
	u.Sequence, u.Lifetime = 102, 0
	s.update(u)
	s.away(home2)
}

func TestMaxBindings(t *testing.T) {
	s := newScene(t, func(cfg *Config) { cfg.MaxBindings = 1 })
	s.bind(seq(15, long))
	u := seq(1, long)
	u.home = home2
	s.update(u)
	s.want("send: BA 130 #1 0s to coa1 for home2")
	s.wait(time.Second)
	s.update(seq(16, long))
	s.want("send: BA 0 #16 6m40s to coa1 for home")
	s.update(seq(17, 0))
	s.forget()
	u.Sequence = 2
	s.bind(u)
	s.bound(home2, coa1)
}

func TestRefreshAdvice(t *testing.T) {
	s := newScene(t, virtual, func(cfg *Config) { cfg.RefreshAdvice = 60 * time.Second })
	s.update(seq(15, long))
	s.want("send: BA 0 #15 6m40s to coa1 for home refresh 1m0s")
	s.update(seq(16, 60*time.Second)) // it must be less than the lifetime
	s.want("send: BA 0 #16 1m0s to coa1 for home")
	s.update(seq(17, 0))
	s.want("send: BA 0 #17 0s to coa1 for home")

	// An advice of 0 would be none.
	s = newScene(t, virtual, func(cfg *Config) { cfg.RefreshAdvice = time.Second })
	s.update(seq(15, long))
	s.want("send: BA 0 #15 6m40s to coa1 for home refresh 4s")
}

// A home agent that has forgotten everything is asked again.
func TestRestart(t *testing.T) {
	s := newScene(t)
	s.bind(seq(40000, long))
	s.wait(30 * time.Second)
	s.restart()
	s.away(home)
	s.wait(30 * time.Second)
	s.update(seq(3, long)) // not after 40000: there is no binding to compare with
	s.accepted(3, long)
	s.bound(home, coa1)
	// What would have been the answer without a binding.
	s.restart()
	s.wait(time.Millisecond)
	s.update(seq(4, 0))
	s.want("send: BA 133 #4 0s to coa1 for home")
}

// Clocks that differ: the refusal tells the mobile node our time, with its own
// fraction of the second (RFC 4285 section 6).
func TestResynchronisation(t *testing.T) {
	for _, skew := range []time.Duration{-time.Hour, -8 * time.Second, 8 * time.Second, 100 * 24 * time.Hour, 30 * 365 * 24 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			s := newScene(t, virtual)
			u := seq(15, long)
			u.stamp = s.m.ntp(s.now + skew)
			s.update(u)
			s.want("send: BA 144 #15 0s to coa1 for home")
			u.stamp = s.told(u.stamp, "send: BA 144 #15 0s to coa1 for home")
			u.Sequence++
			s.update(u)
			s.want("send: BA 0 #16 6m40s to coa1 for home")
		})
	}
}

// told is the timestamp in an acknowledgement; its fraction is that of ours.
func (s *scene) told(stamp uint64, words string) uint64 {
	s.Helper()
	p, err := wire.ParsePacket(s.raw[words])
	if err != nil {
		s.Fatal(err)
	}
	m, err := wire.ParseMobility(&p)
	if err != nil {
		s.Fatal(err)
	}
	told := m.(*wire.BindingAck).MobileAuth.Timestamp
	if uint32(told) != uint32(stamp) {
		s.Fatalf("told %x, from %x", told, stamp)
	}
	return told
}

// The last contact had a fast clock, the next has a slow one. Both are within
// the window, and yet the second is earlier: one refusal helps it.
func TestTakeoverWithSlowClock(t *testing.T) {
	s := newScene(t, virtual)
	u := seq(15, long)
	u.stamp = s.m.ntp(s.now + 5*time.Second)
	s.update(u)
	s.forget()
	s.wait(100 * time.Millisecond)
	u = seq(16, long)
	u.src, u.stamp = coa2, s.m.ntp(s.now-5*time.Second)
	s.update(u)
	s.want("send: BA 144 #16 0s to coa2 for home")
	u.stamp = s.told(u.stamp, "send: BA 144 #16 0s to coa2 for home")
	u.Sequence++
	s.update(u)
	s.want("send: BA 0 #17 6m40s to coa2 for home")
	s.bound(home, coa2)
}

// Two nodes at the very same time: the second is not a copy of the first.
func TestSameTimestamp(t *testing.T) {
	s := newScene(t, virtual)
	u := seq(15, long)
	u.stamp = s.m.ntp(s.now)
	s.update(u)
	s.want("send: BA 0 #15 6m40s to coa1 for home")
	u.Sequence, u.src = 16, coa2
	s.update(u)
	s.want("send: BA 144 #16 0s to coa2 for home")
	u.stamp = s.told(u.stamp, "send: BA 144 #16 0s to coa2 for home")
	s.update(u)
	s.want("send: BA 0 #16 6m40s to coa2 for home")
}

// The end of NTP's first era, in February 2036.
func TestTimestampEra(t *testing.T) {
	s := newScene(t, virtual, func(cfg *Config) {
		cfg.Epoch = time.Unix(1<<32-2208988800, 0).Add(-cfg.Start - time.Minute - time.Second)
	})
	before := s.packet(seq(15, long))
	s.receive(before)
	s.want("send: BA 0 #15 6m40s to coa1 for home")
	s.wait(2 * time.Second)
	s.stamp = 0 // the number begins anew
	s.update(seq(16, long))
	s.want("send: BA 0 #16 6m40s to coa1 for home")
	s.receive(before)
	s.want("send: BA 135 #16 0s to coa1 for home")
	s.update(seq(30000, long))
	s.update(seq(60000, long)) // 15 is greater again
	s.forget()
	s.receive(before)
	s.want("send: BA 144 #15 0s to coa1 for home")
}

func TestSetKeys(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, long))
	u := seq(1, long)
	u.home = home2
	s.bind(u)
	other := wire.SharedKey("the key of another year")
	third := addr("2001:db8:a::3")
	s.changes = nil
	s.step(SetKeys{map[netip.Addr]Credential{
		home: {7, other}, third: {7, other}, addr("2001:db8:a::4"): {7, nil}, agentAddr: {7, other},
	}})
	s.want("leave ff02::1:ff00:5678")
	if want := []Change{{Home: home2, Status: wire.Prohibited}}; fmt.Sprint(s.changes) != fmt.Sprint(want) {
		t.Errorf("changes %v, want %v", s.changes, want)
	}
	s.away(home2)
	s.bound(home, coa1) // with a new key, but the same binding
	s.wait(time.Second)
	s.update(seq(16, long))
	s.want("send: BA 146 #16 0s to coa1 for home")
	u = seq(17, long)
	u.key, u.spi = other, 7
	s.update(u)
	s.want("send: BA 0 #17 6m40s to coa1 for home")
	u.home, u.Sequence = third, 1
	s.wait(time.Second)
	s.bind(u)
	s.bound(third, coa1)
	if len(s.m.homes) != 2 {
		t.Errorf("%d home addresses", len(s.m.homes))
	}
}

func TestChanges(t *testing.T) {
	s := newScene(t)
	want := func(changes ...Change) {
		t.Helper()
		if fmt.Sprint(s.changes) != fmt.Sprint(changes) {
			t.Errorf("changes %v, want %v", s.changes, changes)
		}
		s.changes = nil
	}
	s.update(seq(15, 40*time.Second))
	want()
	s.wait(dad)
	want(Change{home, coa1, s.now + 40*time.Second, wire.Accepted})
	s.update(seq(15, long))
	want()
	u := seq(16, long)
	u.src = coa2
	s.update(u)
	want(Change{home, coa2, s.now + long, wire.Accepted})
	s.update(seq(17, 0))
	want(Change{Home: home})
	s.bind(seq(18, 8*time.Second))
	s.changes = nil
	s.wait(8 * time.Second)
	want(Change{Home: home})
	s.update(seq(19, long))
	s.hear(s.advertisement(home))
	want(Change{Home: home, Status: wire.DuplicateAddress})
}

// A driver that is late does not make a binding last longer.
func TestLateDriver(t *testing.T) {
	s := newScene(t, func(cfg *Config) {
		cfg.Keys = map[netip.Addr]Credential{}
		for i := range 1000 {
			cfg.Keys[addr(fmt.Sprintf("2001:db8:a::1:%x", i))] = Credential{spi, secret}
		}
		cfg.Link = nil
	})
	for i := range 1000 {
		u := seq(1, 8*time.Second)
		u.home = addr(fmt.Sprintf("2001:db8:a::1:%x", i))
		s.bind(u)
	}
	s.now += time.Hour
	// More deadlines than one step handles, and yet none is tunnelled to.
	for i := range 1000 {
		out := s.m.Step(s.now, Received{s.echo(cn, addr(fmt.Sprintf("2001:db8:a::1:%x", 999-i)))})
		if len(out.Send) > 0 {
			t.Fatal("tunnelled after its end")
		}
		if len(out.Changes) > maxEvents {
			t.Fatalf("%d changes in one step", len(out.Changes))
		}
	}
	if _, ok := s.m.NextDeadline(); ok || s.m.inUse != 0 {
		t.Error("not all have ended")
	}
	// One that has not been handled yet is as good as none: any sequence number.
	s.restart()
	s.wait(time.Millisecond)
	u := seq(9, 8*time.Second)
	u.home = addr("2001:db8:a::1:1")
	s.bind(u)
	for i := range maxEvents + 1 {
		v := seq(1, 4*time.Second)
		v.home = addr(fmt.Sprintf("2001:db8:a::1:%x", i+2))
		s.bind(v)
	}
	s.now += time.Minute
	u.Sequence = 5
	s.bind(u)
	s.bound(u.home, coa1)
}
