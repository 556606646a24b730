package member

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Flags of segments.
const (
	syn = 0x02
	ack = 0x10
)

// segment is one that a client sends.
func segment(t *testing.T, client netip.Addr, flags byte) []byte {
	t.Helper()
	p := wire.Packet{Src: client, Dst: home.Addr(), HopLimit: 64, Protocol: wire.TCP, Payload: make([]byte, 20)}
	p.Payload[13] = flags
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBegins(t *testing.T) {
	for flags, want := range map[byte]bool{0x02: true, 0xc2: true, 0x12: false, 0x10: false, 0x04: false, 0: false} {
		b := segment(t, clientAddr(1), flags)
		if got := begins(b); got != want {
			t.Errorf("flags %#x: %v", flags, got)
		}
		if begins(b[:53]) {
			t.Error("a packet without flags begins a connection")
		}
	}
}

// arrives is the node whose application gets a segment that comes from the home agent
// to a node's relay, "" if it is dropped.
func (w *world) arrives(at string, client netip.Addr, flags byte) string {
	h := w.members[at]
	if h.relay == nil {
		return ""
	}
	p := segment(w.t, client, flags)
	b, err := wire.AppendTunnel(nil, agentAddr, addrs[at].Daemon, p)
	if err != nil {
		w.t.Fatal(err)
	}
	out := h.relay.Step(w.now, relay.Received{Packet: b})
	to := netip.Addr{}
	switch {
	case len(out.Send) > 0:
		to = dst(out.Send[0])
	case len(out.Local) > 0:
		to, _ = h.m.Unknown(w.now, p)
	}
	for n, a := range addrs {
		if a.CareOf == to {
			return n
		}
	}
	return ""
}

func (w *world) expect(at string, client int, flags byte, node string) {
	w.t.Helper()
	if to := w.arrives(at, clientAddr(client), flags); to != node {
		w.fail("what comes to %s of client %d, flags %#x, goes to %q, not %q", at, client, flags, to, node)
	}
}

// has tells whether an application has a client's connections, with or without a voice.
func (a *app) has(client netip.Addr) bool {
	for _, o := range a.coming {
		if o.Client == client {
			return true
		}
	}
	return a.live[client] || a.frozen[client]
}

// noResets is what must always be true: what clients send does not come to an
// application that does not have them while another one does, in the middle of a
// connection or at its beginning.
func (w *world) noResets() {
	w.t.Helper()
	contact := w.agentSendsTo()
	for client := range w.clients {
		if w.forgotten[client] {
			continue
		}
		// What may have ended is somewhere if it is alive there, and not frozen: in vain.
		if !slices.ContainsFunc(names, func(n string) bool {
			a := w.members[n].app
			return a != nil && (a.live[client] || !w.mayEnd[client] && a.has(client))
		}) {
			continue
		}
		for _, at := range names {
			for _, flags := range []byte{syn, ack} {
				if addrs[at].Daemon != contact {
					continue
				}
				if to := w.arrives(at, client, flags); to != "" && (!w.answers(to, client) || flags == syn && to == at && w.begins(to, client)) {
					w.fail("a segment of %s, flags %#x, comes by %s to %s, whose application resets it; another one has the client", client, flags, at, to)
				}
			}
		}
	}
}

// answers tells whether a client's segment that comes to a node finds who has the
// client, or nobody.
func (w *world) answers(node string, client netip.Addr) bool {
	for range names {
		a := w.members[node].app
		if a == nil || a.config == nil || a.has(client) { // or is not welcomed yet
			return true
		}
		if w.now >= a.left[client].until {
			return false
		}
		node = a.left[client].to
	}
	return false
}

// begins tells whether a contact's application has a new connection of a client begin there
// although it does not have the client: it has left for some time. For one that may not have
// arrived it waits.
func (w *world) begins(contact string, client netip.Addr) bool {
	h := w.members[contact]
	a := h.app
	if a == nil || a.config == nil || a.has(client) || a.config.Contact != contact {
		return false
	}
	left, did := a.left[client]
	doubt := slices.ContainsFunc(h.m.handoffs(), func(o *handoff) bool { return o.c.addr == client && o.stage == transferring })
	return did && !doubt && left.until-w.now <= forwardTime-time.Second
}

// restarted is a world in which the daemon of the contact a has just been started anew,
// before anybody has told it anything. Clients: 0 is a's, 1 b's, 2 c's.
func restarted(t *testing.T) *world {
	w := begin(t, 1, 3)
	for i, to := range []string{"b", "c"} {
		if a := w.handOff(clientAddr(i+1), to); a.Err != nil {
			w.fail("%v", a.Err)
		}
	}
	w.run(time.Second)
	w.down("a", "b", "c")
	w.members["a"].boot()
	w.members["a"].app.detached()
	return w
}

// down breaks the connections of a node to others until they are connected.
func (w *world) down(name string, others ...string) {
	for _, other := range others {
		if w.up[pair(name, other)]%2 == 1 {
			w.disconnect(name, other, 24*time.Hour)
		}
	}
	w.run(time.Millisecond)
}

// reconnected connects two nodes again.
func (w *world) reconnected(a, b string) {
	w.connect(a, b)
	w.run(10 * time.Millisecond)
}

// A contact whose daemon was started anew brings nobody's segments to the wrong
// application, and new clients do not wait longer than they must.
func TestUnknownAfterRestart(t *testing.T) {
	w := restarted(t)
	for i := range 4 {
		w.expect("a", i, ack, "")
		w.expect("a", i, syn, "")
	}
	w.reconnected("a", "b")
	w.expect("a", 0, ack, "") // a's application is not attached
	w.expect("a", 1, ack, "b")
	w.expect("a", 2, ack, "")
	w.expect("a", 3, syn, "")
	w.members["a"].attach()
	w.expect("a", 0, ack, "a")
	w.expect("a", 2, ack, "") // it may be in the middle of a handshake here
	w.expect("a", 3, syn, "")
	w.reconnected("a", "c")
	w.expect("a", 2, syn, "c")
	w.expect("a", 3, syn, "a") // all have told
	w.expect("a", 4, ack, "a")
}

// A node that stays away has new clients wait for StartGrace, and what may be its own
// is kept for it.
func TestUnknownWithoutNode(t *testing.T) {
	w := restarted(t)
	w.members["a"].attach()
	w.reconnected("a", "b")
	w.expect("a", 3, syn, "")
	w.run(time.Second)
	w.expect("a", 3, syn, "a")
	w.expect("a", 3, ack, "a")
	w.run(2 * time.Hour)
	w.expect("a", 2, ack, "c")
	w.expect("a", 4, ack, "c")
	w.expect("a", 4, syn, "a")
	w.expect("a", 4, ack, "a") // its handshake
	w.run(beginnerTime)
	w.expect("a", 5, syn, "a")
	w.expect("a", 4, ack, "a") // it goes on, although the application has not told
	w.run(2 * beginnerTime)
	w.expect("a", 6, syn, "a")
	w.run(2 * beginnerTime)
	w.expect("a", 7, syn, "a")
	w.expect("a", 4, ack, "c")
	w.down("a", "b")
	w.expect("a", 1, ack, "b") // which has told once
	w.reconnected("a", "c")
	w.expect("a", 4, ack, "a")
}

// Nor are clients new of whom a node does not know, because its application has not
// come back; until it is known that it does not.
func TestUnknownBeforeAttach(t *testing.T) {
	for _, back := range []bool{true, false} {
		w := restarted(t)
		c := w.members["c"]
		c.boot()
		c.app.detached()
		w.members["a"].attach()
		w.reconnected("a", "b")
		w.reconnected("a", "c")
		w.expect("a", 2, ack, "")
		w.expect("a", 2, syn, "")
		w.expect("a", 3, syn, "")
		if back {
			c.attach()
		} else {
			w.run(reportTime)
			w.expect("a", 3, syn, "a") // it has waited for long enough
			w.expect("a", 2, ack, "")
			w.run(time.Minute)
			w.expect("a", 2, ack, "c") // nobody else can have it
			c.app = nil
			c.step(AppGone{Lost: true})
		}
		w.run(time.Second)
		w.expect("a", 4, ack, "a")
		w.expect("a", 4, syn, "a")
		if back {
			w.expect("a", 2, ack, "c")
		}
	}
}

// A member that was started anew, with its application or without, does not own any more
// what it does not speak of: once all members are there to say what they have, and have
// said it.
func TestUnknownStartedAnew(t *testing.T) {
	w := begin(t, 1, 3)
	for i, to := range []string{"b", "c"} {
		if a := w.handOff(clientAddr(i+1), to); a.Err != nil {
			w.fail("%v", a.Err)
		}
	}
	w.run(2 * passTime)
	b, c := w.members["b"], w.members["c"]
	w.down("a", "b", "c")
	w.down("b", "c")
	w.lose(b.app)
	b.app = nil
	b.boot()
	c.boot()
	c.app.detached()
	w.reconnected("a", "b")
	w.expect("a", 1, syn, "b") // c may have it
	w.reconnected("a", "c")
	w.expect("a", 1, syn, "b")
	w.expect("a", 2, syn, "c") // its application has not come back
	c.attach()
	w.run(time.Second)
	w.expect("a", 0, syn, "a")
	w.expect("a", 1, syn, "a")
	w.expect("a", 2, syn, "c")
	w.expect("a", 2, ack, "c")
}

// What a client begins comes to a node that had it, whose daemon is started anew, before its
// application is attached again, which says nothing of the client: the handshake is not over.
// It goes on there although the contact has forgotten the client, until what the client
// begins comes here; or for as long as it may take; or as long as the application lives; or
// until others have been the contact.
func TestUnknownHandshake(t *testing.T) {
	for end, tt := range map[string]struct {
		then func(w *world)
		to   string
	}{
		"begins":  {func(w *world) { w.expect("a", 0, syn, "a") }, "a"},
		"is over": {func(w *world) { w.run(time.Minute) }, "a"},
		"ends": {func(w *world) {
			w.members["b"].app = nil
			w.members["b"].step(AppGone{Lost: true})
			w.run(time.Second)
		}, "a"},
		"takeovers": {func(w *world) {
			w.members["c"].step(Takeover{ID: 1})
			w.run(time.Second)
			w.down("a", "c")
			w.members["a"].step(Takeover{ID: 1, Force: true})
			w.run(time.Second)
		}, ""},
	} {
		t.Run(end, func(t *testing.T) {
			w := begin(t, 1, 1)
			c := clientAddr(0)
			b := w.members["b"]
			if a := w.handOff(c, "b"); a.Err != nil {
				w.fail("%v", a.Err)
			}
			w.run(2 * passTime)
			delete(b.app.live, c)
			b.restart()
			w.expect("a", 0, syn, "b")
			w.run(time.Second)
			w.expect("a", 0, ack, "b")
			tt.then(w)
			w.expect("a", 0, ack, tt.to)
		})
	}
}

// What a member has given away is still its own at the contact, while nobody knows
// whether it has arrived; and one that is only connected again has all that it had.
func TestUnknownConnectedAgain(t *testing.T) {
	w := begin(t, 1, 2)
	for i := range 2 {
		if a := w.handOff(clientAddr(i), "b"); a.Err != nil {
			w.fail("%v", a.Err)
		}
	}
	w.run(2 * passTime)
	b := w.members["b"]
	b.app.handOff(clientAddr(0), "c", 0)
	for len(b.m.handoffs()) == 0 || b.m.handoffs()[0].stage < transferring {
		w.run(10 * time.Microsecond)
	}
	w.down("b", "c") // Transfer is lost
	for range 2 {
		w.down("a", "b", "c")
		w.reconnected("a", "c")
		w.reconnected("a", "b")
		w.run(time.Second)
		w.expect("a", 0, ack, "b")
		w.expect("a", 1, syn, "b")
	}
	w.reconnected("b", "c")
	w.run(time.Minute)
	w.settled()
	w.certain()
}

// A release that does not say whether an application may come back has told all with
// its first report.
func TestUnknownOfOlderRelease(t *testing.T) {
	w := restarted(t)
	a := w.members["a"]
	a.attach()
	for _, from := range []string{"b", "c"} {
		a.step(PeerUp{from})
		a.step(Peer{from, &Message{Kind: Hello, Server: home.Addr(), Version: Oldest, Contact: "a"}})
		w.expect("a", 4, syn, "")
		a.step(Peer{from, &Message{Kind: Owners, Server: home.Addr(), Complete: true}})
	}
	w.expect("a", 4, syn, "a")
	w.expect("a", 4, ack, "a")
	w.expect("a", 5, ack, "a")
}

// After a takeover, connections go on where they have begun.
func TestUnknownAfterTakeover(t *testing.T) {
	w := begin(t, 1, 0)
	w.expect("a", 1, syn, "a")
	w.expect("a", 1, ack, "a")
	w.expect("a", 2, ack, "a")
	w.down("a", "b", "c")
	w.members["b"].step(Takeover{ID: 1, Force: true})
	w.expect("b", 1, ack, "") // c has not told
	w.expect("b", 3, syn, "")
	w.run(time.Second)
	w.expect("b", 1, ack, "a") // although its daemon is not there
	w.expect("b", 3, syn, "b")
	w.expect("b", 3, ack, "b")
	w.run(2 * time.Minute)
	w.expect("b", 1, ack, "a") // which may still be there
	w.reconnected("a", "b")
	w.reconnected("a", "c")
	w.expect("b", 1, ack, "b")

	// And back: two have been the contact.
	w.members["a"].step(Takeover{ID: 2})
	w.run(time.Second)
	w.expect("a", 4, ack, "b")
	w.members["c"].step(Takeover{ID: 3})
	w.run(time.Second)
	w.expect("c", 5, syn, "c")
	w.members["b"].step(Takeover{ID: 4})
	w.run(time.Second)
	w.expect("b", 6, ack, "c")
	w.members["c"].step(Takeover{ID: 5})
	w.run(time.Second)
	w.expect("c", 5, ack, "c")
	w.expect("c", 7, ack, "") // it was a's, too, not long ago
	w.run(2 * time.Minute)
	w.expect("c", 7, ack, "c")
}

// What is on its way from one node to another when the contact is started anew goes to
// the donor, until the target says that it has it.
func TestUnknownOnTheWay(t *testing.T) {
	for _, donorToo := range []bool{false, true} {
		w := begin(t, 1, 1)
		if a := w.handOff(clientAddr(0), "b"); a.Err != nil {
			w.fail("%v", a.Err)
		}
		w.run(time.Second)
		w.members["b"].app.handOff(clientAddr(0), "c", 0)
		for len(w.members["b"].m.handoffs()) == 0 || w.members["b"].m.handoffs()[0].stage < transferring {
			w.run(10 * time.Microsecond)
		}
		w.down("b", "c") // Transfer is lost
		w.down("a", "b", "c")
		w.members["a"].boot()
		w.members["a"].app.detached()
		w.members["a"].attach()
		if donorToo {
			w.members["b"].boot()
			w.members["b"].app.detached()
			w.members["b"].attach()
		}
		w.reconnected("a", "c")
		w.reconnected("a", "b")
		w.expect("a", 0, ack, "b")
		w.expect("a", 0, syn, "b")
		w.expect("a", 1, ack, "a")
		w.reconnected("b", "c")
		w.run(time.Minute)
		w.settled()
		w.certain()
	}
}

// A UDP datagram belongs to no connection.
func TestUnknownAlone(t *testing.T) {
	w := restarted(t)
	p := wire.Packet{Src: clientAddr(5), Dst: home.Addr(), HopLimit: 64, Protocol: wire.UDP, Payload: make([]byte, 8)}
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if to, ok := w.members["a"].m.Unknown(w.now, b); !ok || to != addrs["a"].CareOf {
		w.fail("it goes to %s, %t", to, ok)
	}
}

// What a client has begun at a contact's application that has ended since may live where that
// has sent it: it is not for the next to answer, until that node has told, or had the time to.
func TestUnknownBegan(t *testing.T) {
	for _, tell := range []bool{true, false} {
		w := begin(t, 1, 1)
		w.expect("a", 3, syn, "a")
		w.expect("a", 3, ack, "a")
		w.members["a"].crash()
		w.run(time.Second)
		w.expect("a", 3, ack, "")
		w.expect("a", 4, ack, "a")
		if tell {
			b, c := w.members["b"], clientAddr(3)
			b.app.live[c] = true
			b.step(App{&api.Message{Kind: api.Owned, Client: c, Connections: 1}})
			w.run(10 * time.Millisecond)
			w.expect("a", 3, ack, "b")
			continue
		}
		w.run(reportTime)
		w.expect("a", 3, ack, "a")
		w.members["a"].crash()
		w.run(time.Second)
		w.expect("a", 3, syn, "a") // anew
		w.expect("a", 3, ack, "a")
	}
}

// A flood of beginnings makes the oldest forgotten, no more.
func TestBeginners(t *testing.T) {
	var b beginners
	addr := func(i int) netip.Addr {
		a := clientAddr(0).As16()
		a[13], a[14], a[15] = byte(i>>16), byte(i>>8), byte(i)
		return netip.AddrFrom16(a)
	}
	for i := range 3 * maxBeginners {
		b.add(addr(i), time.Second)
		if i > 0 && !b.has(addr(i-1), time.Second) {
			t.Fatalf("%d is forgotten", i-1)
		}
	}
	if n := len(b.young) + len(b.old); n > 2*maxBeginners || b.has(addr(0), time.Second) {
		t.Errorf("%d are remembered", n)
	}
	b.remove(addr(3*maxBeginners - 1))
	if b.has(addr(3*maxBeginners-1), time.Second) {
		t.Error("one that is removed is remembered")
	}
}

// How long new clients wait for members that do not tell, and clients that were handed
// off are not answered, is configured.
func TestTimes(t *testing.T) {
	m, err := New(Config{
		Name: "a", Home: home, HomeAgent: agentAddr, SPI: 256, Key: secret, Nodes: nodes(), Contact: Contact{Name: "a"},
		Epoch: epoch, Rand: random{rand.New(rand.NewPCG(1, 1))},
		StartGrace: time.Hour, ReportTime: 10 * time.Second, AwayTime: 2 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Step(0, Start{})
	for at, want := range map[time.Duration]bool{10*time.Second - 1: false, 10 * time.Second: true} {
		m.now = 0
		if _, taken := m.Unknown(at, segment(t, clientAddr(0), syn)); taken != want {
			t.Errorf("after %v: %t that it is taken", at, taken)
		}
		m.beginners = beginners{}
	}
	m.now = time.Second
	m.left(&handoff{c: &client{addr: clientAddr(1)}, to: "b"})
	m.now += 2*time.Minute - 1
	if away, _ := m.awayNow(); len(away) != 1 {
		t.Error("away for a shorter time:", away)
	}
	m.now++
	if away, _ := m.awayNow(); len(away) != 0 {
		t.Error("away for longer:", away)
	}
}
