package correspondent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// cacheState is what an attack must not change.
func (h *host) cacheState() string {
	h.c.now = max(h.c.now, h.now)
	var all []string
	for b := range h.c.Bindings() {
		all = append(all, fmt.Sprint(b))
	}
	slices.Sort(all)
	return fmt.Sprint(all)
}

// made is how many bindings have been made or changed.
func (h *host) made() int {
	n := 0
	for _, c := range h.changes {
		if c.CareOf.IsValid() {
			n++
		}
	}
	return n
}

// A forged Binding Update makes no binding, and changes none, whatever the
// attacker has of what it takes. Each attack is run against a correspondent with
// no binding for the victim, with one, and with one that has been deleted.
func TestForgedUpdates(t *testing.T) {
	const evil = "2001:db8:bad::1"
	attacks := []struct {
		name string
		// attack returns the packet. victim has just been through return
		// routability; the attacker has its own home and care-of address.
		attack func(victim, attacker *mobile) []byte
	}{
		{"tokens for the attacker's home address, binding the victim's", func(v, a *mobile) []byte {
			return a.updatePacket(bu{option: v.home})
		}},
		{"the victim's home token, the attacker's care-of address without its token", func(v, a *mobile) []byte {
			v.coa = a.coa
			return v.updatePacket(good)
		}},
		{"the victim's home token, and the attacker's twice", func(v, a *mobile) []byte {
			key := wire.NewBindingKey(a.homeToken, a.careToken)
			v.coa = a.coa
			return v.updatePacket(bu{key: &key})
		}},
		{"a care-of token of the victim's home address in the place of the home token", func(v, a *mobile) []byte {
			// The attacker can have a CoTI answered for an address it is at. It
			// is not at the victim's home; but suppose.
			v.coa = v.home
			v.coti()
			key := wire.NewBindingKey(v.careToken, a.careToken)
			v.coa = a.coa
			return v.updatePacket(bu{key: &key, careIndex: int(a.careIndex)})
		}},
		{"home and care-of token exchanged", func(v, a *mobile) []byte {
			key := wire.NewBindingKey(v.careToken, v.homeToken)
			return v.updatePacket(bu{key: &key})
		}},
		{"registration signed with the key for deletion", func(v, a *mobile) []byte {
			return v.updatePacket(bu{delete: true})
		}},
		{"deletion signed with the key for registration", func(v, a *mobile) []byte {
			key := wire.NewBindingKey(v.homeToken, v.careToken)
			return v.updatePacket(bu{lifetime: -1, key: &key})
		}},
		{"deletion with a token for the attacker's home address", func(v, a *mobile) []byte {
			return a.updatePacket(bu{lifetime: -1, option: v.home})
		}},
		{"deletion from a spoofed home link, without a token", func(v, a *mobile) []byte {
			key := wire.DeleteKey(wire.Token{})
			return v.updatePacket(bu{lifetime: -1, src: v.home, noHome: true, key: &key})
		}},
		{"another care-of address in the IPv6 header than was signed", func(v, a *mobile) []byte {
			return v.updatePacket(bu{src: a.coa, signed: v.coa})
		}},
		{"another alternate care-of address than was signed", func(v, a *mobile) []byte {
			return v.updatePacket(bu{BindingUpdate: wire.BindingUpdate{AltCareOf: a.coa}, signed: v.coa})
		}},
		{"for another of the correspondent's addresses", func(v, a *mobile) []byte {
			p := v.updatePacket(good)
			return redirect(p, cn2)
		}},
		{"registration with the home address signed, as for a deletion", func(v, a *mobile) []byte {
			return v.updatePacket(bu{signed: v.home})
		}},
		{"no signature", func(v, a *mobile) []byte { return v.updatePacket(bu{noAuth: true}) }},
		{"no nonce indices", func(v, a *mobile) []byte { return v.updatePacket(bu{noNonces: true}) }},
		{"indices that are not of the tokens", func(v, a *mobile) []byte {
			return v.updatePacket(bu{homeIndex: int(v.homeIndex) + 1, careIndex: int(v.careIndex) + 1})
		}},
		{"home registration", func(v, a *mobile) []byte { return v.updatePacket(homeRegistration) }},
		{"home registration with signature", func(v, a *mobile) []byte {
			return v.updatePacket(bu{BindingUpdate: wire.BindingUpdate{Home: true}, noNonces: true})
		}},
		{"the correspondent's care-of test, reflected", func(v, a *mobile) []byte {
			return reflected(v, v.cotiPacket())
		}},
		{"the correspondent's acknowledgement, reflected", func(v, a *mobile) []byte {
			return reflected(v, v.updatePacket(bu{homeIndex: 0xffff}))
		}},
		{"to a group", func(v, a *mobile) []byte { return redirect(v.updatePacket(good), group) }},
	}
	for _, bad := range []netip.Addr{
		group, linkLocal, cn, cn2, netip.IPv6Unspecified(), netip.IPv6LinkLocalAllNodes(), netip.IPv6Loopback(), addr("::ffff:192.0.2.1"),
	} {
		attacks = append(attacks, []struct {
			name   string
			attack func(victim, attacker *mobile) []byte
		}{
			{"home address " + bad.String(), func(v, a *mobile) []byte {
				// Well signed: only the address is wrong.
				v.homeToken = homeToken(v, bad)
				return v.updatePacket(bu{option: bad})
			}},
			{"care-of address " + bad.String(), func(v, a *mobile) []byte {
				v.careToken = careOfToken(v, bad)
				return v.updatePacket(bu{src: bad})
			}},
			{"alternate care-of address " + bad.String(), func(v, a *mobile) []byte {
				v.careToken = careOfToken(v, bad)
				return v.updatePacket(bu{BindingUpdate: wire.BindingUpdate{AltCareOf: bad}})
			}},
			{"source address " + bad.String() + ", the alternate one being right", func(v, a *mobile) []byte {
				return v.updatePacket(bu{src: bad, BindingUpdate: wire.BindingUpdate{AltCareOf: v.coa}})
			}},
			{"home address to be deleted " + bad.String(), func(v, a *mobile) []byte {
				v.homeToken = homeToken(v, bad)
				return v.updatePacket(bu{lifetime: -1, src: bad, noHome: true})
			}},
		}...)
	}

	starts := []struct {
		name  string
		start func(v *mobile)
	}{
		{"no binding", func(v *mobile) {}},
		{"bound", func(v *mobile) { v.bind(good) }},
		{"deleted", func(v *mobile) {
			v.bind(good)
			v.accepted(v.send(leave), coa1, home, &leave)
		}},
	}
	for _, attack := range attacks {
		for _, start := range starts {
			t.Run(attack.name+"/"+start.name, func(t *testing.T) {
				h := newHost(t, unlimited)
				victim, attacker := h.mobile(), h.mobile()
				attacker.home, attacker.coa = addr("2001:db8:bad:4::1"), addr(evil)
				victim.rr()
				attacker.rr()
				start.start(victim)
				before, changes := h.cacheState(), len(h.changes)
				p := attack.attack(victim, attacker)
				got := h.receive(p)
				if len(got) > 1 {
					t.Errorf("answered by %v", got)
				}
				if after := h.cacheState(); after != before || len(h.changes) != changes {
					t.Errorf("bindings were %s, are %s", before, after)
				}
			})
		}
	}
}

