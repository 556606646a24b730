package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) {}, ""},
		{func(c *Config) { c.Home = netip.Prefix{} }, "home address"},
		{func(c *Config) { c.Home = netip.MustParsePrefix("192.0.2.1/24") }, "home address"},
		{func(c *Config) { c.Home = netip.MustParsePrefix("fe80::1/64") }, "home address"},
		{func(c *Config) { c.CareOf = netip.Addr{} }, "care-of address"},
		{func(c *Config) { c.CareOf = addrHome }, "care-of address"},
		{func(c *Config) { c.CareOf = netip.MustParseAddr("2001:db8:a::9") }, "on the home link"},
		{func(c *Config) { c.HomeAgent = addrA }, "home agent"},
		{func(c *Config) { c.HomeAgent = netip.MustParseAddr("ff02::1") }, "home agent"},
		{func(c *Config) { c.Key = wire.SharedKey("short") }, "key"},
		{func(c *Config) { c.Rand = nil }, "rand"},
		{func(c *Config) { c.HomeLifetime = time.Second }, "home lifetime"},
		{func(c *Config) { c.RegisterTimeout = time.Millisecond }, "register timeout"},
		{func(c *Config) { c.CorrespondentLifetime = -time.Second }, "correspondent lifetime"},
		{func(c *Config) { c.Attempts = -1 }, "attempts"},
	} {
		cfg := config(addrA, 0)
		tt.change(&cfg)
		_, err := New(cfg)
		if got := fmt.Sprint(err); !strings.Contains(got, tt.want) || (err == nil) != (tt.want == "") {
			t.Errorf("got %q, want %q", got, tt.want)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "node: ") {
			t.Errorf("%q", err)
		}
	}
}

// RFC 6275 section 13: InitialBindackTimeoutFirstReg is for the operator to choose.
// It is for the first registration, and doubles.
func TestSection13RegisterTimeout(t *testing.T) {
	for _, timeout := range []time.Duration{0, 4 * time.Second} {
		cfg := config(addrA, 0)
		cfg.RegisterTimeout = timeout
		n := newNode(t, cfg)
		n.Step(0, Register{})
		if timeout == 0 {
			timeout = 1500 * time.Millisecond
		}
		for _, want := range []time.Duration{timeout, 3 * timeout, 7 * timeout} {
			at, ok := n.NextDeadline()
			if !ok || at != want {
				t.Fatalf("sent again after %v, want %v", at, want)
			}
			if out := n.Step(at, Tick{}); len(out.Send) != 1 {
				t.Fatalf("%d packets at %v", len(out.Send), at)
			}
		}
	}
}

// A contact that does not hear that another has taken over learns it from the
// home agent, and does not take it back.
func TestStaleContactIsFenced(t *testing.T) {
	w := newWorld(t)
	w.do(addrA, Register{})
	w.run(2 * time.Second)
	w.do(addrB, Register{})
	w.run(time.Hour)
	if w.agent.careOf != addrB || !w.agent.bound(w.now) {
		t.Errorf("registered: %s", names[w.agent.careOf])
	}
	last := ""
	for i, e := range w.events {
		if w.by[i] == addrA {
			last = describeEvent(e)
		}
	}
	if last != "registration failed, superseded" {
		t.Errorf("a was last told %q", last)
	}
	if _, ok := w.nodes[addrA].Registered(); ok {
		t.Error("a thinks that it is registered")
	}
}

// The clocks need not agree: the home agent says what time it is.
func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{time.Hour, -time.Hour, 30 * 365 * 24 * time.Hour, -20 * time.Second} {
		w := newWorld(t)
		w.agent.skew = skew
		w.do(addrA, Register{})
		w.run(2 * time.Second)
		if _, ok := w.nodes[addrA].Registered(); !ok {
			t.Errorf("%v: not registered", skew)
		}
		n := w.count
		w.run(30 * time.Minute)
		if _, ok := w.nodes[addrA].Registered(); !ok || w.count-n > 8 {
			t.Errorf("%v: registered %t, %d packets", skew, ok, w.count-n)
		}
	}
}

