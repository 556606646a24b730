package member

import (
	"maps"
	"net/netip"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/node"
)

// SetNodes replaces the other nodes: some have joined, or have other addresses. None
// that was there is missing, and what is this member's own stays as it is.
type SetNodes struct{ Nodes map[string]Addrs }

func (SetNodes) input() {}

func (m *Member) setNodes(nodes map[string]Addrs) {
	nodes = maps.Clone(nodes)
	for name, a := range m.cfg.Nodes {
		if _, there := nodes[name]; !there || name == m.cfg.Name {
			nodes[name] = a
		}
	}
	if maps.Equal(nodes, m.cfg.Nodes) {
		return
	}
	moved := nodes[m.contact.Name] != m.cfg.Nodes[m.contact.Name]
	for name := range nodes {
		if _, known := m.cfg.Nodes[name]; !known {
			m.away[name] = m.now
			if m.IsContact() { // it may be new only to this member
				m.missing[name] = false
			}
		}
	}
	m.cfg.Nodes = nodes
	m.other = make(map[netip.Addr]string)
	for name, a := range nodes {
		if name != m.cfg.Name {
			m.other[a.Daemon], m.other[a.CareOf] = name, name
		}
	}
	if moved {
		m.mobile(node.SetContact{Addr: nodes[m.contact.Name].Daemon})
	}
	if m.IsContact() {
		m.out.Relay = append(m.out.Relay, m.relayNodes())
	}
	m.toApp(&api.Message{Kind: api.ConfigChanged, Config: m.sessionConfig()})
}
