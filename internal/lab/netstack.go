package lab

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/distributed-servers/ds/tun"
)

var _ tun.Device = (*Device)(nil)

// Device is the link of a netstack on a [Host]. What netstack writes, from
// whatever goroutine, is collected until it is at rest, and then goes out in
// an order that does not depend on those goroutines: flow by flow. Nothing can
// be read: packets are injected into the stack.
type Device struct {
	host *Host
	mtu  int
	out  func(packet []byte)

	ns       *gstack.Stack // nil: none to wait for
	several  bool          // TCP processors: they may hand work to one another
	received uint64        // packets, when it was last at rest

	mu       sync.Mutex
	wake     sync.Cond
	sent     [][]byte
	closed   bool
	deadline time.Time
}

// Device returns a link of the given MTU for a netstack of the host. out takes
// what it sends, in the Sim's goroutine; nil means [Host.Send].
func (h *Host) Device(mtu int, out func(packet []byte)) *Device {
	if out == nil {
		out = h.Send
	}
	d := &Device{host: h, mtu: mtu, out: out}
	d.wake.L = &d.mu
	h.devices = append(h.devices, d)
	return d
}

// Watch names the netstack whose link the device is. From now on it processes
// TCP segments only when an event of the host has ended, and the next event
// comes when it has processed all.
func (d *Device) Watch(ns *gstack.Stack) {
	d.ns, d.several = ns, runtime.GOMAXPROCS(0) > 1
	ns.Pause()
}

// barrier returns when the netstack has processed what it has received.
// Segments are processed in goroutines, one per processor; one that has been
// paused has emptied its queue. All are paused while an event happens: else it
// would be a matter of luck which of the segments that it delivers are
// acknowledged together. And since they are paused one after the other, one can
// have got work from another (a new connection's from its listener, both ends
// of a connection within the stack) afterwards: then there is another round.
func (d *Device) barrier() {
	if d.ns == nil || d.isClosed() {
		return // the goroutines have ended with their stack
	}
	for {
		d.ns.Resume()
		d.ns.Pause()
		stats := d.ns.Stats()
		received := stats.IP.PacketsReceived.Value() + stats.TCP.ValidSegmentsReceived.Value()
		done := received == d.received || !d.several
		d.received = received
		if done {
			return
		}
	}
}

func (d *Device) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

// flush passes on what was written. It tells whether there was anything.
func (d *Device) flush() bool {
	d.mu.Lock()
	sent := d.sent
	d.sent = nil
	d.mu.Unlock()
	if len(sent) == 0 {
		return false
	}
	if len(sent) > 1 {
		sortFlows(sent)
	}
	for _, p := range sent {
		d.out(p)
	}
	return true
}

// Write implements [tun.Device].
func (d *Device) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, os.ErrClosed
	}
	d.sent = append(d.sent, bytes.Clone(p))
	return len(p), nil
}

// Read implements [tun.Device]. It waits until it fails.
func (d *Device) Read([]byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		switch {
		case d.closed:
			return 0, os.ErrClosed
		case !d.deadline.IsZero(): // the host's time is not the deadline's: it has passed
			return 0, os.ErrDeadlineExceeded
		}
		d.wake.Wait()
	}
}

// SetReadDeadline implements [tun.Device]. Every time but the zero one counts
// as past.
func (d *Device) SetReadDeadline(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	d.deadline = t
	d.wake.Broadcast()
	return nil
}

// Name implements [tun.Device].
func (d *Device) Name() string { return d.host.name }

// MTU implements [tun.Device].
func (d *Device) MTU() int { return d.mtu }

// Close implements [tun.Device]. It lets go of the netstack, whose goroutines
// can end then.
func (d *Device) Close() error {
	d.mu.Lock()
	closed := d.closed
	d.closed = true
	d.wake.Broadcast()
	d.mu.Unlock()
	if !closed && d.ns != nil {
		d.ns.Resume()
	}
	return nil
}

// sortFlows orders packets by flow and leaves those of one flow in order.
func sortFlows(packets [][]byte) {
	type keyed struct {
		key    [40]byte
		packet []byte
	}
	all := make([]keyed, len(packets))
	sorted := true
	for i, p := range packets {
		all[i] = keyed{flowKey(p), p}
		sorted = sorted && (i == 0 || bytes.Compare(all[i-1].key[:], all[i].key[:]) <= 0)
	}
	if sorted {
		return
	}
	slices.SortStableFunc(all, func(a, b keyed) int { return bytes.Compare(a.key[:], b.key[:]) })
	for i, k := range all {
		packets[i] = k.packet
	}
}

// flowKey is the protocol, the addresses and, for TCP and UDP, the ports of the
// innermost IP packet, behind the extension headers that mobility uses.
func flowKey(p []byte) (key [40]byte) {
	for len(p) >= 20 {
		var next byte
		switch {
		case p[0]>>4 == 6 && len(p) >= 40:
			copy(key[1:33], p[8:40])
			next, p = p[6], p[40:]
		case p[0]>>4 == 4 && len(p) >= int(p[0]&15)*4:
			copy(key[1:9], p[12:20])
			next, p = p[9], p[int(p[0]&15)*4:]
		default:
			return key
		}
		for (next == 0 || next == 43 || next == 60) && len(p) >= 8 && len(p) >= 8+8*int(p[1]) {
			next, p = p[0], p[8+8*int(p[1]):]
		}
		key[0] = next
		switch {
		case next == 41 || next == 4: // a tunnel: RFC 2473
			continue
		case (next == 6 || next == 17) && len(p) >= 4:
			binary.BigEndian.PutUint32(key[33:], binary.BigEndian.Uint32(p))
		}
		return key
	}
	return key
}
