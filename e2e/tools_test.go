//go:build linux

package e2e

import (
	"testing"

	"github.com/distributed-servers/ds/e2e/watch"
	"github.com/distributed-servers/ds/internal/impair"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
)

// clientPrograms are what clients run.
var clientPrograms = []probe.Name{probe.NetNS, probe.Program("curl"), probe.Program("socat"), probe.Program("redis-cli"), probe.Program("redis-benchmark")}

// fewAgain is how many octets of a connection may be sent twice where nothing is
// lost: a probe for the loss of the tail when an acknowledgment is late, what was
// under way in a handoff.
const fewAgain = 128 << 10

// Before anything is handed off: the clients' programs, the service and the
// captures do what the other tests count on, with kernel TCP at both ends.
func TestTools(t *testing.T) {
	if !inside(t, clientPrograms...) {
		return
	}
	c := start(t, setup{})
	cl, n := c.clients[0], c.Nodes[0]
	k := c.capture(cl.Host, "eth0")
	p := c.launch(n.Command(c.ctx, program("service"), "-plain", n.Addr.String()))
	ready(c, p)

	jobs := []*job{
		cl.download(n.Addr, 4<<20, 8<<20),
		cl.upload(n.Addr, 4<<20, 8<<20),
		cl.parallel(n.Addr, 100, 100_000, 1<<20),
		cl.benchmark(n.Addr, 1000, 20),
	}
	lines, store := cl.socat(n.Addr), cl.redis(n.Addr)
	lines.expect("hello", "1 plain hello")
	store.expect("SET k v", "OK")
	lines.expect("again", "2 plain again")
	store.expect("GET k", "v")
	store.expect("INCR n", "1")
	lines.bye()
	store.bye()
	c.wait(jobs...)
	if err := p.Stop(patience); err != nil {
		t.Error(err)
	}
	flows := k.check(n.Addr, watch.Limits{Again: 1 << 20}) // a busy machine may lose some of the bulk data
	if len(flows) < 2*104 {
		t.Errorf("%d flows", len(flows))
	}
}

// On a bad link the checks must not cry wolf, and TCP must get through.
func TestToolsOnABadLink(t *testing.T) {
	if !inside(t, clientPrograms...) {
		return
	}
	c := start(t, setup{Links: impair.Settings{Loss: .005, Reorder: .005, Delay: 2e6}})
	cl, n := c.clients[0], c.Nodes[0]
	k := c.capture(cl.Host, "eth0")
	ready(c, c.launch(n.Command(c.ctx, program("service"), "-plain", n.Addr.String())))
	c.wait(cl.download(n.Addr, 1<<20, 1<<30), cl.upload(n.Addr, 1<<20, 1<<30))
	k.check(n.Addr, watch.Limits{Again: 1 << 19})
}

// A daemon's traces are seen, and that they are gone.
func TestTraces(t *testing.T) {
	if !inside(t, probe.NetNS, probe.Program("ip"), probe.Program("ip6tables")) {
		return
	}
	c := start(t, setup{})
	h := c.Nodes[0].Host
	before := c.traces(h)
	for _, tt := range []struct{ name, do, undo string }{
		{"link", "ip link add d0 type veth peer name d1", "ip link del d0"},
		{"address", "ip addr add 2001:db8::1 dev eth0", "ip addr del 2001:db8::1 dev eth0"},
		{"proxy", "ip neigh add proxy 2001:db8::1 dev eth0", "ip neigh del proxy 2001:db8::1 dev eth0"},
		{"route", "ip route add 2001:db8:1::/64 via 2001:db8:5::1", "ip route del 2001:db8:1::/64"},
		{"rule", "ip -6 rule add from 2001:db8::1 lookup 77", "ip -6 rule del from 2001:db8::1 lookup 77"},
		{"route in a table", "ip route add 2001:db8:1::/64 via 2001:db8:5::1 table 77", "ip route del 2001:db8:1::/64 table 77"},
		{"sysctl", "echo 1 >/proc/sys/net/ipv6/conf/eth0/proxy_ndp", "echo 0 >/proc/sys/net/ipv6/conf/eth0/proxy_ndp"},
		{"ip6tables", "ip6tables -A INPUT -j DROP", "ip6tables -D INPUT -j DROP"},
		{"chain", "ip6tables -t mangle -N X", "ip6tables -t mangle -X X"},
	} {
		sh := func(script string) {
			if out, err := h.Command(c.ctx, "/bin/sh", "-c", script).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", script, err, out)
			}
		}
		sh(tt.do)
		if after := c.traces(h); len(after) <= len(before) && tt.name != "sysctl" {
			t.Errorf("%s: not seen", tt.name)
		}
		sh(tt.undo)
		c.same(h, before, tt.name)
	}
}

// ready waits until an application serves.
func ready(c *cluster, p *topology.Process) {
	c.t.Helper()
	ctx, cancel := c.within(patience)
	defer cancel()
	if _, err := p.Log.WaitFor(ctx, 0, "ready on"); err != nil {
		c.t.Fatal(err)
	}
}
