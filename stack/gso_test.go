package stack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// superPacket is what netstack builds: all headers, no checksum.
func superPacket(src, dst netip.Addr, flags header.TCPFlags, options, payload []byte) []byte {
	t := make([]byte, 20+len(options)+len(payload))
	h := header.TCP(t)
	h.Encode(&header.TCPFields{SrcPort: 443, DstPort: 1000, SeqNum: 0xfffffff0, AckNum: 5, DataOffset: uint8(20 + len(options)), Flags: flags, WindowSize: 77})
	copy(t[20:], options)
	copy(t[20+len(options):], payload)
	h.SetChecksum(0x1234) // of the pseudo-header, which is not to be relied on
	if src.Is4() {
		p := ip4(src, dst, 6, t, 0, 0)
		p[6] = 0x40 // don't fragment
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], 0xfffe)
		return p
	}
	return ip6(src, dst, 6, t)
}

// segments cuts a copy of p up, using up each segment as the shim does.
func segments(p []byte, mss int) (all [][]byte, ok bool) {
	b := append(make([]byte, shimHeadroom), p...)
	var g segmenter
	if !g.start(b, mss) {
		return nil, false
	}
	for q := g.next(); q != nil; q = g.next() {
		all = append(all, slices.Clone(q[shimHeadroom:]))
		clear(q)
	}
	return all, true
}

// checkSegments checks what must be true of all segments together.
func checkSegments(t *testing.T, p []byte, mss int, all [][]byte) {
	t.Helper()
	_, _, _, rest, _, ok := parseIP(p)
	if !ok {
		t.Fatal("not a packet")
	}
	whole := header.TCP(rest)
	ip := len(p) - len(rest)
	var payload []byte
	for i, q := range all {
		last := i == len(all)-1
		s := header.TCP(q[ip:])
		data := s.Payload()
		switch {
		case p[0]>>4 == 6 && 40+payloadLength(q) != len(q), p[0]>>4 == 4 && int(header.IPv4(q).TotalLength()) != len(q):
			t.Fatalf("segment %d: length", i)
		case p[0]>>4 == 4 && !header.IPv4(q).IsChecksumValid():
			t.Fatalf("segment %d: IP checksum", i)
		case len(data) > mss || !last && len(data) != mss:
			t.Fatalf("segment %d of %d has %d octets; MSS %d", i, len(all), len(data), mss)
		case s.SequenceNumber() != whole.SequenceNumber()+uint32(len(payload)):
			t.Fatalf("segment %d: sequence number %d", i, s.SequenceNumber())
		}
		want := whole.Flags()
		if !last {
			want &^= header.TCPFlagFin | header.TCPFlagPsh
		}
		if i > 0 {
			want &^= header.TCPFlagCwr
		}
		if s.Flags() != want {
			t.Fatalf("segment %d: flags %s: want %s", i, s.Flags(), want)
		}
		addresses := q[8:40]
		if p[0]>>4 == 4 {
			addresses = q[12:20]
		}
		if sum := checksum.Checksum(s, checksum.Combine(checksum.Checksum(addresses, 6), uint16(len(s)))); sum != 0xffff {
			t.Fatalf("segment %d: TCP checksum", i)
		}
		// Whatever else is in the headers is in all of them.
		mask := func(p []byte) []byte {
			h := slices.Clone(p[:ip+int(whole.DataOffset())])
			if h[0]>>4 == 6 {
				clear(h[4:6])
			} else {
				clear(h[2:6])
				clear(h[10:12])
			}
			clear(h[ip+4 : ip+8])
			h[ip+13] = 0
			clear(h[ip+16 : ip+18])
			return h
		}
		if !bytes.Equal(mask(q), mask(p)) {
			t.Fatalf("segment %d: headers %x: want %x", i, mask(q), mask(p))
		}
		payload = append(payload, data...)
	}
	if !bytes.Equal(payload, whole.Payload()) {
		t.Fatal("the payload is not the same")
	}
}

