package node

import (
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// The whole story once: home registration, return routability, Binding Update.
func testOperation1(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	r.want("home BU")
	r.homeAck(&wire.BindingAck{Lifetime: 10 * time.Minute})
	r.wantEvents("registered")
	r.do(Optimise{addrC})
	r.want("HoTI", "CoTI")
	r.testsDone()
	r.want("BU")
	r.wantEvents("bound")
	r.answer(r.sent[0])
	r.wantEvents("confirmed")
	r.want()
	if got := r.c.bound(r.now, addrHome); got != addrA {
		t.Errorf("the client's binding is %v", got)
	}
}

// A change of care-of address takes a care-of test and a Binding Update; here,
// it is the client that goes to the other node.
func testOperation2(t *testing.T) {
	w := handoffWorld(t)
	c := w.clients[addrC]
	c.heard = nil
	g, _ := w.nodes[addrA].Grant(addrC, w.now)
	w.do(addrA, Abandon{addrC})
	w.do(addrB, Bind{addrC, g})
	w.run(time.Second)
	wantHeard(t, c, "CoTI", "BU")
	wantOwner(t, w, addrB)
}

func testHomeUpdate(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	r.want("home BU")
	s := r.sent[0]
	bu := s.m.(*wire.BindingUpdate)
	// RFC 6275 section 11.7.1.
	switch {
	case s.Src != addrA || s.Dst != addrAgent || s.Home != addrHome:
		t.Errorf("from %v to %v with home address %v", s.Src, s.Dst, s.Home)
	case !bu.Ack || !bu.Home || bu.LinkLocal || bu.KeyManagement:
		t.Errorf("flags A %t, H %t, L %t, K %t", bu.Ack, bu.Home, bu.LinkLocal, bu.KeyManagement)
	case bu.AltCareOf != addrA:
		t.Errorf("alternate care-of address %v", bu.AltCareOf)
	case bu.Lifetime != 10*time.Minute:
		t.Errorf("lifetime %v", bu.Lifetime)
	}
	if r.n.Via() != addrAgent {
		t.Errorf("via %v", r.n.Via())
	}
}

func testHomeSecurity(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	s := r.one("home BU")
	auth := s.m.(*wire.BindingUpdate).MobileAuth
	if auth == nil || auth.SPI != 256 || !sharedKey.Verify(s.Payload, addrA, addrHome) {
		t.Fatalf("authentication option %+v", auth)
	}
	if want := uint64(epoch.Unix()+2208988800) << 32; auth.Timestamp != want {
		t.Errorf("timestamp %x, want %x", auth.Timestamp, want)
	}
	other := wire.SharedKey("another key, of somebody else")
	ba := &wire.BindingAck{Sequence: r.n.reg.seq, Lifetime: time.Minute, MobileAuth: &wire.MobileAuth{SPI: 256, Timestamp: auth.Timestamp}}
	out := wire.Packet{Src: addrAgent, Dst: addrA, Routing: addrHome, Protocol: wire.Mobility}
	out.Payload = other.Sign(nil, ba, 256, addrAgent, addrHome, addrA, addrHome)
	r.receive(mustAppend(&out))
	r.wantEvents()
	r.homeAck(&wire.BindingAck{Lifetime: time.Minute})
	r.wantEvents("registered")
}

func testHomeFirstBackoff(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	first := r.one("home BU").m.(*wire.BindingUpdate).Sequence
	r.wait(2 * time.Minute)
	r.wantTimes("home BU", 0, 1500*time.Millisecond, 4500*time.Millisecond, 10500*time.Millisecond,
		22500*time.Millisecond, 46500*time.Millisecond, 78500*time.Millisecond, 110500*time.Millisecond)
	for i, s := range r.sent {
		if got := s.m.(*wire.BindingUpdate).Sequence; got != first+uint16(i)+1 {
			t.Errorf("retransmission %d has sequence number %d, the first %d", i+1, got, first)
		}
	}
	r.wantEvents("registration failed, silent")
}

func testHomeBackoff(t *testing.T) {
	r := contactRig(t)
	start := r.n.reg.refresh
	r.wait(start + 50*time.Second)
	s := time.Second
	r.wantTimes("home BU", start, 0, 1*s, 3*s, 7*s, 15*s, 31*s)
	r.wantEvents()
}

func testHomeExpired(t *testing.T) {
	r := contactRig(t)
	r.wait(10*time.Minute - time.Millisecond)
	r.wantEvents()
	r.wait(10 * time.Second)
	r.wantTimes("home BU", 10*time.Minute, 0, 1500*time.Millisecond, 4500*time.Millisecond)
	r.wantEvents("registration failed, expired")
	if _, ok := r.n.Registered(); ok {
		t.Error("still registered")
	}
	r.homeAck(&wire.BindingAck{Lifetime: time.Minute})
	r.wantEvents("registered")
}

func testHomeAccepted(status ...wire.Status) func(*testing.T) {
	return func(t *testing.T) {
		for _, s := range status {
			r := newRig(t)
			r.do(Register{})
			r.homeAck(&wire.BindingAck{Status: s, Lifetime: 5 * time.Minute})
			r.wantEvents("registered")
			if e := r.events[0]; e.Status != s || e.Until != 5*time.Minute {
				t.Errorf("status %d: %+v", s, e)
			}
			r.wait(time.Minute)
			r.want()
		}
	}
}

func testHomeReserved(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Key = nil })
	r.do(Register{})
	b := mobility(addrAgent, addrA, addrHome, &wire.BindingAck{Sequence: r.n.reg.seq, Lifetime: time.Minute})
	r.receive(rewrite(b, func(mh []byte) { mh[3], mh[7] = 0xff, mh[7]|0x7f }))
	r.wantEvents("registered")
}

