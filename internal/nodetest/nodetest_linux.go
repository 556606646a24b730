// Package nodetest is a server node without daemon or application: a netstack
// and the machine of a mobile node on a TUN, for tests of the other roles against
// kernels of clients.
package nodetest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/distributed-servers/ds/internal/demo/pattern"
	"github.com/distributed-servers/ds/internal/netns/topology"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

// Config describes a Node.
type Config struct {
	// Host forwards. CareOf must be routed to it.
	Host *topology.Host

	Home      netip.Prefix // the distributed server address, with its prefix
	CareOf    netip.Addr
	HomeAgent netip.Addr
	SPI       uint32
	Key       wire.SharedKey
}

// Port is where a Node listens.
const Port = 80

// Node is contact and only node of a distributed server.
type Node struct {
	cfg   Config
	dev   *tun.TUN
	start time.Time

	// Stack has the connections; nil of NewKernel.
	Stack    *stack.Stack
	listener net.Listener // of NewKernel

	mu      sync.Mutex // of all below
	machine *node.Node
	timer   *time.Timer
	ended   bool
	events  []node.Event
	more    chan struct{}       // closed when there are more events
	bound   map[netip.Addr]bool // of NewKernel
}

func newNode(cfg Config) *Node {
	return &Node{cfg: cfg, start: time.Now(), more: make(chan struct{})}
}

// New starts a node. It registers with [node.Register].
func New(cfg Config) (*Node, error) {
	n := newNode(cfg)
	err := cfg.Host.Do(func() (err error) {
		n.dev, err = tun.Open(tun.Config{Routes: []netip.Prefix{netip.PrefixFrom(cfg.CareOf, 128)}})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := n.startMachine(); err != nil {
		n.dev.Close()
		return nil, err
	}
	n.Stack, err = stack.New(stack.Config{
		Device: n.dev, Addrs: []netip.Addr{cfg.Home.Addr()},
		Mobile: &stack.Mobile{
			Home: cfg.Home.Addr(), CareOf: cfg.CareOf, Via: cfg.HomeAgent,
			Signalling: func(b []byte) { n.Step(node.Received{Packet: slices.Clone(b)}) },
		},
	})
	if err != nil {
		n.dev.Close()
		return nil, err
	}
	return n, n.serve()
}

func (n *Node) startMachine() (err error) {
	n.machine, err = node.New(node.Config{
		Home: n.cfg.Home, CareOf: n.cfg.CareOf, HomeAgent: n.cfg.HomeAgent,
		SPI: n.cfg.SPI, Key: n.cfg.Key, Epoch: n.start, Rand: rand.Reader,
	})
	n.timer = time.AfterFunc(time.Hour, func() { n.Step(node.Tick{}) })
	return err
}

func (n *Node) bind(client netip.Addr, bound bool) {
	switch {
	case n.Stack == nil:
		n.bound[client] = bound
	case bound:
		n.Stack.Bind(client)
	default:
		n.Stack.Unbind(client)
	}
}

// Step gives the machine an input.
func (n *Node) Step(in node.Input) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return
	}
	out := n.machine.Step(time.Since(n.start), in)
	for _, p := range out.Send {
		_ = n.dev.WritePacket(0, tun.Offload{}, [][]byte{p}) // lost, if the interface is down
	}
	for _, e := range out.Events {
		switch e.Kind {
		case node.Bound:
			n.bind(e.Client, true)
		case node.Unbound, node.Unsupported, node.Released:
			n.bind(e.Client, false)
		}
	}
	if len(out.Events) > 0 {
		n.events = append(n.events, out.Events...)
		close(n.more)
		n.more = make(chan struct{})
	}
	if at, ok := n.machine.NextDeadline(); ok {
		n.timer.Reset(max(0, at-time.Since(n.start)))
	}
}

// Events is how many there have been.
func (n *Node) Events() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.events)
}

