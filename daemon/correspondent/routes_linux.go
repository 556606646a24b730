package correspondent

import (
	"errors"
	"fmt"
	"log/slog"
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
	nl     *netlink.Handle
	index  int     // of the TUN
	kernel *kernel // nil: what comes there is for the machine
	done   chan struct{}

	mu    sync.Mutex
	homes map[netip.Addr]*homeRoute
	paths map[netip.Addr]path      // to care-of addresses, as looked up lately
	ways  map[string]*rawip.Sender // by interface, past the TUN
}

// path is the way to a care-of address.
type path struct {
	out   netlink.Link // interface
	mtu   int          // of the route to the home address, so that a routing header fits
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
	locals map[netip.Addr]netip.Addr // care-of addresses, by address of this host
	careOf netip.Addr                // the last one told
	source netip.Addr                // preferred for new connections
	mtu    int
	out    string // interface by which its care-of address is reached
}

// newRoutes has kernel, if that is true and the kernel can, treat packets of bindings.
func newRoutes(name string, withKernel bool, maxBindings int, log *slog.Logger) (_ *routes, err error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	link, err := nl.LinkByName(name)
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	r := &routes{
		nl: nl, index: link.Attrs().Index, done: make(chan struct{}),
		homes: make(map[netip.Addr]*homeRoute), paths: make(map[netip.Addr]path), ways: make(map[string]*rawip.Sender),
	}
	if withKernel {
		if r.kernel, err = newKernel(r.index, maxBindings, log); err != nil {
			log.Info("this process treats packets of bindings, since the kernel cannot; that takes more time", "error", err)
		}
	}
	err = watchPaths(r.index, r.done, func() {
		if err := r.refresh(); err != nil {
			log.Warn("path to a care-of address", "error", err)
		}
	})
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// bound tells that there is a binding, or that it has changed.
func (r *routes) bound(local, home, careOf netip.Addr, lifetime time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := r.path(careOf)
	if err != nil {
		return errors.Join(fmt.Errorf("path to care-of address %v: %w", careOf, err), r.kernel.unbind(local, home))
	}
	r.kernel.bind(local, home, careOf, p, lifetime)
	h := r.homes[home]
	fresh := h == nil
	if fresh {
		h = &homeRoute{locals: make(map[netip.Addr]netip.Addr), source: local}
	}
	h.careOf, h.out = careOf, p.out.Attrs().Name
	if fresh || h.mtu != p.mtu {
		h.mtu = p.mtu
		if err := r.nl.RouteReplace(r.route(home, h)); err != nil {
			return fmt.Errorf("route to home address %v: %w", home, err)
		}
	}
	h.locals[local] = careOf
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
		h.out = p.out.Attrs().Name
		for local, careOf := range h.locals {
			p, err := r.path(careOf)
			if err == nil {
				err = r.kernel.reroute(local, home, p)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("path to care-of address %v: %w", careOf, err))
			}
		}
	}
	return errors.Join(errs...)
}

// unbound tells that there is none any more.
func (r *routes) unbound(local, home netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.kernel.unbind(local, home)
	h := r.homes[home]
	if h == nil || !h.locals[local].IsValid() {
		return err
	}
	delete(h.locals, local)
	if len(h.locals) == 0 {
		delete(r.homes, home)
		if e := r.nl.RouteDel(r.route(home, h)); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("remove route to home address %v: %w", home, e))
		}
		return err
	}
	if h.source == local {
		for h.source = range h.locals {
			break
		}
		if e := r.nl.RouteReplace(r.route(home, h)); e != nil {
			err = errors.Join(err, fmt.Errorf("route to home address %v: %w", home, e))
		}
	}
	return err
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
	p := path{out: link, mtu: mtu - correspondent.Overhead, until: now.Add(pathTime)}
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
	close(r.done)
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.homes)
	var errs []error
	if r.kernel != nil {
		errs = append(errs, r.kernel.Close())
	}
	for _, s := range r.ways {
		errs = append(errs, s.Close())
	}
	r.nl.Close()
	return errors.Join(errs...)
}
