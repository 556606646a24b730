package lab

import (
	"container/heap"
	"math"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Epoch is the date at which every [Sim] begins.
var Epoch = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// uptime is what a clock without skew shows when a Sim begins: netstack takes
// some zero times for none.
const uptime = time.Hour

// An event is something that is to happen. It is in the agenda, or not: then
// its index is -1.
type event struct {
	at    time.Duration
	seq   uint64
	index int
	f     func()
	scope scope
	timer bool // of a host's netstack
}

// scope is what an event can have touched, which must come to rest before the
// next one.
type scope struct {
	host *Host
	life int  // the host's, in which the event is to happen; it dies with it
	all  bool // anything
}

// agenda has the events to come, ordered by time and then by entry. It is what
// the goroutines of a netstack share with the Sim: they set timers. Two of them
// may do so at once, in any order; therefore the timers of a host that are due
// together stand together, behind all else, and fire as one event.
type agenda struct {
	mu   sync.Mutex
	now  time.Duration
	seq  uint64
	heap events
}

func (a *agenda) time() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

// set enters e, or moves it, to happen at the given time or at once.
func (a *agenda) set(e *event, at time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setLocked(e, at)
}

func (a *agenda) setLocked(e *event, at time.Duration) {
	e.at = max(at, a.now)
	a.seq++
	e.seq = a.seq
	if e.index >= 0 {
		heap.Fix(&a.heap, e.index)
		return
	}
	heap.Push(&a.heap, e)
}

// after is set, by a time from now.
func (a *agenda) after(e *event, d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.now + max(d, 0)
	if at < a.now {
		at = math.MaxInt64 // some 292 years, for timers that are meant never to fire
	}
	a.setLocked(e, at)
}

func (a *agenda) cancel(e *event) (was bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.index < 0 {
		return false
	}
	heap.Remove(&a.heap, e.index)
	return true
}

// next takes the first event, if it is due by limit, and sets the time to its.
// What is entered from now on has a number greater than seq.
func (a *agenda) next(limit time.Duration) (e *event, seq uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.heap) == 0 || a.heap[0].at > limit {
		return nil, 0
	}
	e = heap.Pop(&a.heap).(*event)
	a.now = e.at
	return e, a.seq
}

// sibling takes the next event if it is a timer of the scope that is due now
// and was set before seq.
func (a *agenda) sibling(s scope, seq uint64) *event {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.heap) == 0 {
		return nil
	}
	if n := a.heap[0]; n.timer && n.scope == s && n.at == a.now && n.seq <= seq {
		return heap.Pop(&a.heap).(*event)
	}
	return nil
}

// clock shows the time of an agenda, later by skew, and has its timers fire in
// the Sim's goroutine. It implements tcpip.Clock.
type clock struct {
	agenda *agenda
	scope  scope
	skew   time.Duration
}

func (c *clock) Now() time.Time { return Epoch.Add(c.agenda.time()) }

func (c *clock) NowMonotonic() tcpip.MonotonicTime {
	return tcpip.MonotonicTime{}.Add(uptime + c.skew + c.agenda.time())
}

func (c *clock) AfterFunc(d time.Duration, f func()) tcpip.Timer {
	t := &timer{agenda: c.agenda, event: event{index: -1, f: f, scope: c.scope, timer: c.scope.host != nil}}
	t.Reset(d)
	return t
}

type timer struct {
	agenda *agenda
	event  event
}

func (t *timer) Stop() bool            { return t.agenda.cancel(&t.event) }
func (t *timer) Reset(d time.Duration) { t.agenda.after(&t.event, d) }

// events is a heap.
type events []*event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	switch a, b := e[i], e[j]; {
	case a.at != b.at:
		return a.at < b.at
	case a.timer != b.timer:
		return b.timer
	case a.timer && a.scope.host != b.scope.host:
		return a.scope.host.number < b.scope.host.number
	default:
		return a.seq < b.seq
	}
}
func (e events) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].index, e[j].index = i, j
}
func (e *events) Push(x any) {
	v := x.(*event)
	v.index = len(*e)
	*e = append(*e, v)
}
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*e = old[:len(old)-1]
	last.index = -1
	return last
}
