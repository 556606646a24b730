package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// Events remembers what has happened lately, for those who watch and for the
// history of a client. Publish never waits for a reader: a reader has a
// position, and when the ring has gone past it, a gap. The zero value is ready.
type Events struct {
	// Size is how many are remembered. Default 8192. Not to be changed after
	// the first Publish.
	Size int

	mu   sync.Mutex
	ring []api.Event   // the last events, in a ring: number n is at n % Size
	last uint64        // number of the last one
	more chan struct{} // closed at the next Publish
}

const defaultEvents = 8192

func (l *Events) size() uint64 {
	if l.Size > 0 {
		return uint64(l.Size)
	}
	return defaultEvents
}

// Publish adds an event. It numbers it, and stamps it with the time unless it
// has one.
func (l *Events) Publish(e api.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.Seq = l.last
	if l.ring == nil {
		l.ring = make([]api.Event, l.size())
	}
	l.ring[l.last%l.size()] = e
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
}

// Last is the number of the last event.
func (l *Events) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// first is the number of the first event that is remembered.
func (l *Events) first() uint64 {
	if l.last < l.size() {
		return 1
	}
	return l.last - l.size() + 1
}

// About returns the last events about a client, at most n, the oldest first.
func (l *Events) About(o api.WatchOptions, n int) []api.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []api.Event
	for seq := l.last; seq >= l.first() && len(found) < n; seq-- {
		if e := l.ring[seq%l.size()]; o.Match(e) {
			found = append(found, e)
		}
	}
	slices.Reverse(found)
	return found
}

// maxBatch is how many events a reader gets at once.
const maxBatch = 256

// next returns selected events after number since, with the position after
// them, and when there are none, a channel that is closed when there may be.
func (l *Events) next(since uint64, o api.WatchOptions) (events []api.Event, position uint64, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if since > l.last { // a number of an earlier life of the daemon
		events = append(events, api.Event{Kind: api.EventMissed, Time: time.Now(), Detail: "the daemon has started anew"})
		since = 0
	}
	if first := l.first(); since+1 < first {
		events = append(events, api.Event{Seq: first - 1, Kind: api.EventMissed, Time: time.Now(), Missed: first - 1 - since})
		since = first - 1
	}
	for since < l.last && len(events) < maxBatch {
		since++
		if e := l.ring[since%l.size()]; o.Match(e) {
			events = append(events, e)
		}
	}
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return events, since, l.more
}

// Watch calls yield with batches of selected events until the context ends or
// yield fails. An empty batch is a sign of life, after a while without events.
func (l *Events) Watch(ctx context.Context, o api.WatchOptions, life time.Duration, yield func([]api.Event) error) error {
	since := o.Since
	if since == api.FromNow {
		since = l.Last()
	}
	sign := time.NewTicker(life)
	defer sign.Stop()
	for {
		events, position, more := l.next(since, o)
		advanced := position != since
		since = position
		if len(events) > 0 {
			if err := yield(events); err != nil {
				return err
			}
			sign.Reset(life)
		}
		if advanced {
			continue // there may be more already
		}
		select {
		case <-more:
		case <-sign.C:
			if err := yield(nil); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
