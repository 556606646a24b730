package homeagent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// agentConfig is a configuration that works in the test's own namespaces, once the
// address is there.
func agentConfig(t *testing.T) config.HomeAgent {
	t.Helper()
	probe.Skip(t, probe.TUN, probe.NFQueue, probe.Program("ip6tables-restore"))
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("2001:db8:d::1/128")
	if err != nil {
		t.Fatal(err)
	}
	addr.Flags = unix.IFA_F_NODAD // usable at once
	if err := netlink.AddrAdd(lo, addr); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("000102030405060708090a0b0c0d0e0f"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.HomeAgent{
		Address:  netip.MustParseAddr("2001:db8:d::1"),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8:d::/64")},
		Homes:    []config.Home{{Address: netip.MustParseAddr("2001:db8:d::5"), SPI: 256, KeyFile: key}},
		State:    t.TempDir(),
		Socket:   filepath.Join(t.TempDir(), "socket"),
	}
}

// What cannot work is told with its cure, and leaves nothing behind.
func TestCannotStart(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	good := agentConfig(t)
	key := good.Homes[0].KeyFile
	log := slog.New(slog.DiscardHandler)
	for want, change := range map[string]func(*config.HomeAgent){
		"add it to an interface": func(c *config.HomeAgent) { c.Address = netip.MustParseAddr("2001:db8:d::2") },
		"name the interface":     func(c *config.HomeAgent) { c.Interface = "nowhere0" },
		"is no Ethernet":         func(c *config.HomeAgent) { c.Interface = "lo" },
		"no such file":           func(c *config.HomeAgent) { c.Homes = []config.Home{{KeyFile: key + "s"}} },
		"tunnel MTU of 100":      func(c *config.HomeAgent) { c.TunnelMTU = 100 },
		"not unicast and routable": func(c *config.HomeAgent) {
			c.Homes = []config.Home{{Address: netip.IPv6LinkLocalAllNodes(), KeyFile: key}}
		},
		"is not a global IPv6 address": func(c *config.HomeAgent) { c.Address = netip.Addr{} },
	} {
		cfg := good
		change(&cfg)
		r, err := New(cfg, log)
		if err == nil {
			t.Errorf("%s: it started", want)
			r.Close()
			continue
		}
		if !strings.HasPrefix(err.Error(), "homeagent: start: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got: %v", want, err)
		}
	}

	// Two at a time.
	first, err := New(good, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(good, log); err == nil {
		t.Error("two at a time")
	} else {
		t.Log(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := first.Run(ctx); err != nil {
		t.Error(err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 {
		t.Errorf("left: %v", links)
	}
	if _, err := os.Stat(good.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket: %v", err)
	}
}

func TestReload(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	cfg := agentConfig(t)
	r, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	homes := func() (served, routed []netip.Addr) {
		t.Helper()
		st, err := r.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range st.Homes {
			served = append(served, h.Address)
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: 79}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if ones, _ := r.Dst.Mask.Size(); ones == 128 {
				a, _ := netip.AddrFromSlice(r.Dst.IP.To16())
				routed = append(routed, a)
			}
		}
		slices.SortFunc(routed, netip.Addr.Compare)
		return served, routed
	}
	five, six := cfg.Homes[0], cfg.Homes[0]
	six.Address = netip.MustParseAddr("2001:db8:d::6")
	for _, want := range [][]config.Home{{five, six}, {six}, {five}} {
		cfg.Homes = want
		if err := r.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		var addrs []netip.Addr
		for _, h := range want {
			addrs = append(addrs, h.Address)
		}
		if served, routed := homes(); !slices.Equal(served, addrs) || !slices.Equal(routed, addrs) {
			t.Errorf("%v served, %v routed, want %v", served, routed, addrs)
		}
	}
	for want, change := range map[string]func(*config.HomeAgent){
		"takes a restart": func(c *config.HomeAgent) { c.TunnelMTU = 1400 },
		"no such file":    func(c *config.HomeAgent) { c.Homes = []config.Home{{Address: six.Address, KeyFile: "nowhere"}} },
		"not unicast and routable": func(c *config.HomeAgent) {
			c.Homes = []config.Home{{Address: netip.IPv6LinkLocalAllNodes(), KeyFile: six.KeyFile}}
		},
	} {
		bad := cfg
		change(&bad)
		if err := r.Reload(bad); err == nil || !strings.HasPrefix(err.Error(), "homeagent: reload: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if served, _ := homes(); !slices.Equal(served, []netip.Addr{five.Address}) {
			t.Errorf("after %q: %v", want, served)
		}
	}
}

func TestForwarded(t *testing.T) {
	home, group := netip.MustParseAddr("2001:db8:d::5"), netip.MustParseAddr("ff02::16")
	packet := func(dst netip.Addr, proto wire.Protocol, payload ...byte) []byte {
		p := wire.Packet{Src: netip.MustParseAddr("2001:db8:c::2"), Dst: dst, Protocol: proto, Payload: payload}
		b, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"TCP", packet(home, wire.TCP, 1, 2, 3), true},
		{"echo request", packet(home, wire.ICMPv6, 128, 0), true},
		{"error", packet(home, wire.ICMPv6, 1, 3), true},
		{"nothing", packet(home, wire.ICMPv6), true},
		{"neighbor solicitation", packet(home, wire.ICMPv6, 135, 0), false},
		{"redirect", packet(home, wire.ICMPv6, 137, 0), false},
		{"to a group", packet(group, wire.ICMPv6, 143, 0), false},
		{"cut off", packet(home, wire.TCP)[:39], false},
		{"IPv4", []byte(strings.Repeat("E", 60)), false},
		{"empty", nil, false},
	} {
		if got := forwarded(tt.b); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestForForwarding(t *testing.T) {
	p := make([]byte, 40+32+3000)
	p[0], p[6], p[7], p[40+12] = 6<<4, 6, 63, 8<<4
	o := forForwarding(rawip.Super{Packet: p, SegmentSize: 1400})
	want := tun.Offload{Partial: true, SumAt: 40, SumOffset: 16, SegmentSize: 1400, HeaderSize: 72}
	if o != want || p[7] != 64 {
		t.Errorf("%+v, hop limit %d", o, p[7])
	}
}

func TestLeaves(t *testing.T) {
	for status, want := range map[wire.Status]bool{
		wire.Accepted: true, wire.DuplicateAddress: true,
		wire.AuthFail: false, wire.MessageIDMismatch: false, wire.NotHomeSubnet: false,
	} {
		if leaves(status) != want {
			t.Errorf("%v: %t", status, !want)
		}
	}
}

// What is for the operator to choose (RFC 6275 sections 8.4, 13) reaches the machine.
func TestMachineConfig(t *testing.T) {
	cfg := config.Config{HomeAgent: new(config.HomeAgent)}
	cfg.SetDefaults()
	m := machineConfig(cfg.HomeAgent, nil, time.Now())
	if m.NoPrefixAdvertisements || m.MinPrefixInterval != 600*time.Second || m.MaxPrefixInterval != 86400*time.Second {
		t.Errorf("by default: %+v", m)
	}
	cfg.HomeAgent.PrefixAdvertisements = new(false)
	cfg.HomeAgent.MinPrefixInterval, cfg.HomeAgent.MaxPrefixInterval = config.Duration(time.Minute), config.Duration(time.Hour)
	m = machineConfig(cfg.HomeAgent, nil, time.Now())
	if !m.NoPrefixAdvertisements || m.MinPrefixInterval != time.Minute || m.MaxPrefixInterval != time.Hour {
		t.Errorf("%+v", m)
	}
}
