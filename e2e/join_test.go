//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/testbed"
)

// tool runs ds on a host, with what it needs to know for its files.
func (c *cluster) tool(h *topology.Host, args ...string) ([]byte, error) {
	out, err := h.Command(c.ctx, program("ds"), args...).Output()
	if e := new(exec.ExitError); err != nil {
		if x, ok := err.(*exec.ExitError); ok {
			e = x
		}
		return out, fmt.Errorf("%w: %s", err, e.Stderr)
	}
	return out, nil
}

// made is what ds init and ds join print for programs.
type made struct {
	Config    string `json:"config"`
	HomeAgent string `json:"home_agent"`
	Token     string `json:"token"`
}

// install runs ds init or ds join on a node, as an operator would. All hosts share
// one file system here, so directories and sockets have to be told apart.
func (c *cluster) install(n *node, args ...string) (m made) {
	c.t.Helper()
	dir := filepath.Join(c.Dir, n.Name())
	n.Config = filepath.Join(dir, "dsco.toml")
	out, err := c.tool(n.Host, append(args, "--json", "--name", n.Name(), "--config", n.Config, "--state", filepath.Join(dir, "state"))...)
	c.ok(err)
	c.ok(json.Unmarshal(out, &m))
	c.edit(n.Config, n.Socket)
	return m
}

// edit adds a socket to a configuration.
func (c *cluster) edit(config, socket string) {
	c.t.Helper()
	b, err := os.ReadFile(config)
	c.ok(err)
	text := string(b)
	for _, table := range []string{"[node]\n", "[home_agent]\n"} {
		text = strings.Replace(text, table, fmt.Sprintf("%ssocket = %q\n", table, socket), 1)
	}
	c.ok(os.WriteFile(config, []byte(text), 0o640))
}

// authorities are what a node's list of members says: how many there are, and
// which nodes have no certificate of the one that signs.
func (c *cluster) authorities(n *node) (count int, late []string, err error) {
	out, err := c.tool(n.Host, "ca", "show", "--json", "--config", n.Config)
	if err != nil {
		return 0, nil, err
	}
	var s struct {
		Authorities []struct{ Fingerprint string }
		Nodes       []struct{ Node, Issuer string }
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return 0, nil, err
	}
	for _, m := range s.Nodes {
		if m.Issuer != s.Authorities[0].Fingerprint {
			late = append(late, m.Node)
		}
	}
	return len(s.Authorities), late, nil
}

// Two commands make a cluster: one on the first machine, one on each other. The
// nodes that run learn of a new one by themselves, and go on while the authority
// is exchanged; a client that is handed round meanwhile notices nothing.
func TestJoin(t *testing.T) {
	if !inside(t, everything...) {
		return
	}
	c := start(t, setup{})
	d, cl, a, b, third := c.Servers[0], c.clients[0], c.Nodes[0], c.Nodes[1], c.Nodes[2]
	all := c.Nodes
	up := func(n *node) {
		t.Helper()
		c.startDaemon(n)
		c.startApp(n, d)
	}

	c.Nodes = all[:1]
	first := c.install(a, "init", "--server", d.Addr.String(), "--home-agent", testbed.HomeAddr.String(), "--app-user", fmt.Sprint(appUID()), "--app-user", "root")
	c.edit(first.HomeAgent, filepath.Join(c.Dir, "h.sock"))
	b1, err := os.ReadFile(first.HomeAgent)
	c.ok(err)
	c.HomeConfig = first.HomeAgent
	c.ok(os.WriteFile(c.HomeConfig, []byte(strings.Replace(string(b1), "[home_agent]\n", fmt.Sprintf("[home_agent]\nstate = %q\n", filepath.Join(c.Dir, "state-h")), 1)), 0o640))
	c.startHomeAgent()
	up(a)
	c.registered(a, d)
	beat := cl.pulse(d.Addr.Addr())

	c.Nodes = all[:2]
	c.install(b, "join", first.Token)
	up(b)
	c.connected(d)
	c.handoff(d, cl, b)
	if _, err := c.tool(third.Host, "join", first.Token, "--name", "c", "--config", filepath.Join(c.Dir, "x.toml"), "--state", filepath.Join(c.Dir, "x")); err == nil || !strings.Contains(err.Error(), "has been used") {
		t.Errorf("the token a second time: %v", err)
	}

	// The authority is exchanged; a third node joins in between.
	reload := func() {
		t.Helper()
		c.ok(a.Daemon.Signal(syscall.SIGHUP)) // it would look by itself, seconds later
	}
	_, err = c.tool(a.Host, "ca", "rotate", "--config", a.Config)
	c.ok(err)
	reload()
	c.Nodes = all
	var token struct{ Token string }
	out, err := c.tool(a.Host, "token", "--json", "--config", a.Config)
	c.ok(err)
	c.ok(json.Unmarshal(out, &token))
	c.install(third, "join", token.Token)
	up(third)
	c.connected(d)
	c.handoff(d, cl, third)
	c.eventually("all have certificates of the new authority", func(context.Context) (bool, error) {
		_, late, err := c.authorities(a)
		return len(late) == 0 && err == nil, fmt.Errorf("not yet: %q, %v", late, err)
	})
	_, err = c.tool(a.Host, "ca", "retire", "--config", a.Config)
	c.ok(err)
	reload()
	for _, n := range c.Nodes {
		c.eventually(n.Name()+" believes the new authority only", func(context.Context) (bool, error) {
			count, _, err := c.authorities(n)
			return count == 1, err
		})
	}
	c.handoff(d, cl, a)

	// One is started anew, with the certificate that it has now.
	// Meanwhile it is no node to hand clients off to, and it is said why.
	c.ok(b.Daemon.Stop(patience))
	c.eventually("a knows why it cannot hand off to b", func(context.Context) (bool, error) {
		out, err := c.ds(a, 0, "handoff", cl.Addr.String(), "b")
		return err != nil && strings.Contains(out, "node b is not connected: ") && strings.Contains(out, "connection refused"), fmt.Errorf("%v: %s", err, out)
	})
	c.startDaemon(b)
	c.connected(d)

	// One is removed, which hears it, and the others do not count it any more.
	_, err = c.tool(a.Host, "remove", third.Name(), "--config", a.Config)
	c.ok(err)
	reload()
	for _, n := range all[:2] {
		c.eventually(n.Name()+" knows one other node", func(ctx context.Context) (bool, error) {
			nodes, err := n.API.Nodes(ctx, d.Addr.Addr())
			return len(nodes) == 2, err
		})
	}
	for _, other := range all[:2] {
		c.eventually(third.Name()+" knows why "+other.Name()+" refuses it", func(ctx context.Context) (bool, error) {
			st, err := third.API.Status(ctx)
			if err != nil {
				return false, err
			}
			i := slices.IndexFunc(st.Peers, func(p api.Peer) bool { return p.Node == other.Name() })
			if i < 0 {
				return false, fmt.Errorf("not yet: %+v", st.Peers)
			}
			return !st.Peers[i].Connected && strings.Contains(st.Peers[i].Error, "not a member of the cluster any more"), fmt.Errorf("not yet: %+v", st.Peers[i])
		})
	}
	c.handoff(d, cl, b)
	close(beat.stop)
	<-beat.done
	c.ok(beat.err)
}
