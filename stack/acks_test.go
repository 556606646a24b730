package stack_test

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

// ackWorld is a client without offloads, which acknowledges at once, and a server
// with, whose packets it keeps. Time stands still but for the server's timers: the client
// sends nothing again because its acknowledgement is late.
type ackWorld struct {
	client, server *stack.Stack
	clock          *faketime.ManualClock
	d              *tuntest.OffloadEnd

	mu   sync.Mutex
	sent [][]byte // by the server, since forget
}

func newAckWorld(t *testing.T) *ackWorld {
	t.Helper()
	w := &ackWorld{clock: faketime.NewManualClock()}
	cd := tuntest.NewEnd("client", superMTU, nil)
	w.d = tuntest.NewOffloadEnd("server", superMTU, 1, nil)
	cd.Out = func(p []byte) { w.d.Deliver(0, tuntest.Packet{Data: p}) }
	w.d.Out = func(_ int, p tuntest.Packet) {
		packets, err := p.Wire()
		if err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		w.sent = append(w.sent, packets...)
		w.mu.Unlock()
		for _, q := range packets {
			cd.Deliver(slices.Clone(q))
		}
	}
	var err error
	if w.server, err = stack.New(stack.Config{Device: w.d, Addrs: []netip.Addr{server6, server4}, Clock: w.clock}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.server.Close() })
	if w.client, err = stack.New(stack.Config{Device: cd, Addrs: []netip.Addr{client6, client4}, Clock: faketime.NewManualClock()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.Close() })
	return w
}

func (w *ackWorld) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = nil
}

// acks are the acknowledgements without data that the server has sent.
func (w *ackWorld) acks() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.sent {
		if s := segmentOf(p); len(s.Payload()) == 0 && s.Flags() == header.TCPFlagAck {
			n++
		}
	}
	return n
}

// await polls for what the goroutines of a stack do.
func (w *ackWorld) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// ask sends something small from the client, and returns when the server's
// netstack has acknowledged it, to the link at least.
func (w *ackWorld) ask(t *testing.T, c, s *stack.Conn, offset, n int) {
	t.Helper()
	before := w.server.Netstack().Stats().TCP.SegmentsSent.Value()
	mustSend(t, c, offset, n)
	w.await(t, "an acknowledgement", func() bool { return w.server.Netstack().Stats().TCP.SegmentsSent.Value() > before })
	mustReceive(t, s, offset, n)
}

// TestAckWithAnswer: the answer acknowledges the request, and nothing else does.
func TestAckWithAnswer(t *testing.T) {
	bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
		w := newAckWorld(t)
		c, s := connect(t, w.client, w.server, addr)
		w.forget()
		for i := range 50 {
			w.ask(t, c, s, 64*i, 64)
			mustSend(t, s, 64*i, 64)
			mustReceive(t, c, 64*i, 64)
		}
		if n := w.acks(); n != 0 {
			t.Errorf("%d acknowledgements without data in 50 exchanges", n)
		}
		// The end of the client's stream, and of the server's.
		must(t, c.CloseWrite())
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("read past the end")
		}
		must(t, s.Close())
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("read past the end")
		}
		if n := w.acks(); n > 1 { // of the FIN, if the netstack was late
			t.Errorf("%d acknowledgements without data at the end", n)
		}
	})
}

// TestAckAlone: without an answer it goes out after a moment, and at once if it is
// the second.
func TestAckAlone(t *testing.T) {
	w := newAckWorld(t)
	c, s := connect(t, w.client, w.server, server6)
	w.forget()
	w.ask(t, c, s, 0, 64)
	if n := w.acks(); n != 0 {
		t.Fatalf("%d acknowledgements at once", n)
	}
	w.clock.Advance(5 * time.Millisecond)
	w.await(t, "the timer", func() bool { return w.acks() == 1 })

	w.ask(t, c, s, 64, 64)
	if n := w.acks(); n != 1 {
		t.Errorf("%d acknowledgements after another segment", n)
	}
	w.ask(t, c, s, 128, 64)
	w.await(t, "the second to go out", func() bool { return w.acks() == 2 })
	w.clock.Advance(time.Second)
	if n := w.acks(); n != 2 {
		t.Errorf("%d acknowledgements: one came twice", n)
	}

	// What is not small is acknowledged at once.
	mustSend(t, c, 0, 100_000)
	mustReceive(t, s, 0, 100_000)
	w.await(t, "acknowledgements", func() bool { return w.acks() > 2 })
}

// TestAckHold: one that is kept when a hold begins is from before it, and goes out
// with what is.
func TestAckHold(t *testing.T) {
	for kind, hold := range holds {
		t.Run(kind, func(t *testing.T) {
			w := newAckWorld(t)
			c, s := connect(t, w.client, w.server, server6)
			w.forget()
			w.ask(t, c, s, 0, 64)
			h, err := hold(node{Stack: w.server}, s)
			h = mustHold(t, h, err)
			w.clock.Advance(time.Second)
			if n := w.acks(); n != 0 {
				t.Errorf("%d acknowledgements in spite of the hold", n)
			}
			h.Flush()
			if n := w.acks(); n != 1 {
				t.Errorf("%d acknowledgements after Flush, want 1", n)
			}
			h.Release()
			if n := w.acks(); n != 1 {
				t.Errorf("%d acknowledgements after Release, want 1", n)
			}
			w.ask(t, c, s, 64, 64)
			mustSend(t, s, 0, 64)
			mustReceive(t, c, 0, 64)
		})
	}
}

// TestAckHeld: what was held is acknowledged as what was not.
func TestAckHeld(t *testing.T) {
	for kind, hold := range holds {
		t.Run(kind, func(t *testing.T) {
			w := newAckWorld(t)
			c, s := connect(t, w.client, w.server, server6)
			w.forget()
			h, err := hold(node{Stack: w.server}, s)
			h = mustHold(t, h, err)
			held := make(chan struct{}, 10)
			h.Copy(func([]byte) bool { held <- struct{}{}; return false })
			mustSend(t, c, 0, 64)
			<-held
			h.Release()
			mustReceive(t, s, 0, 64)
			mustSend(t, s, 0, 64)
			mustReceive(t, c, 0, 64)
			if n := w.acks(); n != 0 {
				t.Errorf("%d acknowledgements without data", n)
			}
		})
	}
}
