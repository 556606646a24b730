package member

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// This file is what a contact does with packets of clients of whom its relay has not
// been told. Most are new. But a contact that has just been started, or has taken
// over, has not been told anything yet; a member whose daemon was started anew does
// not know what its application has before that is attached again; and one that is
// not connected tells nothing, while its application may go on. An application that
// gets a segment of a connection that it does not have answers with a reset; one that gets a
// new connection of a client that another one has splits that client in two. So:
//
//   - What may be in the middle of a connection goes to the one node that may have
//     it: to this one, when all others have told what they own. While there are two
//     it is dropped, and comes again. A member that is not connected may have it
//     if another one has passed it on to that.
//   - What begins a connection waits likewise, but only for members that are
//     connected, or were less than StartGrace ago: a client that is new is not to
//     wait for a node that does not run. After ReportTime it is taken in any case.
//
// A member that has told everything once does not have to again: a client that it
// gets later is one that the contact knows as another one's. But one whose daemon was
// started anew may have had a client begin, for which it had been sent on another's
// connections, and ended before it told. And what a member does not speak of when it is
// connected again it does not have any more, but for what is in the middle of its handshake
// there, or was when the member spoke: that goes to it for a while.

// reportTime is the default of Config.ReportTime.
const reportTime = 5 * time.Second

// mayHaveToldAll looks whether a member has told everything.
func (m *Member) mayHaveToldAll(name string) {
	if hello := m.up[name]; m.IsContact() && m.missing[name] && hello != nil && !hello.Awaiting {
		delete(m.missing, name)
	}
	if m.IsContact() {
		m.forgetUnconfirmed()
	}
}

// mayKnowMore is that a member's daemon was started anew, whose application is not back.
func (m *Member) mayKnowMore(name string, hello *Message) {
	if _, missing := m.missing[name]; m.IsContact() && hello.Awaiting && !missing {
		m.missing[name] = false
	}
}

// unconfirmed are clients that the contact thinks are a member's, and of which that has
// not spoken since it is connected.
type unconfirmed struct {
	clients map[netip.Addr]struct{}
	told    bool // everything, but for what an application has that may come back
}

// doubtOwner is that a member is connected again. It may have been started anew, or have
// let clients go without this one's having heard of it.
func (m *Member) doubtOwner(name string) {
	if !m.IsContact() {
		return
	}
	u := &unconfirmed{clients: make(map[netip.Addr]struct{})}
	for client, o := range m.owners {
		if o.Name == name {
			u.clients[client] = struct{}{}
		}
	}
	for client, h := range m.hearsay {
		if h.givenBy(name) {
			u.clients[client] = struct{}{}
		}
	}
	m.unconfirmed[name] = u
}

// confirm is that a member speaks of a client, whoever has it: one that has got it, and
// does not know the epoch, is told that first.
func (m *Member) confirm(client netip.Addr) {
	for _, u := range m.unconfirmed {
		delete(u.clients, client)
	}
}

// forgetUnconfirmed forgets, when all members are connected and have told everything, of
// which clients nobody has spoken. They would be sent to where they are as new as here, and where
// their handshakes are not found if this contact ends meanwhile. While a member is away
// that may have got such a client, who had it sends after it.
func (m *Member) forgetUnconfirmed() {
	if len(m.missing) > 0 || m.awaiting {
		return
	}
	for name, hello := range m.Peers() {
		if u := m.unconfirmed[name]; hello == nil || hello.Awaiting || u != nil && !u.told {
			return
		}
	}
	for name := range m.Peers() {
		if u := m.unconfirmed[name]; u != nil {
			for _, client := range slices.SortedFunc(maps.Keys(u.clients), netip.Addr.Compare) {
				m.forget(name, client, 0)
			}
			delete(m.unconfirmed, name)
		}
	}
}

