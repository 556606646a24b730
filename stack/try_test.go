package stack

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/faketime"

	"github.com/distributed-servers/ds/tun/tuntest"
)

// Two stacks, driven by a loop that never waits: a connection from its
// handshake to its end.
func TestTry(t *testing.T) {
	clock := faketime.NewManualClock()
	da, db := tuntest.Pair(1500)
	addrA, addrB := netip.MustParseAddr("fd00::a"), netip.MustParseAddr("fd00::b")
	a, err := New(Config{Device: da, Addrs: []netip.Addr{addrA}, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	b, err := New(Config{Device: db, Addrs: []netip.Addr{addrB}, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })

	// again asks until something else than EAGAIN comes.
	again := func(f func() error) error {
		for {
			if err := f(); !errors.Is(err, syscall.EAGAIN) {
				return err
			}
			a.Netstack().Pause() // what has arrived is processed when this returns
			a.Netstack().Resume()
		}
	}
	l, err := b.Listen("tcp", "[fd00::b]:7")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.TryAccept(); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("accept, nobody there: %v", err)
	}
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	c, err := a.TryDial("tcp", "[fd00::b]:7")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := c.TryWrite([]byte("early")); n != 0 || !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("write during the handshake: %d, %v", n, err)
	}
	if _, err := c.TryRead(make([]byte, 1)); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("read during the handshake: %v", err)
	}
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := again(func() error { _, err := c.TryWrite([]byte("hello")); return err }); err != nil {
		t.Fatal(err)
	}
	var s *Conn
	if err := again(func() (err error) { s, err = l.TryAccept(); return err }); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for len(got) < 5 {
		p := make([]byte, 3)
		var n int
		if err := again(func() (err error) { n, err = s.TryRead(p); return err }); err != nil {
			t.Fatal(err)
		}
		got = append(got, p[:n]...)
	}
	if string(got) != "hello" {
		t.Fatalf("got %q", got)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := again(func() error { _, err := s.TryRead(make([]byte, 1)); return err }); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
	// Much more than the peer can take: some goes, the rest would have to wait.
	big := make([]byte, 1<<20)
	total := 0
	for {
		n, err := s.TryWrite(big)
		total += n
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if total == 0 {
		t.Error("nothing was written")
	}
	c.Close()
	if _, err := c.TryRead(big); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if _, err := a.TryDial("tcp", "nonsense"); err == nil {
		t.Error("dialled nonsense")
	}
}
