package node

import (
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

func testTestsSent(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.want("HoTI", "CoTI")
	hoti, coti := r.sent[0], r.sent[1]
	if hoti.via != addrAgent || hoti.Src != addrHome || hoti.Dst != addrC || hoti.Home.IsValid() {
		t.Errorf("HoTI from %v to %v via %v", hoti.Src, hoti.Dst, hoti.via)
	}
	if coti.via.IsValid() || coti.Src != addrA || coti.Dst != addrC || coti.Home.IsValid() {
		t.Errorf("CoTI from %v to %v via %v", coti.Src, coti.Dst, coti.via)
	}
	if hoti.m.(*wire.HomeTestInit).Cookie == coti.m.(*wire.CareOfTestInit).Cookie {
		t.Error("the same cookie twice")
	}
	r.wantState(Testing)
}

func testTestsAfterExpiry(t *testing.T) {
	r := boundRig(t)
	r.wait(r.n.clients[addrC].expires - r.now) // the client answers nothing
	r.wantEvents("unbound, expired")
	r.wait(20 * time.Second)
	r.wantEvents("unsupported, silent")
	r.do(Optimise{addrC})
	r.want()
	r.wait(10 * time.Minute)
	r.do(Optimise{addrC})
	r.one("HoTI")
	r.one("CoTI")
}

func testDataStartsNothing(t *testing.T) {
	r := contactRig(t)
	for _, b := range [][]byte{
		mustTunnel(addrAgent, addrA, data(wire.Packet{Src: addrC, Dst: addrHome})),     // from an unknown node
		mustTunnel(addrAgent, addrA, data(wire.Packet{Src: addrC, Dst: addrD})),        // not to the home address
		mustTunnel(addrAgent, addrA, data(wire.Packet{Src: addrAgent, Dst: addrHome})), // of the home agent itself
		data(wire.Packet{Src: addrC, Dst: addrA, Routing: addrHome}),
		data(wire.Packet{Src: addrC, Dst: addrA}),
	} {
		r.receive(b)
		r.want()
		r.wantEvents()
	}
	if len(r.n.clients) != 0 {
		t.Errorf("%d clients", len(r.n.clients))
	}

	b := boundRig(t)
	b.receive(data(wire.Packet{Src: addrC, Dst: addrA, Routing: addrHome}))
	b.wait(time.Minute)
	b.want()
}

func testOnlyOnRequest(t *testing.T) {
	r := contactRig(t)
	r.tunneled(data(wire.Packet{Src: addrD, Dst: addrHome}))
	r.do(Optimise{addrC})
	for _, s := range r.sent {
		if s.Dst == addrD {
			t.Errorf("%s to a client that nobody asked for", s.kind())
		}
	}
	if r.n.State(addrD) != None {
		t.Errorf("state %v", r.n.State(addrD))
	}
}

func testTestsBackoff(t *testing.T) {
	r := contactRig(t)
	r.now = 10 * time.Second
	r.do(Optimise{addrC})
	cookies := [][]byte{slices.Clone(r.one("HoTI").Payload[8:]), slices.Clone(r.one("CoTI").Payload[8:])}
	r.wait(40 * time.Second)
	s := time.Second
	r.wantTimes("HoTI", 10*s, 1*s, 3*s, 7*s)
	r.wantTimes("CoTI", 10*s, 1*s, 3*s, 7*s)
	for _, m := range r.sent {
		for _, c := range cookies {
			if slices.Equal(c, m.Payload[8:]) {
				t.Errorf("%s has a cookie that was used before", m.kind())
			}
		}
		cookies = append(cookies, m.Payload[8:])
	}
	r.wantEvents("unsupported, silent")
	if got := r.events[0].Until; got != 25*s+10*time.Minute {
		t.Errorf("until %v", got)
	}

	// Where the client answers the care-of test, it is the other way that is
	// out of order. That takes patience.
	r = contactRig(t)
	r.do(Optimise{addrC})
	r.answer(r.one("CoTI"))
	r.wait(100 * s)
	r.wantTimes("HoTI", 0, 1*s, 3*s, 7*s, 15*s, 31*s, 63*s, 95*s)
	r.wantEvents("unbound, silent")
	r.answer(r.sent[len(r.sent)-1])
	r.want("BU")
}

func testOrder(first, second string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		r.do(Optimise{addrC})
		a, b := r.one(first), r.one(second)
		r.answer(a)
		r.want()
		r.answer(b)
		r.want("BU")
		r.answer(r.sent[0])
		r.wantState(Established)
	}
}

// other is the test that is not this one.
func other(kind string) string {
	if kind == "HoTI" {
		return "CoTI"
	}
	return "HoTI"
}

// deliver gives the answer to a test to the node, by its way.
func (r *rig) deliver(kind string, b []byte) {
	r.Helper()
	if kind == "HoTI" {
		r.tunneled(b)
	} else {
		r.receive(b)
	}
}

