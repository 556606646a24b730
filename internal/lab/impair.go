package lab

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/distributed-servers/ds/internal/impair"
)

// Impair is what one direction of a link does to packets.
type Impair = impair.Settings

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
	i := d.impair.Load()
	if i == nil && d.holding.Load() == 0 && d.queued.Load() == 0 {
		d.next(p)
		return
	}
	d.sendImpaired(p, i)
}

func (d *direction) sendImpaired(p packet, i *Impair) {
	fate := d.decide(i)
	if fate.Lost {
		d.note(Lost, p)
		return
	}
	if fate.Duplicated {
		d.note(Duplicated, p)
	}
	if fate.Overtake > 0 {
		d.note(Reordered, p)
	}
	now := d.net.clock.NowMonotonic()

	var direct [2 + impair.MaxOvertake]leaving // appended to, seldom more
	out := direct[:0]
	d.mu.Lock()
	if fate.Overtake == 0 {
		out = d.passLocked(out, p, now, fate.Jitter)
	}
	if fate.Duplicated {
		out = d.passLocked(out, p, now, fate.Jitter)
	}
	if fate.Overtake > 0 {
		h := &held{p, fate.Overtake, fate.Jitter}
		d.held = append(d.held, h)
		d.holding.Add(1)
		d.net.queue.add(now.Add(impair.MaxHold), func() { d.release(h) })
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

// decide draws a packet's fate.
func (d *direction) decide(i *Impair) (f impair.Fate) {
	if i == nil {
		return f
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return i.Draw(d.rand)
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
// the last of them.
func (d *direction) serialiseLocked(i *Impair, size int, now tcpip.MonotonicTime) (done tcpip.MonotonicTime, ok bool) {
	zero := tcpip.MonotonicTime{}
	at, ok := i.Serialise(now.Sub(zero), d.free.Sub(zero), size)
	done = zero.Add(at)
	if ok {
		d.free = done
	}
	return done, ok
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
