package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/internal/deadline"
)

// Client is one that may go.
type Client struct {
	Addr        netip.Addr
	Connections int
}

// Target is a node that clients may go to.
type Target struct {
	Name    string
	Clients int // that it has
	Weight  int // as in [Node]
	Most    int // so many may go there; 0: any number
}

// Options are how a [Run] goes about it.
type Options struct {
	// Rate is how many handoffs begin in a second. 0: as many as there can be.
	Rate float64

	// Width is how many there are at the same time. Default [DefaultWidth].
	Width int

	// Tries is how often a client's handoff is begun before it is given up.
	// Default 4.
	Tries int
}

// DefaultWidth is how many handoffs there are at the same time. Each waits for
// the client (the care-of test) and for two applications most of the time.
const DefaultWidth = 64

// MaxWidth is what targets are sure to take: package ds keeps 4096 clients for an
// application that is slow to accept them.
const MaxWidth = 1024

const (
	firstRetry = 500 * time.Millisecond // and twice as long each time
	burst      = 100 * time.Millisecond // what was not begun for so long may be made up for
	together   = burst / 2              // what may begin within so long begins at once: each alone costs twice as much
	window     = 5 * time.Second        // of the rate that is told
)

// Outcome is how a client's handoff has ended.
type Outcome uint8

const (
	Moved  Outcome = iota + 1
	Failed         // the client is where it was
	Gone           // there is no such client here any more
)

// Run is which of a node's clients goes where, and when.
//
//	          Next               End: Moved, Gone
//	waiting ────────► moving ─────────────────────► (out)
//	   ▲                │ Failed
//	   └── after a while ┴── too often ──► stuck
type Run struct {
	opt     Options
	begun   time.Duration
	next    time.Duration // no handoff begins before, because of the rate
	group   time.Duration // nor before this, so that several begin at once
	limited bool          // by Target.Most
	targets []*target
	waiting []netip.Addr
	all     map[netip.Addr]*progress // that are not out
	retries deadline.Queue[netip.Addr]

	moving, moved, stuck, failed int
	samples                      []sample
}

type target struct {
	node Node // Takes is false while it does not
	left int  // how many more may go there, if that is limited
	got  int
}

// progress is how far a client is.
type progress struct {
	tries int
	to    *target // moving there
	not   *target // where it failed last
	stuck bool
}

type sample struct {
	at    time.Duration
	moved int
}

// NewRun begins at the time now. If all of the clients are to go, those with the
// most connections go first: what takes longest shall not begin last. If the
// targets limit how many, it is those with the fewest, which cost least.
func NewRun(now time.Duration, clients []Client, targets []Target, o Options) *Run {
	o.Width = min(max(cmp.Or(o.Width, DefaultWidth), 1), MaxWidth)
	o.Tries = max(cmp.Or(o.Tries, 4), 1)
	r := &Run{opt: o, begun: now, next: now, all: make(map[netip.Addr]*progress), samples: []sample{{at: now}}}
	for _, t := range targets {
		r.limited = r.limited || t.Most > 0
		r.targets = append(r.targets, &target{node: Node{Name: t.Name, Clients: t.Clients, Weight: t.Weight, Takes: true}, left: t.Most})
	}
	slices.SortFunc(r.targets, func(a, b *target) int { return cmp.Compare(a.node.Name, b.node.Name) })
	clients = slices.Clone(clients)
	slices.SortFunc(clients, func(a, b Client) int {
		first := b.Connections - a.Connections
		if r.limited {
			first = -first
		}
		return cmp.Or(first, a.Addr.Compare(b.Addr))
	})
	for _, c := range clients {
		r.Add(c.Addr)
	}
	return r
}

// Add adds a client that has come since.
func (r *Run) Add(addr netip.Addr) {
	if r.all[addr] == nil {
		r.all[addr] = new(progress)
		r.waiting = append(r.waiting, addr)
	}
}

// Set tells whether a target takes clients.
func (r *Run) Set(name string, takes bool) {
	for _, t := range r.targets {
		if t.node.Name == name {
			t.node.Takes = takes
		}
	}
}

// open tells whether a client may go to a target.
func (r *Run) open(t *target) bool { return t.node.Takes && (!r.limited || t.left > 0) }

// choose is the target of a client: the emptiest, but not where it has just failed
// if there is another.
func (r *Run) choose(not *target) (best *target) {
	for _, t := range r.targets {
		switch {
		case !r.open(t):
		case best == nil, best == not, t != not && less(&t.node, 1, &best.node, 1):
			best = t
		}
	}
	return best
}

