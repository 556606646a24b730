package member

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/relay"
)

// Owner is what the contact knows of a client: the node that owns it.
type Owner struct {
	Name  string
	Epoch uint64
}

// fromApp takes a message of the application.
func (m *Member) fromApp(msg *api.Message) {
	switch {
	case msg.Kind == api.Hello && m.attached:
		m.accepts = msg.AcceptsHandoffs // it has changed its mind
		m.introduce()
		return
	case msg.Kind == api.Hello:
		m.hello(msg)
		return
	case !m.attached:
		return
	}
	switch msg.Kind {
	case api.Owned:
		m.own(msg.Client, msg.Connections, 1)
	case api.Gone:
		m.gone(msg.Client)
	case api.Prepare:
		m.prepare(msg)
	case api.Transfer, api.Late, api.Abort, api.Settled:
		m.proceed(msg)
	case api.Expected, api.Activated:
		m.offered(msg)
	case api.Answered:
		m.answered(msg)
	}
}

// hello begins a session. An application that comes back tells what it owns; a
// new one owns nothing yet, but has to know which clients send directly.
func (m *Member) hello(msg *api.Message) {
	m.attached, m.accepts, m.takesAway = true, msg.AcceptsHandoffs, msg.TakesAway
	if m.awaiting && msg.HasTUN {
		m.restore(msg)
	} else if m.awaiting {
		m.restore(nil)
	}
	welcome := &api.Message{Kind: api.Welcome, Config: m.sessionConfig()}
	if msg.TakesAway && !msg.HasTUN {
		welcome.Config.Away, welcome.Config.Left = m.awayNow()
	}
	m.toApp(welcome)
	for _, a := range msg.Resume {
		m.own(a, 1, 0)
	}
	if msg.HasTUN {
		m.recall(msg)
	} else {
		m.recall(nil)
	}
	for _, d := range msg.Doubts {
		m.doubt(d)
	}
	for _, c := range m.sorted() {
		if c.bound {
			m.toApp(&api.Message{Kind: api.Bound, Client: c.addr})
		}
	}
	m.awaiting = false // what it has has been told
	m.event(api.EventAttached, netip.Addr{}, "", msg.Program)
	m.introduce()
}

// sessionConfig is what the application is to know now.
func (m *Member) sessionConfig() *api.SessionConfig {
	c := m.cfg.Session
	c.Addr, c.CareOf, c.Node = m.home, m.self.CareOf, m.cfg.Name
	c.Via, c.Contact = m.cfg.Nodes[m.contact.Name].Daemon, m.contact.Name
	c.Peers, c.Nodes = nil, nil
	for name := range m.Peers() {
		a := m.cfg.Nodes[name]
		if hello := m.up[name]; hello == nil || !hello.Draining {
			c.Nodes = append(c.Nodes, name) // not where nobody is to go
		}
		c.Peers = append(c.Peers, a.CareOf, a.Daemon)
	}
	// A contact that was relays for a while to those it knows.
	if !m.IsContact() {
		c.Peers = append(c.Peers, m.self.Daemon)
	}
	return &c
}

// appGone ends a session. If the application has ended its connections are
// lost: its clients own nothing here, and are let go when they stay away.
func (m *Member) appGone(lost bool) {
	if lost {
		m.began, m.beginners = began{m.beginners, m.now + m.cfg.ReportTime}, beginners{}
	}
	if !m.attached {
		if lost {
			m.recall(nil)
		}
		if lost && m.awaiting {
			m.restore(nil)
			m.awaiting = false
			m.introduce()
		}
		return
	}
	m.attached, m.accepts = false, false
	m.introduce()
	detail := "its connections go on"
	if lost {
		detail = fmt.Sprintf("its connections are lost, those of %d clients", len(m.clients))
	}
	m.event(api.EventDetached, netip.Addr{}, "", detail)
	m.abandonHandoffs(lost)
	m.tellPassed()
	for _, id := range slices.Sorted(maps.Keys(m.asked)) {
		if by := m.asked[id]; by.job == nil {
			m.answer(Answer{ID: by.command, Err: errors.New("the application has gone")})
		}
	}
	clear(m.asked)
	if m.job != nil {
		m.finish(m.job, "the application has gone")
	}
	if !lost {
		return
	}
	for _, c := range m.sorted() {
		m.lose(c)
	}
}

