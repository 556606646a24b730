package wire

import (
	stdhmac "crypto/hmac"
	"crypto/sha1"
	"math/rand/v2"
	"testing"
	"time"
)

// stdMAC is HMAC-SHA1 by the standard library, of the concatenated parts.
func stdMAC(key []byte, parts ...[]byte) []byte {
	h := stdhmac.New(sha1.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func octets(a interface{ As16() [16]byte }) []byte {
	b := a.As16()
	return b[:]
}

// RFC 2202 section 3, test cases 1, 2, 3 and 6.
func TestHMACVectors(t *testing.T) {
	repeat := func(b byte, n int) []byte {
		s := make([]byte, n)
		for i := range s {
			s[i] = b
		}
		return s
	}
	for _, tt := range []struct {
		key, text []byte
		want      string
	}{
		{repeat(0x0b, 20), []byte("Hi There"), "b617318655057264e28bc0b6fb378c8ef146be00"},
		{[]byte("Jefe"), []byte("what do ya want for nothing?"), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"},
		{repeat(0xaa, 20), repeat(0xdd, 50), "125d7342b9ac11cd91a39af48aa17b4f63f175d3"},
		{repeat(0xaa, 80), []byte("Test Using Larger Than Block-Size Key - Hash Key First"), "aa4ae5e15272d00e95705637ce8a3b55ed402112"},
	} {
		got := hmac(tt.key, append(appendInnerKey(nil, tt.key), tt.text...))
		same(t, string(tt.text), got[:], unhex(t, tt.want))
	}
}

// Tokens and keys are what RFC 6275 section 5.2 says, computed another way.
func TestTokens(t *testing.T) {
	key, nonce := NodeKey{1, 2, 3}, Nonce{4, 5, 6}
	got := HomeToken(&key, home, &nonce)
	same(t, "home keygen token, section 5.2.5", got[:], stdMAC(key[:], octets(home), nonce[:], []byte{0})[:8])
	got = CareOfToken(&key, careOf, &nonce)
	same(t, "care-of keygen token, section 5.2.5", got[:], stdMAC(key[:], octets(careOf), nonce[:], []byte{1})[:8])
	if HomeToken(&key, home, &nonce) == CareOfToken(&key, home, &nonce) {
		t.Error("home and care-of token of one address are the same")
	}
	a, b := Token{1}, Token{2}
	kbm := NewBindingKey(a, b)
	sum := sha1.Sum(append(a[:], b[:]...))
	same(t, "Kbm, section 5.2.7", kbm[:], sum[:])
	kbm, sum = DeleteKey(a), sha1.Sum(a[:])
	same(t, "Kbm of a deregistration, section 5.2.7", kbm[:], sum[:])
}

// An authenticator is First (96, HMAC_SHA1 (Kbm, Mobility Data)), RFC 6275
// section 6.2.7. Any octet that is changed, other addresses and another key
// are noticed; a changed checksum is not.
func TestBindingKey(t *testing.T) {
	key := NewBindingKey(Token{1}, Token{2})
	for _, m := range []Message{
		&BindingUpdate{Sequence: 7, Ack: true, Lifetime: 420 * time.Second, HasNonces: true, HomeNonce: 1, CareOfNonce: 2},
		&BindingUpdate{Sequence: 7, AltCareOf: careOf, HasNonces: true},
		&BindingAck{Sequence: 7, Lifetime: 420 * time.Second, Authenticated: true, Authenticator: Authenticator{9}},
		&BindingAck{RefreshAdvice: time.Minute, MobileAuth: &MobileAuth{SPI: 256}},
	} {
		mh := key.Sign([]byte("before"), m, home, correspondent, careOf, correspondent)[len("before"):]
		n := len(mh) - 12
		zeroed := append([]byte(nil), mh[:n]...)
		zeroed[4], zeroed[5] = 0, 0
		want := stdMAC(key[:], octets(careOf), octets(correspondent), zeroed)[:12]
		same(t, "authenticator", mh[n:], want)
		got := key.Authenticator(careOf, correspondent, mh)
		same(t, "authenticator again", got[:], want)

		p := Packet{Src: home, Dst: correspondent, Protocol: Mobility, Payload: mh}
		again, err := ParseMobility(&p)
		if err != nil {
			t.Fatal(err)
		}
		if again, ok := again.(*BindingUpdate); ok && !again.Authenticated {
			t.Error("not authenticated")
		}
		if !key.Verify(mh, careOf, correspondent) {
			t.Error("does not verify")
		}
		if !key.Verify(append(append([]byte(nil), mh...), 1, 2, 3), careOf, correspondent) {
			t.Error("does not verify with octets behind the header")
		}
		if key.Verify(mh, home, correspondent) || key.Verify(mh, careOf, agent) || key.Verify(mh, correspondent, careOf) {
			t.Error("verifies with other addresses")
		}
		other := DeleteKey(Token{1})
		if other.Verify(mh, careOf, correspondent) {
			t.Error("verifies with another key")
		}
		for i := range mh {
			mh[i] ^= 0x80
			if ok, isChecksum := key.Verify(mh, careOf, correspondent), i == 4 || i == 5; ok != isChecksum {
				t.Errorf("octet %d changed: %t", i, ok)
			}
			mh[i] ^= 0x80
		}
	}
}

// What is no mobility header with the option at its end has no authenticator.
func TestBindingKeyRefuses(t *testing.T) {
	key := NewBindingKey(Token{1}, Token{2})
	signed := key.Sign(nil, &BindingUpdate{}, home, correspondent, careOf, correspondent)
	for n := range signed {
		if key.Verify(signed[:n], careOf, correspondent) {
			t.Errorf("%d octets verify", n)
		}
	}
	for _, mh := range [][]byte{
		(&BindingUpdate{}).Append(nil, home, correspondent),
		(&BindingUpdate{AltCareOf: careOf}).Append(nil, home, correspondent),
		{59, 0, 5, 0, 0, 0, 5, 12},
		{59, 1, 5, 0, 5, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		zero := key.Authenticator(careOf, correspondent, mh)
		if zero != (Authenticator{}) || key.Verify(mh, careOf, correspondent) {
			t.Errorf("%x: %x", mh, zero)
		}
	}
}

// RFC 4285 section 5.1: First (96, HMAC_SHA1 (key, care-of address | home
// address | mobility header up to the SPI)), checksum zero.
func TestSharedKey(t *testing.T) {
	for _, key := range []SharedKey{
		SharedKey("sixteen octets.."),
		SharedKey("a key of more octets than the 64 that a block of SHA-1 has: they are hashed"),
	} {
		for _, m := range []Message{
			&BindingUpdate{Sequence: 7, Ack: true, Home: true, Lifetime: time.Hour, AltCareOf: careOf},
			&BindingUpdate{Sequence: 7, MobileAuth: &MobileAuth{SPI: 999, Authenticator: authenticator, Timestamp: 12345}},
			&BindingAck{Sequence: 7, Lifetime: time.Hour},
			&BindingAck{Status: MessageIDMismatch, MobileAuth: &MobileAuth{Timestamp: 12345}, Authenticated: true},
		} {
			mh := key.Sign([]byte("before"), m, 300, home, agent, careOf, home)[len("before"):]
			p := Packet{Src: home, Dst: agent, Protocol: Mobility, Payload: mh}
			parsed, err := ParseMobility(&p)
			if err != nil {
				t.Fatal(err)
			}
			var before, after *MobileAuth
			switch m := m.(type) {
			case *BindingUpdate:
				before, after = m.MobileAuth, parsed.(*BindingUpdate).MobileAuth
			case *BindingAck:
				before, after = m.MobileAuth, parsed.(*BindingAck).MobileAuth
			}
			if after == nil || after.SPI != 300 || before != nil && after.Timestamp != before.Timestamp {
				t.Fatalf("%+v", after)
			}
			if before != nil && before.SPI == 300 {
				t.Error("the message given was changed")
			}
			n := mobileAuthAt(mh)
			zeroed := append([]byte(nil), mh[:n]...)
			zeroed[4], zeroed[5] = 0, 0
			same(t, "authentication data", after.Authenticator[:], stdMAC(key, octets(careOf), octets(home), zeroed)[:12])

			if !key.Verify(mh, careOf, home) {
				t.Error("does not verify")
			}
			if key.Verify(mh, home, careOf) || key.Verify(mh, careOf, agent) || SharedKey("another key.....").Verify(mh, careOf, home) {
				t.Error("verifies with another key or addresses")
			}
			for i := range mh[:n+12] {
				mh[i] ^= 0x80
				if ok, isChecksum := key.Verify(mh, careOf, home), i == 4 || i == 5; ok != isChecksum {
					t.Errorf("octet %d changed: %t", i, ok)
				}
				mh[i] ^= 0x80
			}
		}
	}
}

func TestSharedKeyRefuses(t *testing.T) {
	key := SharedKey("sixteen octets..")
	signed := key.Sign(nil, &BindingUpdate{}, 300, home, agent, careOf, home)
	for n := range signed {
		if key.Verify(signed[:n], careOf, home) {
			t.Errorf("%d octets verify", n)
		}
	}
	for _, mh := range [][]byte{
		(&BindingUpdate{AltCareOf: careOf}).Append(nil, home, agent),
		(&HomeTestInit{}).Append(nil, home, agent),
		{59, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 17, 1, 0}, // the option exceeds the header
		{59, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 2},  // without content
		{59, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9},  // without length
		{59, 0, 5, 0, 0, 0, 0, 0},
	} {
		if key.Verify(mh, careOf, home) {
			t.Errorf("%x verifies", mh)
		}
	}
}

func TestSignPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a message that cannot be signed was")
		}
	}()
	new(BindingKey).Sign(nil, &HomeTestInit{}, home, correspondent, careOf, correspondent)
}

// Parsing and writing the fast path's messages needs no heap.
func TestNoAllocation(t *testing.T) {
	key := NewBindingKey(Token{1}, Token{2})
	shared := SharedKey("sixteen octets..")
	mh := key.Sign(nil, &BindingUpdate{HasNonces: true}, home, correspondent, careOf, correspondent)
	p := Packet{Src: careOf, Dst: correspondent, Home: home, Protocol: Mobility, Payload: mh}
	packet, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	out, out2 := make([]byte, 0, 256), make([]byte, 0, 256)
	inner, err := (&Packet{Src: correspondent, Dst: home, Protocol: UDP, Payload: make([]byte, 8)}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var addr = home
	for name, f := range map[string]func(){
		"binding update": func() {
			p, _ := ParsePacket(packet)
			var u BindingUpdate
			_ = Decode(&p, &u)
			if _, err := TypeOf(&p); err != nil || !key.Verify(p.Payload, p.Src, p.Dst) {
				t.Fatal(err)
			}
		},
		"acknowledgement": func() {
			a := BindingAck{Sequence: 1}
			out = key.Sign(out[:0], &a, correspondent, addr, careOf, correspondent)
		},
		"home registration": func() {
			u := BindingUpdate{Sequence: 1, Home: true, MobileAuth: &MobileAuth{Timestamp: 1}}
			out = shared.Sign(out[:0], &u, 300, addr, agent, careOf, home)
			if !shared.Verify(out, careOf, home) {
				t.Fatal("does not verify")
			}
		},
		"messages": func() {
			u := BindingUpdate{AltCareOf: addr}
			out = u.Append(out[:0], home, correspondent)
			a := BindingAck{}
			out = a.Append(out[:0], home, correspondent)
			h, c := HomeTest{}, CareOfTest{}
			out = h.Append(out[:0], home, correspondent)
			out = c.Append(out[:0], home, correspondent)
			hi, ci := HomeTestInit{}, CareOfTestInit{}
			out = hi.Append(out[:0], home, correspondent)
			out = ci.Append(out[:0], home, correspondent)
			e, r := BindingError{Home: addr}, BindingRefreshRequest{}
			out = e.Append(out[:0], home, correspondent)
			out = r.Append(out[:0], home, correspondent)
			p := Packet{Src: careOf, Dst: correspondent, Home: home, Protocol: Mobility, Payload: out}
			out2, _ = p.Append(out2[:0])
		},
		"tunnel": func() {
			out, _ = AppendTunnel(out[:0], agent, careOf, inner)
		},
		"error": func() {
			out, _ = AppendError(out[:0], agent, Unreachable, 1, 0, inner, false)
		},
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// The checksum agrees with the textbook's, octet pair by octet pair.
func TestChecksum(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	for n := range 200 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		pseudo := append(octets(home), octets(correspondent)...)
		pseudo = append(pseudo, 0, 0, byte(n>>8), byte(n), 0, 0, 0, byte(Mobility))
		var want uint32
		for i, c := range append(pseudo, b...) {
			if i%2 == 0 {
				want += uint32(c) << 8
			} else {
				want += uint32(c)
			}
		}
		want = want>>16 + want&0xffff
		want = want>>16 + want&0xffff
		if got := checksum(b, home, correspondent, Mobility); got != ^uint16(want) {
			t.Errorf("%d octets (seed %d): %04x, want %04x", n, seed, got, ^uint16(want))
		}
	}
}
