package relay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// TestAttack: packets that have no business here go nowhere.
func TestAttack(t *testing.T) {
	linkLocal, multicast := addr("fe80::1"), addr("ff02::1")
	request, answer := data(t, client, home, 100), data(t, home, client, 100)
	bare := func(src, dst netip.Addr, p wire.Protocol, payload []byte) []byte {
		return pack(t, wire.Packet{Src: src, Dst: dst, Protocol: p, Payload: payload})
	}
	oneHop := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[hopLimit] = 1
		return b
	}
	for _, tt := range []struct {
		name   string
		packet []byte
		want   string
	}{
		// Who may use the tunnel.
		{"a stranger's tunnel, like the home agent's", tunnel(t, stranger, contact, request), "from a stranger"},
		{"a stranger's tunnel, like a node's", tunnel(t, stranger, contact, answer), "from a stranger"},
		{"the client's own tunnel", tunnel(t, client, contact, request), "from a stranger"},
		{"from ourselves", tunnel(t, contact, contact, answer), "from a stranger"},
		{"from the home address", tunnel(t, home, contact, request), "from a stranger"},
		{"a Home Address option says it is a node", extended(t, wire.Packet{Src: stranger, Home: node2, Dst: contact}, answer), "spoofed"},
		{"a Home Address option in a node's tunnel", extended(t, wire.Packet{Src: node2, Home: home, Dst: contact}, answer), "spoofed"},
		{"a tunnel behind a routing header", extended(t, wire.Packet{Src: homeAgent, Dst: contact, Routing: home}, request), "spoofed"},

		// What may be in it.
		{"the home agent brings what is not for the home address", tunnel(t, homeAgent, contact, data(t, client, node2, 1)), "spoofed"},
		{"the home agent brings what is for the contact", tunnel(t, homeAgent, contact, data(t, client, contact, 1)), "spoofed"},
		{"the home agent brings what the home address sent", tunnel(t, homeAgent, contact, answer), "spoofed"},
		{"from home to home", tunnel(t, homeAgent, contact, data(t, home, home, 1)), "spoofed"},
		{"a client on the home agent's link", tunnel(t, homeAgent, contact, data(t, linkLocal, home, 1)), "spoofed"},
		{"a client that is a group", tunnel(t, homeAgent, contact, data(t, multicast, home, 1)), "spoofed"},
		{"a client without an address", tunnel(t, homeAgent, contact, data(t, netip.IPv6Unspecified(), home, 1)), "spoofed"},
		{"a client that is the loopback", tunnel(t, homeAgent, contact, data(t, netip.IPv6Loopback(), home, 1)), "spoofed"},
		{"a node sends in somebody else's name", tunnel(t, node2, contact, data(t, stranger, client, 1)), "spoofed"},
		{"a node sends in its own name", tunnel(t, node2, contact, data(t, node2, client, 1)), "spoofed"},
		{"a node sends home to home", tunnel(t, node2, contact, data(t, home, home, 1)), "spoofed"},
		{"a node sends to a link", tunnel(t, node2, contact, data(t, home, linkLocal, 1)), "spoofed"},
		{"a node sends to a group", tunnel(t, node2, contact, data(t, home, multicast, 1)), "spoofed"},

		// What is no packet.
		{"nothing", nil, "malformed"},
		{"a cut packet", tunnel(t, homeAgent, contact, request)[:100], "malformed"},
		{"a cut packet inside", bare(homeAgent, contact, wire.IPv6, request[:100]), "malformed"},
		{"half a header inside", bare(homeAgent, contact, wire.IPv6, request[:39]), "malformed"},
		{"nothing inside", bare(homeAgent, contact, wire.IPv6, nil), "malformed"},
		{"IPv4 inside", bare(homeAgent, contact, wire.IPv6, append([]byte{0x45}, make([]byte, 60)...)), "malformed"},
		{"no tunnel", data(t, client, contact, 1), "not a tunnel packet"},
		{"a fragment of a tunnel packet", bare(homeAgent, contact, wire.Fragment, append([]byte{41, 0, 0, 1, 0, 0, 0, 1}, make([]byte, 96)...)), "not a tunnel packet"},
		{"not for us", tunnel(t, homeAgent, node2, request), "not a tunnel packet"},

		// The last hop. The client learns of it, the node too, in a tunnel.
		{"a client's last hop", tunnelOf(t, homeAgent, oneHop(request)), "hop limit used up, error straight to client"},
		{"a node's last hop", tunnelOf(t, node2, oneHop(answer)), "hop limit used up, error node 2"},
		{"the last hop of an error", tunnelOf(t, homeAgent, oneHop(icmpError(t, client, home, wire.TimeExceeded, 0, 0, answer))), "hop limit used up"},

		{"the longest packet there is", bare(node2, contact, wire.IPv6, data(t, home, client, 65535-40-20)), "home agent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRelay(t)
			r.Step(0, SetOwner{client, node2, 1})
			expect(t, where(t, r, 0, tt.packet), tt.want)
		})
	}
}

