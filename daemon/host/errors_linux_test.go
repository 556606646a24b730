package host

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestErrors(t *testing.T) {
	if !own(t) {
		return
	}
	before := everything(t)
	h := open(t, t.TempDir())
	ip(t, "link", "add", "f1", "type", "veth", "peer", "name", "f2")
	ip(t, "link", "set", "f2", "up")
	if err := writeSysctl("net/ipv6/conf/f2/disable_ipv6", "1"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"no interface", h.AddRoute(service, "eth9", 0), "interface eth9 does not exist; interfaces here: lo, "},
		{"no interface for a proxy", h.AddProxy("eth9", careOf), "there is no interface eth9"},
		{"no interface for an address", h.AddAddr("eth9", address), "interface eth9 does not exist"},
		{"address of this interface", h.AddAddr("v0", netip.MustParsePrefix("2001:db8:1::1/64")), "address already in use on v0"},
		{"address of another interface", h.AddAddr("v1", netip.MustParsePrefix("2001:db8:1::1/64")), "address already in use on v0"},
		{"interface down", h.AddAddr("f1", address), "ip link set f1 up"},
		{"route to an interface that is down", h.AddRoute(service, "f1", 0), "ip link set f1 up"},
		{"IPv6 disabled", h.AddAddr("f2", address), "disable_ipv6=0"},
		{"route through an interface without IPv6", h.AddRoute(service, "f2", 0), "IPv6 disabled"},
		{"route of others", h.AddRoute(netip.MustParsePrefix("2001:db8:77::/64"), "d0", 0), "there is one to d0 of protocol bird in table 254"},
		{"proxy of others", h.AddProxy("v0", netip.MustParseAddr("2001:db8:1::99")), "v0 has one of protocol 0"},
		{"IPv4 route", h.AddRoute(netip.MustParsePrefix("10.0.0.0/8"), "d0", 0), "not a prefix of IPv6"},
		{"IPv4 address", h.AddAddr("d0", netip.MustParsePrefix("10.0.0.1/8")), "not an address of IPv6"},
		{"IPv4 proxy", h.AddProxy("d0", netip.MustParseAddr("10.0.0.1")), "not an address of IPv6"},
		{"rule without a table", h.AddRule(Rule{From: service}), "needs a table"},
		{"sysctl of others", h.SetSysctl("kernel.panic", "1"), "not one of the network's"},
		{"sysctl that leads away", h.SetSysctl("net/../kernel/panic", "1"), "not one of the network's"},
		{"no such sysctl", h.SetSysctl("net.ipv6.conf.eth9.forwarding", "1"), "there is no interface eth9"},
		{"no such value", h.SetSysctl("net.ipv6.conf.v0.accept_ra", "yes"), "invalid argument"},
		{"no state", func() error { _, err := Open(Config{}); return err }(), "no state directory"},
	} {
		if tc.err == nil || !strings.Contains(tc.err.Error(), tc.want) || !strings.HasPrefix(tc.err.Error(), "host: ") {
			t.Errorf("%s: got %v, want it to say %q", tc.name, tc.err, tc.want)
		}
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	ip(t, "link", "del", "f1")
	differ(t, "after the errors", everything(t), before)
}

// Another host on the link has the address.
func TestDuplicateAddress(t *testing.T) {
	if !own(t) {
		return
	}
	h := open(t, t.TempDir())
	// The other end of the link answers for it.
	if err := errors.Join(h.Forward(), h.AddProxy("v1", address.Addr()), h.AddRoute(address, "d0", 0)); err != nil {
		t.Fatal(err)
	}
	if err := writeSysctl("net/ipv6/conf/v0/accept_dad", "1"); err != nil {
		t.Fatal(err)
	}
	err := h.AddAddr("v0", address)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another host on the link of v0 has it") {
		t.Errorf("got %v", err)
	}
	link, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.IP.Equal(address.Addr().AsSlice()) {
			t.Error("the address is still there")
		}
	}
}
