package node

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// FuzzStep drives a node with commands, time and packets, among them answers
// that are right, answers that are spoiled, and anything at all. Each octet of
// script is a step; packets come from rest.
//
// Whatever happens: no panic; every packet sent is well formed and from the
// node; no more than three of a type to a client within a second; nothing of
// ours to a client that was abandoned; a step is answered by a bounded number
// of packets; memory stays bounded; time goes on.
func FuzzStep(f *testing.F) {
	b, ok := wire.AppendError(nil, addrC, wire.ParameterProblem, 2, 46, data(wire.Packet{Src: addrA, Dst: addrC, Home: addrHome}), false)
	if !ok {
		f.Fatal("no error")
	}
	f.Add([]byte{0, 12, 4, 11, 11, 11, 16, 16}, b)
	f.Add([]byte{0, 12, 5, 11, 6, 11, 7}, mobility(addrC, addrA, addrHome, &wire.BindingRefreshRequest{}))
	f.Add([]byte{2, 4, 11, 11, 11, 8, 11, 16, 9}, mustTunnel(addrB, addrA, mobility(addrC, addrHome, netip.Addr{}, &wire.HomeTest{})))
	f.Add([]byte{0, 12, 1, 12, 3, 10}, mobility(addrC, addrA, netip.Addr{}, &wire.BindingError{Status: wire.UnknownMHType, Home: netip.IPv6Unspecified()}))
	f.Add([]byte{0, 13, 13, 13, 15, 15, 15, 14, 14, 14}, []byte{})

	f.Fuzz(func(t *testing.T, script, rest []byte) {
		if len(script) > 200 {
			return
		}
		cfg := config(addrA, 7)
		cfg.MaxClients = 3
		n := newNode(t, cfg)
		clients := []netip.Addr{addrC, addrD, netip.MustParseAddr("2001:db8:c::1"), netip.MustParseAddr("2001:db8:c::2")}
		peers := make(map[netip.Addr]*peer)
		for _, a := range clients {
			peers[a] = newPeer(a)
		}
		home := newAgent()
		type sentAt struct {
			dst netip.Addr
			typ wire.Type
		}
		rates := make(map[sentAt][]time.Duration)
		var now time.Duration
		var pending [][]byte // packets sent, not answered yet

		step := func(in Input) {
			before := len(n.clients)
			out := n.Step(now, in)
			if len(out.Send) > 3*before+4 {
				t.Fatalf("%d packets after %T with %d clients", len(out.Send), in, before)
			}
			for _, raw := range out.Send {
				p, err := wire.ParsePacket(raw)
				if err != nil || p.Src != addrA {
					t.Fatalf("sent %x: %v", raw, err)
				}
				if p.Protocol == wire.IPv6 {
					if p.Dst != n.via {
						t.Fatalf("tunnelled to %v", p.Dst)
					}
					if raw, err = p.Inner(); err != nil {
						t.Fatal(err)
					}
					if p, err = wire.ParsePacket(raw); err != nil || p.Src != addrHome {
						t.Fatalf("tunnelled %x: %v", raw, err)
					}
				}
				if p.Protocol == wire.ICMPv6 {
					continue // an answer to what was wrong
				}
				m, err := wire.ParseMobility(&p)
				if err != nil {
					t.Fatalf("sent %x: %v", raw, err)
				}
				if m.Type() == wire.TypeBindingError {
					continue
				}
				if p.Dst != addrAgent && n.clients[p.Dst] == nil {
					t.Fatalf("type %d to %v, which is none of ours", m.Type(), p.Dst)
				}
				k := sentAt{p.Dst, m.Type()}
				at := append(rates[k], now)
				if l := len(at); l > MaxUpdateRate && at[l-1]-at[l-1-MaxUpdateRate] < time.Second {
					t.Fatalf("type %d to %v: %v", m.Type(), p.Dst, at[l-1-MaxUpdateRate:])
				}
				rates[k] = at
				if len(pending) < 16 {
					pending = append(pending, append([]byte(nil), raw...))
				}
			}
			for _, e := range out.Events {
				if e.Kind == 0 || e.Kind > Released {
					t.Fatalf("event %+v", e)
				}
			}
			if at, ok := n.NextDeadline(); ok && at <= now {
				t.Fatalf("deadline %v at %v, after %T", at, now, in)
			}
			if len(n.clients) > cfg.MaxClients || len(n.order) != len(n.clients) ||
				n.timers.Len()+n.idle.Len() > len(n.clients) {
				t.Fatalf("%d clients, %d in order, %d timers, %d idle", len(n.clients), len(n.order), n.timers.Len(), n.idle.Len())
			}
			for i, c := range n.order {
				if c.index != i || n.clients[c.addr] != c {
					t.Fatalf("client %d is out of order", i)
				}
				if c.goal == nothing && c.until <= now {
					t.Fatalf("%v ought to be forgotten: %+v", c.addr, c)
				}
			}
		}
		back := func(b []byte) []byte {
			if p, err := wire.ParsePacket(b); err == nil && p.Dst == addrHome && n.via.IsValid() {
				return mustTunnel(n.via, addrA, b)
			}
			return b
		}
		answer := func() []byte {
			if len(pending) == 0 {
				return nil
			}
			b := pending[0]
			pending = pending[1:]
			p, err := wire.ParsePacket(b)
			if err != nil {
				t.Fatal(err)
			}
			if p.Dst == addrAgent {
				m, _ := wire.ParseMobility(&p)
				if bu, ok := m.(*wire.BindingUpdate); ok {
					out, _ := home.update(now, &p, bu)
					return out
				}
			}
			if c := peers[p.Dst]; c != nil {
				if out := c.receive(now, b); out != nil {
					return back(out)
				}
			}
			return nil
		}
		for _, op := range script {
			client := clients[op>>6]
			p := peers[client]
			switch op % 20 {
			case 0:
				step(Register{})
			case 1:
				step(Deregister{})
			case 2:
				step(SetContact{addrB})
			case 3:
				step(Resign{})
			case 4:
				step(Optimise{client})
			case 5:
				step(Prepare{client, Grant{HomeToken: p.homeToken(addrHome, p.index(now)), HomeNonce: p.index(now), Remaining: time.Minute, Sequence: 3, Binding: MaxRRBindingLifetime}})
			case 6:
				step(Bind{Client: client})
			case 7:
				g, _ := n.Grant(client, now)
				step(Bind{client, g})
			case 8:
				step(Abandon{client})
			case 9:
				step(Release{client})
			case 10:
				p.reboot()
			case 11, 12:
				if b := answer(); b != nil {
					step(Received{b})
				}
			case 13: // spoiled
				if b := answer(); b != nil && len(rest) >= 3 {
					i := int(binary.BigEndian.Uint16(rest)) % len(b)
					b[i] ^= rest[2]
					rest = rest[3:]
					step(Received{b})
				}
			case 14: // the next deadline
				if at, ok := n.NextDeadline(); ok {
					now = max(now, at)
					step(Tick{})
				}
			case 15:
				now += 300 * time.Millisecond
				step(Tick{})
			case 16: // anything
				step(Received{rest})
			case 17:
				if n.via.IsValid() && len(rest) >= wire.HeaderLen {
					if b, err := wire.AppendTunnel(nil, n.via, addrA, rest); err == nil {
						step(Received{b})
					}
				}
			case 18:
				p.stock = !p.stock
			case 19:
				now += 100 * time.Second
				step(Tick{})
			}
		}
	})
}
