package ds_test

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

// Several clients are handed around at the same time while one message in
// thirty is the last of its session, before or after it has arrived. Nobody loses
// or doubles an octet, nobody is reset, and no two nodes send to a client.
func TestChaos(t *testing.T) {
	for _, optimise := range []bool{false, true} {
		var cuts atomic.Int64
		var calm atomic.Bool
		w := newWorld(t, func(c *dstest.Cluster) {
			c.Optimise = optimise
			c.Intercept = func(node string, m *api.Message) error {
				if m.Kind == api.Hello || calm.Load() || rand.IntN(30) > 0 {
					return nil
				}
				cuts.Add(1)
				if rand.IntN(2) == 0 {
					return dstest.ErrLost
				}
				return errCut
			}
		}, "a", "b", "c")
		names := []string{"a", "b", "c"}
		var done, failed, unknown atomic.Int64
		var wg sync.WaitGroup
		var streams []*stream
		for i := range 4 {
			client := clientAddr(i + 1)
			s := w.dial(client)
			streams = append(streams, s.run())
			wg.Go(func() {
				for mine, end, last := 0, time.Now().Add(time.Minute), error(nil); mine < handoffs/4; {
					if time.Now().After(end) {
						t.Errorf("%s: %d handoffs in a minute; the last: %v", client, mine, last)
						return
					}
					from := w.cluster.Owner(client)
					if from == "" { // not told yet, or not for a moment
						from = names[rand.IntN(3)]
					}
					_, err := w.nodes[from].handoff(client, names[rand.IntN(3)])
					last = err
					var he *ds.HandoffError
					switch {
					case err == nil:
						mine++
						done.Add(1)
					case !errors.As(err, &he):
						t.Error(err)
					case he.Committed:
						unknown.Add(1)
					default:
						failed.Add(1)
						runtime.Gosched() // somebody has to attach again
					}
				}
			})
		}
		wg.Wait()
		calm.Store(true)
		begin := time.Now()
		for _, s := range streams {
			s.finish(t)
		}
		t.Logf("%d handoffs, %d failed, %d of unknown outcome, %d cuts; %v until everything was back", done.Load(), failed.Load(), unknown.Load(), cuts.Load(), time.Since(begin))
		w.noFaults()
	}
}
