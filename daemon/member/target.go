package member

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/node"
)

// offer is a handoff of which this member is the target.
//
//	        the client's        Transfer         accepted by        recorded
//	        answers, or none                 the application
//	proving ─────────────► ready ───────► offering ───────► taking ───────► activating
//	   │                     │               │                 │                │
//	   └─────────────────────┴───► (end) ◄───┴─────────────────┴────────────────┘
//	            refused, late, asked, called off, not recorded        activated
type offer struct {
	key     handoffKey
	id      uint64 // towards the application
	client  netip.Addr
	relayed bool
	stage   offerStage

	// As of Transfer, which came at the time given.
	given time.Duration
	conns int
	epoch uint64
	grant *Grant

	untold bool // the contact has not been told yet that the client is taken
}

type offerStage uint8

const (
	proving offerStage = iota
	ready
	offering
	taking // until the next input, which tells whether that is recorded
	activating
)

// asTarget takes the donor's messages.
func (m *Member) asTarget(from string, msg *Message) {
	key := handoffKey{from, msg.ID}
	o := m.incoming[key]
	switch {
	case msg.Kind == Prepare && o == nil:
		m.consider(key, msg)
	case msg.Kind == Transfer && o != nil && o.stage == ready && msg.Client == o.client:
		o.stage, o.id = offering, m.newID()
		o.given, o.conns, o.epoch, o.grant, o.relayed = m.now, msg.Connections, msg.Epoch, msg.Grant, msg.Relayed
		m.offers[o.id] = o
		m.timers.Set(o, m.now+m.cfg.HandoffTimeout)
		m.toApp(&api.Message{
			Kind: api.Offer, ID: o.id, Client: o.client, From: from, Snapshot: msg.Snapshot, State: msg.State,
		})
	case (msg.Kind == Transfer || msg.Kind == Query) && (o == nil || o.stage < activating):
		m.judge(key, o)
	case msg.Kind == Late && o != nil && (o.stage == offering || o.stage == taking) && o.client == msg.Client:
		m.toApp(&api.Message{Kind: api.Late, ID: o.id, Client: msg.Client, Packets: msg.Packets})
	case msg.Kind == Late && m.records.of[key].Client == msg.Client && m.clients[msg.Client] != nil:
		m.toApp(&api.Message{Kind: api.Late, Client: msg.Client, Packets: msg.Packets})
	}
}

// consider decides whether a client may come.
func (m *Member) consider(key handoffKey, msg *Message) {
	refuse := func(why string) { m.toPeer(key.from, &Message{Kind: Prepared, ID: key.id, Error: why}) }
	switch {
	case !m.attached:
		refuse("no application is attached")
		return
	case !m.accepts:
		refuse("the application takes no clients from other nodes")
		return
	case m.draining:
		refuse("it is being drained")
		return
	case m.noRecords != "":
		refuse(m.cannotRecord())
		return
	case m.clients[msg.Client] != nil:
		refuse("it has connections of this client itself")
		return
	}
	if o := m.coming[msg.Client]; o != nil {
		m.drop(o) // its donor has given up, or it would not be offered again
	}
	o := &offer{key: key, client: msg.Client, relayed: msg.Relayed}
	m.incoming[key], m.coming[o.client] = o, o
	if o.relayed {
		m.prepared(o, false)
		return
	}
	m.timers.Set(o, m.now+m.cfg.PrepareTimeout)
	m.mobile(node.Prepare{Client: msg.Client, Grant: msg.Grant.grant()})
}

// ready is that the machine has all it takes to bind a client, or will not.
func (m *Member) ready(addr netip.Addr, all bool) {
	if o := m.coming[addr]; o != nil && o.stage == proving {
		m.prepared(o, all)
	}
}

func (m *Member) prepared(o *offer, optimised bool) {
	o.stage = ready
	m.timers.Set(o, m.now+m.cfg.HandoffTimeout)
	m.toPeer(o.key.from, &Message{Kind: Prepared, ID: o.key.id, Optimised: optimised})
}

