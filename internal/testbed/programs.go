//go:build linux

package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/internal/testcert"
)

// Configure writes what an operator would.
func (b *Bed) Configure() error {
	ca, err := testcert.New()
	if err != nil {
		return err
	}
	var names, peers []string
	for _, n := range b.Nodes {
		names = append(names, n.Name())
		peers = append(peers, fmt.Sprintf("%s = %q\n", n.Name(), n.Addr))
	}
	if err := ca.Write(b.Dir, names...); err != nil {
		return err
	}
	var homes, servers strings.Builder
	for _, d := range b.Servers {
		if err := os.WriteFile(d.Key, []byte(strings.Repeat(fmt.Sprintf("%02x", 0x10+d.Number), 32)), 0o600); err != nil {
			return err
		}
		fmt.Fprintf(&homes, `
[[home_agent.homes]]
address = %q
spi = %d
key_file = %q
`, d.Addr.Addr(), 256+d.Number, d.Key)
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
`, d.Addr, HomeAddr, 256+d.Number, d.Key, b.Setup.AppUser)
		for _, n := range b.Nodes {
			fmt.Fprintf(&servers, "%s = %q\n", n.Name(), n.CareOf(d))
		}
	}
	link := ""
	if b.Setup.HomeLink {
		link = `interface = "eth0"`
	}
	err = b.write("h", fmt.Sprintf(`
[home_agent]
address = %q
prefixes = [%q]
socket = "h.sock"
state = "state-h"
refresh_advice = "4s"
kernel_tunnels = %t
%s
%s`, HomeAddr, b.Servers[0].Addr.Masked(), !b.Setup.UserSpace, link, &homes))
	for i, n := range b.Nodes {
		if err != nil {
			break
		}
		others := strings.Join(append(append([]string{}, peers[:i]...), peers[i+1:]...), "")
		err = b.write(n.Name(), fmt.Sprintf(`
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
%[3]s%[4]s`, n.Name(), n.Addr, others, &servers, !b.Setup.UserSpace))
	}
	for _, c := range b.Clients {
		if err != nil {
			break
		}
		err = b.write(c.Name(), fmt.Sprintf("[correspondent]\nsocket = \"%[1]s.sock\"\nstate = \"state-%[1]s\"\nkernel_headers = %[2]t\n", c.Name(), !b.Setup.UserSpace))
	}
	return err
}

// Config is the configuration file of a host.
func (b *Bed) Config(host string) string { return filepath.Join(b.Dir, host+".toml") }

// write writes it. Names of files in it become absolute, which says more in
// messages.
func (b *Bed) write(host, text string) error {
	for _, key := range []string{"ca", "cert", "key", "socket", "state"} {
		text = strings.ReplaceAll(text, "\n"+key+` = "`, "\n"+key+` = "`+b.Dir+"/")
	}
	return os.WriteFile(b.Config(host), []byte(text), 0o600)
}

// Start configures and starts everything: the home agent, the daemons and the
// applications, and the correspondents of the clients that optimised numbers, from
// 0. When it returns the contact, which is node a, has registered.
func (b *Bed) Start(ctx context.Context, optimised ...int) error {
	if err := b.Configure(); err != nil {
		return fmt.Errorf("testbed: configure: %w", err)
	}
	if err := b.StartDaemons(ctx, optimised...); err != nil {
		return err
	}
	for _, d := range b.Servers {
		for _, n := range b.Nodes {
			if err := n.StartApp(ctx, d); err != nil {
				return err
			}
		}
		if err := errors.Join(b.Registered(ctx, b.Nodes[0], d), b.Connected(ctx, d)); err != nil {
			return err
		}
	}
	return nil
}

// StartDaemons is the part of Start that is about dsco, in all its roles.
func (b *Bed) StartDaemons(ctx context.Context, optimised ...int) error {
	if err := b.StartHomeAgent(ctx); err != nil {
		return err
	}
	for _, n := range b.Nodes {
		if err := n.StartDaemon(ctx); err != nil {
			return err
		}
	}
	for _, i := range optimised {
		if err := b.Clients[i].StartCorrespondent(ctx); err != nil {
			return err
		}
	}
	return nil
}

// StartHomeAgent starts the home agent.
func (b *Bed) StartHomeAgent(ctx context.Context) (err error) {
	b.HomeAgent, err = b.daemon(ctx, b.Home, "home-agent", b.HomeConfig, nil)
	return err
}

// StartDaemon starts a node's daemon.
func (n *Node) StartDaemon(ctx context.Context) (err error) {
	n.Daemon, err = n.bed.daemon(ctx, n.Host, "node", n.Config, n.processors)
	return err
}

// StartCorrespondent makes the client a correspondent.
func (c *Client) StartCorrespondent(ctx context.Context) (err error) {
	c.Correspondent, err = c.bed.daemon(ctx, c.Host, "correspondent", c.bed.Config(c.Name()), nil)
	return err
}

// Launch starts a program that runs until it is stopped, or until Close.
func (b *Bed) Launch(cmd *topology.Cmd) (*topology.Process, error) {
	p, err := cmd.Background()
	if err == nil {
		b.Running = append(b.Running, p)
	}
	return p, err
}

// daemon starts dsco in a role and waits until it says that it is ready, as
// systemd does (sd_notify).
func (b *Bed) daemon(ctx context.Context, h *topology.Host, role, config string, processors *unix.CPUSet) (*topology.Process, error) {
	name := filepath.Join(b.Dir, h.Name()+".notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("testbed: %w", err)
	}
	defer os.Remove(name)
	defer notify.Close()
	cmd := h.Command(context.Background(), filepath.Join(b.Setup.Programs, "dsco"), role, "--config", config)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+name)
	cmd.TimerSlack, cmd.Processors = TimerSlack, processors
	p, err := b.Launch(cmd)
	if err != nil {
		return nil, fmt.Errorf("testbed: %w", err)
	}
	go func() { <-p.Ended(); notify.Close() }()
	defer context.AfterFunc(ctx, func() { notify.SetReadDeadline(time.Unix(1, 0)) })()
	for buf := make([]byte, 1024); ; {
		n, err := notify.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil, fmt.Errorf("testbed: %s: it has ended: %w\n%s", p, p.Wait(), p.Log)
		case err != nil:
			return nil, fmt.Errorf("testbed: %s: it does not say that it is ready: %w\n%s", p, context.Cause(ctx), p.Log)
		case strings.Contains(string(buf[:n]), "READY=1"):
			return p, nil
		}
	}
}

// StartApp starts the application for a server, and waits until it says that it
// is ready.
func (n *Node) StartApp(ctx context.Context, d *Server) error {
	s := n.bed.Setup
	args := append(slices.Clone(s.App[1:]), "--socket", n.Socket, "--addr", d.Addr.Addr().String())
	cmd := n.Command(context.Background(), filepath.Join(s.Programs, s.App[0]), args...)
	if uid := uint32(s.AppUser); uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	cmd.TimerSlack, cmd.Processors = TimerSlack, n.processors
	p, err := n.bed.Launch(cmd)
	if err != nil {
		return fmt.Errorf("testbed: %w", err)
	}
	n.Apps[d.Number-1] = p
	if _, err := p.Log.WaitFor(ctx, 0, "ready on "); err != nil {
		return fmt.Errorf("testbed: %s: it does not say that it is ready: %w\n%s", p, err, p.Log)
	}
	return nil
}

// Eventually waits until what ask tells is so. Between there is a pause, since
// nobody says when it changes.
func Eventually(ctx context.Context, what string, ask func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := ask()
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("testbed: %s: %w: %w", what, context.Cause(ctx), err)
		}
	}
}

// Registered waits until the home agent sends the server's packets to a node.
func (b *Bed) Registered(ctx context.Context, n *Node, d *Server) error {
	return Eventually(ctx, n.Name()+" is registered", func() (bool, error) {
		servers, err := n.API.Servers(ctx)
		for _, s := range servers {
			if s.Address == d.Addr.Addr() && s.Local && s.Registered.After(time.Now()) {
				return true, nil
			}
		}
		return false, errors.Join(err, fmt.Errorf("servers are %+v", servers))
	})
}

// Connected waits until the nodes know each other, and of applications
// everywhere.
func (b *Bed) Connected(ctx context.Context, d *Server) error {
	for _, n := range b.Nodes {
		err := Eventually(ctx, n.Name()+" is connected with the others", func() (bool, error) {
			nodes, err := n.API.Nodes(ctx, d.Addr.Addr())
			for _, i := range nodes {
				if !i.Connected || !i.Attached {
					return false, fmt.Errorf("%+v", i)
				}
			}
			return len(nodes) == len(b.Nodes), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Find finds the node that has a client, which has connections; nil: none.
func (b *Bed) Find(ctx context.Context, d *Server, c *Client) (*Node, *api.ClientInfo, error) {
	var errs []error
	for _, n := range b.Nodes {
		i, err := n.API.Client(ctx, d.Addr.Addr(), c.Addr)
		if err == nil && i.Local && i.Connections > 0 {
			return n, i, nil
		}
		errs = append(errs, fmt.Errorf("%s: %+v, %w", n.Name(), i, err))
	}
	return nil, nil, errors.Join(errs...)
}

// Mode waits until a client's packets take a way.
func (b *Bed) Mode(ctx context.Context, d *Server, c *Client, want api.Mode) error {
	return Eventually(ctx, fmt.Sprintf("%s is %s", c.Name(), want), func() (bool, error) {
		n, i, err := b.Find(ctx, d, c)
		if n == nil {
			return false, err
		}
		return i.Mode == want, fmt.Errorf("it is %s, %s", i.Mode, i.State)
	})
}
