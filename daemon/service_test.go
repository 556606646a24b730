package daemon

import (
	"net/netip"
	"testing"

	"github.com/distributed-servers/ds/mobility/wire"
)

var (
	client = netip.MustParseAddr("2001:db8:c::1")
	dsa    = netip.MustParseAddr("2001:db8:1::1")
)

func packet(t *testing.T, protocol wire.Protocol, payload []byte) []byte {
	t.Helper()
	p := wire.Packet{Src: client, Dst: dsa, Protocol: protocol, Payload: payload}
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestIsSignalling(t *testing.T) {
	mobility := packet(t, wire.Mobility, (&wire.HomeTest{}).Append(nil, client, dsa))
	about := func(quoted []byte) []byte {
		return packet(t, wire.ICMPv6, (&wire.ICMPError{Kind: wire.ParameterProblem, Code: 1, Quoted: quoted}).Append(nil, client, dsa))
	}
	tcp := packet(t, wire.TCP, make([]byte, 20))
	for name, tc := range map[string]struct {
		b    []byte
		want bool
	}{
		"home test":                     {mobility, true},
		"error about a mobility header": {about(mobility), true},
		"error about data":              {about(tcp), false},
		"error about nothing":           {about(nil), false},
		"data":                          {tcp, false},
		"cut":                           {mobility[:41], false},
		"header only":                   {make([]byte, 40), false},
	} {
		if got := isSignalling(tc.b); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The name is the same after every start, and fits (IFNAMSIZ).
func TestInterfaceName(t *testing.T) {
	seen := make(map[string]bool)
	for i := range 1000 {
		a := dsa.As16()
		a[14], a[15] = byte(i>>8), byte(i)
		name := interfaceName(netip.AddrFrom16(a))
		if len(name) > 15 || seen[name] || name != interfaceName(netip.AddrFrom16(a)) {
			t.Fatalf("%s", name)
		}
		seen[name] = true
	}
}
