package cluster

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/stack"
)

// Node is a server node's host.
type Node struct {
	Name   string
	CareOf netip.Addr
	Host   *lab.Host

	// Now in the host's present life.
	Stack  *stack.Stack
	Mobile *node.Node
	relay  *relay.Relay // of the contact; nil elsewhere

	system   *System
	program  *nodeProgram
	sessions map[*stack.Conn]*serverSession

	// What the machine said last about a client.
	said map[netip.Addr]node.Event

	// OnEvent, if not nil, is told what the machine says.
	OnEvent func(node.Event)
}

type nodeProgram struct {
	n    *Node
	host *lab.Host
}

func (n *Node) boot(h *lab.Host) (lab.Program, error) {
	s := n.system
	n.sessions = make(map[*stack.Conn]*serverSession)
	n.said = make(map[netip.Addr]node.Event)
	n.relay = nil
	p := &nodeProgram{n, h}
	n.program = p
	var peers []netip.Addr
	for _, other := range s.Nodes {
		if other != n {
			peers = append(peers, other.CareOf)
		}
	}
	via := s.contact.CareOf
	if n == s.contact {
		via = AgentAddr
	}
	var err error
	n.Mobile, err = node.New(node.Config{
		Home:   netip.PrefixFrom(Home, HomePrefix.Bits()),
		CareOf: n.CareOf, HomeAgent: AgentAddr,
		SPI: spi, Key: key, Epoch: lab.Epoch,
		Rand: h.Rand("node"),
	})
	if err != nil {
		return nil, err
	}
	d := h.Device(mtu, p.transmit)
	n.Stack, err = stack.New(stack.Config{
		Device: d, Addrs: []netip.Addr{Home}, Clock: h.Clock(), Rand: h.Rand("stack"),
		Mobile: &stack.Mobile{
			Home: Home, CareOf: n.CareOf, Via: via, Peers: peers,
			Signalling: func(b []byte) { p.step(node.Received{Packet: slices.Clone(b)}) },
		},
	})
	if err != nil {
		return nil, err
	}
	d.Watch(n.Stack.Netstack())
	if n == s.contact {
		n.relay, err = relay.New(relay.Config{Home: Home, CareOf: n.CareOf, HomeAgent: AgentAddr})
		if err != nil {
			return nil, err
		}
		n.relay.Step(h.Now(), relay.SetNodes{Nodes: peers})
		h.After(0, func() { p.step(node.Register{}) })
	} else {
		n.Mobile.Step(h.Now(), node.SetContact{Addr: s.contact.CareOf})
	}
	return p, n.serve(h)
}

// serve accepts connections.
func (n *Node) serve(h *lab.Host) error {
	l, err := n.Stack.Listen("tcp", netip.AddrPortFrom(Home, Port).String())
	if err != nil {
		return err
	}
	h.Go("accept", func(p *lab.Proc) {
		for {
			var c *stack.Conn
			p.Wait(func() bool { c, _ = l.TryAccept(); return c != nil })
			client := remote(c).Addr()
			switch owner := n.system.owners[client]; owner {
			case nil:
				n.system.owners[client] = n
				n.program.step(node.Optimise{Client: client})
			case n:
			default:
				n.system.problem("%s accepts a connection of %s, which %s owns", n.Name, client, owner.Name)
			}
			n.start(c, newServerSession())
		}
	})
	return nil
}

// start runs a session.
func (n *Node) start(c *stack.Conn, s *serverSession) {
	n.sessions[c] = s
	n.Host.Go("session "+strconv.Itoa(int(remote(c).Port())), func(p *lab.Proc) {
		if err := s.run(p, c); err != nil {
			n.system.problem("%s: session of %v: %v", n.Name, remote(c), err)
		}
		if n.sessions[c] == s {
			delete(n.sessions, c)
		}
	})
}

// Receive takes what comes from the network.
func (p *nodeProgram) Receive(b []byte) {
	if r := p.n.relay; r != nil && len(b) > 40 && (wire.Protocol(b[6]) == wire.IPv6 || wire.Protocol(b[6]) == wire.ICMPv6) {
		out := r.Step(p.host.Now(), relay.Received{Packet: b})
		for _, b := range out.Send {
			p.host.Send(b)
		}
		for _, b := range out.Local {
			p.n.Stack.Arrive(b)
		}
		return
	}
	p.n.Stack.Arrive(b)
}

// transmit takes what the stack sends.
func (p *nodeProgram) transmit(b []byte) {
	if client, ok := speaksFor(b); ok {
		if owner := p.n.system.owners[client]; owner != nil && owner != p.n {
			p.n.system.problem("%s sends for %s, which %s owns", p.n.Name, client, owner.Name)
		}
	}
	p.host.Send(b)
}

// step gives the machine an input and does what it says.
func (p *nodeProgram) step(in node.Input) {
	out := p.n.Mobile.Step(p.host.Now(), in)
	for _, b := range out.Send {
		p.host.Send(b)
	}
	events := slices.Clone(out.Events)
	for _, e := range events {
		switch e.Kind {
		case node.Bound:
			p.n.Stack.Bind(e.Client)
		case node.Unbound, node.Unsupported, node.Released:
			p.n.Stack.Unbind(e.Client)
		}
		p.n.said[e.Client] = e
		if p.n.OnEvent != nil {
			p.n.OnEvent(e)
		}
	}
}

// NextDeadline implements lab.Program.
func (p *nodeProgram) NextDeadline() (at time.Duration, ok bool) {
	at, ok = p.n.Mobile.NextDeadline()
	if p.n.relay != nil {
		if r, some := p.n.relay.NextDeadline(); some && (!ok || r < at) {
			at, ok = r, true
		}
	}
	return at, ok
}

// Tick implements lab.Program.
func (p *nodeProgram) Tick() {
	if p.n.relay != nil {
		p.n.relay.Step(p.host.Now(), relay.Tick{})
	}
	p.step(node.Tick{})
}

// Close implements io.Closer.
func (p *nodeProgram) Close() error { return p.n.Stack.Close() }

// innermost is the packet inside of a tunnel, or the packet itself.
func innermost(b []byte) (wire.Packet, error) {
	p, err := wire.ParsePacket(b)
	if err == nil && p.Protocol == wire.IPv6 {
		if b, err = p.Inner(); err == nil {
			p, err = wire.ParsePacket(b)
		}
	}
	return p, err
}

// IsReset tells whether a packet is a TCP reset, in a tunnel or not.
func IsReset(b []byte) bool {
	const flags, rst = 13, 4
	p, err := innermost(b)
	return err == nil && p.Protocol == wire.TCP && len(p.Payload) > flags && p.Payload[flags]&rst != 0
}

// speaksFor returns the client to whom a packet of TCP goes that has the home
// address as its source, whatever way it takes.
func speaksFor(b []byte) (client netip.Addr, ok bool) {
	p, err := innermost(b)
	if err != nil || p.Protocol != wire.TCP || p.Source() != Home {
		return netip.Addr{}, false
	}
	return p.Destination(), true
}

func remote(c *stack.Conn) netip.AddrPort { return c.RemoteAddr().(*net.TCPAddr).AddrPort() }
