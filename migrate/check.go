package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/distributed-servers/ds/migrate/internal/gvtcp"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun/tuntest"
)

// Check tells whether connections can be moved with the gVisor in this binary:
// it compares gVisor's internals with what this package knows of them, and
// moves a connection in memory. The error is [ErrUnsupported], and says what
// differs. Check does its work once, in a few milliseconds, at the latest when
// the first connection is moved.
func Check() error { return checkOnce() }

var checkOnce = sync.OnceValue(func() error {
	if err := gvtcp.Check(); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if err := selfTest(); err != nil {
		return fmt.Errorf("migrate: %w: self-test: %w", ErrUnsupported, err)
	}
	return nil
})

// selfTest moves one connection between two stacks, with octets in both
// queues, and uses it before and after.
func selfTest() (err error) {
	// The nodes share the service's address; the client reaches one at a time.
	const mtu = 1500
	client, service := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	c := tuntest.NewEnd("client", mtu, nil)
	a, b := tuntest.NewEnd("a", mtu, c.Deliver), tuntest.NewEnd("b", mtu, c.Deliver)
	var route sync.Mutex
	at := a
	c.Out = func(p []byte) {
		route.Lock()
		defer route.Unlock()
		at.Deliver(p)
	}
	var stacks [3]*stack.Stack
	for i, cfg := range []stack.Config{
		{Device: c, Addrs: []netip.Addr{client}},
		{Device: a, Addrs: []netip.Addr{service}},
		{Device: b, Addrs: []netip.Addr{service}},
	} {
		s, err := stack.New(cfg)
		if err != nil {
			return err
		}
		defer s.Close()
		stacks[i] = s
	}
	l, err := stacks[1].Listen("tcp", netip.AddrPortFrom(service, 1).String())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), selfTestTime)
	defer cancel()
	near, err := stacks[0].DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	if err := l.SetDeadline(time.Now().Add(selfTestTime)); err != nil {
		return err
	}
	far, err := l.AcceptConn()
	if err != nil {
		return err
	}
	if err := converse(near, far, "hello from one"); err != nil {
		return err
	}
	// From here on the client's octets wait at the donor.
	if _, err := near.Write([]byte("unread, ")); err != nil {
		return err
	}

	d := NewDonor(far)
	if err := d.freeze(); err != nil {
		return err
	}
	snap, err := d.Export(nil)
	if err != nil {
		return err
	}
	t := &Target{stack: stacks[2]}
	err = t.importSnapshot(snap)
	if err != nil {
		return err
	}
	route.Lock()
	at = b
	route.Unlock()
	late, err := d.Discard(stacks[2].Inject, selfTestTime)
	if err != nil {
		return err
	}
	conns, err := t.Activate(late...)
	if err != nil {
		return err
	}
	if _, err := far.Write(nil); !errors.Is(err, ErrMoved) {
		return fmt.Errorf("write to the moved connection: %v", err)
	}
	if err := expect(conns[0], "unread, "); err != nil {
		return err
	}
	return converse(near, conns[0], "and from two")
}

// selfTestTime bounds each step of the self-test.
const selfTestTime = 10 * time.Second

// converse sends a text to and fro.
func converse(a, b *stack.Conn, text string) error {
	for _, way := range [][2]*stack.Conn{{a, b}, {b, a}} {
		if _, err := way[0].Write([]byte(text)); err != nil {
			return err
		}
		if err := expect(way[1], text); err != nil {
			return err
		}
	}
	return nil
}

func expect(c *stack.Conn, text string) error {
	if err := c.SetReadDeadline(time.Now().Add(selfTestTime)); err != nil {
		return err
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != text {
		return fmt.Errorf("got %q instead of %q", b, text)
	}
	return c.SetReadDeadline(time.Time{})
}
