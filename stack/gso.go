package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// With segmentation offload the netstack sends super-packets: TCP packets of
// several segments, without the checksum, which somebody below cuts up. It is
// cheaper, since what a packet costs on its way is paid once for many segments.
// Where nobody below does it, this does.

// segmenter cuts a super-packet up in its place.
type segmenter struct {
	b       []byte // the super-packet is at b[shimHeadroom:]
	mss     int
	payload int // where what is left of the payload begins in b
	ip      int // where the TCP header is
	seq     uint32
	id      uint16 // IPv4's identification
	flags   header.TCPFlags
	pseudo  uint16 // checksum of addresses and protocol
	header  [maxHeaders]byte
	size    int // of the headers, which are those of the first segment
}

// onlyLast are the flags that are about the end of the data, onlyFirst those
// that must not be said twice (RFC 3168 §6.1.2).
const (
	onlyLast  = header.TCPFlagFin | header.TCPFlagPsh
	onlyFirst = header.TCPFlagCwr
)

// start takes the packet at b[shimHeadroom:]; ok is false if it is not one with
// a TCP segment behind headers of a common size.
func (g *segmenter) start(b []byte, mss int) (ok bool) {
	p := b[shimHeadroom:]
	if mss <= 0 || len(p) < header.IPv4MinimumSize {
		return false
	}
	var addresses []byte
	switch p[0] >> 4 {
	case 6:
		next := 6
		for g.ip = ip6Size; len(p) > g.ip && p[next] != nextTCP; {
			n := extensionSize(p, g.ip)
			if n == 0 || p[next] != nextHopByHop && p[next] != nextRouting && p[next] != nextDestOptions {
				return false
			}
			next, g.ip = g.ip, g.ip+n
		}
		if len(p) < g.ip {
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
	if t.DataOffset() < header.TCPMinimumSize || len(p) < n || n > len(g.header) {
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