// lose is that nothing is left of a client's connections.
func (m *Member) lose(c *client) {
	c.connections = 0
	m.idle.Set(c, m.now+m.cfg.IdleTimeout)
}

// own makes a client this member's: it has connected, or the application that
// has come back has it, with an epoch that only the contact knows.
func (m *Member) own(addr netip.Addr, connections int, epoch uint64) {
	c := m.clients[addr]
	if c != nil {
		if c.connections == 0 {
			m.returned(addr)
		}
		c.connections = max(1, connections)
		m.idle.Remove(c)
		return
	}
	if !addr.Is6() || !addr.IsGlobalUnicast() {
		return // a link-local client cannot have a binding, nor be relayed
	}
	c = &client{addr: addr, epoch: epoch, since: m.now, connections: max(1, connections)}
	m.enter(c)
	m.event(api.EventOwned, addr, "", "")
	m.mobile(node.Optimise{Client: addr})
	m.tellContact(c)
}

// gone is that a client's last connection has ended.
func (m *Member) gone(addr netip.Addr) {
	if c := m.clients[addr]; c != nil && c.out == nil {
		m.lose(c)
	}
}

// retire lets a client go that has stayed away.
func (m *Member) retire(c *client) {
	m.disown(c)
	m.event(api.EventGone, c.addr, "", "")
	m.mobile(node.Release{Client: c.addr})
	m.tellGone(c)
}

// tellGone tells the contact that nothing is left of a client.
func (m *Member) tellGone(c *client) {
	if m.IsContact() {
		m.forget(m.cfg.Name, c.addr, c.epoch)
	} else {
		m.toPeer(m.contact.Name, &Message{Kind: Gone, Client: c.addr, Epoch: c.epoch})
	}
}

// enter puts a client into the table.
func (m *Member) enter(c *client) {
	m.clients[c.addr] = c
	m.beginners.remove(c.addr)
	delete(m.onward, c.addr)
	m.returned(c.addr)
}

// disown takes a client out of the table.
func (m *Member) disown(c *client) {
	m.idle.Remove(c)
	m.timers.Remove(c)
	delete(m.clients, c.addr)
}

// tellContact tells whose a client is.
func (m *Member) tellContact(c *client) {
	if m.IsContact() {
		m.claim(m.cfg.Name, Owned{Client: c.addr, Epoch: c.epoch})
		return
	}
	m.toPeer(m.contact.Name, &Message{Kind: Owners, Owners: []Owned{{Client: c.addr, Epoch: c.epoch}}})
}

// report tells the contact of everything that this member owns, of what others have
// taken of it of late, and of what it has given away without knowing whether it is
// owned there: that is to come here as long as it is not known to be elsewhere.
func (m *Member) report() {
	m.tellPassed()
	for _, h := range m.handoffs() {
		if h.stage == transferring {
			m.tellGiven(h)
		}
	}
	if m.IsContact() {
		for _, c := range m.sorted() {
			m.claim(m.cfg.Name, Owned{Client: c.addr, Epoch: c.epoch})
		}
		return
	}
	msg := &Message{Kind: Owners}
	for _, c := range m.sorted() {
		if len(msg.Owners) == MaxOwners {
			m.toPeer(m.contact.Name, msg)
			msg = &Message{Kind: Owners}
		}
		msg.Owners = append(msg.Owners, Owned{Client: c.addr, Epoch: c.epoch})
	}
	msg.Complete = true
	m.toPeer(m.contact.Name, msg)
}

