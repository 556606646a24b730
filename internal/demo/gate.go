package demo

import "sync"

// gate keeps a client's two bodies and its handoffs in step: the i-th handoff is
// asked for when the download passes the i-th of equal steps, the download does
// not run away from the handoffs, nor the upload from the download. So all
// handoffs happen in the middle of both bodies, however fast these are.
//
// The download does not wait for the upload: a client that does not read sees no
// gaps.
type gate struct {
	sizes sizes
	steps int64 // one more than handoffs

	mu       sync.Mutex
	change   sync.Cond
	down, up int64 // octets so far
	asked    int   // handoffs
	done     int
	err      error // the first
}

// sizes are those of the bodies, in octets.
type sizes struct{ down, up int64 }

func newGate(s sizes, handoffs int) *gate {
	g := &gate{sizes: s, steps: int64(handoffs + 1)}
	g.change.L = &g.mu
	return g
}

// reached is the step that both bodies have reached. mu is held.
func (g *gate) reached() (down, up int) {
	return int(g.down * g.steps / g.sizes.down), int(g.up * g.steps / g.sizes.up)
}

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
	step, _ := g.reached()
	step = min(step, int(g.steps)-1)
	g.asked = max(g.asked, step)
	g.change.Broadcast()
	// One handoff may be under way while data flow, not two.
	return g.pass(func() bool { return g.done >= step-1 })
}

// uploading tells that octets of the upload are about to be sent. It waits while
// there are too many of them.
func (g *gate) uploading(n int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.up += int64(n)
	g.change.Broadcast()
	g.pass(func() bool { down, up := g.reached(); return up <= down+1 })
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