// extended puts inner into a packet that has more than addresses.
func extended(t *testing.T, p wire.Packet, inner []byte) []byte {
	p.Protocol, p.Payload = wire.IPv6, inner
	return pack(t, p)
}

// tunnelOf is a tunnel to the contact without a look at the hop limit.
func tunnelOf(t *testing.T, src netip.Addr, inner []byte) []byte {
	return pack(t, wire.Packet{Src: src, Dst: contact, Protocol: wire.IPv6, Payload: inner})
}

// TestOwnerRefused: addresses that would send packets round in circles, or to
// nobody.
func TestOwnerRefused(t *testing.T) {
	r := newRelay(t, func(c *Config) { c.MaxClients = 2 })
	for _, tt := range []struct {
		in   Input
		want Reason
	}{
		{SetOwner{client, homeAgent, 1}, Invalid},
		{SetOwner{client, home, 1}, Invalid},
		{SetOwner{home, node2, 1}, Invalid},
		{SetOwner{netip.Addr{}, node2, 1}, Invalid},
		{SetOwner{addr("192.0.2.1"), node2, 1}, Invalid},
		{SetOwner{addr("::ffff:192.0.2.1"), node2, 1}, Invalid},
		{SetOwner{addr("fe80::1%eth0"), node2, 1}, Invalid},
		{SetOwner{client, addr("ff02::1"), 1}, Invalid},
		{SetOwner{client, addr("192.0.2.1"), 1}, Invalid},
		{SetOwner{client, addr("::1"), 1}, Invalid},
		{Forget{client, 1}, None}, // not known anyway
		{Forget{netip.Addr{}, 1}, Invalid},
		{SetOwner{client, node2, 5}, None},
		{SetOwner{client, node2, 5}, None},
		{SetOwner{client, node3, 4}, Stale},
		{SetOwner{clientNumber(1), node2, 0}, None},
		{SetOwner{clientNumber(2), node2, 0}, Full},
		{SetOwner{clientNumber(1), node3, 1}, None}, // known: needs no room
		{Forget{client, 4}, Stale},
		{Forget{client, 5}, None},
		{SetOwner{clientNumber(2), node2, 0}, None},
	} {
		if got := r.Step(0, tt.in).Dropped; got != tt.want {
			t.Errorf("%T%v: %v, want %v", tt.in, tt.in, got, tt.want)
		}
	}
}

// TestNodesRefused: nobody can be made a node whose packets we send ourselves.
func TestNodesRefused(t *testing.T) {
	r := newRelay(t)
	r.Step(0, SetNodes{[]netip.Addr{contact, homeAgent, home, {}, addr("ff02::1"), addr("192.0.2.1"), node3, node3}})
	if r.peers.members != 1 {
		t.Errorf("%d members", r.peers.members)
	}
	answer := data(t, home, client, 1)
	expect(t, where(t, r, 0, tunnel(t, homeAgent, contact, answer)), "spoofed")
	expect(t, where(t, r, 0, tunnel(t, node2, contact, answer)), "from a stranger")
	expect(t, where(t, r, 0, tunnel(t, node3, contact, answer)), "home agent")

	// A node that has left but owns a client is still sent its packets: who
	// takes over is not decided here.
	r.Step(0, SetOwner{client, node2, 1})
	expect(t, where(t, r, 0, tunnel(t, homeAgent, contact, data(t, client, home, 1))), "node 2")
	expect(t, where(t, r, 0, tunnel(t, node2, contact, answer)), "from a stranger")
}

