package config

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// minMTU is that of a link on which a tunnel has the least MTU of IPv6: 1280
// and a header of 40.
const minMTU = 1320

// Limits.
const (
	maxMTU      = 65535
	maxQueues   = 64
	maxBindings = 1 << 24
	maxSocket   = 107 // unix(7), sun_path with its final zero
	maxName     = 253 // of a DNS name
	reservedSPI = 255 // RFC 4285 section 5.1: 0 to 255 are reserved
)

// check finds what makes no sense, in a configuration that is decoded. What a
// problem was reported with already is zero there, and not looked at again.
func (d *decoder) check(c *Config) {
	if c.Node == nil && len(c.Servers) == 0 && c.HomeAgent == nil && c.Correspondent == nil && len(d.problems) == 0 {
		d.report("", "add [node], [home_agent] or [correspondent]; docs/dsco.toml is an example", "no role")
	}
	if len(c.Servers) > 0 && c.Node == nil {
		d.report("server[0]", "add [node]", "a distributed server, but no node")
	}
	u := unique{d: d, seen: make(map[netip.Addr]string)}
	if c.Node != nil {
		d.checkNode(c, &u)
	}
	for i := range c.Servers {
		d.checkServer(fmt.Sprintf("server[%d]", i), c, &c.Servers[i], &u)
	}
	if c.HomeAgent != nil {
		d.checkHomeAgent(c.HomeAgent)
	}
	if c.Correspondent != nil {
		d.checkCorrespondent(c.Correspondent)
	}
	d.checkShared(c)
}

func (d *decoder) checkNode(c *Config, u *unique) {
	n := c.Node
	d.checkName("node.name", n.Name)
	u.add("node.address", n.Address)
	d.checkPort("node.control_port", n.ControlPort)
	d.checkInterface("node.interface", n.Interface)
	d.checkDaemon("node", n.Socket, n.State, n.Queue)
	d.checkIdentity(n)
	for _, name := range slices.Sorted(maps.Keys(n.Peers)) {
		path := join("node.peers", name)
		d.checkName(path, name)
		if name == n.Name {
			d.report(path, "remove it", "this node is not among the others")
			continue
		}
		u.add(path, n.Peers[name])
	}
	if len(c.Servers) == 0 && !d.wrongAt("server") {
		d.report("node", "add [[server]]", "a node of no distributed server")
	}
}

// checkIdentity wants a directory, or files.
func (d *decoder) checkIdentity(n *Node) {
	if n.Cluster == "" && d.has("node.cluster") {
		d.report("node.cluster", `write the directory that ds init or ds join has made, or remove it`, "empty")
	}
	for _, f := range []struct {
		key   string
		value string
	}{{"ca", n.CA}, {"cert", n.Cert}, {"key", n.Key}} {
		path := "node." + f.key
		switch {
		case n.Cluster != "" && d.has(path):
			d.report(path, "remove one of the two", "that is in the directory cluster already")
		case n.Cluster != "" || f.value != "" || d.wrongAt(path):
		case d.has(path):
			d.report(path, `write "text"`, "empty")
		default:
			d.report(path, fmt.Sprintf(`add %s = "text", or make it with ds init or ds join`, f.key), "missing")
		}
	}
}

