package rawip_test

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/internal/netns/netnstest"
	"github.com/distributed-servers/ds/mobility/wire"
)

func TestNeighbors(t *testing.T) {
	if !netnstest.Run(t) {
		return
	}
	a, b := two(t)
	var n *rawip.Neighbors
	on(t, a, func() (err error) { n, err = rawip.ListenNeighbors("eth0"); return err })
	t.Cleanup(func() { n.Close() })
	if len(n.Link()) != 6 {
		t.Errorf("link-layer address %v", n.Link())
	}
	target := netip.MustParseAddr("fd00::1:2345")
	group := netip.MustParseAddr("ff02::1:ff01:2345")
	for range 2 {
		if err := n.Join(group); err != nil {
			t.Fatal(err)
		}
	}

	sb := sender(t, b)
	if err := sb.SetInterface("eth0"); err != nil {
		t.Fatal(err)
	}
	src := netip.MustParseAddr("fe80::b")
	solicitation := func(hopLimit uint8, dst netip.Addr) []byte {
		m := wire.NeighborSolicitation{Target: target}
		p := wire.Packet{Src: src, Dst: dst, HopLimit: hopLimit, Protocol: wire.ICMPv6, Payload: m.Append(nil, src, dst)}
		b, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// From off the link, and the kernel's own talk: not heard, or not ours.
	want := solicitation(255, group)
	sb.Send(solicitation(254, group), want)
	if got := hear(t, n, target); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	// What we send ourselves is not heard, though we are in the group.
	sa := sender(t, a)
	if err := sa.SetInterface("eth0"); err != nil {
		t.Fatal(err)
	}
	mine := solicitation(255, group)
	mine[23] = 0xaa // another source
	sa.Send(mine)
	sb.Send(want)
	if got := hear(t, n, target); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	if err := n.Leave(group); err != nil {
		t.Error(err)
	}

	done := make(chan error)
	go func() {
		for {
			if _, err := n.Read(); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read ended with %v", err)
	}
}

// hear returns the next solicitation for target.
func hear(t *testing.T, n *rawip.Neighbors, target netip.Addr) []byte {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { n.Close() })
	defer timer.Stop()
	for {
		b, err := n.Read()
		if err != nil {
			t.Fatal(err)
		}
		p, err := wire.ParsePacket(b)
		if err != nil || b[7] != 255 {
			t.Fatalf("heard %x: %v", b, err)
		}
		if m, err := wire.ParseICMP(&p); err == nil {
			if s, ok := m.(*wire.NeighborSolicitation); ok && s.Target == target {
				return bytes.Clone(b)
			}
		}
	}
}