// TestFloodOfHomeTests: a node asks without end. It gets its share, the others
// keep theirs, and nothing grows.
func TestFloodOfHomeTests(t *testing.T) {
	const most = 64
	r := newRelay(t, func(c *Config) { c.MaxPaths = most })
	ask := func(now time.Duration, node netip.Addr, i int) string {
		var cookie wire.Cookie
		binary.BigEndian.PutUint64(cookie[:], uint64(i))
		return where(t, r, now, tunnel(t, node, contact, mobility(t, home, clientNumber(i), &wire.HomeTestInit{Cookie: cookie})))
	}
	for round := range 4 {
		now := time.Duration(round) * 20 * time.Second
		asked := 0
		for i := range 1000 {
			if ask(now+time.Duration(i)*time.Microsecond, node2, i) == "home agent" {
				asked++
			}
			if r.Stats().Paths > most {
				t.Fatalf("%+v", r.Stats())
			}
		}
		if asked != most/2 {
			t.Errorf("round %d: %d tests went out, want %d", round, asked, most/2)
		}
		// The other node is not disturbed.
		for i := range 10 {
			expect(t, ask(now+time.Second, node3, 5000+i), "home agent")
		}
	}
	// The share of a node that was alone is smaller when others come.
	alone := newRelay(t, func(c *Config) { c.MaxPaths = most })
	alone.Step(0, SetNodes{[]netip.Addr{node2}})
	r = alone
	for i := range most {
		expect(t, ask(0, node2, i), "home agent")
	}
	r.Step(0, SetNodes{[]netip.Addr{node2, node3}})
	expect(t, ask(0, node3, 5000), "limited")
	expect(t, ask(20*time.Second, node3, 5000), "home agent")
}

// TestErrorsLimited: whoever makes the contact send errors does so at a
// limited rate.
func TestErrorsLimited(t *testing.T) {
	r := newRelay(t)
	r.Step(0, SetOwner{client, node2, 1})
	b := tunnelOf(t, homeAgent, func() []byte { b := data(t, client, home, 1); b[hopLimit] = 1; return b }())
	sent := 0
	for i := range 10_000 {
		out := r.Step(time.Duration(i)*100*time.Microsecond, Received{b}) // for a second
		if out.Dropped != HopLimit {
			t.Fatal(out.Dropped)
		}
		sent += len(out.Send)
	}
	if sent < 1000 || sent > 1000+errorBurst+1 {
		t.Errorf("%d errors in a second", sent)
	}
}

// TestConfig: what New refuses.
func TestConfig(t *testing.T) {
	good := Config{Home: home, CareOf: contact, HomeAgent: homeAgent}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no home":            func(c *Config) { c.Home = netip.Addr{} },
		"IPv4":               func(c *Config) { c.CareOf = addr("192.0.2.1") },
		"group":              func(c *Config) { c.HomeAgent = addr("ff02::1") },
		"same":               func(c *Config) { c.CareOf = c.Home },
		"agent at home":      func(c *Config) { c.HomeAgent = c.Home },
		"agent at contact":   func(c *Config) { c.HomeAgent = c.CareOf },
		"clients below zero": func(c *Config) { c.MaxClients = -1 },
		"paths below zero":   func(c *Config) { c.MaxPaths = -1 },
		"time below zero":    func(c *Config) { c.PathLifetime = -1 },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if s := Reason(200).String(); s != "reason 200" {
		t.Error(s)
	}
}
