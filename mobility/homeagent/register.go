package homeagent

import (
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// bindingUpdate takes a Binding Update (RFC 6275 sections 9.5.1, 10.3). b is
// the packet.
func (m *HomeAgent) bindingUpdate(p *wire.Packet, b []byte) {
	u := &m.update
	if wire.Decode(p, u) != nil {
		return
	}
	if !u.Home && u.MobileAuth == nil {
		// For a correspondent node, if there is one on this host.
		m.out.Local = append(m.out.Local, m.copy(b))
		return
	}
	addr, ok := m.homeAddress(p, u)
	if !ok {
		return
	}
	r := request{
		source:    p.Src,
		careOf:    p.Src,
		sequence:  u.Sequence,
		lifetime:  u.Lifetime,
		linkLocal: u.LinkLocal && m.cfg.Link != nil,
	}
	if u.AltCareOf.IsValid() {
		r.careOf = u.AltCareOf
	}
	h := m.homes[addr.As16()]
	if h == nil {
		m.refuseStranger(addr, &r)
		return
	}
	r.stamp = u.MobileAuth.Timestamp
	if u.MobileAuth.SPI != h.spi || !h.key.Verify(p.Payload, r.careOf, addr) {
		if h.forged.allow(m.now, answerInterval, answerBurst) {
			m.refuse(h, &r, wire.AuthFail)
		}
		return
	}
	switch m.judge(h, &r) {
	case absent:
		if h.stale.allow(m.now, answerInterval, answerBurst) {
			m.refuse(h, &r, wire.MessageIDRequired)
		}
		return
	case again:
		// Doubled on the way, or replayed. If it is our answer that was lost,
		// the mobile node asks again with a greater sequence number.
		return
	case stale:
		if h.stale.allow(m.now, answerInterval, answerBurst) {
			m.refuseStale(h, &r)
		}
		return
	}

	// From here on it is authentic and new: nobody else can make it, nor this
	// one be used twice.
	h.stamp, h.stamped = r.stamp, r.sequence
	if h.state == bound && !m.bound(h) {
		m.release(h, wire.Accepted) // over, but the deadline has not been handled
	}
	m.authentic(h, &r, u)
}

// homeAddress makes the checks of a Binding Update whose failure is met with
// silence, and returns the home address.
func (m *HomeAgent) homeAddress(p *wire.Packet, u *wire.BindingUpdate) (home netip.Addr, ok bool) {
	home = p.Source()
	careOf := p.Src
	if u.AltCareOf.IsValid() {
		careOf = u.AltCareOf
	}
	switch {
	case u.MobileAuth == nil:
		return home, false // RFC 4285 section 5
	case u.HasNonces:
		return home, false // RFC 6275 section 9.5.1: none in a home registration
	case !routable(home):
		return home, false // section 9.5.1
	case !p.Home.IsValid() && u.Lifetime != 0 && careOf != home:
		return home, false // section 10.3.1: only who is at home needs no Home Address option
	case careOf != home && !m.careOfAllowed(careOf):
		return home, false
	}
	return home, true
}

// careOfAllowed reports whether a may be a care-of address: unicast and
// routable (RFC 6275 section 6.1.7), not ours, and not a home address: packets
// would go in circles (section 9.5.1).
func (m *HomeAgent) careOfAllowed(a netip.Addr) bool {
	if !routable(a) || a == m.cfg.Addr || m.homes[a.As16()] != nil {
		return false
	}
	for i := range m.prefixes {
		if m.prefixes[i].anycast == a {
			return false
		}
	}
	return true
}

// authentic processes a Binding Update that is from the mobile node.
func (m *HomeAgent) authentic(h *entry, r *request, u *wire.BindingUpdate) {
	known := m.known(h)
	switch {
	case m.compared(h) && !h.greater(r.sequence):
		m.refuseSequence(h, r)
	case !u.Home:
		// Section 9.5.1: the type of a registration does not change. To begin
		// with there is none but home registrations here.
		if known {
			m.refuse(h, r, wire.TypeChangeDisallowed)
		}
	case m.homePrefix(h.addr) == nil:
		m.refuse(h, r, wire.NotHomeSubnet)
	case r.lifetime == 0 || r.careOf == h.addr:
		m.deregister(h, r)
	case !known && m.inUse >= m.maxBindings():
		m.refuse(h, r, wire.InsufficientResources)
	default:
		m.register(h, r)
	}
}

func (m *HomeAgent) maxBindings() int {
	if m.cfg.MaxBindings > 0 {
		return m.cfg.MaxBindings
	}
	return len(m.homes)
}

// register binds h, after Duplicate Address Detection if there is no binding
// yet and there is a link (RFC 6275 section 10.3.1).
func (m *HomeAgent) register(h *entry, r *request) {
	h.sequence = r.sequence
	switch {
	case h.state == away && m.cfg.Link != nil:
		m.inUse++
		h.state = tentative
		h.pending = new(request)
		*h.pending = *r
		m.join(h.addr) // before the first solicitation (RFC 4862 section 5.4.2)
		m.detectDuplicates(h)
	case h.state == tentative:
		// Retransmitted, or from elsewhere: one answer to the last of them.
		*h.pending = *r
		if !r.linkLocal {
			m.forgetLinkLocal(h)
		} else if !h.linkLocal {
			m.detectDuplicates(h)
		}
	default:
		m.bind(h, r)
	}
}

// bind makes the binding what r says, and acknowledges it.
func (m *HomeAgent) bind(h *entry, r *request) {
	lifetime, status, ok := m.grant(h.addr, r.lifetime)
	if !ok {
		// The prefix ends within four seconds.
		m.release(h, wire.NotHomeSubnet)
		m.refuse(h, r, wire.NotHomeSubnet)
		return
	}
	begins := h.state != bound
	if h.state == away {
		m.inUse++
	}
	h.state, h.pending = bound, nil
	if h.careOf != r.careOf {
		h.careOf, h.mtu = r.careOf, 0
	}
	h.until = m.now + lifetime
	switch {
	case begins:
		h.timer = m.nextAdvert(h)
	case h.unheard && h.adverts == 0:
		// RFC 6275 section 10.6.2: it did not hear the last prefixes, and is
		// there again.
		h.timer, h.unheard = m.now, false
	}
	if m.cfg.Link != nil {
		m.speakFor(h, r.linkLocal, begins)
	}
	m.out.Changes = append(m.out.Changes, Change{Home: h.addr, CareOf: h.careOf, Until: h.until, Status: status})
	m.schedule(h)

	m.ack = wire.BindingAck{Status: status, Sequence: r.sequence, Lifetime: lifetime}
	if m.cfg.RefreshAdvice > 0 && m.cfg.RefreshAdvice < lifetime {
		m.ack.RefreshAdvice = m.cfg.RefreshAdvice
	}
	m.acknowledge(h, r)
}

// maxDeleteTimeout is MAX_DELETE_BCE_TIMEOUT (RFC 6275 section 12).
const maxDeleteTimeout = 10 * time.Second

// deregister ends the binding (RFC 6275 section 10.3.2). Nothing is intercepted
// from now on, but the sequence number stays for a time: a Binding Update from
// before that has been delayed is refused by it, and the deregistration said
// again, because its answer was lost, is no error.
func (m *HomeAgent) deregister(h *entry, r *request) {
	if !m.compared(h) {
		m.refuse(h, r, wire.NotHomeAgent)
		return
	}
	m.release(h, wire.Accepted)
	h.sequence, h.gone = r.sequence, m.now+maxDeleteTimeout
	m.ack = wire.BindingAck{Status: wire.Accepted, Sequence: r.sequence}
	m.acknowledge(h, r)
}

// refuseStale answers a Binding Update that is signed but has the wrong time.
// If there has been one with a greater sequence number, that is the reason to
// tell: who was late must not be invited to try again with a better clock.
func (m *HomeAgent) refuseStale(h *entry, r *request) {
	if m.compared(h) && !h.greater(r.sequence) {
		m.refuseSequence(h, r)
		return
	}
	r.stamp = m.resync(h, r.stamp)
	m.refuse(h, r, wire.MessageIDMismatch)
}

// refuseSequence answers with the sequence number that is stored (RFC 6275
// section 9.5.1).
func (m *HomeAgent) refuseSequence(h *entry, r *request) {
	refused := *r
	refused.sequence = h.sequence
	m.refuse(h, &refused, wire.SequenceOutOfWindow)
}

// refuse answers a Binding Update that was not accepted.
func (m *HomeAgent) refuse(h *entry, r *request, status wire.Status) {
	m.ack = wire.BindingAck{Status: status, Sequence: r.sequence}
	m.acknowledge(h, r)
}

// acknowledge sends m.ack about r, signed with the key of h.
//
// RFC 6275 section 10.3.1: it is sent whatever the A bit says. K is never set:
// there is no key management.
func (m *HomeAgent) acknowledge(h *entry, r *request) {
	m.auth = wire.MobileAuth{Timestamp: r.stamp}
	m.ack.MobileAuth = &m.auth
	m.payload = h.key.Sign(m.payload[:0], &m.ack, h.spi, m.cfg.Addr, h.addr, r.careOf, h.addr)
	m.sendAck(h.addr, r)
}

// refuseStranger answers a Binding Update for a home address that has no key:
// without authentication, since there is nothing to make one with. It may not
// be from there at all; nothing but this answer comes of it.
func (m *HomeAgent) refuseStranger(home netip.Addr, r *request) {
	if home == m.cfg.Addr || !m.strangers.allow(m.now, strangerInterval, strangerBurst) {
		return
	}
	m.ack = wire.BindingAck{Status: wire.NotHomeSubnet, Sequence: r.sequence}
	switch {
	case m.homePrefix(home) == nil: // RFC 6275 section 10.3.1
	case r.lifetime == 0 || r.careOf == home:
		m.ack.Status = wire.NotHomeAgent // section 10.3.2
	default:
		m.ack.Status = wire.Prohibited
	}
	m.payload = m.ack.Append(m.payload[:0], m.cfg.Addr, home)
	m.sendAck(home, r)
}

// sendAck sends the acknowledgement m.ack, whose mobility header is m.payload,
// to the mobile node that asked r (RFC 6275 section 9.5.4).
func (m *HomeAgent) sendAck(home netip.Addr, r *request) {
	p := wire.Packet{Src: m.cfg.Addr, Protocol: wire.Mobility, Payload: m.payload}
	switch {
	case m.ack.Status.OK() && m.ack.Lifetime > 0:
		p.Dst, p.Routing = r.careOf, home
	case r.source != home && m.careOfAllowed(r.source):
		p.Dst, p.Routing = r.source, home
	case r.source == home || r.lifetime == 0:
		p.Dst = home
	default:
		return // to none of its addresses may we answer
	}
	b, ok := m.append(&p)
	switch {
	case !ok:
	case p.Dst == home && m.cfg.Link != nil && m.homePrefix(home) != nil:
		// It is at home. If there is a binding still, the packet would come
		// back to us (RFC 6275 section 10.3.2).
		m.out.Link = append(m.out.Link, b)
	default:
		m.out.Send = append(m.out.Send, b)
	}
}
