package member

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// This file is what a donor must not forget while its application may end: which
// clients that had are elsewhere, or may be. What they still send here, because the
// contact or they themselves have not heard yet, an application itself sends on. The
// one that comes after it does not know these connections, and would reset them; it is
// told with its welcome whom to send on, and where to. Of clients of which it turns
// out that nobody has them it is told afterwards.
//
// The daemon may end with its application. So a handoff is recorded, too, from Prepare
// until a second or two after its end (Config.PassTime). That is not to be waited for: what
// is not recorded is handed off all the same.

// absence is a client that another member has got.
type absence struct {
	client netip.Addr
	to     string        // "": nobody has it
	until  time.Duration // when nothing of it comes here any more
	id     uint64        // of the handoff
}

// absences are those of late.
type absences struct {
	of    map[netip.Addr]absence
	order []absence // may have some that are forgotten
}

const (
	awayTime    = time.Minute // the default
	maxAbsences = 1 << 15
)

func (d *absences) add(dep absence, now time.Duration) {
	if d.of == nil {
		d.of = make(map[netip.Addr]absence)
	}
	d.of[dep.client] = dep
	d.order = append(d.order, dep)
	for len(d.order) > maxAbsences || d.order[0].until <= now {
		if first := d.order[0]; d.of[first.client] == first {
			delete(d.of, first.client)
		}
		d.order = d.order[1:]
	}
}

// leaving records that a handoff begins.
func (m *Member) leaving(h *handoff) {
	m.recordOwn(Record{From: m.cfg.Name, ID: h.id, Client: h.c.addr, To: h.to, State: Leaving})
}

// left records that the target has the client, unless that has been back here since: then
// the target may have said so late, and it can be anywhere.
func (m *Member) left(h *handoff) {
	client := h.c.addr
	if h.back {
		return
	}
	m.absences.add(absence{client, h.to, m.now + m.cfg.AwayTime, h.id}, m.now)
	m.recordOwn(Record{From: m.cfg.Name, ID: h.id, Client: client, To: h.to, State: Left})
	m.forgetLater(h.id)
	m.pass(h)
}

// returned records that a client has come back, from whomever, and perhaps before it is
// known here how the handoff has ended with which it left.
func (m *Member) returned(client netip.Addr) {
	if h := m.giving[client]; h != nil {
		h.back = true
		m.forgetOwn(h.id)
	}
	a, away := m.absences.of[client]
	if !away {
		return
	}
	delete(m.absences.of, client)
	m.forgetOwn(a.id)
}

// stayed records that the target does not have it. If the application has ended, nobodys
// does.
func (m *Member) stayed(h *handoff) {
	if m.donated[h.id].State == Leaving && !h.orphan {
		m.forgetOwn(h.id)
	}
}

// nobodys is that the target does not have a client of an application that has ended: its
// connections are nobody's. The application that is attached now is told. If the daemon
// ends before it hears that, the next one asks again, unless the client is back by then. It
// may have connected anew, here or where others sent it: who has it is not to lose it.
func (m *Member) nobodys(h *handoff, why string) {
	client := h.c.addr
	if m.takesAway {
		m.toApp(&api.Message{Kind: api.Nobodys, Client: client})
	}
	if h.back {
		return
	}
	if !h.inquiry {
		m.event(api.EventGone, client, h.to, "its application has ended, and it is not there: "+why)
		m.tellGone(h.c)
	}
	m.absences.add(absence{client: client, until: m.now + m.cfg.AwayTime, id: h.id}, m.now)
	m.forgetLater(h.id)
}

func (m *Member) forgetOwn(id uint64) {
	if rec, known := m.donated[id]; known {
		rec.State = Forgotten
		m.recordOwn(rec)
	}
}

func (m *Member) recordOwn(rec Record) {
	m.setOwn(rec)
	m.out.Record = append(m.out.Record, rec)
}

func (m *Member) setOwn(rec Record) {
	if rec.State == Forgotten {
		delete(m.donated, rec.ID)
	} else {
		m.donated[rec.ID] = rec
	}
}

// settling is the time until handoffs that have ended for long enough are forgotten,
// together.
type settling struct{}

// ended is a handoff that has.
type ended struct {
	id    uint64
	until time.Duration // it is remembered
}

func (m *Member) forgetLater(id uint64) {
	if len(m.over) == 0 {
		m.timers.Set(settling{}, m.now+m.cfg.PassTime)
	}
	m.over = append(m.over, ended{id, m.now + m.cfg.PassTime})
}

func (m *Member) forgetOver() {
	n := 0
	for n < len(m.over) && m.over[n].until <= m.now {
		m.forgetOwn(m.over[n].id)
		n++
	}
	m.over = slices.Delete(m.over, 0, n)
	if len(m.over) > 0 {
		m.timers.Set(settling{}, m.now+m.cfg.PassTime)
	}
}

// restore takes up, after a start, what was recorded. An application that has come back,
// with its hello, is in doubt about some of these handoffs, and knows of others that the
// client has stayed. The rest were of one that has ended. The one that has come back, if
// any, may have been told that those clients are away, and is to hear if nobody has them.
func (m *Member) restore(hello *api.Message) {
	for _, rec := range m.ownRecords() {
		h := &handoff{id: rec.ID, c: &client{addr: rec.Client, connections: 1}, to: rec.To, stage: transferring, orphan: true}
		switch {
		case rec.State == Left:
			m.left(h)
		case hello != nil && slices.ContainsFunc(hello.Doubts, func(d api.Doubt) bool { return d.Handoff == rec.ID }):
		case hello != nil && slices.Contains(hello.Resume, rec.Client):
			m.forgetOwn(rec.ID)
		default:
			h.inquiry = hello != nil
			m.outgoing[h.id], m.giving[rec.Client] = h, h
			m.tellGiven(h)
			m.query(h)
		}
	}
}

func (m *Member) ownRecords() []Record {
	return slices.SortedFunc(maps.Values(m.donated), func(a, b Record) int { return cmp.Compare(a.ID, b.ID) })
}

// awayNow are the clients that a new application is not to answer, and those of them that
// the other member is known to have got.
func (m *Member) awayNow() (all []api.Away, left []netip.Addr) {
	to, doubt := make(map[netip.Addr]string), make(map[netip.Addr]bool)
	for client, d := range m.absences.of {
		if m.now < d.until {
			to[client] = d.to
		}
	}
	for _, h := range m.outgoing {
		if h.orphan && h.stage == transferring && !h.back {
			to[h.c.addr], doubt[h.c.addr] = h.to, true
		}
	}
	for _, client := range slices.SortedFunc(maps.Keys(to), netip.Addr.Compare) {
		if n, known := m.cfg.Nodes[to[client]]; (known || to[client] == "") && m.clients[client] == nil {
			all = append(all, api.Away{Client: client, CareOf: n.CareOf})
			if known && !doubt[client] {
				left = append(left, client)
			}
		}
	}
	return all, left
}
