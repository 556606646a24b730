package wire

import (
	"net/netip"
	"testing"
	"time"
)

var (
	benchHome          = netip.MustParseAddr("2001:db8:a::1234")
	benchCareOf        = netip.MustParseAddr("2001:db8:f::5")
	benchCorrespondent = netip.MustParseAddr("2001:db8:c::2")
)

// What a correspondent does with a Binding Update: parse, verify, and write an
// acknowledgement with an authenticator in a packet with a type 2 routing
// header.
func BenchmarkBindingUpdate(b *testing.B) {
	key := NewBindingKey(Token{1}, Token{2})
	update := BindingUpdate{Sequence: 7, Ack: true, Lifetime: 420 * time.Second, HasNonces: true, HomeNonce: 2, CareOfNonce: 2}
	packet, err := (&Packet{
		Src: benchCareOf, Dst: benchCorrespondent, Home: benchHome, Protocol: Mobility,
		Payload: key.Sign(nil, &update, benchHome, benchCorrespondent, benchCareOf, benchCorrespondent),
	}).Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	mh, reply := make([]byte, 0, 64), make([]byte, 0, 128)
	b.ReportAllocs()
	for b.Loop() {
		p, err := ParsePacket(packet)
		if err != nil {
			b.Fatal(err)
		}
		if t, err := TypeOf(&p); err != nil || t != TypeBindingUpdate {
			b.Fatal(t, err)
		}
		var u BindingUpdate
		if err := Decode(&p, &u); err != nil {
			b.Fatal(err)
		}
		key := NewBindingKey(Token{1}, Token{2})
		if !key.Verify(p.Payload, p.Src, p.Dst) {
			b.Fatal("wrong authenticator")
		}
		ack := BindingAck{Sequence: u.Sequence, Lifetime: u.Lifetime}
		mh = key.Sign(mh[:0], &ack, p.Dst, p.Home, p.Src, p.Dst)
		out := Packet{Src: p.Dst, Dst: p.Src, Routing: p.Home, Protocol: Mobility, Payload: mh}
		if reply, err = out.Append(reply[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

// What a mobile node does to send one: write and sign.
func BenchmarkBindingUpdateSend(b *testing.B) {
	key := NewBindingKey(Token{1}, Token{2})
	mh, packet := make([]byte, 0, 64), make([]byte, 0, 128)
	b.ReportAllocs()
	for b.Loop() {
		u := BindingUpdate{Sequence: 7, Ack: true, Lifetime: 420 * time.Second, HasNonces: true, HomeNonce: 2, CareOfNonce: 2}
		mh = key.Sign(mh[:0], &u, benchHome, benchCorrespondent, benchCareOf, benchCorrespondent)
		out := Packet{Src: benchCareOf, Dst: benchCorrespondent, Home: benchHome, Protocol: Mobility, Payload: mh}
		var err error
		if packet, err = out.Append(packet[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

// What a correspondent does with a Home Test Init: parse, make the token,
// write the Home Test.
func BenchmarkHomeTest(b *testing.B) {
	packet, err := (&Packet{
		Src: benchHome, Dst: benchCorrespondent, Protocol: Mobility,
		Payload: (&HomeTestInit{Cookie: Cookie{1}}).Append(nil, benchHome, benchCorrespondent),
	}).Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	key, nonce := NodeKey{1}, Nonce{2}
	mh, reply := make([]byte, 0, 64), make([]byte, 0, 128)
	b.ReportAllocs()
	for b.Loop() {
		p, err := ParsePacket(packet)
		if err != nil {
			b.Fatal(err)
		}
		if t, err := TypeOf(&p); err != nil || t != TypeHomeTestInit {
			b.Fatal(t, err)
		}
		var init HomeTestInit
		if err := Decode(&p, &init); err != nil {
			b.Fatal(err)
		}
		test := HomeTest{NonceIndex: 1, Cookie: init.Cookie, Token: HomeToken(&key, p.Src, &nonce)}
		mh = test.Append(mh[:0], p.Dst, p.Src)
		out := Packet{Src: p.Dst, Dst: p.Src, Protocol: Mobility, Payload: mh}
		if reply, err = out.Append(reply[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParsePacket(b *testing.B) {
	packet, err := (&Packet{
		Src: benchCareOf, Dst: benchCorrespondent, Home: benchHome, Protocol: TCP, Payload: make([]byte, 1400),
	}).Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParsePacket(packet); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTunnel(b *testing.B) {
	inner, err := (&Packet{Src: benchCorrespondent, Dst: benchHome, Protocol: TCP, Payload: make([]byte, 1400)}).Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	out := make([]byte, 0, 1500)
	agent := netip.MustParseAddr("2001:db8:a::1")
	b.ReportAllocs()
	for b.Loop() {
		if out, err = AppendTunnel(out[:0], agent, benchCareOf, inner); err != nil {
			b.Fatal(err)
		}
		p, err := ParsePacket(out)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Inner(); err != nil {
			b.Fatal(err)
		}
	}
}

// A flood of mobility headers that are wrong costs no memory, except where an
// answer is owed.
func BenchmarkWrongChecksum(b *testing.B) {
	mh := (&HomeTestInit{Cookie: Cookie{1}}).Append(nil, benchHome, benchCorrespondent)
	mh[5]++
	p := Packet{Src: benchHome, Dst: benchCorrespondent, Protocol: Mobility, Payload: mh}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := TypeOf(&p); err == nil {
			b.Fatal("no error")
		}
	}
}
