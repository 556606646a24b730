package homeagent

import (
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/mobility/wire"
)

// A Packet Too Big about a tunnel names the contact whose path is narrow; nothing
// else does.
func TestNarrow(t *testing.T) {
	addr := netip.MustParseAddr
	agent, careOf, client, home := addr("2001:db8:1::1"), addr("2001:db8:5::a"), addr("2001:db8:9::1"), addr("2001:db8:1::80")
	inner := make([]byte, wire.HeaderLen+1400)
	inner[0], inner[4], inner[5], inner[6], inner[7] = 6<<4, 1400>>8, 1400&0xff, byte(wire.TCP), 60
	copy(inner[8:], client.AsSlice())
	copy(inner[24:], home.AsSlice())
	tunnelled, err := wire.AppendTunnel(nil, agent, careOf, inner)
	if err != nil {
		t.Fatal(err)
	}
	about := func(kind wire.ErrorKind, quoted []byte) []byte {
		b, ok := wire.AppendError(nil, client, kind, 0, 1400, quoted, false)
		if !ok {
			t.Fatal("no error can be made")
		}
		return b
	}
	tooBig := about(wire.PacketTooBig, tunnelled)
	if got, ok := narrow(tooBig); !ok || got != careOf {
		t.Errorf("got %v, %t", got, ok)
	}
	for name, b := range map[string][]byte{
		"another error": about(wire.Unreachable, tunnelled),
		"no tunnel":     about(wire.PacketTooBig, inner),
		"no error":      tunnelled,
		"cut off":       tooBig[:wire.HeaderLen+8+wire.HeaderLen-1],
		"nothing":       nil,
	} {
		if got, ok := narrow(b); ok {
			t.Errorf("%s: %v", name, got)
		}
	}
}
