package correspondent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/mobility/correspondent"
)

// routes lead what is for bound home addresses into the TUN, and go with it.
type routes struct {
	nl    *netlink.Handle
	index int // of the TUN

	mu    sync.Mutex
	homes map[netip.Addr]*homeRoute
	ways  map[string]*rawip.Sender // by interface, past the TUN
}

// homeRoute is the route to a home address: there while there is a binding of
// it for any address of this host.
type homeRoute struct {
	locals map[netip.Addr]bool
	careOf netip.Addr // the last one told
	source netip.Addr // preferred for new connections
	mtu    int
	out    string // interface by which its care-of address is reached
}

func newRoutes(name string) (*routes, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	link, err := nl.LinkByName(name)
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return &routes{
		nl: nl, index: link.Attrs().Index,
		homes: make(map[netip.Addr]*homeRoute), ways: make(map[string]*rawip.Sender),
	}, nil
}

// bound tells that there is a binding.
func (r *routes) bound(local, home, careOf netip.Addr) error {
	out, mtu, err := r.path(careOf)
	if err != nil {
		return fmt.Errorf("path to care-of address %v: %w", careOf, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.homes[home]
	fresh := h == nil
	if fresh {
		h = &homeRoute{locals: make(map[netip.Addr]bool), source: local}
	}
	h.careOf, h.out = careOf, out
	if fresh || h.mtu != mtu {
		h.mtu = mtu
		if err := r.nl.RouteReplace(r.route(home, h)); err != nil {
			return fmt.Errorf("route to home address %v: %w", home, err)
		}
	}
	h.locals[local] = true
	r.homes[home] = h
	return nil
}

// refresh looks at all paths again: an interface has a smaller MTU than before,
// or packets leave by another.
func (r *routes) refresh() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for home, h := range r.homes {
		out, mtu, err := r.path(h.careOf)
		if err == nil && mtu != h.mtu {
			h.mtu = mtu
			err = r.nl.RouteReplace(r.route(home, h))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("route to home address %v: %w", home, err))
			continue
		}
		h.out = out
	}
	return errors.Join(errs...)
}

// unbound tells that there is none any more.
func (r *routes) unbound(local, home netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.homes[home]
	if h == nil || !h.locals[local] {
		return nil
	}
	delete(h.locals, local)
	if len(h.locals) == 0 {
		delete(r.homes, home)
		err := r.nl.RouteDel(r.route(home, h))
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to home address %v: %w", home, err)
		}
		return nil
	}
	if h.source == local {
		for h.source = range h.locals {
			break
		}
		if err := r.nl.RouteReplace(r.route(home, h)); err != nil {
			return fmt.Errorf("route to home address %v: %w", home, err)
		}
	}
	return nil
}

// metric of the routes, better than any that somebody else may have.
const metric = 1

func (r *routes) route(home netip.Addr, h *homeRoute) *netlink.Route {
	return &netlink.Route{
		LinkIndex: r.index,
		Dst:       &net.IPNet{IP: home.AsSlice(), Mask: net.CIDRMask(128, 128)},
		Src:       h.source.AsSlice(),
		MTU:       h.mtu,
		Priority:  metric,
		Protocol:  netlink.RouteProtocol(host.ProtocolCorrespondent),
	}
}

// path is the interface by which careOf is reached, and the MTU that the route to
// the home address has so that a routing header fits.
func (r *routes) path(careOf netip.Addr) (out string, mtu int, err error) {
	found, err := r.nl.RouteGet(careOf.AsSlice())
	if err != nil {
		return "", 0, err
	}
	if len(found) == 0 {
		return "", 0, unix.ENETUNREACH
	}
	if found[0].LinkIndex == r.index {
		return "", 0, errors.New("it is itself a home address with a binding")
	}
	link, err := r.nl.LinkByIndex(found[0].LinkIndex)
	if err != nil {
		return "", 0, err
	}
	mtu = link.Attrs().MTU
	if found[0].MTU > 0 {
		mtu = min(mtu, found[0].MTU)
	}
	return link.Attrs().Name, mtu - correspondent.Overhead, nil
}

// around is a sender whose packets do not go by the route to home.
func (r *routes) around(home netip.Addr) (*rawip.Sender, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.homes[home]
	if h == nil {
		return nil, unix.ENETUNREACH
	}
	s := r.ways[h.out]
	if s != nil {
		return s, nil
	}
	s, err := rawip.NewSender()
	if err != nil {
		return nil, err
	}
	if err := s.SetInterface(h.out); err != nil {
		s.Close()
		return nil, err
	}
	r.ways[h.out] = s
	return s, nil
}

// Close leaves the routes to the TUN's end.
func (r *routes) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, s := range r.ways {
		errs = append(errs, s.Close())
	}
	r.nl.Close()
	return errors.Join(errs...)
}
