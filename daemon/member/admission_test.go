package member

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// A target takes a client from one donor, and no more of them at the same time than it
// has words for; who is refused hears why.
func TestAdmission(t *testing.T) {
	w := begin(t, 1, 1)
	b := w.members["b"].m
	var expects *api.Message // the latest
	var said []ToPeer
	step := func(in ...Input) {
		out := b.Step(w.now, in...)
		for _, m := range out.App {
			if m.Kind == api.Expect {
				expects = m
			}
		}
		said = out.Peers
	}
	prepare := func(from string, id uint64, client netip.Addr) Peer {
		return Peer{from, &Message{Kind: Prepare, ID: id, Client: client, Epoch: 2, Relayed: true}}
	}
	// hears is that a member is told of one of its handoffs in the last step, or not.
	hears := func(name string, kind Kind, id uint64, why string) {
		t.Helper()
		var got []string
		for _, p := range said {
			if p.To == name && p.Message.ID == id {
				got = append(got, fmt.Sprintf("%s %s", p.Message.Kind, p.Message.Error))
			}
		}
		if want := fmt.Sprintf("%s %s", kind, why); fmt.Sprint(got) != "["+want+"]" {
			t.Errorf("%s hears %q of handoff %d, not %q", name, got, id, want)
		}
	}

	c, own := clientAddr(0), clientAddr(1)
	step(App{&api.Message{Kind: api.Owned, Client: own, Connections: 1}})
	step(prepare("a", 1, own))
	hears("a", Prepared, 1, "it has connections of this client itself")

	// The latest donor counts, until the client is given away.
	step(prepare("a", 2, c))
	step(prepare("c", 2, c))
	if expects == nil || expects.Client != c || expects.From != "c" {
		t.Fatalf("the application is told %+v", expects)
	}
	step(App{&api.Message{Kind: api.Expected, ID: expects.ID, Client: c}})
	hears("c", Prepared, 2, "")
	transfer := func(from string, id uint64) Peer {
		return Peer{from, &Message{Kind: Transfer, ID: id, Client: c, Epoch: 2, Relayed: true, Snapshot: []byte("connections")}}
	}
	step(transfer("a", 2))
	hears("a", Done, 2, "the handoff had ended here before the client was taken")
	step(transfer("c", 2), prepare("a", 3, c)) // together: it is not recorded yet
	hears("a", Prepared, 3, "it is being given this client already")
	step(Recorded{}, prepare("a", 4, c))
	hears("a", Prepared, 4, "it has connections of this client itself")

	many := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xff, 14: byte(i >> 8), 15: byte(i)})
	}
	const first = 100
	for i := 1; i < api.MaxDecisions; i++ { // one is on its way
		step(prepare("a", uint64(first+i), many(i)))
		if len(said) > 0 {
			t.Fatalf("of %d clients one is refused: %+v", i, said[0].Message)
		}
	}
	step(prepare("c", 5, many(0)))
	hears("c", Prepared, 5, fmt.Sprintf("%d clients are on their way to it already", api.MaxDecisions))
	step(Peer{"a", &Message{Kind: Abort, ID: first + 1}})
	step(prepare("c", 6, many(0)))
	if len(said) > 0 || expects.Client != many(0) {
		t.Errorf("there is room again, and it is refused: %+v", said)
	}
}

