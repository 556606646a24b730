package ds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

var errCut = errors.New("cut")

// Every message of a handoff is the last one of its session: it does not arrive
// any more. And every answer is an error. Whatever happens, the client ends up
// being served by exactly one node, the error says where it went wrong and who
// has the client, and the next handoff succeeds.
func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		node  string // whose session
		kind  api.Kind
		fault error // errCut, ErrLost, nil: the answer says no

		stage     ds.Stage // "": it succeeds
		committed bool     // as the error says
		owner     string   // in the end
		is        error
	}{
		{"a", api.Prepare, errCut, ds.StagePrepare, false, "a", ds.ErrDetached},
		{"a", api.Prepare, dstest.ErrLost, ds.StagePrepare, false, "a", ds.ErrDetached},
		{"a", api.Prepared, errCut, ds.StagePrepare, false, "a", ds.ErrDetached},
		{"a", api.Prepared, nil, ds.StagePrepare, false, "a", ds.ErrRefused},
		{"a", api.Transfer, errCut, ds.StageTransfer, false, "a", ds.ErrDetached},
		{"a", api.Transfer, dstest.ErrLost, ds.StageTransfer, true, "a", ds.ErrDetached},
		{"b", api.Expect, errCut, ds.StagePrepare, false, "a", ds.ErrRefused},
		{"b", api.Expected, errCut, ds.StagePrepare, false, "a", ds.ErrRefused},
		{"b", api.Expected, nil, ds.StagePrepare, false, "a", ds.ErrRefused},
		{"b", api.Offer, errCut, ds.StageTransfer, false, "a", ds.ErrRefused},
		{"b", api.Activate, errCut, ds.StageTransfer, false, "a", ds.ErrRefused},
		{"b", api.Activated, errCut, "", false, "b", nil},
		{"b", api.Activated, dstest.ErrLost, "", false, "b", nil},
		{"a", api.Done, errCut, ds.StageTransfer, true, "b", ds.ErrDetached},
	} {
		what := "no"
		if tt.fault != nil {
			what = tt.fault.Error()
		}
		t.Run(fmt.Sprintf("%s %s", tt.kind, strings.TrimPrefix(what, "dstest: ")), func(t *testing.T) {
			var fired atomic.Bool
			w := newWorld(t, func(c *dstest.Cluster) {
				c.Intercept = func(node string, m *api.Message) error {
					if node != tt.node || m.Kind != tt.kind || fired.Swap(true) {
						return nil
					}
					if tt.fault == nil {
						m.Error = "not today"
					}
					if tt.is == ds.ErrDetached { // so that no answer comes before the error is out
						c.SetDown(node, true)
					}
					return tt.fault
				}
			}, "a", "b")
			s := w.dial(client1)
			s.ping(t)
			_, err := w.nodes["a"].handoff(client1, "b")
			if !fired.Load() {
				t.Fatal("the message was never sent")
			}
			var he *ds.HandoffError
			switch {
			case tt.stage == "" && err != nil:
				t.Fatal(err)
			case tt.stage == "":
			case !errors.As(err, &he):
				t.Fatalf("got %v, want a HandoffError", err)
			case he.Stage != tt.stage || he.Committed != tt.committed || he.Client != client1 || he.To != "b" || !errors.Is(err, tt.is):
				t.Fatalf("got %q, committed %v: want stage %s, committed %v, %q", err, he.Committed, tt.stage, tt.committed, tt.is)
			}
			w.cluster.SetDown(tt.node, false)
			if he != nil {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				if moved, err := he.Outcome(ctx); moved != (tt.owner == "b") || err != nil {
					t.Errorf("it says in the end that the client has moved: %t, %v", moved, err)
				}
			}
			s.ping(t)
			w.awaitOwner(client1, tt.owner)
			other := "b"
			if tt.owner == "b" {
				other = "a"
			}
			w.awaitHandoff(client1, tt.owner, other)
			s.ping(t)
			s.Close()
			w.awaitOwner(client1, "")
			w.noFaults()
		})
	}
}

func (w *world) awaitOwner(client netip.Addr, name string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := w.cluster.AwaitOwner(ctx, client, name); err != nil {
		w.t.Fatal(err)
	}
}

// awaitBound waits until a client's packets go straight to a node, and those of its
// application to the client.
func (w *world) awaitBound(client netip.Addr, name string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := w.cluster.AwaitBound(ctx, client, name); err != nil {
		w.t.Fatal(err)
	}
	for !w.nodes[name].Stack().Bound(client) {
		if ctx.Err() != nil {
			w.t.Fatalf("the application of %s does not send to %s by its binding", name, client)
		}
		runtime.Gosched()
	}
}

