package homeagent

import "time"

// ntp is the wall clock at now in the format of NTP: seconds since 1900, 32
// bits, and fractions, 32 bits (RFC 5905 section 6). Differences are right
// across the era's end in 2036.
func (m *HomeAgent) ntp(now time.Duration) uint64 {
	const since1900 = 2208988800
	t := m.cfg.Epoch.Add(now)
	return uint64(t.Unix()+since1900)<<32 | uint64(t.Nanosecond())<<32/uint64(time.Second)
}

// span is a duration in units of timestamps.
func span(d time.Duration) int64 {
	return int64(d/time.Second)<<32 | int64(d%time.Second)<<32/int64(time.Second)
}

// stampVerdict is what a timestamp says about the message that has it.
type stampVerdict uint8

const (
	fresh  stampVerdict = iota
	again               // the last message once more
	stale               // not later than the last, or off our clock
	absent              // there is none
)

// judge compares a timestamp with our clock and with the last one from h
// (RFC 4285 section 6).
func (m *HomeAgent) judge(h *entry, r *request) stampVerdict {
	stamp := r.stamp
	off := int64(stamp - m.ntp(m.now))
	window := span(m.cfg.Window)
	switch {
	case stamp == 0:
		return absent
	case stamp == h.stamp && r.sequence == h.stamped:
		return again
	case int64(stamp-h.stamp) <= 0 || off > window || off < -window:
		return stale
	}
	return fresh
}

// resync is the timestamp that a refusal tells a mobile node, so that its next
// is accepted: our seconds with its fraction (RFC 4285 section 6). Another
// node with a faster clock may have registered before; then our seconds would
// not do.
func (m *HomeAgent) resync(h *entry, stamp uint64) uint64 {
	ours := m.ntp(m.now)
	if next := h.stamp + 1<<32; int64(next-ours) > 0 && int64(next-ours) < span(m.cfg.Window) {
		ours = next
	}
	return ours&^(1<<32-1) | stamp&(1<<32-1)
}
