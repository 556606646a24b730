// Package tuntest is the in-memory twin of package tun: links that need no
// kernel and no privilege.
package tuntest

import (
	"os"
	"sync"
	"time"
)

// DefaultQueue is how many packets an [End] keeps for its reader before it
// drops; a Linux TUN keeps 500 by default, and netstack sends whole windows
// at once.
const DefaultQueue = 8192

// Pair returns the two ends of a perfect link: what one end writes the other
// reads, in order. mtu is in octets.
func Pair(mtu int) (a, b *End) {
	a, b = NewEnd("mem0", mtu, nil), NewEnd("mem1", mtu, nil)
	a.Out = b.Deliver
	b.Out = a.Deliver
	return a, b
}

// End is one end of an in-memory link. It implements [tun.Device]: Read takes
// from its queue, which Deliver fills; Write hands the packet to Out.
type End struct {
	// Out receives what is written. It may keep the slice, which is its own
	// copy. It is set before the first Write; nil drops everything.
	Out func(p []byte)

	name string
	mtu  int

	mu       sync.Mutex
	queue    [][]byte // a ring would save little: appended, popped from head
	head     int
	closed   bool
	deadline time.Time
	timer    *time.Timer
	wake     sync.Cond
	drops    uint64
}

// NewEnd returns an end whose writes go to out.
func NewEnd(name string, mtu int, out func(p []byte)) *End {
	e := &End{Out: out, name: name, mtu: mtu}
	e.wake.L = &e.mu
	return e
}

// Deliver queues p, which it keeps, for Read. It never blocks: when
// [DefaultQueue] packets wait, or after Close, it drops p.
func (e *End) Deliver(p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.queue)-e.head >= DefaultQueue {
		e.drops++
		return
	}
	if e.head > 0 && len(e.queue) == cap(e.queue) {
		n := copy(e.queue, e.queue[e.head:])
		clear(e.queue[n:])
		e.queue, e.head = e.queue[:n], 0
	}
	e.queue = append(e.queue, p)
	e.wake.Signal()
}

// Read implements [tun.Device].
func (e *End) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		switch {
		case e.closed:
			return 0, os.ErrClosed
		case !e.deadline.IsZero() && !time.Now().Before(e.deadline):
			return 0, os.ErrDeadlineExceeded
		case e.head < len(e.queue):
			n := copy(p, e.queue[e.head])
			e.queue[e.head] = nil
			e.head++
			if e.head == len(e.queue) {
				e.queue, e.head = e.queue[:0], 0
			}
			return n, nil
		}
		e.wake.Wait()
	}
}

// Write implements [tun.Device].
func (e *End) Write(p []byte) (int, error) {
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return 0, os.ErrClosed
	}
	if e.Out != nil {
		e.Out(append([]byte(nil), p...))
	}
	return len(p), nil
}

// SetReadDeadline implements [tun.Device].
func (e *End) SetReadDeadline(t time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return os.ErrClosed
	}
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	e.deadline = t
	if !t.IsZero() {
		e.timer = time.AfterFunc(time.Until(t), e.wakeAll)
	}
	e.wake.Broadcast()
	return nil
}

func (e *End) wakeAll() {
	e.mu.Lock()
	e.wake.Broadcast()
	e.mu.Unlock()
}

// Drops is how many packets found the queue full or the end closed.
func (e *End) Drops() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.drops
}

// Name implements [tun.Device].
func (e *End) Name() string { return e.name }

// MTU implements [tun.Device].
func (e *End) MTU() int { return e.mtu }

// Close implements [tun.Device]. Packets still queued are dropped.
func (e *End) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	e.queue = nil
	e.head = 0
	if e.timer != nil {
		e.timer.Stop()
	}
	e.wake.Broadcast()
	return nil
}
