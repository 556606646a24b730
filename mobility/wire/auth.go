package wire

import (
	"crypto/sha1"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
)

// NodeKey is a correspondent node's secret Kcn (RFC 6275 section 5.2.1).
type NodeKey [20]byte

// Nonce is a correspondent node's random number (RFC 6275 section 5.2.2).
type Nonce [8]byte

// HomeToken is the home keygen token of a home address (RFC 6275 section
// 5.2.5): First (64, HMAC_SHA1 (Kcn, (home address | nonce | 0))).
func HomeToken(key *NodeKey, home netip.Addr, nonce *Nonce) Token {
	return keygenToken(key, home, nonce, 0)
}

// CareOfToken is the care-of keygen token of a care-of address, likewise with 1.
func CareOfToken(key *NodeKey, careOf netip.Addr, nonce *Nonce) Token {
	return keygenToken(key, careOf, nonce, 1)
}

func keygenToken(key *NodeKey, addr netip.Addr, nonce *Nonce, which byte) Token {
	var buf [sha1.BlockSize + 16 + len(nonce) + 1]byte
	b := appendInnerKey(buf[:0], key[:])
	b = appendAddr(b, addr)
	b = append(b, nonce[:]...)
	mac := hmac(key[:], append(b, which))
	return Token(mac[:])
}

// BindingKey is Kbm, the binding management key (RFC 6275 section 5.2.5).
type BindingKey [20]byte

// NewBindingKey is SHA1 (home keygen token | care-of keygen token).
func NewBindingKey(home, careOf Token) BindingKey {
	var b [len(home) + len(careOf)]byte
	copy(b[:], home[:])
	copy(b[len(home):], careOf[:])
	return sha1.Sum(b[:])
}

// DeleteKey is SHA1 (home keygen token), with which bindings are deleted.
func DeleteKey(home Token) BindingKey { return sha1.Sum(home[:]) }

// Authenticator is First (96, HMAC_SHA1 (Kbm, (care-of address | correspondent
// | MH data))) (RFC 6275 section 6.2.7). mh is a whole mobility header that
// ends with a Binding Authorization Data option; its checksum and the
// option's content do not count.
//
// Where mh is no such thing, the result is zero, which no one can rely on:
// [BindingKey.Verify] refuses it.
func (k *BindingKey) Authenticator(careOf, correspondent netip.Addr, mh []byte) Authenticator {
	n := authDataAt(mh)
	if n < 0 {
		return Authenticator{}
	}
	return authenticate(k[:], careOf, correspondent, mh[:n])
}

// authDataAt is where the content of the Binding Authorization Data option
// begins with which mh ends; negative: it does not.
func authDataAt(mh []byte) int {
	if len(mh) < 8 || len(mh) < mobilityLen(mh) {
		return -1
	}
	const size = len(Authenticator{})
	n := mobilityLen(mh) - size
	if n < fixedLen[TypeBindingUpdate]+2 || mh[n-2] != moAuthData || int(mh[n-1]) != size {
		return -1
	}
	return n
}

// Sign appends the mobility header of m, a [*BindingUpdate] or [*BindingAck],
// with its Binding Authorization Data computed, whatever m says about it.
// careOf is the care-of address to be bound (the alternate one if m has it).
//
// It panics if m is a message of another type.
func (k *BindingKey) Sign(b []byte, m Message, src, dst, careOf, correspondent netip.Addr) []byte {
	start := len(b)
	switch m := m.(type) {
	case *BindingUpdate:
		v := *m
		v.Authenticated = true
		b = v.append(b)
	case *BindingAck:
		v := *m
		v.Authenticated = true
		b = v.append(b)
	default:
		panic("wire: sign: neither Binding Update nor Binding Acknowledgement")
	}
	b = padMH(b, start) // the length counts, and the option needs no padding after it
	a := k.Authenticator(careOf, correspondent, b[start:])
	copy(b[len(b)-len(a):], a[:])
	return endMH(b, start, src, dst)
}

// Verify reports, in constant time, whether the mobility header mh ends with
// the right Binding Authorization Data.
func (k *BindingKey) Verify(mh []byte, careOf, correspondent netip.Addr) bool {
	n := authDataAt(mh)
	if n < 0 {
		return false
	}
	a := authenticate(k[:], careOf, correspondent, mh[:n])
	return subtle.ConstantTimeCompare(a[:], mh[n:n+len(a)]) == 1
}

