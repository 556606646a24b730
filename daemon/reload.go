package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/forward"
	"github.com/distributed-servers/ds/daemon/member"
)

// Reload takes over what may change while the node runs: who may attach, certificates,
// and other nodes, which may be new, gone or at other addresses. Anything else is
// refused, and nothing changes.
func (n *Node) Reload(cfg *config.Config) error {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	if cfg.Node == nil || !reflect.DeepEqual(withoutPeers(cfg.Node), withoutPeers(n.current.Node)) {
		return errors.New("daemon: reload: the table [node] has changed in more than peers, which takes a restart; connections go on meanwhile")
	}
	rest := func(servers []config.Server) []config.Server {
		servers = slices.Clone(servers)
		for i := range servers {
			s := &servers[i]
			s.Users, s.UserGroups = nil, nil
			s.Nodes = map[string]netip.Addr{n.cfg.Node.Name: s.Nodes[n.cfg.Node.Name]}
		}
		return servers
	}
	if !reflect.DeepEqual(rest(cfg.Servers), rest(n.current.Servers)) {
		return errors.New("daemon: reload: a [[server]] has changed in more than users, user_groups and other nodes, which takes a restart; connections go on meanwhile")
	}
	if err := n.identity.reload(); err != nil {
		return fmt.Errorf("daemon: reload: %w", err)
	}
	if err := n.admit(cfg); err != nil {
		return err
	}
	if err := n.setNodes(cfg); err != nil {
		return err
	}
	n.events.Publish(api.Event{Kind: api.EventReloaded})
	return nil
}

func withoutPeers(n *config.Node) config.Node {
	c := *n
	c.Peers = nil
	return c
}

// nodesOf are the nodes of a server, as its member is to know them.
func (n *Node) nodesOf(peers map[string]netip.Addr, s *config.Server) map[string]member.Addrs {
	nodes := make(map[string]member.Addrs)
	for name, careOf := range s.Nodes {
		nodes[name] = member.Addrs{Daemon: peers[name], CareOf: careOf}
	}
	nodes[n.cfg.Node.Name] = member.Addrs{Daemon: n.cfg.Node.Address, CareOf: s.Nodes[n.cfg.Node.Name]}
	return nodes
}

// setNodes takes over other nodes: the members know them before the packet filter
// lets their packets pass, and both before there is a connection. reloading is held.
func (n *Node) setNodes(cfg *config.Config) error {
	n.current = cfg
	peers := cfg.Node.Peers
	n.peers.Store(&peers)
	for i := range cfg.Servers {
		c := &cfg.Servers[i]
		s := n.byHome[c.Address.Addr()]
		if s == nil {
			continue // Run has not opened it yet, and will as it was
		}
		s.mu.Lock()
		s.cfg.Nodes = c.Nodes
		s.stepLocked(member.SetNodes{Nodes: n.nodesOf(peers, c)})
		n.changeKernel(s.home, forward.Change{Senders: n.senders(c)})
		s.mu.Unlock()
	}
	if n.mesh == nil {
		return nil
	}
	if err := n.filter.SetRules(n.rules()); err != nil {
		return fmt.Errorf("daemon: reload: packet filter: %w", err)
	}
	n.mesh.SetPeers(n.control(cfg.Node))
	return nil
}
