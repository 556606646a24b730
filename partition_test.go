package ds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

// outcome is how a handoff from a to b is to end.
type outcome struct {
	stage     ds.Stage // "": well
	committed bool     // as the error says
	owner     string   // in the end
	is        error
	says      string
}

// check checks the error of a handoff, that the client is served by one node once
// what was wrong is mended, by its stream or another one, and that it can be handed off
// again.
func (w *world) check(s *stream, err error, want outcome, mend func() *stream) {
	w.t.Helper()
	var he *ds.HandoffError
	switch {
	case want.stage == "" && err != nil:
		w.t.Fatal(err)
	case want.stage == "":
	case !errors.As(err, &he):
		w.t.Fatalf("got %v, want a HandoffError", err)
	case he.Stage != want.stage || he.Committed != want.committed || he.Client != client1 || he.To != "b" || want.is != nil && !errors.Is(err, want.is) || !strings.Contains(err.Error(), want.says):
		w.t.Fatalf("got %q, committed %v: want stage %s, committed %v, %q, %q", err, he.Committed, want.stage, want.committed, want.is, want.says)
	}
	if other := mend(); other != nil {
		s = other
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if he != nil {
		if moved, err := he.Outcome(ctx); moved != (want.owner == "b") || err != nil {
			w.t.Errorf("it says in the end that the client has moved: %t, %v", moved, err)
		}
	}
	s.ping(w.t)
	w.awaitOwner(client1, want.owner)
	other := map[string]string{"a": "b", "b": "a"}[want.owner]
	w.awaitHandoff(client1, want.owner, other)
	s.ping(w.t)
	s.Close()
	w.awaitOwner(client1, "")
	for w.cluster.Settled() != nil && ctx.Err() == nil {
		runtime.Gosched()
	}
	if err := w.cluster.Settled(); err != nil {
		w.t.Error(err)
	}
	w.noFaults()
}

// Every message between the daemons is the last one before their connection breaks,
// or before the daemon that was to send it ends; or they do not find each other for
// a while from then on.
func TestPartition(t *testing.T) {
	const breaks, ends, apart = "the connection breaks", "its daemon ends", "they are apart"
	lost := outcome{ds.StagePrepare, false, "a", ds.ErrRefused, "the connection to node b is lost"}
	never := outcome{ds.StageTransfer, false, "a", ds.ErrRefused, "the handoff had ended here before"}
	for _, tt := range []struct {
		from, kind, fault string
		want              outcome
	}{
		{"a", "prepare", breaks, lost},
		{"a", "prepare", ends, outcome{ds.StagePrepare, false, "a", ds.ErrDetached, ""}},
		{"a", "prepare", apart, lost},
		{"b", "prepared", breaks, lost},
		{"b", "prepared", ends, lost},
		{"b", "prepared", apart, lost},
		{"a", "transfer", breaks, never},
		{"a", "transfer", ends, outcome{ds.StageTransfer, true, "a", ds.ErrDetached, ""}},
		{"a", "transfer", apart, outcome{ds.StageTransfer, true, "a", context.Canceled, ""}},
		{"b", "done", breaks, outcome{owner: "b"}},
		{"b", "done", ends, outcome{owner: "b"}},
		{"b", "done", apart, outcome{ds.StageTransfer, true, "b", context.Canceled, ""}},
		{"a", "settled", breaks, outcome{owner: "b"}},
		{"a", "settled", ends, outcome{owner: "b"}},
		{"a", "settled", apart, outcome{owner: "b"}},
	} {
		t.Run(tt.kind+": "+tt.fault, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			var fired atomic.Bool
			happened := make(chan struct{})
			w := newWorld(t, func(c *dstest.Cluster) {
				c.Between = func(from, _, kind string) error {
					if from != tt.from || kind != tt.kind || fired.Swap(true) {
						return nil
					}
					defer close(happened)
					switch {
					case tt.fault == ends && tt.want.committed: // or the answer might be there before the error is
						c.SetDown(from, true)
						return errCut
					case tt.fault == ends:
						return errCut
					case tt.fault == apart:
						c.SetApart("a", "b", true)
						if tt.want.committed {
							cancel() // nobody will answer
						}
					}
					return dstest.ErrLost
				}
			}, "a", "b")
			s := w.dial(client1)
			s.ping(t)
			_, err := w.nodes["a"].Handoff(ctx, client1, "b", w.nodes["a"].state)
			<-happened // the last word goes out after the answer
			w.check(s, err, tt.want, func() *stream {
				w.cluster.SetApart("a", "b", false)
				w.cluster.SetDown(tt.from, false)
				return nil
			})
		})
	}
}

