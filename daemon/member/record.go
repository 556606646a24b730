package member

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/distributed-servers/ds/daemon/api"
)

// This file is what a target must not forget; away.go has what a donor must not. A
// donor that has given a client away may ask for the outcome long after, when its
// connection or its daemon is back, and the client may have gone on or gone away
// meanwhile: to say then that it never came would set free the donor's copy. So every
// handoff that is taken is recorded, before anybody hears of it, until the donor's
// application is known to know (Settled). A handoff that is not recorded was not
// taken and never will be: if that cannot be written, it is refused.
//
// Whether its application then heard of it, that knows itself, as long as it lives.
// So the later changes may fail to be written, and what was said still stands.

// Record is a change of what is remembered of a handoff to this member, or from it
// (away.go).
type Record struct {
	From   string     `json:"from"` // the donor
	ID     uint64     `json:"id"`   // the donor's
	Client netip.Addr `json:"client"`
	State  State      `json:"state"`
	To     string     `json:"to,omitempty"` // of Leaving and Left, whose donor is this member
}

// State is what is known of a handoff to this member.
type State uint8

const (
	// Taken: the application is being given the connections, and told that they are its
	// own when it has rebuilt them. If the daemon ends now, the application knows whether
	// it has had the client.
	Taken State = iota + 1
	// Activated: the application has the client, or had it.
	Activated
	// Forgotten: nobody will ask any more.
	Forgotten
	// Leaving: this member is the donor, and the client is on its way, or about to be.
	Leaving
	// Left: and the target has it.
	Left

	// States is one more than the last.
	States
)

func (s State) String() string {
	switch s {
	case Taken:
		return "taken"
	case Activated:
		return "activated"
	case Forgotten:
		return "forgotten"
	case Leaving:
		return "leaving"
	case Left:
		return "left"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// handoffKey identifies a handoff to this member.
type handoffKey struct {
	from string
	id   uint64
}

// maxRecords bounds what stays because a donor has vanished for good while its
// handoffs were under way. The oldest goes first.
const maxRecords = 1 << 16

// records are the latest by handoff, in the order in which they were taken.
type records struct {
	of    map[handoffKey]Record
	order []handoffKey // may have some that are forgotten
}

// set is a change.
func (r *records) set(rec Record) {
	key := handoffKey{rec.From, rec.ID}
	if rec.State == Forgotten {
		delete(r.of, key)
		if len(r.order) > 2*len(r.of)+16 {
			r.order = slices.DeleteFunc(r.order, func(k handoffKey) bool { _, there := r.of[k]; return !there })
		}
		return
	}
	if r.of == nil {
		r.of = make(map[handoffKey]Record)
	}
	if _, known := r.of[key]; !known {
		r.order = append(r.order, key)
	}
	r.of[key] = rec
}

// oldest is the first of those that are too many.
func (r *records) oldest() (Record, bool) {
	if len(r.of) <= maxRecords {
		return Record{}, false
	}
	for i, key := range r.order {
		if rec, there := r.of[key]; there {
			r.order = r.order[i:]
			return rec, true
		}
	}
	return Record{}, false
}

// Recorded tells a member whether what it recorded is kept, and is the next input after
// [Output].Record: Why says why it is not, "" that it is. When there is room again it
// comes once more. Until then no clients of other members are let come.
type Recorded struct{ Why string }

func (Recorded) input() {}

// recorded takes the clients that were to be recorded first, or refuses them; and tells
// targets of those that were given away.
func (m *Member) recorded(why string) {
	m.noRecords = why
	if why == "" {
		for _, r := range m.releases {
			m.toPeer(r.To, r.Message)
		}
		m.releases = nil
	}
	waiting := m.waiting
	m.waiting = nil
	for _, o := range waiting {
		switch {
		case m.incoming[o.key] != o: // it has come to nothing meanwhile
		case why == "":
			m.taken(o)
		default:
			m.refuse(o, m.cannotRecord())
		}
	}
}

func (m *Member) cannotRecord() string { return "it cannot record handoffs: " + m.noRecords }

// record remembers.
func (m *Member) record(rec Record) {
	m.records.set(rec)
	m.out.Record = append(m.out.Record, rec)
	if old, tooMany := m.records.oldest(); tooMany {
		m.record(Record{From: old.From, ID: old.ID, Client: old.Client, State: Forgotten})
	}
}

// remind tells a donor, when its application is attached, of all that has come from
// it as far as is remembered: if nobody there is in doubt about one any more, that
// it was settled has not arrived here.
func (m *Member) remind(donor string) {
	for _, rec := range m.remembered() {
		if rec.From == donor && rec.State == Activated {
			m.toPeer(donor, &Message{Kind: Done, ID: rec.ID})
		}
	}
}

// remembered are the records in an order that does not vary from run to run.
func (m *Member) remembered() []Record {
	return slices.SortedFunc(maps.Values(m.records.of), func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.ID, b.ID))
	})
}

func (k handoffKey) record(client netip.Addr, s State) Record {
	return Record{From: k.from, ID: k.id, Client: client, State: s}
}

// recall decides what was taken but perhaps not activated, now that the application
// is back and has said what it got, or, without hello, is known to be lost. A lost one
// may have had the client, and may have sent for it.
func (m *Member) recall(hello *api.Message) {
	for _, rec := range m.remembered() {
		if rec.State != Taken {
			continue
		}
		key := handoffKey{rec.From, rec.ID}
		o := m.incoming[key]
		switch has := hello == nil || hello.Got(rec.Client, rec.From); {
		case has && o != nil:
			m.complete(o, 0)
		case has:
			m.record(key.record(rec.Client, Activated))
			m.toPeer(key.from, &Message{Kind: Done, ID: key.id})
		default:
			if o != nil {
				m.refuse(o, neverHad)
				continue
			}
			m.record(key.record(rec.Client, Forgotten))
			m.toPeer(key.from, &Message{Kind: Done, ID: key.id, Error: neverHad})
		}
	}
}

const neverHad = "the application never had it"

// doubt takes up a handoff of which the application has not heard the end. What was recorded
// of it may have been forgotten, if the daemon before had given it up.
func (m *Member) doubt(d api.Doubt) {
	h := m.outgoing[d.Handoff]
	if h != nil && (h.to != d.To || h.c.addr != d.Client) {
		return // not what was told with Prepared
	}
	known := h != nil
	if !known {
		h = &handoff{id: d.Handoff, c: &client{addr: d.Client, connections: 1}, to: d.To, stage: transferring}
		m.outgoing[h.id], m.giving[d.Client] = h, h
		m.leaving(h)
	}
	h.session, h.orphan = d.ID, false
	m.bySession[h.session] = h
	switch {
	case !known:
		m.tellGiven(h)
		m.query(h)
	case h.stage == told:
		m.toApp(h.done)
	}
}

// query asks the target how a handoff has ended after Transfer, or to end it. One that
// has been removed since may have taken the client, and will never say so: it counts as
// having, for no two must go on with it.
func (m *Member) query(h *handoff) {
	if _, known := m.cfg.Nodes[h.to]; !known {
		m.done(h, &Message{})
		if !h.inquiry && !h.back {
			m.tellGone(h.c)
		}
		return
	}
	m.toPeer(h.to, &Message{Kind: Query, ID: h.id, Client: h.c.addr})
}