// offered takes the application's answers.
func (m *Member) offered(msg *api.Message) {
	o := m.offers[msg.ID]
	if o == nil {
		return
	}
	switch {
	case msg.Kind == api.Accepted && o.stage == offering && msg.Error != "":
		m.refuse(o, msg.Error)
	case msg.Kind == api.Accepted && o.stage == offering:
		m.take(o)
	case msg.Kind == api.Activated && o.stage == activating:
		m.complete(o)
	}
}

// take decides that the client is to be this member's, if that can be recorded.
func (m *Member) take(o *offer) {
	o.stage = taking
	m.timers.Remove(o)
	m.record(o.key.record(o.client, Taken))
	m.waiting = append(m.waiting, o)
}

// taken makes it so. The Binding Update goes out before the application sends.
func (m *Member) taken(o *offer) {
	o.stage = activating
	c := &client{addr: o.client, epoch: o.epoch, since: m.now, connections: max(1, o.conns), arriving: true}
	m.enter(c)
	if o.relayed {
		m.setRelayed(c)
	} else {
		m.mobile(node.Bind{Client: c.addr, Grant: o.grant.after(m.now - o.given).grant()})
	}
	m.event(api.EventTakenOver, c.addr, o.key.from, "")
	c.arriving = false
	m.toApp(&api.Message{Kind: api.Activate, ID: o.id, Client: c.addr, Optimised: c.bound})
	if o.untold = c.bound; !o.untold {
		m.tellContact(c)
	} // else what it sends comes directly: the contact can wait until the client does not
}

// complete tells the donor that its copy is one too many.
func (m *Member) complete(o *offer) {
	c := m.clients[o.client]
	if c != nil && o.untold {
		m.tellContact(c)
	}
	m.record(o.key.record(o.client, Activated))
	m.toPeer(o.key.from, &Message{Kind: Done, ID: o.key.id, Optimised: c != nil && c.bound})
	m.remove(o)
}

// judge answers a donor that asks, or that has given away what is not expected here.
// What is said once stands: an offer that has ended is never taken.
func (m *Member) judge(key handoffKey, o *offer) {
	switch rec, taken := m.records.of[key]; {
	case !taken:
		why := "the handoff had ended here before the client was taken"
		if o != nil {
			if o.stage == offering {
				why = "its application had not taken the client yet"
			}
			m.drop(o)
		}
		m.toPeer(key.from, &Message{Kind: Done, ID: key.id, Error: why})
	case rec.State == Activated:
		c := m.clients[rec.Client]
		m.toPeer(key.from, &Message{Kind: Done, ID: key.id, Optimised: c != nil && c.bound})
	default: // the application, when it is back, will say
	}
}

// refuse ends an offer with the reason, drop without.
func (m *Member) refuse(o *offer, why string) {
	kind := Done
	if o.stage == proving {
		kind = Prepared
	}
	m.toPeer(o.key.from, &Message{Kind: kind, ID: o.key.id, Error: why})
	m.drop(o)
}

func (m *Member) drop(o *offer) {
	if o.stage == taking {
		m.record(o.key.record(o.client, Forgotten))
	}
	if o.stage == offering || o.stage == taking {
		m.toApp(&api.Message{Kind: api.Forget, ID: o.id, Client: o.client})
	}
	if m.clients[o.client] == nil && !o.relayed {
		m.mobile(node.Abandon{Client: o.client})
	}
	m.remove(o)
}

func (m *Member) remove(o *offer) {
	m.timers.Remove(o)
	delete(m.incoming, o.key)
	delete(m.coming, o.client)
	delete(m.offers, o.id)
}

// settled is that the donor knows how a handoff has ended.
func (m *Member) settled(from string, msg *Message) {
	key := handoffKey{from, msg.ID}
	if rec, known := m.records.of[key]; known && rec.State == Activated {
		m.record(key.record(rec.Client, Forgotten))
	}
}

// calledOff is the donor's Abort.
func (m *Member) calledOff(from string, msg *Message) {
	if o := m.incoming[handoffKey{from, msg.ID}]; o != nil && o.stage < activating {
		m.drop(o)
	}
}

// offerLate is that an offer has taken too long: if for the client, it goes on
// without its answers.
func (m *Member) offerLate(o *offer) {
	if o.stage == proving {
		m.prepared(o, false)
		return
	}
	m.refuse(o, fmt.Sprintf("it has taken more than %v", m.cfg.HandoffTimeout))
}
