package relay

import (
	"maps"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// paths remembers which node asked for a home test, so that the answer finds
// it (RFC 6275 section 11.6.1: the home test init cookie ties them together).
//
// There are two generations. A test enters the current one; when that has
// lasted for the lifetime it becomes the previous one, which is forgotten. So
// no entry needs a timer, and each is kept between one and two lifetimes.
type paths struct {
	gen      [2]map[pathKey]peerID
	current  int
	max      int
	lifetime time.Duration
	until    time.Duration // when the current generation ends, if there are any
}

type pathKey struct {
	client key
	cookie wire.Cookie
}

func (p *paths) init(limit int, lifetime time.Duration) {
	*p = paths{max: limit, lifetime: lifetime}
	for i := range p.gen {
		p.gen[i] = make(map[pathKey]peerID)
	}
}

func (p *paths) len() int { return len(p.gen[0]) + len(p.gen[1]) }

func (p *paths) deadline() (time.Duration, bool) { return p.until, p.len() > 0 }

// advance ends generations whose time is over.
func (p *paths) advance(now time.Duration, peers *peers) {
	for p.len() > 0 && now >= p.until {
		p.current ^= 1
		clear(p.gen[p.current])
		for id := range peers.list {
			peers.list[id].paths[p.current] = 0
		}
		p.until += p.lifetime
	}
}

// add remembers that node asks. It refuses if the node has asked for more than
// its share already: one that floods takes nothing from the others, and what
// it may send to clients and home agent is bounded too.
func (p *paths) add(now time.Duration, k pathKey, node peerID, peers *peers) bool {
	// Asked again: the answer is waited for from now.
	p.take(k, peers)
	e := &peers.list[node]
	share := max(1, p.max/max(1, peers.members))
	if e.paths[0]+e.paths[1] >= share || p.len() >= p.max {
		return false
	}
	if p.len() == 0 {
		p.until = now + p.lifetime
	}
	p.gen[p.current][k] = node
	e.paths[p.current]++
	return true
}

// find returns who asked.
func (p *paths) find(k pathKey) (node peerID, ok bool) {
	if node, ok = p.gen[p.current][k]; !ok {
		node, ok = p.gen[p.current^1][k]
	}
	return node, ok
}

// take returns who asked, and forgets it: a test has one answer.
func (p *paths) take(k pathKey, peers *peers) (node peerID, ok bool) {
	for g := range p.gen {
		if node, ok = p.gen[g][k]; ok {
			delete(p.gen[g], k)
			peers.list[node].paths[g]--
			return node, true
		}
	}
	return self, false
}

// forget forgets what a node has asked.
func (p *paths) forget(node peerID, peers *peers) {
	for g := range p.gen {
		if peers.list[node].paths[g] > 0 {
			maps.DeleteFunc(p.gen[g], func(_ pathKey, id peerID) bool { return id == node })
			peers.list[node].paths[g] = 0
		}
	}
}
