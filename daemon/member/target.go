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
//	      the client and the
//	      application answer     Transfer       recorded
//	proving ───────────────► ready ─────► taking ─────► activating
//	   │                       │             │              │
//	   └───────────────────────┴──► (end) ◄──┴──────────────┘
//	                refused, late, called off,       activated
//	                asked, not recorded
type offer struct {
	key     handoffKey
	id      uint64 // towards the application
	word    int    // of those shared with it
	client  netip.Addr
	relayed bool
	stage   offerStage

	// While proving: who has to answer yet, and that the client has not in time.
	asked, testing, lapsed bool

	// As of Transfer, which came at the time given.
	given time.Duration
	conns int
	epoch uint64
	grant *Grant

	octets int // of connections and state, once taken
}

// maxTaking bounds the connections that are on their way to the application, in octets,
// unless it is one client's alone: what is sent to it waits until it reads, and who does
// not read is ended.
const maxTaking = api.MaxMessage

type offerStage uint8

const (
	proving offerStage = iota
	ready
	taking // until the next input, which tells whether that is recorded
	activating
)

// Words are where the application takes the clients that it is offered, one word for
// each offer that is under way: see [api.Decisions].
type Words interface {
	// Put makes a word that of an offer, which has not been taken yet.
	Put(word int, id uint64)
	// Overrule decides that the offer is not taken any more, unless it has been.
	Overrule(word int, id uint64) bool
}

// words are which of them are an offer's.
type words struct {
	free []int
	used int // how many have ever been
}

func (w *words) get() (word int, ok bool) {
	if n := len(w.free); n > 0 {
		word, w.free = w.free[n-1], w.free[:n-1]
		return word, true
	}
	if w.used == api.MaxDecisions {
		return 0, false
	}
	w.used++
	return w.used - 1, true
}

func (w *words) put(word int) { w.free = append(w.free, word) }

// asTarget takes the donor's messages.
func (m *Member) asTarget(from string, msg *Message) {
	key := handoffKey{from, msg.ID}
	o := m.incoming[key]
	switch {
	case msg.Kind == Prepare && msg.ID == m.lastPrepare[from]:
		// It has come before. If that offer has ended since, the donor does not mean another.
	case msg.Kind == Prepare && o == nil:
		m.lastPrepare[from] = msg.ID
		m.consider(key, msg)
	case msg.Kind == Transfer && o != nil && o.stage == ready && msg.Client == o.client:
		o.given, o.conns, o.epoch, o.grant, o.relayed = m.now, msg.Connections, msg.Epoch, msg.Grant, msg.Relayed
		m.take(o, msg)
	case (msg.Kind == Transfer || msg.Kind == Query) && (o == nil || o.stage < taking):
		m.judge(key, o)
	case msg.Kind == Query && m.overrule(o):
		m.refuse(o, "its application had not taken the client yet")
	case msg.Kind == Late && o != nil && o.stage == taking && o.client == msg.Client:
		m.toApp(&api.Message{Kind: api.Late, ID: o.id, Client: msg.Client, Packets: msg.Packets})
	case msg.Kind == Late && m.records.of[key].Client == msg.Client && m.clients[msg.Client] != nil:
		m.toApp(&api.Message{Kind: api.Late, Client: msg.Client, Packets: msg.Packets})
	}
}

// consider decides whether a client may come.
func (m *Member) consider(key handoffKey, msg *Message) {
	refuse := func(why string) { m.toPeer(key.from, &Message{Kind: Prepared, ID: key.id, Error: why}) }
	before := m.coming[msg.Client]
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
	case before != nil && before.stage == taking:
		refuse("it is being given this client already")
		return
	case before != nil:
		m.drop(before) // its donor has given up, or it would not be offered again
	}
	word, free := m.words.get()
	if !free {
		refuse(fmt.Sprintf("%d clients are on their way to it already", api.MaxDecisions))
		return
	}
	o := &offer{key: key, id: m.newID(), word: word, client: msg.Client, relayed: msg.Relayed, asked: true, testing: !msg.Relayed}
	m.incoming[key], m.coming[o.client], m.offers[o.id] = o, o, o
	m.toApp(&api.Message{Kind: api.Expect, ID: o.id, Client: o.client, From: key.from, CareOf: m.cfg.Nodes[key.from].CareOf})
	if o.relayed {
		m.timers.Set(o, m.now+m.cfg.HandoffTimeout)
		return
	}
	m.timers.Set(o, m.now+m.cfg.PrepareTimeout)
	m.mobile(node.Prepare{Client: msg.Client, Grant: msg.Grant.grant()})
}

// ready is that the machine has all it takes to bind a client, or will not.
func (m *Member) ready(addr netip.Addr, all bool) {
	if o := m.coming[addr]; o != nil && o.testing {
		o.testing, o.lapsed = false, !all
		m.prepared(o)
	}
}

// prepared tells the donor that the client may come, when all have answered.
func (m *Member) prepared(o *offer) {
	if o.testing {
		return
	}
	m.timers.Set(o, m.now+m.cfg.HandoffTimeout)
	if o.asked {
		return
	}
	o.stage = ready
	m.toPeer(o.key.from, &Message{Kind: Prepared, ID: o.key.id, Optimised: !o.relayed && !o.lapsed})
}

