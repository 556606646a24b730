package homeagent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

func TestReplay(t *testing.T) {
	s := newScene(t)
	first := s.packet(seq(15, long))
	s.receive(first)
	s.accepted(15, long)

	// The same once more: nothing happens.
	s.receive(first)
	s.silence()

	// The contact moves. The old one's message does not bring it back.
	s.wait(time.Second)
	second := seq(16, long)
	second.src = coa2
	s.update(second)
	s.want("send: BA 0 #16 6m40s to coa2 for home")
	s.receive(first)
	s.want("send: BA 135 #16 0s to coa1 for home")
	s.bound(home, coa2)

	// Nor when the binding is gone, be it at once or later.
	s.wait(time.Second)
	s.update(seq(17, 0))
	s.forget()
	for i := range 20 {
		s.receive(first)
		s.wait(time.Second)
		if i < 10 {
			s.want("send: BA 135 #17 0s to coa1 for home")
		} else {
			s.want("send: BA 144 #15 0s to coa1 for home")
		}
		s.away(home)
	}

	// Nor that of the deregistration, when its number would be right again.
	s.bind(seq(1, long))
	gone := s.packet(seq(2, 0))
	s.receive(gone)
	s.forget()
	s.wait(time.Second)
	for _, n := range []uint16{3, 30000, 60000} {
		s.bind(seq(n, long))
	}
	s.receive(gone)
	s.want("send: BA 144 #2 0s to coa1 for home")
	s.bound(home, coa1)
}

func TestReplayAfterRestart(t *testing.T) {
	for _, test := range []func(*Config){func(*Config) {}, virtual} {
		s := newScene(t, test)
		recorded := s.packet(seq(15, long))
		s.receive(recorded)
		s.wait(dad)
		s.bound(home, coa1)
		s.wait(time.Second) // within the window of timestamps
		s.restart()
		s.receive(recorded)
		s.want("send: BA 144 #15 0s to coa1 for home")
		s.wait(dad)
		s.away(home)
		// The mobile node itself, with the time.
		s.wait(time.Millisecond)
		s.bind(seq(3, long))
		s.bound(home, coa1)
		s.receive(recorded)
		s.want("send: BA 144 #15 0s to coa1 for home")
		s.bound(home, coa1)
	}
}

// A home address that is withdrawn and given again: what was recorded before is
// of no use.
func TestReplayAfterSetKeys(t *testing.T) {
	s := newScene(t)
	recorded := s.packet(seq(15, long))
	s.receive(recorded)
	s.wait(dad)
	s.forget()
	keys := s.cfg.Keys
	s.step(SetKeys{nil})
	s.want("leave ff02::1:ff00:1234")
	s.step(SetKeys{keys})
	s.receive(recorded)
	s.want("send: BA 144 #15 0s to coa1 for home")
	s.away(home)
}

func TestCareOfAddresses(t *testing.T) {
	for _, bad := range []string{
		"::", "::1", "ff0e::1", "ff02::1", "fe80::1", "::ffff:192.0.2.1",
		agentAddr.String(), anycast.String(), home2.String(), offLink.String(),
	} {
		t.Run(bad, func(t *testing.T) {
			for _, bound := range []bool{false, true} {
				s := newScene(t)
				if bound {
					s.bind(seq(1, long))
				}
				u := seq(15, long)
				u.AltCareOf = addr(bad)
				s.update(u)
				u.AltCareOf, u.src = netip.Addr{}, addr(bad)
				s.update(u)
				s.wait(dad)
				s.silence()
				if bound {
					s.bound(home, coa1)
				} else {
					s.away(home)
				}
			}
		})
	}
	t.Run("the home address itself", func(t *testing.T) {
		s := newScene(t)
		s.bind(seq(1, long))
		u := seq(15, long)
		u.AltCareOf = home
		s.update(u)
		s.want("send: BA 0 #15 0s to coa1 for home", "leave ff02::1:ff00:1234")
		s.away(home)
	})
	t.Run("a circle", func(t *testing.T) {
		s := newScene(t)
		u := seq(1, long)
		u.home = home2
		s.bind(u)
		u = seq(1, long)
		u.AltCareOf = home2
		s.update(u)
		s.silence()
		s.away(home)
	})
}

