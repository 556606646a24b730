package rawip

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// tcp is a tunnel packet with a TCP segment in it: n octets of data, flags, the
// right checksum.
func tcp(n int, flags byte) []byte {
	src, dst := netip.MustParseAddr("2001:db8::1").As16(), netip.MustParseAddr("2001:db8:2::2").As16()
	header := func(payload int, proto byte) []byte {
		h := make([]byte, headerLen)
		h[0], h[6], h[7] = 6<<4, proto, 64
		binary.BigEndian.PutUint16(h[4:], uint16(payload))
		copy(h[8:], src[:])
		copy(h[24:], dst[:])
		return h
	}
	const options = 12
	segment := make([]byte, tcpMinLen+options+n)
	binary.BigEndian.PutUint32(segment[4:], 0xfffffc00) // wraps
	segment[12], segment[13] = (tcpMinLen+options)/4<<4, flags
	for i := range segment[tcpMinLen:] {
		segment[tcpMinLen+i] = byte(i * 7)
	}
	ip := header(len(segment), protoTCP)
	seal(ip, segment)
	return append(append(header(headerLen+len(segment), protoIPv6), ip...), segment...)
}

func seal(ip, segment []byte) {
	segment[16], segment[17] = 0, 0
	binary.BigEndian.PutUint16(segment[16:], ^fold(sum(pseudo(ip, len(segment), protoTCP), segment)))
}

// coalesced does to a packet's checksum what receive offload does.
func coalesced(b []byte) []byte {
	b = bytes.Clone(b)
	binary.BigEndian.PutUint16(b[2*headerLen+16:], fold(pseudo(b[headerLen:2*headerLen], len(b)-2*headerLen, protoTCP)))
	return b
}

func TestSegmentsOfWhatIsCoalesced(t *testing.T) {
	const flags = flagCWR | flagPSH | flagFIN | 0x10
	for _, n := range []int{0, 1, 1428, 1429, 2 * 1388, 30000, 65535 - 40 - 32} {
		whole := tcp(n, flags)
		var s splitter
		got, cut := s.appendSegments(nil, coalesced(whole))
		if len(whole) <= headerLen+longest {
			if cut || len(got) != 1 || !bytes.Equal(got[0], whole) {
				t.Errorf("%d octets: %d packets, cut %t", n, len(got), cut)
			}
			continue
		}
		if !cut {
			t.Errorf("%d octets: not cut", n)
		}
		join(t, whole, got)
	}
}

// join puts segments together again.
func join(t *testing.T, whole []byte, parts [][]byte) {
	t.Helper()
	const upper = 2*headerLen + tcpMinLen
	header := 2*headerLen + 4*int(whole[2*headerLen+12]>>4)
	seq := binary.BigEndian.Uint32(whole[2*headerLen+4:])
	flags := whole[2*headerLen+tcpFlags]
	var data []byte
	for i, p := range parts {
		if len(p) > longest {
			t.Errorf("part %d is %d octets long", i, len(p))
		}
		segment, ok := tcpIn(p)
		if !ok || int(binary.BigEndian.Uint16(p[4:])) != len(p)-headerLen {
			t.Fatalf("part %d is no whole tunnel packet", i)
		}
		if fold(sum(pseudo(p[headerLen:2*headerLen], len(segment), protoTCP), segment)) != 0xffff {
			t.Errorf("part %d: checksum", i)
		}
		if !bytes.Equal(p[upper:header], whole[upper:header]) {
			t.Errorf("part %d: options", i)
		}
		if got := binary.BigEndian.Uint32(segment[4:]); got != seq+uint32(len(data)) {
			t.Errorf("part %d: sequence number %d after %d octets", i, got, len(data))
		}
		want := flags
		if i > 0 {
			want &^= flagCWR
		}
		if i < len(parts)-1 {
			want &^= flagFIN | flagPSH
		}
		if segment[tcpFlags] != want {
			t.Errorf("part %d: flags %#x, want %#x", i, segment[tcpFlags], want)
		}
		data = append(data, p[header:]...)
	}
	if !bytes.Equal(data, whole[header:]) {
		t.Errorf("%d octets of data, want %d", len(data), len(whole)-header)
	}
}

// Packets that look coalesced but are not stay as they are.
func TestTrueChecksumThatLooksPartial(t *testing.T) {
	b := tcp(10, 0x10)
	ip, segment := b[headerLen:2*headerLen], b[2*headerLen:]
	for i := range 1 << 16 { // of all values of two octets, one gives it
		binary.BigEndian.PutUint16(segment[len(segment)-2:], uint16(i))
		seal(ip, segment)
		if binary.BigEndian.Uint16(segment[16:]) == fold(pseudo(ip, len(segment), protoTCP)) {
			want := bytes.Clone(b)
			var s splitter
			if got, _ := s.appendSegments(nil, b); !bytes.Equal(got[0], want) {
				t.Error("a true checksum was changed")
			}
			return
		}
	}
	t.Error("there is none")
}

