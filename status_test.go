package ds_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
)

// awaitStatus waits until a node's status is as wanted.
func (w *world) awaitStatus(name string, as func(*ds.Status) bool) *ds.Status {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		s, err := w.nodes[name].Status(ctx)
		if err == nil && as(s) {
			return s
		}
		if ctx.Err() != nil {
			w.t.Fatalf("the status of %s: %+v, %v", name, s, err)
		}
		runtime.Gosched()
	}
}

// A program knows of its node, of the others, and who has which client.
func TestStatus(t *testing.T) {
	w := newWorld(t, nil, "a", "b")
	ctx := context.Background()
	s := w.dial(client1)
	s.ping(t)
	w.awaitOwner(client1, "a")
	st := w.awaitStatus("a", func(s *ds.Status) bool { return len(s.Nodes) == 2 && s.Nodes[1].AcceptsHandoffs })
	if st.Node != "a" || st.Contact != "a" || !st.Attached || st.Clients != 1 || !st.Server.IsValid() {
		t.Errorf("status: %+v", st)
	}
	a, b := st.Nodes[0], st.Nodes[1]
	if a.Node != "a" || !a.Local || !a.Contact || !a.Attached || a.Clients != 1 || b.Node != "b" || b.Local || b.Contact || !b.Connected || !b.Attached {
		t.Errorf("nodes: %+v", st.Nodes)
	}
	owner := func(at string) string {
		t.Helper()
		clients, err := w.nodes[at].Clients(ctx)
		if err != nil || len(clients) != 1 || clients[0].Client != client1 || clients[0].Local != (clients[0].Owner == at) {
			t.Fatalf("clients that %s knows: %+v, %v", at, clients, err)
		}
		return clients[0].Owner
	}
	if o := owner("a"); o != "a" {
		t.Errorf("a knows that %s has it", o)
	}
	if _, err := w.nodes["a"].handoff(client1, "b"); err != nil {
		t.Fatal(err)
	}
	if o := owner("b"); o != "b" {
		t.Errorf("b knows that %s has it", o)
	}
	for owner("a") != "b" { // once it has been told
		runtime.Gosched()
	}
	w.awaitStatus("a", func(s *ds.Status) bool { return s.Clients == 0 })

	w.cluster.SetDown("a", true)
	if st := w.awaitStatus("a", func(s *ds.Status) bool { return !s.Attached }); st.Nodes != nil || st.Node != "a" {
		t.Errorf("without a daemon: %+v", st)
	}
	if _, err := w.nodes["a"].Clients(ctx); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("clients without a daemon: %v", err)
	}
	w.cluster.SetDown("a", false)
	w.awaitStatus("a", func(s *ds.Status) bool { return s.Attached && len(s.Nodes) == 2 })
	s.ping(t)
	w.nodes["a"].Close()
	if _, err := w.nodes["a"].Status(ctx); !errors.Is(err, ds.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	w.noFaults()
}

// A program is told what happens, also when its daemon was away meanwhile.
func TestWatch(t *testing.T) {
	w := newWorld(t, nil, "a", "b")
	events, ended := make(chan api.Event, 1000), make(chan error, 1)
	go func() {
		for e, err := range w.nodes["a"].Watch(context.Background()) {
			if err != nil {
				ended <- err
				return
			}
			events <- e
		}
	}()
	await := func(kinds ...api.EventKind) (e api.Event) {
		t.Helper()
		late := time.After(20 * time.Second)
		for _, kind := range kinds {
			for e.Kind != kind {
				select {
				case e = <-events:
				case <-late:
					t.Fatalf("no event of kind %q", kind)
				}
			}
		}
		return e
	}
	s := w.dial(client1)
	s.ping(t)
	for len(events) == 0 { // whoever watches begins with what happens next
		w.awaitHandoff(client1, "a", "b")
		w.awaitHandoff(client1, "b", "a")
	}
	w.awaitHandoff(client1, "a", "b")
	if e := await(api.EventHandedOff); e.Client != client1 || e.Node != "b" {
		t.Errorf("%+v", e)
	}
	w.cluster.Restart("a")
	w.awaitHandoff(client1, "b", "a")
	await(api.EventMissed, api.EventStarted, api.EventAttached, api.EventTakenOver)
	w.nodes["a"].Close()
	if err := <-ended; !errors.Is(err, ds.ErrClosed) {
		t.Errorf("it ends with %v", err)
	}
}
