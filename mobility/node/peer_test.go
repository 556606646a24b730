package node

import (
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// peer is a correspondent node, as small as it gets: no cache limits, no rate
// limits, and it believes its input. mobility/correspondent is the real one.
type peer struct {
	addr     netip.Addr
	key      wire.NodeKey
	epoch    uint16 // a reboot makes all nonces others
	bindings map[netip.Addr]*cached

	deaf    bool        // answers nothing
	stock   bool        // knows no Mobile IPv6: Parameter Problems
	dislike wire.Status // what it answers to Binding Updates
	grant   time.Duration
	heard   []string // types of message, in order
}

// cached is an entry of the peer's binding cache.
type cached struct {
	careOf  netip.Addr
	expires time.Duration // 0: deleted; the number counts on
	seq     uint16
}

func newPeer(addr netip.Addr) *peer {
	p := &peer{addr: addr, bindings: make(map[netip.Addr]*cached), grant: MaxRRBindingLifetime}
	a := addr.As16()
	copy(p.key[:], a[:])
	return p
}

// reboot loses bindings and nonces.
func (p *peer) reboot() {
	p.epoch++
	clear(p.bindings)
}

// nonceEvery is for how long a nonce is given out; it is good for nonceLife.
const (
	nonceEvery = 30 * time.Second
	nonceLife  = 240 * time.Second
)

func (p *peer) index(now time.Duration) uint16 { return uint16(now/nonceEvery) + 1 }

func (p *peer) nonce(index uint16) *wire.Nonce {
	return &wire.Nonce{byte(index >> 8), byte(index), byte(p.epoch)}
}

func (p *peer) good(now time.Duration, index uint16) bool {
	return index != 0 && index <= p.index(now) && now-time.Duration(index-1)*nonceEvery < nonceLife &&
		(p.epoch == 0 || index >= p.index(now)) // after a reboot those before are not known
}

func (p *peer) homeToken(home netip.Addr, index uint16) wire.Token {
	return wire.HomeToken(&p.key, home, p.nonce(index))
}

func (p *peer) careOfToken(careOf netip.Addr, index uint16) wire.Token {
	return wire.CareOfToken(&p.key, careOf, p.nonce(index))
}

// bound is the care-of address that the peer sends to, for a home address.
func (p *peer) bound(now time.Duration, home netip.Addr) netip.Addr {
	if b := p.bindings[home]; b != nil && b.expires > now {
		return b.careOf
	}
	return netip.Addr{}
}

// receive takes a packet and returns the answer, if there is one.
func (p *peer) receive(now time.Duration, b []byte) []byte {
	in, err := wire.ParsePacket(b)
	if err != nil || p.deaf {
		return nil
	}
	if p.stock {
		code, pointer := uint8(1), uint32(6)
		if in.Home.IsValid() {
			code, pointer = 2, 46
		}
		out, _ := wire.AppendError(nil, p.addr, wire.ParameterProblem, code, pointer, b, false)
		return out
	}
	if in.Protocol != wire.Mobility {
		if in.Home.IsValid() && p.bound(now, in.Home) != in.Src {
			return p.mobility(in.Src, netip.Addr{}, &wire.BindingError{Status: wire.UnknownBinding, Home: in.Home})
		}
		return nil
	}
	m, err := wire.ParseMobility(&in)
	if err != nil {
		return nil
	}
	i := p.index(now)
	switch m := m.(type) {
	case *wire.HomeTestInit:
		p.heard = append(p.heard, "HoTI")
		return p.mobility(in.Src, netip.Addr{}, &wire.HomeTest{NonceIndex: i, Cookie: m.Cookie, Token: p.homeToken(in.Src, i)})
	case *wire.CareOfTestInit:
		p.heard = append(p.heard, "CoTI")
		return p.mobility(in.Src, netip.Addr{}, &wire.CareOfTest{NonceIndex: i, Cookie: m.Cookie, Token: p.careOfToken(in.Src, i)})
	case *wire.BindingUpdate:
		p.heard = append(p.heard, "BU")
		return p.update(now, &in, m)
	}
	return nil
}

func (p *peer) update(now time.Duration, in *wire.Packet, bu *wire.BindingUpdate) []byte {
	careOf := in.Src
	if bu.AltCareOf.IsValid() {
		careOf = bu.AltCareOf
	}
	home := in.Home
	remove := bu.Lifetime == 0 || careOf == home
	if !home.IsValid() || !bu.HasNonces || !bu.Authenticated {
		return nil
	}
	homeGood, careOfGood := p.good(now, bu.HomeNonce), remove || p.good(now, bu.CareOfNonce)
	switch {
	case !homeGood && !careOfGood:
		return p.ack(in, &wire.BindingAck{Status: wire.ExpiredNonces, Sequence: bu.Sequence}, nil, careOf)
	case !homeGood:
		return p.ack(in, &wire.BindingAck{Status: wire.ExpiredHomeNonce, Sequence: bu.Sequence}, nil, careOf)
	case !careOfGood:
		return p.ack(in, &wire.BindingAck{Status: wire.ExpiredCareOfNonce, Sequence: bu.Sequence}, nil, careOf)
	}
	key := wire.DeleteKey(p.homeToken(home, bu.HomeNonce))
	if !remove {
		key = wire.NewBindingKey(p.homeToken(home, bu.HomeNonce), p.careOfToken(careOf, bu.CareOfNonce))
	}
	if !key.Verify(in.Payload, careOf, p.addr) {
		return nil
	}
	b := p.bindings[home]
	if b != nil && int16(bu.Sequence-b.seq) <= 0 {
		return p.ack(in, &wire.BindingAck{Status: wire.SequenceOutOfWindow, Sequence: b.seq}, &key, careOf)
	}
	if p.dislike != 0 {
		return p.ack(in, &wire.BindingAck{Status: p.dislike, Sequence: bu.Sequence}, &key, careOf)
	}
	lifetime := min(bu.Lifetime, p.grant)
	if remove {
		lifetime = 0
	}
	p.bindings[home] = &cached{careOf: careOf, expires: now + lifetime, seq: bu.Sequence}
	if lifetime == 0 {
		p.bindings[home].expires = 0
	}
	if !bu.Ack {
		return nil
	}
	return p.ack(in, &wire.BindingAck{Sequence: bu.Sequence, Lifetime: lifetime}, &key, careOf)
}

// ack is a Binding Acknowledgement to the sender of a Binding Update.
func (p *peer) ack(in *wire.Packet, ba *wire.BindingAck, key *wire.BindingKey, careOf netip.Addr) []byte {
	out := wire.Packet{Src: p.addr, Dst: in.Src, Routing: in.Home, Protocol: wire.Mobility}
	if key == nil {
		out.Payload = ba.Append(nil, p.addr, in.Home)
	} else {
		out.Payload = key.Sign(nil, ba, p.addr, in.Home, careOf, p.addr)
	}
	return mustAppend(&out)
}

// mobility is a mobility message from the peer.
func (p *peer) mobility(dst, routing netip.Addr, m wire.Message) []byte {
	return mobility(p.addr, dst, routing, m)
}

func mobility(src, dst, routing netip.Addr, m wire.Message) []byte {
	out := wire.Packet{Src: src, Dst: dst, Routing: routing, Protocol: wire.Mobility}
	out.Payload = m.Append(nil, out.Source(), out.Destination())
	return mustAppend(&out)
}

func mustAppend(p *wire.Packet) []byte {
	b, err := p.Append(nil)
	if err != nil {
		panic(err)
	}
	return b
}

func mustTunnel(src, dst netip.Addr, inner []byte) []byte {
	b, err := wire.AppendTunnel(nil, src, dst, inner)
	if err != nil {
		panic(err)
	}
	return b
}

// agent is a home agent for one home address, as small.
type agent struct {
	addr, home netip.Addr
	key        wire.SharedKey
	careOf     netip.Addr
	expires    time.Duration
	seq        uint16
	stamp      uint64
	skew       time.Duration // how far its clock is ahead
	epoch      time.Time

	down    bool
	dislike wire.Status
	advice  time.Duration
	delay   time.Duration // duplicate address detection before the first answer
}

func (a *agent) ntp(now time.Duration) uint64 {
	t := a.epoch.Add(now + a.skew)
	return uint64(t.Unix()+2208988800)<<32 | uint64(t.Nanosecond())<<32/1e9
}

func (a *agent) bound(now time.Duration) bool { return a.expires > now }

// update takes a Binding Update and returns the answer and after how long.
func (a *agent) update(now time.Duration, in *wire.Packet, bu *wire.BindingUpdate) ([]byte, time.Duration) {
	if a.down || !bu.Home || in.Home != a.home {
		return nil, 0
	}
	ba := &wire.BindingAck{Sequence: bu.Sequence}
	if bu.MobileAuth == nil || !a.key.Verify(in.Payload, bu.AltCareOf, a.home) {
		ba.Status = wire.AuthFail
		return mobility(a.addr, in.Src, a.home, ba), 0
	}
	auth := &wire.MobileAuth{SPI: bu.MobileAuth.SPI, Timestamp: bu.MobileAuth.Timestamp}
	ba.MobileAuth = auth
	answer := func() []byte {
		out := wire.Packet{Src: a.addr, Dst: in.Src, Routing: a.home, Protocol: wire.Mobility}
		out.Payload = a.key.Sign(nil, ba, auth.SPI, a.addr, a.home, bu.AltCareOf, a.home)
		return mustAppend(&out)
	}
	off := int64(auth.Timestamp-a.ntp(now)) >> 32
	var wait time.Duration
	switch {
	case off < -7 || off > 7 || auth.Timestamp <= a.stamp:
		ba.Status = wire.MessageIDMismatch
		auth.Timestamp = a.ntp(now)
		return answer(), 0
	case a.bound(now) && int16(bu.Sequence-a.seq) <= 0:
		ba.Status, ba.Sequence = wire.SequenceOutOfWindow, a.seq
	case a.dislike != 0:
		ba.Status = a.dislike
	case bu.Lifetime == 0 && !a.bound(now):
		ba.Status = wire.NotHomeAgent
	case bu.Lifetime == 0:
		a.expires = 0
	default:
		if !a.bound(now) {
			wait = a.delay
		}
		a.careOf, a.seq, a.expires = bu.AltCareOf, bu.Sequence, now+bu.Lifetime
		ba.Lifetime, ba.RefreshAdvice = bu.Lifetime, a.advice
	}
	a.stamp = auth.Timestamp
	return answer(), wait
}