// Whoever has not the key can neither make a Binding Update nor change one.
func TestAuthentication(t *testing.T) {
	change := func(f func(b []byte)) func(s *scene) []byte {
		return func(s *scene) []byte {
			u := seq(15, long)
			u.spoil = f
			return s.packet(u)
		}
	}
	for _, test := range []struct {
		name string
		make func(s *scene) []byte
		want string // "": silence
	}{
		{"no option", func(s *scene) []byte { u := seq(15, long); u.noAuth = true; return s.packet(u) }, ""},
		{"key of another home address", func(s *scene) []byte { u := seq(15, long); u.key = secret2; return s.packet(u) }, "146"},
		{"wrong SPI", func(s *scene) []byte { u := seq(15, long); u.spi = 999; return s.packet(u) }, "146"},
		{"sequence number changed", change(func(b []byte) { b[7]++ }), "146"},
		{"flags changed", change(func(b []byte) { b[8] ^= 0x20 }), "146"},
		{"lifetime changed", change(func(b []byte) { b[11]++ }), "146"},
		{"authenticator changed", change(func(b []byte) { b[len(b)-2] ^= 1 }), "146"},
		{"timestamp changed", change(func(b []byte) { b[21] ^= 1 }), "146"},
		{"care-of address changed", func(s *scene) []byte {
			b := s.packet(seq(15, long))
			p, _ := wire.ParsePacket(b)
			p.Src = stranger
			return s.bytes(&p)
		}, "146"},
		{"alternate care-of address changed", func(s *scene) []byte {
			u := seq(15, long)
			u.AltCareOf = coa2
			u.spoil = func(b []byte) { b[31] ^= 0x10 }
			return s.packet(u)
		}, "146"},
		{"home address changed", func(s *scene) []byte {
			u := seq(15, long)
			p, _ := wire.ParsePacket(s.packet(u))
			p.Home = home2
			p.Payload = checksummed(p.Payload, home2, agentAddr, 4)
			return s.bytes(&p)
		}, "146"},
		{"no timestamp", func(s *scene) []byte { u := seq(15, long); u.noStamp = true; return s.packet(u) }, "145"},
		{"timestamp too old", func(s *scene) []byte {
			u := seq(15, long)
			u.stamp = s.m.ntp(s.now - 7*time.Second - time.Millisecond)
			return s.packet(u)
		}, "144"},
		{"timestamp of the future", func(s *scene) []byte {
			u := seq(15, long)
			u.stamp = s.m.ntp(s.now + 7*time.Second + time.Millisecond)
			return s.packet(u)
		}, "144"},
		{"a home address without a key", func(s *scene) []byte {
			u := seq(15, long)
			u.home = addr("2001:db8:a::99")
			return s.packet(u)
		}, "129"},
		{"deregistration without a key", func(s *scene) []byte {
			u := seq(15, 0)
			u.home = addr("2001:db8:a::99")
			return s.packet(u)
		}, "133"},
		{"an option that does not fit", func(s *scene) []byte {
			u := seq(15, long)
			u.spoil = func(b []byte) { b[13] = 200 }
			return s.packet(u)
		}, ""},
		{"neither from a care-of address nor from home", func(s *scene) []byte {
			u := seq(15, long)
			u.src, u.AltCareOf, u.key = addr("fe80::77"), coa1, secret2
			return s.packet(u)
		}, ""},
		{"not a home registration", func(s *scene) []byte { u := seq(15, long); u.notHome = true; return s.packet(u) }, ""},
		{"without Home Address option", func(s *scene) []byte {
			u := seq(15, long)
			u.src, u.noHAO, u.AltCareOf = home, true, coa1
			return s.packet(u)
		}, ""},
		{"through the tunnel", func(s *scene) []byte { return s.tunnelled(coa1, s.packet(seq(15, long))) }, ""},
		{"to the anycast address", func(s *scene) []byte {
			b := s.packet(seq(15, long))
			p, _ := wire.ParsePacket(b)
			p.Dst = anycast
			p.Payload = checksummed(p.Payload, home, anycast, 4)
			return s.bytes(&p)
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, real := range []bool{true, false} {
				s := newScene(t)
				if !real {
					s = newScene(t, virtual)
				}
				s.receive(test.make(s))
				s.wait(2 * dad)
				switch {
				case test.want == "" && len(s.log) > 0, test.want != "" && len(s.log) != 1:
					t.Fatalf("real link %t: %q", real, s.log)
				case test.want != "" && !strings.Contains(s.log[0], "BA "+test.want):
					t.Fatalf("real link %t: %q, want %s", real, s.log, test.want)
				}
				s.away(home)
				if len(s.changes) > 0 {
					t.Errorf("%v", s.changes)
				}
			}
		})
	}
}

