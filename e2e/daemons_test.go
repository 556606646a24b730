//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/internal/testcert"
)

// appUser is who the application runs as, where there is more than root.
const appUser = 65534

func appUID() int {
	if probe.Check(probe.Users).OK {
		return appUser
	}
	return 0
}

// launchAll builds the network and starts everything in it: the home agent, the
// daemons and the applications, and the correspondents of the clients that
// optimised names. Then the contact has registered.
func launchAll(t *testing.T, s setup, optimised ...int) *cluster {
	t.Helper()
	c := start(t, s)
	c.startAll(optimised...)
	return c
}

func (c *cluster) startAll(optimised ...int) {
	c.t.Helper()
	c.configure()
	c.restartDaemons(optimised...)
	for _, n := range c.nodes {
		for _, d := range c.servers {
			n.startApp(d)
		}
	}
	for _, d := range c.servers {
		c.registered(c.nodes[0], d)
		c.connected(d)
	}
}

func (c *cluster) restartDaemons(optimised ...int) {
	c.t.Helper()
	c.homeAgent = c.daemon(c.home, "home-agent", filepath.Join(c.dir, "h.toml"))
	for _, n := range c.nodes {
		n.startDaemon()
	}
	for _, i := range optimised {
		c.clients[i].startCorrespondent()
	}
}

// configure writes what an operator would.
func (c *cluster) configure() {
	c.t.Helper()
	ca, err := testcert.New()
	c.ok(err)
	var names, peers []string
	for _, n := range c.nodes {
		names = append(names, n.Name())
		peers = append(peers, fmt.Sprintf("%s = %q\n", n.Name(), n.addr))
	}
	c.ok(ca.Write(c.dir, names...))

	var homes, servers strings.Builder
	for _, d := range c.servers {
		c.ok(os.WriteFile(d.key, []byte(strings.Repeat(fmt.Sprintf("%02x", 0x10+d.number), 32)), 0o600))
		fmt.Fprintf(&homes, `
[[home_agent.homes]]
address = %q
spi = %d
key_file = %q
`, d.addr.Addr(), 256+d.number, d.key)
		fmt.Fprintf(&servers, `
[[server]]
address = %q
home_agent = %q
spi = %d
key_file = %q
contact = "a"
users = ["root", "%d"]
idle_timeout = "10s"
[server.nodes]
`, d.addr, homeAddr, 256+d.number, d.key, appUID())
		for _, n := range c.nodes {
			fmt.Fprintf(&servers, "%s = %q\n", n.Name(), n.careOf(d))
		}
	}
	link := ""
	if c.servers[0].addr.Masked() == homeNet {
		link = `interface = "eth0"`
	}
	c.write("h.toml", fmt.Sprintf(`
[home_agent]
address = %q
prefixes = [%q]
socket = "h.sock"
state = "state-h"
refresh_advice = "4s"
kernel_tunnels = %t
%s
%s`, homeAddr, c.servers[0].addr.Masked(), !c.userTunnels, link, &homes))
	for i, n := range c.nodes {
		others := strings.Join(append(append([]string{}, peers[:i]...), peers[i+1:]...), "")
		n.config = c.write(n.Name()+".toml", fmt.Sprintf(`
[node]
name = %q
address = %q
interface = "eth0"
ca = "ca.pem"
cert = "%[1]s.pem"
key = "%[1]s.key"
socket = "%[1]s.sock"
state = "state-%[1]s"
kernel_tunnels = %[5]t
[node.peers]
%[3]s%[4]s`, n.Name(), n.addr, others, &servers, !c.userTunnels))
	}
	for _, cl := range c.clients {
		c.write(cl.Name()+".toml", fmt.Sprintf("[correspondent]\nsocket = \"%[1]s.sock\"\nstate = \"state-%[1]s\"\n", cl.Name()))
	}
}

func (c *cluster) write(name, text string) (file string) {
	c.t.Helper()
	file = filepath.Join(c.dir, name)
	// Relative names would do; absolute ones say more in messages.
	for _, key := range []string{"ca", "cert", "key", "socket", "state"} {
		text = strings.ReplaceAll(text, "\n"+key+` = "`, "\n"+key+` = "`+c.dir+"/")
	}
	c.ok(os.WriteFile(file, []byte(text), 0o600))
	return file
}

// careOf is the node's care-of address for a server.
func (n *node) careOf(d *server) netip.Addr {
	return at(serverNet, fmt.Sprintf("::%d:%s", d.number, n.Name()))
}

// daemon starts dsco in a role and waits until it says that it is ready, as
// systemd does.
func (c *cluster) daemon(h *topology.Host, role, config string) *topology.Process {
	c.t.Helper()
	name := filepath.Join(c.dir, h.Name()+".notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	c.ok(err)
	defer os.Remove(name)
	defer notify.Close()
	cmd := h.Command(context.Background(), program("dsco"), role, "--config", config)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+name)
	p := c.launch(cmd)
	go func() { <-p.Ended(); notify.Close() }()
	b := make([]byte, 1024)
	c.ok(notify.SetReadDeadline(time.Now().Add(patience)))
	for {
		n, err := notify.Read(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			c.t.Fatalf("%s: it has ended: %v\n%s", p, p.Wait(), p.Log)
		case err != nil:
			c.t.Fatalf("%s: it does not say that it is ready: %v\n%s", p, err, p.Log)
		}
		if strings.Contains(string(b[:n]), "READY=1") {
			return p
		}
	}
}

