package correspondent

import (
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

var tahiRegistration = []tahiCase{
	{"CN-3-1-1 - Registration - Different Alternate Care-of Address from Source Address", func(m *mobile) {
		m.coa = coa2
		m.rr()
		alternate := bu{src: coa1, BindingUpdate: wire.BindingUpdate{AltCareOf: coa2}}
		m.accepted(m.send(alternate), coa1, home, &alternate)
		m.bound()
	}},
	{"CN-3-1-2 - Registration - Same Alternate Care-of Address as Source Address", func(m *mobile) {
		m.rr().bind(bu{BindingUpdate: wire.BindingUpdate{AltCareOf: coa1}})
		m.bound()
	}},
	{"CN-3-2-1 - Re-Registration - After the return routability procedure", func(m *mobile) {
		m.rr().bind(good)
		m.bound().rr().bind(bu{lifetime: 4 * time.Second})
		m.bound().advance(4 * time.Second)
		m.unbound()
	}},
	{"CN-3-2-2 - Re-Registration - Without the return routability procedure", func(m *mobile) {
		m.rr().bind(good)
		m.bound().bind(bu{lifetime: 4 * time.Second})
		m.bound().advance(4 * time.Second)
		m.unbound()
	}},
	{"CN-3-2-3 - Re-Registration - Binding Refresh Request", func(m *mobile) {
		m.refreshRequested()
	}},
	{"CN-3-2-4 - Re-Registration - In response to the Binding Refresh Request", func(m *mobile) {
		m.refreshRequested()
		m.rr().bind(good)
		m.bound()
		silence(m.t, m.advance(10*time.Second))
	}},
}

// refreshRequested lets a binding in use come near its end.
func (m *mobile) refreshRequested() {
	m.t.Helper()
	m.rr().bind(bu{lifetime: 20 * time.Second})
	for range 8 {
		m.bound()
		silence(m.t, m.advance(2*time.Second))
	}
	only[*wire.BindingRefreshRequest](m.t, m.advance(2*time.Second), cn, home, addrNone)
}

// deregister is one way to delete a binding. From the foreign link the
// acknowledgement comes with a type 2 routing header, from home without.
func deregister(how bu, newTokens bool) func(m *mobile) {
	return func(m *mobile) {
		m.rr().bind(good)
		m.bound()
		if newTokens {
			m.hoti()
		}
		to, routing := coa1, home
		if how.src == home {
			to, routing = home, addrNone
		}
		how.delete = true
		m.accepted(m.send(how), to, routing, &how)
		m.unbound()
		m.replied(m.pingFrom(home, addrNone), home, addrNone)
	}
}

var (
	toHome = wire.BindingUpdate{AltCareOf: home}

	// From the foreign link, and from home.
	leave           = bu{lifetime: -1}
	leaveAlternate  = bu{lifetime: -1, BindingUpdate: toHome}
	moveAlternate   = bu{BindingUpdate: toHome}
	atHome          = bu{lifetime: -1, src: home, noHome: true}
	atHomeOption    = bu{lifetime: -1, src: home}
	atHomeAlternate = bu{lifetime: -1, src: home, noHome: true, BindingUpdate: toHome}
	atHomeBoth      = bu{lifetime: -1, src: home, BindingUpdate: toHome}
)

// lasting is b with a lifetime that is not zero.
func lasting(b bu) bu {
	b.lifetime = 0
	return b
}

var tahiDeregistration = []tahiCase{
	{"CN-3-3-1-1 - De-Registration - From the foreign link, after the return routability procedure", deregister(leave, true)},
	{"CN-3-3-1-2 - De-Registration - From the foreign link, without the return routability procedure", deregister(leave, false)},
	{"CN-3-3-1-3 - De-Registration - From the foreign link, Alternate Care-of Address option included, after the return routability procedure", deregister(leaveAlternate, true)},
	{"CN-3-3-1-4 - De-Registration - From the foreign link, Alternate Care-of Address option included, without the return routability procedure", deregister(leaveAlternate, false)},
	{"CN-3-3-1-5 - De-Registration - From the foreign link, Alternate Care-of Address option included, Lifetime set to non-zero, after the return routability procedure", deregister(moveAlternate, true)},
	{"CN-3-3-1-6 - De-Registration - From the foreign link, Alternate Care-of Address option included, Lifetime set to non-zero, without the return routability procedure", deregister(moveAlternate, false)},

	{"CN-3-3-2-1 - De-Registration - From the home link, after the return routability procedure", deregister(atHome, true)},
	{"CN-3-3-2-2 - De-Registration - From the home link, without the return routability procedure", deregister(atHome, false)},
	{"CN-3-3-2-3 - De-Registration - From the home link, Home Address option included, after the return routability procedure", deregister(atHomeOption, true)},
	{"CN-3-3-2-4 - De-Registration - From the home link, Home Address option included, without the return routability procedure", deregister(atHomeOption, false)},
	{"CN-3-3-2-5 - De-Registration - From the home link, Alternate Care-of Address option included, after the return routability procedure", deregister(atHomeAlternate, true)},
	{"CN-3-3-2-6 - De-Registration - From the home link, Alternate Care-of Address option included, without the return routability procedure", deregister(atHomeAlternate, false)},
	{"CN-3-3-2-7 - De-Registration - From the home link, Home Address option and Alternate Care-of Address option included, after the return routability procedure", deregister(atHomeBoth, true)},
	{"CN-3-3-2-8 - De-Registration - From the home link, Home Address option and Alternate Care-of Address option included, without the return routability procedure", deregister(atHomeBoth, false)},
	{"CN-3-3-2-9 - De-Registration - From the home link, Lifetime set to non-zero, after the return routability procedure", deregister(lasting(atHome), true)},
	{"CN-3-3-2-10 - De-Registration - From the home link, Lifetime set to non-zero, without the return routability procedure", deregister(lasting(atHome), false)},
	{"CN-3-3-2-11 - De-Registration - From the home link, Home Address option included, Lifetime set to non-zero, after the return routability procedure", deregister(lasting(atHomeOption), true)},
	{"CN-3-3-2-12 - De-Registration - From the home link, Home Address option included, Lifetime set to non-zero, without the return routability procedure", deregister(lasting(atHomeOption), false)},
	{"CN-3-3-2-13 - De-Registration - From the home link, Alternate Care-of Address option included , Lifetime set to non-zero, after the return routability procedure", deregister(lasting(atHomeAlternate), true)},
	{"CN-3-3-2-14 - De-Registration - From the home link, Alternate Care-of Address option included , Lifetime set to non-zero, without the return routability procedure", deregister(lasting(atHomeAlternate), false)},
	{"CN-3-3-2-15 - De-Registration - From the home link, Home Address option and Alternate Care-of Address option included , Lifetime set to non-zero, after the return routability procedure", deregister(lasting(atHomeBoth), true)},
	{"CN-3-3-2-16 - De-Registration - From the home link, Home Address option and Alternate Care-of Address option included , Lifetime set to non-zero, without the return routability procedure", deregister(lasting(atHomeBoth), false)},
	{"CN-3-3-3 - De-Registration - Binding Updates that fail to satisfy tests", func(m *mobile) {
		m.rr().bind(good)
		m.bound().hoti()
		leave := fromHome
		leave.lifetime, leave.again = -1, true
		m.signedAck(m.send(leave), wire.SequenceOutOfWindow, home, addrNone, &leave)
		m.replied(m.pingFrom(home, addrNone), coa1, home)
	}},
}

var tahiHandover = []tahiCase{
	{"CN-3-4-1 - Handover - After the return routability procedure", func(m *mobile) {
		m.rr().bind(good)
		m.bound().coa = coa2
		m.rr().bind(good)
		m.replied(m.pingFrom(home, addrNone), coa2, home)
		m.bound()
	}},
	{"CN-3-4-2 - Handover - After only Care-of Test is received", func(m *mobile) {
		m.rr().bind(good)
		m.bound().coa = coa2
		m.coti().bind(good)
		m.replied(m.pingFrom(home, addrNone), coa2, home)
		m.bound()
	}},
	{"CN-3-4-3 - Handover - Binding Updates that fail to satisfy tests", func(m *mobile) {
		m.rr().bind(good)
		m.bound().coa = coa2
		again := bu{again: true}
		m.signedAck(m.rr().send(again), wire.SequenceOutOfWindow, coa2, home, &again)
		m.replied(m.pingFrom(home, addrNone), coa1, home)
	}},
}

// sequence sends two Binding Updates and expects status for the second.
func sequence(first, second uint16, status wire.Status) func(m *mobile) {
	return func(m *mobile) {
		m.sequence = first
		m.rr().bind(bu{again: true})
		m.sequence = second
		b := bu{again: true, lifetime: 100 * time.Second}
		ack := m.signedAck(m.send(b), status, coa1, home, &b)
		want, lasts := second, 100*time.Second
		if status != wire.Accepted {
			want, lasts = first, 420*time.Second
		}
		if ack.Sequence != want {
			m.t.Fatalf("acknowledged %d, want %d", ack.Sequence, want)
		}
		m.advance(lasts - time.Second)
		m.bound().advance(time.Second)
		m.unbound()
	}
}

// anySequence: the first Binding Update may have any number.
func anySequence(first uint16) func(m *mobile) {
	return func(m *mobile) {
		m.sequence = first
		m.rr().bind(bu{again: true})
	}
}

var tahiSequence = []tahiCase{
	{"CN-5-1-1-1 - Sequence # - Greater than the value in the existing entry - 1st=10000, 2nd=10001", sequence(10000, 10001, wire.Accepted)},
	{"CN-5-1-1-2 - Sequence # - Greater than the value in the existing entry - 1st=10000, 2nd=42767", sequence(10000, 42767, wire.Accepted)},
	{"CN-5-1-1-3 - Sequence # - Greater than the value in the existing entry - 1st=42768, 2nd=0", sequence(42768, 0, wire.Accepted)},
	{"CN-5-1-1-4 - Sequence # - Greater than the value in the existing entry - 1st=42768, 2nd=9999", sequence(42768, 9999, wire.Accepted)},
	{"CN-5-1-2-1 - Sequence # - Less than or equal to the value in the existing entry - 1st=10000,2nd=9999", sequence(10000, 9999, wire.SequenceOutOfWindow)},
	{"CN-5-1-2-2 - Sequence # - Less than or equal to the value in the existing entry - 1st=10000,2nd=10000", sequence(10000, 10000, wire.SequenceOutOfWindow)},
	{"CN-5-1-2-3 - Sequence # - Less than or equal to the value in the existing entry - 1st=10000,2nd=42768", sequence(10000, 42768, wire.SequenceOutOfWindow)},
	{"CN-5-1-2-4 - Sequence # - Less than or equal to the value in the existing entry - 1st=10000,2nd=0", sequence(10000, 0, wire.SequenceOutOfWindow)},
	{"CN-5-1-3-1 - Sequence # - No existing entry - #=0", anySequence(0)},
	{"CN-5-1-3-2 - Sequence # - No existing entry - #=32768", anySequence(32768)},
	{"CN-5-1-3-3 - Sequence # - No existing entry - #=65535", anySequence(65535)},
}

// lifetime registers for a time, twice if first is not zero, and expects what
// is granted.
func lifetime(first, asked, granted time.Duration) func(m *mobile) {
	return func(m *mobile) {
		m.rr()
		if first != 0 {
			if ack := m.bind(bu{lifetime: first}); ack.Lifetime != first {
				m.t.Fatalf("%v granted instead of %v", ack.Lifetime, first)
			}
			m.bound().advance(2 * time.Second)
		}
		if ack := m.bind(bu{lifetime: asked}); ack.Lifetime != granted {
			m.t.Fatalf("%v granted instead of %v", ack.Lifetime, granted)
		}
		m.advance(granted - time.Millisecond)
		m.bound().advance(time.Millisecond)
		m.unbound()
		m.advance(420 * time.Second)
		m.unbound()
	}
}

const forEver = 0xffff * wire.LifetimeUnit

var tahiLifetime = []tahiCase{
	{"CN-5-2-1 - Lifetime - 0xFFFF, No existing entry", lifetime(0, forEver, 420*time.Second)},
	{"CN-5-2-2 - Lifetime - 1 to 105, No existing entry", func(m *mobile) {
		lifetime(0, 4*time.Second, 4*time.Second)(m)
		lifetime(0, 40*time.Second, 40*time.Second)(m)
		lifetime(0, 420*time.Second, 420*time.Second)(m)
	}},
	{"CN-5-2-3 - Lifetime - Over 106, No existing entry", lifetime(0, 424*time.Second, 420*time.Second)},
	{"CN-5-2-4 - Lifetime - 0xFFFF, Remaining Lifetime is M", lifetime(40*time.Second, forEver, 420*time.Second)},
	{"CN-5-2-5 - Lifetime - 1 to M, Remaining Lifetime is M", lifetime(40*time.Second, 20*time.Second, 20*time.Second)},
	{"CN-5-2-6 - Lifetime - M to 105, Remaining Lifetime is M", lifetime(40*time.Second, 80*time.Second, 80*time.Second)},
	{"CN-5-2-7 - Lifetime - Over 106, Remaining Lifetime is M", lifetime(40*time.Second, 424*time.Second, 420*time.Second)},
	{"CN-5-2-8 - Lifetime - Binding Updates that fail to satisfy tests", func(m *mobile) {
		m.rr().bind(bu{lifetime: 40 * time.Second})
		m.bound()
		again := bu{again: true, lifetime: 80 * time.Second}
		m.signedAck(m.send(again), wire.SequenceOutOfWindow, coa1, home, &again)
		m.advance(30 * time.Second)
		m.bound().advance(12 * time.Second)
		m.unbound()
	}},
}

var homeRegistration = bu{noNonces: true, noAuth: true, BindingUpdate: wire.BindingUpdate{Home: true}, lifetime: 4 * time.Second}

var tahiHomeRegistration = []tahiCase{
	{"CN-5-3-1 - Receiving BU with (H)bit is set - Home Registration Not Supported (Registration)", func(m *mobile) {
		m.refused(m.send(homeRegistration), wire.HomeRegNotSupported, coa1, home)
		m.unbound()
	}},
	{"CN-5-3-2 - Receiving BU with (H)bit is set - Type Change Disallowd (Re-Registration)", func(m *mobile) {
		m.rr().bind(good)
		m.bound()
		m.refused(m.send(homeRegistration), wire.TypeChangeDisallowed, coa1, home)
		m.advance(4 * time.Second)
		m.bound()
	}},
	{"CN-5-3-3 - Receiving BU with (H)bit is set - Type Change Disallowed (De-Registration)", func(m *mobile) {
		m.rr().bind(good)
		m.bound()
		leave := homeRegistration
		leave.lifetime, leave.src, leave.noHome = -1, home, true
		m.refused(m.send(leave), wire.TypeChangeDisallowed, home, addrNone)
		m.bound()
	}},
	{"CN-5-3-4 - Receiving BU with (H)bit is set - with Nonce (Registration)", func(m *mobile) {
		silence(m.t, m.rr().send(bu{BindingUpdate: wire.BindingUpdate{Home: true}}))
		m.unbound()
	}},
	{"CN-5-3-5 - Receiving BU with (H)bit is set - with Nonce (Re-Registration)", func(m *mobile) {
		m.rr().bind(good)
		m.bound().rr()
		silence(m.t, m.send(bu{BindingUpdate: wire.BindingUpdate{Home: true}, lifetime: 4 * time.Second}))
		m.advance(4 * time.Second)
		m.bound()
	}},
	{"CN-5-3-6 - Receiving BU with (H)bit is set - with Nonce (De-Registration)", func(m *mobile) {
		m.rr().bind(good)
		m.bound().hoti()
		leave := atHome
		leave.Home = true
		silence(m.t, m.send(leave))
		m.bound()
	}},
}

var tahiValidation = []tahiCase{
	{"CN-5-4-1 - Preventing Replay Attacks", func(m *mobile) {
		m.rr()
		first := m.updatePacket(good)
		m.accepted(m.receive(first), coa1, home, &good)
		m.accepted(m.send(leave), coa1, home, &leave)
		m.unbound()
		m.signedAck(m.receive(first), wire.SequenceOutOfWindow, coa1, home, &good)
		m.unbound()
	}},
	{"CN-5-4-2 - BU Creating Circular Reference", func(m *mobile) {
		m.rr().bind(good)
		m.bound()
		other := m.mobile()
		other.home, other.coa = coa1, home
		silence(m.t, other.rr().send(good))
		other.unbound()
		m.bound()
	}},
	{"CN-5-4-3 - Multiple Binding Cache entries", func(m *mobile) {
		other := m.mobile()
		other.home, other.coa = home2, coa2
		m.rr().bind(good)
		other.rr().bind(good)
		m.bound()
		other.bound()
	}},
}

// errorAbout is an ICMPv6 error about a packet.
func (m *mobile) errorAbout(e wire.ICMPError, about []byte) []byte {
	e.Quoted = about
	return build(m.t, wire.Packet{
		Src: router, Dst: netip.AddrFrom16([16]byte(about[8:24])), Protocol: wire.ICMPv6,
		Payload: e.Append(nil, router, netip.AddrFrom16([16]byte(about[8:24]))),
	})
}

var tahiPayload = []tahiCase{
	{"CN-6-1 - ICMP Error - Persistent ICMP Destination Unreachable messages", func(m *mobile) {
		m.rr().bind(good)
		for range 420 {
			got := m.ping()
			if got[0].mh != nil {
				bindingError(m.t, got, wire.UnknownBinding, coa1, home)
				return
			}
			m.replied(got, coa1, home)
			silence(m.t, m.receive(m.errorAbout(wire.ICMPError{Kind: wire.Unreachable, Code: 3}, got[0].raw)))
			m.advance(time.Second)
			if m.now > time.Hour+10*time.Second {
				break
			}
		}
		m.t.Fatal("the binding has survived that its care-of address is unreachable")
	}},
	{"CN-6-2-1 - Check of Home Address and Care-of Address against BCE - No entry exists", func(m *mobile) {
		m.unbound()
	}},
	{"CN-6-2-2 - Check of Home Address and Care-of Address against BCE - The entry exists", func(m *mobile) {
		m.rr().bind(good)
		m.bound()
		bindingError(m.t, m.pingFrom(coa1, home2), wire.UnknownBinding, coa1, home2)
		bindingError(m.t, m.pingFrom(coa2, home), wire.UnknownBinding, coa2, home)
	}},
	{"CN-6-2-3 - Check of Home Address and Care-of Address against BCE - BCE is not changed", func(m *mobile) {
		m.rr().bind(good)
		m.bound()
		for range 2 {
			bindingError(m.t, m.pingFrom(coa2, home), wire.UnknownBinding, coa2, home)
		}
		m.bound()
	}},
	{"CN-6-3-1 - Receiving packets with multicast address - Source Address field", func(m *mobile) {
		silence(m.t, m.pingFrom(group, home))
		m.rr().bind(good)
		m.bound()
		silence(m.t, m.pingFrom(group, home))
	}},
	{"CN-6-3-2 - Receiving packets with multicast address - Home Address field", func(m *mobile) {
		silence(m.t, m.pingFrom(coa1, group))
	}},
	{"CN-6-3-3 - Receiving packets with multicast addresses - Source Address and Home Address fields", func(m *mobile) {
		silence(m.t, m.pingFrom(group, group))
	}},
	{"CN-6-4-1 - Processing in upper layer - Echo Checksum", func(m *mobile) {
		m.rr().bind(good)
		m.bound()
		bindingError(m.t, m.pingFrom(home, coa1), wire.UnknownBinding, home, coa1)
		silence(m.t, m.receive(build(m.t, wire.Packet{ // a checksum over the addresses of the IPv6 header
			Src: coa1, Dst: cn, Home: home, Protocol: wire.ICMPv6, Payload: echoMessage(echoRequest, coa1, cn),
		})))
	}},
	{"CN-6-4-2 - Processing in upper layer - IPsec", func(m *mobile) {
		m.rr().bind(good)
		secret := []byte("spi, sequence number, encrypted.")
		silence(m.t, m.receive(build(m.t, wire.Packet{Src: coa1, Dst: cn, Home: home, Protocol: wire.ESP, Payload: secret})))
		if len(m.delivered) != 1 {
			m.t.Fatalf("%d packets delivered", len(m.delivered))
		}
		// The security policy is looked up by the home address.
		in := parse(m.t, m.delivered[0])
		if in.Src != home || in.Home.IsValid() || in.Protocol != wire.ESP || string(in.Payload) != string(secret) {
			m.t.Fatalf("IPsec gets %v", in)
		}
		sent := m.step(Transmit{build(m.t, wire.Packet{Src: cn, Dst: home, Protocol: wire.ESP, Payload: secret})})
		if out := parse(m.t, sent[0]); out.Dst != coa1 || out.Routing != home || string(out.Payload) != string(secret) {
			m.t.Fatalf("IPsec sends %v", out)
		}
	}},
	{"CN-6-5 - Receiving packets with Type2 Routing Header", func(m *mobile) {
		silence(m.t, m.receive(build(m.t, wire.Packet{
			Src: coa1, Dst: cn, Routing: home, Protocol: wire.ICMPv6, Payload: echoMessage(echoRequest, coa1, home),
		})))
		if len(m.delivered) != 0 {
			m.t.Fatal("the packet was delivered")
		}
	}},
}
