package node

import "time"

// limit is the rate limit of RFC 6275 section 11.8: at most MAX_UPDATE_RATE
// messages of a type to a correspondent within a second. The zero value allows.
type limit [MaxUpdateRate]time.Duration // when each of the last messages is a second old, the oldest first

// take counts a message, unless that is one too many: then it is allowed at at.
func (l *limit) take(now time.Duration) (at time.Duration, ok bool) {
	if l[0] > now {
		return l[0], false
	}
	copy(l[:], l[1:])
	l[len(l)-1] = now + time.Second
	return now, true
}

// last is when all messages are a second old.
func (l *limit) last() time.Duration { return l[len(l)-1] }

// bucket is the rate limit of errors, whoever they go to (RFC 4443 section
// 2.4 (f), RFC 6275 section 9.3.3): a burst of 10, and 10 a second.
type bucket struct {
	full time.Duration // when the bucket is full again
}

func (b *bucket) take(now time.Duration) bool {
	const burst, interval = 10, time.Second / 10
	full := max(b.full, now) + interval
	if full > now+burst*interval {
		return false
	}
	b.full = full
	return true
}
