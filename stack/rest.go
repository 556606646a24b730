package stack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/waiter"
)

// rest is a connection's coming to rest.
type rest struct {
	once   sync.Once
	reach  chan struct{} // closed once it is at rest
	writes bool
}

// Rest asks for the connection to come to rest, so that its application's state
// is whole: from now on calls of Read wait, having taken nothing, and if writes
// is set calls of Write too, unless they have taken something already. Their
// deadlines do not end the wait. The channel is closed as soon as a call waits
// so, or when the application has closed the connection. Asking again, with the
// same argument, returns the same channel.
//
// The goroutine that serves a connection and keeps its state does nothing while
// it waits, and what it did before happens before the channel is closed: the
// state may be read without a lock until EndRest.
func (c *Conn) Rest(writes bool) <-chan struct{} {
	r := c.rest.Load()
	if r == nil || r.writes != writes {
		r = &rest{reach: make(chan struct{}), writes: writes}
		c.rest.Store(r)
	}
	c.gate.mu.Lock()
	c.gate.state = c.gate.state&^gateNoNewWrite | gateNoRead
	if writes {
		c.gate.state |= gateNoNewWrite
	}
	closed := c.gate.state&gateClosed != 0
	c.gate.mu.Unlock()
	if closed {
		c.atRest()
	}
	c.wq.Notify(waiter.ReadableEvents | waiter.WritableEvents) // those that wait for the endpoint wait here instead
	return r.reach
}

// EndRest lets the calls go on, unless something else stops them.
func (c *Conn) EndRest() {
	c.gate.mu.Lock()
	c.gate.state &^= gateNoRead | gateNoNewWrite
	c.gate.mu.Unlock()
	c.rest.Store(nil)
	c.wq.Notify(waiter.ReadableEvents | waiter.WritableEvents)
}

// resting tells whether the calls that something in barred stops are to rest.
func (c *Conn) resting(barred gateState) bool {
	if c.rest.Load() == nil {
		return false
	}
	c.gate.mu.RLock()
	defer c.gate.mu.RUnlock()
	s := c.gate.state
	return s&barred&(gateNoRead|gateNoNewWrite) != 0 && s&(gateClosed|gateMoved) == 0
}

// atRest says that the connection is at rest, if somebody has asked for it.
func (c *Conn) atRest() {
	if r := c.rest.Load(); r != nil {
		r.once.Do(func() { close(r.reach) })
	}
}

// Unattended tells whether no application has the connection: it was closed, or
// waits to be accepted.
func (c *Conn) Unattended() bool {
	c.gate.mu.RLock()
	closed := c.gate.state&gateClosed != 0
	c.gate.mu.RUnlock()
	return closed || c.waiting.Load() != nil
}

// AtRest tells whether the connection was asked to come to rest, and has.
func (c *Conn) AtRest() bool {
	r := c.rest.Load()
	if r == nil {
		return false
	}
	select {
	case <-r.reach:
		return true
	default:
		return false
	}
}