// A home agent that has lost its bindings gets the node's back: when it says
// so, or with the next refresh.
func TestHomeAgentStartsAnew(t *testing.T) {
	r := contactRig(t)
	r.wait(time.Minute)
	r.receive(mobility(addrAgent, addrA, none, &wire.BindingError{Status: wire.UnknownBinding, Home: addrHome}))
	r.want("home BU")
	r.receive(mobility(addrAgent, addrA, none, &wire.BindingError{Status: wire.UnknownBinding, Home: addrHome}))
	r.want() // it is asked already
	r.homeAck(&wire.BindingAck{Lifetime: 10 * time.Minute})
	r.wantEvents("registered")

	r.wait(9 * time.Minute)
	r.want("home BU")
	r.homeAck(&wire.BindingAck{Status: wire.NotHomeAgent})
	r.wantEvents("registration failed, refused")
	r.want("home BU")
	r.homeAck(&wire.BindingAck{Lifetime: 10 * time.Minute})
	r.wantEvents("registered")
}

// An answer to another update with the same number, recorded long ago, is none.
func TestHomeReplay(t *testing.T) {
	r := newRig(t)
	r.do(Register{})
	ba := &wire.BindingAck{Sequence: r.n.reg.seq, Lifetime: time.Minute, MobileAuth: &wire.MobileAuth{SPI: 256, Timestamp: r.n.reg.stamp - 1<<40}}
	out := wire.Packet{Src: addrAgent, Dst: addrA, Routing: addrHome, Protocol: wire.Mobility}
	out.Payload = sharedKey.Sign(nil, ba, 256, addrAgent, addrHome, addrA, addrHome)
	r.receive(mustAppend(&out))
	r.wantEvents()
}

// Resign is silent, and Deregister gives up in the end.
func TestResignAndDeregister(t *testing.T) {
	r := contactRig(t)
	r.do(Resign{})
	r.want()
	r.wait(time.Hour)
	r.want()

	r = contactRig(t)
	r.wait(time.Second)
	r.do(Deregister{})
	r.want("home BU")
	r.wait(time.Hour)
	r.want("home BU", "home BU", "home BU")
	r.wantEvents("deregistered, silent")
	r.do(Deregister{})
	r.wantEvents("deregistered")
}

// When the contact changes, home tests that got no answer are tried at once by
// the new way.
func TestContactChangesDuringTests(t *testing.T) {
	r := newRig(t)
	r.do(SetContact{addrB})
	r.do(Optimise{addrC})
	r.answer(r.one("CoTI"))
	r.wait(40 * time.Second)
	r.do(SetContact{addrD})
	r.want("HoTI")
	if r.sent[0].via != addrD {
		t.Errorf("via %v", r.sent[0].via)
	}
	// What comes by the old way does not count any more.
	reply := r.reply(r.sent[0])
	r.receive(mustTunnel(addrB, addrA, reply))
	r.want()
	r.receive(mustTunnel(addrD, addrA, reply))
	r.want("BU")
}

// Without a contact there is no way for a home test, but nothing breaks.
func TestNoContact(t *testing.T) {
	r := newRig(t)
	r.do(Optimise{addrC})
	r.want("CoTI")
	r.answer(r.sent[0])
	r.wait(time.Minute)
	r.want()
	r.do(SetContact{addrA}) // nonsense
	if r.n.Via().IsValid() {
		t.Errorf("via %v", r.n.Via())
	}
	r.do(SetContact{addrB})
	r.want("HoTI")
}

// The binding does not outlive the home registration (RFC 6275 section 11.7.2).
func TestLifetimeWithinRegistration(t *testing.T) {
	r := contactRig(t)
	r.wait(500 * time.Second)
	r.do(Optimise{addrC})
	r.testsDone()
	if got := r.one("BU").m.(*wire.BindingUpdate).Lifetime; got != 100*time.Second {
		t.Errorf("lifetime %v", got)
	}
}

// Forged messages of whatever number cost three messages of a type a second,
// not more, and the binding is there as soon as they stop.
func TestFloodOfHints(t *testing.T) {
	r := boundRig(t)
	count := make(map[string]int)
	answer := func() {
		r.Helper()
		for again := r.sent; len(again) > 0; {
			s := again[0]
			again = again[1:]
			count[s.kind()]++
			r.answer(s)
			again = append(again, r.sent...)
		}
	}
	const seconds = 20
	for range seconds * 100 {
		r.wait(10 * time.Millisecond)
		answer()
		for _, b := range [][]byte{
			mobility(addrC, addrA, none, &wire.BindingError{Status: wire.UnknownBinding, Home: addrHome}),
			mobility(addrC, addrA, addrHome, &wire.BindingRefreshRequest{}),
			icmpError(addrC, wire.ParameterProblem, 2, data(wire.Packet{Src: addrA, Dst: addrC, Home: addrHome})),
		} {
			r.receive(b)
			answer()
		}
	}
	for kind, n := range count {
		if n > MaxUpdateRate*(seconds+1) {
			t.Errorf("%d %s in %d seconds", n, kind, seconds)
		}
	}
	r.wait(time.Second)
	answer()
	r.wantState(Established)
}

