package dstest

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/stack"
)

// Client is a host outside of the server's network.
type Client struct {
	addr    netip.Addr
	cluster *Cluster
	stack   *stack.Stack
	port    *lab.Port

	mu      sync.Mutex
	machine *correspondent.Correspondent // nil: it does not speak Mobile IPv6
	timer   *time.Timer                  // of the machine
}

// Client returns the host with an address. It is made when it is first asked
// for.
func (c *Cluster) Client(addr netip.Addr) *Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.clients[addr]; cl != nil {
		return cl
	}
	cl := &Client{addr: addr, cluster: c, port: c.net.Attach("client "+addr.String(), mtu+wire.HomeAddressLen)}
	cfg := stack.Config{Device: clientDevice{cl.port, cl}, Addrs: []netip.Addr{addr}}
	var err error
	if c.Optimise {
		cl.machine, err = correspondent.New(correspondent.Config{
			Local: func(a netip.Addr) bool { return a == addr },
			Rand:  rand.Reader,
		})
		if err != nil {
			panic("dstest: client " + addr.String() + ": " + err.Error())
		}
		cl.timer = time.AfterFunc(time.Hour, func() { cl.step(correspondent.Tick{}) })
	}
	cl.port.Handle(cl.receive)
	if cl.stack, err = stack.New(cfg); err != nil {
		panic("dstest: client " + addr.String() + ": " + err.Error()) // not an address for a host
	}
	c.net.Route(netip.PrefixFrom(addr, addr.BitLen()), cl.port)
	c.clients[addr] = cl
	return cl
}

// Dial connects to an address, such as [Cluster.Address].
func (c *Client) Dial(ctx context.Context, address string) (net.Conn, error) {
	return c.stack.DialContext(ctx, "tcp", address)
}

// Listen accepts connections, from nodes that dial.
func (c *Client) Listen(address string) (net.Listener, error) { return c.stack.Listen("tcp", address) }

// SetDown makes the host vanish from the network, without a word, or come back.
func (c *Client) SetDown(down bool) { c.port.SetDown(down) }

// receive takes what comes. A host without Mobile IPv6 answers to it as Linux does.
func (c *Client) receive(b []byte) {
	switch {
	case c.machine != nil:
		c.step(correspondent.Received{Packet: b})
	case len(b) > wire.HeaderLen && wire.Protocol(b[6]) == wire.Mobility:
		const nextHeaderAt, unrecognised = 6, 1 // RFC 4443 section 3.4
		if p, ok := wire.AppendError(nil, c.addr, wire.ParameterProblem, unrecognised, nextHeaderAt, b, false); ok {
			c.port.Write(p)
		}
	default:
		c.port.Deliver(b)
	}
}

func (c *Client) step(in correspondent.Input) {
	c.mu.Lock()
	now := c.cluster.now()
	out := c.machine.Step(now, in)
	send, deliver := copies(out.Send), copies(out.Deliver)
	bound := len(out.Changes) > 0
	if at, ok := c.machine.NextDeadline(); ok {
		c.timer.Reset(max(0, at-now) / speed)
	}
	c.mu.Unlock()
	for _, p := range send {
		c.port.Write(p)
	}
	for _, p := range deliver {
		c.port.Deliver(p)
	}
	if bound {
		c.cluster.happened()
	}
}

// bound is the care-of address that the client's packets go to.
func (c *Client) bound() netip.Addr {
	if c.machine == nil {
		return netip.Addr{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	careOf, _ := c.machine.Lookup(c.addr, Server)
	return careOf
}

func (c *Client) stop() {
	if c.timer != nil {
		c.timer.Stop()
	}
}

// clientDevice is the client's link.
type clientDevice struct {
	*lab.Port
	client *Client
}

// Write sends by the binding, if there is one.
func (d clientDevice) Write(b []byte) (int, error) {
	d.client.cluster.seen.fromClient(b)
	if d.client.machine == nil {
		return d.Port.Write(b)
	}
	d.client.step(correspondent.Transmit{Packet: b})
	return len(b), nil
}

// MTU implements tun.Device.
func (d clientDevice) MTU() int { return mtu }
