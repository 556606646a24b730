package host

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// add makes m in the kernel, marked with p.
func (m made) add(p Protocol) error {
	switch m.kind {
	case route:
		return addRoute(m, p)
	case rule:
		return addRule(m.rule, p)
	}
	return addProxy(m, p)
}

// remove removes m, if it is still there and marked with p.
func (m made) remove(p Protocol) error {
	switch m.kind {
	case route:
		r, err := m.route(p)
		if err != nil {
			return gone(err)
		}
		err = gone(netlink.RouteDel(r))
		if m.from.IsValid() {
			err = errors.Join(err, removeAddr(m.iface, netip.PrefixFrom(m.from, m.from.BitLen())))
		}
		return err
	case rule:
		return gone(netlink.RuleDel(m.rule.netlink(p)))
	}
	link, err := netlink.LinkByName(m.iface)
	if err != nil {
		return gone(err)
	}
	// The kernel would remove an entry of others too.
	if e, err := findProxy(link.Attrs().Index, m.to.Addr()); err != nil || e.protocol != p {
		return gone(err)
	}
	return gone(proxyRequest(unix.RTM_DELNEIGH, 0, link.Attrs().Index, m.to.Addr(), p))
}

// gone makes an error that something is not there none.
func gone(err error) error {
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ESRCH),
		errors.Is(err, unix.ENOENT), errors.Is(err, unix.EADDRNOTAVAIL):
		return nil
	}
	return err
}

// Sweep removes all routes, rules and proxy entries that are marked with p.
func Sweep(p Protocol) error {
	var errs []error
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: netlink.RouteProtocol(p), Table: unix.RT_TABLE_UNSPEC},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	errs = append(errs, err)
	for i := range routes {
		errs = append(errs, gone(netlink.RouteDel(&routes[i])))
	}
	rules, err := whole(func() ([]netlink.Rule, error) { return netlink.RuleList(netlink.FAMILY_V6) })
	errs = append(errs, err)
	for i := range rules {
		if rules[i].Protocol == uint8(p) {
			errs = append(errs, gone(netlink.RuleDel(&rules[i])))
		}
	}
	proxies, err := whole(func() ([]proxyEntry, error) { return proxies(p) })
	errs = append(errs, err)
	for _, e := range proxies {
		errs = append(errs, gone(proxyRequest(unix.RTM_DELNEIGH, 0, e.index, e.addr, p)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("host: sweep: protocol %d: %w", p, explain(err))
	}
	return nil
}

func (m made) route(p Protocol) (*netlink.Route, error) {
	link, err := netlink.LinkByName(m.iface)
	if err != nil {
		return nil, err
	}
	r := &netlink.Route{
		Family: netlink.FAMILY_V6, Dst: ipNet(m.to), LinkIndex: link.Attrs().Index,
		Table: m.table, Protocol: netlink.RouteProtocol(p),
	}
	if m.exit {
		r.Encap = exit()
	}
	if m.into.IsValid() {
		const reduced = 3 // SEG6_IPTUN_MODE_ENCAP_RED: no routing header for one segment (RFC 8986 section 5.2)
		r.Encap = &netlink.SEG6Encap{Mode: reduced, Segments: []net.IP{m.into.AsSlice()}}
	}
	return r, nil
}

// source is an address that makes the kernel choose it for what leaves by an
// interface. It is an address of this host already.
func source(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
}

// exit is the action of a route at which tunnels end, End.DX6 without a next hop
// (RFC 8986 section 4.4): the inner destination is routed by all the usual rules.
func exit() netlink.Encap {
	e := &netlink.SEG6LocalEncap{Action: nl.SEG6_LOCAL_ACTION_END_DX6, In6Addr: net.IPv6unspecified}
	e.Flags[nl.SEG6_LOCAL_ACTION], e.Flags[nl.SEG6_LOCAL_NH6] = true, true
	return e
}

func addRoute(m made, p Protocol) error {
	if !isIPv6(m.to) {
		return fmt.Errorf("host: add route %v: not a prefix of IPv6", m.to)
	}
	link, err := findLink("add route", m.iface)
	if err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("host: add route %v: interface %s is down; set it up (ip link set %s up)", m.to, m.iface, m.iface)
	}
	if ipv6Disabled(m.iface) {
		return fmt.Errorf("host: add route %v: IPv6 disabled on %s; switch it on (sysctl -w net.ipv6.conf.%s.disable_ipv6=0)", m.to, m.iface, m.iface)
	}
	r, err := m.route(p)
	add := netlink.RouteAdd
	if err == nil && m.from.IsValid() {
		add = netlink.RouteReplace
		err = netlink.AddrReplace(link, source(m.from))
	}
	if err == nil {
		err = add(r)
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("host: add route %v to %s: %w%s", m.to, m.iface, err, otherRoute(m))
	case err != nil:
		return fmt.Errorf("host: add route %v to %s: %w", m.to, m.iface, explain(err))
	}
	return nil
}

// otherRoute says which route is in the way.
func otherRoute(m made) string {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Dst: ipNet(m.to), Table: m.table},
		netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	if err != nil || len(routes) == 0 {
		return ""
	}
	where := "?"
	if link, err := netlink.LinkByIndex(routes[0].LinkIndex); err == nil {
		where = link.Attrs().Name
	}
	return fmt.Sprintf("; there is one to %s of protocol %v in table %d: remove it if nobody needs it (ip -6 route del %v table %d)",
		where, routes[0].Protocol, m.table, m.to, m.table)
}

