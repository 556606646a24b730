package ds

import (
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/stack"
)

// Stack is where packets can be put in.
func (n *Node) Stack() *stack.Stack { return n.stack }

// Contact is the contact as far as the node knows.
func (n *Node) Contact() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.config.Contact
}

// Decisions are those of the session.
func (n *Node) Decisions() *api.Decisions {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.decisions
}

// Fill has as many clients wait to be accepted as may.
func (l *HandoffListener) Fill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ready) < maxArrivals {
		l.ready = append(l.ready, new(Incoming))
	}
}

// SetNewTime changes when a contact answers new connections of clients that have left,
// until the function is called.
func SetNewTime(d time.Duration) (undo func()) {
	before := newTime
	newTime = d
	return func() { newTime = before }
}

// SetStrandTimeLeft changes for how long an arrival is kept when the daemon is back,
// until the function is called.
func SetStrandTimeLeft(d time.Duration) (undo func()) {
	before := strandTimeLeft
	strandTimeLeft = d
	return func() { strandTimeLeft = before }
}

// SetMaxTransfer changes the limit of a transfer until the function is called.
func SetMaxTransfer(octets int) (undo func()) {
	before := maxTransfer
	maxTransfer = octets
	return func() { maxTransfer = before }
}
