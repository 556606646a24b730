package stack

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/distributed-servers/ds/tun"
)

// A packet's way out:
//
//	netstack ─► filter ─► shim ─────────────► device
//	              │         │
//	              │         └─ cut up, tunnel ─► device
//	              └─ cut up ─► a hold
//
// A super-packet goes it as it is where the device offloads segmentation, and
// its payload stays where the netstack has it. It is cut up here for a device
// that does not, for a tunnel, whose inner packets nobody below would cut up, and
// for a hold, which keeps packets.

// transmit is what a packet needs on its way out, to be used again.
type transmit struct {
	head  []byte   // the headers, behind shimHeadroom
	flat  []byte   // a whole packet, behind shimHeadroom
	parts [][]byte // what the device gets
}

// maxHeaders is more than the netstack puts before a segment.
const maxHeaders = 256

func newTransmit() any {
	return &transmit{
		head:  make([]byte, shimHeadroom, shimHeadroom+maxHeaders),
		flat:  make([]byte, shimHeadroom),
		parts: make([][]byte, 0, tun.MaxParts),
	}
}

func (l *link) getTransmit() *transmit { return l.transmits.Get().(*transmit) }

func (l *link) putTransmit(t *transmit) {
	clear(t.parts) // the memory is the netstack's
	t.parts = t.parts[:0]
	l.transmits.Put(t)
}

// WritePackets implements gstack.LinkWriter.
func (l *link) WritePackets(pkts gstack.PacketBufferList) (int, tcpip.Error) {
	t := l.getTransmit()
	for _, pkt := range pkts.AsSlice() {
		t.gather(pkt)
		l.transmit(t, pkt)
	}
	l.putTransmit(t)
	return pkts.Len(), nil
}

// gather lists the parts of a packet, of which the first has all of its headers.
func (t *transmit) gather(pkt *gstack.PacketBuffer) {
	t.parts = t.parts[:0]
	views, offset := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		p := v.AsSlice()
		if offset >= len(p) {
			offset -= len(p)
			continue
		}
		if len(t.parts) == tun.MaxParts-1 { // leaves one for the shim
			t.flatten()
		}
		t.parts = append(t.parts, p[offset:])
		offset = 0
	}
	if len(t.parts[0]) < pkt.HeaderSize() {
		t.flatten()
	}
}

// flatten makes one part of all, and returns it with shimHeadroom before it.
func (t *transmit) flatten() []byte {
	old := t.flat
	if len(t.parts) > 0 && len(old) > shimHeadroom && &t.parts[0][0] == &old[shimHeadroom] {
		// The first part is flat already.
		for _, p := range t.parts[1:] {
			t.flat = append(t.flat, p...)
		}
	} else {
		t.flat = t.flat[:shimHeadroom]
		for _, p := range t.parts {
			t.flat = append(t.flat, p...)
		}
	}
	t.parts = append(t.parts[:0], t.flat[shimHeadroom:])
	return t.flat
}

// transmit sends a packet of the netstack, which is in t.parts.
func (l *link) transmit(t *transmit, pkt *gstack.PacketBuffer) {
	var w way
	if l.shim != nil {
		w = l.shim.way(t.parts[0])
	}
	gso := &pkt.GSOOptions
	segment := gso.Type != gstack.GSONone // of TCP, or several, without checksum
	queue := 0
	if n := l.dev.Queues(); n > 1 {
		queue = int(pkt.Hash % uint32(n))
	}
	held := l.filter.holder(t.parts[0], outboundFlow) != nil
	if l.acks != nil && !held && l.acks.leaves(t.parts[0], len(t.parts) > 1, segment) {
		return
	}
	switch {
	case segment && (held || w.via != nil || !l.dev.Offloads()):
		l.transmitCut(t, queue, w, int(gso.MSS))
		return
	case held && l.filter.outbound(t.flatten()[shimHeadroom:]):
		return
	}
	var o tun.Offload
	added := 0
	if w != (way{}) {
		before := len(t.parts[0])
		if !t.translate(l.shim, w, min(before, max(pkt.HeaderSize(), ip6Size))) {
			return
		}
		added = homeOptionSize // of what has an Offload
	}
	if segment {
		o = tun.Offload{
			Partial: true, SumAt: gso.L3HdrLen + uint16(added), SumOffset: gso.CsumOffset,
			HeaderSize: uint16(pkt.HeaderSize() + added),
		}
		if pkt.Data().Size() > int(gso.MSS) {
			o.SegmentSize = gso.MSS
		}
	}
	l.dev.WritePacket(queue, o, t.parts)
}