func testHomeLifetime(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	r.homeAck(&wire.BindingAck{Lifetime: 40 * time.Second})
	if until, _ := r.n.Registered(); until != 40*time.Second {
		t.Fatalf("registered until %v", until)
	}
	r.wait(39 * time.Second)
	r.wantTimes("home BU", 0, 24*time.Second, 25*time.Second, 27*time.Second, 31*time.Second, 39*time.Second)
}

func testHomeAdvice(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	r.homeAck(&wire.BindingAck{Lifetime: 600 * time.Second, RefreshAdvice: 100 * time.Second})
	if until, _ := r.n.Registered(); until != 600*time.Second {
		t.Fatalf("registered until %v", until)
	}
	r.wait(100 * time.Second)
	r.wantTimes("home BU", 0, 100*time.Second)
}

func testHomeRefused(status wire.Status) func(*testing.T) {
	return func(t *testing.T) {
		r := newRig(t)
		r.do(Register{})
		r.homeAck(&wire.BindingAck{Status: status})
		r.wantEvents("registration failed, refused")
		if e := r.events[0]; e.Status != status {
			t.Errorf("status %d", e.Status)
		}
		if _, ok := r.n.Registered(); ok {
			t.Error("registered")
		}
		// Only much later, in case that somebody has removed the cause.
		r.wait(2 * time.Minute)
		r.wantTimes("home BU", 0, 60*time.Second, 92*time.Second)
	}
}

func testHomeSequence(stored uint16) func(*testing.T) {
	return func(t *testing.T) {
		r := newRig(t)
		r.do(Register{})
		r.homeAck(&wire.BindingAck{Status: wire.SequenceOutOfWindow, Sequence: stored})
		r.want("home BU")
		if got := r.sent[0].m.(*wire.BindingUpdate).Sequence; got != stored+1 {
			t.Errorf("sequence number %d after %d", got, stored)
		}
		// One that never has enough is not followed for ever.
		for i := range 20 {
			r.homeAck(&wire.BindingAck{Status: wire.SequenceOutOfWindow, Sequence: stored + 10*uint16(i+1)})
		}
		if r.n.reg.refusals > maxRefusals {
			t.Errorf("%d refusals", r.n.reg.refusals)
		}
		r.want()
	}
}