// offered takes the application's answers.
func (m *Member) offered(msg *api.Message) {
	o := m.offers[msg.ID]
	switch {
	case o == nil:
	case msg.Kind == api.Expected && o.asked && msg.Error != "":
		m.refuse(o, msg.Error)
	case msg.Kind == api.Expected && o.asked:
		o.asked = false
		m.prepared(o)
	case msg.Kind == api.Activated && o.stage == activating && msg.Error != "":
		m.refuse(o, msg.Error)
	case msg.Kind == api.Activated && o.stage == activating:
		m.complete(o, msg.Ago)
	}
}

// take lets the application have the connections, which it rebuilds, and decides that
// the client is to be this member's, if that can be recorded. There has to be room.
func (m *Member) take(o *offer, msg *Message) {
	octets := msg.octets()
	if m.taking > 0 && m.taking+octets > maxTaking {
		m.refuse(o, fmt.Sprintf("%d octets of connections are on their way to its application already, and with these %d it would be more than %d",
			m.taking, octets, maxTaking))
		return
	}
	o.stage, o.octets = taking, octets
	m.taking += octets
	m.timers.Set(o, m.now+m.cfg.HandoffTimeout)
	m.record(o.key.record(o.client, Taken))
	m.returned(o.client) // in one piece with that
	m.waiting = append(m.waiting, o)
	m.cfg.Words.Put(o.word, o.id)
	m.toApp(&api.Message{
		Kind: api.Offer, ID: o.id, Word: o.word, Client: o.client, From: o.key.from, Snapshot: msg.Snapshot, State: msg.State,
	})
}

// taken makes it so. From now on the application goes live when it has rebuilt them,
// unless it is overruled first. The Binding Update goes out before it sends.
func (m *Member) taken(o *offer) {
	o.stage = activating
	c := &client{addr: o.client, epoch: o.epoch, since: m.now, connections: max(1, o.conns), arriving: true}
	m.enter(c)
	if o.relayed {
		m.setRelayed(c)
	} else {
		m.mobile(node.Bind{Client: c.addr, Grant: o.grant.after(m.now - o.given).grant()})
	}
	c.arriving = false
	m.toApp(&api.Message{Kind: api.Activate, ID: o.id, Client: c.addr, Optimised: c.bound})
}

// complete tells the donor that its copy is one too many, and the contact whose the
// client is: what it has sent by way of the contact meanwhile is at the donor, which
// sends it here.
func (m *Member) complete(o *offer, ago time.Duration) {
	c := m.clients[o.client]
	if c != nil {
		m.tellContact(c)
	}
	m.event(api.EventTakenOver, o.client, o.key.from, "")
	m.record(o.key.record(o.client, Activated))
	m.toPeer(o.key.from, &Message{Kind: Done, ID: o.key.id, Optimised: c != nil && c.bound, Ago: ago})
	m.remove(o)
}

// overrule decides that the application never goes live with what it was offered, if it
// has not yet.
func (m *Member) overrule(o *offer) bool { return m.cfg.Words.Overrule(o.word, o.id) }

// judge answers a donor that asks, or that has given away what is not expected here.
// What is said once stands: an offer that has ended is never taken.
func (m *Member) judge(key handoffKey, o *offer) {
	switch rec, taken := m.records.of[key]; {
	case !taken:
		if o != nil {
			m.drop(o)
		}
		m.toPeer(key.from, &Message{Kind: Done, ID: key.id, Error: "the handoff had ended here before the client was taken"})
	case rec.State == Activated:
		c := m.clients[rec.Client]
		m.toPeer(key.from, &Message{Kind: Done, ID: key.id, Optimised: c != nil && c.bound})
	default: // the application, when it is back, will say
	}
}

// refuse ends an offer with the reason, drop without. What was taken, and is not
// activated and never will be, goes back.
func (m *Member) refuse(o *offer, why string) {
	kind := Done
	if o.stage == proving {
		kind = Prepared
	}
	m.toPeer(o.key.from, &Message{Kind: kind, ID: o.key.id, Error: why})
	m.drop(o)
}

func (m *Member) drop(o *offer) {
	m.toApp(&api.Message{Kind: api.Forget, ID: o.id, Client: o.client})
	if o.stage >= taking {
		m.record(o.key.record(o.client, Forgotten))
		if c := m.clients[o.client]; c != nil && o.stage == activating {
			m.disown(c)
		}
		// It may have heard of this node: what it sends is not for an application that
		// is started anew to answer.
		m.absences.add(absence{client: o.client, to: o.key.from, until: m.now + m.cfg.AwayTime}, m.now)
	}
	if m.clients[o.client] == nil && !o.relayed {
		m.mobile(node.Abandon{Client: o.client})
	}
	m.remove(o)
}

func (m *Member) remove(o *offer) {
	m.timers.Remove(o)
	m.words.put(o.word)
	m.taking -= o.octets
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
	if o := m.incoming[handoffKey{from, msg.ID}]; o != nil && o.stage < taking {
		m.drop(o)
	}
}

// offerLate is that an offer has taken too long: if for the client, it goes on
// without its answers; if for an application that has gone live, its word will come.
func (m *Member) offerLate(o *offer) {
	switch {
	case o.testing:
		o.testing, o.lapsed = false, true
		m.prepared(o)
	case o.stage < taking || m.overrule(o):
		m.refuse(o, fmt.Sprintf("it has taken more than %v", m.cfg.HandoffTimeout))
	}
}
