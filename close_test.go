package ds_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

// Close resets what is still here, and nothing that has left.
func TestClose(t *testing.T) {
	w := newWorld(t, nil, "a", "b")
	stays, leaves := w.dial(clientAddr(2)), w.dial(client1)
	stays.ping(t)
	leaves.ping(t)
	if _, err := w.nodes["a"].handoff(client1, "b"); err != nil {
		t.Fatal(err)
	}
	w.nodes["a"].stop()
	if _, err := stays.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the one that stayed: %v", err)
	}
	leaves.ping(t)
	for _, f := range w.cluster.Faults() {
		if !strings.HasPrefix(f, clientAddr(2).String()) {
			t.Error(f)
		}
	}
	if _, err := w.nodes["a"].handoff(client1, "b"); !errors.Is(err, ds.ErrClosed) {
		t.Errorf("a handoff afterwards: %v", err)
	}
}

// A Node that is closed while nobody knows who has a client stays silent about
// it.
func TestCloseInDoubt(t *testing.T) {
	w := newWorld(t, func(c *dstest.Cluster) {
		c.Optimise = true // the daemon that goes down is the contact's
		c.Intercept = func(node string, m *api.Message) error {
			if node == "a" && m.Kind == api.Done {
				c.SetDown("a", true)
			}
			return nil
		}
	}, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	w.awaitBound(client1, "a")
	_, err := w.nodes["a"].handoff(client1, "b")
	var he *ds.HandoffError
	if !errors.As(err, &he) || !he.Committed {
		t.Fatalf("got %v, want a HandoffError with Committed", err)
	}
	if _, err := w.nodes["a"].handoff(client1, "b"); !errors.Is(err, ds.ErrUnknown) || !errors.As(err, &he) || !he.Committed {
		t.Errorf("a second handoff: %v", err)
	}
	w.nodes["a"].stop()
	if _, err := he.Outcome(context.Background()); !errors.Is(err, ds.ErrClosed) {
		t.Errorf("the outcome when the node is closed: %v", err)
	}
	s.ping(t)
	w.noFaults()
}

// A client in doubt that another node hands back had left, it turns out.
func TestBackFromDoubt(t *testing.T) {
	lost := false
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := newWorld(t, func(c *dstest.Cluster) {
		c.Intercept = func(node string, m *api.Message) error {
			if node == "a" && m.Kind == api.Done && !lost {
				lost = true
				m.ID += 1000 // nobody waits for that one
				cancel()
			}
			return nil
		}
	}, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	_, err := w.nodes["a"].Handoff(ctx, client1, "b", w.nodes["a"].state)
	var he *ds.HandoffError
	if !errors.As(err, &he) || !he.Committed || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want a HandoffError with Committed", err)
	}
	s.ping(t)
	w.cluster.Restart("a") // now it is in doubt
	outcome := make(chan bool, 1)
	go func() {
		moved, err := he.Outcome(context.Background())
		outcome <- moved && err == nil
	}()
	for _, step := range []struct{ from, to string }{{"b", "a"}, {"a", "b"}} {
		w.awaitHandoff(client1, step.from, step.to)
		s.ping(t)
	}
	if !<-outcome {
		t.Error("the client had moved, which is not what the error says in the end")
	}
	w.noFaults()
}

// Nobody accepts a client that was handed off: it is reset, as one of a
// listener would be.
func TestCloseHandoffListener(t *testing.T) {
	c := dstest.New("a", "b")
	defer c.Close()
	a, b := c.Node("a"), c.Node("b")
	defer a.Close()
	defer b.Close()
	l, err := a.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	hl, err := b.ListenHandoff()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := c.Client(client1).Dial(ctx, c.Address(80))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Handoff(ctx, client1, "b", nil); err != nil {
		t.Fatal(err)
	}
	hl.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read: %v", err)
	}
	if _, err := hl.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if err := hl.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("close again: %v", err)
	}
}

// Nothing of a Node is left when it is closed.
func TestNothingLeft(t *testing.T) {
	w := newWorld(t, nil, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	if _, err := w.nodes["a"].handoff(client1, "b"); err != nil {
		t.Fatal(err)
	}
	w.cluster.SetDown("b", true)
	for _, n := range w.nodes {
		n.stop()
	}
	w.cluster.Close()
	ours := func() []byte {
		b := make([]byte, 1<<20)
		for _, g := range bytes.Split(b[:runtime.Stack(b, true)], []byte("\n\n")) {
			if bytes.Contains(g, []byte("distributed-servers/ds")) && !bytes.Contains(g, []byte("TestNothingLeft")) && !bytes.Contains(g, []byte("TestMain")) {
				return g
			}
		}
		return nil
	}
	for end := time.Now().Add(30 * time.Second); ours() != nil; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("left:\n%s", ours())
		}
	}
}

// Dial goes out from the server's address, and what it connects to can be handed
// off like any client.
func TestDial(t *testing.T) {
	w := newWorld(t, nil, "a", "b")
	l, err := w.cluster.Client(client1).Listen(":9")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := w.nodes["a"].Dial(ctx, "tcp", net.JoinHostPort(client1.String(), "9"))
	if err != nil {
		t.Fatal(err)
	}
	w.nodes["a"].serve(conn, new(session))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != dstest.Server {
		t.Errorf("from %s", got)
	}
	s := &stream{Conn: c}
	s.ping(t)
	if _, err := w.nodes["a"].handoff(client1, "b"); err != nil {
		t.Fatal(err)
	}
	s.ping(t)
	if name, err := w.nodes["b"].Name(ctx); name != "b" || err != nil {
		t.Errorf("name %q, %v", name, err)
	}
	if others, err := w.nodes["b"].Others(ctx); len(others) != 1 || others[0] != "a" || err != nil {
		t.Errorf("others %q, %v", others, err)
	}
	w.noFaults()
}