// A binding does not make what its owner did not sign acceptable.
func TestForgedAgainstBinding(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, long))
	u := seq(16, long)
	u.src, u.key = stranger, secret2
	s.update(u)
	u.Lifetime = 0
	s.update(u)
	s.bound(home, coa1)
	// H clear, but signed: the type of a registration does not change.
	u = seq(17, long)
	u.notHome = true
	s.update(u)
	s.want("send: BA 139 #17 0s to coa1 for home")
	s.bound(home, coa1)
}

// A spoofed Binding Update makes no binding, changes none and ends none, whatever of
// it is right, and has one answer at most. Each is sent where the home address has no
// binding, where it has one, and where it has just been deregistered.
func TestSpoofedUpdates(t *testing.T) {
	with := func(f func(u *bu)) func(*scene) []byte {
		return func(s *scene) []byte {
			u := seq(100, long)
			f(&u)
			return s.packet(u)
		}
	}
	// What the home agent has sent, sent back to it, as it is or as something else.
	reflected := func(edit func(p *wire.Packet)) func(*scene) []byte {
		return func(s *scene) []byte {
			for words, b := range s.raw {
				if strings.HasPrefix(words, "send: BA 0 #10") && strings.HasSuffix(words, "for home2") {
					p, err := wire.ParsePacket(b)
					if err != nil {
						s.Fatal(err)
					}
					p.Src, p.Dst = p.Dst, p.Src
					p.Payload = append([]byte(nil), p.Payload...)
					edit(&p)
					p.Payload = checksummed(p.Payload, p.Source(), p.Destination(), 4)
					return s.bytes(&p)
				}
			}
			s.Fatal("no acknowledgement")
			return nil
		}
	}
	redirected := func(dst netip.Addr) func(*scene) []byte {
		return func(s *scene) []byte {
			p, err := wire.ParsePacket(s.packet(seq(100, long)))
			if err != nil {
				s.Fatal(err)
			}
			p.Dst = dst
			p.Payload = checksummed(p.Payload, p.Source(), dst, 4)
			return s.bytes(&p)
		}
	}
	attacks := []struct {
		name   string
		packet func(s *scene) []byte
	}{
		{"the key of another home address", with(func(u *bu) { u.key = secret2 })},
		{"the key of another home address, to deregister", with(func(u *bu) { u.key, u.Lifetime = secret2, 0 })},
		{"made for another home address", func(s *scene) []byte {
			u := seq(100, long)
			u.home = home2
			p, err := wire.ParsePacket(s.packet(u))
			if err != nil {
				s.Fatal(err)
			}
			p.Home = home
			p.Payload = checksummed(p.Payload, home, agentAddr, 4)
			return s.bytes(&p)
		}},
		{"another care-of address than was signed", func(s *scene) []byte {
			p, err := wire.ParsePacket(s.packet(seq(100, long)))
			if err != nil {
				s.Fatal(err)
			}
			p.Src = stranger
			return s.bytes(&p)
		}},
		{"another alternate care-of address than was signed", with(func(u *bu) {
			u.AltCareOf = coa2
			u.spoil = func(mh []byte) { mh[31] ^= 1 }
		})},
		{"no signature", with(func(u *bu) { u.noAuth = true })},
		{"no timestamp", with(func(u *bu) { u.noStamp = true })},
		{"replayed", func(s *scene) []byte { return s.last }},
		{"recorded before, with a greater sequence number", func(s *scene) []byte { return s.unsent }},
		{"an old sequence number", with(func(u *bu) { u.Sequence = 9 })},
		{"an old sequence number, to deregister", with(func(u *bu) { u.Sequence, u.Lifetime = 9, 0 })},
		{"the acknowledgement, reflected", reflected(func(p *wire.Packet) {})},
		{"the acknowledgement, reflected with a Home Address option", reflected(func(p *wire.Packet) { p.Home, p.Routing = p.Routing, netip.Addr{} })},
		{"the acknowledgement, reflected as an update", reflected(func(p *wire.Packet) {
			p.Home, p.Routing = p.Routing, netip.Addr{}
			p.Payload[2] = byte(wire.TypeBindingUpdate)
			p.Payload[8] |= 0xc0
		})},
		{"to a group", redirected(addr("ff02::1"))},
		{"to a link-local address", redirected(addr("fe80::1"))},
		{"to the home address", redirected(home)},
		{"through a stranger's tunnel", func(s *scene) []byte { return s.tunnelled(stranger, s.packet(seq(100, long))) }},
	}
	for _, bad := range []string{"ff0e::1", "fe80::77", agentAddr.String(), "::", "::1", "::ffff:192.0.2.1"} {
		a := addr(bad)
		attacks = append(attacks, []struct {
			name   string
			packet func(s *scene) []byte
		}{
			{"home address " + bad, with(func(u *bu) { u.home, u.key = a, secret })},
			{"home address " + bad + " without option", with(func(u *bu) { u.home, u.src, u.noHAO, u.key, u.Lifetime = a, a, true, secret, 0 })},
			{"care-of address " + bad, with(func(u *bu) { u.src = a })},
			{"alternate care-of address " + bad, with(func(u *bu) { u.AltCareOf = a })},
		}...)
	}
	for _, attack := range attacks {
		for _, start := range []string{"no binding", "bound", "deregistered"} {
			if start == "no binding" && (attack.name == "replayed" || strings.HasPrefix(attack.name, "recorded") || strings.HasPrefix(attack.name, "an old")) {
				continue // nothing has been before
			}
			t.Run(attack.name+"/"+start, func(t *testing.T) {
				s := newScene(t, virtual)
				u := seq(10, long)
				u.home = home2
				s.bind(u)
				if start != "no binding" {
					s.unsent = s.packet(seq(200, long)) // lost on its way
					s.last = s.packet(seq(10, long))
					s.receive(s.last)
					s.bound(home, coa1)
				}
				if start == "deregistered" {
					s.wait(time.Second)
					s.last = s.packet(seq(11, 0))
					s.receive(s.last)
				}
				s.wait(time.Second)
				s.forget()
				s.changes = nil
				before := s.cache()
				s.receive(attack.packet(s))
				if len(s.log) > 1 {
					t.Errorf("answered by %q", s.log)
				}
				s.wait(5 * time.Second)
				if after := s.cache(); after != before || len(s.changes) > 0 {
					t.Errorf("it was\n%s, it is\n%s, changes %v", before, after, s.changes)
				}
			})
		}
	}
}

