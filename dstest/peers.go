package dstest

import (
	"errors"

	"github.com/distributed-servers/ds/daemon/member"
)

// link is the connection between the daemons of two nodes. Each has a number, so
// that what was sent by one does not arrive by the next.
type link struct {
	number uint64 // of the latest
	up     bool
	apart  bool // there cannot be one
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// joinLocked connects two daemons, if both run.
func (c *Cluster) joinLocked(a, b string) {
	l := c.links[pair(a, b)]
	if l == nil || l.up || l.apart || c.daemons[a].process == nil || c.daemons[b].process == nil {
		return
	}
	l.number++
	l.up = true
	c.daemons[a].process.put(item{in: member.PeerUp{Name: b}, number: l.number})
	c.daemons[b].process.put(item{in: member.PeerUp{Name: a}, number: l.number})
}

// breakLocked is that what is on the way between two daemons is lost, and both find
// out.
func (c *Cluster) breakLocked(a, b string) {
	l := c.links[pair(a, b)]
	if l == nil || !l.up {
		return
	}
	l.up = false
	for _, end := range [...][2]string{{a, b}, {b, a}} {
		if p := c.daemons[end[0]].process; p != nil {
			p.put(item{in: member.PeerDown{Name: end[1]}, number: l.number})
		}
	}
}

// toPeer sends a message to another daemon; ok is false if the sender is no more.
func (p *process) toPeer(to member.ToPeer) (ok bool) {
	d, c := p.daemon, p.daemon.cluster
	number := p.joined[to.To]
	if number == 0 {
		return true
	}
	frame, err := to.Message.Append(nil)
	if err != nil {
		panic("dstest: to " + to.To + ": " + err.Error())
	}
	if c.used.Load() && c.Between != nil {
		err = c.Between(d.name, to.To, to.Message.Kind.String())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l, other := c.links[pair(d.name, to.To)], c.daemons[to.To].process
	switch {
	case d.process != p:
		return false
	case err != nil && !errors.Is(err, ErrLost):
		c.restartLocked(d)
		return false
	case err != nil && l.number == number:
		c.breakLocked(d.name, to.To)
		c.joinLocked(d.name, to.To)
	case l.up && l.number == number:
		other.put(item{frame: frame, from: d.name, number: number})
	}
	return true
}
