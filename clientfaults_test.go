package ds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

// Whatever a client does in the middle of its handoff, at each message: it ends up
// being served by exactly one node, and can be handed off again.
func TestClientFaults(t *testing.T) {
	for _, what := range []string{"vanishes", "resets", "floods"} {
		for _, at := range []struct {
			node  string
			kind  api.Kind
			flood bool // this takes a second
		}{
			{"a", api.Prepare, false}, {"b", api.Expect, false}, {"b", api.Expected, false}, {"a", api.Prepared, true}, {"a", api.Transfer, true},
			{"b", api.Offer, true}, {"b", api.Activate, false}, {"b", api.Activated, false}, {"a", api.Done, true},
		} {
			if what == "floods" && !at.flood {
				continue
			}
			t.Run(fmt.Sprintf("%s at %s", what, at.kind), func(t *testing.T) { testClientFault(t, what, at.node, at.kind) })
		}
	}
}

func testClientFault(t *testing.T, what, node string, kind api.Kind) {
	var w *world
	var s *stream
	var fired atomic.Bool
	const many = 4
	flood := make(chan *stream, many)
	w = newWorld(t, func(c *dstest.Cluster) {
		c.Intercept = func(at string, m *api.Message) error {
			if at != node || m.Kind != kind || fired.Swap(true) {
				return nil
			}
			switch what {
			case "vanishes":
				w.cluster.Client(client1).SetDown(true)
			case "resets":
				reset(s)
			case "floods":
				s.run()
				for range many {
					go w.flood(flood)
				}
			}
			return nil
		}
	}, "a", "b")
	s = w.dial(client1)
	s.ping(t)
	first := s.LocalAddr().(*net.TCPAddr).Port
	_, err := w.nodes["a"].handoff(client1, "b")
	var he *ds.HandoffError
	if err != nil && (!errors.As(err, &he) || he.Committed) {
		t.Fatal(err)
	}
	if !fired.Load() {
		t.Fatal("the message was never sent")
	}
	switch what {
	case "vanishes":
		w.cluster.Client(client1).SetDown(false)
	case "resets":
		w.awaitOwner(client1, "")
		s = w.dial(client1)
	case "floods":
		for range many {
			f := <-flood
			if f == nil {
				t.Fatal("a connection was refused")
			}
			f.finish(t)
		}
		s.finish(t)
		w.awaitOwner(client1, "")
		s = w.dial(client1)
	}
	s.ping(t)
	owner := "a"
	if w.nodes["b"].serving() {
		owner = "b"
	}
	w.awaitOwner(client1, owner)
	other := map[string]string{"a": "b", "b": "a"}[owner]
	for end := time.Now().Add(20 * time.Second); w.nodes[other].serving(); runtime.Gosched() { // its handler may not have heard yet
		if time.Now().After(end) {
			t.Fatal("both nodes serve it")
		}
	}
	w.awaitHandoff(client1, owner, other)
	s.ping(t)
	for _, f := range w.cluster.Faults() {
		// The client's reset may overtake what it had sent before, on a way of its
		// own to the new node, which then knows nothing of the connection.
		if what != "resets" || !strings.Contains(f, fmt.Sprintf("gets a reset from b: to port %d,", first)) {
			t.Error(f)
		}
	}
}

// flood opens a connection and keeps it busy.
func (w *world) flood(opened chan<- *stream) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := w.cluster.Client(client1).Dial(ctx, w.cluster.Address(port))
	if err != nil {
		opened <- nil
		return
	}
	opened <- (&stream{Conn: c, done: make(chan error, 2), came: make(chan struct{}, 1)}).run()
}

// A handler that neither reads nor closes keeps its client here, and is named.
func TestRestless(t *testing.T) {
	c := dstest.New("a", "b")
	defer c.Close()
	a, b := c.Node("a"), c.Node("b")
	defer a.Close()
	defer b.Close()
	if _, err := b.ListenHandoff(); err != nil {
		t.Fatal(err)
	}
	l, err := a.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client, err := c.Client(client1).Dial(ctx, c.Address(7))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a.Patience = 50 * time.Millisecond
	state := func(net.Conn) ([]byte, error) { return nil, nil }
	_, err = a.Handoff(ctx, client1, "b", state)
	var he *ds.HandoffError
	if !errors.As(err, &he) || he.Stage != ds.StageDrain || he.Committed || !errors.Is(err, ds.ErrRestless) {
		t.Fatalf("got %v, want ErrRestless", err)
	}
	if moved, err := he.Outcome(ctx); moved || err != nil {
		t.Errorf("outcome: moved %t, %v", moved, err)
	}
	go io.Copy(conn, conn)
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
		t.Error(err)
	}
	if f := c.Faults(); len(f) > 0 {
		t.Error(f)
	}
}

// An application at the target that is slow to accept, or hangs, has clients that
// wait, as a listener has; they are served once it goes on.
func TestSlowToAccept(t *testing.T) {
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
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	const clients = 5
	var conns []net.Conn
	for i := range clients {
		conn, err := c.Client(clientAddr(i+1)).Dial(ctx, c.Address(7))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Handoff(ctx, clientAddr(i+1), "b", nil); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "hello")
	}
	for i := range clients {
		in, err := arrivals.Accept()
		if err != nil || in.Client != clientAddr(i+1) {
			t.Fatalf("%v, %v", in, err)
		}
		go io.Copy(in.Conns[0], in.Conns[0])
	}
	for _, conn := range conns {
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Error(err)
		}
	}
	if f := c.Faults(); len(f) > 0 {
		t.Error(f)
	}
}
