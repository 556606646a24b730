package stack

import (
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// clock is the tcpip.Clock under the netstack. Its timers know when they fire,
// which netstack itself does not record for TIME_WAIT and orphaned FIN_WAIT_2;
// package migrate needs it to move the remaining time.
type clock struct{ tcpip.Clock }

func newClock(c tcpip.Clock) tcpip.Clock {
	if c == nil {
		c = tcpip.NewStdClock()
	}
	return clock{c}
}

func (c clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	return &timer{Timer: c.Clock.AfterFunc(d, f), clock: c.Clock, target: c.NowMonotonic().Add(d)}
}

type timer struct {
	tcpip.Timer
	clock  tcpip.Clock
	target tcpip.MonotonicTime
}

// Reset implements tcpip.Timer. Its caller serialises it with Remaining.
func (t *timer) Reset(d time.Duration) {
	t.target = t.clock.NowMonotonic().Add(d)
	t.Timer.Reset(d)
}

// Remaining is the time until the timer fires, negative when that is over. It
// says nothing about whether the timer was stopped.
func (t *timer) Remaining() time.Duration { return t.target.Sub(t.clock.NowMonotonic()) }
