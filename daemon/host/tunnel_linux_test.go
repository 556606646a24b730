package host

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/probe"
)

// Routes into tunnels and out of them are marked and undone as others are; an
// entrance takes another one's place.
func TestTunnelRoutes(t *testing.T) {
	if !own(t) {
		return
	}
	probe.Skip(t, probe.Seg6)
	before := everything(t)
	const table = 300
	exit, first, second := netip.MustParseAddr("100::1"), netip.MustParseAddr("2001:db8:5::1"), netip.MustParseAddr("2001:db8:5::2")
	for _, how := range []string{"Remove", "Close"} {
		h := open(t, t.TempDir())
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(h.AddExit(exit, "v0", table))
		must(h.AddExit(exit, "v0", table))
		rule := Rule{From: service, Iif: "d0", IPProto: unix.IPPROTO_TCP, Table: table, Priority: 900}
		must(h.AddRule(rule))
		for _, into := range []netip.Addr{first, second, second} {
			must(h.AddEntrance("d0", table, careOf, into))
		}
		now := everything(t)
		for _, want := range []string{
			"seg6 mode encap.red segs 1 [ 2001:db8:5::2 ] dev d0 table 300 proto 78",
			"100::1  encap seg6local action End.DX6 nh6 :: dev v0 table 300 proto 78",
			"from 2001:db8:d::1 iif d0 ipproto tcp lookup 300 proto 78",
			"inet6 2001:db8:c::1/128",
		} {
			if !strings.Contains(now, want) {
				t.Errorf("no %q in\n%s", want, now)
			}
		}
		if strings.Contains(now, first.String()) {
			t.Error("there are two entrances")
		}
		if how == "Remove" {
			must(h.RemoveEntrance("d0", table, careOf, first)) // not there any more
			must(h.RemoveEntrance("d0", table, careOf, second))
			must(h.RemoveRule(rule))
			must(h.RemoveExit(exit, "v0", table))
			differ(t, "after Remove", everything(t), before)
		}
		must(h.Close())
		differ(t, "after "+how, everything(t), before)
	}
}

// What a killed daemon has left of them is found by its mark. The address stays: it
// goes with the interface, which is the daemon's.
func TestSweepTunnelRoutes(t *testing.T) {
	if !own(t) {
		return
	}
	probe.Skip(t, probe.Seg6)
	h := open(t, t.TempDir())
	if err := h.AddExit(netip.MustParseAddr("100::1"), "v0", 300); err != nil {
		t.Fatal(err)
	}
	if err := h.AddEntrance("d0", 300, careOf, netip.MustParseAddr("2001:db8:5::1")); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(ProtocolNode); err != nil {
		t.Fatal(err)
	}
	if now := everything(t); strings.Contains(now, "encap seg6") {
		t.Errorf("left:\n%s", now)
	}
}
