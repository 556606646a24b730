package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// An exchange is what happens between two states of the world in which all is
// quiet.
type exchange struct {
	name   string
	before func(t testing.TB) *world
	during func(w *world)
	after  func(t testing.TB, w *world)
}

func owned(a netip.Addr) func(testing.TB, *world) {
	return func(t testing.TB, w *world) { wantOwner(t, w, a) }
}

// move hands client c over from node a to node b.
func move(prepare, token bool) func(*world) {
	return func(w *world) {
		grant := func() Grant {
			g, _ := w.nodes[addrA].Grant(addrC, w.now)
			if !token {
				g = Grant{Sequence: g.Sequence}
			}
			return g
		}
		if prepare {
			w.do(addrB, Prepare{addrC, grant()})
			w.run(50 * time.Millisecond)
		}
		g := grant()
		w.do(addrA, Abandon{addrC})
		w.do(addrB, Bind{addrC, g})
	}
}

var exchanges = []exchange{
	{
		"home registration",
		func(t testing.TB) *world { return newWorld(t) },
		func(w *world) { w.do(addrA, Register{}) },
		func(t testing.TB, w *world) {
			if w.agent.careOf != addrA || !w.agent.bound(w.now) {
				t.Errorf("registered: %s", names[w.agent.careOf])
			}
			if _, ok := w.nodes[addrA].Registered(); !ok {
				t.Error("the node does not know")
			}
		},
	},
	{
		"deregistration",
		handoffWorldOf,
		func(w *world) { w.do(addrA, Deregister{}) },
		func(t testing.TB, w *world) {
			if w.agent.bound(w.now) {
				t.Error("still registered")
			}
			if _, ok := w.nodes[addrA].Registered(); ok {
				t.Error("the node thinks that it is")
			}
		},
	},
	{
		"takeover of the contact's role",
		handoffWorldOf,
		func(w *world) { w.do(addrB, Register{}); w.do(addrA, SetContact{addrB}) },
		func(t testing.TB, w *world) {
			if w.agent.careOf != addrB || !w.agent.bound(w.now) {
				t.Errorf("registered: %s", names[w.agent.careOf])
			}
			wantOwner(t, w, addrA)
		},
	},
	{
		"route optimisation",
		func(t testing.TB) *world {
			w := newWorld(t)
			w.do(addrA, Register{})
			w.do(addrB, SetContact{addrA})
			w.run(2 * time.Second)
			return w
		},
		func(w *world) { w.do(addrA, Optimise{addrC}) },
		owned(addrA),
	},
	{
		"route optimisation through another contact",
		func(t testing.TB) *world {
			w := newWorld(t)
			w.do(addrA, Register{})
			w.do(addrB, SetContact{addrA})
			w.run(2 * time.Second)
			return w
		},
		func(w *world) { w.do(addrB, Optimise{addrC}) },
		owned(addrB),
	},
	{"prepared handoff", handoffWorldOf, move(true, true), owned(addrB)},
	{"prepared handoff without a token", handoffWorldOf, move(true, false), owned(addrB)},
	{"handoff", handoffWorldOf, move(false, true), owned(addrB)},
	{"handoff without a token", handoffWorldOf, move(false, false), owned(addrB)},
	{
		"takeover without a grant, the owner not told",
		handoffWorldOf,
		func(w *world) { w.do(addrB, Bind{Client: addrC}) },
		func(t testing.TB, w *world) { w.run(10 * time.Minute); wantOwner(t, w, addrB) },
	},
	{
		"handoff, the owner not told",
		handoffWorldOf,
		func(w *world) {
			g, _ := w.nodes[addrA].Grant(addrC, w.now)
			w.do(addrB, Bind{addrC, g})
		},
		func(t testing.TB, w *world) { w.run(10 * time.Minute); wantOwner(t, w, addrB) },
	},
	{
		"refresh by an owner who was not told",
		func(t testing.TB) *world {
			w := handoffWorld(t)
			g, _ := w.nodes[addrA].Grant(addrC, w.now)
			w.run(100 * time.Second)
			w.do(addrB, Bind{addrC, g})
			w.run(w.nodes[addrA].clients[addrC].refresh - w.now - time.Millisecond)
			return w
		},
		func(w *world) { w.run(time.Millisecond) },
		func(t testing.TB, w *world) { w.run(10 * time.Minute); wantOwner(t, w, addrB) },
	},
	{
		"refresh",
		handoffWorldOf,
		func(w *world) { w.run(w.nodes[addrA].clients[addrC].refresh - w.now) },
		owned(addrA),
	},
	{
		"refresh on request",
		handoffWorldOf,
		func(w *world) { w.put("c", mobility(addrC, addrA, addrHome, &wire.BindingRefreshRequest{}), 0) },
		owned(addrA),
	},
	{
		"lost binding",
		handoffWorldOf,
		func(w *world) {
			w.clients[addrC].reboot()
			w.put("a", data(wire.Packet{Src: addrA, Dst: addrC, Home: addrHome}), 0)
		},
		func(t testing.TB, w *world) {
			// Where the Binding Error was lost, the next packet brings another.
			w.fault = nil
			w.put("a", data(wire.Packet{Src: addrA, Dst: addrC, Home: addrHome}), 0)
			w.run(time.Minute)
			wantOwner(t, w, addrA)
		},
	},
	{
		"release",
		handoffWorldOf,
		func(w *world) { w.do(addrA, Release{addrC}) },
		owned(netip.Addr{}),
	},
	{
		"release with an old token",
		func(t testing.TB) *world {
			w := handoffWorldOf(t)
			w.run(5 * time.Minute)
			return w
		},
		func(w *world) { w.do(addrA, Release{addrC}) },
		owned(netip.Addr{}),
	},
}