// cache is what is known of home addresses.
func (s *scene) cache() string {
	var b strings.Builder
	for _, a := range []netip.Addr{home, home2} {
		h := s.m.homes[a.As16()]
		fmt.Fprintf(&b, "%s: state %d, to %v until %v, number %d, remembered until %v\n",
			name(a), h.state, h.careOf, h.until, h.sequence, h.gone)
	}
	if len(s.m.homes) != len(s.cfg.Keys) || s.m.inUse > 2 {
		fmt.Fprintf(&b, "%d home addresses, %d in use\n", len(s.m.homes), s.m.inUse)
	}
	return b.String()
}

func TestTunnelSpoofing(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, long))
	u := seq(15, long)
	u.home, u.src = home2, coa2
	s.bind(u)
	for _, test := range []struct {
		name  string
		outer netip.Addr
		inner []byte
	}{
		{"from elsewhere", stranger, s.echo(home, cn)},
		{"another's care-of address", coa2, s.echo(home, cn)},
		{"another's home address", coa1, s.echo(home2, cn)},
		{"a source that is no home address", coa1, s.echo(stranger, cn)},
		{"the home agent's address", coa1, s.echo(agentAddr, cn)},
		{"the care-of address", coa1, s.echo(coa1, cn)},
		{"a link-local source", coa1, s.echo(addr("fe80::1234"), cn)},
		{"to a link-local address", coa1, s.echo(home, neighbor)},
		{"to a multicast group", coa1, s.echo(home, addr("ff0e::1"))},
		{"to nobody", coa1, s.echo(home, netip.IPv6Unspecified())},
		{"a tunnel in the tunnel", coa1, s.tunnelled(coa1, s.echo(home, cn))},
		{"not a whole packet", coa1, s.echo(home, cn)[:44]},
		{"no IPv6", coa1, []byte{0x45, 0, 0, 20}},
		{"nothing", coa1, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.TB = t
			s.receive(s.tunnelled(test.outer, test.inner))
			s.silence()
		})
	}
}

