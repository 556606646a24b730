package stack

import (
	"bytes"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// coalescer merges segments that have arrived together: one packet of several
// segments costs the netstack little more than one of a single segment. It
// comes after the filter, so that what a hold keeps or forwards is what arrived.
// It has to check checksums, so the netstack need not.
type coalescer struct {
	room []byte // where the packets of a batch are put together
}

// maxCoalesced is the size of the room: what is merged of one batch.
const maxCoalesced = 128 << 10

// run is a packet to which the next one may be appended.
type run struct {
	p       []byte
	ip, tcp int    // sizes of the headers
	size    int    // of the first segment
	next    uint32 // sequence number
	merged  bool   // p is the last thing in room
}

// merge returns the packets of a batch with consecutive segments of one
// connection merged where they follow each other. It uses up the slice; the
// packets are valid until it is called again.
func (c *coalescer) merge(batch []arrived) []arrived {
	if len(batch) < 2 {
		return batch
	}
	if c.room == nil {
		c.room = make([]byte, 0, maxCoalesced)
	}
	c.room = c.room[:0]
	out := batch[:0]
	var last run
	for _, a := range batch {
		this := mergeable(a)
		if this.p != nil {
			a.verified = true
			if last.p != nil && c.join(&last, &this) {
				out[len(out)-1].p = last.p
				continue
			}
		}
		last.finish()
		last = this
		out = append(out, a)
	}
	last.finish()
	return out
}

// mergeable looks at a packet that others may be merged with: one with data,
// nothing out of the ordinary, and a right checksum. The zero run means that it
// is not.
func mergeable(a arrived) run {
	p := a.p
	if a.size != 0 {
		return run{}
	}
	var ip int
	var pseudo uint16
	switch {
	case len(p) >= ip6Size+header.TCPMinimumSize && p[0]>>4 == 6:
		if p[6] != nextTCP || payloadLength(p) != len(p)-ip6Size {
			return run{}
		}
		ip = ip6Size
		pseudo = checksum.Checksum(p[8:40], uint16(nextTCP))
	case len(p) >= header.IPv4MinimumSize+header.TCPMinimumSize && p[0] == 0x45: // no options
		h := header.IPv4(p)
		if p[9] != nextTCP || int(h.TotalLength()) != len(p) || h.More() || h.FragmentOffset() != 0 || !h.IsChecksumValid() {
			return run{}
		}
		ip = header.IPv4MinimumSize
		pseudo = checksum.Checksum(p[12:20], uint16(nextTCP))
	default:
		return run{}
	}
	t := header.TCP(p[ip:])
	n := int(t.DataOffset())
	const never = header.TCPFlagSyn | header.TCPFlagRst | header.TCPFlagUrg | header.TCPFlagCwr
	if n < header.TCPMinimumSize || n >= len(t) || t.Flags()&never != 0 || t.Flags()&header.TCPFlagAck == 0 {
		return run{}
	}
	if !a.partial && !a.verified && checksum.Checksum(t, checksum.Combine(pseudo, uint16(len(t)))) != 0xffff {
		return run{}
	}
	return run{p: p, ip: ip, tcp: n, size: len(t) - n, next: t.SequenceNumber() + uint32(len(t)-n)}
}

// join appends the segment of b to a if it follows, and nothing that the
// netstack must know of is lost.
func (c *coalescer) join(a, b *run) bool {
	at, bt := header.TCP(a.p[a.ip:]), header.TCP(b.p[b.ip:])
	const ends = header.TCPFlagPsh | header.TCPFlagFin
	switch {
	case a.ip != b.ip || a.tcp != b.tcp || bt.SequenceNumber() != a.next || b.size > a.size ||
		(len(a.p)-a.ip-a.tcp)%a.size != 0 || // a shorter one was the end of something
		at.Flags()&ends != 0 || (at.Flags()^bt.Flags())&^ends != 0 ||
		len(a.p)+b.size > 0xffff ||
		!bytes.Equal(at[0:4], bt[0:4]) || // ports
		!bytes.Equal(at[8:12], bt[8:12]) || // acknowledgement
		!bytes.Equal(at[14:16], bt[14:16]) || // window
		!bytes.Equal(at[18:a.tcp], bt[18:b.tcp]): // urgent pointer, options
		return false
	case a.ip == ip6Size:
		if !bytes.Equal(a.p[:4], b.p[:4]) || !bytes.Equal(a.p[7:40], b.p[7:40]) {
			return false
		}
	default:
		if a.p[1] != b.p[1] || !bytes.Equal(a.p[6:10], b.p[6:10]) || !bytes.Equal(a.p[12:20], b.p[12:20]) {
			return false
		}
	}
	if !a.merged {
		if len(c.room)+len(a.p)+b.size > cap(c.room) {
			return false
		}
		start := len(c.room)
		c.room = append(c.room, a.p...)
		a.p, a.merged = c.room[start:], true
	} else if len(c.room)+b.size > cap(c.room) {
		return false
	}
	c.room = append(c.room, bt[b.tcp:]...)
	a.p = a.p[:len(a.p)+b.size]
	a.next = b.next
	flags := header.TCP(a.p[a.ip:])
	flags.SetFlags(uint8(flags.Flags() | bt.Flags()&ends))
	return true
}

// finish gives a merged packet its length. Its TCP checksum is the first
// segment's.
func (r *run) finish() {
	if !r.merged {
		return
	}
	if r.ip == ip6Size {
		setPayloadLength(r.p, len(r.p)-ip6Size)
		return
	}
	h := header.IPv4(r.p)
	h.SetTotalLength(uint16(len(h)))
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
}