// What is remembered of a client that cannot gives way to better knowledge.
func TestUnableUntilProvenOtherwise(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	r.c.stock = true
	r.answer(r.one("CoTI"))
	r.wantEvents("unsupported, not spoken")
	r.wantState(Unable)
	until := r.events[0].Until

	r.wait(time.Minute)
	for _, in := range []Input{Optimise{addrC}, Prepare{Client: addrC}, Bind{Client: addrC}, Bind{addrC, Grant{Sequence: 9}}} {
		r.do(in)
		r.want()
		r.wantEvents("unsupported, not spoken")
		if r.events[0].Until != until {
			t.Errorf("until %v, was %v", r.events[0].Until, until)
		}
	}
	r.c.stock = false
	r.do(Prepare{addrC, Grant{HomeToken: r.c.homeToken(addrHome, 1), HomeNonce: 1, Remaining: time.Minute, Sequence: 9, Binding: MaxRRBindingLifetime}})
	r.want("CoTI")
}

// A table that is full takes no more clients, except in the place of one that
// is only remembered.
func TestFull(t *testing.T) {
	r := contactRig(t, func(c *Config) { c.MaxClients = 2 })
	r.do(Optimise{addrC})
	r.do(Prepare{Client: addrD})
	third := netip.MustParseAddr("2001:db8:c::e")
	r.do(Optimise{third})
	r.want()
	r.wantEvents("unbound, full")
	r.do(Abandon{addrC})
	r.do(Optimise{third})
	r.wantEvents("unbound, full") // the place is kept for the rate limit
	r.wait(time.Second)
	r.d.stock = true
	r.answer(r.one("CoTI"))
	r.wantEvents("unsupported, not spoken")
	r.do(Optimise{third})
	r.want("HoTI", "CoTI")
	r.do(Optimise{addrC})
	r.wantEvents("unbound, full")
	r.wait(time.Second)
	r.do(Optimise{addrC})
	r.want("HoTI", "CoTI")
	r.wantEvents()
	if len(r.n.clients) != 2 || len(r.n.order) != 2 {
		t.Errorf("%d, %d clients", len(r.n.clients), len(r.n.order))
	}
	r.answer(r.one("CoTI"))
	r.do(Abandon{addrC}) // of which the token is left
	r.wait(time.Second)
	r.do(Optimise{addrD})
	r.want("HoTI", "CoTI")
}

// A client that comes back is bound at once while its care-of keygen token is good.
func TestComesBack(t *testing.T) {
	for _, tt := range []struct {
		away time.Duration
		want []string
	}{
		{time.Second, nil},
		{MaxTokenLifetime - tokenMargin - time.Second, nil},
		{MaxTokenLifetime - tokenMargin, []string{"CoTI"}}, // it might expire on the way
		{MaxTokenLifetime + time.Minute, []string{"CoTI"}},
	} {
		r := contactRig(t)
		r.do(Optimise{addrC})
		r.testsDone()
		r.answer(r.one("BU"))
		r.do(Abandon{addrC})
		r.wait(tt.away)
		r.do(Prepare{addrC, Grant{HomeToken: r.c.homeToken(addrHome, 1), HomeNonce: 1, Remaining: time.Minute, Sequence: 9, Binding: MaxRRBindingLifetime}})
		r.want(tt.want...)
		if ready := r.n.State(addrC) == Prepared; ready != (tt.want == nil) {
			t.Errorf("away for %v: prepared at once: %t", tt.away, ready)
		}
	}
}

func TestBadAddress(t *testing.T) {
	r := contactRig(t)
	for _, s := range []string{"::", "::1", "fe80::1", "ff02::1", "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1%eth0", addrHome.String(), addrA.String()} {
		r.do(Optimise{netip.MustParseAddr(s)})
		r.want()
		r.wantEvents("unbound, bad address")
	}
	r.do(Optimise{})
	r.wantEvents("unbound, bad address")
	r.do(Abandon{})
	r.do(Release{})
	r.wantEvents("released")
}

