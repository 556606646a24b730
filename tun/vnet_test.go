package tun

import (
	"encoding/binary"
	"testing"
)

// vnet builds a header field by field (Virtual I/O Device 1.2, section 5.1.6).
func vnet(flags, kind byte, headers, segment, at, offset uint16) []byte {
	h := []byte{flags, kind}
	for _, f := range []uint16{headers, segment, at, offset} {
		h = binary.NativeEndian.AppendUint16(h, f)
	}
	return h
}

func TestVnetHeader(t *testing.T) {
	for _, c := range []struct {
		name  string
		first byte
		o     Offload
		h     []byte
	}{
		{"plain", 6 << 4, Offload{}, vnet(0, 0, 0, 0, 0, 0)},
		{"verified", 6 << 4, Offload{Verified: true}, vnet(2, 0, 0, 0, 0, 0)},
		{"partial", 6 << 4, Offload{Partial: true, SumAt: 40, SumOffset: 16, HeaderSize: 60}, vnet(1, 0, 60, 0, 40, 16)},
		{"super 6", 6 << 4, Offload{Partial: true, SumAt: 64, SumOffset: 16, HeaderSize: 96, SegmentSize: 1400}, vnet(1, 4, 96, 1400, 64, 16)},
		{"super 4", 0x45, Offload{Partial: true, SumAt: 20, SumOffset: 16, HeaderSize: 40, SegmentSize: 1460}, vnet(1, 1, 40, 1460, 20, 16)},
	} {
		got := make([]byte, vnetHeaderSize)
		c.o.putVnet(got, c.first)
		if string(got) != string(c.h) {
			t.Errorf("%s: written as %x, want %x", c.name, got, c.h)
		}
		if o, err := parseVnet(c.h, 9000); err != nil || o != c.o {
			t.Errorf("%s: read as %+v, %v", c.name, o, err)
		}
	}
}

func TestVnetHeaderOfTheKernel(t *testing.T) {
	// The first segment has CWR: no difference to us.
	if o, err := parseVnet(vnet(1, 0x80|4, 60, 1400, 40, 16), 9000); err != nil || o.SegmentSize != 1400 {
		t.Errorf("with congestion notification: %+v, %v", o, err)
	}
	// The hint is larger than the packet.
	if o, err := parseVnet(vnet(0, 0, 200, 0, 0, 0), 100); err != nil || o != (Offload{}) {
		t.Errorf("headers longer than the packet: %+v, %v", o, err)
	}
	for name, h := range map[string][]byte{
		"checksum outside": vnet(1, 0, 0, 0, 90, 16),
		"checksum wraps":   vnet(1, 0, 0, 0, 0xffff, 0xffff),
		"UDP":              vnet(1, 5, 48, 1400, 40, 6),
		"no segment size":  vnet(1, 4, 60, 0, 40, 16),
	} {
		if o, err := parseVnet(h, 100); err == nil || o != (Offload{}) {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
}

func FuzzVnetHeader(f *testing.F) {
	f.Add(vnet(1, 4, 96, 1400, 64, 16), 65000)
	f.Add(vnet(2, 0, 0, 0, 0, 0), 40)
	f.Fuzz(func(t *testing.T, h []byte, size int) {
		if len(h) < vnetHeaderSize || size < 0 || size > MaxPacket {
			return
		}
		o, err := parseVnet(h, size)
		if err != nil {
			if o != (Offload{}) {
				t.Errorf("%v, and %+v", err, o)
			}
			return
		}
		if o.Partial && int(o.SumAt)+int(o.SumOffset)+2 > size || int(o.HeaderSize) > size {
			t.Errorf("%+v points outside of a packet of %d octets", o, size)
		}
		again := make([]byte, vnetHeaderSize)
		first := byte(6 << 4)
		if h[1]&^vnetECN == vnetTCPv4 {
			first = 0x45
		}
		o.putVnet(again, first)
		if o.Partial { // says more than Verified
			o.Verified = false
		}
		if back, err := parseVnet(again, size); err != nil || back != o {
			t.Errorf("%+v written and read is %+v, %v", o, back, err)
		}
	})
}
