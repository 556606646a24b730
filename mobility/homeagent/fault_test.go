package homeagent

import (
	"bytes"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// faulty is a network between a home agent and server nodes that loses,
// doubles and delays what it likes, so that it also reorders.
type faulty struct {
	s     *scene
	r     *rand.Rand
	loss  float64
	queue flight
	nodes []*registrant
	n     int
}

type flight []inFlight

type inFlight struct {
	at time.Duration
	n  int // equal times in the order of sending
	do func()
}

func (f flight) Len() int { return len(f) }
func (f flight) Less(i, j int) bool {
	return f[i].at < f[j].at || f[i].at == f[j].at && f[i].n < f[j].n
}
func (f flight) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flight) Push(x any)   { *f = append(*f, x.(inFlight)) }
func (f *flight) Pop() any {
	old := *f
	x := old[len(old)-1]
	*f = old[:len(old)-1]
	return x
}

func (f *faulty) at(t time.Duration, do func()) {
	f.n++
	heap.Push(&f.queue, inFlight{t, f.n, do})
}

// carry delivers something never, once or twice.
func (f *faulty) carry(deliver func()) {
	for range 1 + f.r.IntN(2) {
		if f.r.Float64() >= f.loss {
			f.at(f.s.now+time.Duration(f.r.Int64N(int64(3*time.Second))), deliver)
		}
	}
}

// registrant is a node that wants to be the contact: it retransmits as RFC 6275
// section 11.8 says, with a new sequence number and timestamp each time.
type registrant struct {
	f        *faulty
	careOf   netip.Addr
	skew     time.Duration
	seq      *uint16 // nodes tell each other
	lifetime time.Duration
	stamp    uint64
	sent     uint16
	wait     time.Duration
	accepted bool
	retired  bool
}

func (g *registrant) register() {
	if g.accepted || g.retired {
		return
	}
	*g.seq++
	g.sent = *g.seq
	g.stamp = max(g.stamp+1, g.f.s.m.ntp(g.f.s.now+g.skew))
	u := seq(g.sent, g.lifetime)
	u.src, u.stamp = g.careOf, g.stamp
	b := g.f.s.packet(u)
	g.f.carry(func() { g.f.step(Received{b}) })
	g.f.at(g.f.s.now+g.wait, g.register)
	g.wait = min(2*g.wait, 32*time.Second)
}

func (g *registrant) hear(ba *wire.BindingAck) {
	switch {
	case g.retired || g.accepted:
	case ba.Status == wire.SequenceOutOfWindow:
		if int16(ba.Sequence-*g.seq) > 0 {
			*g.seq = ba.Sequence
		}
	case ba.Sequence != g.sent:
	case ba.Status == wire.MessageIDMismatch:
		d := int64(ba.MobileAuth.Timestamp - g.f.s.m.ntp(g.f.s.now+g.skew))
		g.skew += time.Duration(d>>32) * time.Second
		g.stamp = 0
	case ba.Status == wire.Accepted && ba.MobileAuth.Timestamp == g.stamp:
		g.accepted = true
	}
}

func (f *faulty) step(in Input) {
	out := f.s.m.Step(f.s.now, in)
	for _, b := range out.Send {
		p, err := wire.ParsePacket(bytes.Clone(b))
		if err != nil {
			f.s.Fatal(err)
		}
		if p.Protocol != wire.Mobility {
			continue
		}
		m, err := wire.ParseMobility(&p)
		if err != nil {
			f.s.Fatal(err)
		}
		ba := m.(*wire.BindingAck)
		if !secret.Verify(p.Payload, p.Dst, home) {
			f.s.Fatalf("an acknowledgement that the mobile node does not believe: %+v", ba)
		}
		for _, g := range f.nodes {
			if g.careOf == p.Dst {
				f.carry(func() { g.hear(ba) })
			}
		}
	}
}

func (f *faulty) run(until time.Duration) {
	for {
		at, ok := f.s.m.NextDeadline()
		tick := ok && at <= until && (len(f.queue) == 0 || at <= f.queue[0].at)
		switch {
		case tick:
			f.s.now = max(f.s.now, at)
			f.step(Tick{})
		case len(f.queue) > 0 && f.queue[0].at <= until:
			x := heap.Pop(&f.queue).(inFlight)
			f.s.now = max(f.s.now, x.at)
			x.do()
		default:
			f.s.now = until
			return
		}
	}
}

// Registration, takeover by a second node, restart of the home agent, return to
// the first: with each message lost, doubled or late, each ends with the tunnel
// to the right node, on both kinds of link, with clocks that differ.
func TestFaultyNetwork(t *testing.T) {
	for run := range 600 {
		seed := uint64(run)
		r := rand.New(rand.NewPCG(seed, 6275))
		ok := t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			s := newScene(t, func(cfg *Config) {
				if run%2 == 0 {
					cfg.Link = nil
				}
			})
			f := &faulty{s: s, r: r, loss: 0.6 * r.Float64()}
			n := uint16(r.Uint32())
			skew := func() time.Duration { return time.Duration(r.Int64N(int64(40*time.Second))) - 20*time.Second }
			node := func(careOf netip.Addr) *registrant {
				for _, g := range f.nodes {
					g.retired = true
				}
				g := &registrant{f: f, careOf: careOf, skew: skew(), seq: &n, lifetime: time.Hour, wait: 1500 * time.Millisecond}
				f.nodes = append(f.nodes, g)
				g.register()
				return g
			}
			contact := func(g *registrant) {
				t.Helper()
				f.run(s.now + 20*time.Minute)
				if !g.accepted {
					t.Fatalf("loss %.2f: no acknowledgement in twenty minutes", f.loss)
				}
				s.bound(home, g.careOf)
				for _, other := range f.nodes {
					if other.careOf != g.careOf {
						s.receive(s.tunnelled(other.careOf, s.echo(home, cn)))
					}
				}
				s.silence()
			}
			contact(node(coa1))
			contact(node(coa2))
			// The second in the middle of the first's registration.
			node(coa1)
			f.run(s.now + time.Duration(r.Int64N(int64(3*time.Second))))
			contact(node(coa2))

			s.restart()
			s.away(home)
			n = uint16(r.Uint32())
			contact(node(coa1))
		})
		if !ok {
			return
		}
	}
}