func (d *decoder) checkServer(path string, c *Config, s *Server, u *unique) {
	if a := s.Address; a.IsValid() {
		u.add(path+".address", a.Addr())
		if a.Bits() == 0 {
			d.report(path+".address", "give the length of the home prefix, such as 64", "every address has that prefix")
		}
	}
	d.checkAddr(path+".home_agent", s.HomeAgent)
	if s.HomeAgent.IsValid() && s.HomeAgent == s.Address.Addr() {
		d.report(path+".home_agent", "give the home agent an address of its own", "the same as the distributed server's")
	}
	if s.Tunnel != TunnelMIP6D {
		d.checkSPI(path, s.SPI, s.KeyFile)
	}
	d.checkNodes(path, c.Node, s, u)

	if s.MTU < minMTU || s.MTU > maxMTU {
		d.report(path+".mtu", fmt.Sprintf("write %d to %d, usually 1500", minMTU, maxMTU), "%d: a tunnel of %d and its header do not fit, or it is more than a packet", s.MTU, minMTU-40)
	}
	if s.Queues < 1 || s.Queues > maxQueues {
		d.report(path+".queues", fmt.Sprintf("write 1 to %d", maxQueues), "%d queues", s.Queues)
	}
	d.checkTunnel(path, s)
	d.checkTime(path+".idle_timeout", s.IdleTimeout)
	d.checkTime(path+".register_timeout", s.RegisterTimeout)
	if d.has(path+".user_groups") && !d.has(path+".users") {
		s.Users = nil
	}
	for _, list := range []struct {
		key   string
		names []string
	}{{"users", s.Users}, {"user_groups", s.UserGroups}} {
		for i, name := range list.names {
			if name == "" {
				d.report(fmt.Sprintf("%s.%s[%d]", path, list.key, i), "write a name or a number", "nobody is called that")
			}
		}
	}
}

// checkNodes checks names and care-of addresses of all nodes.
func (d *decoder) checkNodes(path string, n *Node, s *Server, u *unique) {
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		at := join(path+".nodes", name)
		d.checkName(at, name)
		a := s.Nodes[name]
		u.add(at, a)
		switch {
		case !a.IsValid() || !s.Address.IsValid():
		case s.Address.Bits() > 0 && s.Address.Contains(a):
			d.report(at, "take one of the server network", "%s is in the home prefix %s, where nodes are not", a, s.Address.Masked())
		case a == s.HomeAgent:
			d.report(at, "give the node an address of its own", "%s is the home agent's", a)
		}
		if n != nil && n.Name != "" && name != n.Name && !d.partial && !in(n.Peers, name) {
			d.report(at, fmt.Sprintf("add %s = %s to [node.peers]", name, example(addrType)), "where the daemon of %s is, is not known", name)
		}
	}
	switch {
	case d.partial || d.wrongAt(path+".nodes") && len(s.Nodes) == 0:
		return
	case len(s.Nodes) == 0 && !d.has(path+".nodes"):
		d.report(path+".nodes", fmt.Sprintf("add nodes = { name = %s }", example(addrType)), "missing")
		return
	case len(s.Nodes) == 0:
		return
	}
	names := strings.Join(slices.Sorted(maps.Keys(s.Nodes)), ", ")
	if n != nil && n.Name != "" && !in(s.Nodes, n.Name) {
		d.report(path+".nodes", fmt.Sprintf("add %s, with its care-of address", n.Name), "this node, %s, is not one of them: %s", n.Name, names)
	}
	if s.Contact != "" && !in(s.Nodes, s.Contact) {
		d.report(path+".contact", "name one of them, or add it", "%s is not one of the nodes: %s", s.Contact, names)
	}
}

// in tells whether a table has a key, right or wrong.
func in(table map[string]netip.Addr, key string) bool {
	_, ok := table[key]
	return ok
}

func (d *decoder) checkTunnel(path string, s *Server) {
	switch s.Tunnel {
	case TunnelUser:
		if s.TunnelInterface != "" {
			d.report(path+".tunnel_interface", `remove it, or write tunnel = "mip6d"`, "dsco has the tunnel itself")
		}
	case TunnelMIP6D:
		if s.TunnelInterface == "" {
			d.report(path+".tunnel", `add tunnel_interface = "ip6tnl1"`, "which interface the tunnel is, is not said")
		}
		d.checkInterface(path+".tunnel_interface", s.TunnelInterface)
	default:
		d.report(path+".tunnel", `write "user" or "mip6d"`, "there is no tunnel %q", s.Tunnel)
	}
}

