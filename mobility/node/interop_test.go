package node_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/mobility/homeagent"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
)

// All machines of mobility together, without delay: two nodes, the contact's
// relay, the home agent, a client.
type system struct {
	t          *testing.T
	now        time.Duration
	home       netip.Addr
	agentAddr  netip.Addr
	clientAddr netip.Addr
	nodes      map[netip.Addr]*node.Node
	relays     map[netip.Addr]*relay.Relay
	agent      *homeagent.HomeAgent
	client     *correspondent.Correspondent
	events     map[netip.Addr][]node.Kind
	queue      [][]byte
}

func newSystem(t *testing.T) (s *system, a, b netip.Addr) {
	t.Helper()
	s = &system{
		t:          t,
		home:       netip.MustParseAddr("2001:db8:a::1234"),
		agentAddr:  netip.MustParseAddr("2001:db8:a::1"),
		clientAddr: netip.MustParseAddr("2001:db8:c::c"),
		nodes:      make(map[netip.Addr]*node.Node),
		relays:     make(map[netip.Addr]*relay.Relay),
		events:     make(map[netip.Addr][]node.Kind),
	}
	a, b = netip.MustParseAddr("2001:db8:f::a"), netip.MustParseAddr("2001:db8:f::b")
	key := wire.SharedKey("a key that home agent and nodes share")
	epoch := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	random := func(n byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{n}) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for i, addr := range []netip.Addr{a, b} {
		s.nodes[addr], err = node.New(node.Config{
			Home: netip.PrefixFrom(s.home, 64), CareOf: addr, HomeAgent: s.agentAddr, SPI: 256, Key: key,
			Epoch: epoch.Add(time.Duration(i) * -time.Hour), // one's clock is wrong
			Rand:  random(byte(i)),
		})
		must(err)
		s.relays[addr], err = relay.New(relay.Config{Home: s.home, CareOf: addr, HomeAgent: s.agentAddr})
		must(err)
		s.relays[addr].Step(0, relay.SetNodes{Nodes: []netip.Addr{a, b}})
	}
	s.agent, err = homeagent.New(homeagent.Config{
		Addr: s.agentAddr, Prefixes: []homeagent.Prefix{{Prefix: netip.PrefixFrom(s.home, 64).Masked()}},
		Keys:  map[netip.Addr]homeagent.Credential{s.home: {SPI: 256, Key: key}},
		Epoch: epoch, Rand: random(8),
	})
	must(err)
	s.client, err = correspondent.New(correspondent.Config{
		Local: func(a netip.Addr) bool { return a == s.clientAddr }, Rand: random(9),
	})
	must(err)
	return s, a, b
}

func (s *system) put(packets [][]byte) {
	for _, p := range packets {
		s.queue = append(s.queue, slices.Clone(p))
	}
}

func (s *system) do(a netip.Addr, in node.Input) {
	out := s.nodes[a].Step(s.now, in)
	s.put(out.Send)
	for _, e := range out.Events {
		s.events[a] = append(s.events[a], e.Kind)
	}
	s.settle()
}

func (s *system) settle() {
	for len(s.queue) > 0 {
		b := s.queue[0]
		s.queue = s.queue[1:]
		dst := netip.AddrFrom16([16]byte(b[24:40]))
		switch {
		case dst == s.clientAddr:
			s.put(s.client.Step(s.now, correspondent.Received{Packet: b}).Send)
		case dst == s.agentAddr || dst == s.home:
			s.put(s.agent.Step(s.now, homeagent.Received{Packet: b}).Send)
		case s.nodes[dst] != nil:
			if s.nodes[dst].Via() == s.agentAddr {
				out := s.relays[dst].Step(s.now, relay.Received{Packet: b})
				s.put(out.Send)
				if out.Dropped != relay.NotTunnel && len(out.Local) == 0 {
					continue
				}
			}
			s.do(dst, node.Received{Packet: b})
		default:
			s.t.Fatalf("packet to %v", dst)
		}
	}
}

func (s *system) run(d time.Duration) {
	end := s.now + d
	for s.now < end {
		s.now = min(s.now+100*time.Millisecond, end)
		for _, a := range []netip.Addr{netip.MustParseAddr("2001:db8:f::a"), netip.MustParseAddr("2001:db8:f::b")} {
			if at, ok := s.nodes[a].NextDeadline(); ok && at <= s.now {
				s.do(a, node.Tick{})
			}
		}
		if at, ok := s.client.NextDeadline(); ok && at <= s.now {
			s.put(s.client.Step(s.now, correspondent.Tick{}).Send)
		}
		if at, ok := s.agent.NextDeadline(); ok && at <= s.now {
			s.put(s.agent.Step(s.now, homeagent.Tick{}).Send)
		}
		s.settle()
	}
}

func (s *system) want(owner netip.Addr) {
	s.t.Helper()
	got, _ := s.client.Lookup(s.clientAddr, s.home)
	if got != owner {
		s.t.Fatalf("at %v the client's binding is %v, want %v; events %v", s.now, got, owner, s.events)
	}
}

func TestWithTheOtherMachines(t *testing.T) {
	s, a, b := newSystem(t)
	s.do(a, node.Register{})
	s.do(b, node.SetContact{Addr: a})
	s.run(3 * time.Second)
	if _, ok := s.nodes[a].Registered(); !ok {
		t.Fatalf("not registered: %v", s.events[a])
	}
	s.do(a, node.Optimise{Client: s.clientAddr})
	s.want(a)

	// A prepared handoff, and one back that is not.
	g, _ := s.nodes[a].Grant(s.clientAddr, s.now)
	s.do(b, node.Prepare{Client: s.clientAddr, Grant: g})
	s.want(a)
	s.do(a, node.Abandon{Client: s.clientAddr})
	s.do(b, node.Bind{Client: s.clientAddr, Grant: g})
	s.want(b)
	s.run(10 * time.Minute) // with refreshes, home tests through the contact
	s.want(b)
	g, _ = s.nodes[b].Grant(s.clientAddr, s.now)
	s.do(b, node.Abandon{Client: s.clientAddr})
	s.do(a, node.Bind{Client: s.clientAddr, Grant: g})
	s.run(time.Second)
	s.want(a)

	// The other node becomes the contact, its clock an hour behind.
	s.do(b, node.Register{})
	s.do(a, node.SetContact{Addr: b})
	s.run(3 * time.Second)
	if _, ok := s.nodes[b].Registered(); !ok {
		t.Fatalf("not registered: %v", s.events[b])
	}
	s.run(10 * time.Minute)
	s.want(a)

	// A takeover without a grant: the sequence number has to be learnt. The
	// owner before learns that it is one no more.
	s.do(b, node.Bind{Client: s.clientAddr})
	s.run(10 * time.Minute)
	s.want(b)
	if got := s.nodes[a].State(s.clientAddr); got != node.None {
		t.Errorf("state %v at the owner before", got)
	}

	s.do(b, node.Release{Client: s.clientAddr})
	s.run(time.Second)
	s.want(netip.Addr{})
	if got := s.nodes[b].State(s.clientAddr); got != node.None {
		t.Errorf("state %v", got)
	}
	s.do(b, node.Deregister{})
	s.run(time.Second)
	if e := s.events[b]; e[len(e)-1] != node.Deregistered {
		t.Errorf("events %v", e)
	}
}
