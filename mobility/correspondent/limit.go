package correspondent

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Limits protect the host's processor, and others from answers to packets that
// were sent in their name. Each kind is limited for each /64 that packets
// come from, so that who floods suffers most, and for all together. The zero
// value of each means the default.
type Limits struct {
	// Tests are Home and Care-of Test Inits answered. Default 200 a second,
	// 400 at once, for each /64; 20000, 20000 for all.
	Tests, AllTests Limit

	// Updates are Binding Updates looked at, and so Binding Acknowledgements
	// sent. Default 100 a second, 200 at once, for each /64; 10000, 10000 for all.
	Updates, AllUpdates Limit

	// Errors are Binding Errors (RFC 6275 section 9.3.3) and ICMPv6 errors
	// (RFC 4443 section 2.4) sent. Default 10 a second, 20 at once, for each
	// /64; 1000, 1000 for all.
	Errors, AllErrors Limit
}

// Limit is a token bucket.
type Limit struct {
	PerSecond int // negative: no limit
	Burst     int // how many at once; default PerSecond
}

func (l Limits) orDefault() Limits {
	for _, d := range []struct {
		limit            *Limit
		perSecond, burst int
	}{
		{&l.Tests, 200, 400}, {&l.AllTests, 20000, 20000},
		{&l.Updates, 100, 200}, {&l.AllUpdates, 10000, 10000},
		{&l.Errors, 10, 20}, {&l.AllErrors, 1000, 1000},
	} {
		if d.limit.PerSecond == 0 {
			*d.limit = Limit{d.perSecond, d.burst}
		}
		if d.limit.Burst <= 0 {
			d.limit.Burst = max(d.limit.PerSecond, 1)
		}
	}
	return l
}

// limiter has one token bucket for all and a fixed number of them for
// prefixes, which share those by a keyed hash: its memory does not grow, and
// nobody can choose whose bucket to empty.
//
// A bucket is the time at which it would be full again.
type limiter struct {
	each, all bucketSize
	total     time.Duration
	buckets   [1024]time.Duration
	seed      uint64
}

type bucketSize struct {
	interval time.Duration // between tokens; 0: no limit
	depth    time.Duration // how far ahead of now a bucket may be, with a token left
}

func (l *limiter) init(each, all Limit, seed [8]byte) {
	l.each, l.all = each.size(), all.size()
	l.seed = binary.BigEndian.Uint64(seed[:])
}

func (l Limit) size() bucketSize {
	if l.PerSecond < 0 {
		return bucketSize{}
	}
	interval := max(time.Second/time.Duration(l.PerSecond), 1)
	return bucketSize{interval, interval * time.Duration(l.Burst-1)}
}

// allow takes a token for what came from src.
func (l *limiter) allow(src netip.Addr, now time.Duration) bool {
	a := src.As16()
	h := (binary.BigEndian.Uint64(a[:8]) ^ l.seed) * 0x9e3779b97f4a7c15
	h = (h ^ h>>32) * 0x9e3779b97f4a7c15
	return l.each.take(&l.buckets[h>>54], now) && l.all.take(&l.total, now)
}

func (s bucketSize) take(full *time.Duration, now time.Duration) bool {
	at := max(*full, now)
	if at-now > s.depth {
		return false
	}
	*full = at + s.interval
	return true
}