func (d *decoder) checkHomeAgent(h *HomeAgent) {
	d.checkAddr("home_agent.address", h.Address)
	d.checkInterface("home_agent.interface", h.Interface)
	for i, p := range h.Prefixes {
		d.checkPrefix(fmt.Sprintf("home_agent.prefixes[%d]", i), p)
	}
	u := unique{d: d, seen: make(map[netip.Addr]string)}
	u.add("home_agent.address", h.Address)
	for i, home := range h.Homes {
		path := fmt.Sprintf("home_agent.homes[%d]", i)
		u.add(path+".address", home.Address)
		on := func(p netip.Prefix) bool { return p.Contains(home.Address) }
		if home.Address.IsValid() && len(h.Prefixes) > 0 && !slices.ContainsFunc(h.Prefixes, on) {
			d.report(path+".address", "add its prefix to prefixes", "%s has none of the prefixes of the home link", home.Address)
		}
		d.checkSPI(path, home.SPI, home.KeyFile)
	}
	for key, n := range map[string]int{"homes": len(h.Homes), "prefixes": len(h.Prefixes)} {
		if path := "home_agent." + key; n == 0 && d.has(path) && !d.wrongAt(path) {
			d.report(path, "add one", "none, so there is nothing to do")
		}
	}
	d.checkTime("home_agent.refresh_advice", h.RefreshAdvice)
	d.checkTime("home_agent.min_prefix_interval", h.MinPrefixInterval)
	d.checkTime("home_agent.max_prefix_interval", h.MaxPrefixInterval)
	if h.MinPrefixInterval > h.MaxPrefixInterval {
		d.report("home_agent.min_prefix_interval", "write no more than max_prefix_interval", "%s is more than %s", time.Duration(h.MinPrefixInterval), time.Duration(h.MaxPrefixInterval))
	}
	if h.TunnelMTU < minMTU || h.TunnelMTU > maxMTU {
		d.report("home_agent.tunnel_mtu", fmt.Sprintf("write %d to %d, usually 1500", minMTU, maxMTU), "%d: a tunnel of %d and its header do not fit, or it is more than a packet", h.TunnelMTU, minMTU-40)
	}
	d.checkDaemon("home_agent", h.Socket, h.State, h.Queue)
}

func (d *decoder) checkCorrespondent(c *Correspondent) {
	u := unique{d: d, seen: make(map[netip.Addr]string)}
	for i, a := range c.Addresses {
		u.add(fmt.Sprintf("correspondent.addresses[%d]", i), a)
	}
	for i, p := range c.Permit {
		d.checkPrefix(fmt.Sprintf("correspondent.permit[%d]", i), p)
	}
	if c.MaxBindings < 1 || c.MaxBindings > maxBindings {
		d.report("correspondent.max_bindings", fmt.Sprintf("write 1 to %d", maxBindings), "%d bindings", c.MaxBindings)
	}
	d.checkDaemon("correspondent", c.Socket, c.State, c.Queue)
}

// checkShared finds what two roles on one machine cannot both have.
func (d *decoder) checkShared(c *Config) {
	seen := make(map[any]string)
	role := func(path, socket, state string, queue uint16) {
		for key, v := range map[string]any{"socket": socket, "state": state, "queue": queue} {
			if other, ok := seen[v]; ok {
				d.report(path+"."+key, "give it another", "the same as that of [%s]", other)
			}
			seen[v] = path
		}
	}
	if n := c.Node; n != nil {
		role("node", n.Socket, n.State, n.Queue)
	}
	if h := c.HomeAgent; h != nil {
		role("home_agent", h.Socket, h.State, h.Queue)
	}
	if o := c.Correspondent; o != nil {
		role("correspondent", o.Socket, o.State, o.Queue)
	}
}

// unique finds addresses that are there twice.
type unique struct {
	d    *decoder
	seen map[netip.Addr]string
}

func (u *unique) add(path string, a netip.Addr) {
	if !u.d.checkAddr(path, a) {
		return
	}
	if other, ok := u.seen[a]; ok {
		u.d.report(path, "give each one of its own", "%s is that of %s too", a, other)
		return
	}
	u.seen[a] = path
}

