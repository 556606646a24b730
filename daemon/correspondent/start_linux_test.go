package correspondent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/internal/kernelro"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// What cannot work is told, and leaves nothing behind.
func TestCannotStart(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.TUN, probe.NFQueue, probe.Program("ip6tables-restore"))
	good := config.Correspondent{State: t.TempDir(), Socket: filepath.Join(t.TempDir(), "socket")}
	log := slog.New(slog.DiscardHandler)
	first, err := New(good, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(good, log); err == nil || !strings.Contains(err.Error(), "choose another queue number") {
		t.Errorf("two with the same queue: %v", err)
	}
	second := good
	second.Queue = 1
	if _, err := New(second, log); err == nil || !strings.HasPrefix(err.Error(), "correspondent: start: host: ") {
		t.Errorf("two with the same state: %v", err)
	}
	second.State = t.TempDir()
	if _, err := New(second, log); err == nil || !strings.HasPrefix(err.Error(), "correspondent: start: server: ") {
		t.Errorf("two with the same socket: %v", err)
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

func TestLocals(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(netlink.Link, *netlink.Addr) error, a netip.Addr) {
		t.Helper()
		if err := f(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(128, 128)}}); err != nil {
			t.Fatal(err)
		}
	}
	old, fresh := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	change(netlink.AddrAdd, old)
	lost := make(chan netip.Addr, 1)
	l, err := newLocals(nil, func(a netip.Addr) { lost <- a })
	if err != nil {
		t.Fatal(err)
	}
	if !l.has(old) || l.has(fresh) || l.has(netip.IPv6Loopback()) {
		t.Errorf("at first: %v", l.now)
	}
	change(netlink.AddrAdd, fresh)
	change(netlink.AddrDel, old)
	if a := <-lost; a != old {
		t.Errorf("lost %v", a)
	}
	if l.has(old) {
		t.Errorf("then: %v", l.now)
	}
	// The kernel tells of a new address when it has looked for duplicates, which may be
	// after the other has gone.
	for late := time.Now().Add(time.Minute); !l.has(fresh); runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatalf("%v is not found", fresh)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}

	l, err = newLocals([]netip.Addr{old}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !l.has(old) || l.has(fresh) {
		t.Error("not those that were named")
	}
}

// A binding for which the kernel's table has no room has its route all the same.
func TestKernelFull(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	probe.Skip(t, probe.TUN, probe.BPF)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	must(err)
	// Usable at once, as the source of a route too.
	must(netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("2001:db8:1::1"), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}))
	dev, err := tun.Open(tun.Config{Name: "dscn%d", MTU: tun.MaxPacket})
	must(err)
	defer dev.Close()
	r, err := newRoutes(dev.Name(), true, 1, slog.New(slog.DiscardHandler))
	must(err)
	defer r.Close()
	if r.kernel == nil {
		t.Fatal("the kernel has no part in it")
	}
	local, careOf := netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::1")
	for _, home := range []string{"2001:db8:4::1", "2001:db8:4::2"} {
		home := netip.MustParseAddr(home)
		must(r.bound(local, home, careOf, time.Minute))
		found, err := netlink.RouteGet(home.AsSlice())
		if err != nil || len(found) != 1 || found[0].LinkIndex != r.index {
			t.Errorf("%v: %v, %v", home, found, err)
		}
	}
	if r.kernel.Bind(local, netip.MustParseAddr("2001:db8:4::2"), kernelro.Binding{CareOf: careOf}) == nil {
		t.Error("there was room")
	}
}

func TestWatch(t *testing.T) {
	var w watch
	for i, tt := range []struct {
		tooBig uint64
		now    time.Duration
		want   bool
	}{
		{0, 1 * time.Second, false},
		{1, 2 * time.Second, true},
		{1, 3 * time.Second, false},
		{2, 4 * time.Second, true},
		{3, 4*time.Second + 50*time.Millisecond, false}, // later
		{3, 4*time.Second + 150*time.Millisecond, true},
		{3, 5 * time.Second, false},
	} {
		if got := w.due(tt.tooBig, tt.now); got != tt.want {
			t.Errorf("%d: %t", i, got)
		}
	}
}

func TestPermitted(t *testing.T) {
	if permit(nil) != nil {
		t.Error("without prefixes")
	}
	f := permit([]netip.Prefix{netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("2001:db8:2::5/128")})
	for a, want := range map[string]bool{"2001:db8:1::5": true, "2001:db8:2::5": true, "2001:db8:2::6": false, "::": false} {
		if f(netip.MustParseAddr(a)) != want {
			t.Errorf("%s: %t", a, !want)
		}
	}
}

func TestWhatIsTransmitted(t *testing.T) {
	home, group := netip.MustParseAddr("2001:db8:d::5"), netip.MustParseAddr("ff02::16")
	packet := func(dst netip.Addr) []byte {
		p := wire.Packet{Src: netip.MustParseAddr("2001:db8:c::2"), Dst: dst, Protocol: wire.ICMPv6, Payload: make([]byte, 8)}
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
		{"to a home address", packet(home), true},
		{"to a group", packet(group), false},
		{"cut off", packet(home)[:39], false},
		{"IPv4", bytes.Repeat([]byte{4 << 4}, 60), false},
		{"empty", nil, false},
	} {
		if unicast(tt.b) != tt.want {
			t.Errorf("%s: %t", tt.name, !tt.want)
		}
	}
	if o := unfinished(packet(home)); !o.Partial || o.SumAt != 40 || o.SumOffset != 2 {
		t.Errorf("checksum of ICMPv6: %+v", o)
	}
	if o := unfinished(packet(home)[:42]); o.Partial {
		t.Errorf("checksum of half a packet: %+v", o)
	}
	b := packet(home)
	if !same(b, b) || same(b, bytes.Clone(b)) || same(b, b[:10]) || !same(nil, nil) {
		t.Error("same")
	}
}
