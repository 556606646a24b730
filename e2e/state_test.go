//go:build linux

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
)

// traces is what a daemon may leave on a host: interfaces, addresses, routes,
// rules, neighbours it answers for, sysctls, packet filter rules, raw and packet
// sockets. One a line.
func (c *cluster) traces(h *topology.Host) []string {
	c.t.Helper()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	err := h.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		names := map[int]string{}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
			add("link %s %s mtu %d promisc %d allmulti %d", l.Attrs().Name, l.Type(), l.Attrs().MTU, l.Attrs().Promisc, l.Attrs().Allmulti)
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				add("address %s %s", l.Attrs().Name, a.IPNet)
			}
			proxies, err := netlink.NeighProxyList(l.Attrs().Index, netlink.FAMILY_V6)
			if err != nil {
				return err
			}
			for _, n := range proxies {
				add("proxy %s %s", l.Attrs().Name, n.IP)
			}
			for _, s := range []string{"forwarding", "proxy_ndp", "accept_ra", "accept_dad"} {
				if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + l.Attrs().Name + "/" + s); err == nil {
					add("sysctl %s %s=%s", l.Attrs().Name, s, strings.TrimSpace(string(b)))
				}
			}
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			add("route %v via %v dev %s table %d type %d", r.Dst, r.Gw, names[r.LinkIndex], r.Table, r.Type)
		}
		rules, err := netlink.RuleList(netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		for _, r := range rules {
			add("rule %s", r)
		}
		for _, f := range []string{"raw6", "packet"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + f)
			if err != nil {
				return err
			}
			if n := strings.Count(string(b), "\n") - 1; n > 0 {
				add("%d %s sockets", n, f)
			}
		}
		b, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		if err == nil && len(b) > 0 {
			add("netfilter queues %q", b)
		}
		return nil
	})
	c.ok(err)
	if probe.Check(probe.Program("ip6tables-save")).OK {
		out, err := h.Command(c.ctx, "ip6tables-save").Output()
		c.ok(err)
		for line := range strings.Lines(string(out)) {
			// Not comments, nor built-in chains, which come into being when
			// anyone looks.
			if line = strings.TrimSpace(line); line != "" && !strings.ContainsAny(line[:1], "#*:") && line != "COMMIT" {
				add("ip6tables %s", line)
			} else if strings.HasPrefix(line, ":") && !strings.Contains(line, " ACCEPT ") {
				add("ip6tables %s", strings.Fields(line)[0])
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// same fails the test if the host does not look as before.
func (c *cluster) same(h *topology.Host, before []string, when string) {
	c.t.Helper()
	after := c.traces(h)
	for _, l := range after {
		if !slices.Contains(before, l) {
			c.t.Errorf("%s: %s: there is a new %s", h.Name(), when, l)
		}
	}
	for _, l := range before {
		if !slices.Contains(after, l) {
			c.t.Errorf("%s: %s: gone is %s", h.Name(), when, l)
		}
	}
}
