package relay

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// TestRelayedErrors is RFC 2473 section 8: an error about a tunnel packet of
// ours becomes one about the packet inside, for who sent that.
func TestRelayedErrors(t *testing.T) {
	request := lowered(data(t, client, home, 1400), 2)
	answer := lowered(data(t, home, client, 1400), 2)
	toNode, toAgent := tunnel(t, contact, node2, request), tunnel(t, contact, homeAgent, answer)
	for _, tt := range []struct {
		name  string
		about []byte
		kind  wire.ErrorKind
		code  uint8
		param uint32
		want  string // where, and what
	}{
		{"a link before the node is too small", toNode, wire.PacketTooBig, 0, 1400, "straight to client: kind 2 code 0 param 1360"},
		{"never below the smallest MTU", toNode, wire.PacketTooBig, 0, 1300, "straight to client: kind 2 code 0 param 1280"},
		{"the node is gone", toNode, wire.Unreachable, 3, 0, "straight to client: kind 1 code 3 param 0"},
		{"no route to the node", toNode, wire.Unreachable, 0, 0, "straight to client: kind 1 code 3 param 0"},
		{"the tunnel is too long", toNode, wire.TimeExceeded, 0, 0, "straight to client: kind 1 code 3 param 0"},
		{"the node knows no tunnels", toNode, wire.ParameterProblem, 1, 6, "straight to client: kind 1 code 3 param 0"},
		{"about the packet inside: for its destination", toNode, wire.ParameterProblem, 1, 46, "no answer"},
		{"a link before the home agent is too small", toAgent, wire.PacketTooBig, 0, 1400, "node 2: kind 2 code 0 param 1360"},
		{"the home agent is gone", toAgent, wire.Unreachable, 3, 0, "node 2: kind 1 code 3 param 0"},
		{"no error about an error", tunnel(t, contact, homeAgent, lowered(icmpError(t, home, client, wire.Unreachable, 4, 0, request), 1)),
			wire.Unreachable, 3, 0, "no answer"},

		// What this node's own shim sent, and what cannot have been sent.
		{"this node's own", tunnel(t, contact, homeAgent, data(t, home, clientNumber(7), 10)), wire.Unreachable, 3, 0, "local"},
		{"another's tunnel", tunnel(t, node3, node2, request), wire.Unreachable, 3, 0, "local"},
		{"a tunnel to nobody", tunnel(t, contact, stranger, request), wire.Unreachable, 3, 0, "local"},
		{"a tunnel to a node that does not own the client", tunnel(t, contact, node3, request), wire.Unreachable, 3, 0, "local"},
		{"a client that is not known", tunnel(t, contact, node2, data(t, stranger, home, 10)), wire.Unreachable, 3, 0, "local"},
		{"not for home", tunnel(t, contact, node2, data(t, client, stranger, 10)), wire.Unreachable, 3, 0, "local"},
		{"not from home", tunnel(t, contact, homeAgent, data(t, stranger, client, 10)), wire.Unreachable, 3, 0, "local"},
		{"too little quoted", toNode[:79], wire.Unreachable, 3, 0, "local"},
		{"nothing quoted", nil, wire.Unreachable, 3, 0, "local"},
		{"no tunnel quoted", data(t, contact, node2, 10), wire.Unreachable, 3, 0, "local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRelay(t)
			r.Step(0, SetOwner{client, node2, 1})
			b := icmpError(t, router, contact, tt.kind, tt.code, tt.param, tt.about)
			got := where(t, r, 0, b)
			if out := r.Step(0, Received{b}); len(out.Send) == 1 {
				packet := out.Send[0]
				if got == "node 2" {
					_, _, packet = inside(t, packet)
				}
				p, err := wire.ParsePacket(packet)
				if err != nil {
					t.Fatal(err)
				}
				m, err := wire.ParseICMP(&p)
				if err != nil {
					t.Fatal(err)
				}
				e := m.(*wire.ICMPError)
				got += ": kind " + digits(uint32(e.Kind)) + " code " + digits(uint32(e.Code)) + " param " + digits(e.Param)
				// It quotes what is inside, from the inner header on.
				if inner := tt.about[wire.HeaderLen:]; !bytes.HasPrefix(inner, e.Quoted) || len(e.Quoted) < 1000 {
					t.Errorf("quotes %d octets\n%x", len(e.Quoted), e.Quoted)
				}
				if p.Src != contact || key(e.Quoted[8:24]) != key(p.Dst.AsSlice()) {
					t.Errorf("from %v to %v", p.Src, p.Dst)
				}
			}
			expect(t, got, tt.want)
		})
	}
	r := newRelay(t)
	echo := pack(t, wire.Packet{Src: router, Dst: contact, Protocol: wire.ICMPv6, Payload: (&wire.AgentReply{}).Append(nil, router, contact)})
	expect(t, where(t, r, 0, echo), "local")
	echo[len(echo)-1] ^= 1
	expect(t, where(t, r, 0, echo), "malformed")
}

