package mobility_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/ladder"
	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/mobility/homeagent"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
)

// All machines of mobility together, with one hop of 5 milliseconds between any
// two, and a home link on which nobody else is:
//
//	client ───── internet ───── home agent ── home address
//	               │   │
//	        node a ┘   └ node b     the contact of which has a relay
var (
	homeAddr   = netip.MustParseAddr("2001:db8:a::1234")
	agentAddr  = netip.MustParseAddr("2001:db8:a::1")
	clientAddr = netip.MustParseAddr("2001:db8:c::c")
	addrA      = netip.MustParseAddr("2001:db8:f::a")
	addrB      = netip.MustParseAddr("2001:db8:f::b")

	hostNames = map[netip.Addr]string{clientAddr: "client", agentAddr: "agent", addrA: "a", addrB: "b"}
	both      = []netip.Addr{addrA, addrB}
)

const hop = 5 * time.Millisecond

type machines struct {
	testing.TB
	now    time.Duration
	nodes  map[netip.Addr]*node.Node
	relays map[netip.Addr]*relay.Relay
	agent  *homeagent.HomeAgent
	client *correspondent.Correspondent
	events map[netip.Addr][]node.Event

	registered homeagent.Change // what the home agent said last of the home address
	epochs     uint64           // of owners

	flights []flight
	count   int // packets put on the network so far
	// fault says when packet number i arrives: never, once or several times.
	fault func(i int) []time.Duration
	log   *strings.Builder
}

type flight struct {
	at time.Duration
	i  int
	p  []byte
}

func newMachines(t testing.TB) *machines {
	t.Helper()
	m := &machines{
		TB:     t,
		nodes:  make(map[netip.Addr]*node.Node),
		relays: make(map[netip.Addr]*relay.Relay),
		events: make(map[netip.Addr][]node.Event),
	}
	for i, addr := range both {
		n, err := node.New(node.Config{
			Home: netip.PrefixFrom(homeAddr, 64), CareOf: addr, HomeAgent: agentAddr, SPI: 256, Key: sharedKey,
			Epoch: epoch.Add(time.Duration(i) * -time.Hour), // one's clock is wrong
			Rand:  random(byte(i)),
		})
		m.must(err)
		r, err := relay.New(relay.Config{Home: homeAddr, CareOf: addr, HomeAgent: agentAddr})
		m.must(err)
		r.Step(0, relay.SetNodes{Nodes: both})
		m.nodes[addr], m.relays[addr] = n, r
	}
	m.startAgent()
	m.startClient(9)
	return m
}

var (
	sharedKey = wire.SharedKey("a key that home agent and nodes share")
	epoch     = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func random(n byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{n}) }

func (m *machines) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// startAgent starts the home agent, anew if there was one.
func (m *machines) startAgent() {
	var err error
	m.agent, err = homeagent.New(homeagent.Config{
		Addr: agentAddr, Prefixes: []homeagent.Prefix{{Prefix: netip.PrefixFrom(homeAddr, 64).Masked()}},
		Link:  []byte{2, 0, 0, 0, 0, 1},
		Keys:  map[netip.Addr]homeagent.Credential{homeAddr: {SPI: 256, Key: sharedKey}},
		Epoch: epoch, Start: m.now, Rand: random(8), RefreshAdvice: 12 * time.Second,
	})
	m.must(err)
	m.registered = homeagent.Change{}
}

// startClient starts the client's correspondent, anew if there was one.
func (m *machines) startClient(seed byte) {
	var err error
	m.client, err = correspondent.New(correspondent.Config{
		Local: func(a netip.Addr) bool { return a == clientAddr }, Rand: random(seed),
	})
	m.must(err)
}

// put puts packets of a host on the network.
func (m *machines) put(from string, packets ...[]byte) {
	for _, p := range packets {
		p = slices.Clone(p)
		delays := []time.Duration{hop}
		if m.fault != nil {
			delays = m.fault(m.count)
		}
		if m.log != nil {
			to := netip.AddrFrom16([16]byte(p[24:40]))
			fmt.Fprintf(m.log, "%9.3f  %d: %s to %s: %s, arrives after %v\n", m.now.Seconds(), m.count, from, hostNames[to], ladder.Describe(p), delays)
		}
		for _, d := range delays {
			m.flights = append(m.flights, flight{m.now + d, m.count, p})
		}
		m.count++
	}
}

