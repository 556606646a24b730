package lab

import (
	"fmt"
	"hash/crc32"
	"slices"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// trace is the story of a Sim: all events of all networks in their order, and
// what the hosts sent.
type trace struct {
	hash  uint64
	count uint64
	taps  []*tap
}

func (t *trace) add(e Event) {
	t.count++
	t.mix(uint64(e.At))
	t.mix(uint64(e.Verdict)<<32 | uint64(crc32.Checksum([]byte(e.Net), castagnoli)))
	t.mix(uint64(crc32.Checksum([]byte(e.From), castagnoli))<<32 | uint64(crc32.Checksum([]byte(e.To), castagnoli)))
	t.mix(uint64(len(e.Packet))<<32 | uint64(crc32.Checksum(e.Packet, castagnoli)))
	for _, tap := range t.taps {
		tap.f(e)
	}
}

// mix is one step of a hash that need not resist anybody (the multiplier is
// that of splitmix64).
func (t *trace) mix(x uint64) {
	h := (t.hash ^ x) * 0xBF58476D1CE4E5B9
	t.hash = h ^ h>>29
}

// Hash is of all events so far, with their times and packets: equal hashes,
// equal runs.
func (s *Sim) Hash() uint64 { return s.trace.hash }

// Events is how many there have been.
func (s *Sim) Events() uint64 { return s.trace.count }

// Tap calls f for each event, in their order and in the Sim's goroutine. A
// packet has at least two: Sent, at the host it comes from, and where it ends;
// with routers in between there is one for each network that it passes. f may
// keep the event but not use the Sim. The returned function ends it.
func (s *Sim) Tap(f func(Event)) (remove func()) {
	t := &tap{f}
	s.trace.taps = append(slices.Clone(s.trace.taps), t)
	return func() {
		s.trace.taps = slices.DeleteFunc(slices.Clone(s.trace.taps), func(x *tap) bool { return x == t })
	}
}

// Host tells at which host the event is: that which sent the packet (out) or
// got it (in). Of what happens in between, it is "".
func (s *Sim) Host(e Event) (h *Host, out bool) {
	name := e.To
	switch e.Verdict {
	case Sent:
		name, out = e.From, true
	case Delivered, Vanished:
	default:
		return nil, false
	}
	for _, h := range s.hosts {
		if h.name == name && h.net.name == e.Net {
			return h, out
		}
	}
	return nil, false
}

func (e Event) String() string {
	at := e.At.String()
	if e.Net != "" {
		at += " " + e.Net + ":"
	}
	return fmt.Sprintf("%s %s>%s %d %v", at, e.From, e.To, len(e.Packet), e.Verdict)
}
