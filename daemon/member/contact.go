package member

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/relay"
)

// follow makes c the contact, which may be this member.
func (m *Member) follow(c Contact) {
	was := m.contact
	m.contact = c
	if was != c {
		m.out.Save = &c
		m.event(api.EventContact, netip.Addr{}, c.Name, fmt.Sprintf("epoch %d", c.Epoch))
	}
	if was.Name == m.cfg.Name && c.Name != was.Name {
		// The home agent may have heard this member last. So the other one, which
		// may not know of it, has to register anew.
		m.toPeer(c.Name, &Message{Kind: SetContact, Contact: was.Name, ContactEpoch: was.Epoch})
	}
	m.mobile(node.SetContact{Addr: m.cfg.Nodes[c.Name].Daemon})
	if m.IsContact() {
		m.lead(was)
	} else {
		m.register(node.Resign{})
		m.registered = false
		m.owners, m.unconfirmed = nil, nil
		m.endTakeover(nil) // if it was this one's that was waited for
	}
	if _, listed := m.listed[was.Name]; m.listed != nil && !listed {
		m.setNodes(m.listed) // it has been removed
	}
	m.toApp(&api.Message{Kind: api.ConfigChanged, Config: m.sessionConfig()})
	m.report()
}

// lead begins to be the contact.
func (m *Member) lead(was Contact) {
	m.owners = make(map[netip.Addr]Owner)
	m.missing = make(map[string]bool)
	m.unconfirmed = make(map[string]*unconfirmed)
	m.hearsay = make(map[netip.Addr]hearsay)
	m.forgotten = absences{} // others have been the contact since
	for name := range m.Peers() {
		m.missing[name] = false
	}
	m.patience = m.now + m.cfg.ReportTime
	if was.Name != m.cfg.Name {
		m.handshakes[was.Name] = m.now + m.cfg.HandshakeGrace
	}
	m.out.NewRelay = true
	m.out.Relay = append(m.out.Relay[:0], m.relayNodes())
	if !m.hesitating {
		m.announce()
	}
}

// announce registers at the home agent, anew if this member has done so before:
// somebody else may have since.
func (m *Member) announce() {
	if m.cfg.External {
		m.registered = true
		m.endTakeover(nil)
		return
	}
	m.register(node.Register{})
}

// hesitation is the time in which a contact does not register, because another
// member may have taken over: after the start, until all others have been heard or
// for StartGrace; and when the home agent has said so, until all have been heard.
type hesitation struct{}

// begin is the start.
func (m *Member) begin() {
	m.awaiting = true
	if m.IsContact() { // it was before, perhaps; so there are beginners
		m.handshakes[m.cfg.Name] = m.now + m.cfg.HandshakeGrace
	}
	for name := range m.Peers() {
		m.away[name] = m.now
	}
	m.hesitating = true
	m.timers.Set(hesitation{}, m.now+m.cfg.StartGrace)
	m.follow(m.contact)
	m.decide()
}

// decide ends the hesitation when all others have been heard.
func (m *Member) decide() {
	for _, hello := range m.Peers() {
		if hello == nil {
			return
		}
	}
	m.resolve()
}

func (m *Member) resolve() {
	if !m.hesitating {
		return
	}
	m.hesitating = false
	m.timers.Remove(hesitation{})
	if m.IsContact() {
		m.announce()
	}
}

// relayNodes are the members as the relay is to know them. What the applications
// send comes from their care-of addresses, the machines' home tests from the
// daemons'; this node's own application is one like any other.
func (m *Member) relayNodes() relay.Input {
	in := relay.SetNodes{Nodes: []netip.Addr{m.self.CareOf}}
	for name := range m.Peers() {
		a := m.cfg.Nodes[name]
		in.Nodes = append(in.Nodes, a.CareOf, a.Daemon)
	}
	return in
}

// startTakeover makes a member the contact.
func (m *Member) startTakeover(in Takeover) {
	fail := func(err error) { m.answer(Answer{ID: in.ID, Err: err}) }
	if in.To == "" {
		in.To = m.cfg.Name
	}
	if _, known := m.cfg.Nodes[in.To]; !known {
		fail(fmt.Errorf("there is no node %q; there are %s", in.To, m.names()))
		return
	}
	if in.To == m.contact.Name {
		m.answer(Answer{ID: in.ID}) // it is already
		return
	}
	if m.takeover != nil {
		fail(fmt.Errorf("another takeover is under way"))
		return
	}
	if in.To != m.cfg.Name {
		if !m.toPeer(in.To, &Message{Kind: TakeOver}) {
			fail(fmt.Errorf("node %s is not connected: start dsco there, or run the takeover there", in.To))
			return
		}
		m.await(in.ID)
		return
	}
	if _, there := m.up[m.contact.Name]; !there && !in.Force {
		fail(fmt.Errorf("the contact %s is not connected: if it does not run any more, take over with --force", m.contact.Name))
		return
	}
	m.await(in.ID)
	m.usurp()
}

func (m *Member) await(id uint64) {
	m.takeover = &takeover{id}
	m.timers.Set(m.takeover, m.now+m.cfg.TakeoverTimeout)
}

