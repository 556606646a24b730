package ds_test

import (
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/dstest"
)

// Streams both ways go on, to the octet, while their client is handed back and
// forth; the application's state travels along.
func TestStreams(t *testing.T) {
	for _, mode := range []string{"relayed", "optimised"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, func(c *dstest.Cluster) { c.Optimise = mode == "optimised" }, "a", "b", "c")
			var streams []*stream
			for range 3 {
				streams = append(streams, w.dial(client1).run())
			}
			handoffs := 200
			if testing.Short() {
				handoffs = 50
			}
			sums := map[ds.Stage]time.Duration{}
			at := "a"
			for i := range handoffs {
				to := []string{"b", "c", "a"}[i%3]
				r, err := w.nodes[at].handoff(client1, to)
				if err != nil {
					t.Fatal(err)
				}
				if r.From != at || r.To != to || r.Connections != len(streams) || r.Mode() != mode || r.State != 8*len(streams) {
					t.Fatalf("report: %s", r)
				}
				if i == handoffs-1 {
					t.Log(r)
				}
				for _, st := range r.Stages {
					sums[st.Stage] += st.Duration
				}
				at = to
			}
			for _, s := range streams {
				s.finish(t)
			}
			t.Log(sums)
			w.noFaults()
		})
	}
}
