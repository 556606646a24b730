// Package relay has the rules of a contact node for what is not its own: the
// packets of clients that another node owns, and the home tests of other nodes.
//
// # Theory of operation
//
// Only the contact node is registered with the home agent, so everything that
// is sent to the home address without a binding comes to it, in a tunnel
// (RFC 6275 section 10.4.2), and everything that leaves with the home address
// as its source must go back through that tunnel (section 11.3.1). [Relay]
// stands before the contact's own stack and decides, for each tunnel packet,
// whether it is for this node or for another.
//
//	client ──► home agent ══► contact ── Relay ──► this node's stack
//	                                       ║
//	                                       ╚═════► the node that owns the client
//
//	client ◄── home agent ◄══ contact ◄═══ any node (source: home address)
//	   ▲                         │
//	   └─────────────────────────┘ with DirectReturn
//
// A client is an IPv6 address. Who owns it is told by [SetOwner]; a client of
// whom nothing is known belongs to the contact, for it is new. The answer to a
// home test goes to the node that asked, owner or not: a node prepares to take
// over a client before it owns it.
//
// # No loops
//
// What comes from the home agent goes to a node or stays here. What comes from
// a node goes to the home agent, or out, or stays here. So a packet for the
// home address is relayed once at most: should the owner be another contact
// that thinks the same of us, the packet comes to it from a node, and stays
// there. A packet from the home address leaves through the home agent, which
// does not tunnel it to us again unless it is for the home address, and those
// are not relayed. And in case somebody else makes a loop, every relay lowers
// the hop limit (RFC 2473 section 3.1).
//
// # Trust
//
// The outer source address decides what may be done with a packet: that of the
// home agent, of a node, or a stranger's, which is dropped. That is as good as
// the network's protection against forged sources between them. The home agent
// tells our tunnel packets from others by nothing else either (RFC 6275 section
// 10.4.5).
//
// # A driver's loop
//
//	r, err := relay.New(relay.Config{Home: dsa, CareOf: coa, HomeAgent: ha})
//	...
//	r.Step(now(), relay.SetNodes{Nodes: nodes})
//	for p := range toCareOf { // IPv6 in IPv6, and ICMPv6
//		out := r.Step(now(), relay.Received{Packet: p})
//		for _, p := range out.Send {
//			network.Write(p)
//		}
//		for _, p := range out.Local {
//			shim.Deliver(p)
//		}
//	}
package relay

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// Config is what a [Relay] needs to know.
type Config struct {
	Home      netip.Addr // the home address: that of the distributed server
	CareOf    netip.Addr // the contact's own care-of address
	HomeAgent netip.Addr // where the tunnel ends

	// DirectReturn lets packets of nodes with the home address as source go
	// straight out, where the network lets such packets pass, instead of
	// through the home agent. Mobility headers take the tunnel all the same.
	DirectReturn bool

	// MaxClients is how many clients' owners are remembered; 0 is 1<<20.
	MaxClients int

	// MaxPaths is how many home tests may wait for their answer; 0 is 1<<16.
	// Each node has an equal share.
	MaxPaths int

	// PathLifetime is how long, at least, an answer to a home test is waited
	// for; 0 is 10 s. Twice that, at most.
	PathLifetime time.Duration
}

// Relay decides about tunnel packets that come to the contact node. It has no
// states of its own but tables; a packet takes one of these ways:
//
//	          outer source
//	               │
//	   ┌───────────┼─────────────────────┐
//	home agent    node               anyone else: dropped
//	   │           │
//	   │           ├ from the home address ── home test ─► remember who asked
//	   │           │                    └──────────┬─────────┘
//	   │           │                               ▼
//	   │           │            tunnel to the home agent, or straight out
//	   │           └ to the home address: relayed already ─► this node
//	   │
//	   ├ home test's answer ──────────────► the node that asked, or this one
//	   ├ ICMPv6 error about what was sent ► owner of the client it was sent to
//	   └ anything else ───────────────────► owner of the client that sent it
//
// Packets outside of a tunnel are looked at if they are ICMPv6 errors about
// tunnel packets that were sent from here (icmp.go).
type Relay struct {
	home, careOf, agent netip.Addr
	homeKey, careOfKey  key
	direct              bool

	clients clients
	peers   peers
	paths   paths
	errors  bucket

	hot     wire.HomeTest     // for decoding into
	hoti    wire.HomeTestInit // likewise
	scratch []byte            // an ICMPv6 error that is still to be tunnelled
	packet  []byte            // what send[0] points to
	send    [1][]byte
	local   [1][]byte
}

