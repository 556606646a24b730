package rawip

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// stream is n segments of a connection, told apart by its port, in a row.
func stream(port byte, n, size int) (packets [][]byte) {
	seq := uint32(0xffffff00)
	for i := range n {
		p := tcp(size, flagACK)[headerLen:]
		p[headerLen+1] = port
		if i == n-1 {
			p[headerLen+tcpFlags] |= flagPSH
		}
		binary.BigEndian.PutUint32(p[headerLen+4:], seq)
		seq += uint32(size)
		seal(p[:headerLen], p[headerLen:])
		packets = append(packets, p)
	}
	return packets
}

// through is what a Coalescer makes of packets, and what that is cut to.
func through(t testing.TB, packets [][]byte) (supers []Super, cut [][]byte) {
	t.Helper()
	var c Coalescer
	emit := func(s Super) {
		s.Packet = bytes.Clone(s.Packet)
		supers = append(supers, s)
		if s.SegmentSize == 0 {
			cut = append(cut, s.Packet)
			return
		}
		if len(s.Packet) > headerLen+maxPayload || int(binary.BigEndian.Uint16(s.Packet[4:])) != len(s.Packet)-headerLen {
			t.Errorf("a super-packet of %d octets", len(s.Packet))
		}
		var cutter Cutter
		for _, p := range cutter.Cut(s.Packet, Cut{TCP: headerLen, Size: s.SegmentSize, Src: [16]byte(s.Packet[8:]), Dst: [16]byte(s.Packet[24:])}) {
			cut = append(cut, bytes.Clone(p))
		}
	}
	for _, p := range packets {
		before := bytes.Clone(p)
		c.Add(p, emit)
		if !bytes.Equal(p, before) {
			t.Error("the packet was changed")
		}
	}
	c.Flush(emit)
	if len(c.held) != 0 {
		t.Errorf("%d are held", len(c.held))
	}
	return supers, cut
}

func TestCoalesce(t *testing.T) {
	change := func(f func(p []byte)) [][]byte {
		packets := stream(1, 4, 1000)
		f(packets[2])
		seal(packets[2][:headerLen], packets[2][headerLen:])
		return packets
	}
	interleaved := func(flows, n int) (all [][]byte) {
		var streams [][][]byte
		for f := range flows {
			streams = append(streams, stream(byte(f), n, 100))
		}
		for i := range n {
			for _, s := range streams {
				all = append(all, s[i])
			}
		}
		return all
	}
	short := stream(1, 4, 1000)
	short[1] = short[1][:len(short[1])-8]
	binary.BigEndian.PutUint16(short[1][4:], uint16(len(short[1])-headerLen))
	seal(short[1][:headerLen], short[1][headerLen:])
	for name, tt := range map[string]struct {
		packets [][]byte
		supers  int
	}{
		"one":               {stream(1, 1, 1000), 1},
		"a row":             {stream(1, 40, 1400), 1},
		"more than fits":    {stream(1, 60, 1400), 2},
		"of no data":        {stream(1, 3, 0), 3},
		"connections":       {interleaved(maxHeld, 10), maxHeld},
		"too many of them":  {interleaved(maxHeld+1, 3), 3 * (maxHeld + 1)},
		"another ack":       {change(func(p []byte) { p[headerLen+8]++ }), 3},
		"another window":    {change(func(p []byte) { p[headerLen+14]++ }), 3},
		"another option":    {change(func(p []byte) { p[headerLen+tcpMinLen]++ }), 3},
		"another hop limit": {change(func(p []byte) { p[7]-- }), 3},
		"congestion":        {change(func(p []byte) { p[1] |= 3 << 4 }), 3},
		"FIN":               {change(func(p []byte) { p[headerLen+tcpFlags] |= flagFIN }), 3},
		"PSH":               {change(func(p []byte) { p[headerLen+tcpFlags] |= flagPSH }), 2},
		"out of order":      {change(func(p []byte) { p[headerLen+4]++ }), 3},
		"another protocol":  {change(func(p []byte) { p[6] = protoUDP }), 3},
		"a short one":       {short, 2}, // and a gap behind it
		"nothing like TCP":  {[][]byte{nil, {6 << 4}, make([]byte, 100)}, 3},
	} {
		supers, cut := through(t, tt.packets)
		if len(supers) != tt.supers {
			t.Errorf("%s: %d super-packets, want %d", name, len(supers), tt.supers)
		}
		if !sameStreams(tt.packets, cut) {
			t.Errorf("%s: cut again, it is not what it was", name)
		}
	}

	// A wrong checksum stays wrong.
	packets := stream(1, 3, 1000)
	packets[1][100]++
	supers, cut := through(t, packets)
	if len(supers) != 3 || !slices.EqualFunc(packets, cut, bytes.Equal) {
		t.Errorf("with a wrong checksum: %d super-packets", len(supers))
	}
}

// sameStreams reports whether the packets of each connection are the same in the
// same order.
func sameStreams(a, b [][]byte) bool {
	split := func(packets [][]byte) map[string][][]byte {
		m := make(map[string][][]byte)
		for _, p := range packets {
			key := ""
			if _, ok := plainTCP(p); ok {
				key = string(p[8 : headerLen+4])
			}
			m[key] = append(m[key], p)
		}
		return m
	}
	x, y := split(a), split(b)
	if len(x) != len(y) {
		return false
	}
	for k := range x {
		if !slices.EqualFunc(x[k], y[k], bytes.Equal) {
			return false
		}
	}
	return true
}

// FuzzCoalesce changes octets of a batch of several connections.
func FuzzCoalesce(f *testing.F) {
	f.Add([]byte{}, uint16(1000), true)
	f.Add([]byte{0, 1, 7, 3, 40, 3, 9, 54, 1}, uint16(10), true)
	f.Fuzz(func(t *testing.T, changes []byte, size uint16, sealed bool) {
		var packets [][]byte
		a, b := stream(1, 20, int(size%1400)), stream(2, 20, int(size%1300))
		for i := range a {
			packets = append(packets, a[i], b[i])
		}
		for ; len(changes) >= 3; changes = changes[3:] { // packet, octet, by how much
			p := packets[int(changes[0])%len(packets)]
			p[int(changes[1])%len(p)] += changes[2]
			if _, ok := plainTCP(p); ok && sealed {
				seal(p[:headerLen], p[headerLen:])
			}
		}
		if _, cut := through(t, packets); !sameStreams(packets, cut) {
			t.Error("cut again, it is not what it was")
		}
	})
}

func BenchmarkCoalesce(b *testing.B) {
	packets := stream(1, 45, 1400)
	var c Coalescer
	b.SetBytes(45 * 1400)
	b.ReportAllocs()
	for b.Loop() {
		for _, p := range packets {
			c.Add(p, func(Super) {})
		}
		c.Flush(func(Super) {})
	}
}
