package lab

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Impair is what one direction of a link does to packets. The zero value does
// nothing. Probabilities are 0 to 1.
type Impair struct {
	Loss      float64 // probability that a packet is dropped
	Duplicate float64 // probability that it is sent twice
	Reorder   float64 // probability that 1 to 8 later ones overtake it

	Delay  time.Duration // time on the link
	Jitter time.Duration // more of it: uniform from 0 up to this; it keeps the order

	// Bandwidth is how many octets a second the link takes; 0 means any
	// number. Packets wait for it in a queue of Queue octets, 0 meaning
	// DefaultLinkQueue; one that finds no room is dropped.
	Bandwidth int
	Queue     int
}

// DefaultLinkQueue is the default of Impair.Queue: 64 KiB, some forty full
// packets.
const DefaultLinkQueue = 64 << 10

// A packet that is held back goes when as many have overtaken it as was drawn,
// at most maxOvertake, or when maxHold has passed: the last packet of a
// conversation is not stuck.
const (
	maxOvertake = 8 // a power of two
	maxHold     = 5 * time.Millisecond
)

// direction is one way along a link.
type direction struct {
	net    *Net
	port   *Port
	next   func(packet)
	impair atomic.Pointer[Impair] // nil: none

	// holding and queued count packets that wait here and in the delay queue.
	// While there are any, no packet may take the short way past them.
	holding, queued atomic.Int32

	mu   sync.Mutex
	rand *rand.Rand
	held []*held
	free tcpip.MonotonicTime // when the line has taken all that was sent
	last tcpip.MonotonicTime // when the latest packet leaves the link
}

// leaving is a packet that leaves the link at once, or found its queue full.
type leaving struct {
	packet
	overflow bool
}

type held struct {
	packet
	overtake int // so many packets go first
	jitter   time.Duration
}

func (d *direction) init(n *Net, p *Port, next func(packet), r *rand.Rand) {
	d.net, d.port, d.next, d.rand = n, p, next, r
}

func (d *direction) set(i Impair) {
	if i == (Impair{}) {
		d.impair.Store(nil)
		return
	}
	d.impair.Store(&i)
}

func (d *direction) send(p packet) {
	if d.port.down.Load() {
		d.note(Down, p)
		return
	}
	impair := d.impair.Load()
	if impair == nil && d.holding.Load() == 0 && d.queued.Load() == 0 {
		d.next(p)
		return
	}
	d.sendImpaired(p, impair)
}

func (d *direction) sendImpaired(p packet, impair *Impair) {
	fate := d.decide(impair)
	if fate.lost {
		d.note(Lost, p)
		return
	}
	if fate.duplicated {
		d.note(Duplicated, p)
	}
	if fate.overtake > 0 {
		d.note(Reordered, p)
	}
	now := d.net.clock.NowMonotonic()

	var direct [2 + maxOvertake]leaving // appended to, seldom more
	out := direct[:0]
	d.mu.Lock()
	if fate.overtake == 0 {
		out = d.passLocked(out, p, now, fate.jitter)
	}
	if fate.duplicated {
		out = d.passLocked(out, p, now, fate.jitter)
	}
	if fate.overtake > 0 {
		h := &held{p, fate.overtake, fate.jitter}
		d.held = append(d.held, h)
		d.holding.Add(1)
		d.net.queue.add(now.Add(maxHold), func() { d.release(h) })
	}
	d.mu.Unlock()
	d.leave(out)
}

// leave carries on what leaves the link, without the lock: taps may use the
// network.
func (d *direction) leave(out []leaving) {
	for _, p := range out {
		switch {
		case p.overflow:
			d.note(Overflowed, p.packet)
		case d.port.down.Load():
			d.note(Down, p.packet)
		default:
			d.next(p.packet)
		}
	}
}

type fate struct {
	lost, duplicated bool
	overtake         int // 0: not held back
	jitter           time.Duration
}

