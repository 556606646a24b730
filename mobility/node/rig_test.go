package node

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// rig is node a alone, with a hand on every packet: what it sends lies in
// sent, and the test says what comes back.
type rig struct {
	*testing.T
	n      *Node
	now    time.Duration
	c, d   *peer
	agent  *agent
	sent   []sent  // by the last step, or during the last wait
	events []Event // likewise
}

// sent is a packet that the node has sent.
type sent struct {
	wire.Packet // the inner one if it was tunnelled
	at          time.Duration
	raw         []byte // of Packet
	via         netip.Addr
	m           wire.Message
	icmp        *wire.ICMPError
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	cfg := config(addrA, 1)
	for _, f := range change {
		f(&cfg)
	}
	return &rig{T: t, n: newNode(t, cfg), c: newPeer(addrC), d: newPeer(addrD), agent: newAgent()}
}

// contactRig is a rig whose node is the contact, and registered.
func contactRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	r := newRig(t, change...)
	r.do(Register{})
	r.homeAck(&wire.BindingAck{Lifetime: r.n.cfg.HomeLifetime})
	r.wantEvents("registered")
	return r
}

// boundRig is one with a binding at client c besides.
func boundRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	r := contactRig(t, change...)
	r.wait(2 * time.Second)
	r.do(Optimise{addrC})
	r.testsDone()
	r.want("BU")
	r.answer(r.sent[0])
	r.wantState(Established)
	r.wait(2 * time.Second) // that rate limits are over
	return r
}

func (r *rig) step(in Input) {
	r.Helper()
	out := r.n.Step(r.now, in)
	for _, b := range out.Send {
		r.sent = append(r.sent, r.open(slices.Clone(b)))
	}
	r.events = append(r.events, out.Events...)
}

// do gives the node an input.
func (r *rig) do(in Input) {
	r.Helper()
	r.sent, r.events = nil, nil
	r.step(in)
}

// wait lets time pass, with a Tick at each deadline.
func (r *rig) wait(d time.Duration) {
	r.Helper()
	r.sent, r.events = nil, nil
	end := r.now + d
	for steps := 0; ; steps++ {
		at, ok := r.n.NextDeadline()
		if !ok || at > end {
			break
		}
		if steps > 10000 {
			r.Fatalf("the node wants no end of ticks; at %v", at)
		}
		r.now = max(r.now, at)
		r.step(Tick{})
	}
	r.now = end
}

func (r *rig) open(b []byte) sent {
	r.Helper()
	p, err := wire.ParsePacket(b)
	if err != nil {
		r.Fatalf("sent %x: %v", b, err)
	}
	if p.Src != addrA {
		r.Fatalf("sent from %v", p.Src)
	}
	s := sent{Packet: p, at: r.now, raw: b}
	if p.Protocol == wire.IPv6 {
		if s.raw, err = p.Inner(); err != nil {
			r.Fatal(err)
		}
		s.via = p.Dst
		if s.Packet, err = wire.ParsePacket(s.raw); err != nil {
			r.Fatal(err)
		}
		if s.Src != addrHome {
			r.Fatalf("tunnelled from %v", s.Src)
		}
	}
	switch s.Protocol {
	case wire.Mobility:
		if s.m, err = wire.ParseMobility(&s.Packet); err != nil {
			r.Fatal(err)
		}
	case wire.ICMPv6:
		m, err := wire.ParseICMP(&s.Packet)
		if err != nil {
			r.Fatal(err)
		}
		s.icmp, _ = m.(*wire.ICMPError)
	default:
		r.Fatalf("sent protocol %d", s.Protocol)
	}
	return s
}

func (s *sent) kind() string {
	switch m := s.m.(type) {
	case *wire.HomeTestInit:
		return "HoTI"
	case *wire.CareOfTestInit:
		return "CoTI"
	case *wire.BindingUpdate:
		if m.Home {
			return "home BU"
		}
		return "BU"
	case *wire.BindingError:
		return "BE"
	}
	if s.icmp != nil {
		return "ICMP"
	}
	return "?"
}

// want says what has been sent, and nothing else.
func (r *rig) want(kinds ...string) {
	r.Helper()
	var got []string
	for i := range r.sent {
		got = append(got, r.sent[i].kind())
	}
	if !slices.Equal(got, kinds) {
		r.Fatalf("sent %q, want %q", got, kinds)
	}
}

// wantTimes says when messages of a kind have been sent, since start.
func (r *rig) wantTimes(kind string, start time.Duration, times ...time.Duration) {
	r.Helper()
	var got []time.Duration
	for i := range r.sent {
		if r.sent[i].kind() == kind {
			got = append(got, r.sent[i].at-start)
		}
	}
	if !slices.Equal(got, times) {
		r.Fatalf("%s sent at %v, want %v", kind, got, times)
	}
}

