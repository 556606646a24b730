package gvtcp

import (
	"container/list"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Takeable is what a listener has of the connections somebody moves.
type Takeable struct {
	// Ready are established and wait to be accepted.
	Ready []*tcp.Endpoint
	// Packets are segments the listener has not looked at, as whole packets.
	// Some may belong to connections that exist: a listener that uses SYN
	// cookies gets the first data too.
	Packets [][]byte
	// Handshakes is how many are in progress.
	Handshakes int
}

// Take takes from a listener what belongs to the connections that match. If
// there are handshakes among them it takes nothing.
func Take(listener *tcp.Endpoint, match func(stack.TransportEndpointID) bool) Takeable {
	listener.LockUser()
	defer listener.UnlockUser()
	var t Takeable
	if listener.EndpointState() != tcp.StateListen {
		return t
	}
	e := endpointOf(listener)
	e.acceptMu.Lock()
	defer e.acceptMu.Unlock()
	for p := range e.acceptQueue.pendingEndpoints {
		if match(endpointOf(p).TransportEndpointInfo.ID) {
			t.Handshakes++
		}
	}
	if t.Handshakes > 0 {
		return t
	}
	var next *list.Element
	for n := e.acceptQueue.endpoints.Front(); n != nil; n = next {
		next = n.Next()
		if p := n.Value.(*tcp.Endpoint); match(endpointOf(p).TransportEndpointInfo.ID) {
			e.acceptQueue.endpoints.Remove(n)
			t.Ready = append(t.Ready, p)
		}
	}
	e.segmentQueue.mu.mu.Lock()
	defer e.segmentQueue.mu.mu.Unlock()
	var keep segmentList
	for g := e.segmentQueue.list.head; g != nil; {
		after := g.segmentEntry.next
		g.segmentEntry = segmentEntry{}
		if match(g.id) {
			t.Packets = append(t.Packets, rawPacket(g))
			segmentDecRef(g)
		} else {
			keep.pushBack(g)
		}
		g = after
	}
	e.segmentQueue.list = keep
	return t
}

func (l *segmentList) pushBack(g *segment) {
	g.segmentEntry = segmentEntry{prev: l.tail}
	if l.tail == nil {
		l.head = g
	} else {
		l.tail.segmentEntry.next = g
	}
	l.tail = g
}

// Queue is where an endpoint that netstack made reports its events.
func Queue(e *tcp.Endpoint) *waiter.Queue { return endpointOf(e).waiterQueue }

// Drain makes netstack say when an endpoint's send buffer has run empty.
type Drain struct {
	ep    *endpoint
	size  int64
	fixed uint32
}

// BeginDrain shrinks the send buffer to next to nothing. Netstack reports that
// a buffer can be written to when less than half of it is used, so of this one
// exactly when all has been acknowledged: a waiter.WritableEvents.
func BeginDrain(original *tcp.Endpoint) *Drain {
	e := endpointOf(original)
	original.LockUser()
	defer original.UnlockUser()
	auto := &e.sndQueueInfo.TCPSndBufState.AutoTuneSndBufDisabled
	d := &Drain{ep: e, size: e.ops.GetSendBufferSize(), fixed: auto.Swap(1)}
	e.ops.SetSendBufferSize(2, false)
	return d
}

// Empty tells whether nothing is left to send or to be acknowledged.
func (d *Drain) Empty() bool {
	q := &d.ep.sndQueueInfo
	q.sndQueueMu.mu.Lock()
	defer q.sndQueueMu.mu.Unlock()
	return q.TCPSndBufState.SndBufUsed == 0
}

// End gives the send buffer its size back.
func (d *Drain) End() {
	original := d.ep.original()
	original.LockUser()
	defer original.UnlockUser()
	d.ep.ops.SetSendBufferSize(d.size, false)
	d.ep.sndQueueInfo.TCPSndBufState.AutoTuneSndBufDisabled.Store(d.fixed)
}
