package dstest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/wire"
)

// watch looks at what applications send to clients, and knows from what they say
// and are told in their sessions who may. It knows nothing of what the daemons
// think.
type watch struct {
	mu      sync.Mutex
	holders map[netip.Addr]string // the node that may send, "": the client was given away and not yet taken
	gifts   map[giftID]*gift      // by the last handoffs of each node
	away    map[netip.Addr]*gift  // those of clients that nobody has
	may     map[clientAt]bool     // whose application may go live with it, and has if it sends
	flows   map[flowID]*flow
	closing []*flow // those that have sent a FIN, the latest
	found   []string
}

// flowID is a connection, as far as a client can tell.
type flowID struct {
	client       netip.Addr
	port, server uint16
}

// giftID is a handoff, by the application's ID.
type giftID struct {
	node string
	id   uint64
}

// flow is what was sent to the client in a connection.
type flow struct {
	lost  bool  // its application has ended: a reset is right
	with  *gift // the handoff with which it may have survived that
	reset bool  // there was one, which was not right then
	quit  bool  // the client has reset it: what comes of it may be answered with a reset
	ended bool  // a FIN was sent
	fin   uint32
	begun bool
	next  uint32 // behind the last octet that was sent
	ring  []byte // the last octets, by sequence number

	forgotten bool // what was sent
}

// window is how far back what is repeated is compared, in octets; maxClosing is of
// how many connections that have ended.
const (
	window     = 1 << 16
	maxClosing = 64
)

func (w *watch) init() {
	w.holders = make(map[netip.Addr]string)
	w.gifts = make(map[giftID]*gift)
	w.away = make(map[netip.Addr]*gift)
	w.flows = make(map[flowID]*flow)
	w.may = make(map[clientAt]bool)
}

func (w *watch) faultLocked(format string, args ...any) {
	if len(w.found) < 100 {
		w.found = append(w.found, fmt.Sprintf(format, args...))
	}
}

func (w *watch) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.found)
}

// clientAt is a client at a node. More than one may be offered the same, and all but one
// too late.
type clientAt struct {
	node   string
	client netip.Addr
}

// gift is a client that is given away, by Transfer.
type gift struct {
	client   netip.Addr
	node, to string
	lost     bool // perhaps, with one of them
}

// back takes a gift back whose message turns out not to have been sent.
func (w *watch) back(g *gift) {
	if g != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.holdLocked(g.node, g.client, "has it back from a transfer that was not sent")
	}
}

// sent is what a node's application says. It returns what was given away with it: nothing
// in a session that is over, where nobody hears it.
func (w *watch) sent(s *session, m *api.Message) (given *gift) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := s.app
	if a.gone {
		return nil
	}
	node := a.daemon.name
	holder, held := w.holders[m.Client]
	switch {
	case m.Kind == api.Prepare:
		w.gifts[giftID{node, m.ID}] = &gift{client: m.Client, node: node, to: m.To}
	case m.Kind == api.Transfer && s.isClosed():
	case m.Kind == api.Transfer:
		if held && holder != node {
			w.faultLocked("%s gives away %s, which %q has", node, m.Client, holder)
		}
		g := w.gifts[giftID{node, m.ID}]
		w.holders[m.Client], w.away[m.Client] = "", g
		for id, f := range w.flows {
			if id.client == m.Client && !f.lost {
				f.with = g
			}
		}
		return g
	case m.Kind == api.Activated && w.may[clientAt{node, m.Client}]:
		delete(w.may, clientAt{node, m.Client})
		if m.Error == "" {
			w.holdLocked(node, m.Client, "says that it is live")
		}
	case m.Kind == api.Gone && holder == node:
		delete(w.holders, m.Client)
	}
	return nil
}

// resumed is what a node's application says when it attaches again. What is not among it
// has ended, or never went live, while there was no session to say so.
func (w *watch) resumed(node string, hello *api.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for client, holder := range w.holders {
		if holder == node && !slices.Contains(hello.Resume, client) {
			delete(w.holders, client)
		}
	}
	for may := range w.may {
		if may.node != node {
			continue
		}
		delete(w.may, may)
		switch g := w.away[may.client]; {
		case slices.Contains(hello.Resume, may.client):
			w.holdLocked(node, may.client, "says that it has had it")
		case g != nil && g.to == node && hello.Got(may.client, g.node): // all its connections have ended
			w.holdLocked(node, may.client, "says that it has had it")
			delete(w.holders, may.client)
		}
	}
}

