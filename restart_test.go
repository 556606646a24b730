package ds_test

import "testing"

// The daemon of a node comes back, and that of the contact is started anew before the
// node's application is attached again: its clients are not taken for new ones.
func TestRestartOfTwo(t *testing.T) {
	w := newWorld(t, nil, "b", "a")
	s := w.dial(client1)
	s.ping(t)
	w.cluster.First("a")
	s.ping(t)
	w.cluster.SetDown("b", true)
	w.cluster.SetDown("b", false)
	w.cluster.Restart("a")
	s.ping(t)
	w.noFaults()
}
