package relay

import (
	"bytes"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// TestStoryHandoff: a client without Mobile IPv6 comes to the contact, is
// handed to node 2, to node 3, and back.
func TestStoryHandoff(t *testing.T) {
	r := newRelay(t)
	request := data(t, client, home, 100)
	fromAgent := tunnel(t, homeAgent, contact, request)

	// It is new, so it belongs to the contact.
	expect(t, where(t, r, 0, fromAgent), "local")

	// Node 2 takes over. The packet inside arrives as the client sent it, but
	// for the hops: one at the home agent, one here.
	if out := r.Step(0, SetOwner{client, node2, 1}); out.Dropped != None {
		t.Fatal(out.Dropped)
	}
	out := r.Step(1, Received{fromAgent})
	if len(out.Send) != 1 || len(out.Local) != 0 {
		t.Fatalf("%+v", out)
	}
	src, dst, inner := inside(t, out.Send[0])
	if src != contact || dst != node2 {
		t.Errorf("tunnel from %v to %v", src, dst)
	}
	if !bytes.Equal(inner, lowered(request, 2)) {
		t.Errorf("inside is\n%x, the client sent\n%x", inner, request)
	}
	if out.Send[0][0]&0xf != 0xb || out.Send[0][1]>>4 != 8 {
		t.Error("the tunnel has another traffic class than the packet inside (RFC 2473 section 6.4)")
	}

	// What node 2 answers leaves through the home agent.
	answer := data(t, home, client, 1000)
	out = r.Step(2, Received{tunnel(t, node2, contact, answer)})
	src, dst, inner = inside(t, out.Send[0])
	if src != contact || dst != homeAgent || !bytes.Equal(inner, lowered(answer, 2)) {
		t.Errorf("from %v to %v\n%x", src, dst, inner)
	}

	// To node 3. A message of the first handoff comes late, and does nothing.
	r.Step(3, SetOwner{client, node3, 2})
	expect(t, r.Step(3, SetOwner{client, node2, 1}).Dropped.String(), "stale")
	expect(t, r.Step(3, Forget{client, 1}).Dropped.String(), "stale")
	expect(t, where(t, r, 3, fromAgent), "node 3")

	// The donor may still have something to say: it is a node like any other.
	expect(t, where(t, r, 3, tunnel(t, node2, contact, answer)), "home agent")

	// Back, in both ways to say so.
	r.Step(4, SetOwner{client, contact, 3})
	expect(t, where(t, r, 4, fromAgent), "local")
	r.Step(4, SetOwner{client, netip.Addr{}, 4})
	expect(t, where(t, r, 4, fromAgent), "local")
	expect(t, r.Step(4, SetOwner{client, node3, 2}).Dropped.String(), "stale")

	// It has gone. Nothing is left of it.
	r.Step(5, Forget{client, 4})
	if s := r.Stats(); s != (Stats{}) {
		t.Errorf("%+v", s)
	}
	if n := len(r.peers.list) - len(r.peers.free); n != 4 {
		t.Errorf("%d peers, want this node, the home agent and two nodes", n)
	}
}

// TestStoryDirectReturn: where the network lets packets with the home address
// out, they take the short way, except for what tests the long one.
func TestStoryDirectReturn(t *testing.T) {
	r := newRelay(t, func(c *Config) { c.DirectReturn = true })
	answer := data(t, home, client, 1000)
	out := r.Step(0, Received{tunnel(t, node2, contact, answer)})
	if len(out.Send) != 1 || !bytes.Equal(out.Send[0], lowered(answer, 2)) {
		t.Errorf("%x", out.Send)
	}
	answer[hopLimit] = 1
	expect(t, where(t, r, 0, tunnelOf(t, node2, answer)), "hop limit used up, error node 2")
	hoti := mobility(t, home, client, &wire.HomeTestInit{Cookie: wire.Cookie{1}})
	expect(t, where(t, r, 0, tunnel(t, node2, contact, hoti)), "home agent")
	hot := mobility(t, client, home, &wire.HomeTest{Cookie: wire.Cookie{1}})
	expect(t, where(t, r, 0, tunnel(t, homeAgent, contact, hot)), "node 2")
}

// TestStoryHomeTest: node 3 prepares to take over a client that node 2 owns,
// while node 2 and the contact have tests of their own under way.
func TestStoryHomeTest(t *testing.T) {
	r := newRelay(t)
	r.Step(0, SetOwner{client, node2, 1})
	ask := func(node netip.Addr, cookie byte) []byte {
		return tunnel(t, node, contact, mobility(t, home, client, &wire.HomeTestInit{Cookie: wire.Cookie{cookie}}))
	}
	answer := func(from netip.Addr, cookie byte) []byte {
		return tunnel(t, homeAgent, contact, mobility(t, from, home, &wire.HomeTest{Cookie: wire.Cookie{cookie}, NonceIndex: 7, Token: wire.Token{9}}))
	}
	if _, ok := r.NextDeadline(); ok {
		t.Error("a deadline without a test")
	}
	expect(t, where(t, r, 0, ask(node2, 2)), "home agent")
	expect(t, where(t, r, 0, ask(node3, 3)), "home agent")

	// Each answer finds the node that asked. The contact's own tests do not
	// come by here on their way out.
	expect(t, where(t, r, time.Second, answer(client, 3)), "node 3")
	expect(t, where(t, r, time.Second, answer(client, 2)), "node 2")
	expect(t, where(t, r, time.Second, answer(client, 1)), "local")

	// A network that doubles packets: the second is nobody's. A wrong client
	// cannot answer.
	expect(t, where(t, r, time.Second, answer(client, 3)), "local")
	expect(t, where(t, r, 2*time.Second, ask(node3, 4)), "home agent")
	expect(t, where(t, r, 2*time.Second, answer(stranger, 4)), "local")
	expect(t, where(t, r, 2*time.Second, answer(client, 4)), "node 3")

	// Asked again: still one answer, to be waited for anew.
	expect(t, where(t, r, 3*time.Second, ask(node3, 5)), "home agent")
	expect(t, where(t, r, 9*time.Second, ask(node3, 5)), "home agent")
	if s := r.Stats(); s.Paths != 1 {
		t.Errorf("%d paths", s.Paths)
	}
	expect(t, where(t, r, 19*time.Second, answer(client, 5)), "node 3")

	// Nobody answers: after 20 seconds at the latest nothing is remembered.
	now := 20 * time.Second
	expect(t, where(t, r, now, ask(node3, 6)), "home agent")
	for at, ok := r.NextDeadline(); ok; at, ok = r.NextDeadline() {
		if at <= now {
			t.Fatalf("deadline %v at %v", at, now)
		}
		now = at
		r.Step(now, Tick{})
	}
	if now != 40*time.Second || r.Stats().Paths != 0 {
		t.Errorf("at %v: %+v", now, r.Stats())
	}
	expect(t, where(t, r, now, answer(client, 6)), "local")

	// The node leaves the cluster before the answer comes.
	expect(t, where(t, r, now, ask(node3, 7)), "home agent")
	r.Step(now, SetNodes{[]netip.Addr{node2}})
	expect(t, where(t, r, now, answer(client, 7)), "local")
	if s := r.Stats(); s.Paths != 0 {
		t.Errorf("%+v", s)
	}
}

// TestStoryNoMobility: the client does not know Mobile IPv6. Its complaint goes
// to the node that asked, which is how that learns of it (RFC 6275 section
// 11.3.5); a complaint about data goes to the owner.
func TestStoryNoMobility(t *testing.T) {
	r := newRelay(t)
	r.Step(0, SetOwner{client, node2, 1})
	hoti := mobility(t, home, client, &wire.HomeTestInit{Cookie: wire.Cookie{3}})
	expect(t, where(t, r, 0, tunnel(t, node3, contact, hoti)), "home agent")
	complaint := func(from netip.Addr, kind wire.ErrorKind, about []byte) string {
		return where(t, r, 1, tunnel(t, homeAgent, contact, icmpError(t, from, home, kind, 1, 40, about)))
	}
	expect(t, complaint(client, wire.ParameterProblem, hoti), "node 3")
	expect(t, complaint(client, wire.ParameterProblem, hoti), "node 3") // said again

	own := mobility(t, home, client, &wire.HomeTestInit{Cookie: wire.Cookie{9}})
	expect(t, complaint(client, wire.ParameterProblem, own), "node 2") // nobody's: for the owner

	// Errors of routers on the way are about the client too.
	expect(t, complaint(router, wire.PacketTooBig, data(t, home, client, 1400)), "node 2")
	expect(t, complaint(router, wire.Unreachable, data(t, home, clientNumber(5), 10)), "local")
	expect(t, complaint(router, wire.Unreachable, data(t, stranger, client, 10)), "local")
	expect(t, complaint(client, wire.Unreachable, data(t, stranger, router, 10)), "node 2") // like data of the client

	// What is no error is data.
	echo := pack(t, wire.Packet{Src: client, Dst: home, Protocol: wire.ICMPv6, Payload: (&wire.AgentRequest{}).Append(nil, client, home)})
	expect(t, where(t, r, 1, tunnel(t, homeAgent, contact, echo)), "node 2")
	echo[len(echo)-1] ^= 1 // checksum: the owner drops it
	expect(t, where(t, r, 1, tunnel(t, homeAgent, contact, echo)), "node 2")

	// Signalling without a cookie is for the owner.
	for _, m := range []wire.Message{
		&wire.BindingRefreshRequest{}, &wire.BindingAck{Sequence: 4}, &wire.BindingError{Status: wire.UnknownMHType, Home: home},
		&wire.BindingUpdate{Sequence: 1}, &wire.CareOfTest{}, &wire.HomeTestInit{Cookie: wire.Cookie{3}},
	} {
		expect(t, where(t, r, 1, tunnel(t, homeAgent, contact, mobility(t, client, home, m))), "node 2")
	}
	// So is what is wrong: the owner answers it.
	b := mobility(t, client, home, &wire.HomeTest{Cookie: wire.Cookie{3}})
	b[len(b)-1] ^= 1 // checksum
	expect(t, where(t, r, 1, tunnel(t, homeAgent, contact, b)), "node 2")
	b = pack(t, wire.Packet{Src: client, Dst: home, Protocol: wire.DestOptions, Payload: []byte{59, 0, 0xc5, 4, 0, 0, 0, 0}})
	expect(t, where(t, r, 1, tunnel(t, homeAgent, contact, b)), "node 2")
}

// TestStoryTakeover: node 2 becomes the contact. Its Relay is made from what
// is known of owners; the old one goes on as a node and relays no more.
func TestStoryTakeover(t *testing.T) {
	old := newRelay(t)
	owners := []netip.Addr{contact, node2, node3}
	for i := range 300 {
		old.Step(0, SetOwner{clientNumber(i), owners[i%3], uint64(i)})
	}
	taken := newRelay(t, func(c *Config) { c.CareOf = node2 })
	taken.Step(0, SetNodes{owners})
	for c := range old.Clients() {
		taken.Step(0, c)
		taken.Step(0, c) // reports come twice
	}
	for range old.Clients() {
		break // a report may end early
	}
	collect := func(r *Relay) map[netip.Addr]SetOwner {
		m := make(map[netip.Addr]SetOwner)
		for c := range r.Clients() {
			m[c.Client] = c
		}
		return m
	}
	if a, b := collect(old), collect(taken); len(a) != 300 || !maps.Equal(a, b) {
		t.Error("tables differ")
	}
	for i := range 300 {
		want := []string{"contact", "local", "node 3"}[i%3]
		expect(t, where(t, taken, 1, tunnel(t, homeAgent, node2, data(t, clientNumber(i), home, 10))), want)
		// The old contact is now sent what it owns by the new one.
		expect(t, where(t, old, 1, tunnel(t, node2, contact, data(t, clientNumber(i), home, 10))), "local")
	}
}

// TestNoLoop: two contacts that each believe the other to own the client. A
// packet from the home agent is relayed once, whichever it comes to.
func TestNoLoop(t *testing.T) {
	a := newRelay(t)
	b := newRelay(t, func(c *Config) { c.CareOf = node2 })
	a.Step(0, SetOwner{client, node2, 1})
	b.Step(0, SetOwner{client, contact, 1})
	b.Step(0, SetNodes{[]netip.Addr{contact, node2}})
	at := map[netip.Addr]*Relay{contact: a, node2: b}
	for _, first := range []netip.Addr{contact, node2} {
		for _, inner := range [][]byte{
			data(t, client, home, 10),
			data(t, home, client, 10),
			data(t, home, home, 10),
			mobility(t, client, home, &wire.HomeTest{}),
			icmpError(t, client, home, wire.Unreachable, 0, 0, data(t, home, client, 10)),
			tunnel(t, client, home, data(t, stranger, home, 10)),
			tunnel(t, contact, node2, data(t, client, home, 10)),
		} {
			for _, from := range []netip.Addr{homeAgent, contact, node2} {
				packet, err := wire.AppendTunnel(nil, from, first, inner)
				if err != nil || from == first {
					continue
				}
				for relays := 0; ; {
					p, err := wire.ParsePacket(packet)
					if err != nil {
						t.Fatal(err)
					}
					r := at[p.Dst]
					if r == nil {
						break // it has left the cluster
					}
					out := r.Step(0, Received{packet})
					if len(out.Send) == 0 {
						break
					}
					if relays++; relays > 1 {
						t.Fatalf("relayed again: %x", out.Send[0])
					}
					packet = bytes.Clone(out.Send[0])
				}
			}
		}
	}
}
