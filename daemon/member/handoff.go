package member

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/node"
)

// This file is the donor's side of a handoff, target.go the other one.

// handoff is one of which this member is the donor.
//
//	          Prepared           Transfer                 Done
//	preparing ────────► prepared ────────► transferring ────────► told
//	    │                  │                    │                  │
//	    └─ refused, late, ─┴──► (end) ◄─────────┴──────────────────┘
//	       called off                   Done, error     Settled
type handoff struct {
	id      uint64 // ours
	session uint64 // the application's
	c       *client
	to      string
	stage   stage
	grant   node.Grant   // as given away
	orphan  bool         // the application has ended: nobody waits for the end
	back    bool         // the client has been here again since it was given away
	inquiry bool         // for an application that was started since, and had come back: nobody else needs to know
	done    *api.Message // what it is told
}

type stage uint8

const (
	preparing stage = iota
	prepared
	transferring // the client is the target's, as far as is known
	told
)

var stageNames = [...]string{"prepare", "freeze", "transfer", "release"}

func (s stage) String() string { return stageNames[s] }

// ask asks the application to hand a client off.
func (m *Member) ask(in HandOff) {
	fail := func(format string, args ...any) { m.answer(Answer{ID: in.ID, Err: fmt.Errorf(format, args...)}) }
	switch owner, known := m.Owner(in.Client); {
	case !known:
		fail("this node does not know client %s", in.Client)
	case owner != m.cfg.Name:
		fail("node %s has client %s: ask there", owner, in.Client)
	case !m.attached:
		fail("no application is attached")
	default:
		if err := m.mayGo(m.clients[in.Client], in.To); err != nil {
			fail("%w", err)
			return
		}
		id := m.newID()
		m.asked[id] = asked{command: in.ID}
		m.toApp(&api.Message{Kind: api.Asked, ID: id, Client: in.Client, To: in.To})
	}
}

// answered is what the application has to say of what it was asked.
func (m *Member) answered(msg *api.Message) {
	by, ok := m.asked[msg.ID]
	if !ok {
		return
	}
	delete(m.asked, msg.ID)
	if by.job != nil {
		m.jobAnswered(by.job, by.client, msg.Error)
		return
	}
	a := Answer{ID: by.command, Optimised: msg.Optimised, Connections: msg.Connections}
	if msg.Error != "" {
		a.Err = errors.New(msg.Error)
	}
	m.answer(a)
}

func (m *Member) answer(a Answer) { m.out.Answers = append(m.out.Answers, a) }

func (m *Member) newID() uint64 {
	m.lastID++
	if m.lastID == 0 {
		m.lastID++
	}
	return m.lastID
}

// mayGo tells why a client cannot be handed off to a node, if it cannot.
func (m *Member) mayGo(c *client, to string) error {
	_, known := m.cfg.Nodes[to]
	_, there := m.up[to]
	switch {
	case c == nil:
		return errors.New("this node does not own the client")
	case to == m.cfg.Name:
		return fmt.Errorf("node %s has the client already", to)
	case !known:
		return fmt.Errorf("there is no node %q; there are %s", to, m.names())
	case !there:
		return m.notConnected(to)
	case c.out != nil:
		return fmt.Errorf("the client is on its way to node %s already", c.out.to)
	}
	return nil
}

// prepare begins a handoff.
func (m *Member) prepare(msg *api.Message) {
	refuse := func(err error) {
		m.toApp(&api.Message{Kind: api.Prepared, ID: msg.ID, Error: err.Error()})
	}
	c := m.clients[msg.Client]
	if err := m.mayGo(c, msg.To); err != nil {
		refuse(err)
		return
	}
	if m.bySession[msg.ID] != nil {
		refuse(fmt.Errorf("id %d is another handoff's", msg.ID))
		return
	}
	h := &handoff{id: m.newID(), session: msg.ID, c: c, to: msg.To}
	m.outgoing[h.id], m.bySession[h.session] = h, h
	c.out = h
	m.timers.Set(h, m.now+m.cfg.HandoffTimeout)
	m.leaving(h)
	grant, _ := m.machine.Grant(c.addr, m.now)
	m.toPeer(h.to, &Message{
		Kind: Prepare, ID: h.id, Client: c.addr, Epoch: c.later(1), Grant: newGrant(grant), Relayed: c.relayed,
	})
}

