package ds

import "github.com/distributed-servers/ds/stack"

// Stack is where packets can be put in.
func (n *Node) Stack() *stack.Stack { return n.stack }

// Fill has as many clients wait to be accepted as may.
func (l *HandoffListener) Fill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ready) < maxArrivals {
		l.ready = append(l.ready, new(Incoming))
	}
}

// SetMaxTransfer changes the limit of a transfer until the function is called.
func SetMaxTransfer(octets int) (undo func()) {
	before := maxTransfer
	maxTransfer = octets
	return func() { maxTransfer = before }
}