func testTestReserved(kind string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		r.do(Optimise{addrC})
		a, b := r.one(kind), r.one(other(kind))
		r.answer(b)
		r.deliver(kind, rewrite(r.reply(a), func(mh []byte) { mh[3] = 0xff }))
		r.want("BU")
	}
}

func testTwice(kind string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		r.do(Optimise{addrC})
		a, b := r.one(kind), r.one(other(kind))
		reply := r.reply(a)
		r.deliver(kind, reply)
		r.deliver(kind, reply)
		r.want()
		r.answer(b)
		r.want("BU")
		r.deliver(kind, reply)
		r.want()
	}
}

func testDelayed(kind string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		r.do(Optimise{addrC})
		a, b := r.one(kind), r.one(other(kind))
		r.answer(b)
		late := r.reply(a)
		r.wait(time.Second)
		r.want(kind)
		again := r.sent[0]
		r.deliver(kind, late) // its cookie is not the current one any more
		r.want()
		r.answer(again)
		r.want("BU")
	}
}

func testCookie(kind string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		r.do(Optimise{addrC})
		a, b := r.one(kind), r.one(other(kind))
		r.answer(b)
		r.deliver(kind, rewrite(r.reply(a), func(mh []byte) { mh[8] ^= 1 }))
		r.want()
		r.answer(a)
		r.want("BU")
	}
}

func testWrongSource(kind string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		r.do(Optimise{addrC})
		a, b := r.one(kind), r.one(other(kind))
		r.answer(b)
		var m wire.Message
		switch init := a.m.(type) {
		case *wire.HomeTestInit:
			m = &wire.HomeTest{Cookie: init.Cookie, NonceIndex: 1}
		case *wire.CareOfTestInit:
			m = &wire.CareOfTest{Cookie: init.Cookie, NonceIndex: 1}
		}
		r.deliver(kind, mobility(addrD, a.Src, none, m))
		r.want()
		// Nor by the other's way, nor in a tunnel from elsewhere.
		r.deliver(other(kind), r.reply(a))
		r.want()
		r.receive(mustTunnel(addrD, addrA, r.reply(a)))
		r.want()
		r.answer(a)
		r.want("BU")
	}
}

func testUnknownNode(kind string) func(*testing.T) {
	return func(t *testing.T) {
		r := contactRig(t)
		if kind == "HoTI" {
			r.tunneled(mobility(addrC, addrHome, none, &wire.HomeTest{NonceIndex: 1}))
		} else {
			r.receive(mobility(addrC, addrA, none, &wire.CareOfTest{NonceIndex: 1}))
		}
		r.want()
		r.wantState(None)
	}
}

func testUnexpected(kind string) func(*testing.T) {
	return func(t *testing.T) {
		r := boundRig(t)
		g, _ := r.n.Grant(addrC, r.now)
		if kind == "HoTI" {
			r.tunneled(mobility(addrC, addrHome, none, &wire.HomeTest{NonceIndex: 9}))
		} else {
			r.receive(mobility(addrC, addrA, none, &wire.CareOfTest{NonceIndex: 9}))
		}
		r.want()
		r.wantState(Established)
		if now, _ := r.n.Grant(addrC, r.now); now != g {
			t.Errorf("grant %+v, was %+v", now, g)
		}
	}
}

func testUpdate(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	r.want("BU")
	r.wantEvents("bound")
	s := r.sent[0]
	bu := s.m.(*wire.BindingUpdate)
	// RFC 6275 section 11.7.2.
	switch {
	case s.Src != addrA || s.Dst != addrC || s.Home != addrHome || s.via.IsValid():
		t.Errorf("from %v to %v with home address %v", s.Src, s.Dst, s.Home)
	case !bu.Ack || bu.Home || bu.LinkLocal || bu.KeyManagement:
		t.Errorf("flags A %t, H %t, L %t, K %t", bu.Ack, bu.Home, bu.LinkLocal, bu.KeyManagement)
	case bu.AltCareOf.IsValid():
		t.Errorf("alternate care-of address %v", bu.AltCareOf)
	case bu.Lifetime <= 0 || bu.Lifetime > MaxRRBindingLifetime:
		t.Errorf("lifetime %v", bu.Lifetime)
	case !bu.HasNonces || !bu.Authenticated || bu.MobileAuth != nil:
		t.Errorf("options %+v", bu)
	}
	r.answer(s)
	r.wantEvents("confirmed")
}

