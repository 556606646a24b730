package stack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// stream is a batch of segments of one connection, mss octets each.
func stream(src, dst netip.Addr, flags header.TCPFlags, size, mss int) (whole []byte, batch [][]byte) {
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte(i*31 ^ i>>5)
	}
	whole = superPacket(src, dst, flags, []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}, payload)
	batch, _ = segments(whole, mss)
	return whole, batch
}

func clone(batch [][]byte) [][]byte {
	var c [][]byte
	for _, p := range batch {
		c = append(c, slices.Clone(p))
	}
	return c
}

func checksumRight(p []byte) bool {
	_, _, proto, rest, _, ok := parseIP(p)
	if !ok || proto != nextTCP {
		return false
	}
	addresses := p[8:40]
	if p[0]>>4 == 4 {
		if addresses = p[12:20]; !header.IPv4(p).IsChecksumValid() {
			return false
		}
	}
	return checksum.Checksum(rest, checksum.Combine(checksum.Checksum(addresses, 6), uint16(len(rest)))) == 0xffff
}

// mergeClone merges a copy of a batch. It gives what is said to be right its
// checksum, which merging leaves to nobody.
func (c *coalescer) mergeClone(batch [][]byte) [][]byte {
	var in []arrived
	for _, p := range clone(batch) {
		in = append(in, arrived{p: p})
	}
	var out [][]byte
	for _, a := range c.merge(in) {
		if a.verified {
			p := slices.Clone(a.p)
			_, _, _, rest, _, _ := parseIP(p)
			addresses := p[8:40]
			if p[0]>>4 == 4 {
				addresses = p[12:20]
			}
			t := header.TCP(rest)
			t.SetChecksum(0)
			t.SetChecksum(^checksum.Checksum(t, checksum.Combine(checksum.Checksum(addresses, 6), uint16(len(t)))))
			a.p = p
		}
		out = append(out, a.p)
	}
	return out
}

// TestMerge: what was cut up is put together again.
func TestMerge(t *testing.T) {
	const ack, psh, fin = header.TCPFlagAck, header.TCPFlagPsh, header.TCPFlagFin
	var c coalescer
	for _, family := range []struct{ src, dst netip.Addr }{{there6, here6}, {there4, here4}} {
		for _, mss := range []int{1400, 1399, 1, 536} { // odd ones for the checksum
			for _, flags := range []header.TCPFlags{ack, ack | psh, ack | psh | fin} {
				whole, batch := stream(family.src, family.dst, flags, 10*mss+mss/2, mss)
				merged := c.mergeClone(batch)
				if len(merged) != 1 {
					t.Fatalf("MSS %d: %d packets", mss, len(merged))
				}
				if !checksumRight(merged[0]) {
					t.Errorf("MSS %d: checksum", mss)
				}
				checkSegments(t, whole, mss, batch)
				again, _ := segments(merged[0], mss)
				for i := range again {
					if !bytes.Equal(again[i], batch[i]) {
						t.Fatalf("MSS %d: segment %d is %x: want %x", mss, i, again[i], batch[i])
					}
				}
			}
		}
	}
}

// TestMergeTrusted: checksums that need no check are not looked at, and two that
// are partial make one that is.
func TestMergeTrusted(t *testing.T) {
	for _, w := range []worth{{partial: true}, {verified: true}} {
		whole, segments := stream(there6, here6, header.TCPFlagAck, 4000, 1000)
		var batch []arrived
		for _, p := range segments {
			p[56] ^= 0xff
			batch = append(batch, arrived{p, w})
		}
		var c coalescer
		merged := c.merge(batch)
		if len(merged) != 1 || !merged[0].verified || merged[0].partial != w.partial || len(merged[0].p) != len(whole) {
			t.Errorf("%+v: merged to %+v", w, merged)
		}
	}
	_, segments := stream(there6, here6, header.TCPFlagAck, 4000, 2000)
	var c coalescer
	super := worth{partial: true, size: 1000}
	if merged := c.merge([]arrived{{segments[0], super}, {segments[1], super}}); len(merged) != 2 || merged[0].worth != super {
		t.Errorf("super-packets merged to %+v", merged)
	}
}

