package demo

import "sync"

// gate keeps a client's two bodies and its handoffs in step: the i-th handoff is
// asked for when the download passes the i-th of equal steps, none of both bodies
// runs away from the other, and neither from the handoffs. So all handoffs happen
// in the middle of both bodies, however fast these are.
type gate struct {
	size  int64 // of each body
	steps int64 // one more than handoffs

	mu       sync.Mutex
	change   sync.Cond
	down, up int64 // octets so far
	asked    int   // handoffs
	done     int
	err      error // the first
}

func newGate(size int64, handoffs int) *gate {
	g := &gate{size: size, steps: int64(handoffs + 1)}
	g.change.L = &g.mu
	return g
}

// step is the step that octets have reached.
func (g *gate) step(octets int64) int { return int(octets * g.steps / g.size) }

// pass waits until ok, and tells whether it had to. mu is held.
func (g *gate) pass(ok func() bool) (waited bool) {
	for g.err == nil && !ok() {
		waited = true
		g.change.Wait()
	}
	return waited
}

// downloaded tells that octets of the download have arrived. It waits while
// there are too many of them.
func (g *gate) downloaded(n int) (waited bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.down += int64(n)
	step := min(g.step(g.down), int(g.steps)-1)
	g.asked = max(g.asked, step)
	g.change.Broadcast()
	// One handoff may be under way while data flow, not two.
	return g.pass(func() bool { return g.done >= step-1 && g.step(g.up) >= step-2 })
}

// uploading tells that octets of the upload are about to be sent. It waits while
// there are too many of them.
func (g *gate) uploading(n int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.up += int64(n)
	g.change.Broadcast()
	g.pass(func() bool { return g.step(g.up) <= g.step(g.down)+2 })
	return g.err
}

// next waits until the i-th handoff, from 1, is asked for. It is false if that
// will not come.
func (g *gate) next(i int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pass(func() bool { return g.asked >= i })
	return g.err == nil
}

// handed tells that the handoff is done.
func (g *gate) handed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done++
	g.change.Broadcast()
}

// fail lets nobody wait any more.
func (g *gate) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil && err != nil {
		g.err = err
		g.change.Broadcast()
	}
}

func (g *gate) progress() (octets int64, handoffs int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.down + g.up, g.done
}
