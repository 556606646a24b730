package host

import (
	"encoding/hex"
	"testing"
)

// struct ndmsg of interface 5, with NTF_PROXY, NDA_DST and NDA_PROTOCOL.
const proxyMessage = "0a000000" + "05000000" + "00000800" + // family, index, state, flags
	"14000100" + "20010db8000c00000000000000000001" + "05000c00" + "4e000000"

func TestParseProxy(t *testing.T) {
	b, err := hex.DecodeString(proxyMessage)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := parseProxy(b); !ok || e != (proxyEntry{5, careOf, ProtocolNode}) {
		t.Errorf("%+v, %t", e, ok)
	}
	for n := range len(b) - 8 {
		if e, ok := parseProxy(b[:n]); ok {
			t.Errorf("%d octets: %+v", n, e)
		}
	}
}

func FuzzParseProxy(f *testing.F) {
	b, err := hex.DecodeString(proxyMessage)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, ok := parseProxy(b); ok && (!e.addr.Is6() || len(b) < 12+4+16) {
			t.Errorf("%+v of %d octets", e, len(b))
		}
	})
}
