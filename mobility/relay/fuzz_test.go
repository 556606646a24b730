package relay

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// FuzzStep feeds a packet, as it is and in tunnels from everybody, to a Relay
// that knows a few clients. Whatever it is:
//
//   - it is not changed, and at most one packet comes of it;
//   - what stays here is what came;
//   - what is relayed is what was inside, one hop older, in a tunnel from here
//     to the home agent if it came from a node, to a node if it came from the
//     home agent;
//   - anything else that is sent is an ICMPv6 error from here;
//   - a stranger makes nothing be sent but errors about our own tunnel packets;
//   - the tables stay within their limits.
func FuzzStep(f *testing.F) {
	hoti := mobility(f, home, client, &wire.HomeTestInit{Cookie: wire.Cookie{1}})
	for _, b := range [][]byte{
		data(f, client, home, 100), data(f, home, client, 100), data(f, stranger, home, 1400), hoti,
		mobility(f, client, home, &wire.HomeTest{Cookie: wire.Cookie{1}}),
		mobility(f, client, home, &wire.BindingAck{}),
		icmpError(f, client, home, wire.ParameterProblem, 1, 40, hoti),
		icmpError(f, router, home, wire.PacketTooBig, 0, 1300, data(f, home, client, 1400)),
		icmpError(f, router, contact, wire.PacketTooBig, 0, 1300, tunnel(f, contact, node2, data(f, client, home, 1400))),
		icmpError(f, router, contact, wire.Unreachable, 3, 0, tunnel(f, contact, homeAgent, data(f, home, client, 100))),
		icmpError(f, router, contact, wire.Unreachable, 3, 0, tunnel(f, contact, homeAgent, hoti)),
		pack(f, wire.Packet{Src: client, Dst: home, Home: stranger, Protocol: wire.NoNext}),
		pack(f, wire.Packet{Src: stranger, Dst: contact, Routing: home, Protocol: wire.NoNext}),
	} {
		f.Add(b, uint8(0), false)
		f.Add(b, uint8(1), true)
	}
	nodes := map[netip.Addr]bool{node2: true, node3: true}
	f.Fuzz(func(t *testing.T, b []byte, owner uint8, direct bool) {
		r := newRelay(t, func(c *Config) { c.DirectReturn, c.MaxPaths, c.MaxClients = direct, 4, 8 })
		r.Step(0, SetOwner{client, []netip.Addr{node2, node3, contact, {}}[owner%4], 1})
		r.Step(0, SetOwner{clientNumber(1), node3, 1})
		packets := [][]byte{b}
		for _, src := range []netip.Addr{homeAgent, node2, node3, stranger, contact} {
			p := wire.Packet{Src: src, Dst: contact, Protocol: wire.IPv6, Payload: b}
			if b, err := p.Append(nil); err == nil {
				packets = append(packets, b)
			}
		}
		for round := range 3 { // a second time, and after all is forgotten
			now := time.Duration(max(0, round-1)) * time.Minute
			for _, packet := range packets {
				check(t, r, now, packet, nodes, direct)
			}
			if s := r.Stats(); s.Paths > 4 || s.Clients > 8 || len(r.peers.list) > 12 {
				t.Errorf("%+v, %d peers", s, len(r.peers.list))
			}
		}
	})
}

func check(t *testing.T, r *Relay, now time.Duration, packet []byte, nodes map[netip.Addr]bool, direct bool) {
	before := bytes.Clone(packet)
	out := r.Step(now, Received{packet})
	if !bytes.Equal(packet, before) {
		t.Fatal("the packet passed in was changed")
	}
	switch n := len(out.Local) + len(out.Send); {
	case n > 1:
		t.Fatalf("%d packets for one", n)
	case n == 0 && out.Dropped == None:
		t.Fatal("it vanished without a reason")
	case n == 0:
		return
	case len(out.Local) == 1:
		if !bytes.Equal(out.Local[0], packet) || out.Dropped != None {
			t.Fatalf("stays here: %x, %v", out.Local[0], out.Dropped)
		}
		return
	}
	received, err := wire.ParsePacket(packet)
	if err != nil {
		t.Fatal("sent for what is no packet")
	}
	inner, _ := received.Inner()
	if direct && nodes[received.Src] && out.Dropped == None && bytes.Equal(out.Send[0], lowered(inner, 1)) {
		return // straight out, whatever is in it
	}
	sent, err := wire.ParsePacket(out.Send[0])
	if err != nil {
		t.Fatalf("sends what is no packet: %v\n%x", err, out.Send[0])
	}
	if sent.Protocol == wire.IPv6 && sent.Src != contact {
		t.Fatalf("a tunnel from %v", sent.Src)
	}
	if received.Protocol == wire.ICMPv6 || out.Dropped != None {
		if sent.Protocol == wire.IPv6 { // for a node
			inner, err := sent.Inner()
			if err != nil {
				t.Fatal(err)
			}
			if !nodes[sent.Dst] {
				t.Fatalf("an error to %v in a tunnel", sent.Dst)
			}
			if sent, err = wire.ParsePacket(inner); err != nil {
				t.Fatal(err)
			}
		}
		m, err := wire.ParseICMP(&sent)
		if err != nil || sent.Src != contact {
			t.Fatalf("%v: %v from %v", err, m, sent.Src)
		}
		if _, ok := m.(*wire.ICMPError); !ok || len(out.Send[0]) > wire.MinMTU+wire.TunnelLen {
			t.Fatalf("%d octets of %T", len(out.Send[0]), m)
		}
		return
	}
	var relayed []byte
	switch {
	case received.Src == homeAgent:
		if !nodes[sent.Dst] {
			t.Fatalf("from the home agent to %v", sent.Dst)
		}
		relayed, err = sent.Inner()
	case !nodes[received.Src]:
		t.Fatalf("relayed from %v", received.Src)
	case sent.Protocol == wire.IPv6 && sent.Dst == homeAgent:
		relayed, err = sent.Inner()
	default:
		t.Fatalf("from a node to %v", sent.Dst)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(relayed, lowered(inner, 1)) {
		t.Fatalf("inside was\n%x, is\n%x", inner, relayed)
	}
}
