package lab

import (
	"slices"
	"sync/atomic"

	"github.com/distributed-servers/ds/tun"
	"github.com/distributed-servers/ds/tun/tuntest"
)

var _ tun.Device = (*Port)(nil)

// Port is one link to the router, as its holder sees it: a [tun.Device]. A
// closed port keeps its routes and swallows what they bring, as a node that
// crashed does.
type Port struct {
	*tuntest.End
	upward, downward direction

	down atomic.Bool
	dead atomic.Bool             // closed, and its holder a host of a Sim
	take atomic.Pointer[handler] // instead of the queue of End
}

type handler struct{ f func(packet []byte) }

func (p *Port) deliver(x packet) {
	if p.dead.Load() {
		p.downward.net.note(Vanished, x, p)
		return
	}
	p.downward.net.note(Delivered, x, p)
	if h := p.take.Load(); h != nil {
		h.f(x.b)
		return
	}
	p.Deliver(x.b)
}

// Handle gives f what the port delivers from now on, in the goroutine that
// carries it, in place of queueing it for Read. f may keep the packet but not
// change it.
func (p *Port) Handle(f func(packet []byte)) { p.take.Store(&handler{f}) }

// SetImpair replaces the impairments of what the holder writes (up) and of
// what it reads (down). Packets held back or delayed stay so.
func (p *Port) SetImpair(up, down Impair) {
	p.upward.set(up)
	p.downward.set(down)
}

// SetDown takes the link down, or up again. While it is down, all that enters
// or leaves it is dropped: what is on its way there too.
func (p *Port) SetDown(down bool) { p.down.Store(down) }

// Restart closes the port and attaches another in its place, with its name,
// MTU, impairments and routes. Packets on their way to the old one vanish.
func (n *Net) Restart(p *Port) *Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	p.Close()
	q := n.attachLocked(p.Name(), p.MTU())
	q.upward.impair.Store(p.upward.impair.Load())
	q.downward.impair.Store(p.downward.impair.Load())
	q.down.Store(p.down.Load())
	routes := slices.Clone(*n.routes.Load())
	for i, r := range routes {
		if r.via == p {
			routes[i].via = q
		}
	}
	n.routes.Store(&routes)
	return q
}

// Join connects two networks by a link and makes routers of those that are
// none yet. It returns the port of each; both have the name of the link.
// Routes are up to the caller. A packet passes the downward impairment of one
// port and the upward one of the other.
func Join(a, b *Net, name string, mtu int) (onA, onB *Port) {
	onA, onB = a.Attach(name, mtu), b.Attach(name, mtu)
	onA.Handle(func(p []byte) { onB.Write(p) })
	onB.Handle(func(p []byte) { onA.Write(p) })
	for _, n := range []*Net{a, b} {
		n.router.CompareAndSwap(nil, &Router{})
	}
	return onA, onB
}

// cut separates two sets of ports in one direction; a nil set is all.
type cut struct{ from, to []string }

// Partition drops every packet that would pass from a port named in a to one
// named in b, or back, until heal is called. A nil set means all the others.
// Partitions add up.
func (n *Net) Partition(a, b []string) (heal func()) {
	back, forth := n.Block(a, b), n.Block(b, a)
	return func() { back(); forth() }
}

// Block is one direction of [Net.Partition].
func (n *Net) Block(from, to []string) (unblock func()) {
	c := &cut{slices.Clone(from), slices.Clone(to)}
	n.setCuts(func(cuts []*cut) []*cut { return append(cuts, c) })
	return func() {
		n.setCuts(func(cuts []*cut) []*cut {
			return slices.DeleteFunc(cuts, func(x *cut) bool { return x == c })
		})
	}
}

func (n *Net) setCuts(change func([]*cut) []*cut) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var cuts []*cut
	if old := n.cuts.Load(); old != nil {
		cuts = slices.Clone(*old)
	}
	if cuts = change(cuts); len(cuts) == 0 {
		n.cuts.Store(nil)
		return
	}
	n.cuts.Store(&cuts)
}

func (n *Net) isCut(from, to *Port) bool {
	cuts := n.cuts.Load()
	if cuts == nil || from == nil {
		return false
	}
	for _, c := range *cuts {
		if c.separates(from.Name(), to.Name()) {
			return true
		}
	}
	return false
}

func (c *cut) separates(from, to string) bool {
	if from == to {
		return false
	}
	fromIn, toIn := slices.Contains(c.from, from), slices.Contains(c.to, to)
	switch {
	case c.from == nil && c.to == nil:
		return true
	case c.from == nil:
		return toIn && !slices.Contains(c.to, from)
	case c.to == nil:
		return fromIn && !slices.Contains(c.from, to)
	}
	return fromIn && toIn
}