func TestNotSplit(t *testing.T) {
	udp := tcp(5000, 0)
	udp[headerLen+6] = 17
	short := tcp(5000, 0)
	short = short[:len(short)-1]
	offset := tcp(5000, 0)
	offset[2*headerLen+12] = 4 << 4
	for name, b := range map[string][]byte{"UDP": udp, "cut off": short, "offset": offset, "no packet": make([]byte, 3000)} {
		want := bytes.Clone(b)
		var s splitter
		if got, cut := s.appendSegments(nil, b); cut || len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("%s was changed", name)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(tcp(10, 0x10))
	f.Add(coalesced(tcp(4000, 0x19)))
	f.Add(coalesced(tcp(60000, flagCWR)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerLen || len(b) > headerLen+maxPayload {
			return
		}
		before := bytes.Clone(b)
		var s splitter
		got, cut := s.appendSegments(nil, b)
		if cut {
			join(t, before, got)
			return
		}
		if len(got) != 1 || len(got[0]) != len(before) {
			t.Fatalf("%d packets", len(got))
		}
		if n := differ(got[0], before); n > 2 { // the checksum
			t.Errorf("%d octets were changed", n)
		}
	})
}

func FuzzCut(f *testing.F) {
	f.Add(tcp(4000, 0x19), uint8(80), uint16(1000))
	f.Add(tcp(30000, flagCWR), uint8(80), uint16(1))
	f.Fuzz(func(t *testing.T, p []byte, at uint8, size uint16) {
		if len(p) > headerLen+maxPayload {
			return
		}
		var cutter Cutter
		c := Cut{TCP: int(at), Size: int(size)}
		got := cutter.Cut(p, c)
		s, ok := c.of(p)
		if ok != (len(got) > 0) {
			t.Fatalf("%d packets", len(got))
		}
		var data []byte
		for _, q := range got {
			data = append(data, q[len(s.headers):]...)
		}
		if !bytes.Equal(data, s.data) {
			t.Errorf("%d octets of %d", len(data), len(s.data))
		}
	})
}

func FuzzControls(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 0, 0, 0, 0, 41, 0, 0, 0, 52, 0, 0, 0, 33, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) { controls(b) })
}

// differ is how many octets are not the same.
func differ(a, b []byte) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// Of other protocols too, a checksum that is not complete is completed.
func TestPartialChecksums(t *testing.T) {
	for _, tt := range []struct {
		protocol byte
		at       int
	}{{protoUDP, 6}, {protoICMPv6, 2}, {protoTCP, 16}} {
		for _, n := range []int{0, 1, 30} {
			b := tcp(n, 0x10)
			ip, upper := b[headerLen:2*headerLen], b[2*headerLen:]
			ip[6] = tt.protocol
			seed := pseudo(ip, len(upper), tt.protocol)
			binary.BigEndian.PutUint16(upper[tt.at:], fold(seed))
			var s splitter
			got, _ := s.appendSegments(nil, b)
			if len(got) != 1 || fold(sum(seed, got[0][2*headerLen:])) != 0xffff {
				t.Errorf("protocol %d, %d octets: wrong checksum", tt.protocol, n)
			}
			want := bytes.Clone(got[0])
			if got, _ := s.appendSegments(nil, got[0]); !bytes.Equal(got[0], want) {
				t.Errorf("protocol %d: completed again", tt.protocol)
			}
		}
	}
}

// A batch cuts super-packets with a routing header too: the checksum is that of
// the final destination.
func TestAddCut(t *testing.T) {
	whole := tcp(30000, flagCWR|flagPSH|flagFIN|0x10)[headerLen:] // no tunnel
	var src, dst [16]byte
	copy(src[:], whole[8:])
	copy(dst[:], whole[24:])
	const routing = 24
	routed := append(bytes.Clone(whole[:headerLen]), make([]byte, routing)...)
	routed = append(routed, whole[headerLen:]...)
	routed[6], routed[headerLen] = 43, protoTCP
	copy(routed[headerLen+8:], dst[:])
	copy(routed[24:40], src[:]) // to somewhere else
	b := Batch{arena: make([]byte, 0, arenaLen)}
	b.AddCut(routed, Cut{TCP: headerLen + routing, Size: 1000, Src: src, Dst: dst})
	if len(b.packets) != 30 {
		t.Fatalf("%d packets", len(b.packets))
	}
	var tunnelled [][]byte // what join knows
	for _, p := range b.packets {
		if !bytes.Equal(p[6:headerLen+routing], routed[6:headerLen+routing]) {
			t.Errorf("headers are %x", p[:headerLen+routing])
		}
		q := append(bytes.Clone(whole[:headerLen]), p[headerLen+routing:]...)
		binary.BigEndian.PutUint16(q[4:], binary.BigEndian.Uint16(p[4:])-routing)
		outer := tcp(0, 0)[:headerLen]
		binary.BigEndian.PutUint16(outer[4:], uint16(len(q)))
		tunnelled = append(tunnelled, append(outer, q...))
	}
	join(t, append(tcp(0, 0)[:headerLen:headerLen], whole...), tunnelled)

	var cutter Cutter
	for range 2 {
		if got := cutter.Cut(routed, Cut{TCP: headerLen + routing, Size: 1000, Src: src, Dst: dst}); !slices.EqualFunc(got, b.packets, bytes.Equal) {
			t.Errorf("a Cutter makes %d other packets", len(got))
		}
	}

	b = Batch{s: new(Sender), arena: make([]byte, 0, arenaLen)}
	for _, c := range []Cut{{}, {TCP: 40}, {TCP: 39, Size: 1}, {TCP: len(whole) - 19, Size: 1}} {
		b.AddCut(whole, c)
		if got := cutter.Cut(whole, c); len(got) != 0 {
			t.Errorf("%+v: a Cutter makes %d packets", c, len(got))
		}
	}
	offset := bytes.Clone(whole)
	offset[headerLen+12] = 4 << 4
	b.AddCut(offset, Cut{TCP: headerLen, Size: 1000})
	if len(b.packets) != 0 || b.s.Stats().Failed != 5 {
		t.Errorf("%d packets, %+v", len(b.packets), b.s.Stats())
	}
}

func BenchmarkCut(b *testing.B) {
	p := tcp(60000, 0x10)[headerLen:]
	var batch Batch
	batch.arena = make([]byte, 0, arenaLen)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		batch.AddCut(p, Cut{TCP: headerLen, Size: 1400})
		batch.arena, batch.packets = batch.arena[:0], batch.packets[:0]
	}
}
