package relay

import (
	"net/netip"
	"time"
)

// key is an address as it stands in packets. Unlike a netip.Addr it has no
// pointer, so that the garbage collector need not look at a million of them.
type key = [16]byte

// clients says whose each client is.
type clients struct {
	byAddr map[key]record
	max    int
}

type record struct {
	epoch uint64
	owner peerID
}

func (c *clients) init(limit int) { *c = clients{make(map[key]record), limit} }

// setOwner obeys the rule that keeps two nodes from both being sent a client's
// packets, however late a message comes: the later epoch stands.
func (r *Relay) setOwner(in SetOwner) Reason {
	// The home agent would tunnel to us again what is for the home address.
	if !usable(in.Client) || in.Client == r.home || in.Owner == r.home || in.Owner == r.agent {
		return Invalid
	}
	if in.Owner.IsValid() && !in.Owner.IsUnspecified() && !usable(in.Owner) {
		return Invalid
	}
	k := in.Client.As16()
	old, known := r.clients.byAddr[k]
	switch {
	case known && in.Epoch < old.epoch:
		return Stale
	case !known && len(r.clients.byAddr) >= r.clients.max:
		return Full
	}
	owner := self
	if in.Owner.IsValid() && !in.Owner.IsUnspecified() {
		owner = r.peers.get(in.Owner)
	}
	r.peers.list[owner].clients++
	r.clients.byAddr[k] = record{in.Epoch, owner}
	if known {
		r.disown(old.owner)
	}
	return None
}

func (r *Relay) forget(in Forget) Reason {
	if !in.Client.Is6() {
		return Invalid
	}
	k := in.Client.As16()
	old, known := r.clients.byAddr[k]
	if !known {
		return None
	}
	if in.Epoch < old.epoch {
		return Stale
	}
	delete(r.clients.byAddr, k)
	r.disown(old.owner)
	return None
}

func (r *Relay) disown(owner peerID) {
	r.peers.list[owner].clients--
	r.peers.release(owner)
}

// owner is whose the client is: this node's if nothing is known of it.
func (r *Relay) owner(client []byte) peerID { return r.clients.byAddr[key(client)].owner }

// setNodes replaces the members.
func (r *Relay) setNodes(nodes []netip.Addr) {
	was := r.peers.member()
	for _, id := range was {
		r.peers.list[id].member = false
	}
	r.peers.members = 0
	for _, a := range nodes {
		// What claims to come from us, or from the home address, is forged.
		if !usable(a) || a == r.careOf || a == r.agent || a == r.home {
			continue
		}
		if p := &r.peers.list[r.peers.get(a)]; !p.member {
			p.member = true
			r.peers.members++
		}
	}
	for _, id := range was {
		if !r.peers.list[id].member {
			r.paths.forget(id, &r.peers)
			r.peers.release(id)
		}
	}
}

// peerID is a place in peers.list; a client's entry has one instead of an
// address, for there are many clients and few nodes.
type peerID uint32

const (
	self  peerID = 0 // this node
	agent peerID = 1 // the home agent
)

// peers are the nodes that something is known of: members, and owners.
type peers struct {
	list    []peer
	byAddr  map[key]peerID
	free    []peerID
	members int
}

type peer struct {
	addr    netip.Addr
	member  bool
	clients int    // that it owns
	paths   [2]int // home tests that it waits for, by generation; members only

	// mtu is the largest tunnel packet that gets there, until mtuUntil; 0: not known.
	mtu      int
	mtuUntil time.Duration
}

func (p *peers) init(careOf, homeAgent netip.Addr) {
	*p = peers{
		list:   []peer{self: {addr: careOf}, agent: {addr: homeAgent}},
		byAddr: map[key]peerID{careOf.As16(): self, homeAgent.As16(): agent},
	}
}

// get makes a new peer where there is none. The caller makes it a member or an
// owner.
func (p *peers) get(addr netip.Addr) peerID {
	k := addr.As16()
	if id, ok := p.byAddr[k]; ok {
		return id
	}
	var id peerID
	if n := len(p.free); n > 0 {
		id, p.free = p.free[n-1], p.free[:n-1]
	} else {
		id = peerID(len(p.list))
		p.list = append(p.list, peer{})
	}
	p.list[id] = peer{addr: addr}
	p.byAddr[k] = id
	return id
}

// release forgets a peer that is neither member nor owner.
func (p *peers) release(id peerID) {
	e := &p.list[id]
	if id <= agent || e.member || e.clients > 0 {
		return
	}
	delete(p.byAddr, e.addr.As16())
	*e = peer{}
	p.free = append(p.free, id)
}

// member lists the members.
func (p *peers) member() []peerID {
	var ids []peerID
	for id := range p.list {
		if p.list[id].member {
			ids = append(ids, peerID(id))
		}
	}
	return ids
}