// Connections that are on their way to an application are no more than it is sent before it
// counts as one that does not read. Who is refused keeps its client, and may try again; a
// client alone may have as many as a message has room for.
func TestRoom(t *testing.T) {
	w := begin(t, 1, 1)
	b := w.members["b"].m
	var app []*api.Message
	var said []ToPeer
	step := func(in ...Input) {
		out := b.Step(w.now, in...)
		app, said = append(app, out.App...), out.Peers
	}
	// latest is the last message of a kind that the application had of a client.
	latest := func(kind api.Kind, client netip.Addr) *api.Message {
		for i := len(app) - 1; i >= 0; i-- {
			if app[i].Kind == kind && app[i].Client == client {
				return app[i]
			}
		}
		t.Fatalf("the application is told nothing of kind %s about %s", kind, client)
		return nil
	}
	huge := make([]byte, maxTaking)
	// transfer has a client come with so many octets, and returns why it is refused.
	transfer := func(from string, id uint64, client netip.Addr, octets, state int) string {
		t.Helper()
		step(Peer{from, &Message{Kind: Prepare, ID: id, Client: client, Epoch: 2, Relayed: true}})
		step(App{&api.Message{Kind: api.Expected, ID: latest(api.Expect, client).ID, Client: client}})
		m := &Message{Kind: Transfer, ID: id, Client: client, Epoch: 2, Relayed: true, Connections: 1, Snapshot: huge[:octets]}
		if state > 0 {
			m.State = [][]byte{huge[:state]}
		}
		step(Peer{from, m})
		for _, p := range said {
			if p.To == from && p.Message.Kind == Done && p.Message.ID == id {
				return p.Message.Error
			}
		}
		step(Recorded{})
		if m := latest(api.Activate, client); m.ID != latest(api.Offer, client).ID {
			t.Fatalf("it is to activate handoff %d", m.ID)
		}
		return ""
	}
	activate := func(client netip.Addr) {
		step(App{&api.Message{Kind: api.Activated, ID: latest(api.Activate, client).ID, Client: client}})
	}

	large, small, other := clientAddr(0), clientAddr(1), clientAddr(2)
	if why := transfer("a", 1, large, maxTaking, 0); why != "" {
		t.Fatalf("a client alone is refused: %s", why)
	}
	for i, state := range []int{0, 1} {
		const want = "268435456 octets of connections are on their way to its application already, and with these 2 it would be more than 268435456"
		if why := transfer("c", uint64(2+i), small, 2-state, state); why != want {
			t.Errorf("a client too many is refused with %q, not %q", why, want)
		}
		if _, has := b.Client(small); has {
			t.Error("b has the client that it has refused")
		}
		if m := latest(api.Forget, small); m.ID != latest(api.Expect, small).ID {
			t.Errorf("the application is to forget handoff %d", m.ID)
		}
	}
	activate(large)
	if why := transfer("c", 4, small, maxTaking/2, 1); why != "" {
		t.Errorf("there is room again, and a client is refused: %s", why)
	}
	if why := transfer("a", 5, other, maxTaking/2-1, 0); why != "" {
		t.Errorf("a client is refused for which there is room: %s", why)
	}
	activate(small)
	activate(other)
	if b.taking != 0 {
		t.Errorf("with nothing on its way %d octets are", b.taking)
	}
}

// A donor's application that does not keep to the order is refused, and a handoff of the
// client that is under way goes on.
func TestDonorsOrder(t *testing.T) {
	w := begin(t, 1, 2)
	a := w.members["a"].m
	c, other := clientAddr(0), clientAddr(1)
	var out Output
	say := func(m *api.Message) { out = a.Step(w.now, App{m}) }
	// told is what the application is told in the last step.
	told := func(kind api.Kind, id uint64, why string) {
		t.Helper()
		if len(out.App) != 1 || out.App[0].Kind != kind || out.App[0].ID != id || !strings.Contains(out.App[0].Error, why) || (why == "") != (out.App[0].Error == "") {
			t.Errorf("it is told %+v, not %s %d %q", out.App, kind, id, why)
		}
	}
	say(&api.Message{Kind: api.Prepare, ID: 1, Client: c, To: "b"})
	if len(out.Peers) != 1 || out.Peers[0].Message.Kind != Prepare {
		t.Fatalf("b is told %+v", out.Peers)
	}
	id := out.Peers[0].Message.ID
	say(&api.Message{Kind: api.Prepare, ID: 2, Client: c, To: "c"})
	told(api.Prepared, 2, "the client is on its way to node b already")
	say(&api.Message{Kind: api.Prepare, ID: 1, Client: other, To: "c"})
	told(api.Prepared, 1, "id 1 is another handoff's")
	say(&api.Message{Kind: api.Transfer, ID: 1, Client: c, Snapshot: []byte("connections")})
	told(api.Done, 1, "transfer is out of order: the handoff is at prepare")
	say(&api.Message{Kind: api.Transfer, ID: 7, Client: other, Snapshot: []byte("connections")})
	told(api.Done, 7, "the handoff has ended")
	out = a.Step(w.now, HandOff{ID: 9, Client: c, To: "c"})
	if len(out.Answers) != 1 || out.Answers[0].Err == nil || !strings.Contains(out.Answers[0].Err.Error(), "the client is on its way to node b already") {
		t.Errorf("an operator is told %+v", out.Answers)
	}

	out = a.Step(w.now, Peer{"b", &Message{Kind: Prepared, ID: id}})
	told(api.Prepared, 1, "")
	say(&api.Message{Kind: api.Transfer, ID: 1, Client: c, Snapshot: []byte("connections")})
	if len(out.Peers) == 0 || out.Peers[0].To != "b" || out.Peers[0].Message.Kind != Transfer || out.Peers[0].Message.ID != id {
		t.Fatalf("b is told %+v", out.Peers)
	}
	if _, has := a.Client(c); has {
		t.Error("a has the client that it has given away")
	}
}

// What members say to each other comes once (package peer); if it came again later, no
// handoff would end otherwise.
func TestDoubled(t *testing.T) {
	w := begin(t, 1, 4)
	w.doubled = true
	for i := range 20 {
		c := clientAddr(i % 4)
		to := names[(i/4+1)%3]
		if got := w.handOff(c, to); got.Err != nil {
			w.fail("%s to %s: %v", c, to, got.Err)
		}
		w.run(time.Second)
		w.settled()
		if owner := w.owner(c); owner != to {
			w.fail("%q has %s, not %s", owner, c, to)
		}
	}
	w.certain()
}
