package correspondent

import (
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// A binding is given up when its care-of address has been reported unreachable
// so often, at least so long apart, within so long from one to the next: only
// persistent reports may end it (RFC 6275 section 9.3.4).
const (
	maxFailures  = 4
	failureGap   = time.Second
	failureReach = 60 * time.Second
)

// portUnreachable is the code of a Destination Unreachable that the destination
// itself sends.
const portUnreachable = 4

// icmpError handles an ICMPv6 error, the packet b of shape s (RFC 6275 section
// 9.3.4). If it is about a packet that was sent by way of a binding, the upper
// layers would not know what it is about: they get it with the packet as they
// have sent it.
//
// It must be about a packet of ours with the addresses of a binding that was
// used of late. One who can read the packets can still forge one: what that
// achieves is packets that go by way of the home agent, until the mobile
// node makes the binding again.
func (c *Correspondent) icmpError(b []byte, s *shape) {
	if s.total < s.upper+8 {
		c.deliver(b)
		return
	}
	quoted := b[s.upper+8 : s.total]
	q, ok := shapeOf(quoted)
	if !ok || [16]byte(quoted[8:24]) != [16]byte(b[24:40]) {
		c.deliver(b)
		return
	}
	home, ok := routedHome(quoted, &q)
	if !ok {
		c.deliver(b)
		return
	}

	p := &c.packet
	var err error
	if *p, err = wire.ParsePacket(b); err != nil {
		return
	}
	m, err := wire.ParseICMP(p)
	if err != nil {
		return
	}
	report, ok := m.(*wire.ICMPError)
	if !ok {
		return
	}
	id, e := c.cache.find(key{[16]byte(quoted[8:24]), home})
	if e == nil || !e.live(c.now) || e.careOf != [16]byte(quoted[24:40]) || c.now-c.lastUsed(e) > failureReach {
		return // about a binding that is no more, or forged
	}

	out := wire.ICMPError{Kind: report.Kind, Code: report.Code, Param: report.Param}
	failed := false
	switch report.Kind {
	case wire.Unreachable:
		failed = report.Code != portUnreachable
	case wire.PacketTooBig:
		// The upper layers' packets become longer by the routing header.
		out.Param = max(report.Param-min(report.Param, Overhead), wire.MinMTU)
	case wire.ParameterProblem:
		switch at := int(report.Param); {
		case at >= q.routing+Overhead:
			out.Param -= Overhead
		case at >= q.routing:
			// Whoever is at the care-of address does not know routing headers of
			// type 2: not the mobile node.
			failed = true
			out = wire.ICMPError{Kind: wire.Unreachable, Code: 3} // address unreachable
		}
	}
	if q.proto != wire.Mobility { // our own messages are no concern of the upper layers
		c.deliverError(p, &out, quoted, &q)
	}
	if failed {
		c.unreachable(id, e)
	}
}

// deliverError delivers an ICMPv6 error in the place of that in p.
func (c *Correspondent) deliverError(p *wire.Packet, m *wire.ICMPError, quoted []byte, q *shape) {
	c.mh = appendUnrouted(c.mh[:0], quoted, q)
	m.Quoted = c.mh
	translated := wire.Packet{
		TrafficClass: p.TrafficClass, FlowLabel: p.FlowLabel, HopLimit: p.HopLimit,
		Src: p.Src, Dst: p.Dst, Protocol: wire.ICMPv6, Payload: m.Append(nil, p.Src, p.Dst),
	}
	from := len(c.buf)
	out, err := translated.Append(c.buf)
	if err != nil {
		return
	}
	c.buf = out
	c.deliver(out[from:len(out):len(out)])
}

// unreachable counts a report that the mobile node cannot be reached, and gives
// the binding up if they persist. That packets still come from the mobile node
// does not count against it: they may come another way.
func (c *Correspondent) unreachable(id uint32, e *entry) {
	since := c.now - e.failed
	if e.failures > 0 && since < failureGap {
		return
	}
	if since > failureReach {
		e.failures = 0
	}
	e.failures++
	e.failed = c.now
	if e.failures >= maxFailures {
		c.remove(id, e)
	}
}