// homeToken is what the machine would give a, though it would not.
func homeToken(m *mobile, a netip.Addr) wire.Token {
	return wire.HomeToken(&m.c.cfg.Key, a, m.c.nonces.find(m.homeIndex, m.now))
}

func careOfToken(m *mobile, a netip.Addr) wire.Token {
	return wire.CareOfToken(&m.c.cfg.Key, a, m.c.nonces.find(m.careIndex, m.now))
}

// redirect changes a packet's destination, and the checksum of its mobility
// header.
func redirect(p []byte, dst netip.Addr) []byte {
	p = bytes.Clone(p)
	to := dst.As16()
	copy(p[24:], to[:])
	q, err := wire.ParsePacket(p)
	if err == nil {
		checksum(p[q.Offset:], 4, q.Source(), q.Destination(), wire.Mobility)
	}
	return p
}

// reflected is the machine's answer to p, sent back to it.
func reflected(m *mobile, p []byte) []byte {
	m.t.Helper()
	got := m.receive(p)
	if len(got) != 1 {
		m.t.Fatalf("got %v, want one answer", got)
	}
	back := bytes.Clone(got[0].raw)
	copy(back[8:24], got[0].raw[24:40])
	copy(back[24:40], got[0].raw[8:24])
	return back
}

// A Binding Update that was accepted once is not accepted again: not at once,
// not after the next, not after the binding has been deleted, has run out, was
// given up or forgotten, and not when the sequence number would be right again.
func TestReplay(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(m *mobile)
	}{
		{"at once", func(m *mobile) {}},
		{"after the next", func(m *mobile) { m.bind(good) }},
		{"after a move", func(m *mobile) {
			m.coa = coa2
			m.coti().bind(good)
		}},
		{"after a deletion", func(m *mobile) { m.accepted(m.send(leave), coa1, home, &leave) }},
		{"after a deletion at home", func(m *mobile) { m.accepted(m.send(atHome), home, addrNone, &atHome) }},
		{"after the end of a short lifetime", func(m *mobile) {
			m.bind(bu{lifetime: 4 * time.Second})
			m.advance(5 * time.Second)
		}},
		{"after the end of a short lifetime, no tick having come", func(m *mobile) {
			m.bind(bu{lifetime: 4 * time.Second})
			m.now += 5 * time.Second
		}},
		{"after it was forgotten", func(m *mobile) { m.step(Forget{cn, home}) }},
		{"after it was found unreachable", func(m *mobile) {
			for range maxFailures {
				sent := m.step(Transmit{build(m.t, wire.Packet{Src: cn, Dst: home, Protocol: wire.UDP, Payload: make([]byte, 8)})})
				m.receive(m.errorAbout(wire.ICMPError{Kind: wire.Unreachable}, sent[0]))
				m.advance(time.Second)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newHost(t, unlimited).mobile().rr()
			first := m.updatePacket(good)
			m.accepted(m.receive(first), coa1, home, &good)
			test.do(m)

			// As long as the nonces are valid, and beyond.
			for range 300 {
				before, changes := m.cacheState(), m.made()
				m.receive(first)
				if after := m.cacheState(); after != before || m.made() != changes {
					t.Fatalf("%v later the replay has changed the bindings from %s to %s", m.now-time.Hour, before, after)
				}
				m.advance(time.Second)
			}
			m.advance(420 * time.Second)
			m.unbound()
		})
	}
}