// WaitFor waits for an event of one of the kinds about a client (or none: about
// the home registration) behind the first from.
func (n *Node) WaitFor(ctx context.Context, from int, client netip.Addr, kinds ...node.Kind) (node.Event, error) {
	for {
		n.mu.Lock()
		events, more := n.events[from:], n.more
		n.mu.Unlock()
		for _, e := range events {
			if e.Client == client && slices.Contains(kinds, e.Kind) {
				return e, nil
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return node.Event{}, fmt.Errorf("none of %v of %v among %v: %w", kinds, client, events, ctx.Err())
		}
	}
}

// Do gives the machine an input and waits for an event that follows.
func (n *Node) Do(ctx context.Context, in node.Input, client netip.Addr, kind node.Kind) error {
	from := n.Events()
	n.Step(in)
	_, err := n.WaitFor(ctx, from, client, kind)
	return err
}

// serve answers what [Transfer] asks.
func (n *Node) serve() error {
	l, err := n.Stack.Listen("tcp", netip.AddrPortFrom(n.cfg.Home.Addr(), Port).String())
	if err != nil {
		return err
	}
	go Serve(l)
	return nil
}

// Serve answers what [Transfer] asks, until the listener is closed.
func Serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = answer(c) // the client notices
		}()
	}
}

// unchecked, in how many octets are to come down, has zeros sent and whatever
// comes taken: it costs less.
const unchecked = 1 << 63

// answer sends as many octets as it is asked for, receives as many as it is told
// of, and then says whether they were right.
func answer(c net.Conn) error {
	var header [16]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return err
	}
	down, up := binary.BigEndian.Uint64(header[:]), binary.BigEndian.Uint64(header[8:])
	if down&unchecked != 0 {
		return errors.Join(pump(c, int64(down&^unchecked), int64(up)), sayYes(c))
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, &pattern.Reader{End: int64(down)})
		sent <- err
	}()
	var check pattern.Checker
	_, err := io.CopyN(&check, c, int64(up))
	if err = errors.Join(err, <-sent); err != nil {
		return err
	}
	verdict := byte('y')
	if check.Wrong > 0 {
		verdict = 'n'
	}
	_, err = c.Write([]byte{verdict})
	return err
}

// Transfer moves octets over a connection to a Node, both ways at the same time,
// and checks each.
func Transfer(c net.Conn, down, up int64) error {
	var header [16]byte
	binary.BigEndian.PutUint64(header[:], uint64(down))
	binary.BigEndian.PutUint64(header[8:], uint64(up))
	if _, err := c.Write(header[:]); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, &pattern.Reader{End: up})
		sent <- err
	}()
	var check pattern.Checker
	_, err := io.CopyN(&check, c, down)
	if err = errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("after %d of %d octets: %w", check.Offset, down, err)
	}
	var verdict [1]byte
	if _, err := io.ReadFull(c, verdict[:]); err != nil {
		return err
	}
	if check.Wrong > 0 || verdict[0] != 'y' {
		return fmt.Errorf("%d octets were wrong; the server says %q", check.Wrong, verdict)
	}
	return nil
}

// Pump moves octets like [Transfer], but looks at none.
func Pump(c net.Conn, down, up int64) error {
	header := binary.BigEndian.AppendUint64(nil, unchecked|uint64(down))
	if _, err := c.Write(binary.BigEndian.AppendUint64(header, uint64(up))); err != nil {
		return err
	}
	if err := pump(c, up, down); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// pump sends and receives, in pieces of 256 KiB.
func pump(c net.Conn, send, receive int64) error {
	sent := make(chan error, 1)
	go func() {
		var err error
		for b := make([]byte, 256<<10); send > 0 && err == nil; {
			var n int
			n, err = c.Write(b[:min(int64(len(b)), send)])
			send -= int64(n)
		}
		sent <- err
	}()
	var err error
	for b := make([]byte, 256<<10); receive > 0 && err == nil; {
		var n int
		n, err = c.Read(b[:min(int64(len(b)), receive)])
		receive -= int64(n)
	}
	return errors.Join(err, <-sent)
}

func sayYes(c net.Conn) error {
	_, err := c.Write([]byte{'y'})
	return err
}

// Close ends the node without a word to anyone.
func (n *Node) Close() error {
	n.mu.Lock()
	n.ended = true
	n.timer.Stop()
	n.mu.Unlock()
	if n.Stack != nil {
		return n.Stack.Close()
	}
	return errors.Join(n.listener.Close(), n.dev.Close())
}
