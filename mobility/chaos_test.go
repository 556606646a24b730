package mobility_test

import (
	"flag"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/distributed-servers/ds/internal/cluster"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/internal/ladder"
)

var (
	runs  = flag.Int("runs", 0, "how many seeds TestChaos tries; 0: 10000, or 300 with the race detector or -short")
	first = flag.Uint64("seed", 1, "the first of them")
)

// A whole distributed server, its clients and its home agent, on a bad network:
// every octet arrives once, each client has one owner, and bindings converge.
// cluster.Chaos says what goes wrong. A failing seed is replayed, with every
// packet, by
//
//	go test ./mobility -run Chaos -v -args -seed N -runs 1
func TestChaos(t *testing.T) {
	n := *runs
	if n == 0 {
		n = 10000
		if raceDetector || testing.Short() {
			n = 300
		}
	}
	var tap func(lab.Event)
	if n == 1 && testing.Verbose() {
		tap = func(e lab.Event) { fmt.Println(e, ladder.Describe(e.Packet)) }
	}
	var next, failures atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= int64(n) || failures.Load() >= 10 {
					return
				}
				seed := *first + uint64(i)
				if _, err := cluster.Chaos(seed, tap); err != nil {
					failures.Add(1)
					t.Errorf("seed %d (go test ./mobility -run Chaos -v -args -seed %d -runs 1): %v", seed, seed, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d runs from seed %d on", min(next.Load(), int64(n)), *first)
}

// The same seed is the same run, to the last packet.
func TestDeterministic(t *testing.T) {
	for seed := *first; seed < *first+10; seed++ {
		a, _ := cluster.Chaos(seed, nil)
		b, _ := cluster.Chaos(seed, nil)
		if a != b {
			t.Errorf("seed %d: %016x, then %016x", seed, a, b)
		}
	}
}