func (n *node) startDaemon() {
	n.cluster.t.Helper()
	n.dsco = n.cluster.daemon(n.Host, "node", n.config)
}

func (cl *client) startCorrespondent() {
	c := cl.cluster
	c.t.Helper()
	cl.dsco = c.daemon(cl.Host, "correspondent", filepath.Join(c.dir, cl.Name()+".toml"))
}

// startApp starts the application for a server, as a user without privilege if
// there is one, and waits until it serves.
func (n *node) startApp(d *server) {
	c := n.cluster
	c.t.Helper()
	cmd := n.Command(context.Background(), program("service"), "-socket", n.socket, "-addr", d.addr.Addr().String())
	if uid := appUID(); uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	p := c.launch(cmd)
	n.apps[d.number-1] = p
	ready(c, p)
}

// registered waits until the home agent sends the server's packets to a node.
func (c *cluster) registered(n *node, d *server) {
	c.t.Helper()
	c.eventually(n.Name()+" is registered", func(ctx context.Context) (bool, error) {
		servers, err := n.api.Servers(ctx)
		for _, s := range servers {
			if s.Address == d.addr.Addr() && s.Local && s.Registered.After(time.Now()) {
				return true, nil
			}
		}
		return false, errors.Join(err, fmt.Errorf("servers are %+v", servers))
	})
}

// connected waits until the nodes know each other, and of applications
// everywhere.
func (c *cluster) connected(d *server) {
	c.t.Helper()
	for _, n := range c.nodes {
		c.eventually(n.Name()+" is connected with the others", func(ctx context.Context) (bool, error) {
			nodes, err := n.api.Nodes(ctx, d.addr.Addr())
			for _, i := range nodes {
				if !i.Connected && !i.Local {
					return false, fmt.Errorf("%+v", i)
				}
			}
			return len(nodes) == len(c.nodes), err
		})
	}
}

// owner finds the node that has a client, which has connections.
func (c *cluster) owner(d *server, cl *client) (n *node) {
	c.t.Helper()
	c.eventually(cl.Name()+" has an owner", func(ctx context.Context) (ok bool, err error) {
		n, err = c.find(ctx, d, cl)
		return n != nil, err
	})
	return n
}

// find is owner, without waiting: nil if no node has the client.
func (c *cluster) find(ctx context.Context, d *server, cl *client) (*node, error) {
	var errs []error
	for _, n := range c.nodes {
		if n.dsco == nil {
			continue
		}
		i, err := n.api.Client(ctx, d.addr.Addr(), cl.addr)
		if err == nil && i.Local && i.Connections > 0 {
			return n, nil
		}
		errs = append(errs, fmt.Errorf("%s: %+v, %w", n.Name(), i, err))
	}
	return nil, errors.Join(errs...)
}

// mode waits until a client's packets take a way.
func (c *cluster) mode(d *server, cl *client, want api.Mode) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%s is %s", cl.Name(), want), func(ctx context.Context) (bool, error) {
		i, err := c.owner(d, cl).api.Client(ctx, d.addr.Addr(), cl.addr)
		if err != nil {
			return false, err
		}
		return i.Mode == want, fmt.Errorf("it is %s, %s", i.Mode, i.State)
	})
}

// handoff has a client handed off to a node.
func (c *cluster) handoff(d *server, cl *client, to *node) *api.Handoff {
	c.t.Helper()
	ctx, cancel := c.within(patience)
	defer cancel()
	from := c.owner(d, cl)
	h, err := from.api.Handoff(ctx, d.addr.Addr(), cl.addr, to.Name())
	if err != nil {
		c.t.Fatalf("handoff of %s from %s to %s: %v", cl.Name(), from.Name(), to.Name(), err)
	}
	return h
}

// next is the node after n.
func (c *cluster) next(n *node) *node {
	for i := range c.nodes {
		if c.nodes[i] == n {
			return c.nodes[(i+1)%len(c.nodes)]
		}
	}
	return c.nodes[0]
}

// rotate hands clients off from node to node until one of the jobs has ended,
// and waits for the others. It says how often, which is an error if it is less
// than least. A client that happens to have no connection is left alone.
func (c *cluster) rotate(d *server, clients []*client, least int, jobs ...*job) (handoffs int) {
	c.t.Helper()
	pause := time.NewTicker(10 * time.Millisecond)
	defer pause.Stop()
	for !slices.ContainsFunc(jobs, (*job).ended) {
		<-pause.C
		for _, cl := range clients {
			from, err := c.find(c.ctx, d, cl)
			if from == nil {
				if c.ctx.Err() != nil {
					c.t.Fatalf("%s: %v: %v", cl.Name(), context.Cause(c.ctx), err)
				}
				continue
			}
			to := c.next(from)
			_, err = from.api.Handoff(c.ctx, d.addr.Addr(), cl.addr, to.Name())
			switch {
			case err == nil:
				handoffs++
			case !strings.Contains(err.Error(), "connection has ended") && !strings.Contains(err.Error(), "no connection"):
				c.t.Fatalf("handoff of %s from %s to %s: %v", cl.Name(), from.Name(), to.Name(), err)
			}
		}
	}
	c.wait(jobs...)
	if handoffs < least {
		c.t.Errorf("the clients were done after %d handoffs, less than %d", handoffs, least)
	}
	return handoffs
}
