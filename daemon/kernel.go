package daemon

import (
	"errors"
	"net/netip"

	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/forward"
	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/mobility/relay"
)

// Tables of routes of the kernel's tunnels are numbered by the queue, behind this
// one. The rules' priority is ahead of an operator's own.
const (
	firstKernelTable = 10000
	kernelPriority   = 7846
)

// openKernel has the kernel forward what is in tunnels: what the relay would send
// on, and, out of its tunnel to the application's TUN, what comes to a care-of
// address. The latter takes routes that not all kernels have; then the application
// takes it out, as packets of the wire.
func (n *Node) openKernel(h *host.Host) (*forward.Node, error) {
	cfg := n.cfg.Node
	exits := true
	if err := n.addExit(h); err != nil {
		n.log.Info("tunnels end in applications: the kernel does not end them", "cause", err)
		exits = false
	}
	c := forward.NodeConfig{Queue: cfg.Queue, Daemon: cfg.Address}
	for _, s := range n.services {
		fs := forward.Server{Home: s.home, CareOf: s.careOf, DirectReturn: s.cfg.DirectReturn}
		if s.external == nil {
			fs.HomeAgent = s.cfg.HomeAgent
		}
		if exits {
			s.mu.Lock()
			fs.Senders = n.senders(&s.cfg)
			s.mu.Unlock()
		}
		c.Servers = append(c.Servers, fs)
	}
	return forward.OpenNode(c)
}

// senders are who may send to the care-of address of this node in a tunnel: the
// daemons and applications of all nodes of a server.
func (n *Node) senders(s *config.Server) []netip.Addr {
	list := []netip.Addr{n.cfg.Node.Address}
	for name, careOf := range s.Nodes {
		if name != n.cfg.Node.Name {
			list = append(list, careOf, (*n.peers.Load())[name])
		}
	}
	return list
}

// addExit adds the route that ends tunnels, and what leads to it.
func (n *Node) addExit(h *host.Host) error {
	cfg := n.cfg.Node
	exit, table := forward.Exit(cfg.Queue), firstKernelTable+int(cfg.Queue)
	if err := h.AddExit(exit, cfg.Interface, table); err != nil {
		return err
	}
	err := h.AddRule(host.Rule{To: netip.PrefixFrom(exit, exit.BitLen()), Table: table, Priority: kernelPriority})
	if err != nil {
		err = errors.Join(err, h.RemoveExit(exit, cfg.Interface, table))
	}
	return err
}

// countKernel adds what the kernel has forwarded of a server's tunnels to counters.
func (n *Node) countKernel(home netip.Addr, counters map[string]uint64) {
	k := n.kernel.Load()
	if k == nil {
		return
	}
	relayed, delivered, err := k.Counts(home)
	if err != nil {
		// It forwards nothing any more, which whoever found that out has logged.
		n.log.Debug("counters of the kernel's tunnels", "server", home, "error", err)
		return
	}
	counters["kernel_relayed"], counters["kernel_relayed_octets"] = relayed.Packets, relayed.Octets
	counters["kernel_delivered"], counters["kernel_delivered_octets"] = delivered.Packets, delivered.Octets
}

// tellKernel adds to a change what the relay has been told.
func tellKernel(c *forward.Change, in relay.Input) {
	switch in := in.(type) {
	case relay.SetNodes:
		c.Members = in.Nodes
	case relay.SetOwner:
		c.Owners = append(c.Owners, forward.Owner{Client: in.Client, CareOf: in.Owner})
	case relay.Forget:
		c.Owners = append(c.Owners, forward.Owner{Client: in.Client})
	}
}

// changeKernel makes a change in the kernel. If that fails the daemon has all
// packets from now on.
func (n *Node) changeKernel(home netip.Addr, c forward.Change) {
	k := n.kernel.Load()
	if k == nil {
		return
	}
	if err := k.Change(home, c); err != nil && !errors.Is(err, forward.ErrClosed) {
		n.log.Error("the kernel does not forward tunnels any more", "err", err)
	}
}
