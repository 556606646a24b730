package member

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/node"
)

// SetNodes replaces the other nodes: some have joined, have other addresses, or have
// been removed for good. What is this member's own stays as it is; and so does the
// contact, until there is another.
type SetNodes struct{ Nodes map[string]Addrs }

func (SetNodes) input() {}

func (m *Member) setNodes(nodes map[string]Addrs) {
	m.listed = nodes
	nodes = maps.Clone(nodes)
	nodes[m.cfg.Name] = m.self
	if _, there := nodes[m.contact.Name]; !there {
		nodes[m.contact.Name] = m.cfg.Nodes[m.contact.Name]
	}
	if maps.Equal(nodes, m.cfg.Nodes) {
		return
	}
	var removed []string
	for name := range m.Peers() {
		if _, there := nodes[name]; !there {
			removed = append(removed, name)
			m.peerDown(name)
		}
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
	for _, name := range removed {
		m.part(name)
	}
	if m.IsContact() {
		m.out.Relay = append(m.out.Relay, m.relayNodes())
	}
	m.toApp(&api.Message{Kind: api.ConfigChanged, Config: m.sessionConfig()})
}

// part forgets a member that has been removed, and is not connected any more. What it
// had is gone with it: nobody waits for it to tell.
func (m *Member) part(name string) {
	delete(m.away, name)
	delete(m.why, name)
	delete(m.missing, name)
	delete(m.handshakes, name)
	for _, client := range slices.SortedFunc(maps.Keys(m.owners), netip.Addr.Compare) {
		m.forget(name, client, 0)
	}
	maps.DeleteFunc(m.hearsay, func(_ netip.Addr, h hearsay) bool { return h.at == name })
	for _, h := range m.handoffs() {
		if h.to == name && h.stage == transferring {
			m.query(h)
		}
	}
	for _, rec := range m.remembered() {
		if rec.From == name && rec.State == Activated {
			m.record(Record{From: name, ID: rec.ID, Client: rec.Client, State: Forgotten})
		}
	}
	if m.IsContact() {
		m.forgetUnconfirmed()
	}
	m.decide()
}
