package stack

import (
	"slices"
	"time"
)

const (
	SuperSegments   = superSegments
	OffloadSegments = offloadSegments
)

var MakeRoom = makeRoom

// SetSuperSegments lets connections made from now on build packets of n
// segments for the link to cut up, 0: none.
func (s *Stack) SetSuperSegments(n int) {
	s.link.superPacket = superPacketSize(s.MTU(), n)
}

// Kept takes what a hold has kept of what arrived, KeptOut copies what it has of
// what would leave.
func (h *Hold) Kept() [][]byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.in.take()
}

func (h *Hold) KeptOut() [][]byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.out.packets)
}

// SetAccepted has f called between netstack's Accept and the Conn, until the function
// that is returned is called.
func SetAccepted(f func()) func() {
	before := accepted
	accepted = f
	return func() { accepted = before }
}

// SetRepeatTime changes for how long what begins a connection goes where it went at first,
// until the function that is returned is called.
func SetRepeatTime(d time.Duration) (undo func()) {
	before := repeatTime
	repeatTime = d
	return func() { repeatTime = before }
}
