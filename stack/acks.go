package stack

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The netstack acknowledges each batch of segments at once. When the application
// answers, as it does to most small requests, the answer acknowledges too, some
// microseconds later, and the packet was for nothing: a third of all in a
// conversation of requests and answers, and of the work of both kernels. So the
// link keeps an acknowledgement of something small for a moment (RFC 9293
// §3.8.6.3 allows half a second): ackDelay, or until anything else of its
// connection goes out, which it is left out for. One that is not alone, such as
// of a stream of small segments, goes out with the next.
type ackKeeper struct {
	link  *link
	seed  maphash.Seed
	kept  atomic.Int32 // in all slots; 0 is the fast path
	armed atomic.Bool  // the timer runs
	slots [ackSlots]ackSlot

	mu      sync.Mutex
	timer   tcpip.Timer
	stopped bool
}

// ackSlot is for the connections of one hash.
type ackSlot struct {
	small atomic.Bool // something small has arrived since

	mu     sync.Mutex
	size   int // of the packet; 0: none
	worth  worth
	packet [ip6Size + header.TCPHeaderMaximumSize]byte
}

const (
	ackSlots = 256
	// ackDelay is long for an application to answer, and short for a peer that
	// waits for the acknowledgement to send more (Nagle's algorithm).
	ackDelay = 5 * time.Millisecond
	// smallSize is the payload of a segment that may be a request.
	smallSize = 1000
)

func newAckKeeper(l *link) *ackKeeper { return &ackKeeper{link: l, seed: maphash.MakeSeed()} }

// tcpAt is where the TCP header of a packet without extension headers begins, 0
// if it has none.
func tcpAt(p []byte) int {
	at := ip6Size
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0] == 0x45 && p[9] == nextTCP:
		at = header.IPv4MinimumSize
	case len(p) < ip6Size || p[0]>>4 != 6 || p[6] != nextTCP:
		return 0
	}
	if len(p) < at+header.TCPMinimumSize {
		return 0
	}
	return at
}

// slot finds that of a connection by its ports and the peer's address.
func (k *ackKeeper) slot(local, remote, peer []byte) *ackSlot {
	var key [20]byte
	copy(key[copy(key[:], peer):], local)
	copy(key[18:], remote)
	return &k.slots[maphash.Bytes(k.seed, key[:])%ackSlots]
}

// peerOf returns the address of the peer in an IP header, whose destination it is
// if the packet goes out.
func peerOf(p []byte, out bool) []byte {
	switch v6 := p[0]>>4 == 6; {
	case v6 && out:
		return p[24:40]
	case v6:
		return p[8:24]
	case out:
		return p[16:20]
	}
	return p[12:16]
}

// arrived notes a packet for the netstack.
func (k *ackKeeper) arrived(p []byte) {
	at := tcpAt(p)
	if at == 0 {
		return
	}
	t := header.TCP(p[at:])
	size := len(t) - int(t.DataOffset())
	if size >= smallSize || size <= 0 && !t.Flags().Contains(header.TCPFlagFin) {
		return
	}
	k.slot(p[at+2:at+4], p[at:at+2], peerOf(p, false)).small.Store(true)
}

// leaves takes a packet of the netstack, of which p has all headers, and of
// which more may follow; partial means that its checksum is. It returns true if
// it keeps it.
func (k *ackKeeper) leaves(p []byte, more, partial bool) bool {
	at := tcpAt(p)
	if at == 0 {
		return false
	}
	s := k.slot(p[at:at+2], p[at+2:at+4], peerOf(p, true))
	t := header.TCP(p[at:])
	n := at + int(t.DataOffset())
	only := !more && n == len(p) && n <= len(s.packet) && t.Flags() == header.TCPFlagAck && !hasSACK(t)
	if !only && k.kept.Load() == 0 {
		return false
	}
	small := only && s.small.Swap(false)
	s.mu.Lock()
	before := s.size > 0 && s.of(p, at)
	if before {
		s.size = 0
		k.kept.Add(-1)
	}
	keep := small && !before && s.size == 0
	if keep {
		s.size = copy(s.packet[:], p)
		s.worth = worth{partial: partial}
		k.kept.Add(1)
	}
	s.mu.Unlock()
	if keep {
		k.arm()
	}
	return keep
}

// of tells whether what is kept is of the connection of a packet. mu is held.
func (s *ackSlot) of(p []byte, at int) bool {
	q := s.packet[:s.size]
	addresses := q[8:40]
	if at != ip6Size {
		addresses = q[12:20]
	}
	return q[0]>>4 == p[0]>>4 && bytes.Equal(addresses, p[at-len(addresses):at]) &&
		binary.NativeEndian.Uint32(q[at:]) == binary.NativeEndian.Uint32(p[at:])
}

// hasSACK tells whether there are options beside timestamps: such an
// acknowledgement says more.
func hasSACK(t header.TCP) bool {
	const timestamps = header.TCPMinimumSize + header.TCPOptionTSLength + 2
	n := int(t.DataOffset())
	return n != header.TCPMinimumSize && (n != timestamps || t[header.TCPMinimumSize+2] != header.TCPOptionTS)
}

// arm starts the timer, unless it runs.
func (k *ackKeeper) arm() {
	if k.armed.Swap(true) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.stopped:
	case k.timer == nil:
		k.timer = k.link.ns.Clock().AfterFunc(ackDelay, k.expire)
	default:
		k.timer.Reset(ackDelay)
	}
}

// expire sends what is kept, through the filter.
func (k *ackKeeper) expire() {
	k.armed.Store(false)
	k.take(func([]byte) bool { return true }, func(p []byte) {
		if !k.link.filter.outbound(p) {
			k.link.send(p)
		}
	})
}

// take gives those that match to f, and forgets them.
func (k *ackKeeper) take(match func(p []byte) bool, f func(p []byte)) {
	if k.kept.Load() == 0 {
		return
	}
	for i := range k.slots {
		s := &k.slots[i]
		var a arrived
		s.mu.Lock()
		if s.size > 0 && match(s.packet[:s.size]) {
			a = arrived{bytes.Clone(s.packet[:s.size]), s.worth}
			s.size = 0
			k.kept.Add(-1)
		}
		s.mu.Unlock()
		if a.p != nil {
			a.each(f)
		}
	}
}

func (k *ackKeeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	if k.timer != nil {
		k.timer.Stop()
	}
}
