package ds_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

// A packet that comes late to a node which had the client is sent on to the one that
// got it, whose application has handed the client on and ended: the one that takes its
// place does not answer, since a third node has the connection, even if it does not hear
// where that is.
func TestStragglerAnew(t *testing.T) {
	w := newWorld(t, nil, "a", "b", "c")
	s := w.dial(client1)
	s.ping(t)
	for _, h := range []struct{ from, to string }{{"a", "b"}, {"b", "c"}} {
		if _, err := w.nodes[h.from].handoff(client1, h.to); err != nil {
			t.Fatal(err)
		}
	}
	for known := false; !known; runtime.Gosched() { // to the contact, which would send to b
		clients, err := w.nodes["a"].Clients(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		known = slices.ContainsFunc(clients, func(c api.ClientInfo) bool { return c.Client == client1 && c.Owner == "c" })
	}
	s.ping(t) // and what it sent before has arrived
	before := w.nodes["b"]
	b := w.cluster.Node("b")
	attach := b.Attach
	b.Attach = func(ctx context.Context, hello *api.Message) (*ds.Attachment, error) {
		hello.TakesAway = false
		return attach(ctx, hello)
	}
	l, err := b.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	defer l.Close()
	before.stop()
	delete(w.nodes, "b")
	s.ping(t)
	w.nodes["a"].Stack().Inject(segment(s.Conn))
	for b.Stack().ShimStats().Late == 0 && len(w.cluster.Faults()) == 0 {
		runtime.Gosched()
	}
	s.ping(t)
	w.noFaults()
}

// A client that has left, and whose connections have ended with application and daemon
// where it was, connects anew. It comes to the contact, which knows of nobody that has it,
// and whose application does not send it where the client went, nor what it begins later, by
// way of another contact.
func TestNewAgain(t *testing.T) {
	t.Cleanup(ds.SetNewTime(0))
	w := newWorld(t, nil, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	if _, err := w.nodes["a"].handoff(client1, "b"); err != nil {
		t.Fatal(err)
	}
	before := w.nodes["b"]
	w.cluster.End("b", true)
	w.start("b")
	before.stop()
	for owned := true; owned; { // until what a has told of b is forgotten, and said no more
		w.cluster.Restart("a")
		clients, err := w.nodes["a"].Clients(t.Context())
		owned = err != nil || len(clients) > 0 || w.cluster.Settled() != nil
	}
	again := w.dial(client1)
	again.ping(t)
	w.awaitOwner(client1, "a")
	w.cluster.First("b") // which sends it to where the client is
	w.dial(client1).ping(t)
	again.ping(t)
	if r, err := w.nodes["a"].handoff(client1, "b"); err != nil || r.Connections != 2 {
		t.Errorf("%v, %v", r, err)
	}
	w.noFaults()
}

// A client that is a node's, but has no connections there, begins one while the daemon is
// started anew, after the application has noted what it is to say of its clients, of which
// this is none. So the contact forgets the client, and sends its connection there all the
// same, before it hears of that.
func TestBegunWhileAttaching(t *testing.T) {
	told := make(chan struct{})
	w := newWorld(t, func(c *dstest.Cluster) {
		c.Intercept = func(node string, m *api.Message) error {
			if node == "b" && m.Kind == api.Owned {
				<-told
			}
			return nil
		}
	}, "a", "b", "c")
	tell := sync.OnceFunc(func() { close(told) })
	t.Cleanup(tell) // before the world ends
	s := w.dial(client1)
	s.ping(t)
	if _, err := w.nodes["a"].handoff(client1, "b"); err != nil {
		t.Fatal(err)
	}
	owner := func() string { // as far as the contact knows
		clients, err := w.nodes["c"].Clients(t.Context())
		switch {
		case err != nil:
			return "unknown"
		case len(clients) == 0:
			return ""
		}
		return clients[0].Owner
	}
	w.cluster.First("c")
	w.cluster.Restart("c") // so that it does not know where handshakes were begun before
	for owner() != "b" {
		runtime.Gosched()
	}
	before := w.nodes["b"]
	b := &node{Node: w.cluster.Node("b"), name: "b", t: t}
	attach, again := b.Attach, make(chan *stream, 1)
	var begins atomic.Bool
	begins.Store(true)
	b.Attach = func(ctx context.Context, hello *api.Message) (*ds.Attachment, error) {
		if hello.HasTUN && begins.CompareAndSwap(true, false) {
			s := w.dial(client1)
			s.ping(t)
			again <- s
		}
		return attach(ctx, hello)
	}
	l, err := b.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	before.stop()
	b.quit.Go(func() {
		if c, err := l.Accept(); err == nil {
			b.serve(c, new(session))
		}
	})
	w.nodes["b"] = b
	w.cluster.Restart("b")
	s = <-again
	for owner() != "" {
		runtime.Gosched()
	}
	s.ping(t)
	tell()
	w.awaitOwner(client1, "b")
	s.ping(t)
	l.Close()
	w.noFaults()
}

// The daemon of a target ends before it can say that the client is to go live: so the donor
// has it back. When it is gone from there, too, it is answered where it was to go.
func TestNewAfterStrand(t *testing.T) {
	t.Cleanup(ds.SetStrandTimeLeft(0))
	var once sync.Once
	w := newWorld(t, func(c *dstest.Cluster) {
		c.Intercept = func(node string, m *api.Message) (err error) {
			if node == "b" && m.Kind == api.Activate {
				once.Do(func() { err = errCut })
			}
			return err
		}
	}, "a", "b")
	s := w.dial(client1)
	s.ping(t)
	if _, err := w.nodes["a"].handoff(client1, "b"); err == nil {
		t.Fatal("it has moved")
	}
	s.ping(t)
	w.awaitOwner(client1, "a")
	before := w.nodes["a"]
	w.cluster.End("a", true)
	before.stop()
	delete(w.nodes, "a")
	w.cluster.First("b")
	w.dial(client1).ping(t)
	w.awaitOwner(client1, "b")
	w.noFaults()
}

// segment is one that a client could have sent in a connection.
func segment(c net.Conn) []byte {
	from, to := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	src, dst := tcpip.AddrFrom16(from.Addr().As16()), tcpip.AddrFrom16(to.Addr().As16())
	p := make([]byte, header.IPv6MinimumSize+header.TCPMinimumSize)
	header.IPv6(p).Encode(&header.IPv6Fields{
		PayloadLength: header.TCPMinimumSize, TransportProtocol: header.TCPProtocolNumber, HopLimit: 64, SrcAddr: src, DstAddr: dst,
	})
	t := header.TCP(p[header.IPv6MinimumSize:])
	t.Encode(&header.TCPFields{SrcPort: from.Port(), DstPort: to.Port(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck})
	t.SetChecksum(^t.CalculateChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, header.TCPMinimumSize)))
	return p
}
