package node

import (
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// client is an entry of the Binding Update List (RFC 6275 section 11.1), or
// what is left of one: a verdict and the rate limits.
//
//	             both tokens
//	 Preparing ───────────────► Prepared ──┐ tokens are renewed
//	    │    ◄───────────────      │   ▲───┘
//	    │      a token expired     │
//	    │ Bind                     │ Bind: Binding Update at once
//	    ▼        both tokens       ▼           accepted
//	 Testing ────────────────► Binding ──────────────────► Established ──┐
//	  ▲   ▲  Binding Update     │  │ ▲                      │  ▲  │  ▲───┘
//	  │   └─────────────────────┘  │ └──────────────────────┘  │  │ refreshed
//	  │       136, 137, 138        │    Binding Error 1        │  │
//	  │                            │                  accepted │  │ expired
//	  │ Optimise,                  │ silence                   │  ▼
//	  │ Bind without tokens        │ refusal               Testing, Binding
//	                               │ Parameter Problem
//	                               │ Binding Error 2
//	                               ▼
//	                             Unable (also from Preparing and Testing)
//
//	Release  from any owned state to Releasing, which repeats a Binding Update
//	         of lifetime 0 until it is acknowledged, or silence has lasted
//	Abandon  from any state to None; and so do the end of a preparation, the
//	         end of Unable, and status 135 in an Established binding's
//	         refresh: another node is the owner
//	135      otherwise: the number that the client has stored is taken over,
//	         and the state is Binding once more
type client struct {
	addr  netip.Addr
	index int // in Node.order
	goal  goal

	home, careOf test

	// The Binding Update under way.
	due     bool // one is to be sent as soon as the tokens are there
	pending bool // one waits for its acknowledgement
	tries   uint8
	refused uint8         // refusals in a row, each of which led to another attempt
	renew   bool          // with the tokens that are being fetched it is sent again
	widen   bool          // once accepted it is sent again, a fence further
	next    time.Duration // retransmission
	wait    time.Duration
	sentAt  time.Duration // of the first one that waits
	updates limit
	seq     uint16          // of the last one
	key     wire.BindingKey // of the last one

	// The binding at the client.
	possible  time.Duration // until when there may be one, of this node or of the one before
	confirmed bool          // acknowledged since this node has owned the client
	using     bool          // the driver has been told Bound
	wary      bool          // the driver has been told Unbound, and Bound waits for an acknowledgement
	expires   time.Duration // as acknowledged; 0: there is none
	refresh   time.Duration

	told    bool          // the driver has been told Ready
	until   time.Duration // end of the preparation, or of the memory of a verdict
	verdict Event         // why route optimisation is not tried; Kind 0: it may be
}

// goal is what is wanted of the client's binding.
type goal uint8

const (
	nothing   goal = iota // the entry only remembers
	standby               // that one can be made at once
	ownership             // that there is one
	deletion              // that there is none
)

func (c *client) state(now time.Duration) State {
	switch {
	case c.goal == standby && c.tokens(now):
		return Prepared
	case c.goal == standby:
		return Preparing
	case c.goal == deletion:
		return Releasing
	case c.goal == ownership && c.expires > now:
		return Established
	case c.goal == ownership && c.pending:
		return Binding
	case c.goal == ownership:
		return Testing
	case c.verdict.Until > now:
		return Unable
	}
	return None
}

// maybe reports whether the client may have a binding, ours or another node's.
func (c *client) maybe(now time.Duration) bool { return c.possible > now }

// tokens reports whether there is all that a Binding Update takes.
func (c *client) tokens(now time.Duration) bool { return c.home.usable(now) && c.careOf.usable(now) }

// The driver's words.

func (n *Node) optimise(addr netip.Addr) {
	c := n.entry(addr)
	if c == nil || c.goal == ownership || n.remembered(c) {
		return
	}
	n.take(c, &Grant{})
	n.advance(c)
}

func (n *Node) prepare(addr netip.Addr, g *Grant) {
	c := n.entry(addr)
	if c == nil || c.goal == ownership {
		return
	}
	// Whoever grants something has had answers: what we remember is out of date.
	if !g.answered() && n.remembered(c) {
		return
	}
	if c.goal != standby {
		n.reset(c, standby)
	}
	c.until = n.now + n.cfg.PrepareLifetime
	c.told = false
	n.accept(c, g)
	n.advance(c)
}

func (n *Node) bind(addr netip.Addr, g *Grant) {
	c := n.entry(addr)
	if c == nil || !g.answered() && n.remembered(c) {
		return
	}
	n.take(c, g)
	c.wait = n.cfg.BindTimeout
	c.careOf.hurry(n.now)
	c.home.hurry(n.now)
	n.advance(c)
}

// fence is by how much the first sequence number of a new owner is greater than
// the last one of the owner before: where that is told in the grant, with the
// first Binding Update; where it has to be learnt from status 135, with one
// more after that. A node that has not heard that it is not the owner any more
// would have to send as many updates, all of them rejected and each rejection
// lost, to be accepted again. And one whose number is rejected for another that
// is not its own knows where it stands.
const fence = 256

func (n *Node) abandon(addr netip.Addr) {
	if c := n.clients[addr]; c != nil && c.goal != nothing {
		n.forget(c, Event{})
	}
}

func (n *Node) release(addr netip.Addr) {
	c := n.clients[addr]
	if c == nil {
		n.event(Event{Client: addr, Kind: Released})
		return
	}
	if c.goal == deletion {
		return
	}
	if c.goal != ownership || !c.maybe(n.now) {
		n.released(c, 0, 0)
		return
	}
	c.goal = deletion
	c.using, c.expires, c.refused = false, 0, 0
	c.careOf.stop()
	c.home.hurry(n.now)
	n.askClient(c)
	n.advance(c)
}

// entry is the client's entry, a new one if need be; nil if that cannot be,
// which has been told.
func (n *Node) entry(addr netip.Addr) *client {
	if c := n.clients[addr]; c != nil {
		return c
	}
	if !n.acceptable(addr) {
		n.event(Event{Client: addr, Kind: Unbound, Reason: BadAddress})
		return nil
	}
	if len(n.order) >= n.cfg.MaxClients {
		// What is only remembered makes room, unless it limits a rate.
		old, ok := n.spare.Pop(n.now)
		if !ok {
			n.event(Event{Client: addr, Kind: Unbound, Reason: Full})
			return nil
		}
		n.remove(old)
	}
	c := &client{addr: addr, index: len(n.order), seq: n.sequence()}
	n.clients[addr] = c
	n.order = append(n.order, c)
	return c
}

func (n *Node) remove(c *client) {
	n.timers.Remove(c)
	n.idle.Remove(c)
	n.spare.Remove(c)
	last := n.order[len(n.order)-1]
	n.order[c.index], last.index = last, c.index
	n.order[len(n.order)-1] = nil
	n.order = n.order[:len(n.order)-1]
	delete(n.clients, c.addr)
}

// remembered tells the driver a verdict that still holds.
func (n *Node) remembered(c *client) bool {
	if c.goal != nothing || c.verdict.Until <= n.now {
		return false
	}
	n.event(c.verdict)
	return true
}

// reset gives an entry a new goal. What it keeps is true whoever owns the
// client: tokens, rate limits, the last number used.
func (n *Node) reset(c *client, g goal) {
	n.idle.Remove(c)
	n.spare.Remove(c)
	*c = client{
		addr: c.addr, index: c.index, goal: g,
		home: c.home, careOf: c.careOf,
		updates: c.updates, seq: c.seq, possible: c.possible,
	}
}

// take makes the client ours: a Binding Update is due.
func (n *Node) take(c *client, g *Grant) {
	n.reset(c, ownership)
	n.accept(c, g)
	if c.maybe(n.now) {
		c.seq += fence - 1
	}
	n.askClient(c)
}

// accept takes over what a grant has.
func (n *Node) accept(c *client, g *Grant) {
	if *g == (Grant{}) {
		return
	}
	if !c.maybe(n.now) || int16(g.Sequence-c.seq) > 0 {
		c.seq = g.Sequence
	}
	c.possible = max(c.possible, n.now+min(g.Binding, MaxRRBindingLifetime))
	if until := n.now + min(g.Remaining, MaxTokenLifetime); g.Remaining > 0 && until > c.home.expires {
		c.home.stop()
		c.home.token, c.home.nonce, c.home.expires = g.HomeToken, g.HomeNonce, until
	}
}

// forget ends what is going on with a client. A verdict is remembered for a
// time, and the rate limits for as long as they limit. So is a care-of keygen token
// while it can be used (RFC 6275 section 11.6.1): it is about our care-of address,
// which stays, and the client may come back.
func (n *Node) forget(c *client, verdict Event) {
	n.timers.Remove(c)
	home, careOf, updates := c.home.limit, test{limit: c.careOf.limit}, c.updates
	if verdict.Kind == 0 && c.careOf.usable(n.now+tokenMargin) {
		careOf.token, careOf.nonce, careOf.expires = c.careOf.token, c.careOf.nonce, c.careOf.expires
	}
	*c = client{addr: c.addr, index: c.index, seq: c.seq, careOf: careOf, updates: updates, verdict: verdict}
	c.home.limit = home
	limits := max(home.last(), careOf.last(), updates.last())
	c.until = max(verdict.Until, limits, careOf.expires-tokenMargin)
	if c.until <= n.now {
		n.remove(c)
		return
	}
	n.idle.Set(c, c.until)
	if c.until > limits {
		n.spare.Set(c, limits)
	}
}

// unable ends the attempt to optimise the route and remembers why.
func (n *Node) unable(c *client, kind Kind, r Reason, s wire.Status) {
	e := Event{Client: c.addr, Kind: kind, Reason: r, Status: s, Until: n.now + n.cfg.UnsupportedLifetime}
	if c.goal == deletion {
		n.released(c, r, s)
		return
	}
	n.forget(c, e)
	n.event(e)
}

func (n *Node) released(c *client, r Reason, s wire.Status) {
	e := Event{Client: c.addr, Kind: Released, Reason: r, Status: s}
	n.forget(c, Event{})
	n.event(e)
}

// unbound tells the driver to tunnel, until an acknowledgement comes.
func (n *Node) unbound(c *client, r Reason) {
	c.using, c.wary = false, true
	n.event(Event{Client: c.addr, Kind: Unbound, Reason: r})
}