// received is what a node's application is told.
func (w *watch) received(a *application, m *api.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.gone {
		return
	}
	node := a.daemon.name
	switch {
	case m.Kind == api.Activate:
		w.may[clientAt{node, m.Client}] = true
	case m.Kind == api.Done:
		id := giftID{node, m.ID}
		g := w.gifts[id]
		delete(w.gifts, id)
		if g != nil && m.Error != "" {
			w.holdLocked(node, g.client, "is told that it has it back")
		}
	}
}

func (w *watch) holdLocked(node string, client netip.Addr, why string) {
	if holder := w.holders[client]; holder != "" && holder != node {
		w.faultLocked("%s %s while %s has %s", node, why, holder, client)
	}
	w.holders[client] = node
	g := w.away[client]
	delete(w.away, client)
	if g == nil {
		return
	}
	for id, f := range w.flows { // they have survived
		if id.client != client || f.with != g {
			continue
		}
		if f.lost, f.with = false, nil; f.reset {
			w.faultLocked("%s had a reset on port %d, and %s has the connection", client, id.port, node)
		}
	}
}

// ended is that the application of a node has ended. Connections that it had are
// lost; and so may be those of clients that it has given away, or is to get. Of one whose
// place another takes nothing is heard any more.
func (w *watch) ended(a *application, replaced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.gone = replaced
	node := a.daemon.name
	for _, g := range w.away {
		g.lost = g.lost || g.node == node || g.to == node
	}
	for id, f := range w.flows {
		holder, held := w.holders[id.client]
		if g := w.away[id.client]; !held || holder == node || holder == "" && g.lost {
			f.lost = true
		}
	}
	for client, holder := range w.holders {
		if holder == node {
			delete(w.holders, client)
		}
	}
	for may := range w.may {
		if may.node == node {
			delete(w.may, may)
		}
	}
	for id := range w.gifts { // the next application has the same numbers
		if id.node == node {
			delete(w.gifts, id)
		}
	}
}

// lost tells whether a connection of a client may have ended with an application.
func (w *watch) lost(client netip.AddrPort, port uint16) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.flows[flowID{client.Addr(), client.Port(), port}]
	return f != nil && f.lost
}

// Flags of segments (RFC 9293 section 3.1).
const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10

// fromClient looks at a packet that a client sends: whether it resets a connection that it
// has. What it answers for one that it does not have, which is nothing that it has asked for,
// has no ACK if it answers one (RFC 9293 section 3.10.7.1).
func (w *watch) fromClient(b []byte) {
	const portsAt, flagsAt = wire.HeaderLen, wire.HeaderLen + 13
	if len(b) <= flagsAt || wire.Protocol(b[6]) != wire.TCP || b[flagsAt]&(rst|ack) != rst|ack {
		return
	}
	id := flowID{netip.AddrFrom16([16]byte(b[8:])), binary.BigEndian.Uint16(b[portsAt:]), binary.BigEndian.Uint16(b[portsAt+2:])}
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.flows[id]; f != nil {
		f.quit = true
	}
}

