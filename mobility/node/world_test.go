package node

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// The network of the tests, with one hop of 5 milliseconds between any two:
//
//	client c, d ───── internet ───── home agent h ── home address s
//	                    │   │
//	             node a ┘   └ node b
//
// Whichever node is the contact relays home tests for the other.
var (
	addrHome  = netip.MustParseAddr("2001:db8:a::1234")
	addrAgent = netip.MustParseAddr("2001:db8:a::1")
	addrA     = netip.MustParseAddr("2001:db8:f::a")
	addrB     = netip.MustParseAddr("2001:db8:f::b")
	addrC     = netip.MustParseAddr("2001:db8:c::c")
	addrD     = netip.MustParseAddr("2001:db8:c::d")

	names = map[netip.Addr]string{addrHome: "s", addrAgent: "h", addrA: "a", addrB: "b", addrC: "c", addrD: "d"}

	sharedKey = wire.SharedKey("a key that home agent and nodes share")
	epoch     = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func config(careOf netip.Addr, seed byte) Config {
	return Config{
		Home: netip.PrefixFrom(addrHome, 64), CareOf: careOf, HomeAgent: addrAgent,
		SPI: 256, Key: sharedKey, Epoch: epoch, Rand: rand.NewChaCha8([32]byte{seed}),
	}
}

func newNode(t testing.TB, cfg Config) *Node {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newAgent() *agent {
	return &agent{addr: addrAgent, home: addrHome, key: sharedKey, epoch: epoch, delay: time.Second}
}

const hop = 5 * time.Millisecond

type world struct {
	t       testing.TB
	now     time.Duration
	nodes   map[netip.Addr]*Node
	order   []netip.Addr // of nodes
	clients map[netip.Addr]*peer
	agent   *agent
	paths   map[wire.Cookie]netip.Addr // the contact's: who asked

	flights []flight
	count   int // packets put on the network so far
	// fault says when packet number i arrives, none, one or several times.
	fault  func(i int, p []byte) []time.Duration
	log    *strings.Builder
	events []Event
	by     []netip.Addr // which node each of events is of
	rates  map[rate][]time.Duration
}

type flight struct {
	at   time.Duration
	i    int
	from string
	p    []byte
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	w := &world{
		t: t, nodes: make(map[netip.Addr]*Node), clients: make(map[netip.Addr]*peer),
		agent: newAgent(), paths: make(map[wire.Cookie]netip.Addr),
		order: []netip.Addr{addrA, addrB}, rates: make(map[rate][]time.Duration),
	}
	for i, a := range w.order {
		cfg := config(a, byte(i))
		for _, f := range change {
			f(&cfg)
		}
		w.nodes[a] = newNode(t, cfg)
	}
	for _, a := range []netip.Addr{addrC, addrD} {
		w.clients[a] = newPeer(a)
	}
	return w
}

func (w *world) logf(format string, args ...any) {
	fmt.Fprintf(w.log, "%9.3f  %s\n", w.now.Seconds(), fmt.Sprintf(format, args...))
}

// do gives a node an input.
func (w *world) do(a netip.Addr, in Input) {
	out := w.nodes[a].Step(w.now, in)
	for _, p := range out.Send {
		w.checkRate(a, p)
		w.put(names[a], slices.Clone(p), 0)
	}
	for _, e := range out.Events {
		w.events, w.by = append(w.events, e), append(w.by, a)
		if w.log != nil {
			w.logf("%s: %s", names[a], describeEvent(e))
		}
	}
}

// rate is what is limited: messages of a type from a node to a peer.
type rate struct {
	from, to netip.Addr
	typ      wire.Type
}

// checkRate: no more than MAX_UPDATE_RATE messages of a type to a peer within a
// second (RFC 6275 section 11.8).
func (w *world) checkRate(from netip.Addr, b []byte) {
	p, err := wire.ParsePacket(b)
	if err == nil && p.Protocol == wire.IPv6 {
		if b, err = p.Inner(); err == nil {
			p, err = wire.ParsePacket(b)
		}
	}
	if err != nil {
		w.t.Fatalf("sent %x: %v", b, err)
	}
	typ, err := wire.TypeOf(&p)
	if err != nil {
		w.t.Fatalf("sent %s: %v", describe(b), err)
	}
	k := rate{from, p.Dst, typ}
	sent := append(w.rates[k], w.now)
	if n := len(sent); n > MaxUpdateRate {
		sent = sent[n-1-MaxUpdateRate:]
		if w.now-sent[0] < time.Second {
			w.t.Errorf("%d of %v within a second, at %v", MaxUpdateRate+1, k, w.now)
		}
	}
	w.rates[k] = sent
}

func (w *world) put(from string, p []byte, wait time.Duration) {
	at := []time.Duration{hop}
	if w.fault != nil {
		at = w.fault(w.count, p)
	}
	if w.log != nil {
		note := ""
		switch {
		case len(at) == 0:
			note = "   lost"
		case len(at) > 1:
			note = "   doubled"
		case at[0] != hop:
			note = fmt.Sprintf("   delayed by %v", at[0]-hop)
		}
		w.logf("%s: %s%s", from, describe(p), note)
	}
	for _, d := range at {
		w.flights = append(w.flights, flight{at: w.now + wait + d, i: w.count, from: from, p: p})
	}
	w.count++
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now + d
	for {
		at, node := end+1, netip.Addr{}
		for _, a := range w.order {
			if next, ok := w.nodes[a].NextDeadline(); ok && next < at {
				at, node = next, a
			}
		}
		slices.SortStableFunc(w.flights, func(a, b flight) int {
			return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.i, b.i))
		})
		if len(w.flights) > 0 && w.flights[0].at <= at {
			f := w.flights[0]
			w.flights = w.flights[1:]
			if f.at > end {
				w.flights = append(w.flights, f)
				break
			}
			w.now = max(w.now, f.at)
			w.deliver(f.p)
			continue
		}
		if at > end {
			break
		}
		if at < w.now {
			at = w.now
		}
		w.now = at
		w.do(node, Tick{})
	}
	w.now = end
}