// do gives a node an input.
func (m *machines) do(a netip.Addr, in node.Input) {
	out := m.nodes[a].Step(m.now, in)
	m.put(hostNames[a], out.Send...)
	for _, e := range out.Events {
		if m.log != nil {
			fmt.Fprintf(m.log, "%9.3f  %s: %v\n", m.now.Seconds(), hostNames[a], e)
		}
		m.events[a] = append(m.events[a], e)
	}
}

// owner tells every relay whose the client is.
func (m *machines) owner(a netip.Addr) {
	m.epochs++
	for _, r := range m.relays {
		r.Step(m.now, relay.SetOwner{Client: clientAddr, Owner: a, Epoch: m.epochs})
	}
}

func (m *machines) stepAgent(in homeagent.Input) {
	out := m.agent.Step(m.now, in)
	m.put("agent", out.Send...) // what is for the home link finds nobody
	for _, c := range out.Changes {
		if c.Home == homeAddr {
			m.registered = c
		}
	}
}

func (m *machines) deliver(b []byte) {
	dst := netip.AddrFrom16([16]byte(b[24:40]))
	switch n := m.nodes[dst]; {
	case dst == clientAddr:
		m.put("client", m.client.Step(m.now, correspondent.Received{Packet: b}).Send...)
	case dst == agentAddr || dst == homeAddr:
		m.stepAgent(homeagent.Received{Packet: b})
	case n == nil:
		m.Fatalf("packet to %v", dst)
	default:
		if n.Via() == agentAddr { // the contact
			out := m.relays[dst].Step(m.now, relay.Received{Packet: b})
			m.put(hostNames[dst], out.Send...)
			if out.Dropped != relay.NotTunnel && len(out.Local) == 0 {
				return
			}
		}
		m.do(dst, node.Received{Packet: b})
	}
}

// run lets time pass.
func (m *machines) run(d time.Duration) {
	end := m.now + d
	for {
		at, due := end, func() {}
		consider := func(t time.Duration, ok bool, f func()) {
			if t = max(t, m.now); ok && t < at {
				at, due = t, f
			}
		}
		for _, a := range both {
			t, ok := m.nodes[a].NextDeadline()
			consider(t, ok, func() { m.do(a, node.Tick{}) })
			t, ok = m.relays[a].NextDeadline()
			consider(t, ok, func() { m.relays[a].Step(m.now, relay.Tick{}) })
		}
		t, ok := m.agent.NextDeadline()
		consider(t, ok, func() { m.stepAgent(homeagent.Tick{}) })
		t, ok = m.client.NextDeadline()
		consider(t, ok, func() { m.put("client", m.client.Step(m.now, correspondent.Tick{}).Send...) })
		if len(m.flights) > 0 {
			first := slices.MinFunc(m.flights, func(a, b flight) int {
				return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.i, b.i))
			})
			consider(first.at, true, func() {
				i := slices.IndexFunc(m.flights, func(f flight) bool { return f.at == first.at && f.i == first.i })
				m.flights = slices.Delete(m.flights, i, i+1)
				m.deliver(first.p)
			})
		}
		if m.now = at; at == end {
			return
		}
		due()
	}
}

// wantOwner says whose the client's binding is, and that only that node thinks so.
func (m *machines) wantOwner(owner netip.Addr) {
	m.Helper()
	if got, _ := m.client.Lookup(clientAddr, homeAddr); got != owner {
		m.Errorf("at %v the client's binding is %v, want %v; events %v", m.now, got, owner, m.events)
	}
	for _, a := range both {
		want := node.None
		if a == owner {
			want = node.Established
		}
		if got := m.nodes[a].State(clientAddr); got != want {
			m.Errorf("at %v the client's state at %s is %v, want %v", m.now, hostNames[a], got, want)
		}
	}
}