// usurp makes this member the contact, with the next epoch.
func (m *Member) usurp() {
	m.follow(Contact{Name: m.cfg.Name, Epoch: m.contact.Epoch + 1})
	for name := range m.Peers() {
		m.toPeer(name, m.setContact())
	}
}

func (m *Member) setContact() *Message {
	return &Message{Kind: SetContact, Contact: m.contact.Name, ContactEpoch: m.contact.Epoch}
}

func (m *Member) endTakeover(err error) {
	if m.takeover != nil {
		m.timers.Remove(m.takeover)
		m.answer(Answer{ID: m.takeover.id, Err: err})
		m.takeover = nil
	}
}

func (m *Member) names() string {
	var names []string
	for name := range m.cfg.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// peerUp begins a connection to a member.
func (m *Member) peerUp(name string) {
	if _, known := m.cfg.Nodes[name]; !known || name == m.cfg.Name {
		return
	}
	m.up[name] = nil
	delete(m.away, name)
	delete(m.why, name)
	m.doubtOwner(name)
	m.toPeer(name, m.introduction())
	m.event(api.EventPeerUp, netip.Addr{}, name, "")
	if name == m.contact.Name {
		m.report()
	}
	m.askAgain(name)
}

// introduction is what a member says of itself.
func (m *Member) introduction() *Message {
	return &Message{
		Kind: Hello, Version: Oldest, Newest: Newest, Features: features, Contact: m.contact.Name, ContactEpoch: m.contact.Epoch,
		Clients: len(m.clients), Attached: m.attached, Accepts: m.accepts, Draining: m.draining, Awaiting: m.awaiting,
	}
}

// introduce says it to all.
func (m *Member) introduce() {
	m.told = len(m.clients)
	for name := range m.Peers() {
		m.toPeer(name, m.introduction())
	}
}

func (m *Member) peerDown(name string) {
	before, there := m.up[name]
	if !there {
		return
	}
	delete(m.up, name)
	delete(m.lastPrepare, name)
	delete(m.unconfirmed, name)
	m.away[name] = m.now
	if _, missing := m.missing[name]; missing {
		m.missing[name] = false // it begins again
	}
	m.event(api.EventPeerDown, netip.Addr{}, name, "")
	m.lostPeer(name)
	m.lostMember(name)
	m.heardOf(name, before)
}

// unreachedFor is why there is no connection to a member.
func (m *Member) unreachedFor(name, why string) {
	_, known := m.cfg.Nodes[name]
	if _, there := m.up[name]; known && !there {
		m.why[name] = why
	}
}

// notConnected says that there is none, and why, if that is known.
func (m *Member) notConnected(name string) error {
	if why := m.why[name]; why != "" {
		return fmt.Errorf("node %s is not connected: %s", name, why)
	}
	return fmt.Errorf("node %s is not connected", name)
}

// fromPeer takes a message of another member.
func (m *Member) fromPeer(from string, msg *Message) {
	before, there := m.up[from]
	if !there {
		return
	}
	switch msg.Kind {
	case Hello:
		if _, err := agree(msg, Oldest, Newest); err != nil {
			m.event(api.EventFault, netip.Addr{}, from, err.Error())
			m.peerDown(from)
			m.unreachedFor(from, err.Error())
			return
		}
		hello := *msg
		m.up[from] = &hello
		m.mayKnowMore(from, msg)
		m.hear(Contact{msg.Contact, msg.ContactEpoch}, from)
		m.decide()
		m.mayHaveToldAll(from)
		m.heardOf(from, before)
		if msg.Attached {
			m.remind(from)
		}
	case SetContact:
		m.hear(Contact{msg.Contact, msg.ContactEpoch}, from)
	case TakeOver:
		if !m.IsContact() {
			m.usurp()
		}
	case Owners:
		m.claims(from, msg)
	case Stale:
		m.stale(from, msg.Owners)
	case Gone:
		if m.IsContact() {
			m.forget(from, msg.Client, msg.Epoch)
		}
	case Prepare, Transfer, Late, Query:
		m.asTarget(from, msg)
	case Settled:
		m.settled(from, msg)
	case Abort:
		m.calledOff(from, msg)
	case Prepared, Done:
		m.asDonor(from, msg)
	case Order:
		m.ordered(from, msg)
	case Reported:
		m.reported(from, msg)
	}
}

// hear is that a member knows of a contact, later or earlier than this one
// does.
func (m *Member) hear(c Contact, from string) {
	switch _, known := m.cfg.Nodes[c.Name]; {
	case !known || c == m.contact:
	case c.later(m.contact):
		m.follow(c)
	case c.Epoch == m.contact.Epoch && m.IsContact():
		// Two have taken over at once, and this one stays. The home agent may
		// have heard the other last.
		m.usurp()
	default:
		m.toPeer(from, m.setContact())
		if c.Name == from && m.IsContact() {
			// It has come back, and may have registered before it could hear that it
			// is not the contact any more.
			m.announce()
		}
	}
}
