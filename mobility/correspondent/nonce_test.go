package correspondent

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// RFC 6275 section 5.2.7: a token is good for MAX_TOKEN_LIFETIME (210 s), and
// a nonce no longer than MAX_NONCE_LIFETIME (240 s). Over hours of tests at
// irregular times, each token is tried while it must be good, and when it must
// not. Indices go round meanwhile.
func TestSection5_2_7NonceLifetimes(t *testing.T) {
	r := random(t)
	m := newHost(t, unlimited).mobile()
	m.c.nonces.newest = 0xffff - 100 // so that they go round

	type held struct {
		mobile
		at time.Duration
	}
	var tokens []*held
	start, first := m.now, uint16(0)
	for m.now < start+20*time.Hour {
		m.rr()
		if first == 0 {
			first = m.homeIndex
		}
		tokens = append(tokens, &held{mobile: *m, at: m.now})
		// From a trickle to long silence.
		switch r.IntN(10) {
		case 0:
			m.advance(time.Duration(r.IntN(1000)) * time.Second)
		default:
			m.advance(time.Duration(r.IntN(60000)) * time.Millisecond)
		}
		keep := tokens[:0]
		for _, h := range tokens {
			age := m.now - h.at
			h.sequence = m.sequence
			switch {
			case age <= 210*time.Second:
				if r.IntN(3) == 0 {
					h.accepted(h.send(good), coa1, home, &good)
					m.sequence = h.sequence
				}
			case age >= 240*time.Second:
				h.refused(h.send(good), wire.ExpiredNonces, coa1, home)
				continue
			}
			keep = append(keep, h)
		}
		tokens = keep
	}
	if m.homeIndex > first {
		t.Errorf("the indices have not gone round: %d to %d", first, m.homeIndex)
	}
}

// A nonce is in use for 30 s after its first use, and no timer turns it over:
// an idle correspondent has nothing to do.
func TestNonceInterval(t *testing.T) {
	m := newHost(t).mobile()
	first := m.hoti().homeIndex
	if _, ok := m.c.NextDeadline(); ok {
		t.Error("a test has set a timer")
	}
	m.now += 30*time.Second - 1
	if m.coti().careIndex != first {
		t.Error("another nonce within 30 s")
	}
	m.now++
	if m.hoti().homeIndex != first+1 {
		t.Error("the same nonce after 30 s")
	}
	m.now += time.Hour
	if m.hoti().homeIndex != first+2 {
		t.Error("indices without nonces")
	}
	// The one before has not been valid for long, though it was the last.
	m.homeIndex = first + 1
	m.refused(m.coti().send(good), wire.ExpiredHomeNonce, coa1, home)
}

// Without randomness there are no tokens, and nothing else breaks.
func TestNoRandomness(t *testing.T) {
	broken := &brokenRand{left: 1000}
	m := newHost(t, func(cfg *Config) { cfg.Rand = broken }).mobile().rr()
	m.bind(good)
	broken.left = 3
	m.now += 30 * time.Second
	silence(t, m.receive(m.hotiPacket()))
	m.bound()
	broken.left = 1000
	m.rr().bind(good)

	broken.left = 0
	if _, err := New(Config{Local: m.c.cfg.Local, Rand: broken}); !errors.Is(err, errBroken) {
		t.Errorf("New without randomness: %v", err)
	}
}

type brokenRand struct{ left int }

var errBroken = errors.New("no randomness")

func (r *brokenRand) Read(b []byte) (int, error) {
	n := min(len(b), r.left)
	r.left -= n
	for i := range n {
		b[i] = byte(r.left + i)
	}
	if n < len(b) {
		return n, errBroken
	}
	return n, nil
}

// A restarted correspondent has another key and other nonces: tokens of before
// are refused, with the status that makes a mobile node get new ones.
func TestRestart(t *testing.T) {
	before := newHost(t).mobile().rr()
	after := newHost(t, func(cfg *Config) { cfg.Rand = rand.NewChaCha8([32]byte{2}) }).mobile()
	after.homeIndex, after.careIndex, after.homeToken, after.careToken = before.homeIndex, before.careIndex, before.homeToken, before.careToken
	after.refused(after.send(good), wire.ExpiredNonces, coa1, home)

	// The same node key and no Rand of its own are the operator's choice.
	key := wire.NodeKey{7}
	one := newHost(t, func(cfg *Config) { cfg.Key = key }).mobile().rr()
	if one.homeToken == before.homeToken || one.c.cfg.Key != key {
		t.Error("the configured key is not used")
	}
}
