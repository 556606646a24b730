package lab

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// Program is what runs on a [Host]: a protocol machine, a netstack, or several
// of them put together. Its methods are called in the Sim's goroutine, and
// send by [Host.Send]. If it implements [io.Closer] it is closed when the host
// crashes or the Sim ends; what it sends then goes nowhere.
type Program interface {
	// Receive takes a packet that has arrived, which it may keep but not
	// change.
	Receive(packet []byte)

	// NextDeadline is when Tick is to be called, in the Sim's time. It is
	// asked after each event of the host.
	NextDeadline() (at time.Duration, ok bool)
	Tick()
}

// Host is a computer with one link.
//
//	NewHost ─► up ── Crash ──► down
//	            ▲                │
//	            └─── Restart ────┘
//
// A host that goes down takes everything in it along, timers and processes
// too, without a word to anybody; packets on the link to it vanish.
type Host struct {
	sim    *Sim
	number int
	name   string
	net    *Net
	boot   func(*Host) (Program, error)

	port     *Port
	up       bool
	life     int // how often it has crashed
	skew     time.Duration
	program  Program
	procs    []*Proc
	devices  []*Device
	deadline *event
}

// NewHost adds a host with a link to a network and starts it: boot returns what
// runs there, again after each [Host.Restart]. Routes to it are up to the
// caller; they stay when it crashes.
func (s *Sim) NewHost(name string, on *Net, mtu int, boot func(*Host) (Program, error)) (*Host, error) {
	for _, h := range s.hosts {
		if h.name == name {
			return nil, fmt.Errorf("lab: new host %s: there is one of that name", name)
		}
	}
	h := &Host{sim: s, number: len(s.hosts), name: name, net: on, boot: boot, port: on.Attach(name, mtu)}
	s.hosts = append(s.hosts, h)
	if err := h.start(); err != nil {
		return nil, fmt.Errorf("lab: new host %s: %w", name, err)
	}
	return h, nil
}

// start begins a life. Its clock shows a time of its own: nobody may rely on
// two hosts' clocks agreeing.
func (h *Host) start() error {
	r := rand.New(rand.NewPCG(h.sim.streamSeed("skew", h.name), uint64(h.life)))
	h.skew = time.Duration(r.Int64N(int64(24 * time.Hour)))
	life := h.life
	h.deadline = &event{index: -1, scope: scope{host: h, life: life}, f: func() { h.program.Tick() }}
	h.port.Handle(func(p []byte) {
		h.schedule(0, func() { h.program.Receive(p) })
	})
	h.up = true
	p, err := h.boot(h)
	if err != nil {
		h.Crash()
		return err
	}
	h.program = p
	h.schedule(0, func() {}) // for its deadline and its processes
	return nil
}

// schedule enters an event of the host.
func (h *Host) schedule(d time.Duration, f func()) *event {
	e := &event{index: -1, f: f, scope: scope{host: h, life: h.life}}
	h.sim.agenda.after(e, d)
	return e
}

// Name is the host's in events.
func (h *Host) Name() string { return h.name }

// Sim is the world of the host.
func (h *Host) Sim() *Sim { return h.sim }

// Net is the network that the host's link leads to.
func (h *Host) Net() *Net { return h.net }

// Port is the host's link, for routes and impairments. A Restart replaces it,
// and keeps both.
func (h *Host) Port() *Port { return h.port }

// Up tells whether the host runs.
func (h *Host) Up() bool { return h.up }

// Program is what runs there, nil when the host is down.
func (h *Host) Program() Program { return h.program }

// Now is the Sim's time.
func (h *Host) Now() time.Duration { return h.sim.Now() }

// Clock is for netstacks: it shows the host's own time, and its timers die
// with the host. They fire in the Sim's goroutine, in the order of their times
// and, for equal ones, of their setting.
func (h *Host) Clock() tcpip.Clock {
	return &clock{agenda: &h.sim.agenda, scope: scope{host: h, life: h.life}, skew: h.skew}
}

// Rand returns random octets that depend on the seed, the host, how often it
// has crashed, and the purpose. Several goroutines may read from it.
func (h *Host) Rand(purpose string) io.Reader {
	return h.sim.Rand("host", h.name, strconv.Itoa(h.life), purpose)
}

// After has f called when d has passed, unless the host crashes. f may touch
// this host alone; see [Sim.After].
func (h *Host) After(d time.Duration, f func()) { h.schedule(d, f) }

// Send puts a copy of an IP packet on the host's link.
func (h *Host) Send(b []byte) {
	if !h.up {
		return
	}
	b = slices.Clone(b)
	h.sim.trace.add(Event{At: h.Now(), Net: h.net.name, From: h.name, Packet: b, Verdict: Sent})
	h.port.upward.send(packet{b, h.port})
}

// settle waits until no goroutine of a netstack has anything to do, sends what
// they have sent, and does so again if that was heard in the host itself.
func (h *Host) settle() {
	for again := true; again && h.up; {
		for _, d := range h.devices {
			d.barrier()
		}
		again = false
		for _, d := range h.devices {
			again = d.flush() || again
		}
	}
}

// arm enters the program's deadline.
func (h *Host) arm() {
	if !h.up || h.program == nil {
		return
	}
	at, ok := h.program.NextDeadline()
	at = max(at, h.Now())
	switch {
	case !ok:
		h.sim.agenda.cancel(h.deadline)
	case h.deadline.index < 0 || h.deadline.at != at:
		h.sim.agenda.set(h.deadline, at)
	}
}

// Crash takes the host down. A process of the host itself may do it, and goes
// on until it waits.
func (h *Host) Crash() {
	if !h.up {
		return
	}
	h.up = false
	h.life++
	h.port.dead.Store(true)
	h.port.Close()
	h.sim.agenda.cancel(h.deadline)
	h.sim.remains = append(h.sim.remains, remains{h, h.program, h.procs})
	h.program, h.procs, h.devices = nil, nil, nil
}

// Restart boots a host that is down, with the link, routes and impairments it
// had.
func (h *Host) Restart() error {
	if h.up {
		return fmt.Errorf("lab: restart %s: it is up", h.name)
	}
	h.sim.bury(h) // while what it sends still goes nowhere
	h.port = h.net.Restart(h.port)
	if err := h.start(); err != nil {
		return fmt.Errorf("lab: restart %s: %w", h.name, err)
	}
	return nil
}