// RFC 6275 section 9.5.1: while there is a binding its sequence numbers go up,
// whatever the nonces. After it any number MUST do, if a nonce shows that the
// Binding Update is no replay.
func TestSection9_5_1SequenceAfterRemoval(t *testing.T) {
	for _, test := range []struct {
		name     string
		end      func(m *mobile)
		newer    func(m *mobile)
		deletes  bool
		accepted bool
	}{
		{"bound, newer nonces", func(m *mobile) {}, func(m *mobile) { m.rr() }, false, false},
		{"deleted, same nonces", func(m *mobile) { m.send(leave) }, func(m *mobile) {}, false, false},
		{"deleted, newer home nonce", func(m *mobile) { m.send(leave) }, func(m *mobile) { m.hoti() }, false, true},
		{"deleted, newer care-of nonce", func(m *mobile) { m.send(leave) }, func(m *mobile) { m.coti() }, false, true},
		{"deleted, newer nonces", func(m *mobile) { m.send(leave) }, func(m *mobile) { m.rr() }, false, true},
		{"deleted, to be deleted, newer home nonce", func(m *mobile) { m.send(leave) }, func(m *mobile) { m.hoti() }, true, true},
		{"deleted, to be deleted, newer care-of nonce", func(m *mobile) { m.send(leave) }, func(m *mobile) { m.coti() }, true, false},
		{"over, newer nonces", func(m *mobile) { m.advance(8 * time.Second) }, func(m *mobile) { m.rr() }, false, true},
		{"over without a tick, newer nonces", func(m *mobile) { m.now += 8 * time.Second }, func(m *mobile) { m.rr() }, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newHost(t).mobile().rr()
			m.advance(30 * time.Second) // the next test gets another nonce
			m.bind(bu{lifetime: 8 * time.Second})
			test.end(m)
			test.newer(m)
			m.sequence -= 1000
			b := bu{}
			if test.deletes {
				b = leave
			}
			if test.accepted {
				m.accepted(m.send(b), coa1, home, &b)
			} else {
				m.signedAck(m.send(b), wire.SequenceOutOfWindow, coa1, home, &b)
			}
			m.c.check(t)
		})
	}
}

