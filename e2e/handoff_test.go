//go:build linux

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/e2e/watch"
	"github.com/distributed-servers/ds/internal/probe"
)

// everything is what a cluster needs, beside clients' programs.
var everything = append([]probe.Name{probe.TUN, probe.NFQueue, probe.Program("ip6tables")}, clientPrograms...)

// prepareTimeout is how long a target waits for a client, by default (package member).
const prepareTimeout = time.Second

// Sessions go on, on one node after the other: what a node knew of a client's
// connection the next one knows.
func sessions(t *testing.T, s setup, optimised bool) {
	var who []int
	mode := api.Relayed
	if optimised {
		who, mode = []int{0}, api.Optimised
	}
	c := launchAll(t, s, who...)
	d, cl := c.Servers[0], c.clients[0]
	k := c.capture(cl.Host, "eth0")
	between := []*capture{c.capture(c.Router, "servers"), c.capture(c.Home, "eth0"), c.capture(c.Nodes[1].Host, "eth0")}
	server := d.Addr.Addr()

	lines, store := cl.socat(server), cl.redis(server)
	lines.expect("hello", "1 a hello")
	store.expect("SET k v", "OK")
	store.expect("INCR n", "1")
	c.mode(d, cl, mode)
	beat := cl.pulse(server)
	handoffs := 0
	for i := range 6 {
		to := c.Nodes[(i+1)%3]
		begun := time.Now()
		h := c.handoff(d, cl, to)
		handoffs++
		// Without an answer of the client in time the target has it relayed at first.
		late := mode == api.Optimised && time.Since(begun) > prepareTimeout
		if h.Mode != mode && !late || h.Connections != 3 {
			t.Errorf("handoff of %d connections, %s", h.Connections, h.Mode)
		}
		c.mode(d, cl, mode)
		lines.expect("again", fmt.Sprintf("%d %s again", i+2, to.Name()))
		store.expect("INCR n", fmt.Sprint(i+2))
		store.expect("GET k", "v")
	}
	t.Logf("in %d handoffs, one after the other, a line takes %v at most", handoffs, beat.end(c))
	lines.bye()
	store.bye()
	k.check(server, watch.Limits{Handoffs: 2*handoffs + 1, Again: fewAgain})
	// The contact says by whom packets were relayed: those of a client that is not
	// optimised, in any case, and of one that is those alone that came between the
	// freeze and its binding, of which there may be none.
	servers, err := c.Nodes[0].API.Servers(t.Context())
	c.ok(err)
	n := servers[0].Counters
	_, kernel := n["kernel_relayed"]
	by := "relayed"
	if kernel {
		by = "kernel_relayed_octets"
	}
	if kernel && s.UserSpace || !optimised && n[by] == 0 {
		t.Errorf("counters, all by daemons %t: %v", s.UserSpace, n)
	}
	for _, k := range between {
		k.flows()
		k.dissect()
	}
}

func TestSessionsOptimised(t *testing.T) {
	if inside(t, everything...) {
		sessions(t, setup{}, true)
	}
}

func TestSessionsRelayed(t *testing.T) {
	if inside(t, everything...) {
		sessions(t, setup{}, false)
	}
}

func TestSessionsOnAHomeLink(t *testing.T) {
	if inside(t, everything...) {
		sessions(t, setup{HomeLink: true}, true)
	}
}

// Where the kernel does not forward what is in tunnels, the daemons do; and so does a
// client's with what comes and goes by a binding.
func TestSessionsByDaemons(t *testing.T) {
	for _, optimised := range []bool{false, true} {
		t.Run(fmt.Sprintf("optimised=%t", optimised), func(t *testing.T) {
			if inside(t, everything...) {
				sessions(t, setup{UserSpace: true}, optimised)
			}
		})
	}
}

// modes are which of two clients are optimised.
var modes = []struct {
	name      string
	optimised []int
}{
	{"optimised", []int{0, 1}},
	{"relayed", nil},
	{"mixed", []int{0}},
}

// Bulk data, both ways, in the middle of which clients go round.
func TestTransfers(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			if !inside(t, everything...) {
				return
			}
			c := launchAll(t, setup{Clients: 2}, m.optimised...)
			d := c.Servers[0]
			server := d.Addr.Addr()
			var captures []*capture
			for _, cl := range c.clients {
				captures = append(captures, c.capture(cl.Host, "eth0"))
			}
			handoffs := c.rotate(d, c.clients, 4, func() (jobs []*job) {
				for _, cl := range c.clients {
					// Four seconds: where other programs have the processors, a handoff
					// may take one.
					jobs = append(jobs, cl.download(server, 16<<20, 4<<20), cl.upload(server, 16<<20, 4<<20))
				}
				return jobs
			})
			t.Logf("%d handoffs", handoffs)
			for _, k := range captures {
				k.check(server, watch.Limits{Handoffs: 2*handoffs + 2, Again: 4 << 20})
			}
		})
	}
}

// A hundred connections of a client move at once: of one that is optimised, and
// of one that is relayed.
func TestAHundredConnections(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	c := launchAll(t, setup{Clients: 2}, 0)
	d := c.Servers[0]
	server := d.Addr.Addr()
	var captures []*capture
	for _, cl := range c.clients {
		captures = append(captures, c.capture(cl.Host, "eth0"))
	}
	handoffs := c.rotate(d, c.clients, 2, func() (jobs []*job) {
		for _, cl := range c.clients {
			jobs = append(jobs, cl.parallel(server, 100, 160_000, 20_000))
		}
		return jobs
	})
	t.Logf("%d handoffs", handoffs)
	for _, k := range captures {
		k.check(server, watch.Limits{Handoffs: 2*handoffs + 2, Again: fewAgain})
	}
}

// A program that opens and closes connections all the time.
func TestRedisBenchmark(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	c := launchAll(t, setup{Clients: 2}, 0)
	d := c.Servers[0]
	handoffs := c.rotate(d, c.clients, 2, func() (jobs []*job) {
		for _, cl := range c.clients {
			jobs = append(jobs, cl.benchmark(d.Addr.Addr(), 2_000, 20))
		}
		return jobs
	})
	t.Logf("%d handoffs", handoffs)
}
