//go:build linux

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// launchAll builds the network and starts everything in it: the home agent, the
// daemons and the applications, and the correspondents of the clients that
// optimised numbers. Then the contact has registered.
func launchAll(t *testing.T, s setup, optimised ...int) *cluster {
	t.Helper()
	c := start(t, s)
	c.startAll(optimised...)
	return c
}

func (c *cluster) startAll(optimised ...int) {
	c.t.Helper()
	c.ok(c.Start(c.ctx, optimised...))
}

func (c *cluster) restartDaemons(optimised ...int) {
	c.t.Helper()
	c.ok(c.StartDaemons(c.ctx, optimised...))
}

func (c *cluster) startHomeAgent() {
	c.t.Helper()
	c.soon(c.StartHomeAgent)
}

func (c *cluster) startDaemon(n *node) {
	c.t.Helper()
	c.soon(n.StartDaemon)
}

// startApp starts the application for a server, and waits until it serves.
func (c *cluster) startApp(n *node, d *server) {
	c.t.Helper()
	c.soon(func(ctx context.Context) error { return n.StartApp(ctx, d) })
}

// soon does what takes milliseconds, and ends the test if it fails.
func (c *cluster) soon(do func(ctx context.Context) error) {
	c.t.Helper()
	ctx, cancel := c.within(patience)
	defer cancel()
	c.ok(do(ctx))
}

// registered waits until the home agent sends the server's packets to a node.
func (c *cluster) registered(n *node, d *server) {
	c.t.Helper()
	c.soon(func(ctx context.Context) error { return c.Registered(ctx, n, d) })
}

// connected waits until the nodes know each other, and of applications
// everywhere.
func (c *cluster) connected(d *server) {
	c.t.Helper()
	c.soon(func(ctx context.Context) error { return c.Connected(ctx, d) })
}

// owner finds the node that has a client, which has connections.
func (c *cluster) owner(d *server, cl *client) (n *node) {
	c.t.Helper()
	c.eventually(cl.Name()+" has an owner", func(ctx context.Context) (ok bool, err error) {
		n, _, err = c.Find(ctx, d, cl.Client)
		return n != nil, err
	})
	return n
}

// mode waits until a client's packets take a way.
func (c *cluster) mode(d *server, cl *client, want api.Mode) {
	c.t.Helper()
	c.soon(func(ctx context.Context) error { return c.Mode(ctx, d, cl.Client, want) })
}

// handoff has a client handed off to a node. On a machine that stands still for seconds it
// may take more than one.
func (c *cluster) handoff(d *server, cl *client, to *node) (h *api.Handoff) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%s is handed off to %s", cl.Name(), to.Name()), func(ctx context.Context) (ok bool, err error) {
		from := c.owner(d, cl)
		h, err = from.API.Handoff(ctx, d.Addr.Addr(), cl.Addr, to.Name())
		if err != nil && !stoodStill(err) {
			c.t.Fatalf("handoff of %s from %s to %s: %v", cl.Name(), from.Name(), to.Name(), err)
		}
		if err != nil {
			c.t.Logf("once more: handoff of %s from %s to %s: %v", cl.Name(), from.Name(), to.Name(), err)
		}
		return err == nil, err
	})
	return h
}

// stoodStill tells whether a handoff may have failed because the machine stood still:
// daemons that hear nothing of each other for three seconds end their connection, and have
// another one soon; and the examples' handlers have a second to come to rest.
func stoodStill(err error) bool {
	return slices.ContainsFunc([]string{"the connection to node", "is not connected", "did not come to rest in time"}, func(s string) bool {
		return strings.Contains(err.Error(), s)
	})
}

// next is the node after n.
func (c *cluster) next(n *node) *node {
	for i := range c.Nodes {
		if c.Nodes[i] == n {
			return c.Nodes[(i+1)%len(c.Nodes)]
		}
	}
	return c.Nodes[0]
}

// rotate has jobs begun, hands clients off from node to node until one of the jobs has
// ended, and waits for the others. It says how often. If that is less than least, which a
// busy machine may not come to, it does the same again. A client that happens to have no
// connection is left alone.
func (c *cluster) rotate(d *server, clients []*client, least int, begin func() []*job) (handoffs int) {
	c.t.Helper()
	pause := time.NewTicker(10 * time.Millisecond)
	defer pause.Stop()
	for handoffs < least && !c.t.Failed() {
		jobs := begin()
		for !slices.ContainsFunc(jobs, (*job).ended) {
			<-pause.C
			for _, cl := range clients {
				from, _, err := c.Find(c.ctx, d, cl.Client)
				if from == nil {
					if c.ctx.Err() != nil {
						c.t.Fatalf("%s: %v: %v", cl.Name(), context.Cause(c.ctx), err)
					}
					continue
				}
				to := c.next(from)
				_, err = from.API.Handoff(c.ctx, d.Addr.Addr(), cl.Addr, to.Name())
				switch {
				case err == nil:
					handoffs++
				case !strings.Contains(err.Error(), "connection has ended") && !strings.Contains(err.Error(), "no connection") && !stoodStill(err):
					c.t.Fatalf("handoff of %s from %s to %s: %v", cl.Name(), from.Name(), to.Name(), err)
				}
			}
		}
		c.wait(jobs...)
	}
	return handoffs
}
