package member

// spares are messages that a driver is done with, to be written again. There are two
// dozen in a handoff, and most of what a daemon would allocate for it.
type spares[M any] []*M

// maxSpares is how many are kept: those of some handoffs that are done together.
const maxSpares = 512

// copy returns a copy of msg, which so need not be allocated by whoever writes it.
func (s *spares[M]) copy(msg *M) *M {
	var c *M
	if n := len(*s) - 1; n >= 0 {
		c, *s = (*s)[n], (*s)[:n]
	} else {
		c = new(M)
	}
	*c = *msg
	return c
}

// put takes messages, and lets go what they refer to.
func (s *spares[M]) put(msg *M) {
	*msg = *new(M)
	if len(*s) < maxSpares {
		*s = append(*s, msg)
	}
}

// Recycle gives the messages of an output back, which is not to be looked at any more:
// the next outputs have them. Who keeps messages does not call it.
func (m *Member) Recycle(out Output) {
	for _, msg := range out.App {
		m.appSpares.put(msg)
	}
	for _, p := range out.Peers {
		m.peerSpares.put(p.Message)
	}
}
