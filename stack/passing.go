package stack

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip"
	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// This file is what package migrate uses to take connections apart and to put
// them together; applications do not need it.

// ErrSuspended means that somebody else is moving the connection.
var ErrSuspended = errors.New("stack: connection is being moved already")

// Endpoint is netstack's side of the connection.
func (c *Conn) Endpoint() *tcp.Endpoint { return c.ep }

// Queue is where the endpoint reports its events.
func (c *Conn) Queue() *waiter.Queue { return c.wq }

// Suspend makes the application's calls wait. When it returns none is in the
// endpoint. It fails with ErrMoved or ErrSuspended.
func (c *Conn) Suspend() error {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	switch {
	case c.gate.state&gateMoved != 0:
		return ErrMoved
	case c.gate.state&gateSuspended != 0:
		return ErrSuspended
	}
	c.gate.state |= gateSuspended
	return nil
}

// Resume lets the calls go on. A Close that came meanwhile takes effect now.
func (c *Conn) Resume() {
	c.gate.mu.Lock()
	due := c.gate.state&gateCloseDue != 0
	c.gate.state &^= gateSuspended | gateCloseDue
	c.gate.mu.Unlock()
	if due {
		c.ep.Close()
	}
	c.wq.Notify(anyEvent)
}

// BlockWrites makes Write wait, or go on again, without touching other calls.
func (c *Conn) BlockWrites(block bool) {
	c.gate.mu.Lock()
	if block {
		c.gate.state |= gateNoWrite
	} else {
		c.gate.state &^= gateNoWrite
	}
	c.gate.mu.Unlock()
	if !block {
		c.wq.Notify(waiter.WritableEvents)
	}
}

// Detach makes waiting and later calls fail with [ErrMoved] and forgets the
// connection. The endpoint is the caller's to discard.
func (c *Conn) Detach() {
	c.gate.mu.Lock()
	c.gate.state = c.gate.state&^gateCloseDue | gateMoved
	c.gate.mu.Unlock()
	c.wq.EventUnregister(&c.hup)
	c.stack.unlist(c)
	c.wq.Notify(anyEvent)
}

// Restored makes of c, which must be new, a suspended Conn for a connection
// that is being rebuilt: make its endpoint with its Queue, then Attach.
func (s *Stack) Restored(c *Conn, t Tuple) {
	c.stack, c.tuple = s, t
	c.wq = &c.queue
	c.gate.state = gateSuspended
}

// Attach completes a Restored Conn. orphan means that the application has
// closed it before it moved.
func (c *Conn) Attach(ep *tcp.Endpoint, orphan bool) {
	c.ep = ep
	if orphan {
		c.gate.state |= gateClosed
	}
	c.stack.list(c)
}

// Adopt wraps an endpoint that netstack made and nobody has accepted.
func (s *Stack) Adopt(ep *tcp.Endpoint, wq *waiter.Queue) *Conn { return s.newConn(ep, wq) }

// Settled calls do while no connection is on its way: what netstack has given to a
// listener, or has begun to dial, is among ConnsOf, and nothing is added meanwhile but
// what Adopt and Attach add. do must not wait for anybody who accepts or dials.
func (s *Stack) Settled(do func()) {
	s.listing.Lock()
	defer s.listing.Unlock()
	do()
}

// ConnsOf returns the connections of a client: accepted, dialled, being
// dialled, and closed by the application but not yet ended.
func (s *Stack) ConnsOf(client netip.Addr) []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cs []*Conn
	for c := s.clients[client]; c != nil; c = c.next {
		cs = append(cs, c)
	}
	return cs
}

// Conns returns all connections, as ConnsOf does for one client.
func (s *Stack) Conns() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cs []*Conn
	for _, c := range s.clients {
		for ; c != nil; c = c.next {
			cs = append(cs, c)
		}
	}
	return cs
}

// Clients returns the addresses that have connections here, those in a
// handshake and those that nobody has accepted included.
func (s *Stack) Clients() []netip.Addr {
	seen := make(map[netip.Addr]struct{})
	for _, ep := range s.ns.RegisteredEndpoints() {
		if ep, ok := ep.(*tcp.Endpoint); ok {
			if a := transportID(ep.Info()).RemoteAddress; a.Len() != 0 {
				seen[fromAddress(a)] = struct{}{}
			}
		}
	}
	s.mu.Lock()
	for a := range s.clients {
		seen[a] = struct{}{}
	}
	s.mu.Unlock()
	return slices.Collect(maps.Keys(seen))
}

// Listeners returns the open listeners. The slice must not be changed.
func (s *Stack) Listeners() []*Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners
}

// ListenerFor returns the listener that would accept a connection to local,
// the most specific one, or nil.
func (s *Stack) ListenerFor(local netip.AddrPort) *Listener {
	var found *Listener
	for _, l := range s.Listeners() {
		if l.covers(local) && (found == nil || !l.addr.Addr().IsUnspecified()) {
			found = l
		}
	}
	return found
}

// Endpoint is netstack's side of the listener.
func (l *Listener) Endpoint() *tcp.Endpoint { return l.ep }

// Deliver gives an established connection to Accept.
func (l *Listener) Deliver(c *Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("stack: deliver to listener %s: closed", l.addr)
	}
	l.ready = append(l.ready, c)
	c.waiting.Store(l)
	l.wq.Notify(waiter.ReadableEvents)
	return nil
}

// Withdraw takes a connection back that was Delivered and is not yet accepted.
// It returns the listener, nil if the connection does not wait at one.
func (c *Conn) Withdraw() *Listener {
	l := c.waiting.Load()
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.ready, c)
	if i < 0 {
		return nil
	}
	l.ready = slices.Delete(l.ready, i, i+1)
	c.waiting.Store(nil)
	return l
}

func transportID(info tcpip.EndpointInfo) gstack.TransportEndpointID {
	return info.(*gstack.TransportEndpointInfo).ID
}
