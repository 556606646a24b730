package netbench

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
)

// The network. Client and server are each in a namespace.
//
//	client fd00:1::1 ── fd00:1::2 server ─┬─ TUN: fd00:2::1
//	                                      └─ TUN: fd00:3::1, care-of address fd00:4::1
const (
	clientEnd = "client"
	serverEnd = "server"
)

var (
	clientAddr = netip.MustParseAddr("fd00:1::1")
	serverAddr = netip.MustParseAddr("fd00:1::2")

	plainHome   = netip.MustParseAddr("fd00:2::1")
	boundHome   = netip.MustParseAddr("fd00:3::1")
	boundCareOf = netip.MustParseAddr("fd00:4::1")
)

// connect makes the link between this namespace, the client's, and that of the
// server's process.
func connect(server int) error {
	if err := netns.UpLoopback(); err != nil {
		return err
	}
	for name, value := range map[string]string{
		// Short connections use up ports; the kernel may use them again as
		// soon as it is safe.
		"ipv4/ip_local_port_range": "1024 65535",
		"ipv4/tcp_tw_reuse":        "1",
	} {
		if err := sysctl(name, value); err != nil {
			return err
		}
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: clientEnd}, PeerName: serverEnd}); err != nil {
		return fmt.Errorf("netbench: add veth: %w", err)
	}
	peer, err := netlink.LinkByName(serverEnd)
	if err == nil {
		err = netlink.LinkSetNsPid(peer, server)
	}
	if err != nil {
		return fmt.Errorf("netbench: move veth: %w", err)
	}
	return addAddr(clientEnd, clientAddr)
}

// disconnect undoes connect.
func disconnect() {
	if link, err := netlink.LinkByName(clientEnd); err == nil {
		netlink.LinkDel(link)
	}
}

// routeAll sends the client's packets to the server.
func routeAll() error {
	link, err := netlink.LinkByName(clientEnd)
	if err == nil {
		err = netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Gw: serverAddr.AsSlice(),
			Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		})
	}
	if err != nil {
		return fmt.Errorf("netbench: add route: %w", err)
	}
	return nil
}

// addAddr gives an interface its address and sets it up.
func addAddr(name string, a netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("netbench: %s: %w", name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("netbench: %s: add address: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("netbench: %s: set up: %w", name, err)
	}
	return nil
}

// awaitLink returns when the interface has come into this namespace.
func awaitLink(name string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := netlink.LinkByName(name); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func sysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("netbench: %w", err)
	}
	return nil
}

// onProcessors runs f, whose child processes may run on all processors or are
// pinned to one.
func onProcessors(one bool, f func()) {
	if !one {
		f()
		return
	}
	runtime.LockOSThread()
	var before, after unix.CPUSet
	if unix.SchedGetaffinity(0, &before) == nil {
		for cpu := range 64 * len(before) {
			if before.IsSet(cpu) { // the last that is allowed ends up alone
				after.Zero()
				after.Set(cpu)
			}
		}
		unix.SchedSetaffinity(0, &after)
	}
	f()
	if unix.SchedSetaffinity(0, &before) == nil {
		runtime.UnlockOSThread()
	} // else the thread ends with its goroutine
}
