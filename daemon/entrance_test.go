package daemon

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/mobility/wire"
)

// An error about the kernel's tunnel becomes one about the application's packet, and
// no other does.
func TestEntranceError(t *testing.T) {
	addr := netip.MustParseAddr
	from, into, home := addr("2001:db8:5::a"), addr("2001:db8:5::b"), addr("2001:db8:1::80")
	client, router := addr("2001:db8:9::1"), addr("2001:db8:6::1")
	packet := func(src netip.Addr) []byte {
		b := make([]byte, wire.HeaderLen+1360)
		b[0], b[4], b[5], b[6], b[7] = 6<<4, 1360>>8, 1360&0xff, byte(wire.TCP), 60
		copy(b[8:], src.AsSlice())
		copy(b[24:], client.AsSlice())
		return b
	}
	tooBig := func(from, into, src netip.Addr) []byte {
		t.Helper()
		tunnelled, err := wire.AppendTunnel(nil, from, into, packet(src))
		if err != nil {
			t.Fatal(err)
		}
		b, ok := wire.AppendError(nil, router, wire.PacketTooBig, 0, 1400, tunnelled, false)
		if !ok {
			t.Fatal("no error can be made")
		}
		return b
	}
	got := entranceError(tooBig(from, into, home), from, into, home)
	p, err := wire.ParsePacket(got)
	if err != nil {
		t.Fatalf("%x: %v", got, err)
	}
	m, err := wire.ParseICMP(&p)
	if err != nil {
		t.Fatal(err)
	}
	e := m.(*wire.ICMPError)
	if p.Dst != home || p.Src != from || e.Kind != wire.PacketTooBig || e.Param != 1360 || !bytes.HasPrefix(packet(home)[wire.HeaderLen:], e.Quoted[wire.HeaderLen:]) {
		t.Errorf("got %+v from %s to %s", e, p.Src, p.Dst)
	}
	for name, b := range map[string][]byte{
		"of another daemon":  tooBig(router, into, home),
		"to another contact": tooBig(from, router, home),
		"of another server":  tooBig(from, into, router),
		"no error":           packet(from),
		"nothing":            nil,
		"cut off":            tooBig(from, into, home)[:wire.HeaderLen+8+wire.HeaderLen],
	} {
		if got := entranceError(b, from, into, home); got != nil {
			t.Errorf("%s: %x", name, got)
		}
	}
	if got := entranceError(tooBig(from, into, home), from, netip.Addr{}, home); got != nil {
		t.Errorf("without an entrance: %x", got)
	}
}
