package rawip

import (
	"bytes"
	"encoding/binary"
)

// Super is a packet of a [Coalescer]. With a SegmentSize it is a TCP super-packet,
// whose segments have that many octets of data, the last perhaps fewer, and whose
// checksum is that of the pseudo-header alone; else a packet as it came.
type Super struct {
	Packet      []byte
	SegmentSize int
}

// Coalescer makes super-packets of the TCP segments of a batch, as receive offload
// does: what is cut again is what it was, to the octet. Then a batch costs the
// kernel hardly more than a packet, and its receiver fewer acknowledgements. The
// zero value is ready for use.
//
// Only segments with right checksums are joined: a wrong one must arrive wrong.
// The order within a connection is kept.
type Coalescer struct {
	held []joined
	free [][]byte
}

// maxHeld is how many connections' segments are joined at a time.
const maxHeld = 8

// joined are segments of a connection in a row.
type joined struct {
	b    []byte // as one packet, whose length fields are those of the first
	data int    // where the payload begins
	size int    // of a segment
	n    int    // segments
	next uint32 // sequence number
	done bool   // nothing can follow: the last segment was short, or has PSH
}

// Add takes a packet, of which it keeps a copy at most, and emits what is ready.
// What it emits is valid until emit returns.
func (c *Coalescer) Add(p []byte, emit func(Super)) {
	header, ok := plainTCP(p)
	if !ok {
		emit(Super{Packet: p})
		return
	}
	flow := -1
	for i := range c.held {
		if sameFlow(c.held[i].b, p) {
			flow = i
			break
		}
	}
	data := headerLen + header
	joinable := p[headerLen+tcpFlags]&^flagPSH == flagACK && len(p) > data &&
		fold(sum(pseudo(p, len(p)-headerLen, protoTCP), p[headerLen:])) == 0xffff
	if flow >= 0 {
		h := &c.held[flow]
		if joinable && h.takes(p, data) {
			h.take(p, data)
			return
		}
		c.emit(flow, emit)
	}
	if !joinable {
		emit(Super{Packet: p})
		return
	}
	if len(c.held) == maxHeld {
		c.emit(0, emit)
	}
	c.held = append(c.held, joined{
		b: append(c.buffer(), p...), data: data, size: len(p) - data, n: 1,
		next: binary.BigEndian.Uint32(p[headerLen+4:]) + uint32(len(p)-data),
		done: p[headerLen+tcpFlags]&flagPSH != 0,
	})
}

// Flush emits all that is left: the batch has ended.
func (c *Coalescer) Flush(emit func(Super)) {
	for len(c.held) > 0 {
		c.emit(0, emit)
	}
}

// plainTCP finds the length of the TCP header right behind the IPv6 header of a
// whole packet.
func plainTCP(p []byte) (header int, ok bool) {
	if len(p) < headerLen+tcpMinLen || p[0]>>4 != 6 || p[6] != protoTCP || int(binary.BigEndian.Uint16(p[4:])) != len(p)-headerLen {
		return 0, false
	}
	header = 4 * int(p[headerLen+12]>>4)
	return header, tcpMinLen <= header && headerLen+header <= len(p)
}

// sameFlow: addresses and ports.
func sameFlow(a, b []byte) bool {
	return bytes.Equal(a[8:headerLen+4], b[8:headerLen+4])
}

// takes reports whether p, with its data from there on, is the next segment: all
// that cutting would take from the first is the same.
func (h *joined) takes(p []byte, data int) bool {
	n := len(p) - data
	a, b := h.b[:h.data], p[:data]
	const length, hopLimit, ack, flags, window, sum = 4, 7, headerLen + 8, headerLen + tcpFlags, headerLen + 14, headerLen + 16
	return !h.done && data == h.data && n <= h.size && len(h.b)+n <= headerLen+maxPayload &&
		binary.BigEndian.Uint32(p[headerLen+4:]) == h.next &&
		bytes.Equal(a[:length], b[:length]) && a[hopLimit] == b[hopLimit] &&
		bytes.Equal(a[ack:flags], b[ack:flags]) && bytes.Equal(a[window:sum], b[window:sum]) && bytes.Equal(a[sum+2:], b[sum+2:])
}

func (h *joined) take(p []byte, data int) {
	n := len(p) - data
	h.b = append(h.b, p[data:]...)
	h.b[headerLen+tcpFlags] |= p[headerLen+tcpFlags] & flagPSH
	h.n++
	h.next += uint32(n)
	h.done = n < h.size || p[headerLen+tcpFlags]&flagPSH != 0
}

// emit emits what is held in place i.
func (c *Coalescer) emit(i int, emit func(Super)) {
	h := c.held[i]
	s := Super{Packet: h.b}
	if h.n > 1 {
		s.SegmentSize = h.size
		n := len(h.b) - headerLen
		binary.BigEndian.PutUint16(h.b[4:], uint16(n))
		binary.BigEndian.PutUint16(h.b[headerLen+16:], fold(pseudo(h.b, n, protoTCP)))
	}
	emit(s)
	c.free = append(c.free, h.b[:0])
	c.held = append(c.held[:i], c.held[i+1:]...)
}

func (c *Coalescer) buffer() []byte {
	if n := len(c.free); n > 0 {
		b := c.free[n-1]
		c.free = c.free[:n-1]
		return b
	}
	return make([]byte, 0, headerLen+maxPayload)
}
