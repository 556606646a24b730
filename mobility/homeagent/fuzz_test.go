package homeagent

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// FuzzStep plays what fuzz says: it is cut in pieces, each of which is an
// operation, a time to pass, and octets. Most operations take a good packet
// and change octets of it.
func FuzzStep(f *testing.F) {
	f.Add(false, []byte{0, 200, 0, 1, 200, 0, 2, 0, 0, 3, 0, 0})
	f.Add(true, []byte{0, 1, 0, 3, 1, 0, 2, 1, 1, 7, 9, 1, 1, 4, 4, 1, 3})
	f.Add(true, bytes.Repeat([]byte{0, 250, 0, 4, 1, 2, 40, 1, 5, 1, 0, 6, 1, 0}, 8))
	f.Add(false, []byte{0, 250, 0, 8, 1, 0, 9, 1, 0, 10, 1, 0, 11, 1, 0, 12, 1, 0, 13, 1, 0, 14, 0, 0, 15, 0, 0, 16, 0, 0})
	f.Fuzz(func(t *testing.T, real bool, script []byte) {
		z := newFuzzed(t, real)
		for n := 0; len(script) >= 3 && n < 64; n++ {
			op, pass, size := script[0], time.Duration(script[1])*20*time.Millisecond, int(script[2])%32
			script = script[3:]
			size = min(size, len(script))
			z.pass(pass)
			z.do(op, script[:size])
			script = script[size:]
		}
	})
}

type fuzzed struct {
	*scene
	seq    uint16
	quoted []byte // a tunnel packet
}

func newFuzzed(t *testing.T, real bool) *fuzzed {
	s := newScene(t, func(cfg *Config) {
		cfg.TunnelMTU = 1300
		if !real {
			cfg.Link = nil
		}
	})
	return &fuzzed{scene: s, quoted: s.tunnelled(coa1, s.echo(cn, home))}
}

func (z *fuzzed) pass(d time.Duration) {
	until := z.now + d
	for range 1000 {
		at, ok := z.m.NextDeadline()
		if !ok || at > until {
			z.now = until
			return
		}
		z.now = max(z.now, at)
		z.check(Tick{}, nil)
	}
	z.Fatal("the home agent is never done")
}

// do takes an operation; octets are pairs of a place and what is added there.
func (z *fuzzed) do(op byte, octets []byte) {
	s := z.scene
	u := seq(z.seq, long)
	u.src = []netip.Addr{coa1, coa2}[int(op)>>7]
	u.LinkLocal = op>>6&1 == 1
	var b []byte
	link := false
	switch op % 18 {
	case 0:
		z.seq++
		u.Sequence = z.seq
		b = s.packet(u)
	case 1:
		u.Sequence, u.home = z.seq+1, home2
		b = s.packet(u)
	case 2:
		z.seq++
		u.Sequence, u.Lifetime = z.seq, 0
		b = s.packet(u)
	case 3:
		u.Sequence, u.home, u.src, u.noHAO = z.seq, home, home, true
		b = s.packet(u)
	case 4:
		b = s.echo(cn, home, 1200+int(op))
	case 5:
		b = s.tunnelled(u.src, s.echo(home, []netip.Addr{cn, home2}[op>>6&1]))
	case 6:
		b = s.icmp(wire.Packet{Src: stranger, Dst: agentAddr}, &wire.ICMPError{Kind: wire.PacketTooBig, Param: 1280, Quoted: z.quoted})
	case 7:
		b, link = s.probe(home), true
	case 8:
		b, link = s.advertisement(home), true
	case 9:
		b, link = s.solicitation(neighbor, home, true, true), true
	case 10:
		b = s.icmp(wire.Packet{Src: coa1, Dst: anycast}, &wire.AgentRequest{ID: 1})
	case 11:
		b = s.icmp(wire.Packet{Src: u.src, Dst: agentAddr, Home: home}, &wire.PrefixSolicitation{ID: 1})
	case 12:
		b = s.mobility(cn, home, &wire.HomeTest{})
	case 13:
		b = s.echo(neighbor, linkLocal(home))
	case 14:
		m := make([]byte, 16+32+8)
		copy(m, []byte{134, 0, 0, 0, 0, 0x20, 0, 9})
		copy(m[16:], []byte{3, 4, 64, 0xe0})
		copy(m[32:], ha0.AsSlice())
		copy(m[48:], []byte{8, 1, 0, 0, 0, 1, 0, 9})
		b = s.bytes(&wire.Packet{Src: ha0Link, Dst: allNodes, HopLimit: 255, Protocol: wire.ICMPv6, Payload: m})
		link = true
	case 15:
		z.check(SetPrefixes{[]Prefix{{z.cfg.Prefixes[0].Prefix, time.Duration(op) * time.Second, 0}}}, nil)
		return
	case 16:
		keys := map[netip.Addr]Credential{home: {spi, secret}, home2: {spi, secret2}}
		if op>>6 == 1 {
			delete(keys, home2)
		}
		z.check(SetKeys{keys}, nil)
		return
	case 17:
		b = bytes.Clone(octets)
		octets = nil
	}
	for ; len(octets) >= 2; octets = octets[2:] {
		b[int(octets[0])%len(b)] += octets[1]
	}
	z.fixChecksum(b)
	if link {
		z.check(OnLink{b}, b)
	} else {
		z.check(Received{b}, b)
	}
}

