//go:build linux

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/distributed-servers/ds/e2e/watch"
)

// takeOver makes a node the contact, and waits until the home agent sends to it.
func (c *cluster) takeOver(d *server, n *node, force bool) {
	c.t.Helper()
	ctx, cancel := c.within(patience)
	defer cancel()
	k, err := n.API.TakeOver(ctx, d.Addr.Addr(), force)
	if err != nil {
		c.t.Fatalf("%s takes over as contact: %v", n.Name(), err)
	}
	if k.Node != n.Name() {
		c.t.Errorf("the contact is %q with epoch %d", k.Node, k.Epoch)
	}
	c.registered(n, d)
}

// agreed waits until all nodes whose daemons run say that n is the contact.
func (c *cluster) agreed(d *server, n *node) {
	c.t.Helper()
	for _, other := range c.Nodes {
		c.eventually(fmt.Sprintf("%s knows that %s is the contact", other.Name(), n.Name()), func(ctx context.Context) (bool, error) {
			servers, err := other.API.Servers(ctx)
			for _, s := range servers {
				if s.Address == d.Addr.Addr() {
					return s.Contact.Node == n.Name() && s.Local == (other == n), fmt.Errorf("it says %+v", s.Contact)
				}
			}
			return false, err
		})
	}
}

// everyday is a load of all kinds on all clients, each at a node of its own.
type everyday struct {
	lines    []*dialogue
	jobs     []*job
	captures []*capture
	said     int
}

func (c *cluster) everyday(d *server, octets int64, rate int) *everyday {
	c.t.Helper()
	e := &everyday{}
	server := d.Addr.Addr()
	for i, cl := range c.clients {
		e.captures = append(e.captures, c.capture(cl.Host, "eth0"))
		e.lines = append(e.lines, cl.socat(server))
		e.lines[i].expect("hello", "1 a hello")
		if to := c.Nodes[i%3]; to != c.Nodes[0] {
			c.handoff(d, cl, to)
		}
		c.pattern(octets) // now, so that both begin at once
		e.jobs = append(e.jobs, cl.download(server, octets, rate), cl.upload(server, octets, rate))
		cl.connections(3)
	}
	e.said = 1
	return e
}

// talk says a line on each client.
func (e *everyday) talk(c *cluster, d *server) {
	c.t.Helper()
	e.said++
	for i, l := range e.lines {
		l.expect("and", fmt.Sprintf("%d %s and", e.said, c.owner(d, c.clients[i]).Name()))
	}
}

// end waits for the end of everything and looks at the captures.
func (e *everyday) end(c *cluster, d *server, handoffs int) {
	c.t.Helper()
	c.wait(e.jobs...)
	e.talk(c, d)
	for _, l := range e.lines {
		l.bye()
	}
	for _, k := range e.captures {
		k.check(d.Addr.Addr(), watch.Limits{Handoffs: 2*handoffs + 4, Again: 4 << 20})
	}
}

// The contact's role goes from node to node under load.
func TestContactTakeover(t *testing.T) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			if !inside(t, everything...) {
				return
			}
			c := launchAll(t, setup{Clients: 2}, m.optimised...)
			d := c.Servers[0]
			e := c.everyday(d, 4<<20, 1<<20)
			handoffs := 0
			for i, n := range []*node{c.Nodes[1], c.Nodes[2], c.Nodes[0]} {
				var pulses []*pulse
				for _, cl := range c.clients {
					pulses = append(pulses, cl.pulse(d.Addr.Addr()))
				}
				c.takeOver(d, n, false)
				c.agreed(d, n)
				for i, p := range pulses {
					longest := p.end(c)
					t.Logf("%s waits %v at most", c.clients[i].Name(), longest)
					if longest > 5*time.Second { // milliseconds, but not where the machine stands still
						t.Errorf("%s: a line has taken %v", c.clients[i].Name(), longest)
					}
				}
				// One that nobody knows begins at the new contact.
				late := c.addClient(10 + i).socat(d.Addr.Addr())
				late.expect("hello", "1 "+n.Name()+" hello")
				late.expect("again", "2 "+n.Name()+" again")
				late.bye()
				e.talk(c, d)
				for _, cl := range c.clients {
					c.handoff(d, cl, c.next(c.owner(d, cl)))
					handoffs++
				}
				e.talk(c, d)
			}
			e.end(c, d, handoffs)
		})
	}
}

// The contact's daemon is killed, and another node takes its place. The
// applications, on the contact too, keep their connections.
func TestContactKilled(t *testing.T) {
	for _, m := range modes[1:] {
		t.Run(m.name, func(t *testing.T) {
			if !inside(t, everything...) {
				return
			}
			c := launchAll(t, setup{Clients: 3}, m.optimised...)
			d, a, b := c.Servers[0], c.Nodes[0], c.Nodes[1]
			e := c.everyday(d, 4<<20, 1<<20)
			a.Daemon.Kill()
			begun := time.Now()
			c.takeOver(d, b, true)
			t.Logf("the home agent sends to %s after %v", b.Name(), time.Since(begun))
			// The clients of the others go on at once.
			for i := 1; i < 3; i++ {
				e.lines[i].expect("still", fmt.Sprintf("2 %s still", c.Nodes[i].Name()))
			}
			c.startDaemon(a)
			c.connected(d)
			c.agreed(d, b)
			e.lines[0].expect("still", "2 a still")
			e.said = 2
			handoffs := 0
			for _, cl := range c.clients {
				c.handoff(d, cl, c.next(c.owner(d, cl)))
				handoffs++
			}
			e.end(c, d, handoffs)
		})
	}
}
