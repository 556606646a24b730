package node

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// handoffWorld has node a as contact and owner of client c, with a binding.
func handoffWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := newWorld(t, change...)
	w.do(addrA, Register{})
	w.do(addrB, SetContact{addrA})
	w.run(2 * time.Second)
	w.do(addrA, Optimise{addrC})
	w.run(2 * time.Second)
	wantOwner(t, w, addrA)
	return w
}

// wantOwner says whose the client's binding is, and that only that node thinks
// so.
func wantOwner(t testing.TB, w *world, owner netip.Addr) {
	t.Helper()
	if got := w.clients[addrC].bound(w.now, addrHome); got != owner {
		t.Errorf("at %v the client's binding is %s, want %s", w.now, names[got], names[owner])
	}
	for _, a := range w.order {
		want := None
		if a == owner {
			want = Established
		}
		if got := w.nodes[a].State(addrC); got != want {
			t.Errorf("at %v the client's state at %s is %v, want %v", w.now, names[a], got, want)
		}
	}
}

// wantHeard says what the client has heard.
func wantHeard(t testing.TB, c *peer, kinds ...string) {
	t.Helper()
	if !slices.Equal(c.heard, kinds) {
		t.Errorf("the client heard %q, want %q", c.heard, kinds)
	}
}

// The heart of the matter: with a grant and tokens fetched ahead, the Binding
// Update is the first packet that the new owner sends, and it goes at once.
func TestPreparedBindIsOnePacket(t *testing.T) {
	r := newRig(t)
	r.do(SetContact{addrB})
	g := Grant{HomeToken: r.c.homeToken(addrHome, 1), HomeNonce: 1, Remaining: 100 * time.Second, Sequence: 65500, Binding: MaxRRBindingLifetime}
	r.do(Prepare{addrC, g})
	r.want("CoTI") // and nothing that the owner could notice
	r.wantState(Preparing)
	r.answer(r.sent[0])
	r.want()
	r.wantEvents("ready")
	r.wantState(Prepared)
	r.wait(50 * time.Second)
	r.want()

	g.Sequence += 2 // the donor has gone on meanwhile
	r.do(Bind{addrC, g})
	r.want("BU")
	r.wantEvents("bound")
	s := r.sent[0]
	bu := s.m.(*wire.BindingUpdate)
	if s.Src != addrA || s.Home != addrHome || s.via.IsValid() || !bu.Ack || bu.HomeNonce != 1 {
		t.Errorf("%+v in %+v", bu, s.Packet)
	}
	if past := bu.Sequence - g.Sequence; past != fence {
		t.Errorf("sequence number %d after %d", bu.Sequence, g.Sequence)
	}
	r.answer(s)
	r.wantEvents("confirmed")
	if got := r.c.bound(r.now, addrHome); got != addrA {
		t.Errorf("the client's binding is %v", got)
	}
}

// What is missing is fetched, and nothing else.
func TestBindFetchesWhatIsMissing(t *testing.T) {
	token := func(r *rig) Grant {
		return Grant{HomeToken: r.c.homeToken(addrHome, 1), HomeNonce: 1, Remaining: time.Minute, Sequence: 7, Binding: MaxRRBindingLifetime}
	}
	tests := []struct {
		name     string
		prepare  func(*rig) Grant
		answered string // test of the preparation that is answered
		bind     func(*rig) Grant
		want     []string
	}{
		{"not prepared, home token", nil, "", token, []string{"CoTI"}},
		{"not prepared, no token", nil, "", func(*rig) Grant { return Grant{Sequence: 7} }, []string{"HoTI", "CoTI"}},
		{"not prepared, no grant", nil, "", func(*rig) Grant { return Grant{} }, []string{"HoTI", "CoTI"}},
		{"prepared", token, "CoTI", token, []string{"BU"}},
		{"prepared, grant only then", token, "CoTI", func(*rig) Grant { return Grant{} }, []string{"BU"}},
		{"prepared without a home token", func(*rig) Grant { return Grant{} }, "CoTI", func(*rig) Grant { return Grant{} }, nil},
		{"prepared without one, granted at last", func(*rig) Grant { return Grant{} }, "CoTI", token, []string{"BU"}},
		{"care-of test under way", token, "", token, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := contactRig(t)
			var under []sent
			if tt.prepare != nil {
				r.do(Prepare{addrC, tt.prepare(r)})
				under = r.sent
				for i, s := range under {
					if s.kind() == tt.answered {
						r.answer(s)
						under = slices.Delete(slices.Clone(under), i, i+1)
						break
					}
				}
			}
			r.do(Bind{addrC, tt.bind(r)})
			r.want(tt.want...)
			var update []sent
			for _, s := range append(under, r.sent...) {
				if s.kind() == "BU" {
					update = append(update, s)
					continue
				}
				r.answer(s)
				update = append(update, r.sent...)
			}
			r.sent = update
			r.want("BU")
			r.answer(r.sent[0])
			r.wantState(Established)
		})
	}
}