// A node that cannot be reached, or whose daemon or application has ended, is named before
// anything has happened.
func TestUnreachable(t *testing.T) {
	connected := func(n api.NodeInfo) bool { return n.Connected }
	for _, tt := range []struct {
		what       string
		begin, end func(w *world)
		until      func(api.NodeInfo) bool // is not so of node b
		says       string
	}{
		{"apart", func(w *world) { w.cluster.SetApart("a", "b", true) }, func(w *world) { w.cluster.SetApart("a", "b", false) },
			connected, "node b is not connected"},
		{"daemon", func(w *world) { w.cluster.SetDown("b", true) }, func(w *world) { w.cluster.SetDown("b", false) },
			connected, "node b is not connected"},
		{"application", func(w *world) { w.nodes["b"].stop() }, func(w *world) { w.start("b") },
			func(n api.NodeInfo) bool { return n.Attached }, "node b refuses: no application is attached"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			w := newWorld(t, nil, "a", "b")
			s := w.dial(client1)
			s.ping(t)
			w.awaitOwner(client1, "a")
			tt.begin(w)
			w.awaitStatus("a", func(s *ds.Status) bool { return len(s.Nodes) == 2 && !tt.until(s.Nodes[1]) })
			_, err := w.nodes["a"].handoff(client1, "b")
			w.check(s, err, outcome{ds.StagePrepare, false, "a", ds.ErrRefused, tt.says}, func() *stream {
				tt.end(w)
				return nil
			})
		})
	}
}

// The target's application ends, at each message of it: before it has the client
// the client stays, afterwards the client's connections are lost with it, and the
// next one is served by who takes its place.
func TestTargetEnds(t *testing.T) {
	for _, tt := range []struct {
		kind api.Kind
		want outcome
	}{
		{api.Expect, outcome{ds.StagePrepare, false, "a", ds.ErrRefused, "its application has gone"}},
		{api.Expected, outcome{ds.StagePrepare, false, "a", ds.ErrRefused, "its application has gone"}},
		{api.Offer, outcome{ds.StageTransfer, false, "a", ds.ErrRefused, "its application has gone"}},
		{api.Activate, outcome{ds.StageTransfer, false, "a", ds.ErrRefused, "its application has gone"}},
		{api.Activated, outcome{owner: "b"}},
	} {
		t.Run(tt.kind.String(), func(t *testing.T) {
			w, gone := replaced(t, "b", tt.kind)
			s := w.dial(client1)
			s.ping(t)
			_, err := w.nodes["a"].handoff(client1, "b")
			before := <-gone
			defer before.stop()
			w.check(s, err, tt.want, func() *stream {
				if tt.want.owner == "a" {
					return nil
				}
				s.Close()
				return w.dial(client1)
			})
		})
	}
}

// replaced is a world in which another application takes the place of a node's at the
// first message of a kind; the one before comes by the channel.
func replaced(t *testing.T, name string, kind api.Kind) (w *world, gone chan *node) {
	var fired atomic.Bool
	gone = make(chan *node, 1)
	w = newWorld(t, func(c *dstest.Cluster) {
		c.Intercept = func(node string, m *api.Message) error {
			if node == name && m.Kind == kind && !fired.Swap(true) {
				before := w.nodes[name]
				w.start(name)
				gone <- before
			}
			return nil
		}
	}, "a", "b")
	return w, gone
}

