package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// livelock is how many events may happen at one instant before a Sim gives up.
const livelock = 1 << 20

// Sim is a world of hosts and networks that runs by itself, one event after
// another, on a clock of its own: the same seed gives the same run. It is not
// for use by several goroutines.
type Sim struct {
	seed   uint64
	agenda agenda
	trace  trace

	nets  []*Net
	hosts []*Host
	procs []*Proc // of no host

	remains []remains // of hosts that have crashed
	running bool
	closed  bool
	steps   uint64
	moved   time.Duration // when time moved last
	still   int           // what has happened since
}

// NewSim returns an empty world.
func NewSim(seed uint64) *Sim { return &Sim{seed: seed} }

// Now is the time since the world began.
func (s *Sim) Now() time.Duration { return s.agenda.time() }

// Steps is how many events have happened.
func (s *Sim) Steps() uint64 { return s.steps }

// Clock shows the world's time. What its timers do may touch any host.
func (s *Sim) Clock() tcpip.Clock {
	return &clock{agenda: &s.agenda, scope: scope{all: true}}
}

// NewNet adds a network, which names itself in events. It is a switch; see
// [Join] and [Net.SetRouter].
func (s *Sim) NewNet(name string) *Net {
	c := &clock{agenda: &s.agenda} // its timers move packets, and touch nobody
	n := New(s.streamSeed("net", name), c)
	n.name = name
	n.start = tcpip.MonotonicTime{}.Add(uptime)
	n.Tap(s.trace.add)
	s.nets = append(s.nets, n)
	return n
}

// streamSeed derives an independent seed from the world's.
func (s *Sim) streamSeed(names ...string) uint64 {
	h := fnv.New64a()
	h.Write(binary.LittleEndian.AppendUint64(nil, s.seed))
	for _, n := range names {
		h.Write([]byte(n))
		h.Write([]byte{0})
	}
	return h.Sum64()
}

// Rand returns an endless stream of random octets that depends on the seed and
// the names alone. Several goroutines may read from it.
func (s *Sim) Rand(names ...string) io.Reader {
	var seed [32]byte
	for i := range 4 {
		binary.LittleEndian.PutUint64(seed[8*i:], s.streamSeed(append(slices.Clone(names), string(rune('0'+i)))...))
	}
	return &lockedReader{r: rand.NewChaCha8(seed)}
}

type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(b)
}

// At has f called at a time, or at once if that is over. It may touch any
// host, crash them, and change the networks.
func (s *Sim) At(at time.Duration, f func()) {
	s.agenda.set(&event{index: -1, f: f, scope: scope{all: true}}, at)
}

// After is At by a time from now.
func (s *Sim) After(d time.Duration, f func()) {
	s.agenda.after(&event{index: -1, f: f, scope: scope{all: true}}, d)
}

// Run lets d pass.
func (s *Sim) Run(d time.Duration) { s.RunUntil(d, func() bool { return false }) }

// RunUntil lets time pass until done, which it asks after each event, but no
// more than d. It tells whether done has said so.
func (s *Sim) RunUntil(d time.Duration, done func() bool) bool {
	if s.running {
		panic("lab: Run within an event")
	}
	s.running = true
	defer func() { s.running = false }()
	s.restAll() // of what the caller has done
	until := s.Now() + d
	if until < d {
		until = math.MaxInt64
	}
	for !done() {
		e, seq := s.agenda.next(until)
		if e == nil {
			s.agenda.mu.Lock()
			s.agenda.now = until
			s.agenda.mu.Unlock()
			return done()
		}
		s.step(e, seq)
	}
	return true
}

func (s *Sim) step(e *event, seq uint64) {
	s.steps++
	s.tick("")
	scope, timer := e.scope, e.timer // a timer may enter itself again
	h := scope.host
	if h != nil && h.life != scope.life {
		return
	}
	e.f()
	if timer {
		for e = s.agenda.sibling(scope, seq); e != nil; e = s.agenda.sibling(scope, seq) {
			e.f()
		}
	}
	switch {
	case h != nil:
		s.rest(h)
	case scope.all:
		s.restAll()
	}
}

// tick counts what happens at one instant.
func (s *Sim) tick(process string) {
	if now := s.Now(); now != s.moved {
		s.moved, s.still = now, 0
	}
	if s.still++; s.still > livelock {
		panic(fmt.Sprintf("lab: time stands still at %v %s", s.moved, process))
	}
}

// rest brings a host to rest after an event of its own, then the processes of
// the world that waited for something there.
func (s *Sim) rest(h *Host) {
	for {
		h.settle()
		if !s.resume(&h.procs) {
			break
		}
	}
	h.arm()
	if s.resume(&s.procs) || len(s.remains) > 0 {
		s.restAll()
	}
}

// restAll brings all to rest after something that may have touched anything.
func (s *Sim) restAll() {
	for again := true; again; {
		again = false
		for _, h := range s.hosts {
			h.settle()
		}
		for _, h := range s.hosts {
			again = s.resume(&h.procs) || again
		}
		again = s.resume(&s.procs) || again
		again = s.bury(nil) || again
	}
	for _, h := range s.hosts {
		h.arm()
	}
}

// remains are what is left of a host's life.
type remains struct {
	host    *Host
	program Program
	procs   []*Proc
}

// bury ends what is left of a host, nil being all. It tells whether there was
// anything.
func (s *Sim) bury(h *Host) (any bool) {
	for i := 0; i < len(s.remains); {
		r := s.remains[i]
		if h != nil && h != r.host {
			i++
			continue
		}
		s.remains = slices.Delete(s.remains, i, i+1)
		any = true
		for _, p := range r.procs {
			p.stop()
		}
		if c, ok := r.program.(io.Closer); ok {
			c.Close()
		}
	}
	return any
}

// Close ends all hosts and networks.
func (s *Sim) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	for _, h := range s.hosts {
		h.Crash()
	}
	for _, p := range s.procs {
		p.stop()
	}
	s.procs = nil
	s.bury(nil)
	var errs []error
	for _, n := range s.nets {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}
