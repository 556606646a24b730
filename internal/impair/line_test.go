package impair_test

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/impair"
)

// arrival is a packet that came out of a line.
type arrival struct {
	number uint32
	at     time.Duration
}

// run sends count packets of size octets, one each interval, and lets all
// arrive.
func run(l *impair.Line, count, size int, interval time.Duration) (got []arrival) {
	receive := func(until time.Duration) {
		for {
			at, ok := l.NextDeadline()
			if !ok || at > until {
				return
			}
			for p, ok := l.Receive(at); ok; p, ok = l.Receive(at) {
				got = append(got, arrival{binary.BigEndian.Uint32(p), at})
			}
		}
	}
	for i := range count {
		now := time.Duration(i) * interval
		receive(now)
		p := make([]byte, size)
		binary.BigEndian.PutUint32(p, uint32(i))
		l.Send(now, p)
	}
	receive(math.MaxInt64)
	return got
}

func TestNothingHappensByDefault(t *testing.T) {
	got := run(impair.NewLine(1, impair.Settings{}), 100, 100, time.Millisecond)
	for i, a := range got {
		if a != (arrival{uint32(i), time.Duration(i) * time.Millisecond}) {
			t.Fatalf("packet %d: %+v", i, a)
		}
	}
	if len(got) != 100 {
		t.Errorf("%d of 100 arrived", len(got))
	}
}

func TestASeedIsARun(t *testing.T) {
	s := impair.Settings{Loss: .1, Duplicate: .1, Reorder: .1, Delay: 3 * time.Millisecond, Jitter: 2 * time.Millisecond, Bandwidth: 1e5}
	one := run(impair.NewLine(7, s), 1000, 100, time.Millisecond)
	if two := run(impair.NewLine(7, s), 1000, 100, time.Millisecond); !slices.Equal(one, two) {
		t.Error("the same seed had another run")
	}
	if other := run(impair.NewLine(8, s), 1000, 100, time.Millisecond); slices.Equal(one, other) {
		t.Error("another seed had the same run")
	}
}

func TestDelayAndJitterKeepTheOrder(t *testing.T) {
	s := impair.Settings{Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond}
	got := run(impair.NewLine(1, s), 1000, 100, time.Millisecond)
	for i, a := range got {
		late := a.at - time.Duration(i)*time.Millisecond
		if a.number != uint32(i) || late < 10*time.Millisecond || late > 15*time.Millisecond {
			t.Fatalf("packet %d: %+v, %v late", i, a, late)
		}
	}
	if len(got) != 1000 {
		t.Errorf("%d of 1000 arrived", len(got))
	}
}

func TestRatesOfLossDuplicationAndReordering(t *testing.T) {
	const count = 100_000
	l := impair.NewLine(1, impair.Settings{Loss: .02, Duplicate: .03, Reorder: .05})
	got := run(l, count, 4, 10*time.Microsecond)
	c := l.Counters
	// Five standard deviations of a binomial distribution.
	near := func(what string, n uint64, p float64) {
		if d := math.Abs(float64(n) - count*p); d > 5*math.Sqrt(count*p*(1-p)) {
			t.Errorf("%s: %d of %d, want about %v", what, n, count, p)
		}
	}
	near("lost", c.Lost, .02)
	near("duplicated", c.Duplicated, .03*.98)
	near("reordered", c.Reordered, .05*.98)
	if want := c.Sent - c.Lost + c.Duplicated; c.Received != want || uint64(len(got)) != want || c.Sent != count {
		t.Errorf("%+v, but %d arrived", c, len(got))
	}
	// Each was overtaken by no more than the limit.
	var highest uint32
	for _, a := range got {
		if highest > a.number+2*impair.MaxOvertake {
			t.Fatalf("packet %d comes after %d", a.number, highest)
		}
		highest = max(highest, a.number)
	}
}

func TestTheLastPacketIsNotStuck(t *testing.T) {
	got := run(impair.NewLine(1, impair.Settings{Reorder: 1, Delay: time.Millisecond}), 1, 4, 0)
	if want := []arrival{{0, impair.MaxHold + time.Millisecond}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestBandwidthAndQueue(t *testing.T) {
	// 1000 octets take 10 ms; two wait besides the one on the line.
	l := impair.NewLine(1, impair.Settings{Bandwidth: 100_000, Queue: 3000})
	got := run(l, 10, 1000, 0)
	want := []arrival{{0, 10 * time.Millisecond}, {1, 20 * time.Millisecond}, {2, 30 * time.Millisecond}}
	if !slices.Equal(got, want) || l.Counters.Overflows != 7 {
		t.Errorf("got %+v and %+v, want %+v", got, l.Counters, want)
	}
}

func TestSettingsChangeOnTheWay(t *testing.T) {
	l := impair.NewLine(1, impair.Settings{Delay: 10 * time.Millisecond})
	l.Send(0, []byte{1})
	l.Settings = impair.Settings{Loss: 1}
	l.Send(time.Millisecond, []byte{2})
	l.Settings = impair.Settings{}
	l.Send(2*time.Millisecond, []byte{3})
	// The third does not overtake the first: a line keeps the order.
	if at, ok := l.NextDeadline(); at != 10*time.Millisecond || !ok {
		t.Errorf("next at %v, %t", at, ok)
	}
	if p, ok := l.Receive(9 * time.Millisecond); ok {
		t.Errorf("%v came early", p)
	}
	for _, want := range []byte{1, 3} {
		if p, ok := l.Receive(10 * time.Millisecond); !ok || p[0] != want {
			t.Errorf("got %v, %t, want %d", p, ok, want)
		}
	}
	if _, ok := l.NextDeadline(); ok {
		t.Error("the line is not empty")
	}
}
