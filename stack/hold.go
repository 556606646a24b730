package stack

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// ErrHeld means that the packets of this connection or client are being held
// already: somebody else is moving it. Try again when that is over.
var ErrHeld = errors.New("stack: packets are held already")

// packetOverhead is what a kept packet costs beside its octets, so that a
// flood of tiny ones is bounded too.
const packetOverhead = 64

// filter decides about each packet between device and netstack.
//
//	                 Hold             Forward
//	(passes)  ──────────────► held ─────────────► moved
//	   ▲                       │                    │
//	   └───────── Release ─────┴── grace over, or ──┘
//	                               Hold again
//
// A client that has moved may begin new connections here: AnswerNew. It has come back with
// the first of them, while its others may live where it went.
type filter struct {
	limit int // octets a hold keeps each way

	// deliver serialises the inbound path with changes of the table, so that
	// when a hold has begun no packet is between check and netstack any more.
	// Readers of several queues hold it at a time.
	deliver sync.RWMutex

	// mu guards the tables. The outbound path takes it alone, for it can run
	// inside the inbound one.
	mu      sync.Mutex
	n       atomic.Int32 // entries in the tables; 0 is the fast path
	all     *Hold
	tuples  map[Tuple]*Hold
	clients map[netip.Addr]*Hold
}

// find returns the entry for a flow, nil if it passes. mu is held.
func (f *filter) find(fl flow) *Hold {
	if f.all != nil {
		return f.all
	}
	if h := f.clients[fl.tuple.Remote.Addr()]; h != nil {
		return h
	}
	if fl.ports {
		return f.tuples[fl.tuple]
	}
	for t, h := range f.tuples {
		if t.Local.Addr() == fl.tuple.Local.Addr() && t.Remote.Addr() == fl.tuple.Remote.Addr() {
			return h
		}
	}
	return nil
}

// Hold is a set of connections whose packets the filter keeps or forwards. Its
// methods may be called from several goroutines.
type Hold struct {
	link  *link
	tuple Tuple // of a client: only the remote address; of all: nothing

	mu      sync.Mutex
	done    bool                // left the table
	copy    func(p []byte) bool // nil: not asked for, or it has enough
	copied  int                 // how many of the inbound packets kept it has taken
	forward func(p []byte)
	here    func() bool // once it forwards: new connections live here. nil: they do not
	back    bool        // and there was one
	sent    []sentOn    // connections that were begun elsewhere, because none lived here yet
	expire  tcpip.Timer
	in, out packetQueue
	// displaced are the moved filters that gave way, until it is clear that
	// what they are about has come back.
	displaced []*Hold
}

// packetQueue keeps packets in order of arrival up to a limit of octets.
type packetQueue struct {
	packets [][]byte
	octets  int
	dropped uint64
}

func (q *packetQueue) push(p []byte, limit int) bool {
	if q.octets+len(p)+packetOverhead > limit {
		q.dropped++
		return false
	}
	q.octets += len(p) + packetOverhead
	q.packets = append(q.packets, append([]byte(nil), p...))
	return true
}

func (q *packetQueue) take() [][]byte {
	p := q.packets
	q.packets, q.octets = nil, 0
	return p
}

// HoldConn keeps the packets of one connection from now on. When it returns,
// no packet of it is between device and netstack. A moved filter of the
// connection ends, or of its client as a whole: whoever moves a client at once
// does not move its connections one by one.
func (s *Stack) HoldConn(t Tuple) (*Hold, error) {
	h := new(Hold)
	if err := s.StartHold(h, t); err != nil {
		return nil, err
	}
	return h, nil
}

// HoldClient keeps the packets of all connections of a client, present and
// future. When it returns, none of them is between device and netstack.
func (s *Stack) HoldClient(client netip.Addr) (*Hold, error) {
	return s.HoldConn(Tuple{Remote: netip.AddrPortFrom(client, 0)})
}

