package lab

import (
	"cmp"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/distributed-servers/ds/tun/tuntest"
)

// Net is the network: a router and its ports. All methods may be called at
// any time from any goroutine.
type Net struct {
	name   string // of the network in a Sim, for events
	clock  tcpip.Clock
	start  tcpip.MonotonicTime
	seed   uint64
	queue  delayQueue
	router atomic.Pointer[Router] // nil: a switch, which leaves packets as they are
	cuts   atomic.Pointer[[]*cut] // nil: none

	routes atomic.Pointer[[]route] // longest prefix first, never changed in place
	taps   atomic.Pointer[[]*tap]  // nil: none
	counts [verdicts]atomic.Uint64

	mu     sync.Mutex // for writers of what is below, of routes and of taps
	ports  []*Port
	closed bool
}

type route struct {
	dst netip.Prefix
	via *Port
}

type tap struct{ f func(Event) }

// packet is on its way. Its octets are not changed any more, so that copies
// share them.
type packet struct {
	b    []byte
	from *Port // nil: injected, or sent by the router
}

// New returns a network without ports. The same seed gives the same decisions.
// A nil clock is tcpip.NewStdClock().
func New(seed uint64, clock tcpip.Clock) *Net {
	if clock == nil {
		clock = tcpip.NewStdClock()
	}
	n := &Net{clock: clock, start: clock.NowMonotonic(), seed: seed}
	n.queue.clock = clock
	n.routes.Store(new([]route))
	return n
}

// Attach adds a link with the given MTU in octets. The name is for events and
// for the random streams of the link; a name used before, for instance by a
// node that crashed and came back, gets new streams. After [Net.Close] the
// port is closed.
func (n *Net) Attach(name string, mtu int) *Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attachLocked(name, mtu)
}

func (n *Net) attachLocked(name string, mtu int) *Port {
	generation := uint64(0)
	for _, p := range n.ports {
		if p.Name() == name {
			generation++
		}
	}
	p := &Port{}
	p.End = tuntest.NewEnd(name, mtu, func(b []byte) { p.upward.send(packet{b, p}) })
	p.upward.init(n, p, n.route, n.stream(name, generation, "up"))
	p.downward.init(n, p, p.deliver, n.stream(name, generation, "down"))
	n.ports = append(n.ports, p)
	if n.closed {
		p.Close()
	}
	return p
}

func (n *Net) stream(name string, generation uint64, direction string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name + "\x00" + direction))
	return rand.New(rand.NewPCG(n.seed, h.Sum64()+generation))
}

// Route sends what is for dst to the port, in place of where it went before.
// The longest prefix wins. A packet is routed once, when it has passed its
// sender's link: after Route returns none goes the old way, except what is
// already on the link there. A nil port is [Net.Unroute].
func (n *Net) Route(dst netip.Prefix, via *Port) {
	dst = dst.Masked()
	n.mu.Lock()
	defer n.mu.Unlock()
	routes := slices.Clone(*n.routes.Load())
	routes = slices.DeleteFunc(routes, func(r route) bool { return r.dst == dst })
	if via != nil {
		routes = append(routes, route{dst, via})
		slices.SortStableFunc(routes, func(a, b route) int { return cmp.Compare(b.dst.Bits(), a.dst.Bits()) })
	}
	n.routes.Store(&routes)
}

// Unroute removes the route to exactly dst, if there is one.
func (n *Net) Unroute(dst netip.Prefix) { n.Route(dst, nil) }

// Inject sends a copy of p as if it came from nowhere: it is routed by its
// destination and impaired on the link there.
func (n *Net) Inject(p []byte) { n.route(packet{b: slices.Clone(p)}) }

func (n *Net) lookup(b []byte) *Port {
	dst, ok := destination(b)
	if !ok {
		return nil
	}
	for _, r := range *n.routes.Load() {
		if r.dst.Contains(dst) {
			return r.via
		}
	}
	return nil
}

func (n *Net) route(p packet) {
	router := n.router.Load()
	if router != nil && p.from != nil {
		forwarded, alive := decrement(p.b)
		if !alive {
			n.note(Expired, p, nil)
			n.answer(timeExceeded(p.b, router))
			return
		}
		p.b = forwarded
	}
	switch to := n.lookup(p.b); {
	case to == nil:
		n.note(NoRoute, p, nil)
		if router != nil {
			n.answer(noRoute(p.b, router))
		}
	case n.isCut(p.from, to):
		n.note(Cut, p, to)
	case len(p.b) > to.MTU():
		n.note(TooBig, p, to)
		n.answer(tooBig(p.b, to.MTU(), router))
	default:
		to.downward.send(p)
	}
}