func TestSegment(t *testing.T) {
	const ack, psh, fin, cwr = header.TCPFlagAck, header.TCPFlagPsh, header.TCPFlagFin, header.TCPFlagCwr
	timestamps := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	for _, family := range []struct{ src, dst netip.Addr }{{here6, there6}, {here4, there4}} {
		for _, c := range []struct {
			size, mss, n int
			flags        header.TCPFlags
		}{
			{0, 1400, 1, ack},
			{1, 1400, 1, ack | psh},
			{1400, 1400, 1, ack | psh},
			{1401, 1400, 2, ack | psh},
			{8400, 1400, 6, ack | psh | fin | cwr},
			{60000, 1400, 43, ack | fin},
			{100, 1, 100, ack | psh},
			{100, 1000, 1, ack | cwr},
		} {
			t.Run(fmt.Sprintf("%s/%d by %d", family.src, c.size, c.mss), func(t *testing.T) {
				payload := make([]byte, c.size)
				for i := range payload {
					payload[i] = byte(i * 7 >> 3)
				}
				p := superPacket(family.src, family.dst, c.flags, timestamps, payload)
				all, ok := segments(p, c.mss)
				if !ok || len(all) != c.n {
					t.Fatalf("%d segments, %v: want %d", len(all), ok, c.n)
				}
				checkSegments(t, p, c.mss, all)
				if len(all) > 1 && family.src.Is4() && header.IPv4(all[1]).ID() != 0xffff {
					t.Errorf("identification %#x", header.IPv4(all[1]).ID())
				}
			})
		}
	}
	for name, p := range map[string][]byte{
		"nothing": nil, "IPv6 header": make([]byte, 39), "UDP": ip6(here6, there6, 17, make([]byte, 20)),
		"short TCP": ip6(here6, there6, 6, make([]byte, 19)), "no data offset": ip6(here6, there6, 6, make([]byte, 20)),
		"long data offset": ip6(here6, there6, 6, append(make([]byte, 12), 0xf0, 0, 0, 0, 0, 0, 0, 0)),
	} {
		if all, ok := segments(p, 1400); ok {
			t.Errorf("%s: %x", name, all)
		}
	}
}

func TestSuperPacketSize(t *testing.T) {
	for _, c := range []struct{ mtu, want int }{
		{1500, 161 + 6*1400}, {1460, 161 + 6*1360}, {9000, 161 + 6*8900}, {20000, 161 + 3*19900}, {65535, 0}, {68, 0},
	} {
		if got := superPacketSize(c.mtu, superSegments); got != c.want {
			t.Errorf("MTU %d: %d, want %d", c.mtu, got, c.want)
		}
	}
}

// FuzzSegment: the segments together are the super-packet.
func FuzzSegment(f *testing.F) {
	f.Add(superPacket(here6, there6, header.TCPFlagAck|header.TCPFlagPsh, nil, make([]byte, 5000)), uint16(1400))
	f.Add(superPacket(here4, there4, header.TCPFlagAck|header.TCPFlagFin, make([]byte, 12), make([]byte, 77)), uint16(10))
	f.Fuzz(func(t *testing.T, p []byte, mss uint16) {
		if len(p) > 20000 || int(mss) < len(p)/500 {
			return
		}
		all, ok := segments(p, int(mss))
		if ok {
			checkSegments(t, p, int(mss), all)
		}
	})
}

// BenchmarkSegment is what cutting up costs for each segment.
func BenchmarkSegment(b *testing.B) {
	p := append(make([]byte, shimHeadroom), superPacket(here6, there6, header.TCPFlagAck, make([]byte, 12), make([]byte, 6*1400))...)
	h := slices.Clone(p[:shimHeadroom+72])
	b.SetBytes(6 * 1400)
	b.ReportAllocs()
	for b.Loop() {
		copy(p, h)
		var g segmenter
		if !g.start(p, 1400) {
			b.Fatal("refused")
		}
		for q := g.next(); q != nil; q = g.next() {
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/6, "ns/segment")
}