// packet looks at one that a node sends to a client.
func (w *watch) packet(a *application, p *wire.Packet) {
	if p.Protocol != wire.TCP || len(p.Payload) < 20 {
		return
	}
	t := p.Payload
	client, flags, seq := p.Destination(), t[13], binary.BigEndian.Uint32(t[4:])
	data := t[min(len(t), int(t[12]>>4)*4):]
	id := flowID{client, binary.BigEndian.Uint16(t[2:]), binary.BigEndian.Uint16(t)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.gone {
		return
	}
	node := a.daemon.name
	if w.may[clientAt{node, client}] {
		delete(w.may, clientAt{node, client})
		w.holdLocked(node, client, "is live")
	}
	f := w.flows[id]
	holder, held := w.holders[client]
	switch {
	case flags&syn != 0:
		if f == nil || f.next != seq+1 {
			f = &flow{begun: true, next: seq + 1}
			w.flows[id] = f
		}
		if !held || holder == "" && w.away[client].lost {
			w.holders[client], held = node, false
		}
	case f == nil:
		f = new(flow)
		w.flows[id] = f
	}
	if held && holder != node && !f.lost {
		w.faultLocked("%s sends to %s, which %q has", node, client, holder)
	}
	// Once a node has sent a FIN, it has nothing left of the connection when that is
	// acknowledged, and answers with a reset what the client had sent before: one
	// that has a sequence number up to the FIN's, all of which the client has got.
	// That is no fault.
	if over := f.ended && int32(seq-f.fin) <= 0; flags&rst != 0 && (flags&ack != 0 || !over) && !f.lost && !f.quit {
		w.faultLocked("%s gets a reset from %s: to port %d, flags %#x, sequence number %d; ended %t, at %d",
			client, node, id.port, flags, seq, f.ended, f.fin)
	}
	if flags&rst != 0 {
		f.reset = f.reset || f.lost && f.with != nil && !f.quit
		return
	}
	if flags&fin != 0 {
		w.closingLocked(f)
		f.ended, f.fin = true, seq+uint32(len(data))+1
	}
	if len(data) == 1 && data[0] == 0 && int32(seq+1-f.next) <= 0 {
		// Netstack's probe of a closed window has this in place of the octet that was acknowledged
		// last (RFC 9293 section 3.8.6.1), behind which some may have been sent in vain.
		return
	}
	if at, same := f.compare(seq, data); !same {
		w.faultLocked("%s repeats a part of a connection of %s with another octet at %d", node, client, at)
	}
}

// closingLocked forgets what was sent in connections that have ended long ago.
func (w *watch) closingLocked(f *flow) {
	if f.ended {
		return
	}
	w.closing = append(w.closing, f)
	if len(w.closing) > maxClosing {
		w.closing[0].ring, w.closing[0].forgotten = nil, true
		w.closing = w.closing[1:]
	}
}

// compare remembers what was sent, and compares what was sent before.
func (f *flow) compare(seq uint32, data []byte) (at uint32, same bool) {
	if len(data) == 0 || f.forgotten {
		return 0, true
	}
	if !f.begun {
		f.begun, f.next = true, seq
	}
	if f.ring == nil {
		f.ring = make([]byte, window)
	}
	before := int(int32(f.next - seq)) // octets of data that were sent
	if before < 0 {
		before = 0 // not in order: what is between is not compared
	}
	before = min(before, len(data))
	old, fresh := data[:before], data[before:]
	if far := int(int32(f.next-seq)) - window; far > 0 {
		n := min(far, len(old))
		old, seq = old[n:], seq+uint32(n)
	}
	for len(old) > 0 {
		i := seq % window
		n := min(len(old), window-int(i))
		if !bytes.Equal(old[:n], f.ring[i:int(i)+n]) {
			return seq, false
		}
		old, seq = old[n:], seq+uint32(n)
	}
	for len(fresh) > 0 {
		i := seq % window
		n := copy(f.ring[i:], fresh)
		fresh, seq = fresh[n:], seq+uint32(n)
	}
	if int32(seq-f.next) > 0 {
		f.next = seq
	}
	return 0, true
}

// device is a node's link, as long as its application lives.
type device struct {
	*lab.Port
	app *application
}

// Write looks at what goes to clients.
func (d device) Write(b []byte) (int, error) {
	p, err := wire.ParsePacket(b)
	if err == nil && p.Protocol == wire.IPv6 {
		var inner []byte
		if inner, err = p.Inner(); err == nil {
			p, err = wire.ParsePacket(inner)
		}
	}
	if err == nil && p.Source() == Server {
		d.app.daemon.cluster.seen.packet(d.app, &p)
	}
	return d.Port.Write(b)
}

// Close is that the application has ended, if it has no session that says so.
func (d device) Close() error {
	d.app.closed()
	return d.Port.Close()
}
