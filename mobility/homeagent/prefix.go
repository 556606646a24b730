package homeagent

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// prefix is an entry of the Prefix List (RFC 4861 section 5.1).
type prefix struct {
	netip.Prefix
	anycast          netip.Addr    // of the home agents
	valid, preferred time.Duration // until when; forever
	info             wire.PrefixInfo
}

const (
	forever = time.Duration(math.MaxInt64)

	// maxLifetime is the greatest in a Binding Update (RFC 6275 section 6.1.7).
	maxLifetime = 0xffff * wire.LifetimeUnit
)

func newPrefixes(list []Prefix, self netip.Addr, now time.Duration) ([]prefix, error) {
	if len(list) == 0 {
		return nil, errors.New("no prefix")
	}
	if len(list) > maxPrefixes {
		return nil, fmt.Errorf("%d prefixes, more than %d", len(list), maxPrefixes)
	}
	var prefixes []prefix
	for _, c := range list {
		if !routable(c.Prefix.Addr()) || c.Prefix.Bits() < 3 || c.Prefix.Bits() > 120 {
			return nil, fmt.Errorf("%v is not a prefix of global unicast addresses", c.Prefix)
		}
		p := prefix{
			Prefix:  c.Prefix.Masked(),
			anycast: homeAgents(c.Prefix),
			info:    wire.PrefixInfo{Prefix: c.Prefix.Masked(), OnLink: true, Autonomous: true},
		}
		if p.Contains(self) {
			// RFC 6275 section 7.2: R, with the router's whole address.
			p.info.Router, p.info.Prefix = true, netip.PrefixFrom(self, p.Bits())
		}
		p.valid = end(now, c.Valid)
		switch {
		case c.Preferred == 0:
			p.preferred = p.valid
		case c.Preferred < 0:
			p.preferred = now
		default:
			p.preferred = min(p.valid, end(now, c.Preferred))
		}
		if c.Valid < 0 || slices.ContainsFunc(prefixes, func(q prefix) bool { return q.Prefix == p.Prefix }) {
			return nil, fmt.Errorf("prefix %v twice, or of negative lifetime", p.Prefix)
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

// end is now and lifetime, which is for ever if it is 0.
func end(now, lifetime time.Duration) time.Duration {
	if lifetime == 0 || lifetime >= wire.Infinite {
		return forever
	}
	return now + lifetime
}

// left is how long until.
func (m *HomeAgent) left(until time.Duration) time.Duration {
	if until == forever {
		return wire.Infinite
	}
	return max(until-m.now, 0)
}

// homeAgents is the Mobile IPv6 Home-Agents anycast address of a prefix
// (RFC 6275 section 8.4, RFC 2526): interface identifier 0x7e among the last
// 128, all ones before, but for the universal/local bit of 64-bit identifiers.
func homeAgents(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As16()
	for i := p.Bits(); i < 128; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	if p.Bits() == 64 {
		a[8] &^= 0x02
	}
	a[15] &^= 0x01
	return netip.AddrFrom16(a)
}

// homePrefix is the prefix of the home link that a is on; nil: none.
func (m *HomeAgent) homePrefix(a netip.Addr) *prefix {
	var best *prefix
	for i := range m.prefixes {
		p := &m.prefixes[i]
		if p.Contains(a) && m.now < p.valid && (best == nil || p.Bits() > best.Bits()) {
			best = p
		}
	}
	return best
}

// grant decides on a lifetime and a status for a home address (RFC 6275
// section 10.3.1). ok is false if the address is not on a home prefix.
func (m *HomeAgent) grant(a netip.Addr, wanted time.Duration) (lifetime time.Duration, status wire.Status, ok bool) {
	p := m.homePrefix(a)
	if p == nil {
		return 0, 0, false
	}
	valid, preferred := units(m.left(p.valid)), units(m.left(p.preferred))
	lifetime = min(units(wanted), units(m.cfg.MaxLifetime), valid)
	if lifetime == 0 {
		return 0, 0, false
	}
	// Deprecated, or will be while the binding lasts, or ends with it.
	if preferred < lifetime || valid == lifetime {
		status = wire.AcceptedPrefixDiscovery
	}
	return lifetime, status, true
}

// units rounds down to what messages can tell.
func units(d time.Duration) time.Duration { return d / wire.LifetimeUnit * wire.LifetimeUnit }

// setPrefixes replaces the Prefix List.
func (m *HomeAgent) setPrefixes(list []Prefix) {
	prefixes, err := newPrefixes(list, m.cfg.Addr, m.now)
	if err != nil {
		return
	}
	m.prefixes = prefixes
	var homes []*entry
	for _, h := range m.homes {
		if h.state != away {
			homes = append(homes, h)
		}
	}
	for _, h := range inOrder(homes) {
		p := m.homePrefix(h.addr)
		if p == nil {
			m.release(h, wire.NotHomeSubnet)
			continue
		}
		if h.state == bound {
			// RFC 6275 sections 10.3.1, 10.6.4: no binding outlives its prefix.
			h.until = min(h.until, p.valid)
			if !m.cfg.NoPrefixAdvertisements {
				h.timer, h.adverts = min(h.timer, m.now+m.advertDelay(p)), 0
			}
			m.schedule(h)
		}
	}
}

// Retransmission of a Mobile Prefix Advertisement (RFC 6275 section 12).
const (
	prefixAdvTimeout = 3 * time.Second
	prefixAdvRetries = 3
)

// advertDelay is RAND_ADV_DELAY (RFC 6275 section 10.6.2).
func (m *HomeAgent) advertDelay(p *prefix) time.Duration {
	spread := min(m.cfg.MaxPrefixInterval, m.left(p.preferred)) - m.cfg.MinPrefixInterval
	if spread < 0 {
		spread = -spread
	}
	delay := m.cfg.MinPrefixInterval
	if spread > 0 {
		delay += time.Duration(m.uint64() % uint64(spread))
	}
	return delay
}

// nextAdvert is when the mobile node at h is sent a Mobile Prefix
// Advertisement if nothing changes: MaxPrefixInterval after the last one a
// transmission is scheduled, and takes place after a random delay.
func (m *HomeAgent) nextAdvert(h *entry) time.Duration {
	p := m.homePrefix(h.addr)
	if p == nil || m.cfg.NoPrefixAdvertisements {
		return forever
	}
	return m.now + m.cfg.MaxPrefixInterval + m.advertDelay(p)
}

// advertisePrefixes sends an unsolicited Mobile Prefix Advertisement, and again
// until the mobile node answers with a solicitation (RFC 6275 section 10.6.2).
func (m *HomeAgent) advertisePrefixes(h *entry) {
	m.sendPrefixes(h, h.careOf, 0)
	if h.unheard = true; h.adverts < prefixAdvRetries {
		h.timer = m.now + prefixAdvTimeout<<h.adverts
		h.adverts++
		return
	}
	h.adverts, h.timer = 0, m.nextAdvert(h)
}

// prefixSolicitation answers a Mobile Prefix Solicitation (RFC 6275 section
// 10.6). IPsec would tell whose it is; we believe one that has the home
// address of a binding and comes from its care-of address, which has been
// checked. To someone else the answer is not sent.
func (m *HomeAgent) prefixSolicitation(p *wire.Packet, s *wire.PrefixSolicitation) {
	if !p.Home.IsValid() || m.cfg.NoPrefixAdvertisements {
		return
	}
	h := m.homes[p.Home.As16()]
	if !h.asked.allow(m.now, answerInterval, answerBurst) {
		return
	}
	m.sendPrefixes(h, p.Src, s.ID)
	h.adverts, h.unheard, h.timer = 0, false, m.nextAdvert(h)
	m.schedule(h)
}

// sendPrefixes sends a Mobile Prefix Advertisement with all prefixes (RFC 6275
// section 10.6.3).
func (m *HomeAgent) sendPrefixes(h *entry, to netip.Addr, id uint16) {
	a := wire.PrefixAdvertisement{ID: id}
	for i := range m.prefixes {
		p := &m.prefixes[i]
		info := p.info
		info.Valid = m.left(p.valid).Truncate(time.Second)
		info.Preferred = m.left(p.preferred).Truncate(time.Second)
		a.Prefixes = append(a.Prefixes, info)
	}
	m.payload = a.Append(m.payload[:0], m.cfg.Addr, h.addr)
	m.sendPacket(&wire.Packet{Src: m.cfg.Addr, Dst: to, Routing: h.addr, Protocol: wire.ICMPv6, Payload: m.payload})
}