// The donor's application ends: what it has not given away is lost with it, and who
// takes its place serves the client's next connection; what it has given away goes on.
func TestDonorEnds(t *testing.T) {
	for _, tt := range []struct {
		kind  api.Kind
		owner string
	}{
		{api.Prepare, "a"}, {api.Prepared, "a"}, {api.Transfer, "a"}, {api.Done, "b"},
	} {
		t.Run(tt.kind.String(), func(t *testing.T) {
			w, gone := replaced(t, "a", tt.kind)
			s := w.dial(client1)
			s.ping(t)
			if _, err := w.nodes["a"].handoff(client1, "b"); !errors.Is(err, ds.ErrDetached) { // for what is left of it
				t.Errorf("got %v", err)
			}
			before := <-gone
			defer before.stop()
			w.check(s, nil, outcome{owner: tt.owner}, func() *stream {
				if tt.owner == "b" {
					return nil
				}
				s.Close()
				return w.dial(client1)
			})
		})
	}
}

// A client with more connections and state than a message has room for stays, and can
// be handed off once it has less.
func TestTransferTooLarge(t *testing.T) {
	w := newWorld(t, nil, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	w.awaitOwner(client1, "a")
	undo := ds.SetMaxTransfer(100)
	t.Cleanup(undo)
	_, err := w.nodes["a"].handoff(client1, "b")
	w.check(s, err, outcome{ds.StageTransfer, false, "a", nil, "more than the 100 that can be sent at once"}, func() *stream {
		undo()
		return nil
	})
}

// No more is on its way to the daemon than it is sure to take: clients that are handed off
// at the same time go one after the other where two do not fit, and all arrive.
func TestTransfersWait(t *testing.T) {
	const most, state = 6000, 4000 // and the connection, whose last answer may not be acknowledged yet
	t.Cleanup(ds.SetMaxTransfer(most))
	var underWay, transfers atomic.Int32
	w := newWorld(t, func(c *dstest.Cluster) {
		c.Intercept = func(node string, m *api.Message) error {
			switch {
			case node == "a" && m.Kind == api.Transfer:
				transfers.Add(1)
				if n := underWay.Add(1); n > 1 {
					t.Errorf("%d transfers are under way", n)
				}
			case node == "a" && m.Kind == api.Done:
				underWay.Add(-1)
			}
			return nil
		}
	}, "a", "b")
	w.nodes["a"].padding, w.nodes["b"].padding = state, state
	const clients = 8
	var streams []*stream
	for i := range clients {
		s := w.dial(netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i+1)))
		s.ping(t)
		streams = append(streams, s)
	}
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			client := netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i+1))
			r, err := w.nodes["a"].handoff(client, "b")
			if err != nil || r.Snapshot+r.State <= most/2 {
				t.Errorf("%v, %v: it is to be more than half of what may be on its way", r, err)
			}
		})
	}
	wg.Wait()
	if transfers.Load() != clients {
		t.Errorf("%d transfers", transfers.Load())
	}
	for _, s := range streams {
		s.ping(t)
	}
	w.noFaults()
}

// A target that has enough clients waiting to be accepted takes no more until some
// are.
func TestFullTarget(t *testing.T) {
	c := dstest.New("a", "b")
	defer c.Close()
	a, b := c.Node("a"), c.Node("b")
	defer a.Close()
	defer b.Close()
	arrivals, err := b.ListenHandoff()
	if err != nil {
		t.Fatal(err)
	}
	l, err := a.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, c)
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	arrivals.Fill()
	_, err = a.Handoff(t.Context(), client1, "b", nil)
	var he *ds.HandoffError
	if !errors.As(err, &he) || he.Stage != ds.StagePrepare || he.Committed || !errors.Is(err, ds.ErrRefused) || !strings.Contains(err.Error(), "slow to accept") {
		t.Fatalf("got %v", err)
	}
	echo := func(at net.Conn) {
		t.Helper()
		fmt.Fprint(conn, "x")
		if _, err := at.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	echo(served)
	if _, err := arrivals.Accept(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Handoff(t.Context(), client1, "b", nil); err != nil {
		t.Fatal(err)
	}
	for {
		in, err := arrivals.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if in.Client == client1 {
			echo(in.Conns[0])
			break
		}
	}
	if f := c.Faults(); len(f) > 0 {
		t.Error(f)
	}
}