// proceed takes the application's next step.
func (m *Member) proceed(msg *api.Message) {
	h := m.bySession[msg.ID]
	refuse := func(why string) {
		if msg.Kind == api.Transfer {
			m.toApp(&api.Message{Kind: api.Done, ID: msg.ID, Error: why})
		}
	}
	switch {
	case h == nil:
		refuse("the handoff has ended: it took too long, or its target has gone")
	case msg.Kind == api.Abort && h.stage < transferring:
		m.toPeer(h.to, &Message{Kind: Abort, ID: h.id})
		m.end(h)
	case msg.Kind == api.Abort && h.stage == transferring:
		m.query(h)
	case msg.Kind == api.Transfer && h.stage == prepared:
		m.transfer(h, msg)
	case msg.Kind == api.Late && h.stage >= transferring:
		m.toPeer(h.to, &Message{Kind: Late, ID: h.id, Client: h.c.addr, Packets: msg.Packets})
	case msg.Kind == api.Settled && h.stage == told:
		m.settle(h)
	default:
		refuse(fmt.Sprintf("%s is out of order: the handoff is at %s", msg.Kind, h.stage))
	}
}

// transfer is the point of no return: from here on the client is the target's, and
// this member does nothing for it until it hears otherwise.
func (m *Member) transfer(h *handoff, msg *api.Message) {
	h.stage = transferring
	m.giving[h.c.addr] = h
	m.timers.Set(h, m.now+m.cfg.HandoffTimeout)
	h.grant, _ = m.machine.Grant(h.c.addr, m.now)
	m.mobile(node.Abandon{Client: h.c.addr})
	m.disown(h.c)
	m.toPeer(h.to, &Message{
		Kind: Transfer, ID: h.id, Client: h.c.addr, Snapshot: msg.Snapshot, State: msg.State, Connections: msg.Connections,
		Epoch: h.c.later(1), Grant: newGrant(h.grant), Relayed: h.c.relayed,
	})
}

// asDonor takes the target's answers.
func (m *Member) asDonor(from string, msg *Message) {
	h := m.outgoing[msg.ID]
	if h == nil && msg.Kind == Done && msg.Error == "" && m.attached {
		// The application, which has told its doubts, has none about this one. What
		// said so was lost.
		m.release(from, msg.ID)
	}
	if h == nil || h.to != from {
		return
	}
	switch {
	case msg.Kind == Prepared && h.stage == preparing:
		if msg.Error != "" {
			m.fail(h, fmt.Errorf("node %s refuses: %s", from, msg.Error))
			return
		}
		h.stage = prepared
		m.toApp(&api.Message{Kind: api.Prepared, ID: h.session, Handoff: h.id, Optimised: msg.Optimised})
	case msg.Kind == Done && h.stage == transferring:
		m.done(h, msg)
	case msg.Error != "" && h.stage < transferring:
		m.fail(h, fmt.Errorf("node %s: %s", from, msg.Error))
	}
}

// behindTarget is what a donor that has a client back puts between the sequence number
// that it gave away and the next that it sends, beside the fence of package mobility/node:
// the target may have sent a Binding Update, and some more.
const behindTarget = 512

// done ends a handoff after Transfer: it has come about, or the client is this
// member's again.
func (m *Member) done(h *handoff, msg *Message) {
	addr := h.c.addr
	if msg.Error == "" {
		m.timers.Remove(h)
		m.left(h)
		m.event(api.EventHandedOff, addr, h.to, "")
		if h.orphan {
			m.endOrphan(h)
			return
		}
		h.stage = told
		h.done = &api.Message{
			Kind: api.Done, ID: h.session, Client: addr, CareOf: m.cfg.Nodes[h.to].CareOf, Optimised: msg.Optimised, Ago: msg.Ago,
		}
		m.toApp(h.done)
		return
	}
	m.end(h)
	if h.orphan {
		m.nobodys(h, msg.Error)
		return
	}
	c := &client{addr: addr, epoch: h.c.later(2), since: m.now, connections: h.c.connections}
	m.enter(c)
	m.event(api.EventHandoffFailed, addr, h.to, msg.Error)
	m.tellContact(c)
	if h.c.relayed {
		m.setRelayed(c)
	} else {
		grant := h.grant
		grant.Sequence += behindTarget
		m.mobile(node.Bind{Client: addr, Grant: grant})
		if h.c.bound && !c.bound { // until a Binding Update can be sent
			m.toApp(&api.Message{Kind: api.Unbound, Client: addr})
		}
	}
	m.toApp(&api.Message{Kind: api.Done, ID: h.session, Error: fmt.Sprintf("node %s: %s", h.to, msg.Error)})
}

