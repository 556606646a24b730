// Package tuntest is the in-memory twin of package tun: links that need no
// kernel and no privilege.
package tuntest

import (
	"os"
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
	in   *reader
}

// NewEnd returns an end whose writes go to out.
func NewEnd(name string, mtu int, out func(p []byte)) *End {
	return &End{Out: out, name: name, mtu: mtu, in: newReader()}
}

// Dup returns e as another process has it that was passed the descriptor of a
// TUN: each packet is read by the first of them that reads, the read deadline
// and Close are its own, and what it writes goes to its own Out, at first that
// of e. Packets wait as long as one of them is open.
func (e *End) Dup() *End { return &End{Out: e.Out, name: e.name, mtu: e.mtu, in: e.in.dup()} }

// Deliver queues p, which it keeps, for Read. It never blocks: when
// [DefaultQueue] packets wait, or after Close, it drops p.
func (e *End) Deliver(p []byte) { e.in.push(Packet{Data: p}) }

// Read implements [tun.Device].
func (e *End) Read(p []byte) (int, error) {
	packet, err := e.in.pop(true)
	return copy(p, packet.Data), err
}

// Write implements [tun.Device].
func (e *End) Write(p []byte) (int, error) {
	if e.in.isClosed() {
		return 0, os.ErrClosed
	}
	if e.Out != nil {
		e.Out(append([]byte(nil), p...))
	}
	return len(p), nil
}

// SetReadDeadline implements [tun.Device].
func (e *End) SetReadDeadline(t time.Time) error { return e.in.setDeadline(t) }

// Drops is how many packets found the queue full or the end closed.
func (e *End) Drops() uint64 { return e.in.dropped() }

// Name implements [tun.Device].
func (e *End) Name() string { return e.name }

// MTU implements [tun.Device].
func (e *End) MTU() int { return e.mtu }

// Close implements [tun.Device]. Packets still queued are dropped, unless a [End.Dup] is open.
func (e *End) Close() error {
	e.in.close()
	return nil
}