// wantContact says which node is registered, and that only that node thinks so.
func (m *machines) wantContact(contact netip.Addr) {
	m.Helper()
	if got := m.registered; got.CareOf != contact || contact.IsValid() && got.Until <= m.now {
		m.Errorf("at %v the home agent has %+v, want %v", m.now, got, contact)
	}
	for _, a := range both {
		if _, ok := m.nodes[a].Registered(); ok != (a == contact) {
			m.Errorf("at %v %s is registered: %t", m.now, hostNames[a], ok)
		}
	}
}

// Everything in a row, on a good network.
func TestMachines(t *testing.T) {
	m := newMachines(t)
	m.do(addrA, node.Register{})
	m.do(addrB, node.SetContact{Addr: addrA})
	m.run(3 * time.Second)
	m.wantContact(addrA)
	m.do(addrA, node.Optimise{Client: clientAddr})
	m.run(time.Second)
	m.wantOwner(addrA)

	// A prepared handoff, and one back that is not.
	g, _ := m.nodes[addrA].Grant(clientAddr, m.now)
	m.do(addrB, node.Prepare{Client: clientAddr, Grant: g})
	m.run(time.Second)
	if careOf, _ := m.client.Lookup(clientAddr, homeAddr); careOf != addrA {
		t.Errorf("the preparation has changed the binding to %v", careOf)
	}
	m.handOff(addrA, addrB, true)
	m.run(time.Second)
	m.wantOwner(addrB)
	m.run(10 * time.Minute) // with refreshes, home tests through the contact
	m.wantOwner(addrB)
	m.handOff(addrB, addrA, true)
	m.run(time.Second)
	m.wantOwner(addrA)

	// The other node becomes the contact, its clock an hour behind.
	m.do(addrB, node.Register{})
	m.do(addrA, node.SetContact{Addr: addrB})
	m.run(3 * time.Second)
	m.wantContact(addrB)
	m.run(10 * time.Minute)
	m.wantOwner(addrA)

	// A takeover without a grant: the sequence number has to be learnt. The
	// owner before learns that it is one no more.
	m.do(addrB, node.Bind{Client: clientAddr})
	m.run(10 * time.Minute)
	m.wantOwner(addrB)

	m.do(addrB, node.Release{Client: clientAddr})
	m.run(time.Second)
	m.wantOwner(netip.Addr{})
	m.do(addrB, node.Deregister{})
	m.run(time.Second)
	m.wantContact(netip.Addr{})
	if e := m.events[addrB]; e[len(e)-1].Kind != node.Deregistered {
		t.Errorf("events %v", e)
	}
}

// handOff hands the client over, with the donor's home keygen token or without.
func (m *machines) handOff(from, to netip.Addr, token bool) {
	g, _ := m.nodes[from].Grant(clientAddr, m.now)
	if !token {
		g = node.Grant{Sequence: g.Sequence}
	}
	m.do(from, node.Abandon{Client: clientAddr})
	m.do(to, node.Bind{Client: clientAddr, Grant: g})
	m.owner(to)
}

// exchange is what happens between two states of the machines in which all is
// quiet.
type exchange struct {
	name   string
	before []func(*machines)
	during func(*machines)
	after  func(*machines)
}

func registered(m *machines) {
	m.do(addrA, node.Register{})
	m.do(addrB, node.SetContact{Addr: addrA})
	m.run(2 * time.Second)
}

func optimised(a netip.Addr) func(*machines) {
	return func(m *machines) {
		m.owner(a)
		m.do(a, node.Optimise{Client: clientAddr})
		m.run(2 * time.Second)
	}
}

func owned(a netip.Addr) func(*machines) {
	return func(m *machines) { m.wantOwner(a); m.wantContact(addrA) }
}

func prepared(from, to netip.Addr, token bool) func(*machines) {
	return func(m *machines) {
		g, _ := m.nodes[from].Grant(clientAddr, m.now)
		if !token {
			g = node.Grant{Sequence: g.Sequence}
		}
		m.do(to, node.Prepare{Client: clientAddr, Grant: g})
		m.run(10 * hop)
		m.handOff(from, to, token)
	}
}

func handedOff(from, to netip.Addr, token bool) func(*machines) {
	return func(m *machines) { m.handOff(from, to, token) }
}

