package correspondent

import (
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// bindingUpdate handles the Binding Update in c.packet (RFC 6275 section 9.5).
// What fails a test is dropped in silence, unless it says otherwise below: the
// sender is not known to be who it says.
func (c *Correspondent) bindingUpdate() {
	p, bu := &c.packet, &c.update
	if wire.Decode(p, bu) != nil {
		return
	}
	local, home, careOf := p.Dst, p.Source(), p.Src
	if bu.AltCareOf.IsValid() {
		careOf = bu.AltCareOf
	}

	// The home address MUST be unicast and routable (section 9.5.1), and so the
	// care-of address (section 6.1.7). Neither is ours: packets for us are not
	// bound away, nor those for others to us.
	if !c.peer(p.Src) || !c.peer(home) || !c.peer(careOf) {
		return
	}
	if !c.updates.allow(p.Src, c.now) {
		return
	}

	id, e := c.cache.find(pair(local, home))
	if e != nil && e.state == bound && !e.live(c.now) {
		c.remove(id, e) // the Tick is late
		id, e = c.cache.find(pair(local, home))
	}

	if bu.Home {
		c.homeRegistration(e)
		return
	}
	// The Nonce Indices option MUST be there, and the Binding Authorization Data
	// option MUST be there and last (section 9.5.1). That it is last, Decode
	// has seen to.
	if !bu.HasNonces || !bu.Authenticated {
		return
	}

	remove := bu.Lifetime == 0 || careOf == home
	homeNonce := c.nonces.find(bu.HomeNonce, c.now)
	careNonce := homeNonce
	if !remove { // to delete, the care-of nonce index does not matter (section 9.5.1)
		careNonce = c.nonces.find(bu.CareOfNonce, c.now)
	}
	switch {
	case homeNonce == nil && careNonce == nil && !remove:
		c.acknowledge(wire.ExpiredNonces, bu.Sequence, 0, netip.Addr{})
		return
	case homeNonce == nil:
		c.acknowledge(wire.ExpiredHomeNonce, bu.Sequence, 0, netip.Addr{})
		return
	case careNonce == nil:
		c.acknowledge(wire.ExpiredCareOfNonce, bu.Sequence, 0, netip.Addr{})
		return
	}

	token := wire.HomeToken(&c.cfg.Key, home, homeNonce)
	if remove {
		c.kbm = wire.DeleteKey(token)
	} else {
		c.kbm = wire.NewBindingKey(token, wire.CareOfToken(&c.cfg.Key, careOf, careNonce))
	}
	signed, mh := careOf, p.Payload[:8*(1+int(p.Payload[1]))]
	if !c.kbm.Verify(mh, signed, local) {
		// To delete, the home address is what should be signed (section 6.2.7),
		// but mobile nodes and the conformance suite sign the source address where
		// there is no alternate care-of address. Both prove the home token.
		if signed = home; !remove || home == careOf || !c.kbm.Verify(mh, signed, local) {
			return
		}
	}

	if e != nil && !c.acceptable(e, bu, remove) {
		c.acknowledge(wire.SequenceOutOfWindow, e.sequence, 0, signed)
		return
	}
	if remove {
		c.unbind(id, e, pair(local, home))
		c.acknowledge(wire.Accepted, bu.Sequence, 0, signed)
		return
	}
	if c.circular(local, home, careOf) {
		return
	}
	c.bind(id, e, local, home, careOf)
}

// homeRegistration refuses to be a home agent. e is what there is about the
// home address, or nil.
func (c *Correspondent) homeRegistration(e *entry) {
	bu := &c.update
	switch {
	case bu.HasNonces:
		// With the H bit there MUST be no Nonce Indices option (RFC 6275 section
		// 9.5.1).
	case e != nil && e.live(c.now):
		c.acknowledge(wire.TypeChangeDisallowed, bu.Sequence, 0, netip.Addr{})
	case bu.Ack:
		c.acknowledge(wire.HomeRegNotSupported, bu.Sequence, 0, netip.Addr{})
	}
}

// acceptable reports whether the sequence number of a Binding Update is greater
// than that of the last, modulo 2^16 (RFC 6275 section 9.5.1). After the binding
// is gone any number will do, once a nonce shows that the update cannot be a
// replay from before.
func (c *Correspondent) acceptable(e *entry, bu *wire.BindingUpdate, remove bool) bool {
	if int16(bu.Sequence-e.sequence) > 0 {
		return true
	}
	return e.state == removed && (newer(bu.HomeNonce, e.nonce) || !remove && newer(bu.CareOfNonce, e.nonce))
}

// circular reports whether careOf is itself the home address of a binding that
// leads to home, perhaps by others. Such an update MUST be silently discarded
// (RFC 6275 section 6.1.7).
func (c *Correspondent) circular(local, home, careOf netip.Addr) bool {
	at := careOf.As16()
	for range 8 {
		_, e := c.cache.find(key{local.As16(), at})
		if e == nil || !e.live(c.now) {
			return false
		}
		if at = e.careOf; at == home.As16() {
			return true
		}
	}
	return true // too deep to be anything else
}

// bind makes or changes a binding (RFC 6275 section 9.5.2). e is what there
// is about the home address, or nil.
func (c *Correspondent) bind(id uint32, e *entry, local, home, careOf netip.Addr) {
	bu := &c.update
	if !c.cfg.Permit(home) {
		if bu.Ack {
			c.acknowledge(wire.Prohibited, bu.Sequence, 0, careOf)
		}
		return
	}
	if e == nil {
		if c.cache.full() && !c.makeRoom() {
			c.acknowledge(wire.InsufficientResources, bu.Sequence, 0, careOf)
			return
		}
		id, e = c.cache.add(pair(local, home))
		e.used = c.now // not the first to be given up
	} else if e.state == bound {
		c.lastUsed(e) // which is not to be known after the Change
	}
	c.cache.set(e, bound)
	lifetime := min(bu.Lifetime, c.cfg.MaxLifetime)
	e.careOf, e.until = careOf.As16(), c.now+lifetime
	e.sequence, e.nonce = bu.Sequence, c.nonces.newest
	e.active, e.asked, e.failures = false, 0, 0
	c.cache.arm(id, e, c.now)
	c.changed(e)
	c.acknowledge(wire.Accepted, bu.Sequence, lifetime, careOf)
}

// unbind deletes a binding, if there is one (RFC 6275 section 9.5.3). If there
// is none, the sequence number is remembered all the same, if there is room:
// the update that was to make it may be late.
func (c *Correspondent) unbind(id uint32, e *entry, k key) {
	if e == nil {
		if c.cache.full() {
			return
		}
		id, e = c.cache.add(k)
		c.cache.set(e, removed)
	}
	e.sequence, e.nonce = c.update.Sequence, c.nonces.newest
	if e.state == bound {
		c.remove(id, e)
	} else {
		c.retain(id, e)
	}
}

// acknowledge answers the Binding Update in c.packet (RFC 6275 section 9.5.4).
// One that is accepted is not answered without the A bit. signed is the care-of
// address to sign with; zero: not signed, as with statuses 136, 137 and 138.
//
// It goes to the source address of the update, with a type 2 routing header
// unless that is the home address: what the binding cache says does not matter.
func (c *Correspondent) acknowledge(status wire.Status, sequence uint16, lifetime time.Duration, signed netip.Addr) {
	p, bu := &c.packet, &c.update
	if status.OK() && !bu.Ack {
		return
	}
	var routing netip.Addr
	final := p.Src
	if home := p.Source(); home != p.Src {
		routing, final = home, home
	}
	c.ack = wire.BindingAck{Status: status, Sequence: sequence, Lifetime: lifetime}
	if signed.IsValid() {
		c.mh = c.kbm.Sign(c.mh[:0], &c.ack, p.Dst, final, signed, p.Dst)
	} else {
		c.mh = c.ack.Append(c.mh[:0], p.Dst, final)
	}
	c.sendHeader(p.Dst, p.Src, routing)
}