func digits(n uint32) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return digits(n/10) + digits(n%10)
}

// TestPathMTU is RFC 2473 section 7.1: what is too large for the tunnel onwards
// is not sent to be lost; its sender is told.
func TestPathMTU(t *testing.T) {
	large, small := data(t, client, home, 1340), data(t, client, home, 1220) // packets of 1400 and 1280
	tooBig := func(param uint32, about []byte) []byte {
		return icmpError(t, router, contact, wire.PacketTooBig, 0, param, about)
	}
	toNode := tunnel(t, contact, node2, lowered(large, 2))
	received := func(inner []byte) []byte { return tunnel(t, homeAgent, contact, inner) }
	begin := func() *Relay {
		r := newRelay(t)
		r.Step(0, SetOwner{client, node2, 1})
		return r
	}

	r := begin()
	expect(t, where(t, r, 0, received(large)), "node 2")
	r.Step(0, Received{tooBig(1400, toNode)})
	expect(t, where(t, r, 1, received(large)), "too big, error straight to client")
	out := r.Step(1, Received{received(large)})
	if p, _ := wire.ParsePacket(out.Send[0]); p.Protocol == wire.ICMPv6 {
		if m, _ := wire.ParseICMP(&p); m.(*wire.ICMPError).Param != 1360 {
			t.Errorf("%+v", m)
		}
	}
	// What its sender cannot make smaller is sent as it is.
	expect(t, where(t, r, 1, received(small)), "node 2")
	// Another node is reached by another way.
	r.Step(1, SetOwner{client, node3, 2})
	expect(t, where(t, r, 1, received(large)), "node 3")
	r.Step(1, SetOwner{client, node2, 3})
	// Routes change: it is tried again (RFC 8201 section 4).
	expect(t, where(t, r, 10*time.Minute-1, received(large)), "too big, error straight to client")
	expect(t, where(t, r, 10*time.Minute, received(large)), "node 2")

	// The way to the home agent. Node 3 has never been told, and is now.
	r = begin()
	answer := data(t, home, client, 1340)
	r.Step(0, Received{tooBig(1400, tunnel(t, contact, homeAgent, lowered(answer, 2)))})
	expect(t, where(t, r, 0, tunnel(t, node3, contact, answer)), "too big, error node 3")

	// What cannot be true, or is not about what we sent, is not learned.
	for _, tt := range []struct {
		name  string
		mtu   uint32
		about []byte
	}{
		{"below what every link has", 1279, toNode},
		{"zero", 0, toNode},
		{"as large as the packet", uint32(len(toNode)), toNode},
		{"larger than any", 0xffffffff, toNode},
		{"of a client that another owns", 1400, tunnel(t, contact, node3, lowered(large, 2))},
		{"of nobody", 1400, tunnel(t, contact, node2, data(t, stranger, home, 1340))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := begin()
			r.Step(0, Received{tooBig(tt.mtu, tt.about)})
			expect(t, where(t, r, 1, received(large)), "node 2")
			r.Step(1, SetOwner{client, node3, 2})
			expect(t, where(t, r, 1, received(large)), "node 3")
		})
	}

	// It gets smaller, not larger, while it holds.
	r = begin()
	r.Step(0, Received{tooBig(1380, toNode)})
	r.Step(time.Minute, Received{tooBig(1430, toNode)})
	if p := r.peers.list[r.peers.byAddr[node2.As16()]]; p.mtu != 1380 || p.mtuUntil != mtuLifetime {
		t.Errorf("%+v", p)
	}

	// The smallest is limit enough: a forger can ask for no less than what
	// every sender can do.
	r = begin()
	r.Step(0, Received{tooBig(1280, toNode)})
	expect(t, where(t, r, 1, received(small)), "node 2")
}

// TestPathsOfPeersReused: a place in the list of peers that was another's
// brings nothing of that one along.
func TestPathsOfPeersReused(t *testing.T) {
	r := newRelay(t)
	r.Step(0, SetOwner{client, stranger, 1})
	about := tunnel(t, contact, stranger, data(t, client, home, 1340))
	r.Step(0, Received{icmpError(t, router, contact, wire.PacketTooBig, 0, 1300, about)})
	expect(t, where(t, r, 0, tunnel(t, homeAgent, contact, data(t, client, home, 1340))), "too big, error straight to client")
	r.Step(0, Forget{client, 1})
	n := len(r.peers.list)
	r.Step(0, SetOwner{client, netip.MustParseAddr("2001:db8:e::4"), 1})
	if len(r.peers.list) != n {
		t.Error("the place was not used again")
	}
	expect(t, where(t, r, 0, tunnel(t, homeAgent, contact, data(t, client, home, 1340))), "2001:db8:e::4")
}
