package homeagent

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// entry is a home address that is served, with its entry in the Binding Cache
// (RFC 6275 section 9.1) while it is not away. There is one for each key, and
// so as many as the operator wants.
type entry struct {
	addr netip.Addr
	spi  uint32
	key  wire.SharedKey

	// stamp is the timestamp of the last authentic Binding Update. It stays
	// when the binding has ended: otherwise an older one could be replayed.
	stamp   uint64
	stamped uint16 // its sequence number

	// What anyone can cause by replaying or inventing packets comes out of
	// buckets of its own, lest it takes the place of what the mobile node needs.
	forged, stale, asked limit

	state     state
	linkLocal bool   // L: the derived link-local address is spoken for as well
	sequence  uint16 // of the last Binding Update, tentative or bound
	mtu       uint16 // of the path to careOf, less than TunnelMTU; 0: TunnelMTU
	probes    uint8  // Neighbor Solicitations yet to be sent, tentative
	adverts   uint8  // Mobile Prefix Advertisements sent that were not answered
	unheard   bool   // the last one has not been answered at all

	careOf   netip.Addr
	until    time.Duration // end of the binding
	timer    time.Duration // tentative: next probe, or success; bound: next prefix advertisement
	mtuUntil time.Duration // when mtu is forgotten
	gone     time.Duration // away: until when a deregistration's sequence number counts
	pending  *request      // to be answered when tentative has ended
}

type state uint8

const (
	away state = iota
	tentative
	bound
)

// request is what a Binding Update that was found authentic asks for.
type request struct {
	source    netip.Addr // in the IPv6 header
	careOf    netip.Addr
	sequence  uint16
	stamp     uint64
	lifetime  time.Duration
	linkLocal bool
}

const minKey = 16

func (m *HomeAgent) checkKey(a netip.Addr, c Credential) error {
	switch {
	case !routable(a):
		return fmt.Errorf("home address %v is not unicast and routable", a)
	case a == m.cfg.Addr:
		return fmt.Errorf("home address %v is the home agent's", a)
	case len(c.Key) < minKey:
		return fmt.Errorf("key of %v has %d octets, less than %d", a, len(c.Key), minKey)
	}
	return nil
}

func (m *HomeAgent) addHome(a netip.Addr, c Credential) {
	m.homes[a.As16()] = &entry{
		addr:  a,
		spi:   c.SPI,
		key:   bytes.Clone(c.Key),
		stamp: m.ntp(m.now), // what is older may have been accepted before
	}
}

func (m *HomeAgent) setKeys(keys map[netip.Addr]Credential) {
	var gone []*entry
	for a, h := range m.homes {
		c, ok := keys[netip.AddrFrom16(a)]
		if !ok || m.checkKey(h.addr, c) != nil {
			gone = append(gone, h)
			continue
		}
		if h.spi != c.SPI || !bytes.Equal(h.key, c.Key) {
			h.spi, h.key = c.SPI, bytes.Clone(c.Key)
		}
	}
	for _, h := range inOrder(gone) {
		m.release(h, wire.Prohibited)
		delete(m.homes, h.addr.As16())
	}
	for a, c := range keys {
		if m.checkKey(a, c) == nil && m.homes[a.As16()] == nil {
			m.addHome(a, c)
		}
	}
}

// inOrder sorts homes, so that the same input has the same output always.
func inOrder(homes []*entry) []*entry {
	slices.SortFunc(homes, func(a, b *entry) int { return a.addr.Compare(b.addr) })
	return homes
}

// bound reports whether h has a binding. It is over when it is over, even if
// the driver is late.
func (m *HomeAgent) bound(h *entry) bool { return h.state == bound && m.now < h.until }

// known reports whether h has a binding, or will have when nobody objects. A
// Binding Update is compared with it.
func (m *HomeAgent) known(h *entry) bool { return h.state == tentative || m.bound(h) }

// compared reports whether the sequence number of h counts: it is known, or has
// deregistered of late.
func (m *HomeAgent) compared(h *entry) bool { return m.known(h) || m.now < h.gone }

// greater reports whether a sequence number is greater than the last, modulo
// 2^16 (RFC 6275 section 9.5.1).
func (h *entry) greater(sequence uint16) bool { return int16(sequence-h.sequence) > 0 }

// timeout handles the deadline of h.
func (m *HomeAgent) timeout(h *entry) {
	switch h.state {
	case tentative:
		m.probe(h)
	case bound:
		if h.until <= m.now {
			// RFC 6275 section 10.3.1: deleted after its lifetime.
			m.release(h, wire.Accepted)
			return
		}
		m.advertisePrefixes(h)
	}
	m.schedule(h)
}

// schedule sets the deadline of h.
func (m *HomeAgent) schedule(h *entry) {
	switch h.state {
	case away:
		m.due.Remove(h)
	case tentative:
		m.due.Set(h, h.timer)
	case bound:
		m.due.Set(h, min(h.until, h.timer))
	}
}

// release ends what there is for h, because of why.
func (m *HomeAgent) release(h *entry, why wire.Status) {
	if h.state == away {
		return
	}
	if m.cfg.Link != nil {
		m.leave(h.addr)
		m.forgetLinkLocal(h)
	}
	if h.state == bound || !why.OK() {
		m.out.Changes = append(m.out.Changes, Change{Home: h.addr, Status: why})
	}
	h.state, h.pending, h.linkLocal = away, nil, false
	h.careOf, h.until = netip.Addr{}, 0
	h.mtu, h.adverts, h.unheard = 0, 0, false
	m.inUse--
	m.schedule(h)
}

// join and leave count who needs the solicited-node group of an address. What
// ends in a step ends before something begins, but drivers join before they
// leave: they must not be told both about one group.
func (m *HomeAgent) join(a netip.Addr) {
	g := solicitedNode(a)
	if m.groups[g]++; m.groups[g] > 1 {
		return
	}
	if i := slices.Index(m.out.Leave, g); i >= 0 {
		m.out.Leave = slices.Delete(m.out.Leave, i, i+1)
		return
	}
	m.out.Join = append(m.out.Join, g)
}

func (m *HomeAgent) leave(a netip.Addr) {
	g := solicitedNode(a)
	if m.groups[g]--; m.groups[g] > 0 {
		return
	}
	delete(m.groups, g)
	m.out.Leave = append(m.out.Leave, g)
}

// solicitedNode is the solicited-node multicast address of a (RFC 4291 section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	g := [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff}
	a16 := a.As16()
	copy(g[13:], a16[13:])
	return netip.AddrFrom16(g)
}

// linkLocal is the link-local address with the interface identifier of a
// (RFC 6275 section 10.3.1).
func linkLocal(a netip.Addr) netip.Addr {
	l := [16]byte{0: 0xfe, 1: 0x80}
	a16 := a.As16()
	copy(l[8:], a16[8:])
	return netip.AddrFrom16(l)
}

// claimLinkLocal makes the link-local address of h ours to speak for, unless
// it is another home address's already. It has the same solicited-node group.
func (m *HomeAgent) claimLinkLocal(h *entry) bool {
	l := address(linkLocal(h.addr).As16())
	if other := m.links[l]; other != nil && other != h {
		return false
	}
	m.links[l] = h
	h.linkLocal = true
	return true
}

func (m *HomeAgent) forgetLinkLocal(h *entry) {
	if h.linkLocal {
		delete(m.links, linkLocal(h.addr).As16())
		h.linkLocal = false
	}
}
