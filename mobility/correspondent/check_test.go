package correspondent

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0: another every time")

// random is a source of randomness whose seed is printed if the test fails.
func random(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with -seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// check checks what must always be true of the cache.
func (c *Correspondent) check(t testing.TB) {
	t.Helper()
	x := &c.cache
	n, bindings, slots := 0, 0, 0
	for e := range x.all() {
		n++
		if e.state == bound {
			bindings++
		}
		id, found := x.find(e.key)
		if found != e {
			t.Fatalf("an entry of the cache is not found: %+v", e)
		}
		if e.queued == never || e.queued > e.next(c.now) {
			t.Fatalf("entry %d would miss its deadline: %+v", id, e)
		}
	}
	for _, s := range x.index.slots {
		if s.hash != 0 {
			slots++
		}
	}
	if n != x.index.count || n != slots || n != x.deadlines.Len() || bindings != x.bound || n > x.limit || int(x.taken) != n+len(x.unused) {
		t.Fatalf("%d entries, %d of them bindings; counted %d in %d slots, %d bindings, %d deadlines; limit %d, %d taken, %d unused",
			n, bindings, x.index.count, slots, x.bound, x.deadlines.Len(), x.limit, x.taken, len(x.unused))
	}
}
