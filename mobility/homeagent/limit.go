package homeagent

import "time"

// Limits to what a Step does, and to what is answered.
const (
	maxPrefixes = 32        // so that a Mobile Prefix Advertisement fits MinMTU
	maxEvents   = 128       // deadlines that a Step handles
	maxBuffer   = 256 << 10 // kept for the next Step

	// ICMPv6 errors and Binding Errors (RFC 4443 section 2.4(f), RFC 6275 section 9.3.3).
	errorInterval, errorBurst = 5 * time.Millisecond, 100
	// Home agent address discovery: a reply is up to 26 times its request.
	discoveryInterval, discoveryBurst = 50 * time.Millisecond, 20
	// Refusals of Binding Updates for home addresses that are not served.
	strangerInterval, strangerBurst = 20 * time.Millisecond, 20
	// For each home address, refusals of Binding Updates that are forged, that
	// are stale, and answers to Mobile Prefix Solicitations.
	answerInterval, answerBurst = 200 * time.Millisecond, 5
)

// limit is a token bucket: the time when it will be full again.
type limit time.Duration

func (l *limit) allow(now, interval time.Duration, burst int) bool {
	full := max(time.Duration(*l), now)
	if full-now > interval*time.Duration(burst-1) {
		return false
	}
	*l = limit(full + interval)
	return true
}