// A client stays prepared for as long as somebody wants it to.
func TestPreparedStaysFresh(t *testing.T) {
	r := contactRig(t)
	prepare := func() {
		r.do(Prepare{addrC, Grant{HomeToken: r.c.homeToken(addrHome, r.c.index(r.now)), HomeNonce: r.c.index(r.now), Remaining: 200 * time.Second, Sequence: 9, Binding: MaxRRBindingLifetime}})
	}
	prepare()
	r.testsDone()
	for r.now < 20*time.Minute {
		r.wait(time.Second)
		for _, s := range r.sent {
			if s.kind() == "BU" {
				t.Fatal("a Binding Update of a node that is not the owner")
			}
			if s.kind() != "home BU" {
				r.answer(s)
			}
		}
		if r.now%(4*time.Minute) == 0 {
			prepare()
		}
		r.wantState(Prepared)
	}
	r.do(Bind{Client: addrC})
	r.want("BU")
}

func TestPreparedLapses(t *testing.T) {
	r := contactRig(t, func(c *Config) { c.PrepareLifetime = 2 * time.Minute })
	r.do(Prepare{Client: addrC})
	r.testsDone()
	r.wantEvents("ready")
	until := r.events[0].Until
	r.wait(until - r.now)
	r.wantEvents("lapsed")
	r.wantState(None)
	r.wait(time.Minute)
	r.want()
	if len(r.n.clients) != 0 {
		t.Error("not forgotten")
	}
}

// A node that has abandoned a client is silent, whatever it was at, and
// whatever comes in late.
func TestAbandonedIsSilent(t *testing.T) {
	phases := []struct {
		name string
		do   func(*rig)
	}{
		{"preparing", func(r *rig) { r.do(Prepare{Client: addrC}) }},
		{"prepared", func(r *rig) { r.do(Prepare{Client: addrC}); r.testsDone() }},
		{"testing", func(r *rig) { r.do(Optimise{addrC}) }},
		{"testing, half", func(r *rig) { r.do(Optimise{addrC}); r.answer(r.one("CoTI")) }},
		{"binding", func(r *rig) { r.do(Optimise{addrC}); r.testsDone() }},
		{"established", func(r *rig) { r.do(Optimise{addrC}); r.testsDone(); r.answer(r.one("BU")) }},
		{"refreshing", func(r *rig) {
			r.do(Optimise{addrC})
			r.testsDone()
			r.answer(r.one("BU"))
			r.receive(mobility(addrC, addrA, addrHome, &wire.BindingRefreshRequest{}))
		}},
		{"releasing", func(r *rig) {
			r.do(Optimise{addrC})
			r.testsDone()
			r.answer(r.one("BU"))
			r.do(Release{addrC})
		}},
	}
	for _, phase := range phases {
		t.Run(phase.name, func(t *testing.T) {
			r := contactRig(t)
			var all []sent
			phase.do(r)
			all = append(all, r.sent...)
			r.do(Abandon{addrC})
			r.want()
			r.wantState(None)
			silent := func() {
				r.Helper()
				r.want()
				r.wantEvents()
			}
			for _, s := range all {
				if s.kind() != "home BU" {
					r.answer(s)
					silent()
				}
			}
			for _, m := range []wire.Message{
				&wire.BindingRefreshRequest{}, &wire.BindingAck{}, &wire.BindingError{Status: wire.UnknownBinding, Home: addrHome},
			} {
				r.receive(mobility(addrC, addrA, addrHome, m))
				silent()
				r.receive(mobility(addrC, addrA, none, m))
				silent()
			}
			r.receive(icmpError(addrC, wire.ParameterProblem, 2, data(wire.Packet{Src: addrA, Dst: addrC, Home: addrHome})))
			silent()
			r.wait(2 * time.Second)
			silent()
			if r.n.timers.Len() != 0 {
				t.Error("something is left to do")
			}
			if c := r.n.clients[addrC]; c != nil && !c.careOf.usable(r.now) {
				t.Error("more than a care-of keygen token is left of it")
			}
			r.wait(MaxTokenLifetime)
			silent()
			if len(r.n.clients) != 0 || r.n.timers.Len() != 0 || r.n.idle.Len() != 0 || r.n.spare.Len() != 0 {
				t.Error("something is left of it")
			}
			if _, ok := r.n.Grant(addrC, r.now); ok {
				t.Error("a grant for a client that is another's")
			}
		})
	}
}

