package host

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// readyFor finds the interface for a new address, and what would be in its way.
func readyFor(iface string, addr netip.Prefix) (netlink.Link, error) {
	operation := fmt.Sprintf("add address %v", addr)
	if !isIPv6(addr) {
		return nil, fmt.Errorf("host: %s: not an address of IPv6 with the length of its prefix", operation)
	}
	link, err := findLink(operation, iface)
	switch {
	case err != nil:
		return nil, err
	case ipv6Disabled(iface):
		return nil, fmt.Errorf("host: %s: IPv6 is disabled on %s; switch it on (sysctl -w net.ipv6.conf.%s.disable_ipv6=0)", operation, iface, iface)
	case link.Attrs().Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("host: %s: interface %s is down; set it up (ip link set %s up)", operation, iface, iface)
	}
	there, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("host: %s: %w", operation, err)
	}
	for _, a := range there {
		if !a.IP.Equal(addr.Addr().AsSlice()) {
			continue
		}
		where := "another interface"
		if l, err := netlink.LinkByIndex(a.LinkIndex); err == nil {
			where = l.Attrs().Name
		}
		return nil, fmt.Errorf("host: %s: %w: address already in use on %s; remove it there (ip addr del %s dev %s), or configure another",
			operation, unix.EADDRINUSE, where, a.IPNet, where)
	}
	return link, nil
}

func addAddr(link netlink.Link, addr netip.Prefix) error {
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("host: add address %v to %s: %w", addr, link.Attrs().Name, explain(err))
	}
	return nil
}

func removeAddr(iface string, addr netip.Prefix) error {
	link, err := netlink.LinkByName(iface)
	if err == nil {
		err = netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(addr)})
	}
	if err = gone(err); err != nil {
		return fmt.Errorf("host: remove address %v from %s: %w", addr, iface, explain(err))
	}
	return nil
}

// Duplicate Address Detection takes a second at most before it begins and one
// for the answer, with the usual sysctls (RFC 4862 section 5.4).
const (
	uniqueWithin = 10 * time.Second
	uniquePoll   = 10 * time.Millisecond
)

// awaitUnique waits until Duplicate Address Detection is over.
func awaitUnique(link netlink.Link, addr netip.Prefix) error {
	for deadline := time.Now().Add(uniqueWithin); time.Now().Before(deadline); time.Sleep(uniquePoll) {
		list, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V6) })
		if err != nil {
			return fmt.Errorf("host: add address %v: %w", addr, err)
		}
		flags, there := 0, false
		for _, a := range list {
			if a.IP.Equal(addr.Addr().AsSlice()) {
				flags, there = a.Flags, true
			}
		}
		switch {
		case !there || flags&unix.IFA_F_DADFAILED != 0:
			return fmt.Errorf("host: add address %v: %w: another host on the link of %s has it; configure one that is free",
				addr, unix.EADDRINUSE, link.Attrs().Name)
		case flags&unix.IFA_F_TENTATIVE == 0:
			return nil
		}
	}
	return fmt.Errorf("host: add address %v: Duplicate Address Detection on %s takes more than %v; is the link there (ip link show %s)?",
		addr, link.Attrs().Name, uniqueWithin, link.Attrs().Name)
}