// StartHold is HoldConn with memory of the caller's: h must be new. A tuple
// with nothing but the remote address means HoldClient, and one with nothing at
// all every TCP packet.
func (s *Stack) StartHold(h *Hold, t Tuple) error {
	l := s.link
	h.link, h.tuple = l, t
	f := &l.filter
	f.deliver.Lock()
	defer f.deliver.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	// Moved entries give way: what they are about has come back. Those that
	// hold do not.
	client := t.Remote.Addr()
	var others []*Hold
	if f.all != nil {
		others = append(others, f.all)
	}
	if o := f.clients[client]; o != nil {
		others = append(others, o)
	}
	switch {
	case h.ofAll():
		others = slices.AppendSeq(others, maps.Values(f.clients))
		others = slices.AppendSeq(others, maps.Values(f.tuples))
	case h.ofClient():
		for t, o := range f.tuples {
			if t.Remote.Addr() == client {
				others = append(others, o)
			}
		}
	case f.tuples[t] != nil:
		others = append(others, f.tuples[t])
	}
	for _, o := range others {
		if o.holds() {
			return fmt.Errorf("%w: %s", ErrHeld, o)
		}
	}
	for _, o := range others {
		f.leave(o)
	}
	h.displaced = others
	f.enter(h)
	if l.acks != nil {
		h.mu.Lock()
		l.acks.take(h.covers, func(p []byte) { h.out.push(p, f.limit) })
		h.mu.Unlock()
	}
	return nil
}

// enter puts h into its table, leave takes it out if it is there. mu is held.
func (f *filter) enter(h *Hold) {
	switch {
	case h.ofAll():
		f.all = h
	case h.ofClient():
		f.clients[h.tuple.Remote.Addr()] = h
	default:
		f.tuples[h.tuple] = h
	}
	f.n.Add(1)
}

func (f *filter) leave(h *Hold) {
	switch {
	case f.all == h:
		f.all = nil
	case f.clients[h.tuple.Remote.Addr()] == h:
		delete(f.clients, h.tuple.Remote.Addr())
	case f.tuples[h.tuple] == h:
		delete(f.tuples, h.tuple)
	default:
		return
	}
	f.n.Add(-1)
}

// settle decides about the moved filters that gave way to h: they are back, or
// gone for good. mu is held.
func (f *filter) settle(h *Hold, back bool) {
	for _, o := range h.displaced {
		o.mu.Lock()
		switch {
		case o.done: // its grace is over
		case back:
			f.enter(o)
		default:
			f.remove(o)
		}
		o.mu.Unlock()
	}
	h.displaced = nil
}

// holds tells whether h keeps packets rather than forward them.
func (h *Hold) holds() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.forward == nil
}

// ofAll tells whether h is about every connection, ofClient whether it is about
// all of a client.
func (h *Hold) ofAll() bool { return h.tuple == Tuple{} }

func (h *Hold) ofClient() bool { return h.tuple.Remote.Port() == 0 }

// remove ends h. mu and h.mu are held.
func (f *filter) remove(h *Hold) {
	if h.done {
		return
	}
	h.done = true
	if h.expire != nil {
		h.expire.Stop()
	}
	f.leave(h)
}

// covers tells whether h is about the connection of an outbound packet.
func (h *Hold) covers(p []byte) bool {
	fl, ok := outboundFlow(p)
	return ok && (h.ofAll() || h.tuple == fl.tuple || h.ofClient() && h.tuple.Remote.Addr() == fl.tuple.Remote.Addr())
}

func (h *Hold) String() string {
	switch {
	case h.ofAll():
		return "everything"
	case h.ofClient():
		return "client " + h.tuple.Remote.Addr().String()
	}
	return h.tuple.String()
}

// Flush sends the outbound packets kept so far. They are from before the
// connections were stopped, which takes a moment longer than to hold their
// packets; the peer counts on them.
func (h *Hold) Flush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushLocked()
}

func (h *Hold) flushLocked() {
	if h.link.acks != nil { // those are older
		h.link.acks.take(h.covers, h.link.send)
	}
	for _, p := range h.out.take() {
		h.link.send(p)
	}
}

// Release ends the hold: the connections live here. It sends the outbound
// packets kept, then delivers first, in order, then the inbound packets kept,
// and only then what arrives from now on.
func (h *Hold) Release(first ...[]byte) { h.end(first, false, true) }

// Undo ends the hold as if it had never begun: it is Release, but moved filters
// that gave way to it are back.
func (h *Hold) Undo(first ...[]byte) { h.end(first, true, true) }

