//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/netns/topology"
)

// What is left on the hosts when everything has ended: nothing.
func TestNothingStaysBehind(t *testing.T) {
	for _, how := range []string{"stopped", "killed", "killed and started"} {
		t.Run(strings.ReplaceAll(how, " ", "_"), func(t *testing.T) {
			if !inside(t, everything...) {
				return
			}
			c := start(t, setup{Servers: 2, HomeLink: true})
			hosts := []*topology.Host{c.Home, c.clients[0].Host}
			for _, n := range c.Nodes {
				hosts = append(hosts, n.Host)
			}
			before := make([][]string, len(hosts))
			for i, h := range hosts {
				before[i] = c.traces(h)
			}
			c.startAll(0)
			lines := c.clients[0].socat(c.Servers[0].Addr.Addr())
			lines.expect("hello", "1 a hello")
			c.mode(c.Servers[0], c.clients[0], api.Optimised)
			for i, h := range hosts {
				if slices.Equal(c.traces(h), before[i]) {
					t.Errorf("%s: nothing to be seen of what runs there", h.Name())
				}
			}
			daemons := c.daemons()
			lines.bye()
			for _, n := range c.Nodes {
				for _, p := range n.Apps {
					if err := p.Stop(patience); err != nil {
						t.Error(err)
					}
				}
			}
			if how != "stopped" {
				for _, p := range daemons {
					p.Kill()
				}
			}
			switch how {
			case "killed":
				c.cleanup()
			case "killed and started":
				c.restartDaemons(0)
				daemons = c.daemons()
			}
			if how != "killed" {
				for _, p := range daemons {
					if err := p.Stop(patience); err != nil {
						t.Error(err)
					}
				}
			}
			for i, h := range hosts {
				c.same(h, before[i], how)
			}
		})
	}
}

// daemons are all that run.
func (c *cluster) daemons() []*topology.Process {
	all := []*topology.Process{c.HomeAgent}
	for _, n := range c.Nodes {
		all = append(all, n.Daemon)
	}
	for _, cl := range c.clients {
		if cl.Correspondent != nil {
			all = append(all, cl.Correspondent)
		}
	}
	return all
}

// A daemon is killed and comes back, with its application running on: no
// connection is lost, the daemon finds its state, and handoffs go on.
func TestDaemonKilled(t *testing.T) {
	for _, m := range modes[:2] {
		t.Run(m.name, func(t *testing.T) {
			if !inside(t, everything...) {
				return
			}
			c := launchAll(t, setup{}, m.optimised[:len(m.optimised)/2]...)
			d, cl, b := c.Servers[0], c.clients[0], c.Nodes[1]
			e := c.everyday(d, 4<<20, 1<<20)
			app := newTold(c, d, b)
			app.ask(0)
			c.eventually("the application of b hears of what happens", func(context.Context) (bool, error) {
				return strings.Contains(b.Apps[0].Log.String(), `"kind":"reloaded"`), b.Daemon.Signal(syscall.SIGHUP)
			})
			c.handoff(d, cl, b)
			app.event(api.EventTakenOver)
			app.ask(1)
			b.Daemon.Kill()
			c.startDaemon(b)
			c.connected(d)
			app.ask(1)
			e.talk(c, d)
			c.handoff(d, cl, c.Nodes[2])
			app.event(api.EventMissed) // at the latest now: there is news
			app.event(api.EventHandedOff)
			app.ask(0)
			c.handoff(d, cl, b)
			e.end(c, d, 3)
		})
	}
}

// told is what an application is told of itself: Status, Clients and Watch of package
// ds, of which its program writes (e2e/service).
type told struct {
	c      *cluster
	d      *server
	n      *node
	log    *topology.Log
	events int // where the last event that was waited for ends
}

func newTold(c *cluster, d *server, n *node) *told {
	return &told{c: c, d: d, n: n, log: n.Apps[d.Number-1].Log}
}

// wait waits for text behind a place. It returns what the line has from its last octet
// on, and where that ends.
func (a *told) wait(from int, text string) (rest string, end int) {
	a.c.t.Helper()
	ctx, cancel := a.c.within(patience)
	defer cancel()
	at, err := a.log.WaitFor(ctx, from, text)
	a.c.ok(err)
	end, err = a.log.WaitFor(ctx, at, "\n")
	a.c.ok(err)
	return a.log.String()[at-1 : end-1], end
}

