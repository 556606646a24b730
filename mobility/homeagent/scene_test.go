package homeagent

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// The network of the tests:
//
//	      home link 2001:db8:a::/64
//	────┬───────────────┬──────────────────┬──────
//	neighbor          agent             home, home2
//	                    │
//	cn ── (internet) ───┼── coa1, coa2
//	                    └── stranger
//
// On a virtual home link there is no neighbor, and home2 cannot be there.
var (
	agentAddr = addr("2001:db8:a::1")
	home      = addr("2001:db8:a::1234")
	home2     = addr("2001:db8:a::5678")
	coa1      = addr("2001:db8:f1::1")
	coa2      = addr("2001:db8:f2::1")
	cn        = addr("2001:db8:c::2")
	stranger  = addr("2001:db8:666::1")
	neighbor  = addr("fe80::4:3:2:1")
	offLink   = addr("2001:db8:b::1234") // has a key, but is on no home prefix
	anycast   = addr("2001:db8:a:0:fdff:ffff:ffff:fffe")

	names = map[netip.Addr]string{
		agentAddr: "agent", home: "home", home2: "home2", coa1: "coa1", coa2: "coa2", cn: "cn",
		stranger: "stranger", neighbor: "neighbor", allNodes: "all", offLink: "off-link",
		linkLocal(home): "home-ll", netip.IPv6Unspecified(): "::",
	}

	agentLink    = []byte{0x52, 0x54, 0, 0, 0x0a, 1}
	neighborLink = []byte{0x46, 0x42, 0x8f, 0x75, 0xf9, 0}
	epoch        = time.Date(2026, 11, 22, 21, 52, 0, 0, time.UTC)
	secret       = wire.SharedKey("sixteen octets of secret")
	secret2      = wire.SharedKey("another secret, for home2")
)

const (
	spi  = 1000
	long = 400 * time.Second
	dad  = time.Second
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func name(a netip.Addr) string {
	if n, ok := names[a]; ok {
		return n
	}
	return a.String()
}

func config() Config {
	return Config{
		Addr:     agentAddr,
		Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("2001:db8:a::/64")}},
		Link:     agentLink,
		Keys: map[netip.Addr]Credential{
			home: {spi, secret}, home2: {spi, secret2}, offLink: {spi, secret},
		},
		Epoch: epoch,
		Rand:  rand.NewChaCha8([32]byte{1}),
	}
}

// virtual makes the home link a virtual one.
func virtual(cfg *Config) { cfg.Link = nil }

// scene is a home agent and what it does, in words.
type scene struct {
	testing.TB
	cfg     Config
	m       *HomeAgent
	now     time.Duration
	log     []string
	stamp   uint64 // of the last Binding Update
	last    []byte // the last that was accepted, where a test says so
	unsent  []byte // one that was made before it, and has not come
	changes []Change
	raw     map[string][]byte // packets by their words
}

func newScene(t testing.TB, change ...func(*Config)) *scene {
	t.Helper()
	cfg := config()
	cfg.Start = time.Minute
	for _, f := range change {
		f(&cfg)
	}
	s := &scene{TB: t, cfg: cfg, now: cfg.Start + time.Minute, raw: map[string][]byte{}}
	s.m = s.agent(cfg)
	return s
}

func (s *scene) agent(cfg Config) *HomeAgent {
	s.Helper()
	m, err := New(cfg)
	if err != nil {
		s.Fatal(err)
	}
	return m
}

// restart replaces the home agent by a new one that knows nothing.
func (s *scene) restart() {
	s.cfg.Start = s.now
	s.m = s.agent(s.cfg)
}

func (s *scene) real() bool { return s.cfg.Link != nil }

// step gives the machine an input and writes down what comes of it.
func (s *scene) step(in Input) {
	s.Helper()
	out := s.m.Step(s.now, in)
	for _, g := range out.Join {
		s.note("join "+g.String(), nil)
	}
	s.changes = append(s.changes, out.Changes...)
	for _, b := range out.Link {
		s.note("link: "+s.words(b), b)
	}
	for _, b := range out.Send {
		s.note("send: "+s.words(b), b)
	}
	for _, b := range out.Local {
		s.note("local: "+s.words(b), b)
	}
	for _, g := range out.Leave {
		s.note("leave "+g.String(), nil)
	}
}