// Drop ends the hold of connections that do not live here after all. Moved
// filters that gave way to it are back and get the packets kept that concern
// them; nobody here sees the others.
func (h *Hold) Drop() { h.end(nil, true, false) }

func (h *Hold) end(first [][]byte, back, deliver bool) {
	f := &h.link.filter
	f.deliver.Lock()
	f.mu.Lock()
	h.mu.Lock()
	if h.done {
		h.mu.Unlock()
		f.mu.Unlock()
		f.deliver.Unlock()
		return
	}
	h.flushLocked() // before anybody else can send
	f.remove(h)
	in := h.in.take()
	h.mu.Unlock()
	f.settle(h, back)
	f.mu.Unlock()
	// First may be about several connections, whose holds end one by one: so
	// what still holds does not keep them.
	var away []func()
	for _, packets := range [][][]byte{first, in} {
		for _, p := range packets {
			switch forward := f.forwarder(p); {
			case forward != nil:
				h.link.fitting(p).each(func(p []byte) {
					if p = hop(p); p != nil {
						away = append(away, func() { forward(p) })
					}
				})
			case deliver:
				h.link.pass(arrived{p: p})
			}
		}
	}
	f.deliver.Unlock()
	for _, forward := range away {
		forward()
	}
}

// Copy gives f the inbound packets kept so far, and every later one when it is
// kept, until f returns false, which means that it does not take that one, or the
// hold ends or is told to forward. f is called with locks of the stack held, on the
// reading goroutine: it must not block, nor call the stack, nor keep what it gets.
func (h *Hold) Copy(f func(p []byte) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done || h.forward != nil {
		return
	}
	h.copy = f
	for _, p := range h.in.packets[h.copied:] {
		h.copyLocked(p)
	}
}

func (h *Hold) copyLocked(p []byte) {
	switch {
	case h.copy == nil:
	case h.copy(p):
		h.copied++
	default:
		h.copy = nil
	}
}

// Forward turns the hold into a moved filter: it returns the inbound packets
// kept so far, less those that Copy's function has taken, and every later one goes
// to forward, never to the netstack, so that nobody here answers for a connection that lives elsewhere. Outbound
// packets are dropped. forward gets a copy with one hop less to go; it is called
// on the reading goroutine, so it must not block; nil drops. The filter ends
// after grace (0 or less: at once), by the stack's clock, or when the
// connection is held here again.
func (h *Hold) Forward(forward func(p []byte), grace time.Duration) (late [][]byte) {
	f := &h.link.filter
	if forward == nil {
		forward = func([]byte) {}
	}
	f.deliver.Lock()
	defer f.deliver.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done {
		return nil
	}
	late = h.in.take()[h.copied:]
	h.out.take()
	h.forward, h.copy = forward, nil
	f.settle(h, false) // h knows better where they have moved
	if grace <= 0 {
		f.remove(h)
		return late
	}
	if h.expire != nil {
		h.expire.Stop()
	}
	h.expire = h.link.ns.Clock().AfterFunc(grace, h.stop)
	return late
}

// sentOn is a connection whose beginning was sent on, at first then.
type sentOn struct {
	tuple Tuple
	then  tcpip.MonotonicTime
}

// repeatTime is for how long what begins a connection goes where it went at first: it is
// repeated after one second and after three (RFC 6298), and two must not answer. By then
// nobody does there. maxSent is of how many connections of a client that is known.
var repeatTime = 5 * time.Second

const maxSent = 16

// elsewhere tells whether a connection is one that has begun elsewhere a moment ago. h.mu is
// held.
func (h *Hold) elsewhere(t Tuple) bool {
	i := slices.IndexFunc(h.sent, func(s sentOn) bool { return s.tuple == t })
	return i >= 0 && h.link.ns.Clock().NowMonotonic().Sub(h.sent[i].then) < repeatTime
}

// sendOn notes that the beginning of a connection is sent on, if it is one.
func (h *Hold) sendOn(p []byte) {
	t, ok := InboundTuple(p)
	if !ok || !begins(p) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if slices.ContainsFunc(h.sent, func(s sentOn) bool { return s.tuple == t }) {
		return
	}
	if len(h.sent) == maxSent {
		h.sent = slices.Delete(h.sent, 0, 1)
	}
	h.sent = append(h.sent, sentOn{t, h.link.ns.Clock().NowMonotonic()})
}