// awaitHandoff hands a client off as soon as both nodes are attached again.
func (w *world) awaitHandoff(client netip.Addr, from, to string) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := w.nodes[from].handoff(client, to)
		switch {
		case err == nil:
			return
		case !errors.Is(err, ds.ErrDetached) && !errors.Is(err, ds.ErrRefused) && !errors.Is(err, ds.ErrUnknown), time.Now().After(end):
			w.t.Fatal(err)
		}
		runtime.Gosched()
	}
}

// What comes to the target and cannot be rebuilt there, of a release that it does not
// understand or damaged, ends with the client where it was, and with what is wrong.
func TestOfferFaults(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(m *api.Message)
		says   string
	}{
		{"later version", func(m *api.Message) { m.Snapshot[4], m.Snapshot[5] = 200, 200 }, "it is version 200 for readers from version 200 on, this is version 1; upgrade this node first"},
		{"no snapshot", func(m *api.Message) { m.Snapshot[0] ^= 1 }, "does not begin with"},
		{"cut off", func(m *api.Message) { m.Snapshot = m.Snapshot[:len(m.Snapshot)-1] }, "snapshot: parse: "},
		{"a state too many", func(m *api.Message) { m.State = append(m.State, nil) }, "the state of 2 connections, and a snapshot of 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var fired atomic.Bool
			w := newWorld(t, func(c *dstest.Cluster) {
				c.Intercept = func(_ string, m *api.Message) error {
					if m.Kind == api.Offer && !fired.Swap(true) {
						tt.change(m)
					}
					return nil
				}
			}, "a", "b")
			s := w.dial(client1)
			s.ping(t)
			_, err := w.nodes["a"].handoff(client1, "b")
			w.check(s, err, outcome{ds.StageTransfer, false, "a", ds.ErrRefused, tt.says}, func() *stream { return nil })
		})
	}
}

// What the application can do wrong ends with the client where it was.
func TestApplicationFaults(t *testing.T) {
	hang := make(chan struct{})
	for _, tt := range []struct {
		name  string
		state func(net.Conn) ([]byte, error)
		is    error
		says  string
	}{
		{"error", func(net.Conn) ([]byte, error) { return nil, errCut }, errCut, "cut"},
		{"panic", func(net.Conn) ([]byte, error) { panic("oh") }, ds.ErrState, "panic: oh"},
		{"too much", func(net.Conn) ([]byte, error) { return make([]byte, ds.MaxState+1), nil }, ds.ErrState, "MaxState"},
		{"hangs", func(net.Conn) ([]byte, error) { <-hang; return nil, nil }, ds.ErrState, "no answer after"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil, "a", "b")
			if tt.name == "hangs" {
				w.nodes["a"].Patience = 100 * time.Millisecond // the handoff below is the first to look at it
			}
			s := w.dial(client1)
			s.ping(t)
			_, err := w.nodes["a"].Handoff(context.Background(), client1, "b", tt.state)
			for tt.name == "hangs" && errors.Is(err, ds.ErrRestless) { // a busy machine
				_, err = w.nodes["a"].Handoff(context.Background(), client1, "b", tt.state)
			}
			var he *ds.HandoffError
			if !errors.As(err, &he) || he.Stage != ds.StageExport || he.Committed || !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %v, want stage export with %q", err, tt.says)
			}
			s.ping(t)
			for {
				_, err := w.nodes["a"].handoff(client1, "b")
				if err == nil {
					break
				}
				if !errors.Is(err, ds.ErrRestless) && !errors.Is(err, ds.ErrState) { // a busy machine
					t.Fatal(err)
				}
			}
			s.ping(t)
			s.Close()
			w.noFaults()
		})
	}
	close(hang)
}

// The last connection of a client ends while its handoff is being prepared: then
// the client moves without any, and its next one goes to the other node.
func TestEndsMeanwhile(t *testing.T) {
	var w *world
	var s *stream
	w = newWorld(t, func(c *dstest.Cluster) {
		c.Intercept = func(node string, m *api.Message) error {
			if m.Kind == api.Prepared {
				reset(s)
				for w.nodes["a"].serving() {
					runtime.Gosched()
				}
			}
			return nil
		}
	}, "a", "b")
	s = w.dial(client1)
	s.ping(t)
	r, err := w.nodes["a"].handoff(client1, "b")
	if err != nil {
		t.Fatal(err)
	}
	if r.Connections > 0 {
		t.Errorf("report: %s", r)
	}
	w.awaitOwner(client1, "") // it has none
	w.cluster.First("b")
	again := w.dial(client1)
	again.ping(t)
	w.awaitOwner(client1, "b")
	w.noFaults()
}
