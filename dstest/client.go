package dstest

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/stack"
)

// Client is a host outside of the server's network.
type Client struct {
	addr  netip.Addr
	stack *stack.Stack
	dev   *mobileDevice
}

// Client returns the host with an address. It is made when it is first asked
// for.
func (c *Cluster) Client(addr netip.Addr) *Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl := c.clients[addr]; cl != nil {
		return cl
	}
	port := c.net.Attach("client "+addr.String(), mtu)
	cl := &Client{addr: addr, dev: &mobileDevice{Port: port}}
	var err error
	if cl.stack, err = stack.New(stack.Config{Device: cl.dev, Addrs: []netip.Addr{addr}}); err != nil {
		panic("dstest: client " + addr.String() + ": " + err.Error()) // not an address for a host
	}
	c.net.Route(netip.PrefixFrom(addr, addr.BitLen()), port)
	c.clients[addr] = cl
	return cl
}

// Dial connects to an address, such as [Cluster.Address].
func (c *Client) Dial(ctx context.Context, address string) (net.Conn, error) {
	return c.stack.DialContext(ctx, "tcp", address)
}

// Listen accepts connections, from nodes that dial.
func (c *Client) Listen(address string) (net.Listener, error) { return c.stack.Listen("tcp", address) }

// mobileDevice gives a client's stack a binding cache of one entry. Unlike a
// correspondent it believes whatever it is told.
type mobileDevice struct {
	*lab.Port
	careOf atomic.Pointer[netip.Addr] // nil: no binding
}

// bind is the Binding Update.
func (d *mobileDevice) bind(careOf netip.Addr) { d.careOf.Store(&careOf) }

// Read takes a Home Address option out (RFC 6275 section 9.3.1).
func (d *mobileDevice) Read(b []byte) (int, error) {
	n, err := d.Port.Read(b)
	if err != nil {
		return n, err
	}
	p, perr := wire.ParsePacket(b[:n])
	if perr != nil || !p.Home.IsValid() {
		return n, nil
	}
	if p.Home == Server {
		d.bind(p.Src)
	}
	p.Src, p.Home = p.Home, netip.Addr{}
	out, perr := p.Append(nil)
	if perr != nil {
		return n, nil
	}
	return copy(b, out), nil
}

// Write puts a type 2 routing header in (RFC 6275 section 9.3.2).
func (d *mobileDevice) Write(b []byte) (int, error) {
	careOf := d.careOf.Load()
	p, err := wire.ParsePacket(b)
	if err != nil || careOf == nil || p.Dst != Server {
		return d.Port.Write(b)
	}
	p.Dst, p.Routing = *careOf, Server
	out, err := p.Append(nil)
	if err != nil {
		return d.Port.Write(b)
	}
	return d.Port.Write(out)
}
