package member

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// This file is what a donor tells the contact of clients that it gives away. Their new
// owners tell it, too, but perhaps later: what clients send must not come to where
// nobody knows of them meanwhile.

// tellGiven tells the contact of a client that was given away, without that being
// known to have come about: the client's packets are to come here, where they are
// kept for the target.
func (m *Member) tellGiven(h *handoff) {
	if h.inquiry {
		return
	}
	o := Owned{Client: h.c.addr, Epoch: h.c.epoch}
	if m.IsContact() {
		m.given(m.cfg.Name, h.to, o)
		return
	}
	m.toPeer(m.contact.Name, &Message{Kind: Owners, Given: []Owned{o}})
}

// given is, at the contact, what another member says so, which does not own the
// client: anybody else's word goes, also of who has not told yet, the target (to, if known)
// excepted. For the donor may have been in doubt for long, while the client has connected anew.
func (m *Member) given(from, to string, o Owned) {
	m.confirm(o.Client)
	elsewhere := m.awaiting && from != m.cfg.Name
	for name := range m.missing {
		elsewhere = elsewhere || name != from && name != to
	}
	switch _, known := m.owners[o.Client]; {
	case known:
	case elsewhere:
		m.hearsay[o.Client] = hearsay{at: from, given: true, to: to}
	default:
		m.claim(from, Owned{Client: o.Client, Epoch: max(1, o.Epoch)})
	}
}

// hearsay is, at a contact that has not been told everything, where a client may be that is
// not known.
type hearsay struct {
	at    string
	given bool   // it has given the client away, and waits to hear; otherwise another says that it has it
	to    string // whom to, if known
}

// givenBy tells whether it is a member's own word.
func (h hearsay) givenBy(name string) bool { return h.given && h.at == name }

// rumoured is what there is. That a member has a client that another one has given to it
// counts as long as it cannot tell itself.
func (m *Member) rumoured(client netip.Addr) (h hearsay, ok bool) {
	h, ok = m.hearsay[client]
	return h, ok && (h.given || h.at != m.cfg.Name && m.up[h.at] == nil)
}

// passing is the time until the contact is told of clients that were passed on.
// The application here sends after them what still comes, for much longer.
type passing struct{}

const passTime = time.Second // the default

// pass is that a target has a client.
func (m *Member) pass(h *handoff) {
	o := Owner{Name: h.to, Epoch: h.c.later(1)}
	switch {
	case m.IsContact():
		m.passed(m.cfg.Name, o.Name, Owned{Client: h.c.addr, Epoch: o.Epoch}, false)
	default:
		if len(m.onward) == 0 {
			m.timers.Set(passing{}, m.now+m.cfg.PassTime)
		}
		m.onward[h.c.addr] = o
	}
}

// tellPassed tells the contact.
func (m *Member) tellPassed() {
	m.timers.Remove(passing{})
	to := make(map[string][]Owned)
	for _, client := range slices.SortedFunc(maps.Keys(m.onward), netip.Addr.Compare) {
		o := m.onward[client]
		to[o.Name] = append(to[o.Name], Owned{Client: client, Epoch: o.Epoch})
	}
	clear(m.onward)
	for _, name := range slices.Sorted(maps.Keys(to)) {
		if m.IsContact() {
			for _, o := range to[name] {
				m.passed(m.cfg.Name, name, o, true)
			}
			continue
		}
		for some := range slices.Chunk(to[name], MaxOwners) {
			m.toPeer(m.contact.Name, &Message{Kind: Owners, Given: some, To: name})
		}
	}
}

// passed is, at the contact, that a client is another member's, which may not have a
// connection to say so itself. Who has not told everything yet may tell of one that is
// not known here; later it is not known because it has gone. It may have gone on since, too:
// that is hearsay, which counts until that other member can tell.
func (m *Member) passed(from, to string, o Owned, anew bool) {
	was, known := m.owners[o.Client]
	later := known && was.Name == from && (o.Epoch == 0 || o.Epoch > was.Epoch) || m.hearsay[o.Client].givenBy(from)
	switch _, is := m.cfg.Nodes[to]; {
	case !is:
	case later:
		m.setOwner(o.Client, Owner{Name: to, Epoch: max(was.Epoch+1, o.Epoch)})
	case !known && anew && !m.hearsay[o.Client].given: // whose donor speaks for itself
		m.hearsay[o.Client] = hearsay{at: to}
	}
}