// fixChecksum makes most changes get past the checksum.
func (z *fuzzed) fixChecksum(b []byte) {
	if len(b) < 48 || int(b[4])<<8+int(b[5]) != len(b)-40 {
		return
	}
	p, err := wire.ParsePacket(b)
	if err != nil || len(p.Payload) < 8 {
		return
	}
	switch p.Protocol {
	case wire.Mobility:
		copy(p.Payload, checksummed(p.Payload, p.Source(), p.Destination(), 4))
	case wire.ICMPv6:
		copy(p.Payload, checksummed(p.Payload, p.Source(), p.Destination(), 2))
	}
}

// genuine reports whether b is a Binding Update that has the right key.
func (z *fuzzed) genuine(b []byte) bool {
	p, err := wire.ParsePacket(b)
	if err != nil || p.Protocol != wire.Mobility {
		return false
	}
	m, err := wire.ParseMobility(&p)
	if err != nil {
		return false
	}
	u, ok := m.(*wire.BindingUpdate)
	if !ok {
		return false
	}
	careOf := p.Src
	if u.AltCareOf.IsValid() {
		careOf = u.AltCareOf
	}
	key := z.m.homes[p.Source().As16()]
	return key != nil && key.key.Verify(p.Payload, careOf, p.Source())
}

type boundTo struct {
	careOf netip.Addr
	state  state
}

func (z *fuzzed) bindings() map[netip.Addr]boundTo {
	all := map[netip.Addr]boundTo{}
	for _, h := range z.m.homes {
		if h.state == bound {
			all[h.addr] = boundTo{h.careOf, h.state}
		}
	}
	return all
}

// check takes a step and looks for what must never be.
func (z *fuzzed) check(in Input, b []byte) {
	m := z.m
	genuine := z.genuine(b)
	before := z.bindings()
	kept := bytes.Clone(b)
	out := m.Step(z.now, in)
	if !bytes.Equal(b, kept) {
		z.Fatalf("%x became %x", kept, b)
	}

	// A binding begins or changes only by what its owner has signed.
	if b != nil && !genuine {
		if after := z.bindings(); fmt.Sprint(before) != fmt.Sprint(after) {
			z.Fatalf("%x changed %v to %v", b, before, after)
		}
	}

	// Bounded answers, and each a good packet.
	if n := len(out.Send) + len(out.Link) + len(out.Local); b != nil && n > 3 || n > 2*maxEvents {
		z.Fatalf("%x is answered by %d packets", b, n)
	}
	for _, o := range append(append(out.Send[:len(out.Send):len(out.Send)], out.Link...), out.Local...) {
		if len(o) > max(len(b)+wire.TunnelLen+8, wire.MinMTU) {
			z.Fatalf("%x is answered by %d octets", b, len(o))
		}
	}
	for _, o := range append(out.Send[:len(out.Send):len(out.Send)], out.Link...) {
		p := z.own(o)
		switch {
		case p.Src == agentAddr && p.Protocol == wire.IPv6:
			inner := netip.AddrFrom16([16]byte(p.Payload[24:40]))
			if h := m.homes[inner.As16()]; h == nil || !m.bound(h) || h.careOf != p.Dst {
				z.Fatalf("%x is tunnelled to %v", b, p.Dst)
			}
		case p.Src == agentAddr || p.Src.IsUnspecified():
		default: // out of a tunnel
			h := m.homes[p.Src.As16()]
			if h == nil || h.careOf != netip.AddrFrom16([16]byte(b[8:24])) {
				z.Fatalf("%x lets a packet from %v out", b, p.Src)
			}
		}
	}

	// Bounded memory, and state that agrees with itself.
	inUse, links := 0, 0
	for a, h := range m.homes {
		if h.state != away {
			inUse++
		}
		if h.linkLocal {
			links++
			if m.links[linkLocal(h.addr).As16()] != h {
				z.Fatal("a link-local address is lost")
			}
		}
		if h.addr.As16() != a || (h.state == tentative) != (h.pending != nil) || h.state == away && h.linkLocal {
			z.Fatalf("%v: state %d, pending %v", h.addr, h.state, h.pending)
		}
	}
	if inUse != m.inUse || inUse != m.due.Len() || links != len(m.links) || len(m.agents) > maxAgents {
		z.Fatalf("%d in use, counted %d; %d deadlines; %d links, counted %d", inUse, m.inUse, m.due.Len(), links, len(m.links))
	}
	joined := 0
	for _, n := range m.groups {
		joined += n
	}
	if want := inUse; m.cfg.Link != nil && joined != want || m.cfg.Link == nil && joined != 0 {
		z.Fatalf("%d groups for %d", joined, want)
	}
}

// own parses a packet of the home agent's own, or passes one of a mobile node.
func (z *fuzzed) own(b []byte) wire.Packet {
	if netip.AddrFrom16([16]byte(b[8:24])) != agentAddr {
		return wire.Packet{Src: netip.AddrFrom16([16]byte(b[8:24]))}
	}
	p, err := wire.ParsePacket(b)
	if err != nil {
		z.Fatalf("%x: %v", b, err)
	}
	switch p.Protocol {
	case wire.Mobility:
		_, err = wire.ParseMobility(&p)
	case wire.ICMPv6:
		_, err = wire.ParseICMP(&p)
	}
	if err != nil {
		z.Fatalf("%x: %v", b, err)
	}
	return p
}
