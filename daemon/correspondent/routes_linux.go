package correspondent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

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
	paths map[netip.Addr]path      // to care-of addresses, as looked up lately
	ways  map[string]*rawip.Sender // by interface, past the TUN
}

// path is the way to a care-of address.
type path struct {
	out   string // interface
	mtu   int    // of the route to the home address, so that a routing header fits
	until time.Time
}

// A path is looked up again with the first binding after pathTime: the kernel takes
// longer to answer than all else that a Binding Update needs, and clients of a few
// nodes ask for the same ones. There are no more than maxPaths.
const (
	pathTime = time.Second
	maxPaths = 1024
)

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
		homes: make(map[netip.Addr]*homeRoute), paths: make(map[netip.Addr]path), ways: make(map[string]*rawip.Sender),
	}, nil
}

// bound tells that there is a binding.
func (r *routes) bound(local, home, careOf netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := r.path(careOf)
	if err != nil {
		return fmt.Errorf("path to care-of address %v: %w", careOf, err)
	}
	h := r.homes[home]
	fresh := h == nil
	if fresh {
		h = &homeRoute{locals: make(map[netip.Addr]bool), source: local}
	}
	h.careOf, h.out = careOf, p.out
	if fresh || h.mtu != p.mtu {
		h.mtu = p.mtu
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
	clear(r.paths)
	var errs []error
	for home, h := range r.homes {
		p, err := r.path(h.careOf)
		if err == nil && p.mtu != h.mtu {
			h.mtu = p.mtu
			err = r.nl.RouteReplace(r.route(home, h))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("route to home address %v: %w", home, err))
			continue
		}
		h.out = p.out
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

// path looks a path up. mu is held.
func (r *routes) path(careOf netip.Addr) (path, error) {
	now := time.Now()
	if p, known := r.paths[careOf]; known && now.Before(p.until) {
		return p, nil
	}
	found, err := r.nl.RouteGet(careOf.AsSlice())
	if err != nil {
		return path{}, err
	}
	if len(found) == 0 {
		return path{}, unix.ENETUNREACH
	}
	if found[0].LinkIndex == r.index {
		return path{}, errors.New("it is itself a home address with a binding")
	}
	link, err := r.nl.LinkByIndex(found[0].LinkIndex)
	if err != nil {
		return path{}, err
	}
	mtu := link.Attrs().MTU
	if found[0].MTU > 0 {
		mtu = min(mtu, found[0].MTU)
	}
	if len(r.paths) >= maxPaths {
		clear(r.paths)
	}
	p := path{out: link.Attrs().Name, mtu: mtu - correspondent.Overhead, until: now.Add(pathTime)}
	r.paths[careOf] = p
	return p, nil
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
