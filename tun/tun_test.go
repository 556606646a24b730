package tun

import (
	"net/netip"
	"strings"
	"testing"
)

func TestConfigCheck(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")
	for _, tc := range []struct {
		name string
		c    Config
		want string // in the error; empty: none
	}{
		{"zero", Config{}, ""},
		{"all", Config{Name: "service%d", MTU: 65535, Addrs: []netip.Prefix{v4, v6}, Routes: []netip.Prefix{v6}}, ""},
		{"long name", Config{Name: "0123456789abcdef"}, "16 octets"},
		{"small", Config{MTU: 67}, "use 68 to 65535"},
		{"smallest", Config{MTU: 68, Addrs: []netip.Prefix{v4}}, ""},
		{"small for IPv6", Config{MTU: 1279, Routes: []netip.Prefix{v6}}, "use 1280 to 65535"},
		{"large", Config{MTU: 65536}, "out of range"},
		{"negative", Config{MTU: -1}, "out of range"},
		{"zero prefix", Config{Routes: []netip.Prefix{{}}}, "not an IPv4 or IPv6 prefix"},
		{"mapped", Config{Addrs: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.1/128")}}, "not an IPv4 or IPv6 prefix"},
	} {
		err := tc.c.withDefaults().check()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}
