package correspondent

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// FuzzStep runs a machine with little room by a program: a sequence of
// packets, good, mangled, and arbitrary, of times and ticks.
//
// Whatever the program:
//   - nothing panics, and the cache is consistent and within its bounds;
//   - a binding is made only if its mobile node has signed it: the program's
//     mobile nodes note what they sign;
//   - a packet is answered by one packet at most, which is not much longer;
//   - nothing is sent to a group or to nobody, from an address that is not ours,
//     or in answer to what came from or to a group;
//   - what the host's stack sends is sent, once.
func FuzzStep(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{opTests, 0, opUpdate, 0, 0, opData, 0, opTransmit, 0, opWait, 255, opTick, opData, 0})
	f.Add([]byte{opTests, 0, opTests, 1, opUpdate, 0, 0, opUpdate, 1, 0, opUpdate, 0, 1, opAgain, opUpdate, 0, 2, opAgain})
	f.Add([]byte{opTests, 0, opUpdate, 0, 0, opMangle, 9, 7, opAgain, opData, 0, opMangle, 46, 1, opAgain})
	f.Add([]byte{opTests, 2, opUpdate, 2, 0, opTransmit, 2, opError, 1, opWait, 9, opTransmit, 2, opError, 1, opTick})
	f.Add([]byte{opTests, 0, opUpdate, 0, 3, opForget, 0, opAgain, opWait, 60, opTests, 0, opUpdate, 0, 3})
	f.Add(append([]byte{opRaw, 49}, raw(coa1, cn, wire.UDP, udp)...))
	f.Add(append([]byte{opRawTransmit, 49}, raw(cn, home, wire.UDP, udp)...))
	f.Add(append([]byte{opRaw, 73}, raw(coa1, cn, wire.DestOptions, ext(wire.UDP, append(padN4, homeOption(home)...)...), udp)...))
	f.Fuzz(func(t *testing.T, program []byte) {
		p := newProgram(t)
		for range 200 {
			if len(program) == 0 {
				break
			}
			program = p.run(program[0], program[1:])
		}
		p.c.check(t)
	})
}

// Instructions of a program.
const (
	opTests       byte = iota // node: both tests
	opUpdate                  // node, kind: a Binding Update
	opData                    // node: a packet with a Home Address option
	opTransmit                // node: a packet of the host to a home address
	opError                   // kind: an ICMPv6 error about the last packet sent
	opAgain                   // the last packet received once more
	opMangle                  // octet, with: the last packet received is changed
	opWait                    // seconds
	opTick                    // a tick
	opForget                  // node
	opRaw                     // length, octets: a packet received
	opRawTransmit             // length, octets: one transmitted
	opCount
)

type program struct {
	*host
	nodes  []*mobile
	signed map[Change]bool // without Until: what mobile nodes have signed
	last   []byte          // received
	sent   []byte          // by us
}

func newProgram(t *testing.T) *program {
	h := newHost(t, func(cfg *Config) { cfg.MaxBindings = 3 })
	p := &program{host: h, signed: map[Change]bool{}}
	for i := range 5 {
		m := h.mobile()
		m.home, m.coa, m.sequence = numbered(0x40, i), numbered(0x50, i), uint16(1000*i)
		p.nodes = append(p.nodes, m)
	}
	return p
}

// run runs an instruction and returns what is left of the program.
func (p *program) run(op byte, rest []byte) []byte {
	next := func() (b byte) {
		if len(rest) > 0 {
			b, rest = rest[0], rest[1:]
		}
		return b
	}
	node := func() *mobile { return p.nodes[int(next())%len(p.nodes)] }
	octets := func() []byte {
		n := min(int(next()), len(rest))
		b := rest[:n:n]
		rest = rest[n:]
		return b
	}
	switch op % opCount {
	case opTests:
		m := node()
		for _, packet := range [][]byte{m.hotiPacket(), m.cotiPacket()} {
			for _, b := range p.in(packet) {
				switch t := parse(p.t, b).mh.(type) {
				case *wire.HomeTest:
					m.homeIndex, m.homeToken = t.NonceIndex, t.Token
				case *wire.CareOfTest:
					m.careIndex, m.careToken = t.NonceIndex, t.Token
				}
			}
		}
	case opUpdate:
		m := node()
		b := bu{lifetime: time.Duration(1+next()%120) * 4 * time.Second}
		switch kind := next(); kind % 6 {
		case 1:
			b = leave
		case 2:
			b = bu{lifetime: -1, src: m.home, noHome: true}
		case 3:
			m.coa = numbered(0x60, int(kind))
		case 4:
			b.AltCareOf = numbered(0x50, int(kind))
		case 5:
			b.Home, b.noNonces = true, true
		}
		careOf := m.coa
		if b.AltCareOf.IsValid() {
			careOf = b.AltCareOf
		}
		if b.lifetime > 0 && !b.Home {
			p.signed[Change{Local: cn, Home: m.home, CareOf: careOf}] = true
		}
		p.in(m.updatePacket(b))
	case opData:
		m := node()
		p.in(build(p.t, wire.Packet{Src: m.coa, Dst: cn, Home: m.home, Protocol: wire.UDP, Payload: udp}))
	case opTransmit:
		p.out(raw(cn, node().home, wire.UDP, udp))
	case opError:
		if p.sent != nil {
			kind := next()
			e := wire.ICMPError{Kind: wire.ErrorKind(1 + kind%4), Code: kind / 16, Param: uint32(kind)}
			p.in(p.nodes[0].errorAbout(e, p.sent))
		}
	case opAgain:
		p.in(p.last)
	case opMangle:
		at, with := next(), next()
		if len(p.last) > 0 {
			b := bytes.Clone(p.last)
			b[int(at)%len(b)] ^= with
			if q, err := wire.ParsePacket(b); err == nil && q.Protocol == wire.Mobility && len(q.Payload) >= 8 {
				checksum(b[q.Offset:q.Offset+len(q.Payload)], 4, q.Source(), q.Destination(), wire.Mobility)
			}
			p.in(b)
		}
	case opWait:
		p.now += time.Duration(next()) * time.Second
	case opTick:
		out := p.c.Step(p.now, Tick{})
		p.changes(out)
		p.wellSent(out.Send)
	case opForget:
		p.changes(p.c.Step(p.now, Forget{cn, node().home}))
	case opRaw:
		p.in(octets())
	case opRawTransmit:
		p.out(octets())
	}
	return rest
}

