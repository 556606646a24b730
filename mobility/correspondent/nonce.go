package correspondent

import (
	"encoding/binary"
	"io"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// nonces are the random numbers that keygen tokens are made of (RFC 6275
// sections 5.2.2, 5.2.7).
//
// A nonce is current for an eighth of the lifetime after its first use (30 s),
// and accepted for the whole of it (240 s): tokens are good for 210 to 240 s. It
// is drawn when a test needs it and the last is no longer current, so a
// correspondent that nobody talks to has no timer. Since first uses are an
// eighth of the lifetime apart, more than eight are never valid at once.
type nonces struct {
	rand     io.Reader
	lifetime time.Duration
	ring     [8]nonce // by index modulo 8
	newest   uint16
	drawn    int // how many of ring there are
}

type nonce struct {
	value wire.Nonce
	first time.Duration // when it was used first
}

// init starts the indices at a random number, lest those of before a restart
// be taken for ours: their owners shall hear that they are expired (status
// 136 to 138), not silence for a wrong authenticator. The highest index,
// 0xffff, is far away: it is what test suites take for one that is not there.
func (n *nonces) init(rand io.Reader, lifetime time.Duration, start [2]byte) {
	n.rand, n.lifetime = rand, lifetime
	n.newest = binary.BigEndian.Uint16(start[:]) >> 1
}

// current is the nonce for a token made now. It is nil if there is no randomness.
func (n *nonces) current(now time.Duration) (uint16, *wire.Nonce) {
	if n.drawn > 0 {
		if at := &n.ring[n.newest%8]; now-at.first < n.lifetime/8 {
			return n.newest, &at.value
		}
	}
	at := &n.ring[(n.newest+1)%8]
	// If this fails midway the oldest nonce is spoilt, which is not valid any more.
	if _, err := io.ReadFull(n.rand, at.value[:]); err != nil {
		return 0, nil
	}
	at.first = now
	n.newest++
	n.drawn = min(n.drawn+1, 8)
	return n.newest, &at.value
}

// find is the nonce of an index; nil if there is none, or none any more: it MUST
// NOT be accepted beyond MAX_NONCE_LIFETIME after its first use (RFC 6275
// section 5.2.7).
func (n *nonces) find(index uint16, now time.Duration) *wire.Nonce {
	if int(n.newest-index) >= n.drawn {
		return nil
	}
	at := &n.ring[index%8]
	if now-at.first >= n.lifetime {
		return nil
	}
	return &at.value
}

// expiry is when the nonce of an index is no longer valid.
func (n *nonces) expiry(index uint16) time.Duration {
	if int(n.newest-index) >= n.drawn {
		return 0
	}
	return n.ring[index%8].first + n.lifetime
}

// newer reports whether index a was drawn after index b, both being those of
// nonces that are, or just were, valid.
func newer(a, b uint16) bool { return int16(a-b) > 0 }
