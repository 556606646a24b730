package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
)

// With segmentation offload the netstack sends super-packets: TCP packets of
// several segments, without the checksum, which somebody below cuts up. It is
// cheaper, since what a packet costs on its way down is paid once for many
// segments. That somebody is here, before the filter and the shim, so that what
// a hold keeps are packets.

// superSegments is how many segments a super-packet has. Six take most of the
// gain. More are cheaper still on a perfect link, but netstack takes a
// super-packet of which a segment is lost for lost as a whole: with 24 it
// fills half of a path that loses one packet in a hundred (BenchmarkBulk,
// BenchmarkLossy).
const superSegments = 6

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

// segmenter cuts a super-packet up in its place.
type segmenter struct {
	b       []byte // the super-packet is at b[shimHeadroom:]
	mss     int
	payload int // where what is left of the payload begins in b
	ip      int // size of the IP header
	seq     uint32
	id      uint16 // IPv4's identification
	flags   header.TCPFlags
	pseudo  uint16 // checksum of addresses and protocol
	header  [header.IPv4MaximumHeaderSize + header.TCPHeaderMaximumSize]byte
	size    int // of the headers, which are those of the first segment
}

// onlyLast are the flags that are about the end of the data, onlyFirst those
// that must not be said twice (RFC 3168 §6.1.2).
const (
	onlyLast  = header.TCPFlagFin | header.TCPFlagPsh
	onlyFirst = header.TCPFlagCwr
)

// start takes the netstack's packet at b[shimHeadroom:]; ok is false if it is
// not one with a TCP segment.
func (g *segmenter) start(b []byte, mss int) (ok bool) {
	p := b[shimHeadroom:]
	if mss <= 0 || len(p) < header.IPv4MinimumSize {
		return false
	}
	var addresses []byte
	switch p[0] >> 4 {
	case 6:
		if g.ip = ip6Size; len(p) < g.ip || p[6] != nextTCP {
			return false
		}
		addresses = p[8:40]
	case 4:
		if g.ip = int(p[0]&0xf) * 4; g.ip < header.IPv4MinimumSize || len(p) < g.ip || p[9] != nextTCP {
			return false
		}
		addresses = p[12:20]
		g.id = binary.BigEndian.Uint16(p[4:])
	default:
		return false
	}
	if len(p) < g.ip+header.TCPMinimumSize {
		return false
	}
	t := header.TCP(p[g.ip:])
	n := g.ip + int(t.DataOffset())
	if t.DataOffset() < header.TCPMinimumSize || len(p) < n {
		return false
	}
	g.b, g.mss = b, mss
	g.payload = shimHeadroom + n
	g.seq, g.flags = t.SequenceNumber(), t.Flags()
	g.pseudo = checksum.Checksum(addresses, uint16(nextTCP))
	g.size = copy(g.header[:], p[:n])
	return true
}

// next returns the next segment, a packet at its [shimHeadroom:], and nil when
// there is none. What it returns, and what is before it, may be used up before
// it is called again.
func (g *segmenter) next() []byte {
	if g.b == nil {
		return nil
	}
	end := min(g.payload+g.mss, len(g.b))
	q := g.b[g.payload-g.size-shimHeadroom : end]
	p := q[shimHeadroom:]
	copy(p, g.header[:g.size])

	t := header.TCP(p[g.ip:])
	t.SetSequenceNumber(g.seq)
	flags := g.flags
	if end < len(g.b) {
		flags &^= onlyLast
	}
	t.SetFlags(uint8(flags))
	t.SetChecksum(0)
	t.SetChecksum(^checksum.Checksum(t, checksum.Combine(g.pseudo, uint16(len(t)))))

	if p[0]>>4 == 6 {
		setPayloadLength(p, len(p)-ip6Size)
	} else {
		h := header.IPv4(p)
		h.SetTotalLength(uint16(len(p)))
		h.SetID(g.id)
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	}

	g.seq += uint32(end - g.payload)
	g.id++
	g.flags &^= onlyFirst
	if g.payload = end; end == len(g.b) {
		g.b = nil
	}
	return q
}

// sendSuper sends the super-packet at b[shimHeadroom:], through the filter. It
// uses b up.
func (l *link) sendSuper(b []byte, mss int) {
	var g segmenter
	if !g.start(b, mss) {
		return
	}
	for p := g.next(); p != nil; p = g.next() {
		if !l.filter.outbound(p[shimHeadroom:]) {
			l.sendScratch(p)
		}
	}
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