// decide draws the same number of variates for each packet, so that changing
// one impairment leaves the other decisions as they are.
func (d *direction) decide(i *Impair) (f fate) {
	if i == nil {
		return f
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f.lost = d.rand.Float64() < i.Loss
	f.duplicated = d.rand.Float64() < i.Duplicate
	reorder := d.rand.Float64() < i.Reorder
	if n := 1 + int(d.rand.Uint64()%maxOvertake); reorder {
		f.overtake = n
	}
	f.jitter = time.Duration(d.rand.Float64() * float64(i.Jitter))
	return f
}

func (d *direction) note(v Verdict, p packet) {
	to := d.port
	if d == &to.upward {
		to = nil
	}
	d.net.note(v, p, to)
}

// passLocked puts p on the link, and behind it what it was the last to
// overtake. It appends to out what leaves the link at once.
func (d *direction) passLocked(out []leaving, p packet, now tcpip.MonotonicTime, jitter time.Duration) []leaving {
	out = d.delayLocked(out, p, now, jitter)
	kept := d.held[:0]
	for _, h := range d.held {
		if h.overtake--; h.overtake > 0 {
			kept = append(kept, h)
			continue
		}
		d.holding.Add(-1)
		out = d.delayLocked(out, h.packet, now, h.jitter)
	}
	clear(d.held[len(kept):])
	d.held = kept
	return out
}

func (d *direction) delayLocked(out []leaving, p packet, now tcpip.MonotonicTime, jitter time.Duration) []leaving {
	at := now
	if i := d.impair.Load(); i != nil {
		if i.Bandwidth > 0 {
			var ok bool
			if at, ok = d.serialiseLocked(i, len(p.b), now); !ok {
				return append(out, leaving{p, true})
			}
		}
		at = at.Add(i.Delay + jitter)
	}
	if at.Before(d.last) {
		at = d.last
	}
	d.last = at
	if !at.After(now) && d.queued.Load() == 0 {
		return append(out, leaving{p, false})
	}
	d.queued.Add(1)
	d.net.queue.add(at, func() {
		d.leave([]leaving{{p, false}})
		d.queued.Add(-1)
	})
	return out
}

// serialiseLocked queues size octets for the line and says when it has taken
// the last of them. An idle line takes a packet of any size.
func (d *direction) serialiseLocked(i *Impair, size int, now tcpip.MonotonicTime) (done tcpip.MonotonicTime, ok bool) {
	limit := i.Queue
	if limit == 0 {
		limit = DefaultLinkQueue
	}
	if d.free.Before(now) {
		d.free = now
	}
	waiting := d.free.Sub(now).Seconds() * float64(i.Bandwidth)
	if waiting > 0 && waiting+float64(size) > float64(limit) {
		return now, false
	}
	d.free = d.free.Add(time.Duration(float64(size) / float64(i.Bandwidth) * float64(time.Second)))
	return d.free, true
}

// release ends the hold of h, unless enough packets have overtaken it.
func (d *direction) release(h *held) {
	d.mu.Lock()
	i := slices.Index(d.held, h)
	if i < 0 {
		d.mu.Unlock()
		return
	}
	d.held = slices.Delete(d.held, i, i+1)
	d.holding.Add(-1)
	out := d.delayLocked(nil, h.packet, d.net.clock.NowMonotonic(), h.jitter)
	d.mu.Unlock()
	d.leave(out)
}

// delayQueue runs functions when they are due, one after the other, in the
// order of their times and, for equal ones, of their arrival.
type delayQueue struct {
	clock tcpip.Clock

	mu      sync.Mutex
	timer   tcpip.Timer
	armed   bool
	armedAt tcpip.MonotonicTime
	running bool
	closed  bool
	seq     uint64
	waiting waiting
}

type waiter struct {
	at  tcpip.MonotonicTime
	seq uint64
	f   func()
}

func (q *delayQueue) add(at tcpip.MonotonicTime, f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.seq++
	heap.Push(&q.waiting, waiter{at, q.seq, f})
	if !q.running {
		q.armLocked()
	}
}

// armLocked makes the timer fire for the first waiter. It may also fire for an
// earlier one that has gone; run then finds nothing to do.
func (q *delayQueue) armLocked() {
	if len(q.waiting) == 0 {
		return
	}
	at := q.waiting[0].at
	if q.armed && !at.Before(q.armedAt) {
		return
	}
	q.armed, q.armedAt = true, at
	wait := max(at.Sub(q.clock.NowMonotonic()), 0)
	if q.timer == nil {
		q.timer = q.clock.AfterFunc(wait, q.run)
		return
	}
	q.timer.Stop()
	q.timer.Reset(wait)
}

func (q *delayQueue) run() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running {
		return // a late call of a timer that was reset
	}
	q.armed = false
	q.running = true
	for len(q.waiting) > 0 && !q.waiting[0].at.After(q.clock.NowMonotonic()) {
		w := heap.Pop(&q.waiting).(waiter)
		q.mu.Unlock()
		w.f()
		q.mu.Lock()
	}
	q.running = false
	if !q.closed {
		q.armLocked()
	}
}

func (q *delayQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.waiting = nil
	if q.timer != nil {
		q.timer.Stop()
	}
}

// waiting is a heap.
type waiting []waiter

func (w waiting) Len() int { return len(w) }
func (w waiting) Less(i, j int) bool {
	if w[i].at != w[j].at {
		return w[i].at.Before(w[j].at)
	}
	return w[i].seq < w[j].seq
}
func (w waiting) Swap(i, j int) { w[i], w[j] = w[j], w[i] }
func (w *waiting) Push(x any)   { *w = append(*w, x.(waiter)) }
func (w *waiting) Pop() any {
	old := *w
	last := old[len(old)-1]
	old[len(old)-1] = waiter{}
	*w = old[:len(old)-1]
	return last
}