// claim is, at the contact, that a member says that it owns a client. It returns
// the epoch, 0 for no. What another member owns, as far as is known, it does not get
// with an epoch that is not later, but is told the one that will do: it may have
// handed the client on meanwhile, or it was started anew and does not know the
// epoch (0), or has it from a contact that did not know.
func (m *Member) claim(name string, o Owned) (epoch uint64) {
	m.confirm(o.Client)
	was, known := m.owners[o.Client]
	own := m.clients[o.Client]
	epoch = o.Epoch
	switch {
	case !known:
		epoch = max(1, epoch)
	case was.Name == name:
		epoch = max(was.Epoch, epoch)
	case was.Epoch < epoch:
	case name == m.cfg.Name: // it would not say so if it were not so
		epoch = was.Epoch + 1
	case was.Name == m.cfg.Name && own != nil && own.connections > 0:
		m.event(api.EventFault, o.Client, name, fmt.Sprintf("claims with epoch %d what %s owns with epoch %d", epoch, was.Name, was.Epoch))
		return 0
	default:
		return was.Epoch + 1 // if it still owns the client it claims again with this
	}
	m.setOwner(o.Client, Owner{name, epoch})
	if name == m.cfg.Name && own != nil {
		own.epoch = epoch
	}
	return epoch
}

// claims takes Owners, and tells the epochs that were not known.
func (m *Member) claims(from string, msg *Message) {
	if !m.IsContact() {
		return
	}
	answer := &Message{Kind: Stale}
	for _, o := range msg.Owners {
		if epoch := m.claim(from, o); epoch != o.Epoch && epoch != 0 {
			answer.Owners = append(answer.Owners, Owned{Client: o.Client, Epoch: epoch})
		}
	}
	if len(answer.Owners) > 0 {
		m.toPeer(from, answer)
	}
	told, missing := m.missing[from]
	for _, o := range msg.Given {
		if msg.To == "" {
			m.given(from, "", o)
		} else {
			m.passed(from, msg.To, o, missing && !told)
		}
	}
	if !msg.Complete {
		return
	}
	if missing {
		m.missing[from] = true
	}
	if u := m.unconfirmed[from]; u != nil {
		u.told = true
	}
	m.mayHaveToldAll(from)
}

// stale takes the contact's word for the epochs of clients.
func (m *Member) stale(from string, owners []Owned) {
	if from != m.contact.Name {
		return
	}
	for _, o := range owners {
		c := m.clients[o.Client]
		if c == nil {
			continue
		}
		if o.Epoch > c.epoch {
			c.epoch = o.Epoch
			if c.connections > 0 {
				m.tellContact(c)
			}
		}
	}
}

// setOwner is, at the contact, that it is known whose a client is.
func (m *Member) setOwner(client netip.Addr, o Owner) {
	m.owners[client] = o
	m.beginners.remove(client)
	delete(m.forgotten.of, client)
	delete(m.hearsay, client)
	m.out.Relay = append(m.out.Relay, relay.SetOwner{Client: client, Owner: m.cfg.Nodes[o.Name].CareOf, Epoch: o.Epoch})
}

// forget is, at the contact, that a member has let a client go.
func (m *Member) forget(name string, addr netip.Addr, epoch uint64) {
	if m.hearsay[addr].givenBy(name) {
		delete(m.hearsay, addr)
	}
	if o := m.owners[addr]; o.Name == name && (o.Epoch <= epoch || epoch == 0) {
		delete(m.owners, addr)
		m.forgotten.add(absence{client: addr, to: name, until: m.now + m.cfg.HandshakeGrace}, m.now)
		m.out.Relay = append(m.out.Relay, relay.Forget{Client: addr, Epoch: max(o.Epoch, epoch)})
	}
}

// Owners are all clients that the contact knows, and whose they are.
func (m *Member) Owners() iter.Seq2[netip.Addr, Owner] { return maps.All(m.owners) }

// Owner tells who owns a client as far as this member knows: the contact knows
// of all, others of their own.
func (m *Member) Owner(addr netip.Addr) (name string, ok bool) {
	if m.clients[addr] != nil {
		return m.cfg.Name, true
	}
	o, ok := m.owners[addr]
	return o.Name, ok
}
