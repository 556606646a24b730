// Package impair is what bad links do to packets: delay, jitter, loss,
// duplication, reordering, a rate. It has no clock, no randomness of its own and
// no goroutine, so that networks in memory and real ones use the same model.
package impair

import (
	"math/rand/v2"
	"time"
)

// Settings are what one direction of a link does to packets. The zero value does
// nothing. Probabilities are 0 to 1.
type Settings struct {
	Loss      float64 // probability that a packet is dropped
	Duplicate float64 // probability that it is sent twice
	Reorder   float64 // probability that 1 to 8 later ones overtake it

	Delay  time.Duration // time on the link
	Jitter time.Duration // more of it: uniform from 0 up to this; it keeps the order

	// Bandwidth is how many octets a second the link takes; 0 means any
	// number. Packets wait for it in a queue of Queue octets, 0 meaning
	// DefaultQueue; one that finds no room is dropped.
	Bandwidth int
	Queue     int
}

// DefaultQueue is the default of Settings.Queue: 64 KiB, some forty full
// packets.
const DefaultQueue = 64 << 10

// A packet that is held back goes when as many have overtaken it as was drawn,
// at most MaxOvertake, or when MaxHold has passed: the last packet of a
// conversation is not stuck.
const (
	MaxOvertake = 8 // a power of two
	MaxHold     = 5 * time.Millisecond
)

// Fate is what happens to a packet.
type Fate struct {
	Lost, Duplicated bool
	Overtake         int // so many packets overtake it; 0: it is not held back
	Jitter           time.Duration
}

// Draw decides about a packet. It draws the same number of variates for each, so
// that changing one impairment leaves the other decisions as they are.
func (s *Settings) Draw(r *rand.Rand) (f Fate) {
	f.Lost = r.Float64() < s.Loss
	f.Duplicated = r.Float64() < s.Duplicate
	reorder := r.Float64() < s.Reorder
	if n := 1 + int(r.Uint64()%MaxOvertake); reorder {
		f.Overtake = n
	}
	f.Jitter = time.Duration(r.Float64() * float64(s.Jitter))
	return f
}

// Serialise queues size octets for the line, which is busy until free, and says
// when it has taken the last of them. An idle line takes a packet of any size;
// one that finds no room is not ok. Without a Bandwidth a packet takes no time.
func (s *Settings) Serialise(now, free time.Duration, size int) (done time.Duration, ok bool) {
	if s.Bandwidth <= 0 {
		return now, true
	}
	limit := s.Queue
	if limit == 0 {
		limit = DefaultQueue
	}
	free = max(free, now)
	waiting := (free - now).Seconds() * float64(s.Bandwidth)
	if waiting > 0 && waiting+float64(size) > float64(limit) {
		return now, false
	}
	return free + time.Duration(float64(size)/float64(s.Bandwidth)*float64(time.Second)), true
}
