package ds_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/distributed-servers/ds/dstest"
)

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

// A client has a binding and no connection when the daemon is started anew, which does not
// know of the binding and does not renew it. So what is sent to the client, when it connects
// anew, does not go by it: without a binding it would drop that.
func TestRestartOverIdleClient(t *testing.T) {
	w := newWorld(t, func(c *dstest.Cluster) { c.Optimise = true }, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	w.awaitOwner(client1, "a")
	w.awaitBound(client1, "a")
	reset(s)
	w.awaitOwner(client1, "")
	app := w.nodes["a"].Stack()
	if !app.Bound(client1) {
		t.Fatal("it has no binding any more")
	}
	w.cluster.Restart("a")
	for end := time.Now().Add(20 * time.Second); app.Bound(client1); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the application still sends by the binding")
		}
	}
	again := w.dial(client1)
	again.ping(t)
	w.noFaults()
}
