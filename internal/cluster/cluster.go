package cluster

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
)

// Addresses of the world (RFC 3849).
var (
	HomePrefix = netip.MustParsePrefix("2001:db8:a::/64")
	AgentAddr  = netip.MustParseAddr("2001:db8:a::1")
	Home       = netip.MustParseAddr("2001:db8:a::5") // the distributed server address
)

// Port is that of the service: one that Wireshark does not take for a protocol,
// which this is none of.
const Port = 7777

// CareOf is the care-of address of node i, from 1 on.
func CareOf(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:f:%x::1", i))
}

// ClientAddr is the address of client i, from 1 on.
func ClientAddr(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:c:%x::1", i))
}

// mtu is that of every link.
const mtu = 1500

// Config says what there is. The zero value is a world with three nodes and no
// delays.
type Config struct {
	Seed  uint64
	Nodes int // 0: 3

	// One way from a host to the middle of the network.
	ClientDelay, NodeDelay, AgentDelay time.Duration
}

// System is the world. It is not for use by several goroutines.
type System struct {
	Sim     *lab.Sim
	Net     *lab.Net
	Agent   *lab.Host
	Nodes   []*Node
	Clients []*Client

	cfg      Config
	contact  *Node
	owners   map[netip.Addr]*Node // of clients: whose connections they are
	epochs   map[netip.Addr]uint64
	problems []error

	// OnMessage, if not nil, is told of messages between nodes, when they
	// arrive; see [Message].
	OnMessage func(Message)
}

// Message is one between nodes, which is simulated.
type Message struct {
	Sent, Arrived time.Duration
	From, To      string
	What          string
	Client        netip.Addr // whom it is about
}

// New makes a world whose first node is the contact.
func New(cfg Config) (*System, error) {
	if cfg.Nodes == 0 {
		cfg.Nodes = 3
	}
	s := &System{
		Sim: lab.NewSim(cfg.Seed), cfg: cfg,
		owners: make(map[netip.Addr]*Node), epochs: make(map[netip.Addr]uint64),
	}
	s.Net = s.Sim.NewNet("")
	var err error
	if s.Agent, err = s.Sim.NewHost("home agent", s.Net, mtu, bootAgent); err != nil {
		return nil, err
	}
	s.Net.Route(HomePrefix, s.Agent.Port())
	delay(s.Agent, cfg.AgentDelay)
	for i := 1; i <= cfg.Nodes; i++ {
		n := &Node{system: s, Name: fmt.Sprintf("node %d", i), CareOf: CareOf(i)}
		s.Nodes = append(s.Nodes, n)
	}
	s.contact = s.Nodes[0]
	for _, n := range s.Nodes {
		if n.Host, err = s.Sim.NewHost(n.Name, s.Net, mtu, n.boot); err != nil {
			return nil, err
		}
		s.Net.Route(netip.PrefixFrom(n.CareOf, 128), n.Host.Port())
		delay(n.Host, cfg.NodeDelay)
	}
	return s, nil
}

func delay(h *lab.Host, d time.Duration) {
	h.Port().SetImpair(lab.Impair{Delay: d}, lab.Impair{Delay: d})
}

// Contact is the contact node.
func (s *System) Contact() *Node { return s.contact }

// Owner is the node that has a client's connections, nil if nobody has.
func (s *System) Owner(client netip.Addr) *Node { return s.owners[client] }

// Problems are what should not have happened, such as a node that sends for a
// client it does not own.
func (s *System) Problems() []error { return s.problems }

func (s *System) problem(format string, args ...any) {
	if len(s.problems) < 100 {
		s.problems = append(s.problems, fmt.Errorf("%v: "+format, append([]any{s.Sim.Now()}, args...)...))
	}
}

// Close ends the world.
func (s *System) Close() error { return s.Sim.Close() }

// message lets the time pass that a message of so many octets takes from one
// node to another: half the delay of each link, and 1 Gbit/s.
func (s *System) message(p *lab.Proc, from, to *Node, client netip.Addr, octets int, what string) {
	m := Message{Sent: s.Sim.Now(), From: from.Name, To: to.Name, What: what, Client: client}
	if from != to {
		p.Sleep(2*s.cfg.NodeDelay + time.Duration(octets)*8*time.Nanosecond)
	}
	m.Arrived = s.Sim.Now()
	if s.OnMessage != nil && from != to {
		s.OnMessage(m)
	}
}