func testUpdateBackoff(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	seq := r.one("BU").m.(*wire.BindingUpdate).Sequence
	r.wait(14 * time.Second)
	s := time.Second
	r.wantTimes("BU", 0, 1*s, 3*s, 7*s)
	for _, m := range r.sent {
		if bu, ok := m.m.(*wire.BindingUpdate); ok {
			if seq++; bu.Sequence != seq {
				t.Errorf("sequence number %d, want %d", bu.Sequence, seq)
			}
		}
	}
	// Meanwhile, data goes by the safe way.
	r.wantEvents("unbound, silent")
	// The client has answered the tests, and may have a binding: no end, at the
	// slow rate of MAX_BINDACK_TIMEOUT.
	r.wait(110 * s)
	r.wantTimes("BU", 0, 15*s, 31*s, 63*s, 95*s)
}

func testAccepted(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	r.clientAck(r.one("BU"), &wire.BindingAck{Lifetime: 420 * time.Second})
	r.wantEvents("confirmed")
	r.wantState(Established)
	r.wait(5 * time.Minute)
	r.want()
}

func testAckReserved(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	s := r.one("BU")
	bu := s.m.(*wire.BindingUpdate)
	key := wire.NewBindingKey(r.c.homeToken(addrHome, bu.HomeNonce), r.c.careOfToken(addrA, bu.CareOfNonce))
	r.receive(rewrite(r.reply(s), func(mh []byte) {
		mh[3], mh[7] = 0xff, 0x7f
		auth := key.Authenticator(addrA, addrC, mh)
		copy(mh[len(mh)-len(auth):], auth[:])
	}))
	r.wantEvents("confirmed")
}

func testLifetimeLess(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	r.clientAck(r.one("BU"), &wire.BindingAck{Lifetime: 60 * time.Second})
	if got := r.events[0].Until; got != 60*time.Second {
		t.Errorf("until %v", got)
	}
	r.wait(50 * time.Second)
	r.wantTimes("BU", 0, 44*time.Second, 45*time.Second, 47*time.Second)
}

func testLifetimeEqual(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	s := r.one("BU")
	r.clientAck(s, &wire.BindingAck{Lifetime: s.m.(*wire.BindingUpdate).Lifetime})
	if got := r.events[0].Until; got != 420*time.Second {
		t.Errorf("until %v", got)
	}
}

func testRefused(t *testing.T) {
	for _, status := range []wire.Status{128, 129, 130, 131, 139, 255} {
		r := contactRig(t)
		r.do(Optimise{addrC})
		r.testsDone()
		r.clientAck(r.one("BU"), &wire.BindingAck{Status: status})
		r.wantEvents("unbound, refused")
		r.want()
		if e := r.events[0]; e.Status != status || e.Until != 10*time.Minute {
			t.Errorf("status %d: %+v", status, e)
		}
		r.wantState(Unable)
		// It is remembered; and on request tried again, later.
		r.do(Optimise{addrC})
		r.want()
		r.wantEvents("unbound, refused")
		r.wait(11 * time.Minute)
		r.wantState(None)
		r.do(Optimise{addrC})
		r.want("HoTI", "CoTI")
	}
}

func testSequence(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	s := r.one("BU")
	const stored = 65535
	r.clientAck(s, &wire.BindingAck{Status: wire.SequenceOutOfWindow, Sequence: stored})
	r.want("BU") // at once, with the same tokens
	if got := r.sent[0].m.(*wire.BindingUpdate).Sequence; got != 0 {
		t.Errorf("sequence number %d after %d", got, stored)
	}
	r.answer(r.sent[0])
	r.wantEvents("confirmed")
}

func testNonces(status wire.Status) func(*testing.T) {
	return func(t *testing.T) {
		tests := map[wire.Status][]string{136: {"HoTI"}, 137: {"CoTI"}, 138: {"HoTI", "CoTI"}}[status]
		r := contactRig(t)
		r.do(Optimise{addrC})
		r.testsDone()
		for range maxRefusals {
			s := r.one("BU")
			seq := s.m.(*wire.BindingUpdate).Sequence
			r.receive(r.c.ack(&s.Packet, &wire.BindingAck{Status: status, Sequence: seq}, nil, addrA))
			r.want(tests...)
			r.now += 900 * time.Millisecond // that no rate limit is in the way
			r.testsDone()
			r.want("BU")
			if got := r.sent[0].m.(*wire.BindingUpdate).Sequence; got != seq+1 {
				t.Errorf("sequence number %d after %d", got, seq)
			}
		}
		// Not for ever.
		s := r.one("BU")
		r.receive(r.c.ack(&s.Packet, &wire.BindingAck{Status: status, Sequence: s.m.(*wire.BindingUpdate).Sequence}, nil, addrA))
		r.want()
		r.wantEvents("unbound, refused")
	}
}

func testWrongSequence(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	s := r.one("BU")
	seq := s.m.(*wire.BindingUpdate).Sequence
	for _, wrong := range []uint16{seq - 1, seq + 1, seq + 1<<15} {
		r.clientAck(s, &wire.BindingAck{Lifetime: time.Minute, Sequence: wrong})
		r.wantEvents()
	}
	r.wait(time.Second)
	r.want("BU")
}