// answer sends the router's ICMP message, unless it is nil.
func (n *Net) answer(b []byte) {
	if b != nil {
		n.route(packet{b: b})
	}
}

// Close closes all ports and drops what is on its way.
func (n *Net) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	n.queue.close()
	for _, p := range n.ports {
		p.Close()
	}
	return nil
}

// Verdict is what the network did with a packet.
type Verdict int

const (
	Delivered  Verdict = iota // handed to the destination's queue
	Lost                      // by an impairment
	Duplicated                // by an impairment; both copies travel on
	Reordered                 // held back by an impairment; it travels on later
	NoRoute                   // no route to the destination, or not an IP packet
	TooBig                    // larger than the MTU of the destination's link
	Overflowed                // found the queue of a link with little bandwidth full
	Cut                       // by a partition
	Down                      // on a link that is down
	Expired                   // no hop was left: RFC 8200 section 3
	Vanished                  // reached a host that has crashed, in a Sim
	Sent                      // a host sent it, in the trace of a Sim alone

	verdicts = iota
)

func (v Verdict) String() string {
	if v < 0 || v >= verdicts {
		return "unknown"
	}
	return [...]string{
		"delivered", "lost", "duplicated", "reordered", "no route", "too big",
		"queue full", "cut", "link down", "hop limit", "vanished", "sent",
	}[v]
}

// Event is one thing that happened to a packet. A packet that is duplicated,
// or reordered, on its way has several.
type Event struct {
	At       time.Duration // since New, on the network's clock
	Net      string        // the network, in a Sim
	From, To string        // ports; "" for none: injected, sent by the router, without route
	Packet   []byte        // the whole IP packet; it may be kept but not changed
	Verdict  Verdict
}

// Tap calls f for each event, in the goroutine that carries the packet: several
// calls at a time, so f locks what it shares. f may use the network. The
// returned function ends it.
func (n *Net) Tap(f func(Event)) (remove func()) {
	t := &tap{f}
	n.setTaps(func(taps []*tap) []*tap { return append(taps, t) })
	return func() {
		n.setTaps(func(taps []*tap) []*tap {
			return slices.DeleteFunc(taps, func(x *tap) bool { return x == t })
		})
	}
}

func (n *Net) setTaps(change func([]*tap) []*tap) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var taps []*tap
	if old := n.taps.Load(); old != nil {
		taps = slices.Clone(*old)
	}
	if taps = change(taps); len(taps) == 0 {
		n.taps.Store(nil)
		return
	}
	n.taps.Store(&taps)
}

// note counts a verdict and tells the taps. A nil to is looked up: the packet
// did not come as far as that.
func (n *Net) note(v Verdict, p packet, to *Port) {
	n.counts[v].Add(1)
	taps := n.taps.Load()
	if taps == nil {
		return
	}
	e := Event{At: n.clock.NowMonotonic().Sub(n.start), Net: n.name, Packet: p.b, Verdict: v}
	if p.from != nil {
		e.From = p.from.Name()
	}
	if to == nil {
		to = n.lookup(p.b)
	}
	if to != nil {
		e.To = to.Name()
	}
	for _, t := range *taps {
		t.f(e)
	}
}

// Stats counts packets by verdict since [New].
type Stats struct {
	Delivered, Lost, Duplicated, Reordered, NoRoute, TooBig uint64
	Overflowed, Cut, Down, Expired, Vanished                uint64

	// Dropped are those Delivered that found the port's queue full or the
	// port closed.
	Dropped uint64
}

// Stats returns the counters.
func (n *Net) Stats() Stats {
	s := Stats{
		Delivered:  n.counts[Delivered].Load(),
		Lost:       n.counts[Lost].Load(),
		Duplicated: n.counts[Duplicated].Load(),
		Reordered:  n.counts[Reordered].Load(),
		NoRoute:    n.counts[NoRoute].Load(),
		TooBig:     n.counts[TooBig].Load(),
		Overflowed: n.counts[Overflowed].Load(),
		Cut:        n.counts[Cut].Load(),
		Down:       n.counts[Down].Load(),
		Expired:    n.counts[Expired].Load(),
		Vanished:   n.counts[Vanished].Load(),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.ports {
		s.Dropped += p.Drops()
	}
	return s
}
