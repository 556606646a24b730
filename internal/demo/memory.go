package demo

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/stack"
)

// runMemory runs client and nodes in this process.
func runMemory(ctx context.Context, o *Options) (*Result, error) {
	clientAddr, service := o.addrs()
	net1 := lab.New(1, nil)
	defer net1.Close()
	var resets atomic.Int64
	defer net1.Tap(func(e lab.Event) {
		if isReset(e.Packet) {
			resets.Add(1)
		}
	})()

	attach := func(name string, a netip.Addr, buffer int) (*lab.Port, *stack.Stack, error) {
		p := net1.Attach(name, 1500)
		s, err := stack.New(stack.Config{Device: p, Addrs: []netip.Addr{a}, MaxBuffer: buffer})
		return p, s, err
	}
	to := func(a netip.Addr, p *lab.Port) { net1.Route(netip.PrefixFrom(a, a.BitLen()), p) }

	var nodes [2]*node
	var ports [2]*lab.Port
	var controls [2]io.ReadWriteCloser
	peers := [2]io.ReadWriteCloser{}
	peers[0], peers[1] = net.Pipe()
	for i := range nodes {
		p, s, err := attach(string(rune('a'+i)), service, maxBuffer)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		ours, theirs := net.Pipe()
		ports[i], controls[i] = p, ours
		nodes[i] = &node{stack: s, service: newService(), control: theirs, peer: peers[i]}
	}
	for i, n := range nodes {
		n.wire = wire{
			leave:   func() error { return nil }, // the filter keeps the packets, and then forwards them
			enter:   func() error { to(service, ports[i]); return nil },
			forward: nodes[1-i].stack.Inject,
			grace:   time.Minute,
		}
	}
	to(service, ports[0])
	p, s, err := attach("client", clientAddr, 0)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	to(clientAddr, p)

	var wg sync.WaitGroup
	defer wg.Wait() // the nodes end with their connections
	defer func() {
		for i := range nodes {
			controls[i].Close()
			peers[i].Close()
		}
	}()
	for i, n := range nodes {
		wg.Go(func() { n.serve(netip.AddrPortFrom(service, servicePort), i == 0) }) // errors go to control
	}
	c := &client{
		o: o, base: url(service),
		controls: [2]io.ReadWriter{controls[0], controls[1]},
		resets:   func() int { return int(resets.Load()) },
		dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := s.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
	}
	return c.run(ctx)
}

// isReset tells whether an IP packet without extensions is a TCP segment with
// RST.
func isReset(p []byte) bool {
	const tcp, rst, flags = 6, 1 << 2, 13
	switch {
	case len(p) > 40+flags && p[0]>>4 == 6 && p[6] == tcp:
		p = p[40:]
	case len(p) > 20+flags && p[0]>>4 == 4 && p[9] == tcp && len(p) > int(p[0]&0xf)*4+flags:
		p = p[int(p[0]&0xf)*4:]
	default:
		return false
	}
	return p[flags]&rst != 0
}
