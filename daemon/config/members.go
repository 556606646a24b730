package config

import (
	"maps"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/distributed-servers/ds/daemon/identity"
)

// written is what a file itself says about other nodes.
type written struct {
	peers map[string]netip.Addr
	nodes []map[string]netip.Addr // of each server
}

func (c *Config) written() (w written) {
	if c.Node != nil {
		w.peers = maps.Clone(c.Node.Peers)
	}
	for _, s := range c.Servers {
		w.nodes = append(w.nodes, maps.Clone(s.Nodes))
	}
	return w
}

// addMembers takes the other nodes, and this one's care-of addresses, from the
// list of members of the directory Cluster, and the names of its files.
func (d *decoder) addMembers(c *Config) {
	n := c.Node
	dir := n.Cluster
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(filepath.Dir(d.file), dir)
	}
	r, err := identity.ReadRoster(dir)
	if err != nil {
		d.report("node.cluster", "make it with ds init or ds join, readable for the daemon's user, or name another", "%v", err)
		d.partial = true
		return
	}
	if !d.has("node.ca") && !d.has("node.cert") && !d.has("node.key") {
		n.CA, n.Cert = filepath.Join(n.Cluster, identity.CAFile), filepath.Join(n.Cluster, identity.NodeFile)
		n.Key = n.Cert
	}
	switch m, ok := r.Nodes[n.Name]; {
	case n.Name == "":
	case !ok:
		d.report("node.name", "have it join (ds join), or write the name that it joined with", "node %s is not a member of the cluster", n.Name)
	case n.Address.IsValid() && m.Address != n.Address:
		d.report("node.address", "write "+m.Address.String()+", or join again (ds join --force)", "the other nodes know it as %s", m.Address)
	case n.ControlPort != 0 && m.Port != n.ControlPort:
		d.report("node.control_port", "write the port that it joined with, or join again (ds join --force)", "the other nodes know it at port %d", m.Port)
	}
	c.add(r)
}

// add adds members that the file does not have.
func (c *Config) add(r *identity.Roster) {
	for name, m := range r.Nodes {
		if name != c.Node.Name && !in(c.Node.Peers, name) {
			if c.Node.Peers == nil {
				c.Node.Peers = make(map[string]netip.Addr)
			}
			c.Node.Peers[name] = m.Address
		}
		for i := range c.Servers {
			s := &c.Servers[i]
			if careOf, ok := m.CareOf[s.Address.Addr()]; ok && !in(s.Nodes, name) {
				if s.Nodes == nil {
					s.Nodes = make(map[string]netip.Addr)
				}
				s.Nodes[name] = careOf
			}
		}
	}
}

// With is the configuration with another list of members. What contradicts it is
// an error: [Problems].
func (c *Config) With(r *identity.Roster) (*Config, error) {
	file := c.file
	if len(file.nodes) != len(c.Servers) { // it is not from a file
		file = c.written()
	}
	with := *c
	with.file = file
	node := *c.Node
	with.Node = &node
	node.Peers = maps.Clone(file.peers)
	with.Servers = slices.Clone(c.Servers)
	for i := range with.Servers {
		with.Servers[i].Nodes = maps.Clone(file.nodes[i])
	}
	with.add(r)

	d := &decoder{file: filepath.Join(node.Cluster, identity.RosterFile)}
	u := unique{d: d, seen: make(map[netip.Addr]string)}
	u.add("node.address", node.Address)
	for _, name := range slices.Sorted(maps.Keys(node.Peers)) {
		u.add(join("node.peers", name), node.Peers[name])
	}
	for i := range with.Servers {
		s := &with.Servers[i]
		u.add(join("server", s.Address.Addr().String()), s.Address.Addr())
		d.checkNodes(join("server", s.Address.Addr().String()), &node, s, &u)
	}
	if ps := d.sorted(); len(ps) > 0 {
		return nil, ps
	}
	return &with, nil
}