func testHomeWrongSequence(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	r.homeAck(&wire.BindingAck{Sequence: r.n.reg.seq - 1, Lifetime: time.Minute})
	r.wantEvents()
	r.wait(4500 * time.Millisecond)
	r.wantTimes("home BU", 0, 1500*time.Millisecond, 4500*time.Millisecond)
}

func testHomeUnprotected(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	r.receive(mobility(addrAgent, addrA, addrHome, &wire.BindingAck{Sequence: r.n.reg.seq, Lifetime: time.Minute}))
	r.wantEvents()
	r.receive(mobility(addrAgent, addrA, addrHome, &wire.BindingAck{Sequence: r.n.reg.seq, Status: wire.Prohibited}))
	r.wantEvents()
	// But a hint that the key is wrong is passed on.
	r.receive(mobility(addrAgent, addrA, addrHome, &wire.BindingAck{Sequence: r.n.reg.seq, Status: wire.AuthFail}))
	r.wantEvents("registration failed, refused")
	r.wait(time.Second * 3 / 2)
	r.want("home BU")
}

// The home registration goes to another care-of address: that of another node.
func testContactMoves(t *testing.T) {
	w := newWorld(t)
	w.do(addrA, Register{})
	w.do(addrB, SetContact{addrA})
	w.run(2 * time.Second)
	if w.agent.careOf != addrA {
		t.Fatalf("registered: %v", w.agent.careOf)
	}
	w.do(addrB, Register{})
	w.do(addrA, SetContact{addrB})
	w.run(2 * time.Second)
	if w.agent.careOf != addrB {
		t.Fatalf("registered: %v", w.agent.careOf)
	}
	if w.nodes[addrA].Via() != addrB || w.nodes[addrB].Via() != addrAgent {
		t.Errorf("via: %v, %v", w.nodes[addrA].Via(), w.nodes[addrB].Via())
	}
	w.run(time.Hour)
	if w.agent.careOf != addrB || !w.agent.bound(w.now) {
		t.Errorf("an hour later: %v", w.agent.careOf)
	}
}

func testHomeRefresh(t *testing.T) {
	r := contactRig(t)
	for range 5 {
		until, _ := r.n.Registered()
		r.wait(until - time.Minute - r.now)
		r.want("home BU")
		r.homeAck(&wire.BindingAck{Lifetime: 10 * time.Minute})
		r.wantEvents("registered")
	}
}

func testDeregister(t *testing.T) {
	r := contactRig(t)
	r.do(Deregister{})
	bu := r.one("home BU").m.(*wire.BindingUpdate)
	if bu.Lifetime != 0 || !bu.Ack || !bu.Home {
		t.Errorf("%+v", bu)
	}
	r.homeAck(&wire.BindingAck{})
	r.wantEvents("deregistered")
	r.wait(time.Hour)
	r.want()
}

func testDeregister133(t *testing.T) {
	r := contactRig(t)
	r.do(Deregister{})
	r.homeAck(&wire.BindingAck{Status: wire.NotHomeAgent})
	r.wantEvents("deregistered")
	r.wait(time.Hour)
	r.want()
}

func testHomeParameterProblem(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	raw := r.one("home BU").raw
	r.receive(icmpError(addrAgent, wire.ParameterProblem, 1, raw))
	r.wantEvents("registration failed, not spoken")
	r.wait(32 * time.Second)
	r.want()
}

func testViaHomeAgent(t *testing.T) {
	r := contactRig(t)
	r.wantState(None)
	if r.n.Via() != addrAgent {
		t.Errorf("via %v", r.n.Via())
	}
}
