package wire

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

const (
	hexCorrespondent = "20010db8000c00000000000000000002"
	hexHome          = "20010db8000a00000000000000001234"
	hexCareOf        = "20010db8000f00000000000000000005"
)

func TestPackets(t *testing.T) {
	payload := []byte{0xde, 0xad, 0xbe, 0xef}
	tests := []struct {
		name string
		p    Packet
		hex  string
	}{
		{"plain, RFC 8200 section 3",
			Packet{TrafficClass: 0xb8, FlowLabel: 0xabcde, HopLimit: 63, Src: home, Dst: correspondent,
				Protocol: UDP, Payload: payload, Offset: 40},
			"6b8abcde 0004 11 3f" + hexHome + hexCorrespondent + "deadbeef"},
		{"Home Address option at 8n+6, RFC 6275 section 6.3",
			Packet{HopLimit: 64, Src: careOf, Dst: correspondent, Home: home, Protocol: UDP, Payload: payload, Offset: 64},
			"60000000 001c 3c 40" + hexCareOf + hexCorrespondent +
				"11 02 01020000 c910" + hexHome + "deadbeef"},
		{"type 2 routing header, RFC 6275 section 6.4",
			Packet{HopLimit: 64, Src: correspondent, Dst: careOf, Routing: home, Protocol: UDP, Payload: payload, Offset: 64},
			"60000000 001c 2b 40" + hexCorrespondent + hexCareOf +
				"11 02 02 01 00000000" + hexHome + "deadbeef"},
		{"both, from one mobile node to another: routing header first",
			Packet{HopLimit: 64, Src: careOf, Dst: careOf, Home: home, Routing: correspondent,
				Protocol: UDP, Payload: payload, Offset: 88},
			"60000000 0034 2b 40" + hexCareOf + hexCareOf +
				"3c 02 02 01 00000000" + hexCorrespondent +
				"11 02 01020000 c910" + hexHome + "deadbeef"},
		{"no payload",
			Packet{HopLimit: 1, Src: home, Dst: correspondent, Protocol: NoNext, Payload: []byte{}, Offset: 40},
			"60000000 0000 3b 01" + hexHome + hexCorrespondent},
		{"a fragment stays one, RFC 8200 section 4.5",
			Packet{HopLimit: 64, Src: home, Dst: correspondent, Protocol: Fragment,
				Payload: []byte{17, 0, 0, 1, 0, 0, 0, 9, 0xde, 0xad}, Offset: 40},
			"60000000 000a 2c 40" + hexHome + hexCorrespondent + "11 00 0001 00000009 dead"},
		{"a fragment with a Home Address option",
			Packet{HopLimit: 64, Src: careOf, Dst: correspondent, Home: home, Protocol: Fragment,
				Payload: []byte{17, 0, 0, 9, 0, 0, 0, 9, 0xde, 0xad}, Offset: 64},
			"60000000 0022 3c 40" + hexCareOf + hexCorrespondent +
				"2c 02 01020000 c910" + hexHome + "11 00 0009 00000009 dead"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := unhex(t, tt.hex)
			got, err := tt.p.Append([]byte("before"))
			if err != nil {
				t.Fatal(err)
			}
			same(t, "written", got, append([]byte("before"), want...))
			p, err := ParsePacket(append(want, "octets of the link"...))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(p, tt.p) {
				t.Errorf("parsed\n%+v, want\n%+v", p, tt.p)
			}
		})
	}
}