// SharedKey is what a mobile node and its home agent share (RFC 4285), any
// number of octets, at least 16.
type SharedKey []byte

// Sign appends the mobility header of m, a [*BindingUpdate] or [*BindingAck],
// with a mobile-node/home-agent authentication option of the given SPI
// computed, whatever m says about it (RFC 4285 section 5.1): First (96,
// HMAC_SHA1 (key, care-of address | home address | MH data)).
// The timestamp in m's MobileAuth, if it has one, is kept.
//
// It panics if m is a message of another type.
func (k SharedKey) Sign(b []byte, m Message, spi uint32, src, dst, careOf, home netip.Addr) []byte {
	start := len(b)
	auth := MobileAuth{SPI: spi}
	switch m := m.(type) {
	case *BindingUpdate:
		v := *m
		if v.MobileAuth != nil {
			auth.Timestamp = v.MobileAuth.Timestamp
		}
		v.MobileAuth = &auth
		b = v.append(b)
	case *BindingAck:
		v := *m
		if v.MobileAuth != nil {
			auth.Timestamp = v.MobileAuth.Timestamp
		}
		v.MobileAuth = &auth
		b = v.append(b)
	default:
		panic("wire: sign: neither Binding Update nor Binding Acknowledgement")
	}
	b = padMH(b, start) // the length counts
	n := start + mobileAuthAt(b[start:])
	a := authenticate(k, careOf, home, b[start:n])
	copy(b[n:], a[:])
	return endMH(b, start, src, dst)
}

// Verify reports, in constant time, whether the mobility header mh carries the
// right mobile-node/home-agent authentication option.
func (k SharedKey) Verify(mh []byte, careOf, home netip.Addr) bool {
	n := mobileAuthAt(mh)
	if n < 0 {
		return false
	}
	a := authenticate(k, careOf, home, mh[:n])
	return subtle.ConstantTimeCompare(a[:], mh[n:n+len(a)]) == 1
}

// mobileAuthAt is where the authentication data of the mobile-node/home-agent
// authentication option in mh begins; negative: there is none.
func mobileAuthAt(mh []byte) int {
	if len(mh) < 8 || len(mh) < mobilityLen(mh) {
		return -1
	}
	if t := Type(mh[2]); t != TypeBindingUpdate && t != TypeBindingAck {
		return -1
	}
	mh = mh[:mobilityLen(mh)]
	size := int(layouts[moMobileAuth].size)
	for i := fixedLen[TypeBindingUpdate]; i < len(mh); {
		if mh[i] == moPad1 {
			i++
			continue
		}
		if len(mh)-i < 2 || len(mh)-i-2 < int(mh[i+1]) {
			return -1
		}
		if mh[i] == moMobileAuth && int(mh[i+1]) == size && mh[i+2] == mobileNodeHomeAgent {
			return i + 2 + 1 + 4
		}
		i += 2 + int(mh[i+1])
	}
	return -1
}

// authenticate is First (96, HMAC_SHA1 (key, a | b | mh)), mh with a checksum
// of zero.
func authenticate(key []byte, a, b netip.Addr, mh []byte) Authenticator {
	var buf [sha1.BlockSize + 2*16 + maxMHLen]byte
	p := appendInnerKey(buf[:0], key)
	p = appendAddr(p, a)
	p = appendAddr(p, b)
	at := len(p)
	p = append(p, mh...)
	binary.BigEndian.PutUint16(p[at+4:], 0)
	mac := hmac(key, p)
	return Authenticator(mac[:])
}

// HMAC-SHA1 (RFC 2104) in buffers of the caller: crypto/hmac allocates its
// state. inner is what appendInnerKey appended, then the text.
func hmac(key, inner []byte) [sha1.Size]byte {
	var outer [sha1.BlockSize + sha1.Size]byte
	text := sha1.Sum(inner)
	b := appendKey(outer[:0], key, 0x5c)
	return sha1.Sum(append(b, text[:]...))
}

func appendInnerKey(b, key []byte) []byte { return appendKey(b, key, 0x36) }

func appendKey(b, key []byte, mask byte) []byte {
	var block [sha1.BlockSize]byte
	if len(key) > len(block) {
		sum := sha1.Sum(key)
		copy(block[:], sum[:])
	} else {
		copy(block[:], key)
	}
	for i := range block {
		block[i] ^= mask
	}
	return append(b, block[:]...)
}
