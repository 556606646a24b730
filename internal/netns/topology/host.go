//go:build linux

package topology

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
)

// threadNS is the network namespace of the calling thread.
const threadNS = "/proc/thread-self/ns/net"

// Host is a host of a [Net]: a network namespace.
type Host struct {
	net  *Net
	name string
	fd   int
}

// Name is the host's.
func (h *Host) Name() string { return h.name }

// Do runs f in the host: what f does to the network, the sockets it opens, the
// interfaces and the files of /proc/sys/net that it sees are the host's. Sockets
// stay the host's. Goroutines that f starts are not in the host.
func (h *Host) Do(f func() error) error {
	return inThread(func() error { return unix.Setns(h.fd, unix.CLONE_NEWNET) }, f)
}

// inThread runs enter, which changes the network namespace of the thread, and
// then f on the same thread, and brings the thread back.
func inThread(enter, f func() error) error {
	runtime.LockOSThread()
	back, err := unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open %s: %w", threadNS, err)
	}
	defer func() {
		err := unix.Setns(back, unix.CLONE_NEWNET)
		unix.Close(back)
		if err != nil {
			// The goroutine would go on in the wrong network.
			panic(fmt.Sprintf("topology: no way back to the network of this process: %v", err))
		}
		runtime.UnlockOSThread()
	}()
	if err := enter(); err != nil {
		return fmt.Errorf("change the network namespace: %w", err)
	}
	return f()
}

// prepare configures a new namespace, from within.
func (h *Host) prepare() error {
	for _, s := range [][2]string{
		// A host is ready at once.
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/router_solicitations", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
	} {
		if err := writeSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return netns.UpLoopback()
}

// Sysctl sets a variable of the host, such as net.ipv6.conf.all.forwarding.
func (h *Host) Sysctl(name, value string) error {
	err := h.Do(func() error { return writeSysctl(strings.ReplaceAll(name, ".", "/"), value) })
	if err != nil {
		return fmt.Errorf("topology: %s: sysctl %s=%s: %w", h.name, name, value, err)
	}
	return nil
}

// writeSysctl sets a variable of the thread's namespace. The path is below
// /proc/sys.
func writeSysctl(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0)
}

// Forward makes a router of the host.
func (h *Host) Forward() error { return h.Sysctl("net.ipv6.conf.all.forwarding", "1") }

// Route adds a route to dst by way of the router via.
func (h *Host) Route(dst netip.Prefix, via netip.Addr) error {
	err := h.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()})
	})
	if err != nil {
		return fmt.Errorf("topology: %s: route %s via %s: %w", h.name, dst, via, err)
	}
	return nil
}

// AddAddr adds an address to an interface of the host.
func (h *Host) AddAddr(link string, addr netip.Prefix) error {
	err := h.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(addr), Flags: unix.IFA_F_NODAD})
	})
	if err != nil {
		return fmt.Errorf("topology: %s: address %s on %s: %w", h.name, addr, link, err)
	}
	return nil
}

// Listen is [net.Listen] in the host. The address is numeric.
func (h *Host) Listen(network, address string) (l net.Listener, err error) {
	err = h.Do(func() error { l, err = net.Listen(network, address); return err })
	return l, err
}

// Dial is [net.Dialer.Dial] in the host. The address is numeric.
func (h *Host) Dial(network, address string) (c net.Conn, err error) {
	err = h.Do(func() error {
		// With a numeric address, the dialer does without goroutines.
		c, err = (&net.Dialer{}).Dial(network, address)
		return err
	})
	return c, err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