// AnswerNew has connections live here that a client begins which has moved, if here says
// so and what begins them has not come from a peer or by a binding: from a node that
// knows where the client is, and sends it here; nor if it was sent on a moment ago, for it may
// have been answered there. The client's moved filter is then about
// what does not live here. With the first connection the client is back: whatever it
// begins lives here, and what a peer sends is not sent on, for that knows the client to be
// here, and might send it back. Here is called on the reading goroutine, with locks of the
// stack held: it must not block, nor call the stack. AnswerNew is for the Forward of the
// client's Hold, until that ends; without one it does nothing.
func (s *Stack) AnswerNew(client netip.Addr, here func() bool) {
	f := &s.link.filter
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := f.clients[client]; h != nil && !h.holds() {
		h.mu.Lock()
		h.here = here
		h.mu.Unlock()
	}
}

// returned is that a client has begun a connection here. One that is being rebuilt does
// not count: it may yet stay where it was.
func (f *filter) returned(client netip.Addr) {
	if f.n.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.clients[client]
	if h == nil {
		return
	}
	for _, o := range append(h.displaced, h) {
		o.mu.Lock()
		o.back = o.here != nil
		o.mu.Unlock()
	}
}

// answers tells whether an inbound packet of connections that have moved is of one that
// lives here, or begins one that is to, or is for nobody else. here and back are of h.
func (h *Hold) answers(a arrived, here func() bool, back bool) bool {
	switch {
	case here == nil:
		return false
	case h.link.serves(a.p):
		return true
	case back:
		return a.late || begins(a.p)
	case a.late || a.direct || !begins(a.p) || !here():
		return false
	}
	t, _ := InboundTuple(a.p)
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.elsewhere(t)
}

// stop ends a moved filter whose grace is over.
func (h *Hold) stop() {
	f := &h.link.filter
	f.mu.Lock()
	h.mu.Lock()
	f.remove(h)
	h.mu.Unlock()
	f.mu.Unlock()
}

// Dropped is how many packets found the hold full, inbound and outbound.
func (h *Hold) Dropped() (in, out uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.in.dropped, h.out.dropped
}

// holder returns the entry that a packet concerns, nil if it passes.
func (f *filter) holder(p []byte, flowOf func([]byte) (flow, bool)) *Hold {
	if f.n.Load() == 0 {
		return nil
	}
	fl, ok := flowOf(p)
	if !ok {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(fl)
}

// forwarder returns where the moved filter sends an inbound packet, nil if none
// concerns it.
func (f *filter) forwarder(p []byte) func(p []byte) {
	h := f.holder(p, inboundFlow)
	if h == nil {
		return nil
	}
	h.mu.Lock()
	forward, here, back := h.forward, h.here, h.back
	h.mu.Unlock()
	if here != nil && (h.link.serves(p) || back && begins(p)) {
		return nil
	}
	return forward
}

// inbound decides about a packet from the device: taken means that it does not
// go to the netstack, forward, if not nil, that it goes there instead, cut up.
// deliver is held; forward must be called without it, since it may end in another stack's.
func (f *filter) inbound(a arrived) (taken bool, forward func(p []byte)) {
	h := f.holder(a.p, inboundFlow)
	if h == nil {
		return false, nil
	}
	h.mu.Lock()
	done, forward, here, back := h.done, h.forward, h.here, h.back
	if !done && forward == nil {
		a.each(func(p []byte) {
			if h.in.push(p, f.limit) {
				h.copyLocked(p)
			}
		})
	}
	h.mu.Unlock()
	if done || h.answers(a, here, back) {
		return false, nil
	}
	if here != nil {
		h.sendOn(a.p)
	}
	return true, forward
}

// outbound decides about a packet of the netstack.
func (f *filter) outbound(p []byte) (taken bool) {
	h := f.holder(p, outboundFlow)
	if h == nil {
		return false
	}
	h.mu.Lock()
	done, here := h.done, h.here
	if !done && h.forward == nil {
		h.out.push(p, f.limit)
	}
	h.mu.Unlock()
	if done || here == nil {
		return !done
	}
	fl, ok := outboundFlow(p)
	return !ok || !h.link.lives(fl.tuple)
}