// Errors about the tunnel are believed only as far as they can be true.
func TestForgedErrors(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, long))
	s.receive(s.echo(cn, home, 1400))
	quoted := s.raw[s.log[0]]
	s.forget()
	about := func(edit func(b []byte), kind wire.ErrorKind, param uint32) {
		t.Helper()
		q := append([]byte(nil), quoted...)
		if edit != nil {
			edit(q)
		}
		s.receive(s.icmp(wire.Packet{Src: stranger, Dst: agentAddr}, &wire.ICMPError{Kind: kind, Param: param, Quoted: q[:1000]}))
	}
	set := func(at int, a netip.Addr) func(b []byte) {
		return func(b []byte) { copy(b[at:], a.AsSlice()) }
	}
	for _, edit := range []func([]byte){set(24, coa2), set(40+24, home2), set(40+24, stranger)} {
		about(edit, wire.PacketTooBig, 1280)
		s.silence()
	}
	// Not ours at all: the host may know.
	about(set(8, stranger), wire.Unreachable, 0)
	s.want("local: ICMP error 1/0 0 to agent")
	// An MTU that cannot have been the reason.
	about(nil, wire.PacketTooBig, 9000)
	s.silence()
	if m := s.m.pathMTU(s.m.homes[home.As16()]); m != 1500 {
		t.Errorf("MTU %d", m)
	}
	// One that cannot be: no IPv6 link has less than 1280.
	about(nil, wire.PacketTooBig, 68)
	s.want("send: ICMP error 2/0 1280 to cn")
	if m := s.m.pathMTU(s.m.homes[home.As16()]); m != 1280 {
		t.Errorf("MTU %d", m)
	}
	s.bound(home, coa1)
}

// Floods cost bounded memory and bounded answers, and who does nothing wrong
// does not suffer.
func TestFloods(t *testing.T) {
	s := newScene(t)
	s.bind(seq(15, 20000*time.Second))
	recorded := s.packet(seq(16, 20000*time.Second))
	s.receive(recorded)
	s.forget()
	s.wait(time.Second)
	const n = 5000
	for _, flood := range []struct {
		name  string
		make  func(i int) []byte
		limit int // answers
	}{
		{"forged Binding Updates", func(i int) []byte { u := seq(uint16(i), long); u.key = secret2; return s.packet(u) }, answerBurst + 1},
		{"replayed Binding Updates", func(int) []byte { u := seq(16, long); u.stamp = s.m.ntp(s.now - time.Minute); return s.packet(u) }, answerBurst + 1},
		{"for strange home addresses", func(i int) []byte {
			u := seq(1, long)
			u.home = addr(fmt.Sprintf("2001:db8:a:0:1::%x", i))
			return s.packet(u)
		}, strangerBurst + 1},
		{"unknown types", func(i int) []byte { u := seq(1, long); u.edit = func(b []byte) { b[2] = 77 }; return s.packet(u) }, errorBurst + 1},
		{"unknown Home Address options", func(i int) []byte {
			return s.bytes(&wire.Packet{Src: stranger, Dst: agentAddr, Home: home2, Protocol: wire.UDP, Payload: make([]byte, 8)})
		}, errorBurst + 1},
		{"discovery", func(i int) []byte { return s.icmp(wire.Packet{Src: stranger, Dst: anycast}, &wire.AgentRequest{}) }, discoveryBurst + 1},
		{"prefixes", func(i int) []byte {
			return s.icmp(wire.Packet{Src: coa1, Dst: agentAddr, Home: home}, &wire.PrefixSolicitation{})
		}, answerBurst + 1},
		{"hop limit", func(i int) []byte { b := s.echo(cn, home); b[7] = 1; return b }, errorBurst + 1},
	} {
		s.wait(time.Minute)
		answers := 0
		for i := range n {
			s.receive(flood.make(i))
			answers += len(s.log)
			s.forget()
		}
		if answers == 0 || answers > flood.limit {
			t.Errorf("%s: %d answers to %d packets", flood.name, answers, n)
		}
		if len(s.m.homes) != 3 || s.m.due.Len() > 1 || s.m.inUse != 1 {
			t.Errorf("%s: state has grown", flood.name)
		}
	}
	// The mobile node registers from elsewhere nevertheless.
	u := seq(17, long)
	u.src = coa2
	s.update(u)
	s.want("send: BA 0 #17 6m40s to coa2 for home")
	s.wait(time.Minute)
	s.bound(home, coa2)

	// The home agents heard on the link are bounded, too.
	for i := range 1000 {
		s.advertise(ra{src: addr(fmt.Sprintf("fe80::%x", i+1)), addrs: []netip.Addr{ha0}, lifetime: 1800})
	}
	if len(s.m.agents) > maxAgents {
		t.Errorf("%d home agents", len(s.m.agents))
	}
}