// A node that does not know that it has lost the client loses it all the same:
// the client enforces it, and the node believes it.
func TestStaleOwnerIsFenced(t *testing.T) {
	for _, lost := range []int{0, 1, 5} { // answers to the stale node that are lost
		w := handoffWorld(t)
		g, _ := w.nodes[addrA].Grant(addrC, w.now)
		w.do(addrB, Bind{addrC, g}) // and a hears nothing of it
		w.run(2 * time.Second)
		left := lost
		w.fault = func(i int, p []byte) []time.Duration {
			if in, err := wire.ParsePacket(p); err == nil && in.Dst == addrA && in.Routing.IsValid() && in.Src == addrC && left > 0 {
				left--
				return nil
			}
			return []time.Duration{hop}
		}
		w.events, w.by = nil, nil
		w.run(15 * time.Minute)
		wantOwner(t, w, addrB)
		var told []string
		for i, e := range w.events {
			if w.by[i] == addrA && e.Client == addrC {
				told = append(told, describeEvent(e))
			}
		}
		if len(told) == 0 || told[len(told)-1] != "c unbound, superseded" {
			t.Errorf("%d lost: a was told %q", lost, told)
		}
	}
}

// Its data, too: the client's Binding Error makes it ask, and the answer is
// clear.
func TestStaleOwnerSendsData(t *testing.T) {
	w := handoffWorld(t)
	g, _ := w.nodes[addrA].Grant(addrC, w.now)
	w.do(addrB, Bind{addrC, g})
	w.run(2 * time.Second)
	w.put("a", data(wire.Packet{Src: addrA, Dst: addrC, Home: addrHome}), 0)
	w.run(2 * time.Second)
	wantOwner(t, w, addrB)
}

// Both think that they own the client, with the same grant, and both have
// never been acknowledged. That must not be; if it is, one gets it, and the
// other learns so.
func TestTwoOwners(t *testing.T) {
	w := handoffWorld(t)
	g, _ := w.nodes[addrA].Grant(addrC, w.now)
	w.do(addrA, Abandon{addrC})
	w.do(addrA, Bind{addrC, g})
	w.do(addrB, Bind{addrC, g})
	w.run(30 * time.Minute)
	owner := w.clients[addrC].bound(w.now, addrHome)
	if !owner.IsValid() {
		t.Fatal("nobody")
	}
	wantOwner(t, w, owner)
}

// The previous owner's last Binding Update is late: the client refuses it.
func TestLateUpdateOfTheOwnerBefore(t *testing.T) {
	w := handoffWorld(t)
	w.fault = func(i int, p []byte) []time.Duration { return []time.Duration{3 * time.Second} }
	w.put("c", mobility(addrC, addrA, none, &wire.BindingError{Status: wire.UnknownBinding, Home: addrHome}), 0)
	w.run(3 * time.Second)
	w.fault = nil
	g, _ := w.nodes[addrA].Grant(addrC, w.now)
	w.do(addrA, Abandon{addrC})
	w.do(addrB, Bind{addrC, g})
	w.run(10 * time.Second)
	wantOwner(t, w, addrB)
}

// From node to node and back, often, with and without preparation.
func TestManyHandoffs(t *testing.T) {
	w := handoffWorld(t)
	from, to := addrA, addrB
	for i := range 300 { // past a turn of the sequence numbers
		g, ok := w.nodes[from].Grant(addrC, w.now)
		if !ok {
			t.Fatalf("handoff %d: no grant", i)
		}
		if i%3 != 0 {
			w.do(to, Prepare{addrC, g})
			w.run(100 * time.Millisecond)
		}
		g, _ = w.nodes[from].Grant(addrC, w.now)
		w.do(from, Abandon{addrC})
		w.do(to, Bind{addrC, g})
		w.run(time.Duration(i%7) * 60 * time.Second)
		w.run(time.Second)
		wantOwner(t, w, to)
		if t.Failed() {
			t.Fatalf("handoff %d", i)
		}
		from, to = to, from
	}
}