// in has a packet received, and checks what comes of it.
func (p *program) in(b []byte) (sent [][]byte) {
	p.last = bytes.Clone(b)
	out := p.c.Step(p.now, Received{b})
	if !bytes.Equal(b, p.last) {
		p.t.Fatal("the packet was changed")
	}
	p.changes(out)
	if len(out.Send) > 1 || len(out.Deliver) > 1 || len(out.Send)+len(out.Deliver) > 1 {
		p.t.Fatalf("%d packets sent and %d delivered for one received", len(out.Send), len(out.Deliver))
	}
	if len(out.Send) == 1 {
		src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		if src.IsMulticast() || src.IsUnspecified() || dst.IsMulticast() {
			p.t.Fatalf("an answer to a packet from %v to %v", src, dst)
		}
		if len(out.Send[0]) > len(b)+48 {
			p.t.Fatalf("%d octets in answer to %d", len(out.Send[0]), len(b))
		}
		if to := netip.AddrFrom16([16]byte(out.Send[0][24:40])); to != src {
			p.t.Fatalf("the answer to %v goes to %v", src, to)
		}
	}
	p.wellSent(out.Send)
	for _, b := range out.Send {
		sent = append(sent, bytes.Clone(b))
	}
	return sent
}

// out has a packet transmitted.
func (p *program) out(b []byte) {
	before := bytes.Clone(b)
	out := p.c.Step(p.now, Transmit{b})
	if !bytes.Equal(b, before) {
		p.t.Fatal("the packet was changed")
	}
	if len(out.Send) != 1 || len(out.Deliver) != 0 || len(out.Changes) != 0 {
		p.t.Fatalf("%d packets sent for one transmitted", len(out.Send))
	}
	if sent := out.Send[0]; !bytes.Equal(sent, b) {
		careOf, ok := p.c.Lookup(netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])))
		if !ok || careOf != netip.AddrFrom16([16]byte(sent[24:40])) {
			p.t.Fatalf("sent by way of %v", sent[24:40])
		}
		if s, ok := shapeOf(sent); !ok || !bytes.Equal(appendUnrouted(nil, sent, &s), b[:wire.HeaderLen+int(binary.BigEndian.Uint16(b[4:]))]) {
			p.t.Fatalf("sent     %x\nin place of %x", sent, b)
		}
		p.sent = bytes.Clone(sent)
	}
}

// changes checks that bindings are what somebody has signed.
func (p *program) changes(out Output) {
	for _, c := range out.Changes {
		if c.CareOf.IsValid() {
			c.Until = 0
			if !p.signed[c] {
				p.t.Fatalf("a binding that nobody has signed: %v", c)
			}
		}
	}
	if p.c.Len() > 3 || p.c.cache.index.count > 3 || cap(p.c.buf) > 1<<18 {
		p.t.Fatalf("%d bindings, %d entries, %d octets of buffer", p.c.Len(), p.c.cache.index.count, cap(p.c.buf))
	}
}

// wellSent checks packets that we made.
func (p *program) wellSent(sent [][]byte) {
	for _, b := range sent {
		q := parse(p.t, b)
		if q.Dst.IsMulticast() || q.Dst.IsUnspecified() || !p.c.cfg.Local(q.Src) {
			p.t.Fatalf("sent %v", q)
		}
	}
}