// translate makes of the packet in t.parts, with headers octets of headers, what
// the shim sends. It returns false if that is nothing.
func (t *transmit) translate(s *shim, w way, headers int) bool {
	first := t.parts[0]
	rest := len(first) - headers
	for _, p := range t.parts[1:] {
		rest += len(p)
	}
	t.head = append(t.head[:shimHeadroom], first[:headers]...)
	q := s.translate(w, t.head, rest)
	if q == nil {
		return false
	}
	t.parts[0] = q
	if headers < len(first) {
		t.parts = append(t.parts, nil)
		copy(t.parts[2:], t.parts[1:])
		t.parts[1] = first[headers:]
	}
	return true
}

// transmitCut sends the segments of the super-packet in t.parts, each through the
// filter.
func (l *link) transmitCut(t *transmit, queue int, w way, mss int) {
	var g segmenter
	if !g.start(t.flatten(), mss) {
		return
	}
	for b := g.next(); b != nil; b = g.next() {
		if !l.filter.outbound(b[shimHeadroom:]) {
			l.transmitFlat(t, queue, w, b)
		}
	}
}

// transmitFlat sends the packet at b[shimHeadroom:]. It uses it up.
func (l *link) transmitFlat(t *transmit, queue int, w way, b []byte) {
	p := b[shimHeadroom:]
	if w != (way{}) {
		if p = l.shim.translate(w, b, 0); p == nil {
			return
		}
	}
	t.parts = append(t.parts[:0], p)
	// A device that fails is a link that loses packets: TCP copes or times out.
	l.dev.WritePacket(queue, tun.Offload{}, t.parts)
}

// send sends a packet that a hold has kept, past the filter.
func (l *link) send(p []byte) {
	t := l.getTransmit()
	t.flat = append(t.flat[:shimHeadroom], p...)
	var w way
	if l.shim != nil {
		w = l.shim.way(p)
	}
	l.transmitFlat(t, 0, w, t.flat)
	l.putTransmit(t)
}

// sendRaw sends a packet past filter and shim.
func (l *link) sendRaw(p []byte) {
	t := l.getTransmit()
	t.parts = append(t.parts, p)
	l.dev.WritePacket(0, tun.Offload{}, t.parts)
	l.putTransmit(t)
}

// GSOMaxSize and SupportedGSO implement gstack.GSOEndpoint. To the netstack the
// link looks like a host that cuts super-packets up.

func (l *link) GSOMaxSize() uint32 { return uint32(l.superPacket) }

func (l *link) SupportedGSO() gstack.SupportedGSO {
	if l.superPacket == 0 {
		return gstack.GSONotSupported
	}
	return gstack.HostGSOSupported
}

var _ gstack.GSOEndpoint = (*link)(nil)

// How many segments super-packets have. Netstack takes one of which a segment is
// lost for lost as a whole; but where much is lost its window is smaller than
// that, so that no size is worse than none at a loss of 1 in 10 000, 1000 or 100
// (BenchmarkLossySuper).
const (
	// superSegments is for those that we cut up ourselves. Six take most of the
	// gain (BenchmarkBulk), and come out in small bursts.
	superSegments = 6
	// offloadSegments is for those that the kernel or a network interface cuts
	// up, or nobody at all: as many as an IP packet has room for.
	offloadSegments = 64
)

// superPacketSize is the size of the super-packets of a link, 0 if it is better
// without.
func superPacketSize(mtu, segments int) int {
	// What netstack reserves for headers, and what it puts into a segment with
	// SACK, in IPv6: all segments should be full.
	const reserved = header.TCPTotalHeaderMaximumSize + 1
	payload := mtu - ip6Size - header.TCPHeaderMaximumSize
	if payload <= 0 {
		return 0
	}
	if segments = min(segments, (0xffff-reserved)/payload); segments < 2 {
		return 0
	}
	return reserved + segments*payload
}