// Next is the next client to hand off; ok is false if none is due.
func (r *Run) Next(now time.Duration) (addr netip.Addr, to string, ok bool) {
	for {
		again, due := r.retries.Pop(now)
		if !due {
			break
		}
		r.waiting = append(r.waiting, again)
	}
	if r.moving >= r.opt.Width || now < r.may() {
		return addr, "", false
	}
	if len(r.waiting) == 0 {
		return addr, "", false
	}
	c := r.all[r.waiting[0]]
	t := r.choose(c.not)
	if t == nil {
		return addr, "", false
	}
	addr, r.waiting = r.waiting[0], r.waiting[1:]
	c.to = t
	c.tries++
	t.left--
	t.node.Clients++
	r.moving++
	if r.opt.Rate > 0 {
		if r.next = max(r.next, now-burst) + time.Duration(float64(time.Second)/r.opt.Rate); r.next > now {
			r.group = now + together
		}
	}
	return addr, t.node.Name, true
}

// End is that a client's handoff has ended. It tells whether the client is given
// up, of those that have failed.
func (r *Run) End(now time.Duration, addr netip.Addr, o Outcome) (givenUp bool) {
	c := r.all[addr]
	if c == nil || c.to == nil {
		return false
	}
	t := c.to
	c.to = nil
	r.moving--
	if o == Moved {
		r.moved++
		t.got++
		delete(r.all, addr)
		return false
	}
	t.left++
	t.node.Clients--
	if o == Gone {
		delete(r.all, addr)
		return false
	}
	r.failed++
	c.not = t
	if c.tries >= r.opt.Tries {
		c.stuck = true
		r.stuck++
		return true
	}
	r.retries.Set(addr, now+firstRetry<<(c.tries-1))
	return false
}

// Deadline is when Next may have a client although it has none now; ok is false
// if that takes an [Run.End], an [Run.Add] or a [Run.Set].
func (r *Run) Deadline() (at time.Duration, ok bool) {
	if r.moving >= r.opt.Width || !slices.ContainsFunc(r.targets, r.open) {
		return 0, false
	}
	if len(r.waiting) > 0 {
		return r.may(), true
	}
	at, ok = r.retries.Next()
	return max(at, r.may()), ok
}

// may is when the next handoff may begin.
func (r *Run) may() time.Duration { return max(r.next, r.group) }

// Done tells that nothing is under way, and nothing is left that can go.
func (r *Run) Done() bool {
	if r.moving > 0 {
		return false
	}
	return len(r.all) == r.stuck || !slices.ContainsFunc(r.targets, r.open)
}

// Progress is how far a run is.
type Progress struct {
	Moved  int // have gone
	Moving int // are going
	Left   int // are still to go, those that are going included, without Stuck
	Stuck  int // stay, because they failed too often
	Failed int // handoffs that have failed

	Rate float64       // that have gone in a second, lately
	ETA  time.Duration // how long it takes to the end at this rate; 0: nobody knows
	To   []Count       // where they have gone, by name
}

// Count is how many clients have gone to a node.
type Count struct {
	Node    string
	Clients int
}

// Progress is how far it is at the time now.
func (r *Run) Progress(now time.Duration) Progress {
	p := Progress{Moved: r.moved, Moving: r.moving, Left: len(r.all) - r.stuck, Stuck: r.stuck, Failed: r.failed}
	if r.limited {
		room := r.moving
		for _, t := range r.targets {
			room += t.left // if it takes none, that is what does not get there
		}
		p.Left = min(p.Left, room)
	}
	for _, t := range r.targets {
		if t.got > 0 {
			p.To = append(p.To, Count{t.node.Name, t.got})
		}
	}
	for len(r.samples) > 1 && r.samples[1].at <= now-window {
		r.samples = r.samples[1:]
	}
	first := r.samples[0]
	if d := now - first.at; d > 0 {
		p.Rate = float64(r.moved-first.moved) / d.Seconds()
	}
	if last := r.samples[len(r.samples)-1]; now-last.at >= window/50 {
		r.samples = append(r.samples, sample{now, r.moved})
	}
	if p.Rate > 0 {
		p.ETA = time.Duration(float64(p.Left) / p.Rate * float64(time.Second))
	}
	return p
}
