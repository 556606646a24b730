package stack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
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
// is set calls of Write too, unless they have taken something already, which is for
// those of more than [MaxWhole] octets: then the client has to read first. Their
// deadlines do not end the wait. The channel is closed as soon as a call waits
// so, or when the application has closed the connection. Asking again, with the
// same argument, returns the same channel.
//
// The goroutine that serves a connection and keeps its state does nothing while
// it waits, and what it did before happens before the channel is closed: the
// state may be read without a lock until EndRest.
//
// An application that uses [Conn.Pin] says itself when it is not at rest.
func (c *Conn) Rest(writes bool) <-chan struct{} {
	c.gate.mu.Lock()
	r := c.rest.Load()
	if r == nil || r.writes != writes {
		r = &rest{reach: make(chan struct{}), writes: writes}
		c.rest.Store(r)
	}
	reached := c.barLocked()
	c.gate.mu.Unlock()
	if reached {
		c.atRest()
	}
	c.wq.Notify(waiter.ReadableEvents | waiter.WritableEvents) // those that wait for the endpoint wait here instead
	return r.reach
}

// barLocked lets calls rest, if that was asked for and the connection is not
// pinned. It tells whether the connection is at rest with that. gate.mu is held.
func (c *Conn) barLocked() (reached bool) {
	r := c.rest.Load()
	if r == nil {
		return false
	}
	if c.pins.Load() == 0 {
		c.gate.state = c.gate.state&^gateNoNewWrite | gateNoRead
		if r.writes {
			c.gate.state |= gateNoNewWrite
		}
		reached = c.pinned.Load()
	}
	return reached || c.gate.state&gateClosed != 0
}

// EndRest lets the calls go on, unless something else stops them.
func (c *Conn) EndRest() {
	c.gate.mu.Lock()
	c.gate.state &^= gateNoRead | gateNoNewWrite
	c.rest.Store(nil)
	c.gate.mu.Unlock()
	c.wq.Notify(waiter.ReadableEvents | waiter.WritableEvents)
}

// Pin keeps the connection from coming to rest, and so from being handed off
// with its state, until Unpin is called as often: its calls go on as usual, and
// who asks for rest waits. It is for an application that is not at rest whenever
// a call of Read waits, as one that reads ahead in a goroutine of its own. From
// the first Pin on the connection is at rest if and only if it is not pinned.
//
// Pin itself waits while the connection is at rest or being moved. If it fails,
// with [ErrMoved] or because the connection is closed, it has not pinned.
func (c *Conn) Pin() error {
	var w wait
	var never deadline
	err := c.call(&w, &never, anyEvent, gateSuspended|gateNoRead, func() tcpip.Error {
		c.pinned.Store(true)
		c.pins.Add(1)
		return nil
	})
	if err != nil {
		err = c.opError("pin", err)
	}
	return err
}

// Unpin undoes one Pin.
func (c *Conn) Unpin() {
	c.gate.mu.Lock()
	reached := c.pins.Add(-1) == 0 && c.barLocked()
	c.gate.mu.Unlock()
	if reached {
		c.atRest()
		c.wq.Notify(waiter.ReadableEvents | waiter.WritableEvents)
	}
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