// almostRefresh waits until a node's next refresh is a millisecond away.
func almostRefresh(a netip.Addr) func(*machines) {
	return func(m *machines) {
		at, _ := m.nodes[a].NextDeadline()
		m.run(at - m.now - time.Millisecond)
	}
}

var exchanges = []exchange{
	{"registration", nil, func(m *machines) {
		m.do(addrA, node.Register{})
		m.do(addrB, node.SetContact{Addr: addrA})
	}, func(m *machines) { m.wantContact(addrA) }},
	{"deregistration", []func(*machines){registered}, func(m *machines) { m.do(addrA, node.Deregister{}) },
		func(m *machines) { m.wantContact(netip.Addr{}) }},
	{"deregistration, and registration by another", []func(*machines){registered}, func(m *machines) {
		m.do(addrA, node.Deregister{})
		m.run(hop)
		m.do(addrB, node.Register{})
		m.do(addrA, node.SetContact{Addr: addrB})
	}, func(m *machines) { m.wantContact(addrB) }},
	{"refresh of a registration", []func(*machines){registered, almostRefresh(addrA)}, func(m *machines) {},
		func(m *machines) { m.wantContact(addrA) }},
	{"takeover of the contact's role", []func(*machines){registered, optimised(addrA)}, func(m *machines) {
		m.do(addrB, node.Register{})
		m.do(addrA, node.SetContact{Addr: addrB})
	}, func(m *machines) { m.wantOwner(addrA); m.wantContact(addrB) }},
	{"the home agent starts anew", []func(*machines){registered}, func(m *machines) {
		m.startAgent()
		m.run(12 * time.Second) // what it has advised
	}, func(m *machines) { m.wantContact(addrA) }},
	{"route optimisation", []func(*machines){registered}, optimised(addrA), owned(addrA)},
	{"route optimisation through the contact", []func(*machines){registered}, optimised(addrB), owned(addrB)},
	{"prepared handoff", []func(*machines){registered, optimised(addrA)}, prepared(addrA, addrB, true), owned(addrB)},
	{"prepared handoff without a token", []func(*machines){registered, optimised(addrA)}, prepared(addrA, addrB, false), owned(addrB)},
	{"handoff", []func(*machines){registered, optimised(addrA)}, handedOff(addrA, addrB, true), owned(addrB)},
	{"handoff without a token", []func(*machines){registered, optimised(addrA)}, handedOff(addrA, addrB, false), owned(addrB)},
	{"handoff to the contact, without a token", []func(*machines){registered, optimised(addrB)}, handedOff(addrB, addrA, false), owned(addrA)},
	{"handoff, the owner not told", []func(*machines){registered, optimised(addrA)}, func(m *machines) {
		g, _ := m.nodes[addrA].Grant(clientAddr, m.now)
		m.do(addrB, node.Bind{Client: clientAddr, Grant: g})
		m.owner(addrB)
	}, func(m *machines) { m.run(10 * time.Minute); owned(addrB)(m) }},
	{"refresh", []func(*machines){registered, optimised(addrB), almostRefresh(addrB)}, func(m *machines) {}, owned(addrB)},
	{"the client starts anew", []func(*machines){registered, optimised(addrB)}, func(m *machines) {
		m.startClient(10)
		m.data()
	}, func(m *machines) {
		m.fault = nil
		m.data() // should the Binding Error have been lost
		m.run(time.Minute)
		owned(addrB)(m)
	}},
	{"release", []func(*machines){registered, optimised(addrB)}, func(m *machines) { m.do(addrB, node.Release{Client: clientAddr}) },
		owned(netip.Addr{})},
	{"registration, and deregistration soon", nil, func(m *machines) {
		m.do(addrA, node.Register{})
		m.run(1100 * time.Millisecond) // Duplicate Address Detection is over
		m.do(addrA, node.Deregister{})
	}, func(m *machines) { m.wantContact(netip.Addr{}) }},
	{"handoff, and release soon", []func(*machines){registered, optimised(addrA)}, func(m *machines) {
		m.handOff(addrA, addrB, true)
		m.run(100 * time.Millisecond)
		m.do(addrB, node.Release{Client: clientAddr})
	}, owned(netip.Addr{})},
	{"handoff and back", []func(*machines){registered, optimised(addrA)}, func(m *machines) {
		m.handOff(addrA, addrB, true)
		m.run(100 * time.Millisecond)
		m.handOff(addrB, addrA, true)
	}, owned(addrA)},
	{"release with an old token", []func(*machines){registered, optimised(addrB), func(m *machines) { m.run(5 * time.Minute) }},
		func(m *machines) { m.do(addrB, node.Release{Client: clientAddr}) }, owned(netip.Addr{})},
}