// A Binding Refresh Advice is for home registrations.
func testRefreshAdvice(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	r.clientAck(r.one("BU"), &wire.BindingAck{Lifetime: 420 * time.Second, RefreshAdvice: 20 * time.Second})
	r.wantEvents("confirmed")
	r.wait(5 * time.Minute)
	r.want()
}

func testWrongAuthenticator(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	s := r.one("BU")
	r.receive(rewrite(r.reply(s), func(mh []byte) { mh[len(mh)-1] ^= 1 }))
	r.wantEvents()
	r.receive(mobility(addrC, addrA, addrHome, &wire.BindingAck{Sequence: s.m.(*wire.BindingUpdate).Sequence, Lifetime: time.Minute}))
	r.wantEvents()
	r.wait(time.Second)
	r.want("BU")
}

func testAuthenticatorNotLast(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.testsDone()
	s := r.one("BU")
	bu := s.m.(*wire.BindingUpdate)
	key := wire.NewBindingKey(r.c.homeToken(addrHome, bu.HomeNonce), r.c.careOfToken(addrA, bu.CareOfNonce))
	p, err := wire.ParsePacket(r.reply(s))
	if err != nil {
		t.Fatal(err)
	}
	// A PadN of 8 octets behind it, and all else in order.
	mh := append(slices.Clone(p.Payload), 1, 6, 0, 0, 0, 0, 0, 0)
	mh[1]++
	auth := key.Authenticator(addrA, addrC, mh)
	copy(mh[len(mh)-8-len(auth):], auth[:])
	p.Payload = mh
	setChecksum(&p)
	r.receive(mustAppend(&p))
	r.wantEvents()
}

// A binding is refreshed before it ends, with the tests that it takes.
func testRefresh(t *testing.T) {
	r := boundRig(t)
	c := r.n.clients[addrC]
	for range 5 {
		// The registration goes on meanwhile.
		r.n.reg.expires, r.n.reg.refresh = r.now+20*time.Minute, r.now+20*time.Minute
		until := c.expires
		r.wait(c.refresh - r.now)
		r.want("HoTI", "CoTI")
		r.wantEvents()
		r.testsDone()
		r.want("BU")
		bu := r.sent[0]
		if bu.Src != addrA || bu.m.(*wire.BindingUpdate).AltCareOf.IsValid() {
			t.Errorf("care-of address %v, %v", bu.Src, bu.m.(*wire.BindingUpdate).AltCareOf)
		}
		r.answer(bu)
		r.wantEvents("confirmed")
		if c.expires <= until || r.now >= until {
			t.Fatalf("refreshed at %v from %v to %v", r.now, until, c.expires)
		}
	}
}

func testRelease(t *testing.T) {
	r := boundRig(t)
	r.do(Release{addrC})
	r.want("BU")
	s := r.sent[0]
	bu := s.m.(*wire.BindingUpdate)
	if bu.Lifetime != 0 || !bu.Ack || bu.Home || s.Home != addrHome {
		t.Errorf("%+v", bu)
	}
	r.answer(s)
	r.wantEvents("released")
	if got := r.c.bound(r.now, addrHome); got.IsValid() {
		t.Errorf("the client's binding is %v", got)
	}
	r.wait(time.Hour)
	r.wantState(None)
}

func testRefreshRequest(t *testing.T) {
	for _, tunneled := range []bool{true, false} {
		r := boundRig(t)
		if tunneled {
			r.tunneled(mobility(addrC, addrHome, none, &wire.BindingRefreshRequest{}))
		} else {
			r.receive(mobility(addrC, addrA, addrHome, &wire.BindingRefreshRequest{}))
		}
		r.want("HoTI", "CoTI")
		r.testsDone()
		r.want("BU")
		r.answer(r.sent[0])
		r.wantEvents("confirmed")
	}
}

func testRefreshRequestReserved(t *testing.T) {
	r := boundRig(t)
	r.receive(rewrite(mobility(addrC, addrA, addrHome, &wire.BindingRefreshRequest{}), func(mh []byte) { mh[3], mh[6], mh[7] = 0xff, 0xff, 0xff }))
	r.want("HoTI", "CoTI")
}

func testRefreshRequestUnknown(t *testing.T) {
	r := boundRig(t)
	r.receive(mobility(addrD, addrA, addrHome, &wire.BindingRefreshRequest{}))
	r.want()
	// Nor while there is no binding.
	r.do(Prepare{Client: addrD})
	r.receive(mobility(addrD, addrA, addrHome, &wire.BindingRefreshRequest{}))
	r.want()
}

func testExpired(t *testing.T) {
	r := boundRig(t)
	r.wait(r.n.clients[addrC].expires - r.now)
	r.wantEvents("unbound, expired")
}