// Every bit of a good Binding Update is turned round, one at a time, with the
// checksum made right again. Whatever comes of it: no other binding than the
// one that was signed.
func TestEveryBit(t *testing.T) {
	h := newHost(t, unlimited)
	m := h.mobile().rr()
	p := m.updatePacket(bu{BindingUpdate: wire.BindingUpdate{AltCareOf: coa1}})
	m.accepted(m.receive(p), coa1, home, &good)
	want := h.cacheState()
	m.step(Forget{cn, home})
	accepted := 0
	for bit := range len(p) * 8 {
		m := newHost(t, unlimited).mobile().rr() // the same keys and nonces every time
		q := bytes.Clone(p)
		q[bit/8] ^= 1 << (bit % 8)
		if parsed, err := wire.ParsePacket(q); err == nil && parsed.Protocol == wire.Mobility && len(parsed.Payload) >= 8 {
			checksum(q[parsed.Offset:], 4, parsed.Source(), parsed.Destination(), wire.Mobility)
		}
		m.receive(q)
		switch got := m.cacheState(); got {
		case want:
			accepted++
		case "[]":
		default:
			t.Errorf("bit %d: %s, want %s or nothing", bit, got, want)
		}
	}
	// What the signature does not cover: traffic class, flow label, hop limit (36),
	// padding option beside the Home Address option (32), checksum (16, made right),
	// and the source address (128), the alternate one being signed instead.
	if accepted > 36+32+16+128 {
		t.Errorf("%d changes accepted", accepted)
	}
}

// Nobody gets a token for an address that can have no binding, nor do we
// ourselves.
func TestForgedTests(t *testing.T) {
	m := newHost(t).mobile()
	for _, bad := range []netip.Addr{group, linkLocal, cn, cn2, netip.IPv6Unspecified(), netip.IPv6Loopback(), addr("::ffff:192.0.2.1")} {
		m.home, m.coa = bad, bad
		silence(t, m.receive(m.hotiPacket()))
		silence(t, m.receive(m.cotiPacket()))
	}
}

// Floods leave nothing behind, and the answers are limited, for one /64 and in
// all. Others are still served while one floods.
func TestFloods(t *testing.T) {
	limits := Limits{}.orDefault()
	for _, test := range []struct {
		name      string
		each, all Limit
		packet    func(m *mobile, i int) []byte
	}{
		{"HoTI", limits.Tests, limits.AllTests, func(m *mobile, i int) []byte { return m.hotiPacket() }},
		{"CoTI", limits.Tests, limits.AllTests, func(m *mobile, i int) []byte {
			m.coa = m.home
			return m.cotiPacket()
		}},
		{"BU with unknown nonces", limits.Updates, limits.AllUpdates, func(m *mobile, i int) []byte {
			return m.updatePacket(bu{src: m.home, option: numbered(0xcccc, i), homeIndex: 0xffff})
		}},
		{"Home Address options", limits.Errors, limits.AllErrors, func(m *mobile, i int) []byte {
			return build(m.t, wire.Packet{Src: m.home, Dst: cn, Home: numbered(0xcccc, i), Protocol: wire.TCP, Payload: make([]byte, 20)})
		}},
		{"unknown mobility headers", limits.Errors, limits.AllErrors, func(m *mobile, i int) []byte {
			return m.packet(m.home, addrNone, testInit(99))
		}},
		{"wrong mobility headers", limits.Errors, limits.AllErrors, func(m *mobile, i int) []byte {
			mh := testInit(wire.TypeHomeTestInit)
			mh[0] = 17
			return m.packet(m.home, addrNone, mh)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			m := h.mobile().rr()
			other := h.mobile()
			other.home = addr("2001:db8:77::1")

			// One /64, for two seconds.
			answers := 0
			n := 2 * (test.each.PerSecond + test.each.Burst)
			for i := range n {
				a := netip.MustParsePrefix("2001:db8:666::/64").Addr().As16()
				binary.BigEndian.PutUint32(a[12:], uint32(i+1))
				m.home = netip.AddrFrom16(a)
				answers += len(h.receive(test.packet(m, i)))
				h.advance(2 * time.Second / time.Duration(n))
			}
			if most := test.each.Burst + 2*test.each.PerSecond; answers > most || answers < most-2 {
				t.Errorf("%d answers to one /64 in 2 s, want %d", answers, most)
			}
			if got := h.receive(test.packet(other, 0)); len(got) != 1 {
				t.Errorf("another is not answered: %v", got)
			}

			// All the world, in an instant.
			h.advance(time.Minute)
			answers = 0
			for i := range 2 * test.all.Burst {
				m.home = numbered(uint16(i>>8), i<<8)
				a := m.home.As16()
				binary.BigEndian.PutUint32(a[4:], uint32(i)*2654435761)
				m.home = netip.AddrFrom16(a)
				answers += len(h.receive(test.packet(m, i)))
			}
			if answers > test.all.Burst {
				t.Errorf("%d answers to all at once, want %d at most", answers, test.all.Burst)
			}
			if h.c.Len() != 0 || h.c.cache.index.count != 0 || h.c.cache.deadlines.Len() != 0 {
				t.Error("the flood has left something behind")
			}
		})
	}
}
