package stack

// SetSuperSegments lets connections made from now on build packets of n
// segments for the link to cut up, 0: none.
func (s *Stack) SetSuperSegments(n int) {
	s.link.superPacket = superPacketSize(s.MTU(), n)
}

// Coalescer is for benchmarks.
type Coalescer struct{ c coalescer }

func (c *Coalescer) Merge(batch [][]byte) [][]byte { return c.c.merge(batch) }
