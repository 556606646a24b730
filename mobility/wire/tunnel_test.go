package wire

import (
	"errors"
	"net/netip"
	"testing"
)

// A packet goes into a tunnel and comes out with its hop limit lower by one.
func TestTunnel(t *testing.T) {
	in := Packet{TrafficClass: 0xb9, FlowLabel: 0x12345, HopLimit: 64, Src: correspondent, Dst: home, Protocol: TCP, Payload: []byte("segment")}
	inner, err := in.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := AppendTunnel([]byte("before"), agent, careOf, append(inner, "octets of the link"...))
	if err != nil {
		t.Fatal(err)
	}
	b = b[len("before"):]
	if len(b) != TunnelLen+len(inner) {
		t.Errorf("%d octets, want %d", len(b), TunnelLen+len(inner))
	}
	p, err := ParsePacket(b)
	if err != nil {
		t.Fatal(err)
	}
	if p.Src != agent || p.Dst != careOf || p.Protocol != IPv6 || p.HopLimit != DefaultHopLimit || p.TrafficClass != 0xb9 {
		t.Errorf("outer %+v", p)
	}
	out, err := p.Inner()
	if err != nil {
		t.Fatal(err)
	}
	if inner[7] != 64 {
		t.Error("the packet given was changed")
	}
	inner[7] = 63
	same(t, "inner", out, inner)
}

func TestTunnelRefuses(t *testing.T) {
	packet := func(hops uint8, src, dst netip.Addr, n int) []byte {
		b, err := (&Packet{HopLimit: hops, Src: src, Dst: dst, Protocol: UDP, Payload: make([]byte, n)}).Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	exhausted := packet(1, correspondent, home, 8)
	exhausted[7] = 0
	whole := packet(64, correspondent, home, 8)
	tests := []struct {
		name     string
		src, dst netip.Addr
		inner    []byte
		want     error
	}{
		{"hop limit 2", agent, careOf, packet(2, correspondent, home, 8), nil},
		{"hop limit 1", agent, careOf, packet(1, correspondent, home, 8), ErrHopLimit},
		{"hop limit 0", agent, careOf, exhausted, ErrHopLimit},
		{"the tunnel's own addresses, RFC 2473 section 4.1.2", correspondent, home, whole, errTunnelLoop},
		{"the same source alone", correspondent, careOf, whole, nil},
		{"as long as can be", agent, careOf, packet(64, correspondent, home, 65535-40), nil},
		{"too long", agent, careOf, packet(64, correspondent, home, 65535-39), errTunnelLong},
		{"truncated", agent, careOf, whole[:len(whole)-1], errInner},
		{"nothing", agent, careOf, nil, errInner},
		{"IPv4", agent, careOf, append([]byte{0x45}, whole[1:]...), errInner},
		{"no source", netip.Addr{}, careOf, whole, errTunnelAddr},
		{"IPv4 destination", agent, netip.MustParseAddr("192.0.2.1"), whole, errTunnelAddr},
	}
	for _, tt := range tests {
		b, err := AppendTunnel([]byte("before"), tt.src, tt.dst, tt.inner)
		if !errors.Is(err, tt.want) || (err != nil && string(b) != "before") {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestInnerRefuses(t *testing.T) {
	inner, err := (&Packet{Src: correspondent, Dst: home, Protocol: UDP, Payload: make([]byte, 8)}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		p    Packet
		want error
	}{
		{"a tunnel", Packet{Src: agent, Dst: careOf, Protocol: IPv6, Payload: inner}, nil},
		{"not one", Packet{Src: agent, Dst: careOf, Protocol: UDP, Payload: inner}, errNotTunnel},
		{"the same source alone, MN-2-1-1-2-004", Packet{Src: correspondent, Dst: careOf, Protocol: IPv6, Payload: inner}, nil},
		{"the tunnel's own addresses, RFC 2473 section 4.1.2", Packet{Src: correspondent, Dst: home, Protocol: IPv6, Payload: inner}, errTunnelLoop},
		{"truncated", Packet{Src: agent, Dst: careOf, Protocol: IPv6, Payload: inner[:47]}, errInner},
		{"IPv4", Packet{Src: agent, Dst: careOf, Protocol: IPv6, Payload: append([]byte{0x45}, inner[1:]...)}, errInner},
	}
	for _, tt := range tests {
		if _, err := tt.p.Inner(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}