// event waits for an event about the client, or about nobody.
func (a *told) event(kind api.EventKind) {
	a.c.t.Helper()
	_, a.events = a.wait(a.events, fmt.Sprintf(`"kind":%q`, kind))
}

// ask has the application asked what it knows: it has so many clients, and all nodes
// are there.
func (a *told) ask(clients int) {
	a.c.t.Helper()
	from := a.log.Len()
	a.c.ok(a.n.Apps[a.d.Number-1].Signal(syscall.SIGUSR1))
	var s ds.Status
	line, end := a.wait(from, "status {")
	if err := json.Unmarshal([]byte(line), &s); err != nil || s.Server != a.d.Addr.Addr() || s.Node != a.n.Name() ||
		!s.Attached || s.Clients != clients || s.Contact != "a" || len(s.Nodes) != len(a.c.Nodes) {
		a.c.t.Errorf("status of %s with %d clients: %s, %v", a.n.Name(), clients, line, err)
	}
	var all []api.ClientInfo
	line, _ = a.wait(end, "clients [")
	if err := json.Unmarshal([]byte(line), &all); err != nil {
		a.c.t.Errorf("clients of %s: %s, %v", a.n.Name(), line, err)
	}
	all = slices.DeleteFunc(all, func(i api.ClientInfo) bool { return !i.Local })
	if len(all) != clients {
		a.c.t.Errorf("%s has %d clients: %s", a.n.Name(), clients, line)
	}
}

// An application is killed: its connections are lost, and that is said. Those of
// other nodes are not, and a new one serves.
func TestApplicationKilled(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	c := launchAll(t, setup{Clients: 2}, 0)
	d, b := c.Servers[0], c.Nodes[1]
	server := d.Addr.Addr()
	lost, other := c.clients[0].socat(server), c.clients[1].socat(server)
	lost.expect("hello", "1 a hello")
	other.expect("hello", "1 a hello")
	c.handoff(d, c.clients[0], b)
	lost.expect("there", "2 b there")

	ctx, cancel := c.within(patience)
	defer cancel()
	said := make(chan error, 1)
	go func() {
		for e, err := range b.API.Watch(ctx, api.WatchOptions{}) {
			if err != nil || e.Kind == api.EventDetached && strings.Contains(e.Detail, "lost") {
				said <- err
				return
			}
		}
	}()
	b.Apps[0].Kill()
	if err := <-said; err != nil {
		t.Errorf("nobody says what was lost: %v", err)
	}
	other.expect("still", "2 a still")
	c.startApp(b, d)
	c.handoff(d, c.clients[1], b)
	other.expect("there", "3 b there")
	// The client that has lost its connection comes again.
	again := c.clients[0].socat(server)
	if answer := again.say("hello"); !strings.HasPrefix(answer, "1 ") || !strings.HasSuffix(answer, " hello") {
		t.Errorf("a new connection says %q", answer)
	}
	again.bye()
	other.bye()
	lost.p.Kill()
}

// The home agent is killed and comes back without its memory: the contact
// registers again, and nobody is reset.
func TestHomeAgentKilled(t *testing.T) {
	for _, m := range modes[:2] {
		t.Run(m.name, func(t *testing.T) {
			if !inside(t, everything...) {
				return
			}
			c := launchAll(t, setup{Clients: 2}, m.optimised...)
			d := c.Servers[0]
			e := c.everyday(d, 4<<20, 1<<20)
			c.HomeAgent.Kill()
			c.startHomeAgent()
			e.talk(c, d)
			for _, cl := range c.clients {
				c.handoff(d, cl, c.next(c.owner(d, cl)))
			}
			late := c.clients[0].redis(d.Addr.Addr())
			late.expect("PING", "PONG")
			late.bye()
			e.end(c, d, 1)
		})
	}
}

// cleanup does what an operator does after a crash.
func (c *cluster) cleanup() {
	c.t.Helper()
	run := func(h *topology.Host, config string) {
		out, err := h.Command(c.ctx, program("dsco"), "cleanup", "--config", config).CombinedOutput()
		if err != nil {
			c.t.Errorf("%s: dsco cleanup: %v: %s", h.Name(), err, out)
		}
	}
	run(c.Home, c.HomeConfig)
	for _, n := range c.Nodes {
		run(n.Host, n.Config)
	}
	for _, cl := range c.clients {
		run(cl.Host, c.Config(cl.Name()))
	}
}
