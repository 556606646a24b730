package lab

import (
	"errors"
	"io"
	"iter"
	"slices"
	"syscall"
	"time"
)

// Proc is a process: a function that waits, in simulated time, for what it
// wants, and runs alone until it waits again. It is a coroutine rather than a
// goroutine that could run at any time.
type Proc struct {
	sim   *Sim
	name  string
	scope scope

	next    func() (struct{}, bool)
	cancel  func()
	yield   func(struct{}) bool
	ready   func() bool // nil: not waiting
	running bool
	stopped bool
	done    bool
}

// stopped unwinds a process whose host has crashed.
type stopped struct{}

// Go starts a process of the world. It may touch any host.
func (s *Sim) Go(name string, f func(*Proc)) *Proc {
	p := newProc(s, name, scope{all: true}, f)
	s.procs = append(s.procs, p)
	s.After(0, func() {})
	return p
}

// Go starts a process on the host, which ends where it waits if the host
// crashes: its deferred functions run, but nobody hears of them. It may touch
// this host alone.
func (h *Host) Go(name string, f func(*Proc)) *Proc {
	p := newProc(h.sim, name, scope{host: h, life: h.life}, f)
	if !h.up {
		p.done = true
		return p
	}
	h.procs = append(h.procs, p)
	h.schedule(0, func() {})
	return p
}

func newProc(s *Sim, name string, scope scope, f func(*Proc)) *Proc {
	p := &Proc{sim: s, name: name, scope: scope}
	p.next, p.cancel = iter.Pull(func(yield func(struct{}) bool) {
		p.yield = yield
		defer func() {
			if r := recover(); r != nil && r != (stopped{}) {
				panic(r)
			}
		}()
		f(p)
	})
	return p
}

// resume lets each process run that is ready. It tells whether there was one.
func (s *Sim) resume(procs *[]*Proc) (any bool) {
	for i := 0; i < len(*procs); i++ { // a process may start others, or end them all
		p := (*procs)[i]
		if p.done || p.ready != nil && !p.ready() {
			continue
		}
		any = true
		s.tick(p.name)
		p.ready = nil
		p.running = true
		_, more := p.next()
		p.running = false
		p.done = !more
	}
	if any {
		*procs = slices.DeleteFunc(*procs, func(p *Proc) bool { return p.done })
	}
	return any
}

// stop ends the process where it waits.
func (p *Proc) stop() {
	if p.done {
		return
	}
	p.stopped = true
	if !p.running { // else it ends when it waits
		p.done = true
		p.cancel()
	}
}

// Done tells whether the process has ended.
func (p *Proc) Done() bool { return p.done }

// Name is the process's.
func (p *Proc) Name() string { return p.name }

// Now is the Sim's time.
func (p *Proc) Now() time.Duration { return p.sim.Now() }

// Wait waits until ready, which is asked after each event of the process's
// host (of any host, if it has none) until it returns true. Before, it has no
// effects.
func (p *Proc) Wait(ready func() bool) {
	if p.stopped {
		panic(stopped{})
	}
	if ready() {
		return
	}
	p.ready = ready
	if !p.yield(struct{}{}) {
		panic(stopped{})
	}
}

// WaitFor is Wait that gives up when d has passed, and then returns false.
func (p *Proc) WaitFor(d time.Duration, ready func() bool) bool {
	late := false
	e := &event{index: -1, f: func() { late = true }, scope: p.scope}
	p.sim.agenda.after(e, d)
	ok := false
	p.Wait(func() bool { ok = ready(); return ok || late })
	p.sim.agenda.cancel(e)
	return ok
}

// Sleep lets d pass.
func (p *Proc) Sleep(d time.Duration) { p.WaitFor(d, func() bool { return false }) }

// Conn is a connection whose calls never block: they fail with an error that
// is [syscall.EAGAIN] when there is nothing to do yet.
type Conn interface {
	TryRead(b []byte) (n int, err error)
	TryWrite(b []byte) (n int, err error)
}

// Stream returns the connection as the process reads and writes it: waiting.
func (p *Proc) Stream(c Conn) io.ReadWriter { return stream{p, c} }

type stream struct {
	p *Proc
	c Conn
}

func (s stream) Read(b []byte) (n int, err error) {
	s.p.Wait(func() bool {
		n, err = s.c.TryRead(b)
		return n > 0 || !errors.Is(err, syscall.EAGAIN)
	})
	return n, err
}

func (s stream) Write(b []byte) (n int, err error) {
	for again := true; again; again = err == nil && n < len(b) {
		var m int
		s.p.Wait(func() bool {
			m, err = s.c.TryWrite(b[n:])
			return m > 0 || !errors.Is(err, syscall.EAGAIN)
		})
		n += m
		if m > 0 && errors.Is(err, syscall.EAGAIN) {
			err = nil
		}
	}
	return n, err
}
