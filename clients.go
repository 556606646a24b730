package ds

import (
	"net/netip"
	"sync"

	"github.com/distributed-servers/ds/daemon/api"
)

// clients knows which clients have connections here and what the daemon has
// been told of that. Its mutex is a leaf: the stack calls present under locks of
// its own.
type clients struct {
	telling sync.Mutex // held while the daemon is told, so that word goes out in order

	mu    sync.Mutex
	all   map[netip.Addr]*client
	stale []netip.Addr // those to tell the daemon about
	wake  sync.Cond    // something is stale, or it is over
	over  bool
}

// client is one of them. The zero value is one that is not here.
type client struct {
	here   bool // it has connections in the stack
	told   bool // the daemon thinks so
	moving bool // in a handoff, whose messages say it all
}

func (cs *clients) init() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.wake.L = &cs.mu
	cs.all = make(map[netip.Addr]*client)
}

// change makes a change to a client, and sees to it that the daemon is told.
func (cs *clients) change(addr netip.Addr, f func(c *client)) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.all[addr]
	if c == nil {
		c = new(client)
		cs.all[addr] = c
	}
	f(c)
	switch {
	case *c == client{}:
		delete(cs.all, addr)
	case c.here != c.told && !c.moving:
		cs.staleLocked(addr)
	}
}

func (cs *clients) staleLocked(addr netip.Addr) {
	cs.stale = append(cs.stale, addr)
	cs.wake.Signal()
}

// present is told by the stack, see stack.Config.Present.
func (cs *clients) present(addr netip.Addr, here bool) {
	cs.change(addr, func(c *client) { c.here = here })
}

// claim begins a handoff of a client, as donor or as target, unless there is
// one; settle ends it. The client is the daemon's then as told says.
func (cs *clients) claim(addr netip.Addr) (here, ok bool) {
	cs.change(addr, func(c *client) {
		if here, ok = c.here, !c.moving; ok {
			c.moving = true
		}
	})
	return here, ok
}

func (cs *clients) settle(addr netip.Addr, told func(before bool) bool) {
	cs.change(addr, func(c *client) { c.moving, c.told = false, told(c.told) })
}

func unchanged(told bool) bool { return told }
func ours(bool) bool           { return true }
func theirs(bool) bool         { return false }

// resume returns the clients to attach again with, and takes them as told.
// Those in except may be somebody else's.
func (cs *clients) resume(except map[netip.Addr]*handoff) []netip.Addr {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	var here []netip.Addr
	for addr, c := range cs.all {
		c.told = c.here && except[addr] == nil
		switch {
		case c.told:
			here = append(here, addr)
		case *c == client{}:
			delete(cs.all, addr)
		}
	}
	return here
}

// here returns the clients that have connections here.
func (cs *clients) here() (here []netip.Addr) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for addr, c := range cs.all {
		if c.here {
			here = append(here, addr)
		}
	}
	return here
}

// attached sees to it that what has changed since resume is told.
func (cs *clients) attached() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.stale = nil
	for addr, c := range cs.all {
		if c.here != c.told && !c.moving {
			cs.staleLocked(addr)
		}
	}
}

// takeStale waits until something is stale. It returns nil when it is over.
func (cs *clients) takeStale() (stale []netip.Addr) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for len(cs.stale) == 0 && !cs.over {
		cs.wake.Wait()
	}
	if cs.over {
		return nil
	}
	stale, cs.stale = cs.stale, nil
	return stale
}

// stop ends takeStale.
func (cs *clients) stop() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.over = true
	cs.wake.Broadcast()
}

// news is what the daemon must hear about a client, 0 if nothing. It counts as
// told. One that is moving is nobody's business, unless that is what the word
// goes ahead of.
func (cs *clients) news(addr netip.Addr, ahead bool) (kind api.Kind) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.all[addr]
	switch {
	case c == nil || c.here == c.told || c.moving && !ahead:
		return 0
	case c.here:
		kind = api.Owned
	default:
		kind = api.Gone
	}
	c.told = c.here
	if *c == (client{}) {
		delete(cs.all, addr)
	}
	return kind
}

// tellClients tells the daemon which clients come and go, until the Node is
// closed.
func (n *Node) tellClients() {
	for {
		stale := n.clients.takeStale()
		if stale == nil {
			return
		}
		for _, addr := range stale {
			n.tellClient(addr, false)
		}
	}
}

// tellClient tells the daemon about a client, if there is something to tell.
func (n *Node) tellClient(addr netip.Addr, ahead bool) {
	n.clients.telling.Lock()
	defer n.clients.telling.Unlock()
	session := n.attached()
	if session == nil {
		return // attaching again tells it all
	}
	kind := n.clients.news(addr, ahead)
	if kind == 0 {
		return
	}
	m := &api.Message{Kind: kind, Client: addr}
	if kind == api.Owned {
		m.Connections = 1
	}
	session.Send(m) // if that fails, so does the session
}
