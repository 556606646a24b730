package ds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

// hopper is a node whose clients say by an octet which node they want to be
// answered by: the name of that and the number of the answer.
type hopper struct {
	*ds.Node
	name string
	said chan error // of Handoff, each time
}

func hoppers(t *testing.T, c *dstest.Cluster, names ...string) map[string]*hopper {
	t.Helper()
	nodes := make(map[string]*hopper)
	for _, name := range names {
		h := &hopper{Node: c.Node(name), name: name, said: make(chan error, 100)}
		h.Logger = slog.New(slog.DiscardHandler)
		arrivals, err := h.ListenHandoff()
		if err != nil {
			t.Fatal(err)
		}
		l, err := h.Listen("tcp", ":7")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for in, err := arrivals.Accept(); err == nil; in, err = arrivals.Accept() {
				go h.serve(in.Conns[0].(ds.Conn), in.State[0], true)
			}
		}()
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				go h.serve(c.(ds.Conn), []byte{0}, false)
			}
		}()
		nodes[name] = h
	}
	t.Cleanup(func() {
		for _, h := range nodes {
			h.Close()
		}
		c.Close()
	})
	return nodes
}

// serve serves a connection, from the beginning or from where another node was.
func (h *hopper) serve(c ds.Conn, count []byte, owed bool) {
	defer c.Close()
	for b := make([]byte, 1); ; owed = false {
		if !owed {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			count[0]++
			if to := string(b); to != h.name {
				_, err := c.Handoff(context.Background(), to, count)
				h.said <- err
				if err == nil {
					if _, err := c.Write(b); !errors.Is(err, ds.ErrMoved) {
						h.said <- fmt.Errorf("a write to what has moved: %v", err)
					}
					_, err := c.Handoff(context.Background(), to, count)
					h.said <- err
					return
				}
			}
		}
		if _, err := c.Write([]byte{h.name[0], count[0]}); err != nil {
			return
		}
	}
}

// ask asks for an answer of a node, and expects number n from who.
func ask(t *testing.T, c net.Conn, to, who string, n byte) {
	t.Helper()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	b := []byte(to + " ")
	if _, err := c.Write(b[:1]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if string(b[:1]) != who || b[1] != n {
		t.Fatalf("answer %d of %c; want %d of %s", b[1], b[0], n, who)
	}
}

func dial(t *testing.T, c *dstest.Cluster) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := c.Client(client1).Dial(ctx, c.Address(7))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// listen has the client listen.
func listen(t *testing.T, c *dstest.Cluster) string {
	t.Helper()
	l, err := c.Client(client1).Listen(":9")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(io.Discard, c)
		}
	}()
	return net.JoinHostPort(client1.String(), "9")
}

// A connection is handed off by the goroutine that serves it, with the state that
// it gives, and is of no use there afterwards.
func TestConnHandoff(t *testing.T) {
	c := dstest.New("a", "b")
	nodes := hoppers(t, c, "a", "b")
	conn := dial(t, c)
	ask(t, conn, "a", "a", 1)
	at := "a"
	for i, to := range []string{"b", "a", "b"} {
		ask(t, conn, to, to, byte(2+i))
		if err := <-nodes[at].said; err != nil {
			t.Fatal(err)
		}
		var he *ds.HandoffError
		if err := <-nodes[at].said; !errors.As(err, &he) || he.Stage != ds.StagePrepare || he.Client != client1 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("a second time: %v", err)
		}
		at = to
	}
	if f := c.Faults(); len(f) > 0 {
		t.Error(f)
	}
}

// One of several connections does not move, nor do the others: whether they are
// there from the beginning or come while the handoff is being prepared.
func TestConnHandoffSiblings(t *testing.T) {
	for _, at := range []ds.Stage{ds.StagePrepare, ds.StageFreeze} {
		t.Run(string(at), func(t *testing.T) {
			c := dstest.New("a", "b")
			var sibling net.Conn
			var fired atomic.Bool
			c.Intercept = func(node string, m *api.Message) error {
				if at == ds.StageFreeze && m.Kind == api.Prepared && !fired.Swap(true) {
					sibling = dial(t, c)
					ask(t, sibling, "a", "a", 1)
				}
				return nil
			}
			nodes := hoppers(t, c, "a", "b")
			conn := dial(t, c)
			ask(t, conn, "a", "a", 1)
			if at == ds.StagePrepare {
				sibling = dial(t, c)
				ask(t, sibling, "a", "a", 1)
			}
			ask(t, conn, "b", "a", 2) // who says no goes on
			err := <-nodes["a"].said
			var he *ds.HandoffError
			if !errors.As(err, &he) || he.Stage != at || he.Committed || !errors.Is(err, ds.ErrSiblings) || !strings.Contains(err.Error(), "use Node.Handoff") {
				t.Fatalf("got %v, want ErrSiblings at %s", err, at)
			}
			ask(t, sibling, "a", "a", 2)
			sibling.Close()
			for n := byte(3); ; n++ {
				conn.Write([]byte("b"))
				b := make([]byte, 2)
				if _, err := io.ReadFull(conn, b); err != nil || b[1] != n {
					t.Fatalf("%q, %v", b, err)
				}
				if err := <-nodes["a"].said; err == nil {
					break
				} else if !errors.Is(err, ds.ErrSiblings) { // until it has closed its end
					t.Fatal(err)
				}
				runtime.Gosched()
			}
			if f := c.Faults(); len(f) > 0 {
				t.Error(f)
			}
		})
	}
}

// What Handoff of a connection does not take: more state than there may be, and a
// connection that its application has closed.
func TestConnHandoffRefusals(t *testing.T) {
	c := dstest.New("a", "b")
	nodes := hoppers(t, c, "b")
	a := c.Node("a")
	defer a.Close()
	l, err := a.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	conn := dial(t, c)
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	served := accepted.(ds.Conn)
	var he *ds.HandoffError
	if _, err := served.Handoff(context.Background(), "b", make([]byte, ds.MaxState+1)); !errors.As(err, &he) || he.Stage != ds.StageExport || !errors.Is(err, ds.ErrState) {
		t.Errorf("too much state: %v", err)
	}
	// Nobody waits in Read, so with a state function it would not go.
	if _, err := served.Handoff(context.Background(), "b", []byte{7}); err != nil {
		t.Error(err)
	}
	ask(t, conn, "b", "b", 7) // what it was owed
	closed, err := nodes["b"].Dial(t.Context(), "tcp", listen(t, c))
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if _, err := closed.(ds.Conn).Handoff(context.Background(), "a", nil); !errors.As(err, &he) || he.Stage != ds.StagePrepare || !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed one: %v", err)
	}
	if f := c.Faults(); len(f) > 0 {
		t.Error(f)
	}
}
