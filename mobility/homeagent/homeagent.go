package homeagent

import (
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/deadline"
	"github.com/distributed-servers/ds/mobility/wire"
)

// Input is one of [Received], [OnLink], [Tick], [SetKeys], [SetPrefixes].
type Input interface{ input() }

// Received is an IPv6 packet that has arrived for us or at us: to Addr, to the
// Mobile IPv6 Home-Agents anycast address of a prefix, or to a home address.
type Received struct{ Packet []byte }

// OnLink is a packet of Neighbor Discovery that another node has sent on the
// home link: a Neighbor Solicitation or Advertisement, or a Router Advertisement.
type OnLink struct{ Packet []byte }

// Tick is that time has passed.
type Tick struct{}

// SetKeys replaces the keys. The bindings of home addresses that have none any
// more end. A key that New would refuse is left out.
type SetKeys struct{ Keys map[netip.Addr]Credential }

// SetPrefixes replaces the prefixes; their lifetimes begin anew. The bindings
// of home addresses that are on none any more end, and the other mobile nodes
// will be told. If New would refuse them, nothing happens.
type SetPrefixes struct{ Prefixes []Prefix }

func (Received) input()    {}
func (OnLink) input()      {}
func (Tick) input()        {}
func (SetKeys) input()     {}
func (SetPrefixes) input() {}

// Output is what is to be done, in the order of the fields. It belongs to the
// home agent and is valid until the next Step.
type Output struct {
	// Join are multicast groups to be listened to on the home link.
	Join []netip.Addr

	// Changes are those of bindings.
	Changes []Change

	// Link are IPv6 packets to be sent on the home link itself. The driver
	// adds the link-layer header: the multicast address that belongs to the
	// destination, or the neighbor's. Among them are packets to a mobile node
	// at home, which must not come back to us.
	Link [][]byte

	// Send are IPv6 packets to be routed.
	Send [][]byte

	// Local are IPv6 packets to Addr that are none of the home agent's
	// business, out of their tunnel if they came through one.
	Local [][]byte

	// Leave are groups that need not be listened to any more.
	Leave []netip.Addr
}

// Change is that of a binding.
type Change struct {
	Home   netip.Addr
	CareOf netip.Addr    // zero: there is no binding any more, or there never was
	Until  time.Duration // when it ends unless it is refreshed

	// Status is that of the acknowledgement. Without a binding, one of a
	// refusal tells why, Accepted that it has ended as it should.
	Status wire.Status
}

// HomeAgent is a home agent. Each home address goes through these states:
//
//	          Binding Update            silence for
//	          on a home link            RetransTimer
//	away ─────────────────────► tentative ─────────► bound ◄──┐ Binding Update:
//	 ▲ │                         │  │ ▲ └─ Binding Update: ─┘ │  │ care-of address,
//	 │ │                         │  └─┘    the last counts    │  └──┘ lifetime
//	 │ │  the address is in use: │                            │
//	 │ ├─◄───────────────────────┘                            │
//	 │ │  status 134                                          │
//	 │ └──────────────────────────────────────────────────────► without a link
//	 │                                                        │
//	 └────────────────────────────────────────────────────────┘
//	   lifetime 0 or over, prefix or key withdrawn
//
// Away, it is not ours to speak for; after a deregistration its sequence number
// counts for 10 s all the same (RFC 6275 section 10.3.2). Tentative, we listen on the link and
// tunnel nothing yet. Bound, we defend and tunnel.
type HomeAgent struct {
	cfg      Config
	addr     address
	prefixes []prefix
	homes    map[address]*entry // all that have a key
	links    map[address]*entry // by link-local address, bound or tentative
	groups   map[netip.Addr]int // how many homes need a solicited-node group
	agents   []heardAgent
	inUse    int // homes that are not away
	due      deadline.Queue[*entry]

	now       time.Duration
	errors    limit
	discovery limit
	strangers limit
	fragment  uint32 // the last fragment's identification

	// What follows is used again by each Step.
	out     Output
	buf     []byte // all packets of out
	payload []byte
	update  wire.BindingUpdate
	ack     wire.BindingAck
	auth    wire.MobileAuth
	random  [8]byte
}

// address is the key of maps: smaller than netip.Addr, and without pointers.
type address [16]byte

// Step tells the home agent what has happened. now never goes back.
func (m *HomeAgent) Step(now time.Duration, in Input) Output {
	m.now = max(m.now, now)
	m.reset()
	m.expire()
	switch in := in.(type) {
	case Received:
		m.received(in.Packet)
	case OnLink:
		m.heard(in.Packet)
	case SetKeys:
		m.setKeys(in.Keys)
	case SetPrefixes:
		m.setPrefixes(in.Prefixes)
	}
	return m.out
}

// NextDeadline is when to call Step with a Tick at the latest; ok is false if
// nothing is due ever.
func (m *HomeAgent) NextDeadline() (at time.Duration, ok bool) { return m.due.Next() }

func (m *HomeAgent) reset() {
	o := &m.out
	o.Join, o.Changes, o.Link = o.Join[:0], o.Changes[:0], o.Link[:0]
	o.Send, o.Local, o.Leave = o.Send[:0], o.Local[:0], o.Leave[:0]
	m.buf = m.buf[:0]
	if cap(m.buf) > maxBuffer {
		m.buf = nil
	}
}

// expire handles the deadlines that have passed. With more than maxEvents of
// them, NextDeadline has passed afterwards too.
func (m *HomeAgent) expire() {
	for range maxEvents {
		h, ok := m.due.Pop(m.now)
		if !ok {
			return
		}
		m.timeout(h)
	}
}