func (r Rule) netlink(p Protocol) *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Table, n.IifName, n.Protocol, n.IPProto = netlink.FAMILY_V6, r.Table, r.Iif, uint8(p), int(r.IPProto)
	if r.From.IsValid() {
		n.Src = ipNet(r.From.Masked())
	}
	if r.To.IsValid() {
		n.Dst = ipNet(r.To.Masked())
	}
	if r.Priority != 0 {
		n.Priority = r.Priority
	}
	return n
}

func addRule(r Rule, p Protocol) error {
	if r.Table <= 0 || r.Priority < 0 || r.From.IsValid() && !isIPv6(r.From) || r.To.IsValid() && !isIPv6(r.To) {
		return fmt.Errorf("host: add rule %+v: it needs a table, and prefixes are those of IPv6", r)
	}
	if err := netlink.RuleAdd(r.netlink(p)); err != nil {
		return fmt.Errorf("host: add rule %+v: %w", r, explain(err))
	}
	return nil
}

func addProxy(m made, p Protocol) error {
	link, err := findLink("add proxy", m.iface)
	if err != nil {
		return err
	}
	if !isIPv6(m.to) {
		return fmt.Errorf("host: add proxy %v: not an address of IPv6", m.to.Addr())
	}
	// The kernel would take an entry of others over: it replaces.
	switch e, err := findProxy(link.Attrs().Index, m.to.Addr()); {
	case err == nil:
		return fmt.Errorf("host: add proxy %v: %w: %s has one of protocol %d; remove it if nobody needs it (ip -6 neigh del proxy %v dev %s)",
			m.to.Addr(), unix.EEXIST, m.iface, e.protocol, m.to.Addr(), m.iface)
	case gone(err) != nil:
		return fmt.Errorf("host: add proxy %v: %w", m.to.Addr(), explain(err))
	}
	err = proxyRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_EXCL, link.Attrs().Index, m.to.Addr(), p)
	if err != nil {
		return fmt.Errorf("host: add proxy %v on %s: %w", m.to.Addr(), m.iface, explain(err))
	}
	return nil
}

// ndaProtocol is NDA_PROTOCOL, which package netlink does not know.
const ndaProtocol = 12

// proxyRequest makes or removes a proxy entry.
func proxyRequest(command, flags, index int, addr netip.Addr, p Protocol) error {
	req := nl.NewNetlinkRequest(command, flags|unix.NLM_F_ACK)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_INET6, Index: uint32(index), Flags: netlink.NTF_PROXY})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	req.AddData(nl.NewRtAttr(ndaProtocol, []byte{byte(p)}))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// findProxy finds an entry; [unix.ENOENT]: there is none.
func findProxy(index int, addr netip.Addr) (e proxyEntry, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_INET6, Index: uint32(index), Flags: netlink.NTF_PROXY})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil {
		return e, err
	}
	for _, b := range answers {
		if e, ok := parseProxy(b); ok && e.index == index && e.addr == addr {
			return e, nil
		}
	}
	return e, unix.ENOENT
}

// proxyEntry is an entry of the kernel's neighbour proxies.
type proxyEntry struct {
	index    int
	addr     netip.Addr
	protocol Protocol
}

// proxies lists the entries that are marked with p.
func proxies(p Protocol) ([]proxyEntry, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	req.AddData(&netlink.Ndmsg{Family: unix.AF_INET6, Flags: netlink.NTF_PROXY})
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, err
	}
	var list []proxyEntry
	for _, b := range answers {
		if e, ok := parseProxy(b); ok && e.protocol == p {
			list = append(list, e)
		}
	}
	return list, nil
}

// parseProxy reads a struct ndmsg and its attributes.
func parseProxy(b []byte) (e proxyEntry, ok bool) {
	const size, indexAt, flagsAt = 12, 4, 10
	if len(b) < size || b[0] != unix.AF_INET6 || b[flagsAt]&netlink.NTF_PROXY == 0 {
		return e, false
	}
	e.index = int(binary.NativeEndian.Uint32(b[indexAt:]))
	// Attributes have a length that counts its four octets of header, a type, and
	// padding to four octets. (The library's parser wants the last one padded.)
	for b = b[size:]; len(b) >= 4; {
		n, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < 4 || n > len(b) {
			return e, false
		}
		switch value := b[4:n]; {
		case kind == netlink.NDA_DST:
			e.addr, _ = netip.AddrFromSlice(value)
		case kind == ndaProtocol && len(value) == 1:
			e.protocol = Protocol(value[0])
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return e, e.addr.Is6()
}

// whole lists again what has changed while it was listed.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// findLink finds an interface, or says which there are.
func findLink(operation, name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("host: %s: interface %s does not exist; interfaces here: %s", operation, cmp.Or(name, `""`), interfaces())
	}
	if err != nil {
		return nil, fmt.Errorf("host: %s: interface %s: %w", operation, name, err)
	}
	return link, nil
}

// interfaces lists the interfaces, for errors.
func interfaces() string {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, ", ")
}

const curePermission = "this needs CAP_NET_ADMIN: run as root, or give the program the capability (setcap cap_net_admin+ep, AmbientCapabilities= of systemd)"

// explain adds what cures an error of the kernel.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !ipv6Disabled("all"):
		return fmt.Errorf("%w; %s", err, curePermission)
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w; is IPv6 disabled here (sysctl net.ipv6.conf.all.disable_ipv6, ipv6.disable=1)?", err)
	}
	return err
}

// ipv6Disabled reports whether IPv6 is switched off for an interface.
func ipv6Disabled(iface string) bool {
	v, err := readSysctl("net/ipv6/conf/" + iface + "/disable_ipv6")
	return err != nil || v == "1"
}

func isIPv6(p netip.Prefix) bool { return p.IsValid() && p.Addr().Is6() && !p.Addr().Is4In6() }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