func (w *world) deliver(b []byte) {
	p, err := wire.ParsePacket(b)
	if err != nil {
		w.t.Fatalf("packet on the network: %v", err)
	}
	switch {
	case p.Dst == addrAgent:
		if p.Protocol == wire.IPv6 {
			// Only from the contact.
			if inner, err := p.Inner(); err == nil && w.agent.bound(w.now) && p.Src == w.agent.careOf && !w.agent.down {
				w.put("h", inner, 0)
			}
			return
		}
		if m, err := wire.ParseMobility(&p); err == nil {
			if bu, ok := m.(*wire.BindingUpdate); ok {
				if out, wait := w.agent.update(w.now, &p, bu); out != nil {
					w.put("h", out, wait)
				}
			}
		}
	case p.Dst == addrHome:
		if w.agent.bound(w.now) && !w.agent.down {
			w.put("h", mustTunnel(addrAgent, w.agent.careOf, b), 0)
		}
	case w.clients[p.Dst] != nil:
		if out := w.clients[p.Dst].receive(w.now, b); out != nil {
			w.put(names[p.Dst], out, 0)
		}
	case w.nodes[p.Dst] != nil:
		if p.Protocol == wire.IPv6 && w.relayed(&p) {
			return
		}
		w.do(p.Dst, Received{b})
	}
}

// relayed is what the contact does for the others: home tests out, their
// answers back.
func (w *world) relayed(p *wire.Packet) bool {
	contact := p.Dst
	if w.nodes[contact].Via() != addrAgent {
		return false
	}
	b, err := p.Inner()
	if err != nil {
		return false
	}
	inner, err := wire.ParsePacket(b)
	if err != nil || inner.Protocol != wire.Mobility {
		return false
	}
	m, _ := wire.ParseMobility(&inner)
	switch m := m.(type) {
	case *wire.HomeTestInit:
		if w.nodes[p.Src] != nil {
			w.paths[m.Cookie] = p.Src
			w.put(names[contact], mustTunnel(contact, addrAgent, b), 0)
			return true
		}
	case *wire.HomeTest:
		if to, ok := w.paths[m.Cookie]; ok {
			w.put(names[contact], mustTunnel(contact, to, b), 0)
			return true
		}
	}
	return false
}

func nameOf(a netip.Addr) string {
	if s, ok := names[a]; ok {
		return s
	}
	return a.String()
}

// describe is a packet in a line.
func describe(b []byte) string {
	p, err := wire.ParsePacket(b)
	if err != nil {
		return err.Error()
	}
	s := nameOf(p.Src) + " → " + nameOf(p.Dst)
	if p.Home.IsValid() {
		s += fmt.Sprintf(" (home address %s)", names[p.Home])
	}
	if p.Routing.IsValid() {
		s += fmt.Sprintf(" (routing header %s)", names[p.Routing])
	}
	switch p.Protocol {
	case wire.IPv6:
		inner, err := p.Inner()
		if err != nil {
			return s + "  " + err.Error()
		}
		return s + "  [" + describe(inner) + "]"
	case wire.ICMPv6:
		m, err := wire.ParseICMP(&p)
		if e, ok := m.(*wire.ICMPError); ok && err == nil {
			return fmt.Sprintf("%s  ICMPv6 error %d code %d", s, e.Kind, e.Code)
		}
		return s + "  ICMPv6"
	case wire.Mobility:
		m, err := wire.ParseMobility(&p)
		if err != nil {
			return s + "  " + err.Error()
		}
		return s + "  " + describeMessage(m)
	}
	return fmt.Sprintf("%s  protocol %d", s, p.Protocol)
}

func describeMessage(m wire.Message) string {
	switch m := m.(type) {
	case *wire.BindingRefreshRequest:
		return "BRR"
	case *wire.HomeTestInit:
		return "HoTI"
	case *wire.CareOfTestInit:
		return "CoTI"
	case *wire.HomeTest:
		return fmt.Sprintf("HoT nonce %d", m.NonceIndex)
	case *wire.CareOfTest:
		return fmt.Sprintf("CoT nonce %d", m.NonceIndex)
	case *wire.BindingUpdate:
		s := fmt.Sprintf("BU %d", m.Sequence)
		if m.Ack {
			s += " A"
		}
		if m.Home {
			s += "H"
		}
		s += fmt.Sprintf(" %v", m.Lifetime)
		if m.AltCareOf.IsValid() {
			s += " care-of " + names[m.AltCareOf]
		}
		if m.HasNonces {
			s += fmt.Sprintf(" nonces %d %d", m.HomeNonce, m.CareOfNonce)
		}
		return s
	case *wire.BindingAck:
		return fmt.Sprintf("BA %d status %d %v", m.Sequence, m.Status, m.Lifetime)
	case *wire.BindingError:
		return fmt.Sprintf("BE %d", m.Status)
	}
	return "?"
}

func describeEvent(e Event) string {
	s := e.Kind.String()
	if e.Client.IsValid() {
		s = names[e.Client] + " " + s
	}
	if e.Reason != 0 {
		s += ", " + e.Reason.String()
	}
	if e.Status != 0 {
		s += fmt.Sprintf(", status %d", e.Status)
	}
	if e.Until != 0 {
		s += fmt.Sprintf(", until %.3f", e.Until.Seconds())
	}
	return s
}