func (s *scene) note(words string, b []byte) {
	s.log = append(s.log, words)
	s.raw[words] = bytes.Clone(b)
}

func (s *scene) receive(b []byte) { s.Helper(); s.step(Received{b}) }
func (s *scene) hear(b []byte)    { s.Helper(); s.step(OnLink{b}) }

// wait lets time pass, with its ticks.
func (s *scene) wait(d time.Duration) {
	s.Helper()
	until := s.now + d
	for {
		at, ok := s.m.NextDeadline()
		if !ok || at > until {
			break
		}
		s.now = max(s.now, at)
		s.step(Tick{})
	}
	s.now = until
}

// want compares what has been done since the last time.
func (s *scene) want(lines ...string) {
	s.Helper()
	got := s.log
	s.log = nil
	if !slices.Equal(got, lines) {
		s.Fatalf("at %v the home agent did\n\t%s\nwant\n\t%s", s.now, strings.Join(got, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

func (s *scene) silence() { s.Helper(); s.want() }

// forget takes no interest in what has been done.
func (s *scene) forget() { s.log = nil }

// words says what a packet is. A packet that is wrong fails the test.
func (s *scene) words(b []byte) string {
	s.Helper()
	p, err := wire.ParsePacket(b)
	if err != nil {
		s.Fatalf("%v: %x", err, b)
	}
	way := "to " + name(p.Dst)
	if p.Routing.IsValid() {
		way += " for " + name(p.Routing)
	}
	switch p.Protocol {
	case wire.Mobility:
		return s.mobilityWords(&p, way)
	case wire.ICMPv6:
		return s.icmpWords(&p, way)
	case wire.IPv6:
		inner, err := p.Inner()
		if err != nil {
			s.Fatalf("%v: %x", err, b)
		}
		if p.Src != agentAddr {
			s.Fatalf("tunnel from %v", p.Src)
		}
		return fmt.Sprintf("tunnel %s [%s]", way, s.words(inner))
	}
	return fmt.Sprintf("protocol %d, %s > %s", p.Protocol, name(p.Src), name(p.Dst))
}

func (s *scene) mobilityWords(p *wire.Packet, way string) string {
	s.Helper()
	m, err := wire.ParseMobility(p)
	if err != nil {
		s.Fatal(err)
	}
	switch m := m.(type) {
	case *wire.BindingAck:
		w := fmt.Sprintf("BA %d #%d %v %s", m.Status, m.Sequence, m.Lifetime, way)
		if m.KeyManagement {
			w += " K"
		}
		if m.RefreshAdvice > 0 {
			w += fmt.Sprintf(" refresh %v", m.RefreshAdvice)
		}
		if m.MobileAuth == nil {
			w += " unsigned"
		}
		return w
	case *wire.BindingError:
		return fmt.Sprintf("BE %d %s %s", m.Status, name(m.Home), way)
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", m), "*wire.") + fmt.Sprintf(" %s > %s", name(p.Src), name(p.Dst))
}

func (s *scene) icmpWords(p *wire.Packet, way string) string {
	s.Helper()
	m, err := wire.ParseICMP(p)
	if err != nil {
		s.Fatal(err)
	}
	switch m := m.(type) {
	case *wire.ICMPError:
		return fmt.Sprintf("ICMP error %d/%d %d %s", m.Kind, m.Code, m.Param, way)
	case *wire.NeighborSolicitation:
		if p.Dst != solicitedNode(m.Target) || p.Src.IsValid() && !p.Src.IsUnspecified() || m.Source != nil {
			s.Fatalf("solicitation from %v to %v with %x", p.Src, p.Dst, m.Source)
		}
		return "NS " + name(m.Target)
	case *wire.NeighborAdvertisement:
		if p.Src != agentAddr || m.Router || !bytes.Equal(m.TargetLink, agentLink) {
			s.Fatalf("advertisement from %v: %+v", p.Src, m)
		}
		w := "NA " + name(m.Target) + " " + way
		if m.Solicited {
			w += " S"
		}
		if m.Override {
			w += " O"
		}
		return w
	case *wire.AgentReply:
		w := fmt.Sprintf("agents #%d %s:", m.ID, way)
		for _, a := range m.Agents {
			w += " " + name(a)
		}
		return w
	case *wire.PrefixAdvertisement:
		w := fmt.Sprintf("prefixes #%d %s:", m.ID, way)
		for _, i := range m.Prefixes {
			w += fmt.Sprintf(" %v %v %v", i.Prefix, lifetime(i.Valid), lifetime(i.Preferred))
		}
		return w
	}
	return fmt.Sprintf("echo %s > %s", name(p.Source()), name(p.Destination()))
}

func lifetime(d time.Duration) string {
	if d == wire.Infinite {
		return "forever"
	}
	return d.String()
}

// bu is a Binding Update. The zero value is what the mobile node at home sends
// from coa1, H set, signed, with the time.
type bu struct {
	wire.BindingUpdate
	home, src netip.Addr
	noHAO     bool
	notHome   bool // H clear
	noAuth    bool
	noStamp   bool
	key       wire.SharedKey
	spi       uint32
	stamp     uint64
	edit      func(mh []byte) // before it is signed
	spoil     func(mh []byte) // after
}

// packet returns the packet with u, sent now.
func (s *scene) packet(u bu) []byte {
	s.Helper()
	orDefault := func(a *netip.Addr, def netip.Addr) {
		if !a.IsValid() {
			*a = def
		}
	}
	orDefault(&u.home, home)
	orDefault(&u.src, coa1)
	careOf := u.src
	if u.AltCareOf.IsValid() {
		careOf = u.AltCareOf
	}
	if u.key == nil {
		u.key = secret
		if u.home == home2 {
			u.key = secret2
		}
	}
	if u.spi == 0 {
		u.spi = spi
	}
	u.Home = !u.notHome
	if !u.noAuth {
		u.MobileAuth = &wire.MobileAuth{SPI: u.spi, Timestamp: u.stamp}
		if u.stamp == 0 && !u.noStamp {
			s.stamp = max(s.stamp+1, s.m.ntp(s.now))
			u.MobileAuth.Timestamp = s.stamp
		}
	}
	mh := u.Append(nil, u.home, agentAddr)
	if u.edit != nil {
		u.edit(mh)
	}
	if !u.noAuth {
		sign(mh, u.key, careOf, u.home)
	}
	if u.spoil != nil {
		u.spoil(mh)
	}
	p := wire.Packet{Src: u.src, Dst: agentAddr, Home: u.home, Protocol: wire.Mobility, Payload: checksummed(mh, u.home, agentAddr, 4)}
	if u.noHAO {
		p.Home = netip.Addr{}
	}
	return s.bytes(&p)
}

func (s *scene) update(u bu) { s.Helper(); s.receive(s.packet(u)) }

// sign does independently of package wire what RFC 4285 section 5.1 says.
func sign(mh []byte, key wire.SharedKey, careOf, home netip.Addr) {
	for i := 12; i+2 <= len(mh); {
		switch {
		case mh[i] == 0:
			i++
			continue
		case mh[i] == 9:
			copied := bytes.Clone(mh[:i+7])
			copied[4], copied[5] = 0, 0
			h := hmac.New(sha1.New, key)
			h.Write(careOf.AsSlice())
			h.Write(home.AsSlice())
			h.Write(copied)
			copy(mh[i+7:i+19], h.Sum(nil))
			return
		}
		i += 2 + int(mh[i+1])
	}
	panic("no authentication option")
}

// checksummed sets the checksum, which is at octet at.
func checksummed(b []byte, src, dst netip.Addr, at int) []byte {
	b = bytes.Clone(b)
	b[at], b[at+1] = 0, 0
	next := byte(wire.Mobility)
	if at == 2 {
		next = byte(wire.ICMPv6)
	}
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), binary.BigEndian.AppendUint32(nil, uint32(len(b))), []byte{0, 0, 0, next}, b)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[at:], ^uint16(sum))
	return b
}

func (s *scene) bytes(p *wire.Packet) []byte {
	s.Helper()
	b, err := p.Append(nil)
	if err != nil {
		s.Fatal(err)
	}
	return b
}

// bind registers u, which is accepted.
func (s *scene) bind(u bu) {
	s.Helper()
	s.forget()
	s.update(u)
	if len(s.log) == 0 || !strings.Contains(s.log[len(s.log)-1], "BA") {
		s.wait(dad)
	}
	h := home
	if u.home.IsValid() {
		h = u.home
	}
	if b := s.m.homes[h.As16()]; b.state != bound || b.sequence != u.Sequence {
		s.Fatalf("no binding:\n\t%s", strings.Join(s.log, "\n\t"))
	}
	s.forget()
}

func seq(n uint16, life time.Duration) bu {
	return bu{BindingUpdate: wire.BindingUpdate{Sequence: n, Lifetime: life, Ack: true}}
}

// echo is an ICMPv6 echo request with the given number of octets.
func (s *scene) echo(src, dst netip.Addr, size ...int) []byte {
	m := make([]byte, 8)
	if len(size) > 0 {
		m = make([]byte, size[0]-wire.HeaderLen)
	}
	m[0] = 128
	return s.bytes(&wire.Packet{Src: src, Dst: dst, Protocol: wire.ICMPv6, Payload: checksummed(m, src, dst, 2)})
}

// tunnelled is a packet in a tunnel from src to the home agent.
func (s *scene) tunnelled(src netip.Addr, inner []byte) []byte {
	return s.bytes(&wire.Packet{Src: src, Dst: agentAddr, Protocol: wire.IPv6, Payload: inner})
}

// mobility is a packet with a mobility header.
func (s *scene) mobility(src, dst netip.Addr, m wire.Message) []byte {
	return s.bytes(&wire.Packet{Src: src, Dst: dst, Protocol: wire.Mobility, Payload: m.Append(nil, src, dst)})
}

func (s *scene) icmp(p wire.Packet, m wire.ICMP) []byte {
	s.Helper()
	p.Protocol, p.Payload = wire.ICMPv6, m.Append(nil, p.Source(), p.Destination())
	return s.bytes(&p)
}

// solicitation is a Neighbor Solicitation: multicast or not, with a source
// link-layer address or not; a probe comes from the unspecified address.
func (s *scene) solicitation(src, target netip.Addr, multicast, sll bool) []byte {
	m := &wire.NeighborSolicitation{Target: target}
	if sll {
		m.Source = neighborLink
	}
	dst := target
	if multicast {
		dst = solicitedNode(target)
	}
	return s.icmp(wire.Packet{Src: src, Dst: dst, HopLimit: 255}, m)
}

func (s *scene) probe(target netip.Addr) []byte {
	return s.solicitation(netip.IPv6Unspecified(), target, true, false)
}

// advertisement is what a neighbor that uses target says.
func (s *scene) advertisement(target netip.Addr) []byte {
	return s.icmp(wire.Packet{Src: neighbor, Dst: allNodes, HopLimit: 255},
		&wire.NeighborAdvertisement{Override: true, Target: target, TargetLink: neighborLink})
}

// bound and away check the state of a home address from outside.
func (s *scene) bound(home, careOf netip.Addr) {
	s.Helper()
	s.forget()
	s.receive(s.echo(cn, home))
	s.want(fmt.Sprintf("send: tunnel to %s [echo cn > %s]", name(careOf), name(home)))
	s.receive(s.tunnelled(careOf, s.echo(home, cn)))
	s.want(fmt.Sprintf("send: echo %s > cn", name(home)))
}

func (s *scene) away(home netip.Addr) {
	s.Helper()
	s.forget()
	s.receive(s.echo(cn, home))
	for _, c := range []netip.Addr{coa1, coa2} {
		s.receive(s.tunnelled(c, s.echo(home, cn)))
	}
	s.silence()
	if s.real() {
		s.hear(s.solicitation(neighbor, home, true, true))
		s.silence()
	}
}