// New returns a Relay without nodes and clients: everything that the home
// agent sends is for this node.
func New(c Config) (*Relay, error) {
	for _, a := range []struct {
		name string
		addr netip.Addr
	}{{"home", c.Home}, {"care-of", c.CareOf}, {"home agent's", c.HomeAgent}} {
		if !usable(a.addr) {
			return nil, fmt.Errorf("relay: config: %s address %v is not a global unicast IPv6 address", a.name, a.addr)
		}
	}
	if c.Home == c.CareOf || c.Home == c.HomeAgent || c.CareOf == c.HomeAgent {
		return nil, errors.New("relay: config: home, care-of and home agent's address must differ")
	}
	if c.MaxClients < 0 || c.MaxPaths < 0 || c.PathLifetime < 0 {
		return nil, errors.New("relay: config: negative limit")
	}
	r := &Relay{
		home: c.Home, careOf: c.CareOf, agent: c.HomeAgent,
		homeKey: c.Home.As16(), careOfKey: c.CareOf.As16(),
		direct: c.DirectReturn,
	}
	r.peers.init(c.CareOf, c.HomeAgent)
	r.clients.init(orDefault(c.MaxClients, 1<<20))
	r.paths.init(orDefault(c.MaxPaths, 1<<16), orDefault(c.PathLifetime, 10*time.Second))
	return r, nil
}

func orDefault[T int | time.Duration](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

// Input is one of [Received], [SetNodes], [SetOwner], [Forget], [Tick].
type Input interface{ input() }

// Received is a packet to the care-of address: IPv6 in IPv6, or ICMPv6.
type Received struct{ Packet []byte }

// SetNodes replaces the list of care-of addresses of the cluster's nodes. Only
// they may send through this one. Which clients they own does not change.
type SetNodes struct{ Nodes []netip.Addr }

// SetOwner tells whose a client is. It is ignored ([Stale]) if more is known
// already: if it comes with an older epoch than the last one.
type SetOwner struct {
	Client netip.Addr
	Owner  netip.Addr // care-of address of the node; our own, or none: this node
	Epoch  uint64
}

// Forget makes a client unknown, unless it is known with a later epoch: then
// it is [Stale]. It is said when nothing of the client is left anywhere and
// nothing about it is under way: epochs are forgotten too.
type Forget struct {
	Client netip.Addr
	Epoch  uint64
}

// Tick makes time pass, and nothing else.
type Tick struct{}

func (Received) input() {}
func (SetNodes) input() {}
func (SetOwner) input() {}
func (Forget) input()   {}
func (Tick) input()     {}

// Output is what a step asks for: one packet at most. It is valid until the
// next step.
type Output struct {
	Send  [][]byte // whole packets, for the network
	Local [][]byte // for this node itself: the packets received, unchanged, still in their tunnel

	// Dropped says why an input had no effect. With a packet in Send, that
	// packet is the ICMPv6 error that says so to the sender.
	Dropped Reason
}

// Reason is why an input had no effect.
type Reason uint8

// Reasons.
const (
	None      Reason = iota
	NotTunnel        // neither IPv6 in IPv6 nor ICMPv6, or not to the care-of address
	Malformed        // the packet, or the one inside of it
	Stranger         // a tunnel from neither the home agent nor a node
	Spoofed          // addresses inside of the tunnel that have no business there
	HopLimit         // used up
	TooBig           // for the tunnel onwards
	Limited          // more home tests of a node, or ICMPv6 errors, than there may be
	NoAnswer         // an ICMPv6 error about what no error may be sent about
	Stale            // older than what is known
	Full             // no room for another client
	Invalid          // an address that cannot be a client or an owner

	reasons
)

var reasonNames = [reasons]string{
	"none", "not a tunnel packet", "malformed", "from a stranger", "spoofed",
	"hop limit used up", "too big", "limited", "no answer", "stale", "full", "invalid",
}

func (r Reason) String() string {
	if r >= reasons {
		return fmt.Sprintf("reason %d", uint8(r))
	}
	return reasonNames[r]
}

// Step takes an input. now never goes back.
func (r *Relay) Step(now time.Duration, in Input) Output {
	r.paths.advance(now, &r.peers)
	switch in := in.(type) {
	case Received:
		return r.received(now, in.Packet)
	case SetNodes:
		r.setNodes(in.Nodes)
	case SetOwner:
		return drop(r.setOwner(in))
	case Forget:
		return drop(r.forget(in))
	}
	return Output{}
}

// NextDeadline is when Step wants a [Tick]: when home tests without an answer
// are to be forgotten. ok is false if there are none.
func (r *Relay) NextDeadline() (at time.Duration, ok bool) { return r.paths.deadline() }

// Clients are the clients that are known, in no particular order, in the form
// in which another contact's Relay is told of them. The tables must not be
// changed meanwhile.
func (r *Relay) Clients() iter.Seq[SetOwner] {
	return func(yield func(SetOwner) bool) {
		for k, c := range r.clients.byAddr {
			if !yield(SetOwner{Client: netip.AddrFrom16(k), Owner: r.peers.list[c.owner].addr, Epoch: c.epoch}) {
				return
			}
		}
	}
}

// Stats are numbers about a Relay.
type Stats struct {
	Clients int // known, those of this node included
	Paths   int // home tests of other nodes that wait for their answer
}

// Stats returns numbers for reports.
func (r *Relay) Stats() Stats {
	return Stats{Clients: len(r.clients.byAddr), Paths: r.paths.len()}
}

func drop(why Reason) Output { return Output{Dropped: why} }

// usable reports whether a can be that of a node or a client: RFC 6275 section
// 6.1.7 asks for a unicast-routable address of home and care-of addresses.
func usable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast()
}