// wantEvents says what has been told, kinds and reasons.
func (r *rig) wantEvents(texts ...string) {
	r.Helper()
	var got []string
	for _, e := range r.events {
		s := e.Kind.String()
		if e.Reason != 0 {
			s += ", " + e.Reason.String()
		}
		got = append(got, s)
	}
	if !slices.Equal(got, texts) {
		r.Fatalf("events %q, want %q", got, texts)
	}
}

func (r *rig) wantState(s State) {
	r.Helper()
	if got := r.n.State(addrC); got != s {
		r.Fatalf("state %v, want %v", got, s)
	}
}

// one is the message of a kind among those sent.
func (r *rig) one(kind string) sent {
	r.Helper()
	for i := range r.sent {
		if r.sent[i].kind() == kind {
			return r.sent[i]
		}
	}
	r.Fatalf("no %s among what was sent", kind)
	return sent{}
}

// receive is a packet that comes directly; tunneled is one in the tunnel.
func (r *rig) receive(b []byte)  { r.Helper(); r.do(Received{b}) }
func (r *rig) tunneled(b []byte) { r.Helper(); r.do(Received{mustTunnel(r.n.Via(), addrA, b)}) }

// reply is what the client answers to s.
func (r *rig) reply(s sent) []byte {
	r.Helper()
	c := map[netip.Addr]*peer{addrC: r.c, addrD: r.d}[s.Dst]
	b := c.receive(r.now, s.raw)
	if b == nil {
		r.Fatalf("%v does not answer %s", s.Dst, s.kind())
	}
	return b
}

// answer lets the client answer s.
func (r *rig) answer(s sent) {
	r.Helper()
	b := r.reply(s)
	if s.via.IsValid() {
		r.tunneled(b)
	} else {
		r.receive(b)
	}
}

// testsDone lets the client answer the tests that have just been sent.
func (r *rig) testsDone() {
	r.Helper()
	tests := r.sent
	for _, s := range tests {
		r.answer(s)
	}
}

// homeAck is an answer of the home agent to the last Binding Update. A
// sequence number of 0 stands for the right one.
func (r *rig) homeAck(ba *wire.BindingAck) {
	r.Helper()
	if ba.Sequence == 0 {
		ba.Sequence = r.n.reg.seq
	}
	out := wire.Packet{Src: addrAgent, Dst: addrA, Routing: addrHome, Protocol: wire.Mobility}
	if len(r.n.cfg.Key) > 0 {
		ba.MobileAuth = &wire.MobileAuth{SPI: r.n.cfg.SPI, Timestamp: r.n.reg.stamp}
		out.Payload = sharedKey.Sign(nil, ba, r.n.cfg.SPI, addrAgent, addrHome, addrA, addrHome)
	} else {
		out.Payload = ba.Append(nil, addrAgent, addrHome)
	}
	r.receive(mustAppend(&out))
}

// clientAck is an answer of the client to the Binding Update s, which needs no
// reason. A sequence number of 0 stands for the right one.
func (r *rig) clientAck(s sent, ba *wire.BindingAck) {
	r.Helper()
	bu := s.m.(*wire.BindingUpdate)
	if ba.Sequence == 0 {
		ba.Sequence = bu.Sequence
	}
	key := wire.NewBindingKey(r.c.homeToken(addrHome, bu.HomeNonce), r.c.careOfToken(addrA, bu.CareOfNonce))
	r.receive(r.c.ack(&s.Packet, ba, &key, addrA))
}

// rewrite changes the mobility header in a packet, and sets its checksum.
func rewrite(b []byte, change func(mh []byte)) []byte {
	b = slices.Clone(b)
	p, err := wire.ParsePacket(b)
	if err != nil {
		panic(err)
	}
	change(p.Payload)
	setChecksum(&p)
	return b
}

// setChecksum sets the checksum of the mobility header (RFC 6275 section 6.1.1).
func setChecksum(p *wire.Packet) {
	mh := p.Payload
	mh[4], mh[5] = 0, 0
	src, dst := p.Source().As16(), p.Destination().As16()
	pseudo := slices.Concat(src[:], dst[:], []byte{0, 0, byte(len(mh) >> 8), byte(len(mh)), 0, 0, 0, byte(wire.Mobility)}, mh)
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(mh[4:], ^uint16(sum))
}

// icmpError is an ICMPv6 error of src about a packet of the node.
func icmpError(src netip.Addr, kind wire.ErrorKind, code uint8, about []byte) []byte {
	b, ok := wire.AppendError(nil, src, kind, code, 0, about, false)
	if !ok {
		panic("no error about that packet")
	}
	return b
}

// data is a packet with payload, of a protocol that is no business of the node.
func data(p wire.Packet) []byte {
	p.Protocol, p.Payload = wire.UDP, []byte("\x00\x07\x00\x07\x00\x0c\x00\x00data")
	return mustAppend(&p)
}
