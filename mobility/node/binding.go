package node

import (
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// askClient begins to send Binding Updates.
func (n *Node) askClient(c *client) {
	c.due, c.pending, c.renew, c.tries = true, false, false, 0
	c.wait = InitialBindackTimeout
}

// fetch renews both tokens while those at hand are still used: a client that
// has started anew drops what is made with old ones, in silence if the nonce
// indices happen to be good.
func (c *client) fetch(now time.Duration) {
	c.renew = true
	for _, t := range [...]*test{&c.home, &c.careOf} {
		if !t.pending {
			t.start(now)
		}
	}
}

// fetched sends an update that waits for an answer again, when both tokens are new.
func (n *Node) fetched(c *client) {
	if c.goal == ownership && c.renew && c.pending && !c.home.pending && !c.careOf.pending {
		c.renew, c.due = false, true
	}
	n.advance(c)
}

// advance does what is due with a client, and sets its deadline.
func (n *Node) advance(c *client) {
	switch c.goal {
	case standby:
		n.advanceReady(c)
	case ownership:
		n.advanceOwned(c)
	case deletion:
		n.advanceDeletion(c)
	}
	n.schedule(c)
}

// tokenMargin is how long before its end a token of a prepared client is
// renewed: enough for lost messages.
const tokenMargin = 30 * time.Second

// advanceReady keeps tokens at hand. Neither test changes anything at the
// client (RFC 6275 section 9.4), and the answer to a home test finds who asked
// by its cookie: the owner does not notice.
func (n *Node) advanceReady(c *client) {
	if c.until <= n.now {
		n.forget(c, Event{})
		n.event(Event{Client: c.addr, Kind: Lapsed})
		return
	}
	if c.careOf.given(n.now, n.cfg.Attempts) && !c.maybe(n.now) {
		n.unable(c, Unsupported, Silent, 0)
		return
	}
	for _, t := range [...]*test{&c.home, &c.careOf} {
		if !t.pending && t.expires <= n.now+tokenMargin {
			t.start(n.now)
		}
	}
	if there := c.tokens(n.now); there != c.told {
		c.told = there
		if there {
			n.event(Event{Client: c.addr, Kind: Ready, Until: c.until})
		}
	}
	n.sendHomeTest(c)
	n.sendCareOfTest(c)
}

func (n *Node) advanceOwned(c *client) {
	if c.expires > 0 && c.expires <= n.now {
		c.expires = 0
		if c.using {
			n.unbound(c, Expired)
		}
		if !c.pending {
			c.due = true
		}
	}
	live := c.expires > 0
	if live && !c.pending && !c.due && c.refresh <= n.now {
		n.askClient(c)
	}
	if c.pending && !c.due && c.next <= n.now {
		// No answer. Until there is one, tunnel: the update may be lost.
		if !live && c.using {
			n.unbound(c, Silent)
		}
		c.due = true
		if c.tries > 1 {
			c.fetch(n.now)
		}
	}

	if c.careOf.given(n.now, n.cfg.Attempts) && !c.maybe(n.now) {
		// The client itself does not answer, by the direct way. Once there may
		// be a binding, we do not give up, at the slow rate (RFC 6275 section
		// 11.8): with the care-of address of the owner before, the client would
		// send to where nobody is for as long as the binding lasts.
		n.unable(c, Unsupported, Silent, 0)
		return
	}
	if c.home.given(n.now, n.cfg.Attempts) && c.due && !live && !c.wary {
		// Contact, home agent or client do not answer: that can pass. Go on at
		// the slow rate (RFC 6275 section 11.8).
		n.unbound(c, Silent)
	}
	if c.due {
		// RFC 6275 section 11.6.1: only those tests that it takes.
		for _, t := range [...]*test{&c.home, &c.careOf} {
			if !t.usable(n.now) && !t.pending {
				t.start(n.now)
			}
		}
		if c.tokens(n.now) {
			n.sendUpdate(c)
		}
	}
	n.sendHomeTest(c)
	n.sendCareOfTest(c)
}

// advanceDeletion deletes a binding: for that the home keygen token is enough
// (RFC 6275 sections 5.2.6, 11.6.1).
func (n *Node) advanceDeletion(c *client) {
	late := c.pending && !c.due && c.next <= n.now
	if late && int(c.tries) >= n.cfg.Attempts || c.home.given(n.now, n.cfg.Attempts) {
		n.released(c, Silent, 0)
		return
	}
	if late {
		c.due = true
	}
	if c.due {
		if c.home.usable(n.now) {
			n.sendUpdate(c)
		} else if !c.home.pending {
			c.home.start(n.now)
		}
	}
	n.sendHomeTest(c)
}

// schedule sets the client's deadline.
func (n *Node) schedule(c *client) {
	if n.clients[c.addr] != c || c.goal == nothing {
		return
	}
	var at time.Duration
	sooner := func(t time.Duration) {
		if at == 0 || t < at {
			at = t
		}
	}
	if c.home.pending {
		sooner(c.home.next)
	}
	if c.careOf.pending {
		sooner(c.careOf.next)
	}
	switch {
	case c.goal == standby:
		sooner(c.until)
		for _, t := range [...]*test{&c.home, &c.careOf} {
			if !t.pending {
				sooner(t.expires - tokenMargin)
			}
		}
	case c.due:
		if c.home.usable(n.now) && (c.goal == deletion || c.careOf.usable(n.now)) {
			sooner(c.updates[0])
		}
	case c.pending:
		sooner(c.next)
	case c.expires > 0:
		sooner(c.refresh)
	}
	if c.expires > 0 {
		sooner(c.expires)
	}
	if at == 0 {
		n.timers.Remove(c)
		return
	}
	// Something that is due and cannot be done must not keep Step busy.
	n.timers.Set(c, max(at, n.now+1))
}

// sendUpdate sends a Binding Update to a client (RFC 6275 section 11.7.2),
// with the A bit, unless the rate limit says later.
func (n *Node) sendUpdate(c *client) {
	if _, ok := c.updates.take(n.now); !ok {
		return
	}
	if c.tries == 0 {
		c.sentAt = n.now
	}
	c.due, c.pending = false, true
	c.possible = n.now + MaxRRBindingLifetime
	c.seq++ // RFC 6275 section 11.8: retransmissions too
	c.tries = min(c.tries, 254) + 1
	c.next, c.wait = n.now+c.wait, min(2*c.wait, MaxBindackTimeout)

	n.bu = wire.BindingUpdate{Sequence: c.seq, Ack: true, HasNonces: true, HomeNonce: c.home.nonce}
	careOf := n.cfg.CareOf
	if c.goal == ownership {
		n.bu.Lifetime = n.lifetime()
		n.bu.CareOfNonce = c.careOf.nonce
		c.key = wire.NewBindingKey(c.home.token, c.careOf.token)
	} else {
		// To delete a binding is to bind the home address to itself. The option
		// says so, which leaves no doubt about the address that the
		// authenticator covers (RFC 6275 sections 6.2.7, 9.5.1).
		careOf = n.home
		n.bu.AltCareOf = n.home
		c.key = wire.DeleteKey(c.home.token)
	}
	n.mh = c.key.Sign(n.mh[:0], &n.bu, n.home, c.addr, careOf, c.addr)
	n.send(&wire.Packet{Src: n.cfg.CareOf, Dst: c.addr, Home: n.home, Protocol: wire.Mobility, Payload: n.mh})

	if c.goal == ownership && !c.using && !c.wary && !c.confirmed {
		c.using = true
		n.event(Event{Client: c.addr, Kind: Bound, Until: n.now + n.bu.Lifetime})
	}
}

// lifetime is what is asked of a client: not more than what is left of the home
// registration (RFC 6275 section 11.7.2), where this node has it.
func (n *Node) lifetime() time.Duration {
	l := n.cfg.CorrespondentLifetime
	if left := n.reg.expires - n.now; left > 0 {
		l = min(l, max(left, wire.LifetimeUnit))
	}
	return l - l%wire.LifetimeUnit
}

// clientAck takes a Binding Acknowledgement of a client (RFC 6275 section
// 11.7.3); mh is the mobility header with it.
func (n *Node) clientAck(c *client, mh []byte) {
	ba := &n.ba
	if !c.pending {
		return
	}
	s := ba.Status
	switch s {
	case wire.ExpiredHomeNonce, wire.ExpiredCareOfNonce, wire.ExpiredNonces:
		// The client cannot sign these (RFC 6275 section 9.5.4).
		if !ours(ba.Sequence, c.seq, 1) {
			return
		}
		n.nonceExpired(c, s)
		return
	}
	careOf := n.cfg.CareOf
	if c.goal == deletion {
		careOf = n.home
	}
	if !ba.Authenticated || !c.key.Verify(mh, careOf, c.addr) {
		return
	}
	if s == wire.SequenceOutOfWindow {
		n.clientSequence(c, ba.Sequence)
		return
	}
	// Any of those that wait: where the way is long, the answer to the first
	// comes after the second has gone.
	if !ours(ba.Sequence, c.seq, c.tries) {
		return
	}
	if c.goal == deletion {
		if s.OK() {
			n.released(c, 0, 0)
		} else {
			n.released(c, Refused, s)
		}
		return
	}
	granted := min(ba.Lifetime, n.cfg.CorrespondentLifetime)
	if !s.OK() || granted == 0 {
		n.unable(c, Unbound, Refused, s)
		return
	}
	c.pending, c.due, c.renew, c.wary, c.tries, c.refused = false, false, false, false, 0, 0
	c.confirmed = true
	c.home.stop()
	c.careOf.stop()
	c.expires = c.sentAt + granted
	c.refresh = c.sentAt + refreshAfter(granted)
	if !c.using {
		c.using = true
		n.event(Event{Client: c.addr, Kind: Bound, Until: c.expires})
	}
	n.event(Event{Client: c.addr, Kind: Confirmed, Status: s, Until: c.expires})
	if c.widen {
		c.widen = false
		c.seq += fence - 1
		n.askClient(c)
	}
	n.advance(c)
}

// nonceExpired takes status 136, 137 or 138: the tokens concerned are fetched
// again (RFC 6275 section 11.7.3). Nobody vouches for such a message: the
// binding that there is stays, and after some the node gives up.
func (n *Node) nonceExpired(c *client, s wire.Status) {
	if c.refused >= maxRefusals {
		n.unable(c, Unbound, Refused, s)
		return
	}
	c.refused++
	if s != wire.ExpiredCareOfNonce {
		c.home.expires = 0
	}
	if s != wire.ExpiredHomeNonce {
		c.careOf.expires = 0
	}
	if c.using && c.expires == 0 {
		n.unbound(c, Lost)
	}
	n.askClient(c)
	n.advance(c)
}

// clientSequence takes status 135 with the number that the client has stored.
// It is adopted, unless the client has acknowledged a binding to this node
// before: then another node has bound it since, and this one is not the owner
// any more.
//
// However it came about, a node that may have used the same numbers is to be
// left behind for good: see [fence].
func (n *Node) clientSequence(c *client, stored uint16) {
	switch {
	case oldNews(stored, c.seq, c.tries, c.confirmed):
		c.widen = true
	case c.confirmed && c.goal == ownership:
		n.superseded(c)
	case c.confirmed:
		n.released(c, Superseded, 0)
	case c.refused >= maxRefusals:
		n.unable(c, Unbound, Refused, wire.SequenceOutOfWindow)
	default:
		c.refused++
		c.seq, c.widen = stored, true
		c.due, c.tries = true, 0
		n.advance(c)
	}
}

// superseded: another node has bound the client.
func (n *Node) superseded(c *client) {
	e := Event{Client: c.addr, Kind: Unbound, Reason: Superseded}
	n.forget(c, Event{})
	n.event(e)
}

// refreshRequest takes a Binding Refresh Request (RFC 6275 section 11.7.4):
// return routability from the beginning, then a Binding Update.
func (n *Node) refreshRequest(c *client) {
	if c.goal != ownership || c.expires <= n.now || c.pending || c.due {
		return
	}
	c.home.stale, c.careOf.stale = true, true
	n.askClient(c)
	n.advance(c)
}

// bindingLost takes a Binding Error 1: the client has no binding (RFC 6275
// section 11.3.6). That can be because data was faster than the update.
func (n *Node) bindingLost(c *client) {
	switch {
	case c.goal == deletion:
		n.released(c, 0, 0)
	case c.goal == ownership && c.using:
		n.unbound(c, Lost)
		// There may be a binding all the same, with another care-of address
		// (RFC 6275 section 9.3.1).
		c.expires = 0
		if c.pending {
			c.due = true
		} else {
			n.askClient(c)
			c.fetch(n.now)
		}
		n.advance(c)
	}
}

// optionRefused takes a Parameter Problem about a Home Address option that came
// with data. RFC 6275 section 11.3.5 wants it ignored, because who takes part
// in return routability knows the option. But the client may have stopped to
// take part: then it will refuse a Binding Update too, or not answer.
func (n *Node) optionRefused(c *client) {
	if c.goal == ownership && c.using && !c.pending && !c.due {
		c.expires = 0
		n.askClient(c)
		n.advance(c)
	}
}
