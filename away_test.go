package ds_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

// begun begins a handoff from a to b, and returns when the daemon of b has sent, or is
// about to take, a message of a kind. It goes on when goOn is called. Then the
// application of a ends, perhaps with its daemon, and another takes its place. An offer
// may come to b as nonsense, which it refuses.
func begun(t *testing.T, kind api.Kind, daemon, nonsense bool) (w *world, s *stream, goOn func()) {
	reached, going := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w = newWorld(t, func(c *dstest.Cluster) {
		c.Intercept = func(node string, m *api.Message) error {
			if node == "b" && m.Kind == kind {
				once.Do(func() {
					close(reached)
					<-going
					if nonsense {
						m.Snapshot = []byte("nonsense")
					}
				})
			}
			return nil
		}
	}, "a", "b")
	goOn = sync.OnceFunc(func() { close(going) })
	t.Cleanup(goOn) // before the world ends
	s = w.dial(client1)
	s.ping(t)
	before := w.nodes["a"]
	ended := make(chan struct{})
	go func() { before.handoff(client1, "b"); close(ended) }()
	<-reached
	w.cluster.End("a", daemon)
	w.start("a")
	before.stop()
	<-ended
	return w, s, goOn
}

// An application is started anew after one that had given a client away. What the client
// sends here goes to the target, whose application has gone live, and has not said so
// yet. If the daemon has ended, too, the one that is started anew
// knows all the same.
func TestAway(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		name := "application"
		if daemon {
			name += " and daemon"
		}
		t.Run(name, func(t *testing.T) {
			w, s, goOn := begun(t, api.Activated, daemon, false)
			w.nodes["a"].Stack().Inject(segment(s.Conn))
			goOn()
			s.ping(t)
			w.awaitOwner(client1, "b")
			w.nodes["a"].Stack().Inject(segment(s.Conn)) // it may still, when it is over
			s.ping(t)
			w.awaitHandoff(client1, "b", "a") // and it may come back
			s.ping(t)
			w.noFaults()
		})
	}
}

// The target refuses: nobody has the client any more, which hears that.
func TestAwayInVain(t *testing.T) {
	w, s, goOn := begun(t, api.Offer, false, true)
	if _, err := s.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	goOn()
	s.SetDeadline(time.Now().Add(20 * time.Second))
	var timeout net.Error
	if _, err := io.ReadFull(s, make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection that has ended with an application: %v", err)
	}
	again := w.dial(client1)
	again.ping(t)
	w.noFaults()
}

// A client's connections have ended with its application, which was giving it away, over
// which the connection between the daemons was lost. It connects anew, which the application
// that comes next sends on to the target, as all that the client sends. So the target has it,
// and keeps it when its daemon tells that of what was given away nobody has anything.
func TestAwayAndAnew(t *testing.T) {
	for _, optimise := range []bool{false, true} {
		t.Run(fmt.Sprintf("optimised %t", optimise), func(t *testing.T) {
			lost := make(chan struct{})
			var once sync.Once
			w := newWorld(t, func(c *dstest.Cluster) {
				c.Optimise = optimise
				c.Between = func(from, _, kind string) error {
					if from == "b" && kind == "transfer" {
						once.Do(func() { c.SetApart("b", "c", true); close(lost) })
					}
					return nil
				}
			}, "a", "b", "c")
			s := w.dial(client1)
			s.ping(t)
			if _, err := w.nodes["a"].handoff(client1, "b"); err != nil {
				t.Fatal(err)
			}
			before := w.nodes["b"]
			ended := make(chan struct{})
			go func() { before.handoff(client1, "c"); close(ended) }()
			<-lost
			w.cluster.End("b", false)
			w.start("b")
			before.stop()
			<-ended
			again := w.dial(client1)
			again.ping(t)
			w.awaitOwner(client1, "c")
			if optimise {
				w.awaitBound(client1, "c")
			}
			for owner := ""; owner != "c"; runtime.Gosched() { // as far as the contact knows
				clients, err := w.nodes["a"].Clients(t.Context())
				if err != nil || len(clients) > 1 {
					t.Fatal(clients, err)
				}
				if len(clients) == 1 { // b has told that it is gone there, perhaps before c that it has it
					owner = clients[0].Owner
				}
			}
			w.cluster.SetApart("b", "c", false)
			for w.cluster.Settled() != nil {
				runtime.Gosched()
			}
			again.ping(t)
			w.awaitOwner(client1, "c")
			again.ping(t)
			w.noFaults()
		})
	}
}