// What ParsePacket takes, and what it answers to what it does not.
func TestParsePacket(t *testing.T) {
	const (
		src     = hexCareOf
		hao     = "c910" + hexHome
		rh2     = "02 02 01 00000000" + hexHome // after the next header
		silence = -1
	)
	problem := func(code uint8, pointer uint32) Problem { return Problem{Code: code, Pointer: pointer} }
	multicast := func(p Problem) Problem { p.EvenMulticast = true; return p }
	tests := []struct {
		name   string
		next   string // of the IPv6 header
		rest   string
		answer any // nil: accepted; silence; a Problem
		want   Packet
	}{
		{"unaligned Home Address option", "3c", "3b 02 c910" + hexHome + "01020000", nil, Packet{Home: home}},
		{"Home Address option among unknown ones", "3c", "3b 03 1e02ffff 0100" + hao + "3e00 0102ffff", nil, Packet{Home: home}},
		{"two destination options headers", "3c", "3c 00 010400000000 3b 02 01020000" + hao, nil, Packet{Home: home}},
		{"hop-by-hop options first", "00", "3c 00 050200000100 3b 02 01020000" + hao, nil, Packet{Home: home}},
		{"atomic fragment, RFC 8200 section 4.5", "2c", "3b 00 0000 00000001", nil, Packet{}},
		{"atomic fragment, reserved bits set", "2c", "3b ff 0006 00000001", nil, Packet{}},
		{"destination options in front of a routing header", "3c", "2b 00 010400000000 3b" + rh2, nil, Packet{Routing: home}},
		{"routing header, Home Address option, fragment header", "2b", "3c" + rh2 + "2c 02 01020000" + hao + "3b 00 0000 00000001", nil,
			Packet{Routing: home, Home: home}},
		{"routing header type 0 that has done its work", "2b", "3b 00 00 00 00000000", nil, Packet{}},

		{"unknown option, highest bits 00: skipped", "3c", "3b 00 3e04ffffffff", nil, Packet{}},
		{"unknown option, highest bits 01: discarded", "3c", "3b 00 7e04ffffffff", silence, Packet{}},
		{"unknown option, highest bits 10: answered", "3c", "3b 00 be04ffffffff", multicast(problem(2, 42)), Packet{}},
		{"unknown option, highest bits 11: answered", "3c", "3b 00 0100fe02ffff", problem(2, 44), Packet{}},
		{"unknown hop-by-hop option", "00", "3b 00 fe04ffffffff", problem(2, 42), Packet{}},
		{"Home Address option among hop-by-hop options", "00", "3b 02 01020000" + hao, problem(2, 46), Packet{}},
		{"hop-by-hop options that are not first, RFC 8200 section 4.1", "3c", "00 00 010400000000 3b 00 010400000000", problem(1, 40), Packet{}},
		{"hop-by-hop options twice", "00", "00 00 010400000000 3b 00 010400000000", problem(1, 40), Packet{}},
		{"routing header type 0 with segments left, RFC 8200 section 4.4", "2b", "3b 02 00 01 00000000" + hexHome, problem(0, 42), Packet{}},
		{"routing header type 4 behind other options", "3c", "2b 00 010400000000 3b 00 04 01 00000000", problem(0, 50), Packet{}},

		{"CN-2-3-2: Home Address option twice", "3c", "3b 05 01020000" + hao + "01040000 0000" + hao, silence, Packet{}},
		{"Home Address option in each of two headers", "3c", "3c 02 01020000" + hao + "3b 02 01020000" + hao, silence, Packet{}},
		{"Home Address option of eight octets", "3c", "3b 01 0102ffff c908" + hexHome[:16], silence, Packet{}},
		{"Home Address option behind a fragment header", "2c", "3c 00 0000 00000001 3b 02 01020000" + hao, silence, Packet{}},
		{"Home Address option in front of a routing header", "3c", "2b 02 01020000" + hao + "3b" + rh2, silence, Packet{}},
		{"CN-2-6-2: multicast home address", "3c", "3b 02 01020000 c910 ff0e0000000000000000000000000001", silence, Packet{}},
		{"CN-2-6-2: link-local home address", "3c", "3b 02 01020000 c910 fe800000000000000000000000000001", silence, Packet{}},
		{"unspecified home address", "3c", "3b 02 01020000 c910 00000000000000000000000000000000", silence, Packet{}},
		{"loopback as home address", "3c", "3b 02 01020000 c910 00000000000000000000000000000001", silence, Packet{}},
		{"IPv4-mapped home address", "3c", "3b 02 01020000 c910 00000000000000000000ffffc0000201", silence, Packet{}},
		{"MN-4-1-2-2-004: type 2 routing header of length 4", "2b", "3b 04 02 01 00000000" + hexHome + hexHome, silence, Packet{}},
		{"type 2 routing header of length 0", "2b", "3b 00 02 01 00000000", silence, Packet{}},
		{"MN-4-1-2-2-005: type 2 routing header with 0 segments left", "2b", "3b 02 02 00 00000000" + hexHome, silence, Packet{}},
		{"MN-4-1-2-2-005: type 2 routing header with 2 segments left", "2b", "3b 02 02 02 00000000" + hexHome, silence, Packet{}},
		{"multicast address in a type 2 routing header", "2b", "3b 02 02 01 00000000 ff0e0000000000000000000000000001", silence, Packet{}},
		{"two type 2 routing headers", "2b", "2b" + rh2 + "3b" + rh2, silence, Packet{}},

		{"no header where one is announced", "3c", "", silence, Packet{}},
		{"seven octets of a header", "2b", "3b 00 00 00 000000", silence, Packet{}},
		{"seven octets of a fragment header", "2c", "3b 00 00 00 000000", silence, Packet{}},
		{"a header longer than the packet", "3c", "3b 01 010400000000", silence, Packet{}},
		{"an option longer than its header", "3c", "3b 00 010500000000", silence, Packet{}},
		{"an option without its length", "3c", "3b 00 0103000000 01", silence, Packet{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rest := unhex(t, tt.rest)
			b := unhex(t, "60000000 0000"+tt.next+"40"+src+hexCorrespondent)
			b[5] = byte(len(rest))
			b = append(b, rest...)
			p, err := ParsePacket(b)
			var got any
			var pp *Problem
			switch {
			case errors.As(err, &pp):
				got = Problem{Code: pp.Code, Pointer: pp.Pointer, EvenMulticast: pp.EvenMulticast}
			case err != nil:
				got = silence
			}
			if got != tt.answer {
				t.Fatalf("%v (%v), want %v", got, err, tt.answer)
			}
			if err == nil && (p.Home != tt.want.Home || p.Routing != tt.want.Routing || p.Protocol != NoNext || p.Offset != len(b)) {
				t.Errorf("%+v", p)
			}
		})
	}
}

