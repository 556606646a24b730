package homeagent

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// heardAgent is an entry of the Home Agents List (RFC 6275 section 10.1), which
// Router Advertisements on the home link make.
type heardAgent struct {
	link       netip.Addr // link-local address
	preference uint16
	until      time.Duration
	addrs      []netip.Addr // global addresses
}

const (
	maxAgents     = 64 // in the list
	maxAgentAddrs = 8  // of one of them

	// maxReply is how many addresses fit in a reply of MinMTU octets.
	maxReply = (wire.MinMTU - wire.HeaderLen - 8) / 16
)

// discoveryRequest takes a packet to the Mobile IPv6 Home-Agents anycast
// address. A Home Agent Address Discovery Request is answered (RFC 6275
// section 10.5).
func (m *HomeAgent) discoveryRequest(b []byte) {
	p, err := wire.ParsePacket(b)
	if err != nil || p.Protocol != wire.ICMPv6 || p.Home.IsValid() || p.Routing.IsValid() || !routable(p.Src) {
		return
	}
	msg, err := wire.ParseICMP(&p)
	if err != nil {
		return
	}
	request, ok := msg.(*wire.AgentRequest)
	if !ok || !m.discovery.allow(m.now, discoveryInterval, discoveryBurst) {
		return
	}
	reply := wire.AgentReply{ID: request.ID, Agents: m.agentList()}
	m.payload = reply.Append(m.payload[:0], m.cfg.Addr, p.Src)
	m.sendPacket(&wire.Packet{Src: m.cfg.Addr, Dst: p.Src, Protocol: wire.ICMPv6, Payload: m.payload})
}

// agentList is what a reply tells: by decreasing preference, those of equal
// preference and the addresses of each in random order, the best of them if
// there are too many.
func (m *HomeAgent) agentList() []netip.Addr {
	m.forgetAgents()
	type candidate struct {
		preference uint16
		lot        uint64
		addrs      []netip.Addr
	}
	list := []candidate{{m.cfg.Preference, m.uint64(), []netip.Addr{m.cfg.Addr}}}
	for i := range m.cfg.Agents {
		a := &m.cfg.Agents[i]
		list = append(list, candidate{a.Preference, m.uint64(), []netip.Addr{a.Addr}})
	}
	for i := range m.agents {
		a := &m.agents[i]
		list = append(list, candidate{a.preference, m.uint64(), a.addrs})
	}
	slices.SortStableFunc(list, func(a, b candidate) int {
		return cmp.Or(-cmp.Compare(a.preference, b.preference), cmp.Compare(a.lot, b.lot))
	})
	var addrs []netip.Addr
	for _, c := range list {
		n := len(addrs)
		for _, a := range c.addrs {
			if !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
		m.shuffle(addrs[n:])
		if len(addrs) >= maxReply {
			return addrs[:maxReply]
		}
	}
	return addrs
}

func (m *HomeAgent) shuffle(a []netip.Addr) {
	for i := len(a) - 1; i > 0; i-- {
		j := m.uint64() % uint64(i+1)
		a[i], a[j] = a[j], a[i]
	}
}

func (m *HomeAgent) forgetAgents() {
	m.agents = slices.DeleteFunc(m.agents, func(a heardAgent) bool { return a.until <= m.now })
}

// A Router Advertisement (RFC 4861 section 4.2) and what in it is of interest.
const (
	raLen          = 16
	raHomeAgent    = 0x20 // H (RFC 6275 section 7.1)
	optPrefix      = 3
	prefixOptLen   = 32
	prefixRouter   = 0x20 // R (section 7.2)
	optHomeAgent   = 8    // Home Agent Information (section 7.4)
	homeAgentUnits = 1    // its length
)

// routerAdvertisement takes a Router Advertisement, p's payload with the right
// checksum, into the Home Agents List (RFC 6275 section 10.5.1).
func (m *HomeAgent) routerAdvertisement(p *wire.Packet) {
	// RFC 4861 section 6.1.2; the hop limit has been checked.
	b := p.Payload
	if !p.Src.IsLinkLocalUnicast() || len(b) < raLen || b[1] != 0 {
		return
	}
	e := heardAgent{link: p.Src}
	lifetime := binary.BigEndian.Uint16(b[6:])
	for opt := b[raLen:]; len(opt) > 0; {
		if len(opt) < 8 || opt[1] == 0 || len(opt) < 8*int(opt[1]) {
			return
		}
		n := 8 * int(opt[1])
		switch {
		case opt[0] == optHomeAgent && opt[1] == homeAgentUnits:
			e.preference = binary.BigEndian.Uint16(opt[4:])
			lifetime = binary.BigEndian.Uint16(opt[6:])
		case opt[0] == optPrefix && n == prefixOptLen && opt[3]&prefixRouter != 0:
			// The whole address of the router is in place of the prefix.
			a := netip.AddrFrom16([16]byte(opt[16:32]))
			if routable(a) && len(e.addrs) < maxAgentAddrs && !slices.Contains(e.addrs, a) {
				e.addrs = append(e.addrs, a)
			}
		}
		opt = opt[n:]
	}
	if slices.Contains(e.addrs, m.cfg.Addr) {
		return // this host's own
	}
	known := slices.IndexFunc(m.agents, func(a heardAgent) bool { return a.link == p.Src })
	switch {
	case b[5]&raHomeAgent == 0 || lifetime == 0:
		if known >= 0 {
			m.agents = slices.Delete(m.agents, known, known+1)
		}
	default:
		e.until = m.now + time.Duration(lifetime)*time.Second
		m.heardAgent(known, e)
	}
}

// heardAgent adds e to the list or, where known is not negative, to the
// entry there is: its addresses are those of all advertisements.
func (m *HomeAgent) heardAgent(known int, e heardAgent) {
	if known < 0 {
		if m.forgetAgents(); len(m.agents) < maxAgents {
			m.agents = append(m.agents, e)
		}
		return
	}
	a := &m.agents[known]
	a.preference, a.until = e.preference, e.until
	for _, addr := range e.addrs {
		if len(a.addrs) < maxAgentAddrs && !slices.Contains(a.addrs, addr) {
			a.addrs = append(a.addrs, addr)
		}
	}
}
