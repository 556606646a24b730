package homeagent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/host"
)

// routes lead packets into the TUN, and go with it.
type routes struct {
	nl    *netlink.Handle
	index int // of the TUN
	homes map[netip.Addr]bool
}

// unlikely is the metric of the route of a home prefix: any other is better,
// such as that of the link, if there is one.
const unlikely = 1 << 16

// newRoutes adds the routes of all home addresses. Those without a binding have
// one too: while a contact is expected, silence is better than an ICMPv6 error.
//
// Where there is no home link, the rest of the prefixes is the machine's as well,
// which answers that there is no such address.
func newRoutes(tun string, cfg *config.HomeAgent) (*routes, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	r := &routes{nl: nl, homes: make(map[netip.Addr]bool)}
	if err := r.addAll(tun, cfg); err != nil {
		nl.Close()
		return nil, err
	}
	return r, nil
}

func (r *routes) addAll(tun string, cfg *config.HomeAgent) error {
	link, err := r.nl.LinkByName(tun)
	if err != nil {
		return fmt.Errorf("find %s: %w", tun, err)
	}
	r.index = link.Attrs().Index
	for _, h := range cfg.Homes {
		if err := r.set(h.Address, true); err != nil {
			return err
		}
	}
	if cfg.Interface != "" {
		return nil
	}
	for _, p := range cfg.Prefixes {
		if err := r.nl.RouteAdd(r.route(p, unlikely)); err != nil {
			return fmt.Errorf("add route %v to %s: %w", p, tun, err)
		}
	}
	return nil
}

func (r *routes) route(p netip.Prefix, metric int) *netlink.Route {
	return &netlink.Route{
		LinkIndex: r.index,
		Dst:       &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 128)},
		Priority:  metric,
		Protocol:  netlink.RouteProtocol(host.ProtocolHomeAgent),
	}
}

// set makes packets to a home address ours, or not.
func (r *routes) set(home netip.Addr, ours bool) error {
	if r.homes[home] == ours {
		return nil
	}
	const metric = 1 // better than any that somebody else may have
	route := r.route(netip.PrefixFrom(home, 128), metric)
	change, name := r.nl.RouteAdd, "add"
	if !ours {
		change, name = r.nl.RouteDel, "remove"
	}
	err := change(route)
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%w: another interface has it; remove that route first", err)
	}
	if err != nil {
		return fmt.Errorf("%s route to %v: %w", name, home, err)
	}
	r.homes[home] = ours
	return nil
}

// Close leaves the routes to the TUN's end.
func (r *routes) Close() error {
	r.nl.Close()
	return nil
}