// data is a packet of node b to the client by its binding.
func (m *machines) data() {
	p := wire.Packet{Src: addrB, Dst: clientAddr, Home: homeAddr, Protocol: wire.TCP, Payload: make([]byte, 20)}
	b, err := p.Append(nil)
	m.must(err)
	m.put("b", b)
}

// packetFaults are what can become of a packet.
var packetFaults = []struct {
	name string
	at   []time.Duration
}{
	{"lost", nil},
	{"doubled", []time.Duration{hop, hop}},
	{"doubled, one late", []time.Duration{hop, hop + 400*time.Millisecond}},
	{"a little late", []time.Duration{hop + 12*time.Millisecond}},
	{"late", []time.Duration{hop + 700*time.Millisecond}},
	{"very late", []time.Duration{hop + 5*time.Second}},
}

// Any one packet, and any two, of an exchange among all machines are lost, doubled
// or late: it ends in the right state all the same. (Packages node and
// correspondent have the like for themselves.)
func TestFaultsAtEachPosition(t *testing.T) {
	total := 0
	for _, x := range exchanges {
		t.Run(x.name, func(t *testing.T) {
			n := x.run(t, nil)
			if n == 0 {
				t.Fatal("no packets")
			}
			runs := 1
			for i := range n + 2 { // those that only a fault brings about, too
				for _, f := range packetFaults {
					faults := map[int][]time.Duration{i: f.at}
					x.run(t, faults, fmt.Sprint(i, " ", f.name))
					runs++
					if raceDetector || testing.Short() || t.Failed() {
						continue
					}
					for j := i + 1; j < n+3; j++ {
						for _, g := range packetFaults {
							faults := map[int][]time.Duration{i: f.at, j: g.at}
							x.run(t, faults, fmt.Sprint(i, " ", f.name), fmt.Sprint(j, " ", g.name))
							runs++
						}
					}
				}
			}
			t.Logf("%d packets, %d runs", n, runs)
			total += runs
		})
	}
	t.Logf("%d runs", total)
}

// run plays an exchange with faults by position, and says how many packets there
// were in it.
func (x *exchange) run(t *testing.T, faults map[int][]time.Duration, what ...string) (n int) {
	t.Helper()
	rec := &failures{TB: t}
	n = x.play(rec, faults, nil)
	if rec.said != "" {
		var log strings.Builder
		x.play(&failures{TB: t}, faults, &log)
		t.Errorf("%s:\n%s%s", strings.Join(what, ", "), rec.said, log.String())
	}
	return n
}

func (x *exchange) play(rec *failures, faults map[int][]time.Duration, log *strings.Builder) (n int) {
	m := newMachines(rec)
	for _, f := range x.before {
		f(m)
	}
	m.log = log
	first := m.count
	m.fault = func(i int) []time.Duration {
		if at, ok := faults[i-first]; ok {
			return at
		}
		return []time.Duration{hop}
	}
	x.during(m)
	m.run(time.Second)
	n = m.count - first
	m.run(40 * time.Second)
	x.after(m)
	for _, a := range both {
		if s := m.relays[a].Stats(); s.Paths > 0 {
			rec.Errorf("%s still waits for %d home tests of others", hostNames[a], s.Paths)
		}
	}
	return n
}

// failures keeps what failed, to tell it together with what led to it.
type failures struct {
	testing.TB
	said string
}

func (f *failures) Helper() {}
func (f *failures) Errorf(format string, args ...any) {
	f.said += fmt.Sprintf(format, args...) + "\n"
}
