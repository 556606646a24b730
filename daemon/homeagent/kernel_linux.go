package homeagent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/forward"
	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/mobility/wire"
)

// kernel is what the kernel forwards itself: TCP to home addresses with a binding,
// by a route that puts it into the tunnel, and what comes out of tunnels. All else
// comes to the daemon, and everything does where the kernel cannot. A nil kernel
// has nothing to do.
//
// The routes are in a table of their own, to which a rule leads TCP alone, since
// the machine has more to say about other packets. They belong to the TUN, and go
// with it. It has the home agent's address as well: that is the tunnel's source, as
// the kernel chooses one for an interface.
type kernel struct {
	agent *forward.Agent
	nl    *netlink.Handle
	index int // of the TUN
	table int

	failed  bool                      // nothing is forwarded any more
	bound   map[netip.Addr]netip.Addr // home addresses that have a route, and its tunnel's end
	narrows map[netip.Addr]time.Time  // care-of addresses with a small path MTU, until when it is believed
}

// The table's number, behind that of the queue, and the priority of the rules that
// lead there: ahead of an operator's own, behind the table of local addresses.
const (
	firstTable     = 10000
	kernelPriority = 7847
)

func newKernel(tun string, index int, cfg *config.HomeAgent, h *host.Host) (_ *kernel, err error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	k := &kernel{
		nl: nl, index: index, table: firstTable + int(cfg.Queue),
		bound: make(map[netip.Addr]netip.Addr), narrows: make(map[netip.Addr]time.Time),
	}
	exit := forward.Exit(cfg.Queue)
	rules := []host.Rule{
		{To: netip.PrefixFrom(exit, 128), Table: k.table, Priority: kernelPriority},
		{IPProto: unix.IPPROTO_TCP, Table: k.table, Priority: kernelPriority},
	}
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
	addr := &netlink.Addr{
		IPNet: &net.IPNet{IP: cfg.Address.AsSlice(), Mask: net.CIDRMask(128, 128)},
		Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE,
	}
	defer func() {
		if err != nil {
			for _, r := range rules {
				err = errors.Join(err, h.RemoveRule(r))
			}
			_ = nl.AddrDel(link, addr) // or it goes with the TUN
			err = errors.Join(err, k.Close())
		}
	}()
	if err := nl.RouteAdd(k.route(exit, cfg.Address)); err != nil { // a trial
		return nil, fmt.Errorf("add route with a tunnel (seg6): %w", err)
	}
	if err := nl.RouteDel(k.route(exit, cfg.Address)); err != nil {
		return nil, fmt.Errorf("remove route with a tunnel: %w", err)
	}
	if err := nl.AddrAdd(link, addr); err != nil {
		return nil, fmt.Errorf("add address %v to %s: %w", cfg.Address, tun, err)
	}
	if err := h.AddExit(exit, tun, k.table); err != nil {
		return nil, err
	}
	if k.agent, err = forward.OpenAgent(forward.AgentConfig{Queue: cfg.Queue, Address: cfg.Address, Prefixes: cfg.Prefixes}); err != nil {
		return nil, err
	}
	for _, r := range rules {
		if err := h.AddRule(r); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// route is one that puts what is for a home address into a tunnel: a segment list
// of one, which needs no routing header (RFC 8986 section 5.2).
func (k *kernel) route(home, careOf netip.Addr) *netlink.Route {
	const reduced = 3 // SEG6_IPTUN_MODE_ENCAP_RED
	return &netlink.Route{
		LinkIndex: k.index, Table: k.table,
		Dst:      &net.IPNet{IP: home.AsSlice(), Mask: net.CIDRMask(128, 128)},
		Encap:    &netlink.SEG6Encap{Mode: reduced, Segments: []net.IP{careOf.AsSlice()}},
		Protocol: netlink.RouteProtocol(host.ProtocolHomeAgent),
	}
}

// running is 1 if the kernel forwards.
func (k *kernel) running() uint64 {
	if k == nil || k.failed {
		return 0
	}
	return 1
}

// count adds what the kernel has forwarded to counters.
func (k *kernel) count(counters map[string]uint64, log *slog.Logger) {
	if k == nil {
		return
	}
	to, from, err := k.agent.Counts()
	if err != nil {
		log.Debug("counters of the kernel's tunnels", "error", err)
		return
	}
	counters["kernel_to_home_packets"], counters["kernel_to_home_octets"] = to.Packets, to.Octets
	counters["kernel_tunnel_in_packets"], counters["kernel_tunnel_in_octets"] = from.Packets, from.Octets
}

// bind has the kernel forward by a binding; the zero careOf: there is none.
func (k *kernel) bind(home, careOf netip.Addr, log *slog.Logger) {
	if k == nil {
		return
	}
	if err := k.agent.Bind(home, careOf); err != nil {
		// All goes through the daemon then.
		if !k.failed {
			log.Error("the kernel does not forward tunnels any more", "error", err)
		}
		k.failed = true
		for home := range k.bound {
			k.lead(home, netip.Addr{}, log)
		}
		return
	}
	if time.Now().Before(k.narrows[careOf]) {
		careOf = netip.Addr{}
	} else {
		delete(k.narrows, careOf)
	}
	k.lead(home, careOf, log)
}

// lead leads TCP to a home address into the tunnel, or to the daemon.
func (k *kernel) lead(home, careOf netip.Addr, log *slog.Logger) {
	before, there := k.bound[home]
	if before == careOf {
		return
	}
	var err error
	if there {
		delete(k.bound, home)
		err = k.nl.RouteDel(k.route(home, before))
	}
	if careOf.IsValid() && err == nil {
		if err = k.nl.RouteAdd(k.route(home, careOf)); err == nil {
			k.bound[home] = careOf
		}
	}
	if err != nil {
		log.Error("route into the tunnel", "home", home, "care_of", careOf, "error", err)
	}
}

// narrowFor is how long a smaller path MTU is believed (RFC 8201 section 4).
const narrowFor = 10 * time.Minute

// narrow is that the path to a care-of address has a smaller MTU than that of its
// first link. The machine knows which, and tells whoever sends what does not fit;
// the kernel would not.
func (k *kernel) narrow(careOf netip.Addr, log *slog.Logger) {
	if k == nil {
		return
	}
	for home, to := range k.bound {
		if to == careOf {
			k.narrows[careOf] = time.Now().Add(narrowFor)
			k.lead(home, netip.Addr{}, log)
		}
	}
}

// narrow finds the other end of the tunnel that a Packet Too Big is about.
func narrow(b []byte) (careOf netip.Addr, ok bool) {
	const (
		kind   = wire.HeaderLen
		quoted = wire.HeaderLen + 8
		tooBig = 2
	)
	if len(b) < quoted+wire.HeaderLen || wire.Protocol(b[6]) != wire.ICMPv6 || b[kind] != tooBig || wire.Protocol(b[quoted+6]) != wire.IPv6 {
		return careOf, false
	}
	return netip.AddrFrom16([16]byte(b[quoted+24 : quoted+40])), true
}

// Close ends it; the routes go with the TUN. A second call does nothing.
func (k *kernel) Close() error {
	k.nl.Close()
	if k.agent == nil {
		return nil
	}
	return k.agent.Close()
}
