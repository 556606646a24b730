package correspondent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// The network of the tests:
//
//	                      home agent ── home link   home, home2
//	                          │
//	cn, cn2 ── (internet) ────┼── foreign link 1    coa1
//	                          └── foreign link 2    coa2
//
// The correspondent stands on a host whose stack answers echo requests.
var (
	cn    = addr("2001:db8:1::cc")
	cn2   = addr("2001:db8:1::c2")
	home  = addr("2001:db8:4::1")
	home2 = addr("2001:db8:4::2")
	coa1  = addr("2001:db8:a::1")
	coa2  = addr("2001:db8:b::1")

	router    = addr("2001:db8:ffff::1")
	group     = addr("ff0e::1")
	linkLocal = addr("fe80::1")
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// host is a host with a correspondent and an echo service.
type host struct {
	t   testing.TB
	c   *Correspondent
	now time.Duration

	changes   []Change
	delivered [][]byte // of the last input
}

func newHost(t testing.TB, change ...func(*Config)) *host {
	cfg := Config{
		Local: func(a netip.Addr) bool { return a == cn || a == cn2 || a == addr("fe80::cc") },
		Rand:  rand.NewChaCha8([32]byte{1}),
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &host{t: t, c: c, now: time.Hour}
}

func unlimited(cfg *Config) {
	no := Limit{PerSecond: -1}
	cfg.Limits = Limits{no, no, no, no, no, no}
}

// step gives the machine an input and copies what it wants to be sent. What it
// delivers goes to the echo service, whose answers go through the machine.
func (h *host) step(in Input) (sent [][]byte) {
	out := h.c.Step(h.now, in)
	h.changes = append(h.changes, out.Changes...)
	for _, b := range out.Send {
		sent = append(sent, bytes.Clone(b))
	}
	delivered := [][]byte{}
	for _, b := range out.Deliver {
		delivered = append(delivered, bytes.Clone(b))
	}
	for _, b := range delivered {
		if reply := echo(b); reply != nil {
			sent = append(sent, h.step(Transmit{reply})...)
		}
	}
	h.delivered = delivered
	return sent
}

// receive gives the machine a packet from the network, and returns what it and
// the echo service send.
func (h *host) receive(p []byte) []packet {
	var all []packet
	for _, b := range h.step(Received{p}) {
		all = append(all, parse(h.t, b))
	}
	return all
}

// advance lets time pass, with its ticks.
func (h *host) advance(d time.Duration) []packet {
	var all []packet
	end := h.now + d
	for {
		at, ok := h.c.NextDeadline()
		if !ok || at > end {
			break
		}
		h.now = max(h.now, at)
		for _, b := range h.step(Tick{}) {
			all = append(all, parse(h.t, b))
		}
	}
	h.now = end
	return all
}

// packet is a packet that was sent, taken apart.
type packet struct {
	wire.Packet
	raw []byte
	mh  wire.Message // of a mobility header
	err *wire.ICMPError
}

func (p packet) String() string {
	s := fmt.Sprintf("%v > %v", p.Src, p.Dst)
	if p.Routing.IsValid() {
		s += fmt.Sprintf(" (type 2 routing header %v)", p.Routing)
	}
	switch {
	case p.mh != nil:
		return s + fmt.Sprintf(": %T%+v", p.mh, p.mh)
	case p.err != nil:
		return s + fmt.Sprintf(": ICMPv6 error %d, code %d, %d", p.err.Kind, p.err.Code, p.err.Param)
	}
	return s + fmt.Sprintf(": protocol %d, %d octets", p.Protocol, len(p.Payload))
}

// parse takes apart a packet that the machine sent: it has to be a good one.
func parse(t testing.TB, b []byte) packet {
	t.Helper()
	p := packet{raw: b}
	var err error
	if p.Packet, err = wire.ParsePacket(b); err != nil {
		t.Fatalf("sent a packet that cannot be parsed: %v\n%x", err, b)
	}
	if len(b) != wire.HeaderLen+int(binary.BigEndian.Uint16(b[4:])) {
		t.Fatalf("sent a packet with a wrong length: %x", b)
	}
	switch p.Protocol {
	case wire.Mobility:
		if p.mh, err = wire.ParseMobility(&p.Packet); err != nil {
			t.Fatalf("sent a mobility header that cannot be parsed: %v\n%x", err, b)
		}
	case wire.ICMPv6:
		m, err := wire.ParseICMP(&p.Packet)
		if err != nil {
			t.Fatalf("sent an ICMPv6 message that cannot be parsed: %v\n%x", err, b)
		}
		p.err, _ = m.(*wire.ICMPError)
	}
	return p
}

// build makes a packet.
func build(t testing.TB, p wire.Packet) []byte {
	t.Helper()
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checksum sets the checksum at octet at of an upper-layer packet.
func checksum(b []byte, at int, src, dst netip.Addr, proto wire.Protocol) {
	b[at], b[at+1] = 0, 0
	binary.BigEndian.PutUint16(b[at:], ^sum(b, src, dst, proto))
}

func sum(b []byte, src, dst netip.Addr, proto wire.Protocol) uint16 {
	s, d := src.As16(), dst.As16()
	var n uint32
	for i := 0; i < 16; i += 2 {
		n += uint32(s[i])<<8 | uint32(s[i+1])
		n += uint32(d[i])<<8 | uint32(d[i+1])
	}
	n += uint32(len(b)) + uint32(proto)
	for i, x := range b {
		n += uint32(x) << (8 * (1 - i&1))
	}
	for n>>16 != 0 {
		n = n&0xffff + n>>16
	}
	return uint16(n)
}

const (
	echoRequest = 128
	echoReply   = 129
)

func echoMessage(kind byte, src, dst netip.Addr) []byte {
	b := append([]byte{kind, 0, 0, 0, 1, 2, 3, 4}, "hello from here"...)
	checksum(b, 2, src, dst, wire.ICMPv6)
	return b
}

// echo is a stack's answer to a packet that was delivered to it; nil: none.
func echo(b []byte) []byte {
	p, err := wire.ParsePacket(b)
	if err != nil || p.Protocol != wire.ICMPv6 || p.Home.IsValid() || p.Routing.IsValid() ||
		len(p.Payload) < 8 || p.Payload[0] != echoRequest ||
		p.Src.IsMulticast() || p.Dst.IsMulticast() ||
		sum(p.Payload, p.Src, p.Dst, wire.ICMPv6) != 0xffff {
		return nil
	}
	reply := bytes.Clone(p.Payload)
	reply[0] = echoReply
	checksum(reply, 2, p.Dst, p.Src, wire.ICMPv6)
	b, _ = (&wire.Packet{Src: p.Dst, Dst: p.Src, Protocol: wire.ICMPv6, Payload: reply}).Append(nil)
	return b
}

// mobile is a mobile node that talks to the host.
type mobile struct {
	*host
	local, home, coa netip.Addr

	// What the last tests gave.
	homeIndex, careIndex uint16
	homeToken, careToken wire.Token

	sequence uint16
}

func (h *host) mobile() *mobile {
	return &mobile{host: h, local: cn, home: home, coa: coa1, sequence: 10000}
}

// packet makes a packet with a mobility header, whose checksum is set.
// homeOption zero: there is no Home Address option.
func (m *mobile) packet(src, homeOption netip.Addr, mh []byte) []byte {
	p := wire.Packet{Src: src, Dst: m.local, Home: homeOption, Protocol: wire.Mobility, Payload: mh}
	checksum(mh, 4, p.Source(), p.Dst, wire.Mobility)
	return build(m.t, p)
}

func testInit(kind wire.Type, options ...byte) []byte {
	b := []byte{byte(wire.NoNext), 1, byte(kind), 0, 0, 0, 0, 0, 'c', 'o', 'o', 'k', 'i', 'e', byte(kind), 0}
	b = append(b, options...)
	b[1] = byte(len(b)/8 - 1)
	return b
}

func (m *mobile) hotiPacket() []byte {
	return m.packet(m.home, netip.Addr{}, testInit(wire.TypeHomeTestInit))
}

func (m *mobile) cotiPacket() []byte {
	return m.packet(m.coa, netip.Addr{}, testInit(wire.TypeCareOfTestInit))
}

// hoti makes the home test.
func (m *mobile) hoti() *mobile {
	m.t.Helper()
	hot := only[*wire.HomeTest](m.t, m.receive(m.hotiPacket()), m.local, m.home, netip.Addr{})
	m.homeIndex, m.homeToken = hot.NonceIndex, hot.Token
	return m
}

// coti makes the care-of test.
func (m *mobile) coti() *mobile {
	m.t.Helper()
	cot := only[*wire.CareOfTest](m.t, m.receive(m.cotiPacket()), m.local, m.coa, netip.Addr{})
	m.careIndex, m.careToken = cot.NonceIndex, cot.Token
	return m
}

// rr is the return routability procedure.
func (m *mobile) rr() *mobile {
	m.t.Helper()
	return m.coti().hoti()
}

// bu is a Binding Update to be sent. Its zero value is a good one: for 420 s,
// with acknowledgement, from the care-of address.
type bu struct {
	wire.BindingUpdate
	lifetime time.Duration // 0: 420 s, negative: 0
	noAck    bool
	again    bool // the sequence number of the last one

	src    netip.Addr // zero: the care-of address
	noHome bool       // no Home Address option
	option netip.Addr // the home address in it; zero: the home address

	homeIndex, careIndex int // 0: those of the last tests
	noNonces, noAuth     bool
	key                  *wire.BindingKey // zero: from the tokens
	delete               bool             // sign with the home keygen token alone
	signed               netip.Addr       // the care-of address signed; zero: as it should be

	options []byte                 // more options, put before the nonce indices
	mangle  func(mh []byte) []byte // changes the signed mobility header
	remake  func(mh []byte)        // changes it before it is signed
}

// good is what bu does without further ado.
var good = bu{}

func (m *mobile) bindingKey(b *bu) wire.BindingKey {
	switch {
	case b.key != nil:
		return *b.key
	case b.delete || b.lifetime < 0:
		return wire.DeleteKey(m.homeToken)
	}
	return wire.NewBindingKey(m.homeToken, m.careToken)
}

// updatePacket builds a Binding Update. Unless it is to be the last one again
// the sequence number goes up.
func (m *mobile) updatePacket(b bu) []byte {
	m.t.Helper()
	if !b.again {
		m.sequence++
	}
	u := b.BindingUpdate
	u.Sequence, u.Ack = m.sequence, !b.noAck
	switch {
	case b.lifetime == 0:
		u.Lifetime = 420 * time.Second
	case b.lifetime > 0:
		u.Lifetime = b.lifetime
	}
	u.HasNonces = !b.noNonces
	u.HomeNonce, u.CareOfNonce = m.homeIndex, m.careIndex
	if b.homeIndex != 0 {
		u.HomeNonce = uint16(b.homeIndex)
	}
	if b.careIndex != 0 {
		u.CareOfNonce = uint16(b.careIndex)
	}
	src, option := m.coa, m.home
	if b.src.IsValid() {
		src = b.src
	}
	if b.option.IsValid() {
		option = b.option
	}
	final := option
	if b.noHome {
		final, option = src, netip.Addr{}
	}
	signed := src
	if u.AltCareOf.IsValid() {
		signed = u.AltCareOf
	}
	if b.signed.IsValid() {
		signed = b.signed
	}

	var mh []byte
	if b.noAuth {
		mh = u.Append(nil, final, m.local)
	} else {
		key := m.bindingKey(&b)
		mh = key.Sign(nil, &u, final, m.local, signed, m.local)
		if b.options != nil {
			mh = slices.Insert(mh, 12, b.options...)
			mh[1] += byte(len(b.options) / 8)
		}
		if b.remake != nil {
			b.remake(mh)
		}
		if b.options != nil || b.remake != nil {
			a := key.Authenticator(signed, m.local, mh)
			copy(mh[len(mh)-len(a):], a[:])
		}
	}
	if b.mangle != nil {
		mh = b.mangle(mh)
	}
	return m.packet(src, option, mh)
}

// send sends a Binding Update.
func (m *mobile) send(b bu) []packet {
	m.t.Helper()
	return m.receive(m.updatePacket(b))
}

// bind registers and checks the acknowledgement.
func (m *mobile) bind(b bu) *wire.BindingAck {
	m.t.Helper()
	p := m.updatePacket(b)
	return m.accepted(m.receive(p), m.coa, m.home, &b)
}

// accepted checks for one acknowledgement with status 0, signed.
func (m *mobile) accepted(got []packet, to, routing netip.Addr, b *bu) *wire.BindingAck {
	m.t.Helper()
	ack := m.signedAck(got, wire.Accepted, to, routing, b)
	if ack.Sequence != m.sequence {
		m.t.Fatalf("acknowledged %d instead of %d", ack.Sequence, m.sequence)
	}
	return ack
}

// signedAck checks for one acknowledgement of a status, signed as it should be.
func (m *mobile) signedAck(got []packet, status wire.Status, to, routing netip.Addr, b *bu) *wire.BindingAck {
	m.t.Helper()
	ack := only[*wire.BindingAck](m.t, got, m.local, to, routing)
	if ack.Status != status {
		m.t.Fatalf("status %d, want %d", ack.Status, status)
	}
	signed := to
	if b.AltCareOf.IsValid() {
		signed = b.AltCareOf
	}
	if b.signed.IsValid() {
		signed = b.signed
	}
	key := m.bindingKey(b)
	if !ack.Authenticated || !key.Verify(got[0].Payload, signed, m.local) {
		m.t.Fatalf("wrong or no authenticator in %v", got[0])
	}
	return ack
}

// refused checks for one acknowledgement of a status that is not signed.
func (m *mobile) refused(got []packet, status wire.Status, to, routing netip.Addr) {
	m.t.Helper()
	ack := only[*wire.BindingAck](m.t, got, m.local, to, routing)
	if ack.Status != status || ack.Authenticated {
		m.t.Fatalf("got %v, want status %d without authenticator", got[0], status)
	}
}

// only checks that there is one packet, with a mobility message of a type.
func only[M wire.Message](t testing.TB, got []packet, src, dst, routing netip.Addr) M {
	t.Helper()
	if len(got) != 1 {
		t.Fatalf("got %d packets, want one: %v", len(got), got)
	}
	p := got[0]
	m, ok := p.mh.(M)
	if !ok || p.Src != src || p.Dst != dst || p.Routing != routing || p.Home.IsValid() {
		t.Fatalf("got %v, want a %T, %v > %v, routing %v", p, m, src, dst, routing)
	}
	return m
}

func silence(t testing.TB, got []packet) {
	t.Helper()
	if len(got) != 0 {
		t.Fatalf("got %v, want silence", got)
	}
}

// problem checks for an ICMPv6 Parameter Problem, code 0.
func problem(t testing.TB, got []packet, to netip.Addr, pointer uint32) {
	t.Helper()
	if len(got) != 1 || got[0].err == nil || got[0].err.Kind != wire.ParameterProblem ||
		got[0].err.Code != 0 || got[0].err.Param != pointer || got[0].Dst != to || got[0].Src != cn {
		t.Fatalf("got %v, want a Parameter Problem, code 0, pointer %d, to %v", got, pointer, to)
	}
}

// bindingError checks for a Binding Error.
func bindingError(t testing.TB, got []packet, status wire.ErrorStatus, to, home netip.Addr) {
	t.Helper()
	m := only[*wire.BindingError](t, got, cn, to, netip.Addr{})
	if m.Status != status || m.Home != home {
		t.Fatalf("got %v, want status %d, home address %v", got[0], status, home)
	}
}

// pingFrom is an echo request from src, by way of a home address if that is valid.
func (m *mobile) pingFrom(src, homeOption netip.Addr) []packet {
	m.t.Helper()
	p := wire.Packet{Src: src, Dst: m.local, Home: homeOption, Protocol: wire.ICMPv6}
	p.Payload = echoMessage(echoRequest, p.Source(), p.Dst)
	return m.receive(build(m.t, p))
}

// ping is an echo request from the care-of address with a Home Address option.
func (m *mobile) ping() []packet {
	m.t.Helper()
	return m.pingFrom(m.coa, m.home)
}

// bound checks that there is a binding: echo works by way of it.
func (m *mobile) bound() *mobile {
	m.t.Helper()
	m.replied(m.ping(), m.coa, m.home)
	return m
}

// unbound checks that there is no binding: a Binding Error says so.
func (m *mobile) unbound() *mobile {
	m.t.Helper()
	bindingError(m.t, m.ping(), wire.UnknownBinding, m.coa, m.home)
	return m
}

// replied checks for an echo reply.
func (m *mobile) replied(got []packet, to, routing netip.Addr) {
	m.t.Helper()
	if len(got) != 1 {
		m.t.Fatalf("got %d packets, want one: %v", len(got), got)
	}
	p := got[0]
	if p.Protocol != wire.ICMPv6 || p.Payload[0] != echoReply || p.Src != m.local || p.Dst != to || p.Routing != routing ||
		sum(p.Payload, p.Src, p.Destination(), wire.ICMPv6) != 0xffff {
		m.t.Fatalf("got %v, want an echo reply to %v, routing %v", p, to, routing)
	}
}

// fromHome moves the mobile node home: what it sends comes from its home
// address, without a Home Address option.
var fromHome = bu{noHome: true, src: home, delete: true}
