package daemon

import (
	"errors"
	"net"
	"net/netip"

	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/mobility/wire"
)

// entrance is where the kernel puts into a tunnel what an application sends to
// clients without a binding: TCP from the server's address. The application then
// writes super-packets as they are, which nobody has to cut.
//
//	application ─► TUN ─ rule: from the server's address ─► table ─ route ═► contact
//	                                                                     ═► home agent, at the contact
//
// The tunnel begins at the daemon's address, unlike those of applications, since the
// kernel chooses an address of its own. What the network says of it comes to the
// daemon, which tells the application.
type entrance struct {
	into  netip.Addr // zero: there is none
	table int
	stale bool // the interface may be another one
}

// firstEntranceTable is where the numbers of tables begin, which are those of
// interfaces.
const firstEntranceTable = 1 << 20

// enter makes the entrance fit the contact, or removes it. mu is held.
func (s *service) enter() {
	e, into := &s.entrance, s.entranceTo()
	if into == e.into && !e.stale {
		return
	}
	e.stale = false
	link, err := net.InterfaceByName(s.tun)
	table := 0
	if err == nil {
		table = firstEntranceTable + link.Index
	}
	if e.into.IsValid() && (!into.IsValid() || table != e.table) {
		err = errors.Join(err, s.n.host.RemoveRule(s.entranceRule()),
			s.n.host.RemoveEntrance(s.tun, e.table, s.n.cfg.Node.Address, e.into))
		e.into = netip.Addr{}
	}
	if into.IsValid() && err == nil {
		e.table = table
		err = s.n.host.AddEntrance(s.tun, table, s.n.cfg.Node.Address, into)
		if err == nil {
			err = s.n.host.AddRule(s.entranceRule())
		}
		if err == nil {
			e.into = into
		}
	}
	if err != nil {
		s.n.log.Info("the application tunnels packets itself: the kernel does not", "server", s.home, "cause", err)
	}
}

// entranceTo is where the tunnel goes; zero: the application's packets take no
// tunnel of the kernel's. mu is held.
func (s *service) entranceTo() netip.Addr {
	contact, _ := s.member.Contact()
	switch {
	case s.n.kernel.Load() == nil || s.external != nil || s.cfg.DirectReturn || !*s.cfg.Offload:
		return netip.Addr{}
	case s.member.IsContact():
		return s.cfg.HomeAgent
	}
	return (*s.n.peers.Load())[contact.Name]
}

func (s *service) entranceRule() host.Rule {
	return host.Rule{
		From: netip.PrefixFrom(s.home, s.home.BitLen()), Iif: s.tun, IPProto: uint8(wire.TCP),
		Table: s.entrance.table, Priority: kernelPriority,
	}
}

// tellEntrance tells the application of an ICMPv6 error about the kernel's tunnel.
func (s *service) tellEntrance(b []byte) {
	s.mu.Lock()
	into := s.entrance.into
	s.mu.Unlock()
	if b := entranceError(b, s.n.cfg.Node.Address, into, s.home); b != nil {
		s.n.sender.Send(b)
	}
}

// entranceError is what a home address is to be told of the ICMPv6 error b, if that
// is about a packet of it in a tunnel from one address into another: an error about
// the packet (RFC 2473 section 8). Else it is nil.
func entranceError(b []byte, from, into, home netip.Addr) []byte {
	p, err := wire.ParsePacket(b)
	if err != nil || p.Protocol != wire.ICMPv6 {
		return nil
	}
	m, err := wire.ParseICMP(&p)
	e, ok := m.(*wire.ICMPError)
	if err != nil || !ok || len(e.Quoted) < 2*wire.HeaderLen || wire.Protocol(e.Quoted[6]) != wire.IPv6 {
		return nil
	}
	q, inner := e.Quoted, e.Quoted[wire.HeaderLen:]
	if netip.AddrFrom16([16]byte(q[8:24])) != from || netip.AddrFrom16([16]byte(q[24:40])) != into || netip.AddrFrom16([16]byte(inner[8:24])) != home {
		return nil
	}
	told, ok := wire.AppendRelayed(nil, from, e)
	if !ok {
		return nil
	}
	return told
}
