package node

import (
	"io"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// test is a home test or a care-of test with a client, and its result (RFC
// 6275 sections 5.2.5, 11.6).
type test struct {
	token   wire.Token
	nonce   uint16
	stale   bool          // a newer one has been asked for
	expires time.Duration // of token; 0: there is none

	pending bool // an answer to cookie is waited for
	tries   uint8
	cookie  wire.Cookie
	next    time.Duration // retransmission
	wait    time.Duration
	limit
}

// usable reports whether a Binding Update may be made with the token.
func (t *test) usable(now time.Duration) bool { return t.expires > now && !t.stale }

// start begins a test; a token that is there stays until it expires.
func (t *test) start(now time.Duration) {
	t.pending, t.tries = true, 0
	t.next, t.wait = now, InitialBindackTimeout
}

// stop gives up a test that is under way.
func (t *test) stop() { t.pending, t.stale = false, false }

// hurry starts a test again that waits for long.
func (t *test) hurry(now time.Duration) {
	if t.pending && t.next > now+InitialBindackTimeout {
		t.start(now)
	}
}

// given reports whether the test has had attempts enough, and the last has
// waited as long as it should.
func (t *test) given(now time.Duration, attempts int) bool {
	return t.pending && int(t.tries) >= attempts && t.next <= now
}

// done takes the answer.
func (t *test) done(now time.Duration, token wire.Token, nonce uint16) {
	t.stop()
	t.tries = 0
	t.token, t.nonce = token, nonce
	// RFC 6275 section 5.2.7: counted from the reception.
	t.expires = now + MaxTokenLifetime
}

// again reports whether the message of the test is to be sent now, with a new
// cookie each time (RFC 6275 section 11.8).
func (n *Node) again(t *test) bool {
	if !t.pending || t.next > n.now {
		return false
	}
	at, ok := t.take(n.now)
	if !ok {
		t.next = at
		return false
	}
	t.next, t.wait = n.now+t.wait, min(2*t.wait, MaxBindackTimeout)
	t.tries = min(t.tries, 254) + 1
	_, err := io.ReadFull(n.cfg.Rand, t.cookie[:])
	return err == nil // else without a cookie that nobody can guess: not now
}

// sendHomeTest sends a Home Test Init if it is due: from the home address, in
// the tunnel (RFC 6275 sections 6.1.3, 11.6.1).
func (n *Node) sendHomeTest(c *client) {
	if n.again(&c.home) && n.via.IsValid() {
		n.hoti.Cookie = c.home.cookie
		n.mh = n.hoti.Append(n.mh[:0], n.home, c.addr)
		n.tunnel(&wire.Packet{Src: n.home, Dst: c.addr, Protocol: wire.Mobility, Payload: n.mh})
	}
}

// sendCareOfTest sends a Care-of Test Init if it is due: from the care-of
// address, directly (RFC 6275 sections 6.1.4, 11.6.1).
func (n *Node) sendCareOfTest(c *client) {
	if n.again(&c.careOf) {
		n.coti.Cookie = c.careOf.cookie
		n.mh = n.coti.Append(n.mh[:0], n.cfg.CareOf, c.addr)
		n.send(&wire.Packet{Src: n.cfg.CareOf, Dst: c.addr, Protocol: wire.Mobility, Payload: n.mh})
	}
}

// homeTest takes a Home Test that came through the tunnel (RFC 6275 section
// 11.6.2). One that is late, doubled or never asked for is ignored.
func (n *Node) homeTest(c *client) {
	if t := &c.home; t.pending && t.tries > 0 && n.hot.Cookie == t.cookie {
		t.done(n.now, n.hot.Token, n.hot.NonceIndex)
		n.fetched(c)
	}
}

// careOfTest takes a Care-of Test that came directly (RFC 6275 section 11.6.2).
func (n *Node) careOfTest(c *client) {
	if t := &c.careOf; t.pending && t.tries > 0 && n.cot.Cookie == t.cookie {
		t.done(n.now, n.cot.Token, n.cot.NonceIndex)
		n.fetched(c)
	}
}
