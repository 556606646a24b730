package impair

import (
	"math/rand/v2"
	"time"
)

// Line is one direction of a link as a machine. Times are those since any one
// instant, and do not decrease from call to call. The driver's loop:
//
//	for each packet that arrives:
//		line.Send(now, packet)
//	when NextDeadline has come:
//		for packet, ok := line.Receive(now); ok; packet, ok = line.Receive(now) {
//			send packet on
//		}
type Line struct {
	Settings Settings // may be changed between calls
	Counters Counters

	rand  *rand.Rand
	held  []held
	queue []queued // in the order of their times
	free  time.Duration
	last  time.Duration // when the latest packet leaves
}

// Counters are what a line has done to packets. Sent are all that went in;
// Received all that came out.
type Counters struct {
	Sent, Received                         uint64
	Lost, Duplicated, Reordered, Overflows uint64
}

type held struct {
	packet   []byte
	overtake int
	jitter   time.Duration
	until    time.Duration
}

type queued struct {
	packet []byte
	at     time.Duration
}

// NewLine makes a line whose decisions come from the seed.
func NewLine(seed uint64, s Settings) *Line {
	return &Line{Settings: s, rand: rand.New(rand.NewPCG(seed, 0x6c696e65))}
}

// Send puts a packet on the line, which keeps the slice.
func (l *Line) Send(now time.Duration, packet []byte) {
	l.releaseHeld(now)
	l.Counters.Sent++
	fate := l.Settings.Draw(l.rand)
	if fate.Lost {
		l.Counters.Lost++
		return
	}
	if fate.Overtake == 0 {
		l.pass(now, packet, fate.Jitter)
	}
	if fate.Duplicated {
		l.Counters.Duplicated++
		l.pass(now, packet, fate.Jitter)
	}
	if fate.Overtake > 0 {
		l.Counters.Reordered++
		l.held = append(l.held, held{packet, fate.Overtake, fate.Jitter, now + MaxHold})
	}
}

// pass puts a packet on the line, and behind it what it was the last to
// overtake.
func (l *Line) pass(now time.Duration, packet []byte, jitter time.Duration) {
	l.delay(now, packet, jitter)
	kept := l.held[:0]
	for _, h := range l.held {
		if h.overtake--; h.overtake > 0 {
			kept = append(kept, h)
			continue
		}
		l.delay(now, h.packet, h.jitter)
	}
	clear(l.held[len(kept):])
	l.held = kept
}

func (l *Line) delay(now time.Duration, packet []byte, jitter time.Duration) {
	at, ok := l.Settings.Serialise(now, l.free, len(packet))
	if !ok {
		l.Counters.Overflows++
		return
	}
	if l.Settings.Bandwidth > 0 {
		l.free = at
	}
	at = max(at+l.Settings.Delay+jitter, l.last)
	l.last = at
	l.queue = append(l.queue, queued{packet, at})
}

// releaseHeld ends the hold of packets that not enough others have overtaken.
func (l *Line) releaseHeld(now time.Duration) {
	for len(l.held) > 0 && l.held[0].until <= now {
		h := l.held[0]
		l.held[0] = held{}
		l.held = l.held[1:]
		l.delay(h.until, h.packet, h.jitter)
	}
}

// NextDeadline is when Receive may next have a packet, if there is one on the
// line. It may be in the past.
func (l *Line) NextDeadline() (at time.Duration, ok bool) {
	if len(l.held) > 0 { // in the order of their times, too
		at, ok = l.held[0].until, true
	}
	if len(l.queue) > 0 && (!ok || l.queue[0].at < at) {
		at, ok = l.queue[0].at, true
	}
	return at, ok
}

// Receive takes the next packet that has come to the end of the line.
func (l *Line) Receive(now time.Duration) (packet []byte, ok bool) {
	l.releaseHeld(now)
	if len(l.queue) == 0 || l.queue[0].at > now {
		return nil, false
	}
	packet = l.queue[0].packet
	l.queue[0] = queued{}
	l.queue = l.queue[1:]
	l.Counters.Received++
	return packet, true
}