// TestMergeNot: what must not be merged stays as it is.
func TestMergeNot(t *testing.T) {
	sum := func(p []byte) {
		h := header.TCP(p[40:])
		h.SetChecksum(0)
		h.SetChecksum(^checksum.Checksum(h, checksum.Combine(checksum.Checksum(p[8:40], 6), uint16(len(h)))))
	}
	for name, change := range map[string]func(first, second []byte){
		"another port":        func(_, p []byte) { p[41]++; sum(p) },
		"another address":     func(_, p []byte) { p[23]++; sum(p) },
		"a gap":               func(_, p []byte) { p[47]++; sum(p) },
		"another ACK":         func(_, p []byte) { p[51]++; sum(p) },
		"another window":      func(_, p []byte) { p[55]++; sum(p) },
		"another timestamp":   func(_, p []byte) { p[67]++; sum(p) },
		"other options":       func(_, p []byte) { p[60], p[61] = 0, 0; sum(p) },
		"RST":                 func(_, p []byte) { p[53] |= 4; sum(p) },
		"URG":                 func(_, p []byte) { p[53] |= 0x20; sum(p) },
		"ECE":                 func(_, p []byte) { p[53] |= 0x40; sum(p) },
		"CWR":                 func(_, p []byte) { p[53] |= 0x80; sum(p) },
		"no ACK":              func(p, q []byte) { p[53] &^= 0x10; q[53] &^= 0x10; sum(p); sum(q) },
		"PSH on the first":    func(p, _ []byte) { p[53] |= 8; sum(p) },
		"FIN on the first":    func(p, _ []byte) { p[53] |= 1; sum(p) },
		"congestion":          func(_, p []byte) { p[1] |= 0x30 },
		"another flow label":  func(_, p []byte) { p[3]++ },
		"another hop limit":   func(_, p []byte) { p[7]-- },
		"a wrong checksum":    func(_, p []byte) { p[57]++ },
		"the first's wrong":   func(p, _ []byte) { p[57]++ },
		"a wrong length":      func(_, p []byte) { p[5]++ },
		"UDP":                 func(_, p []byte) { p[6] = 17 },
		"a short data offset": func(_, p []byte) { p[52] = 0x10; sum(p) },
	} {
		t.Run(name, func(t *testing.T) {
			_, batch := stream(there6, here6, header.TCPFlagAck, 2000, 1000)
			change(batch[0], batch[1])
			var c coalescer
			if merged := c.mergeClone(batch); len(merged) != 2 || !bytes.Equal(merged[0], batch[0]) || !bytes.Equal(merged[1], batch[1]) {
				t.Errorf("merged to %d packets", len(merged))
			}
		})
	}
	t.Run("a longer one", func(t *testing.T) {
		_, batch := stream(there6, here6, header.TCPFlagAck, 3500, 1000)
		_, longer := stream(there6, here6, header.TCPFlagAck, 3500, 3000)
		var c coalescer
		if merged := c.mergeClone([][]byte{batch[0], longer[1]}); len(merged) != 2 {
			t.Errorf("merged to %d packets", len(merged))
		}
	})
	t.Run("more than a packet holds", func(t *testing.T) {
		// A packet has at most 64 KiB, and there is room for two of them.
		var batch [][]byte
		for i := range 3 {
			_, part := stream(there6, here6, header.TCPFlagAck, 65000, 1000)
			for _, p := range part {
				binary.BigEndian.PutUint32(p[44:], binary.BigEndian.Uint32(p[44:])+uint32(i)*65000)
				sum(p)
			}
			batch = append(batch, part...)
		}
		var c coalescer
		merged := c.mergeClone(batch)
		if len(merged) != 2+65 || len(merged[0]) != 65072 || len(merged[1]) != 65072 || !bytes.Equal(merged[2], batch[130]) {
			t.Errorf("merged to %d packets", len(merged))
		}
	})
}

// FuzzMerge: the same octets at the same place, in the same order, and nothing
// with a wrong checksum becomes right.
func FuzzMerge(f *testing.F) {
	f.Add(uint64(1), uint16(1400), uint16(6000))
	f.Add(uint64(2), uint16(3), uint16(50))
	f.Fuzz(func(t *testing.T, seed uint64, mss, size uint16) {
		if mss == 0 || int(size)/int(mss) > 200 {
			return
		}
		rnd := rand.New(rand.NewPCG(seed, 0))
		src, dst := there6, here6
		if seed%2 == 1 {
			src, dst = there4, here4
		}
		_, batch := stream(src, dst, header.TCPFlagAck, int(size), int(mss))
		for range rnd.IntN(4) { // whatever can happen to packets
			i := rnd.IntN(len(batch))
			switch p := batch[i]; rnd.IntN(4) {
			case 0:
				if len(p) > 0 {
					p[rnd.IntN(len(p))] ^= 1 << rnd.IntN(8)
				}
			case 1:
				j := rnd.IntN(len(batch))
				batch[i], batch[j] = batch[j], batch[i]
			case 2:
				batch = slices.Insert(batch, i, slices.Clone(p))
			case 3:
				batch[i] = p[:rnd.IntN(len(p)+1)]
			}
		}
		var c coalescer
		merged := c.mergeClone(batch)
		next := 0
		for _, p := range merged {
			if next < len(batch) && bytes.Equal(p, batch[next]) {
				next++
				continue
			}
			if !checksumRight(p) {
				t.Fatal("made a wrong checksum")
			}
			_, _, _, rest, _, _ := parseIP(p)
			h := header.TCP(rest)
			seq, data := h.SequenceNumber(), h.Payload()
			for len(data) > 0 {
				if next == len(batch) || !checksumRight(batch[next]) {
					t.Fatal("octets from nowhere")
				}
				_, _, _, rest, _, _ := parseIP(batch[next])
				o := header.TCP(rest)
				if o.SequenceNumber() != seq || !bytes.HasPrefix(data, o.Payload()) {
					t.Fatalf("octets at %d are not those that arrived", seq)
				}
				seq += uint32(len(o.Payload()))
				data = data[len(o.Payload()):]
				next++
			}
		}
		if next != len(batch) {
			t.Fatalf("%d of %d packets are left", len(batch)-next, len(batch))
		}
	})
}

// BenchmarkMerge is what merging costs for each segment.
func BenchmarkMerge(b *testing.B) {
	_, segments := stream(there6, here6, header.TCPFlagAck, 16*1400, 1400)
	var c coalescer
	batch := make([]arrived, len(segments))
	b.ReportAllocs()
	for b.Loop() {
		for i, p := range segments {
			batch[i] = arrived{p: p}
		}
		c.merge(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/segment")
}