// settle ends a handoff that nobody here will ask about any more: the target may
// forget it.
func (m *Member) settle(h *handoff) {
	m.release(h.to, h.id)
	m.end(h)
}

// release tells the target of a handoff that has come about to forget it: once what this
// member has recorded of it is kept, or it would ask again after a start, and believe that
// nobody has the client.
func (m *Member) release(to string, id uint64) {
	msg := &Message{Kind: Settled, ID: id}
	if m.noRecords != "" || len(m.out.Record) > 0 {
		m.releases = append(m.releases, ToPeer{to, msg})
		return
	}
	m.toPeer(to, msg)
}

// endOrphan ends a handoff that has come about, and whose application counts as ended. It
// may have stopped only, and come back in doubt: the target is to remember until another
// is attached (asDonor).
func (m *Member) endOrphan(h *handoff) {
	if m.attached {
		m.settle(h)
	} else {
		m.end(h)
	}
}

// fail ends a handoff before Transfer. The application hears of it with the
// answer that it waits for, or with its next step.
func (m *Member) fail(h *handoff, err error) {
	m.end(h)
	m.event(api.EventHandoffFailed, h.c.addr, h.to, err.Error())
	if h.stage == preparing {
		m.toApp(&api.Message{Kind: api.Prepared, ID: h.session, Error: err.Error()})
	}
}

// end forgets a handoff.
func (m *Member) end(h *handoff) {
	m.timers.Remove(h)
	m.stayed(h)
	delete(m.outgoing, h.id)
	if m.giving[h.c.addr] == h {
		delete(m.giving, h.c.addr)
	}
	if m.bySession[h.session] == h {
		delete(m.bySession, h.session)
	}
	if h.c.out == h {
		h.c.out = nil
	}
}

// handoffs and arrivals are those under way, in an order that does not vary from
// run to run.
func (m *Member) handoffs() []*handoff {
	return slices.SortedFunc(maps.Values(m.outgoing), func(a, b *handoff) int { return cmp.Compare(a.id, b.id) })
}

func (m *Member) arrivals() []*offer {
	return slices.SortedFunc(maps.Values(m.incoming), func(a, b *offer) int { return a.client.Compare(b.client) })
}

// handoffLate is that one has taken too long. After Transfer nobody but the target
// can end it: it is asked to, unless it has taken the client.
func (m *Member) handoffLate(h *handoff) {
	if h.stage == transferring {
		m.event(api.EventFault, h.c.addr, h.to, fmt.Sprintf("no word for %v since the client was given away", m.cfg.HandoffTimeout))
		m.query(h)
		return
	}
	m.toPeer(h.to, &Message{Kind: Abort, ID: h.id})
	m.fail(h, fmt.Errorf("%s has taken more than %v", h.stage, m.cfg.HandoffTimeout))
}

// lostPeer ends what cannot go on without a member, askAgain asks it, when it is
// back, about what is in doubt.
func (m *Member) lostPeer(name string) {
	for _, h := range m.handoffs() {
		if h.to == name && h.stage < transferring {
			m.fail(h, fmt.Errorf("the connection to node %s is lost", name))
		}
	}
	for _, o := range m.arrivals() {
		if o.key.from == name && o.stage < taking {
			m.drop(o)
		}
	}
}

func (m *Member) askAgain(name string) {
	for _, h := range m.handoffs() {
		if h.to == name && h.stage == transferring {
			m.query(h)
		}
	}
}

// abandonHandoffs is that the application is not attached any more.
func (m *Member) abandonHandoffs(lost bool) {
	for _, h := range m.handoffs() {
		switch {
		case h.stage < transferring:
			m.toPeer(h.to, &Message{Kind: Abort, ID: h.id})
			m.end(h)
		case lost && h.stage == told:
			m.endOrphan(h)
		case lost: // the next application may use the ID for another
			h.orphan = true
			delete(m.bySession, h.session)
		}
	}
	for _, o := range m.arrivals() {
		switch {
		case o.stage < taking, lost && m.overrule(o):
			m.refuse(o, "its application has gone")
		case lost:
			m.complete(o, 0) // the client is this node's, although its connections are lost
		}
	}
}
