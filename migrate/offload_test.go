package migrate_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
	"github.com/distributed-servers/ds/tun/tuntest"
)

// TestStoryOffload moves a connection to and fro between a node whose link
// offloads segmentation and checksums and one whose link does not, in a transfer
// both ways:
//
//	client ── super-packets ── switch ─┬─ super-packets ── node a
//	                                   └─ packets ──────── node b
func TestStoryOffload(t *testing.T) {
	const size, moves = 24 << 20, 40
	var owner atomic.Int32
	client := tuntest.NewOffloadEnd("client", 1500, 1, nil)
	a := tuntest.NewOffloadEnd("a", 1500, 2, nil)
	b := tuntest.NewEnd("b", 1500, func(p []byte) { client.Deliver(0, tuntest.Packet{Data: p}) })
	wire := func(p tuntest.Packet) [][]byte {
		packets, err := p.Wire()
		if err != nil {
			t.Error(err)
		}
		return packets
	}
	client.Out = func(_ int, p tuntest.Packet) {
		if owner.Load() == 0 {
			a.Deliver(0, p)
			return
		}
		for _, q := range wire(p) {
			b.Deliver(q)
		}
	}
	a.Out = func(_ int, p tuntest.Packet) { client.Deliver(0, p) }
	start := func(d tun.Device, addr netip.Addr) *stack.Stack {
		s, err := stack.New(stack.Config{Device: d, Addrs: []netip.Addr{addr}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	peer := start(client, client6)
	nodes := [2]*stack.Stack{start(a, service6), start(b, service6)}
	l, err := nodes[0].Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	c, err := peer.Dial("tcp", netip.AddrPortFrom(service6, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}

	// The client sends and checks the echo; the service's connection is another
	// one after each move, so whoever uses it asks for the present one.
	var present atomic.Pointer[stack.Conn]
	present.Store(s)
	errs := make(chan error, 3)
	go func() { errs <- echoPattern(&present) }()
	go func() { errs <- writePattern(c, size) }()
	go func() { errs <- checkPattern(c, size) }()
	i := 0
	for ; i < moves; i++ {
		conn := present.Load()
		from, to := nodes[i%2], nodes[1-i%2]
		donor := migrate.NewDonor(conn)
		if err := donor.Freeze(); err != nil {
			if len(errs) > 0 {
				break // the transfer is over
			}
			t.Fatal(i, err)
		}
		snap, err := donor.Export(nil)
		if err != nil {
			t.Fatal(i, err)
		}
		target, err := migrate.Import(to, snap)
		if err != nil {
			t.Fatal(i, err)
		}
		owner.Store(int32(1 - i%2))
		late, err := donor.Discard(to.Inject, time.Minute)
		if err != nil {
			t.Fatal(i, err)
		}
		for _, p := range late {
			if len(p) > 1500 {
				t.Errorf("a late packet of %d octets", len(p))
			}
		}
		conns, err := target.Activate(late...)
		if err != nil {
			t.Fatal(i, err)
		}
		present.Store(conns[0])
		if n := from.Netstack().Stats().TCP.ResetsSent.Value(); n != 0 {
			t.Fatalf("move %d: %d resets", i, n)
		}
		// Some traffic between the moves.
		before := to.Netstack().Stats().TCP.ValidSegmentsReceived.Value()
		for deadline := time.Now().Add(30 * time.Second); len(errs) == 0 && to.Netstack().Stats().TCP.ValidSegmentsReceived.Value() < before+20; time.Sleep(100 * time.Microsecond) {
			if time.Now().After(deadline) {
				t.Fatalf("move %d: nothing arrives any more", i)
			}
		}
	}
	if t.Logf("%d moves", i); i < 4 {
		t.Errorf("moved only %d times", i)
	}
	for range 3 {
		select {
		case err := <-errs:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the transfer does not end")
		}
	}
	for i, n := range append(nodes[:], peer) {
		st := n.Netstack().Stats().TCP
		if st.ChecksumErrors.Value() != 0 || st.ResetsSent.Value() != 0 {
			t.Errorf("stack %d: %d wrong checksums, %d resets", i, st.ChecksumErrors.Value(), st.ResetsSent.Value())
		}
	}
}

// moved repeats an operation on the present connection while moves end it.
func onPresent(present *atomic.Pointer[stack.Conn], op func(*stack.Conn) (int, error)) (int, error) {
	for {
		c := present.Load()
		n, err := op(c)
		if n > 0 || err == nil || !errors.Is(err, stack.ErrMoved) {
			if errors.Is(err, stack.ErrMoved) {
				err = nil
			}
			return n, err
		}
		time.Sleep(10 * time.Microsecond)
	}
}

func echoPattern(present *atomic.Pointer[stack.Conn]) error {
	b := make([]byte, 64<<10)
	for {
		n, err := onPresent(present, func(c *stack.Conn) (int, error) { return c.Read(b) })
		if err == io.EOF {
			_, err = onPresent(present, func(c *stack.Conn) (int, error) { return 0, c.CloseWrite() })
			return err
		}
		if err != nil {
			return fmt.Errorf("service: read: %w", err)
		}
		for p := b[:n]; len(p) > 0; {
			n, err := onPresent(present, func(c *stack.Conn) (int, error) { return c.Write(p) })
			if err != nil {
				return fmt.Errorf("service: write: %w", err)
			}
			p = p[n:]
		}
	}
}

func patternAt(i int) byte { return byte(i*131 ^ i>>8 ^ i>>16) }

func writePattern(c *stack.Conn, size int) error {
	b := make([]byte, 100<<10)
	for at := 0; at < size; at += len(b) {
		if size-at < len(b) {
			b = b[:size-at]
		}
		for i := range b {
			b[i] = patternAt(at + i)
		}
		if _, err := c.Write(b); err != nil {
			return fmt.Errorf("client: write: %w", err)
		}
	}
	return c.CloseWrite()
}

func checkPattern(c *stack.Conn, size int) error {
	b := make([]byte, 64<<10)
	at := 0
	for {
		n, err := c.Read(b)
		for i, x := range b[:n] {
			if x != patternAt(at+i) {
				return fmt.Errorf("client: octet %d is wrong", at+i)
			}
		}
		at += n
		switch {
		case err == io.EOF && at == size:
			return nil
		case err != nil:
			return fmt.Errorf("client: read at %d of %d: %w", at, size, err)
		}
	}
}
