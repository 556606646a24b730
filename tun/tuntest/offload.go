package tuntest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/distributed-servers/ds/tun"
)

// OffloadPair returns the two ends of a perfect link that offloads segmentation
// and checksums and has a number of queues: what one end writes to a queue, the
// other reads from the same one, super-packets whole.
func OffloadPair(mtu, queues int) (a, b *OffloadEnd) {
	a, b = NewOffloadEnd("mem0", mtu, queues, nil), NewOffloadEnd("mem1", mtu, queues, nil)
	a.Out = b.Deliver
	b.Out = a.Deliver
	return a, b
}

// OffloadEnd is an [End] with offloads and queues. It implements
// [tun.OffloadDevice].
type OffloadEnd struct {
	// Out receives what is written, and the queue. It may keep the packet,
	// which is its own copy. It is set before the first write; nil drops
	// everything.
	Out func(queue int, p Packet)

	name string
	mtu  int
	in   []*reader
}

var _ tun.OffloadDevice = (*OffloadEnd)(nil)

// NewOffloadEnd returns an end whose writes go to out.
func NewOffloadEnd(name string, mtu, queues int, out func(queue int, p Packet)) *OffloadEnd {
	e := &OffloadEnd{Out: out, name: name, mtu: mtu, in: make([]*reader, queues)}
	for i := range e.in {
		e.in[i] = newReader()
	}
	return e
}

// Deliver queues p, whose data it keeps, for ReadPacket. It drops like
// [End.Deliver].
func (e *OffloadEnd) Deliver(queue int, p Packet) { e.in[queue].push(p) }

// Queues implements [tun.OffloadDevice].
func (e *OffloadEnd) Queues() int { return len(e.in) }

// Offloads implements [tun.OffloadDevice].
func (e *OffloadEnd) Offloads() bool { return true }

// ReadPacket implements [tun.OffloadDevice].
func (e *OffloadEnd) ReadPacket(queue int, b []byte, wait bool) ([]byte, tun.Offload, error) {
	p, err := e.in[queue].pop(wait)
	if err != nil || p.Data == nil {
		return nil, tun.Offload{}, err
	}
	return b[:copy(b, p.Data)], p.Offload, nil
}

// WritePacket implements [tun.OffloadDevice].
func (e *OffloadEnd) WritePacket(queue int, o tun.Offload, parts [][]byte) error {
	switch {
	case e.in[queue].isClosed():
		return os.ErrClosed
	case len(parts) == 0 || len(parts) > tun.MaxParts || len(parts[0]) < 20:
		return fmt.Errorf("tuntest: write: %d parts without an IP header in the first, or too many", len(parts))
	}
	if e.Out != nil {
		e.Out(queue, Packet{Data: bytes.Join(parts, nil), Offload: o})
	}
	return nil
}

// Read implements [tun.Device] by failing.
func (e *OffloadEnd) Read([]byte) (int, error) {
	return 0, errors.New("tuntest: read: with offloads it takes ReadPacket")
}

// Write implements [tun.Device].
func (e *OffloadEnd) Write(p []byte) (int, error) {
	if err := e.WritePacket(0, tun.Offload{}, [][]byte{p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetReadDeadline implements [tun.Device], for all queues.
func (e *OffloadEnd) SetReadDeadline(t time.Time) error {
	for i := range e.in {
		if err := e.in[i].setDeadline(t); err != nil {
			return err
		}
	}
	return nil
}

// Drops is how many packets found a queue full or the end closed.
func (e *OffloadEnd) Drops() (n uint64) {
	for i := range e.in {
		n += e.in[i].dropped()
	}
	return n
}

// Name implements [tun.Device].
func (e *OffloadEnd) Name() string { return e.name }

// MTU implements [tun.Device].
func (e *OffloadEnd) MTU() int { return e.mtu }

// Close implements [tun.Device].
func (e *OffloadEnd) Close() error {
	for i := range e.in {
		e.in[i].close()
	}
	return nil
}

// Wire makes of a packet what goes on a wire: its segments, if it is a
// super-packet, with whole checksums. It is what a kernel does with what a TUN
// gives it, written from the RFCs rather than for speed. The transport must
// begin where Offload.SumAt says.
func (p Packet) Wire() ([][]byte, error) {
	o := p.Offload
	if !o.Partial {
		if o.SegmentSize != 0 {
			return nil, errors.New("tuntest: wire: a super-packet whose checksum is not partial")
		}
		return [][]byte{p.Data}, nil
	}
	at := int(o.SumAt)
	if len(p.Data) < at+int(o.SumOffset)+2 {
		return nil, errors.New("tuntest: wire: the checksum is outside of the packet")
	}
	if o.SegmentSize == 0 {
		q := slices.Clone(p.Data)
		binary.BigEndian.PutUint16(q[at+int(o.SumOffset):], ^fold(sum(q[at:])))
		return [][]byte{q}, nil
	}
	const tcpSize, tcpSum = 20, 16
	if len(p.Data) < at+tcpSize || o.SumOffset != tcpSum {
		return nil, errors.New("tuntest: wire: a super-packet that is not TCP")
	}
	header := at + int(p.Data[at+12]>>4)*4
	if header < at+tcpSize || len(p.Data) <= header || int(o.HeaderSize) != header {
		return nil, fmt.Errorf("tuntest: wire: a super-packet of %d octets, its headers end at %d, not at %d", len(p.Data), header, o.HeaderSize)
	}
	payload := p.Data[header:]
	sequence := binary.BigEndian.Uint32(p.Data[at+4:])
	// The length in the partial sum is that of the whole; each has its own.
	pseudo := fold(sum(p.Data[at+tcpSum:at+tcpSum+2]) + uint32(^uint16(len(p.Data)-at)))
	var segments [][]byte
	for i, data := range slices.Collect(slices.Chunk(payload, int(o.SegmentSize))) {
		q := append(slices.Clone(p.Data[:header]), data...)
		tcp := q[at:]
		binary.BigEndian.PutUint32(tcp[4:], sequence+uint32(i*int(o.SegmentSize)))
		const fin, psh, cwr = 1, 8, 0x80
		if i > 0 {
			tcp[13] &^= cwr
		}
		if (i+1)*int(o.SegmentSize) < len(payload) {
			tcp[13] &^= fin | psh
		}
		tcp[tcpSum], tcp[tcpSum+1] = 0, 0
		binary.BigEndian.PutUint16(tcp[tcpSum:], ^fold(sum(tcp)+uint32(pseudo)+uint32(len(tcp))))
		if q[0]>>4 == 6 {
			binary.BigEndian.PutUint16(q[4:], uint16(len(q)-40))
		} else {
			binary.BigEndian.PutUint16(q[2:], uint16(len(q)))
			binary.BigEndian.PutUint16(q[4:], binary.BigEndian.Uint16(q[4:])+uint16(i))
			q[10], q[11] = 0, 0
			binary.BigEndian.PutUint16(q[10:], ^fold(sum(q[:int(q[0]&0xf)*4])))
		}
		segments = append(segments, q)
	}
	return segments, nil
}

// sum and fold make the checksum of RFC 1071.
func sum(b []byte) (s uint32) {
	for i, c := range b {
		s += uint32(c) << (8 * (1 - i%2))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