func TestParseNoPacket(t *testing.T) {
	whole := unhex(t, "60000000 0004 11 3f"+hexHome+hexCorrespondent+"deadbeef")
	for n := range whole {
		if p, err := ParsePacket(whole[:n]); err == nil {
			t.Errorf("%d octets: %+v", n, p)
		}
	}
	v4 := append([]byte{0x45}, whole[1:]...)
	if _, err := ParsePacket(v4); err == nil {
		t.Error("IPv4 accepted")
	}
}

func TestSourceDestination(t *testing.T) {
	p := Packet{Src: careOf, Dst: correspondent}
	if p.Source() != careOf || p.Destination() != correspondent {
		t.Errorf("plain: %v, %v", p.Source(), p.Destination())
	}
	p.Home, p.Routing = home, agent
	if p.Source() != home || p.Destination() != agent {
		t.Errorf("with home addresses: %v, %v", p.Source(), p.Destination())
	}
}

// What cannot be written is refused, and nothing is appended.
func TestAppendRefuses(t *testing.T) {
	v4 := netip.MustParseAddr("192.0.2.1")
	for name, p := range map[string]Packet{
		"no source":          {Dst: home},
		"no destination":     {Src: home},
		"IPv4 source":        {Src: v4, Dst: home},
		"IPv4 home address":  {Src: careOf, Dst: correspondent, Home: v4},
		"IPv4 in routing":    {Src: correspondent, Dst: careOf, Routing: v4},
		"flow label":         {Src: home, Dst: correspondent, FlowLabel: 1 << 20},
		"too long":           {Src: home, Dst: correspondent, Payload: make([]byte, 65536)},
		"too long with home": {Src: careOf, Dst: correspondent, Home: home, Payload: make([]byte, 65535-23)},
	} {
		b, err := p.Append([]byte("before"))
		if err == nil || string(b) != "before" {
			t.Errorf("%s: %q, %v", name, b[:min(len(b), 10)], err)
		}
	}
	longest := Packet{Src: careOf, Dst: correspondent, Home: home, Payload: make([]byte, 65535-24)}
	if _, err := longest.Append(nil); err != nil {
		t.Error(err)
	}
}

func TestErrorTexts(t *testing.T) {
	for _, err := range []error{&Problem{Code: 2, Pointer: 42, Cause: "unknown option"}, &UnknownTypeError{Type: 99}, ErrHopLimit} {
		if !strings.HasPrefix(err.Error(), "wire: ") {
			t.Errorf("%q", err)
		}
	}
}
