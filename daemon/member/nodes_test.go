package member

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/relay"
)

// A node that joins is one of all from then on: for the relay, the application, and
// who connects.
func TestSetNodes(t *testing.T) {
	all := nodes()
	two := map[string]Addrs{"a": all["a"], "b": all["b"]}
	m, err := New(Config{
		Name: "a", Home: home, HomeAgent: agentAddr, SPI: 256, Key: secret, Nodes: two, Contact: Contact{Name: "b"}, Epoch: epoch, Words: api.NewDecisions(), Rand: rand.Reader,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Step(0, SetNodes{all}) // before the start: not a thing
	m.Step(0, Start{})
	m.Step(0, App{&api.Message{Kind: api.Hello, Program: "p"}})
	if out := m.Step(0, PeerUp{"c"}); len(out.Peers) != 0 {
		t.Errorf("to who is no node: %+v", out.Peers)
	}
	m.Step(0, Takeover{ID: 1, Force: true})

	config := func(out Output) *api.SessionConfig {
		t.Helper()
		if len(out.App) != 1 || out.App[0].Kind != api.ConfigChanged {
			t.Fatalf("to the application: %+v", out.App)
		}
		return out.App[0].Config
	}
	out := m.Step(0, SetNodes{all})
	if c := config(out); !slices.Equal(c.Nodes, []string{"b", "c"}) || !slices.Contains(c.Peers, all["c"].CareOf) {
		t.Errorf("the application knows %+v", c)
	}
	relayed := func(out Output) []netip.Addr {
		for _, in := range out.Relay {
			if s, ok := in.(relay.SetNodes); ok {
				return s.Nodes
			}
		}
		return nil
	}
	if !slices.Contains(relayed(out), all["c"].CareOf) {
		t.Errorf("the relay: %+v", out.Relay)
	}
	if out := m.Step(0, PeerUp{"c"}); len(out.Peers) != 1 || out.Peers[0].To != "c" || out.Peers[0].Message.Kind != Hello {
		t.Errorf("c is up: %+v", out.Peers)
	}
	if out := m.Step(0, SetNodes{all}); len(out.App) != 0 || len(out.Relay) != 0 {
		t.Errorf("the same again: %+v", out)
	}

	// b has been removed, c has moved, and what is this member's own stays.
	moved := map[string]Addrs{"c": {Daemon: netip.MustParseAddr("2001:db8:77::c"), CareOf: netip.MustParseAddr("2001:db8:77::1:c")}, "a": {}}
	if c := config(m.Step(0, SetNodes{moved})); !slices.Equal(c.Nodes, []string{"c"}) || !slices.Contains(c.Peers, moved["c"].CareOf) || slices.Contains(c.Peers, all["c"].CareOf) || slices.Contains(c.Peers, all["b"].CareOf) || c.CareOf != all["a"].CareOf {
		t.Errorf("the application knows %+v", c)
	}

	// The contact has another address.
	m.Step(0, Peer{"c", &Message{Kind: SetContact, Server: home.Addr(), Contact: "c", ContactEpoch: 99}})
	moved["c"] = Addrs{Daemon: netip.MustParseAddr("2001:db8:78::c"), CareOf: netip.MustParseAddr("2001:db8:78::1:c")}
	if c := config(m.Step(0, SetNodes{moved})); c.Via != moved["c"].Daemon {
		t.Errorf("the application sends by way of %s", c.Via)
	}
}

// remove is that members hear that a node has been removed.
func (w *world) remove(name string, members ...string) {
	for _, n := range members {
		left := nodes()
		delete(left, name)
		w.members[n].step(SetNodes{left})
	}
	w.run(10 * time.Millisecond)
}

// knows tells whether a member counts a node among the others.
func (w *world) knows(member, name string) bool {
	for n := range w.members[member].m.Peers() {
		if n == name {
			return true
		}
	}
	return false
}

// A node with clients has gone, and is removed: the contact neither sends its clients
// there any more nor waits for it to tell what it has.
func TestRemove(t *testing.T) {
	w := begin(t, 1, 1)
	if a := w.handOff(clientAddr(0), "b"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	w.run(time.Second)
	w.down("b", "a", "c")
	w.expect("a", 0, ack, "b")
	w.remove("b", "a", "c")
	w.expect("a", 0, ack, "a")
	w.expect("a", 0, syn, "a")
	if w.knows("a", "b") || w.knows("c", "b") {
		w.fail("b is still there")
	}
	if _, known := w.members["a"].m.Owner(clientAddr(0)); known {
		w.fail("a still knows whose the client is")
	}
	// What comes of it is as from anybody else.
	if out := w.members["a"].m.Step(w.now, PeerUp{"b"}, Peer{"b", &Message{Kind: TakeOver}}); len(out.Peers) != 0 || out.NewRelay {
		w.fail("a answers b: %+v", out)
	}

	// So it is at a contact that has never heard of what the node has.
	w = begin(t, 1, 0)
	w.down("b", "a", "c")
	w.members["c"].step(Takeover{ID: 1})
	w.run(2 * time.Minute)
	w.expect("c", 5, ack, "b")
	w.remove("b", "a", "c")
	w.expect("c", 5, ack, "c")

	// Nor do clients that are new wait for it.
	w = begin(t, 1, 0)
	w.down("b", "a", "c")
	w.members["c"].step(Takeover{ID: 1})
	w.run(10 * time.Millisecond)
	w.expect("c", 6, syn, "")
	w.remove("b", "a", "c")
	w.expect("c", 6, syn, "c")

	// One that is connected is not listened to any more.
	w = begin(t, 1, 0)
	w.remove("b", "a", "c")
	w.members["c"].step(Peer{"b", &Message{Kind: TakeOver}})
	if w.members["c"].m.IsContact() {
		w.fail("c does what b says")
	}
}

// The contact stays one of the nodes until there is another.
func TestRemoveContact(t *testing.T) {
	w := begin(t, 1, 0)
	w.down("a", "b", "c")
	w.remove("a", "b", "c")
	if c := w.members["c"].m.sessionConfig(); !w.knows("c", "a") || c.Via != addrs["a"].Daemon {
		w.fail("c sends by way of %v", c.Via)
	}
	w.members["c"].step(Takeover{ID: 1, Force: true})
	w.run(time.Second)
	for _, n := range []string{"b", "c"} {
		if c := w.members[n].m.sessionConfig(); w.knows(n, "a") || c.Via != addrs["c"].Daemon {
			w.fail("%s knows %v, and sends by way of %v", n, c.Nodes, c.Via)
		}
	}
}

// A client was on its way to a node that has been removed: it may have had it, so its
// donor does not go on with it, and is in doubt no longer; also if its daemon is started
// anew, and its application comes back in doubt afterwards, or has ended.
func TestRemoveTarget(t *testing.T) {
	for _, how := range []string{"in doubt", "doubts later", "application ends", "started anew"} {
		for _, donor := range []string{"a", "c"} {
			w := begin(t, 1, 1)
			c := clientAddr(0)
			if donor != "a" {
				if a := w.handOff(c, donor); a.Err != nil {
					w.fail("%v", a.Err)
				}
				w.run(time.Second)
			}
			h := w.members[donor]
			h.app.handOff(c, "b", 0)
			for !h.app.frozen[c] || len(h.m.handoffs()) == 0 || h.m.handoffs()[0].stage != transferring {
				w.run(10 * time.Microsecond)
			}
			w.down("b", "a", "c")
			w.run(2 * time.Minute)
			if !h.app.frozen[c] || len(h.m.outgoing) != 1 {
				w.fail("%s: %s is not in doubt", how, donor)
			}
			left := nodes()
			delete(left, "b")
			switch how {
			case "in doubt":
			case "doubts later":
				h.restart()
				h.step(SetNodes{left})
			case "application ends":
				h.crash()
			case "started anew":
				h.app = nil
				h.restart()
				h.step(SetNodes{left})
				h.attach()
			}
			w.remove("b", "a", "c")
			w.run(2 * time.Minute)
			w.members["b"] = w.members[donor] // nobody asks it
			w.certain()
			if w.owner(c) != "" {
				w.fail("%s: %s goes on with the client", how, w.owner(c))
			}
			w.expect("a", 0, syn, "a")
			w.expect("a", 0, ack, "a")
		}
	}
}

// The donor of a handoff has been removed: what is remembered of it for its sake is not
// any more.
func TestRemoveDonor(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	if a := w.handOff(c, "b"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	w.run(time.Second)
	w.members["b"].app.handOff(c, "c", 0)
	for w.owner(c) != "c" {
		w.run(10 * time.Microsecond)
	}
	w.down("b", "a", "c")
	if n := w.members["c"].m.Unsettled(); n != 1 {
		w.fail("%d handoffs are remembered", n)
	}
	w.remove("b", "a", "c")
	if n := w.members["c"].m.Unsettled(); n != 0 || w.owner(c) != "c" {
		w.fail("%d handoffs are remembered, and %q has the client", n, w.owner(c))
	}
	w.expect("a", 0, ack, "c")
}