// Clients have nothing to do with each other.
func TestSeveralClients(t *testing.T) {
	w := handoffWorld(t)
	w.clients[addrD].stock = true
	w.do(addrA, Optimise{addrD})
	w.run(time.Second)
	wantOwner(t, w, addrA)
	if s := w.nodes[addrA].State(addrD); s != Unable {
		t.Errorf("state %v", s)
	}
	got := make(map[netip.Addr]State)
	for c, s := range w.nodes[addrA].Clients() {
		got[c] = s
	}
	if len(got) != 2 || got[addrC] != Established || got[addrD] != Unable {
		t.Errorf("clients %v", got)
	}
	for range w.nodes[addrA].Clients() {
		break
	}
}

// A client that has started anew, with nonces that look like the old ones, is
// bound again soon.
func TestClientStartsAnew(t *testing.T) {
	w := handoffWorld(t)
	w.run(time.Second)
	w.clients[addrC].reboot()
	w.put("a", data(wire.Packet{Src: addrA, Dst: addrC, Home: addrHome}), 0)
	w.run(10 * hop)
	wantOwner(t, w, addrA)
}

// Release needs a home token, and fetches one if need be; a client that does
// not answer is forgotten all the same.
func TestReleaseFetchesToken(t *testing.T) {
	r := boundRig(t)
	r.wait(220 * time.Second)
	r.do(Release{addrC})
	r.want("HoTI")
	r.testsDone()
	r.want("BU")
	r.answer(r.sent[0])
	r.wantEvents("released")

	r = boundRig(t)
	r.do(Release{addrC})
	r.wait(time.Minute)
	r.want("BU", "BU", "BU")
	r.wantEvents("released, silent")

	// Nothing was bound: nothing to delete.
	r = contactRig(t)
	r.do(Optimise{addrC})
	r.do(Release{addrC})
	r.want()
	r.wantEvents("released")

	// But there may be a binding of the owner before.
	r = contactRig(t)
	r.do(Bind{addrC, Grant{HomeToken: r.c.homeToken(addrHome, 1), HomeNonce: 1, Remaining: time.Minute, Sequence: 9, Binding: MaxRRBindingLifetime}})
	r.do(Release{addrC})
	r.want("BU")
}

// The first retransmission after a Bind comes early, but within the limit.
func TestBindRetransmits(t *testing.T) {
	r := contactRig(t)
	g := Grant{HomeToken: r.c.homeToken(addrHome, 1), HomeNonce: 1, Remaining: 200 * time.Second, Sequence: 9, Binding: MaxRRBindingLifetime}
	r.do(Prepare{addrC, g})
	r.testsDone()
	r.do(Bind{addrC, g})
	r.want("BU")
	r.wait(5 * time.Second)
	ms := time.Millisecond
	r.wantTimes("BU", 0, 350*ms, 1050*ms, 2450*ms)
	r.wantEvents("unbound, silent")

	// The answer to the first, by a long way, does as well.
	r = contactRig(t)
	r.do(Prepare{addrC, g})
	r.testsDone()
	r.do(Bind{addrC, g})
	update := r.one("BU")
	r.wait(500 * ms)
	r.want("BU")
	r.answer(update)
	r.wantEvents("bound", "confirmed")
	r.wait(time.Minute)
	r.want()
}

// The same inputs and the same random numbers: the same trace.
func TestDeterministic(t *testing.T) {
	trace := func() string {
		var log strings.Builder
		w := handoffWorld(t)
		w.log = &log
		for i := range 50 {
			a := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0xc, 15: byte(i + 1)})
			w.do(addrA, Optimise{a})
		}
		w.do(addrA, SetContact{addrB})
		w.do(addrB, Register{})
		w.run(10 * time.Minute)
		return log.String()
	}
	if a, b := trace(), trace(); a != b {
		t.Error("two runs differ")
	}
}

// The packet passed in is neither kept nor changed.
func TestPacketStaysTheCallers(t *testing.T) {
	r := contactRig(t)
	r.do(Optimise{addrC})
	hoti, coti := r.one("HoTI"), r.one("CoTI")
	b := mustTunnel(addrAgent, addrA, r.reply(hoti))
	before := slices.Clone(b)
	r.receive(b)
	if !slices.Equal(b, before) {
		t.Error("changed")
	}
	clear(b)
	r.answer(coti)
	r.answer(r.one("BU"))
	r.wantEvents("confirmed")
	// An error quotes a packet that is too long for it.
	long := wire.Packet{Src: addrA, Dst: addrC, Home: addrHome, Protocol: wire.UDP, Payload: make([]byte, 1400)}
	b = icmpError(addrC, wire.ParameterProblem, 2, mustAppend(&long))
	before = slices.Clone(b)
	r.receive(b)
	if !slices.Equal(b, before) {
		t.Error("changed")
	}
}