// checkAddr wants an address that a host can be reached at. An invalid one has
// been reported, or is not there.
func (d *decoder) checkAddr(path string, a netip.Addr) bool {
	switch {
	case !a.IsValid():
		return false
	case !a.Is6() || a.Is4In6():
		d.report(path, "write an IPv6 address, such as "+example(addrType), "%s is of IPv4", a)
	case a.Zone() != "" || a.IsLinkLocalUnicast():
		d.report(path, "write a global or unique local address", "%s is valid on a link only", a)
	case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback():
		d.report(path, "write a global or unique local address", "%s is not an address that others reach", a)
	default:
		return true
	}
	return false
}

func (d *decoder) checkPrefix(path string, p netip.Prefix) {
	switch {
	case !p.IsValid():
	case !p.Addr().Is6() || p.Addr().Is4In6():
		d.report(path, `write an IPv6 prefix, such as "2001:db8::/64"`, "%s is of IPv4", p)
	case p != p.Masked():
		d.report(path, fmt.Sprintf("write %q", p.Masked()), "%s is an address, not a prefix", p)
	}
}

// checkName wants a name that can be in a certificate.
func (d *decoder) checkName(path, name string) {
	if name == "" && !d.has(path) {
		return
	}
	label := func(s string) bool { return bare(s) && len(s) <= 63 && !strings.HasPrefix(s, "-") }
	for s := range strings.SplitSeq(name, ".") {
		if !label(s) || len(name) > maxName {
			d.report(path, "use letters, digits, hyphens and dots", "%.80q is not a name that a certificate can have", name)
			return
		}
	}
}

func (d *decoder) checkPort(path string, port uint16) {
	if port == 0 {
		d.report(path, "write 1 to 65535, usually 7846", "0 is not a port")
	}
}

// checkInterface accepts none.
func (d *decoder) checkInterface(path, name string) {
	if name == "" && !d.has(path) {
		return
	}
	if name == "" || name == "." || name == ".." || len(name) > 15 || strings.ContainsAny(name, "/: \t\n") {
		d.report(path, "see ip link for the names", "%.40q is not the name of an interface", name)
	}
}

func (d *decoder) checkDaemon(path, socket, state string, queue uint16) {
	d.checkPath(path+".socket", socket)
	d.checkPath(path+".state", state)
	if len(socket) > maxSocket {
		d.report(path+".socket", fmt.Sprintf("write one of at most %d octets", maxSocket), "a path of %d octets", len(socket))
	}
	if queue == 0 {
		d.report(path+".queue", "write 1 to 65535", "0 is the queue that other programs take")
	}
}

func (d *decoder) checkPath(path, name string) {
	if !filepath.IsAbs(name) {
		d.report(path, "begin it with /", "%.80q depends on where the daemon is started", name)
	}
}

// checkSPI checks what secures registrations, if anything has to.
func (d *decoder) checkSPI(path string, spi uint32, key string) {
	if !d.has(path + ".spi") {
		d.report(path+".spi", fmt.Sprintf("add spi = %d, or another from there on, the same at both ends", reservedSPI+1), "missing")
	} else if spi <= reservedSPI {
		d.report(path+".spi", fmt.Sprintf("write %d or another from there on, the same at both ends", reservedSPI+1), "%d: the numbers to %d are reserved", spi, reservedSPI)
	}
	if key == "" {
		d.report(path+".key_file", `add key_file = "server.key" (openssl rand -hex 32), the same at both ends`, "missing")
	}
}

func (d *decoder) checkTime(path string, t Duration) {
	if time.Duration(t) < time.Second || time.Duration(t) > 24*time.Hour {
		d.report(path, `write "1s" to "24h"`, "%s is too short or too long", time.Duration(t))
	}
}

// wrongAt tells whether something is wrong with what is at a path, or in it.
func (d *decoder) wrongAt(path string) bool {
	return slices.ContainsFunc(d.problems, func(p *Problem) bool { return strings.HasPrefix(p.Key, path) })
}