// Unknown tells where a packet is to be sent, in a tunnel, that has come from the home
// agent, of a client of whom the relay knows nothing: to a node's care-of address. ok
// is false if it is to be dropped.
func (m *Member) Unknown(now time.Duration, packet []byte) (careOf netip.Addr, ok bool) {
	m.now = max(m.now, now)
	client := src(packet)
	o, known := m.owners[client]
	h, heard := m.rumoured(client)
	switch {
	case known: // since the relay has looked
		return m.cfg.Nodes[o.Name].CareOf, true
	case isAlone(packet), m.beginners.has(client, m.now):
		return m.self.CareOf, true
	case heard && begins(packet) && !(h.given && m.waits()):
		return m.cfg.Nodes[h.at].CareOf, true
	case begins(packet):
		if m.waits() {
			return netip.Addr{}, false
		}
		m.beginners.add(client, m.now)
		return m.self.CareOf, true
	}
	if n, had := m.lately(client); had {
		return n.CareOf, true
	}
	if m.now < m.began.until && m.began.has(client, m.now) {
		return netip.Addr{}, false // it is lost, or whoever has it will tell
	}
	// What is in the middle of its handshake no member tells. It may be at the contact of
	// before, or here, where the one before was this member, started anew since.
	var may []string
	for name := range m.cfg.Nodes {
		_, missing := m.missing[name]
		if heard && name == h.to {
			continue // the donor keeps it for that one
		}
		if missing || heard && name == h.at || m.awaiting && name == m.cfg.Name || !heard && m.now < m.handshakes[name] {
			may = append(may, name)
		}
	}
	switch len(may) {
	case 0: // it is a connection that nobody has any more
		return m.self.CareOf, true
	case 1:
		return m.cfg.Nodes[may[0]].CareOf, true
	}
	return netip.Addr{}, false
}

// began are those that have begun connections at an application here that has ended. They
// may live where it has sent them on to, which has not told yet.
type began struct {
	beginners
	until time.Duration // by then it has
}

// lately tells the node that had a client before it was forgotten here: what the client
// began by then was sent there, and is in the middle of its handshake, or that node has not
// told yet. If it is nobody's, that one answers.
func (m *Member) lately(client netip.Addr) (n Addrs, had bool) {
	f, forgotten := m.forgotten.of[client]
	if hello := m.up[f.to]; !forgotten || m.now >= f.until || hello == nil || !hello.Attached {
		return Addrs{}, false
	}
	return m.cfg.Nodes[f.to], true
}

// waits tells whether clients that are new have to.
func (m *Member) waits() bool {
	if m.now >= m.patience {
		return false
	}
	for name := range m.missing {
		if since, away := m.away[name]; !away || m.now < since+m.cfg.StartGrace {
			return true
		}
	}
	return false
}

// isAlone tells whether a packet has nothing to do with connections, and gets no
// reset for an answer.
func isAlone(packet []byte) bool {
	p := wire.Protocol(packet[nextHeader])
	return p == wire.UDP || p == wire.ICMPv6
}

// begins tells whether a packet begins a TCP connection (RFC 9293 section 3.1).
func begins(packet []byte) bool {
	const flagsAt, syn, ack = wire.HeaderLen + 13, 0x02, 0x10
	return len(packet) > flagsAt && wire.Protocol(packet[nextHeader]) == wire.TCP && packet[flagsAt]&(syn|ack) == syn
}

// beginners are clients that have begun a connection here, and that nobody has told of
// yet. Those of which nothing is heard are forgotten, and the oldest when there are
// too many.
type beginners struct {
	young, old map[netip.Addr]struct{}
	turn       time.Duration // when the young ones become old
}

// Limits of beginners.
const (
	maxBeginners = 1 << 16 // young ones, and old ones
	beginnerTime = time.Minute
)

func (b *beginners) add(client netip.Addr, now time.Duration) {
	if now >= b.turn || len(b.young) >= maxBeginners {
		b.young, b.old, b.turn = make(map[netip.Addr]struct{}), b.young, now+beginnerTime
	}
	b.young[client] = struct{}{}
}

// has tells whether a client is one of them, which has been heard of now.
func (b *beginners) has(client netip.Addr, now time.Duration) bool {
	if _, young := b.young[client]; young {
		return true
	}
	_, old := b.old[client]
	if old {
		delete(b.old, client)
		b.add(client, now)
	}
	return old
}

func (b *beginners) remove(client netip.Addr) {
	delete(b.young, client)
	delete(b.old, client)
}