func handoffWorldOf(t testing.TB) *world { return handoffWorld(t) }

// faults are what can become of a packet.
var packetFaults = []struct {
	name string
	fault
}{
	{"lost", nil},
	{"doubled", fault{hop, hop}},
	{"doubled, one late", fault{hop, hop + 400*time.Millisecond}},
	{"a little late", fault{hop + 12*time.Millisecond}},
	{"late", fault{hop + 700*time.Millisecond}},
	{"very late", fault{hop + 5*time.Second}},
}

// Any one packet, and any two, of an exchange are lost, doubled or late: it
// ends in the right state all the same, and nobody says anything who should be
// silent.
func TestFaultsAtEachPosition(t *testing.T) {
	for _, x := range exchanges {
		t.Run(x.name, func(t *testing.T) {
			n := x.run(t, nil)
			if n == 0 {
				t.Fatal("no packets")
			}
			runs := 0
			for i := range n + 2 { // those that only a fault brings about, too
				for _, f := range packetFaults {
					x.run(t, map[int]fault{i: f.fault}, fmt.Sprint(i, " ", f.name))
					runs++
					if testing.Short() {
						continue
					}
					for j := i + 1; j < n+3; j++ {
						for _, g := range packetFaults {
							x.run(t, map[int]fault{i: f.fault, j: g.fault}, fmt.Sprint(i, " ", f.name), fmt.Sprint(j, " ", g.name))
							runs++
						}
					}
					if t.Failed() {
						return
					}
				}
			}
			t.Logf("%d packets, %d runs", n, runs)
		})
	}
}

// run runs an exchange with faults by position, and says how many packets there
// were in it.
func (x *exchange) run(t testing.TB, faults map[int]fault, what ...string) (n int) {
	t.Helper()
	rec := &recorder{TB: t}
	n = x.play(rec, faults, nil)
	if rec.failed != "" {
		var log strings.Builder
		x.play(&recorder{TB: t}, faults, &log)
		t.Errorf("%s, %s:\n%s%s", x.name, strings.Join(what, ", "), rec.failed, log.String())
	}
	return n
}

func (x *exchange) play(rec *recorder, faults map[int]fault, log *strings.Builder) (n int) {
	w := x.before(rec)
	w.log = log
	first := w.count
	w.fault = func(i int, p []byte) []time.Duration {
		if f, ok := faults[i-first]; ok {
			return f
		}
		return fault{hop}
	}
	x.during(w)
	w.run(time.Second)
	n = w.count - first
	w.run(40 * time.Second)
	x.after(rec, w)
	for _, n := range w.nodes {
		rec.checkQuiet(n)
	}
	return n
}

// recorder keeps failures, to tell them together with what led to them.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.failed += fmt.Sprintf(format, args...) + "\n"
}
func (r *recorder) Error(args ...any) { r.failed += fmt.Sprintln(args...) }

// checkQuiet: nothing is under way, and what is consistent with that.
func (r *recorder) checkQuiet(n *Node) {
	for _, c := range n.order {
		if c.goal == ownership && (c.pending || c.due || c.home.pending || c.careOf.pending || !c.using) {
			r.Errorf("client %s at %s is not quiet: %+v", names[c.addr], names[n.cfg.CareOf], c)
		}
	}
	if n.reg.pending || n.reg.due {
		r.Errorf("registration at %s is not quiet: %+v", names[n.cfg.CareOf], n.reg)
	}
}
