package dstest

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

const mtu = 1500

// Addresses of the cluster. Clients may have any other.
var (
	Server  = netip.MustParseAddr("2001:db8:d::1") // the distributed server address
	contact = netip.MustParseAddr("2001:db8:c::1")
	careOf  = netip.MustParsePrefix("2001:db8:c:1::/64")
)

// Cluster is a distributed server. Make one with [New].
type Cluster struct {
	// Optimise says that clients know Mobile IPv6: once a node has a client, its
	// packets go straight. Otherwise they are relayed.
	Optimise bool

	// Intercept, if not nil, sees each message before it is delivered: one of
	// the application of a node, or for it. If it returns an error, the session
	// ends in place of the delivery. It may change the message. Both fields are
	// set before the first Node.
	Intercept func(node string, m *api.Message) error

	net  *lab.Net
	port *lab.Port // of the contact
	seen watch

	mu       sync.Mutex
	daemons  map[string]*daemon
	first    string // the node that new clients come to
	owners   map[netip.Addr]string
	changed  chan struct{} // closed when owners changes
	clients  map[netip.Addr]*Client
	handoffs map[uint64]*handoff
	ends     map[end]uint32 // sequence numbers behind a FIN
	lastID   uint64
}

// New returns a cluster with nodes of these names. New clients come to the first.
func New(names ...string) *Cluster {
	c := &Cluster{
		net:      lab.New(1, nil),
		daemons:  make(map[string]*daemon),
		first:    names[0],
		owners:   make(map[netip.Addr]string),
		changed:  make(chan struct{}),
		clients:  make(map[netip.Addr]*Client),
		handoffs: make(map[uint64]*handoff),
		ends:     make(map[end]uint32),
	}
	c.port = c.net.Attach("contact", mtu)
	c.port.Handle(c.relay)
	for _, a := range []netip.Addr{Server, contact} {
		c.net.Route(netip.PrefixFrom(a, a.BitLen()), c.port)
	}
	addr := careOf.Addr()
	for _, name := range names {
		addr = addr.Next()
		d := &daemon{cluster: c, name: name, careOf: addr, port: c.net.Attach(name, mtu)}
		c.net.Route(netip.PrefixFrom(addr, addr.BitLen()), d.port)
		c.daemons[name] = d
	}
	return c
}

// Close ends the clients and the network. Nodes are closed before.
func (c *Cluster) Close() {
	c.mu.Lock()
	clients := slices.Collect(maps.Values(c.clients))
	c.mu.Unlock()
	for _, cl := range clients {
		cl.stack.Close()
	}
	c.net.Close()
}

// Address is the server's with a port, to be dialled.
func (c *Cluster) Address(port uint16) string { return netip.AddrPortFrom(Server, port).String() }

// Node returns a new Node that will attach to the daemon of this name. One that
// was attached before is replaced, as if its process had ended.
func (c *Cluster) Node(name string) *ds.Node {
	d := c.daemons[name]
	return &ds.Node{Program: "test", Attach: func(_ context.Context, hello *api.Message) (*ds.Attachment, error) {
		return d.attach(hello)
	}}
}

// First makes a node the one that new clients come to.
func (c *Cluster) First(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = name
}

// Owner is the node that has a client, "" if none.
func (c *Cluster) Owner(client netip.Addr) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owners[client]
}

// AwaitOwner waits until a node has a client, or with "" until none has.
func (c *Cluster) AwaitOwner(ctx context.Context, client netip.Addr, node string) error {
	for {
		c.mu.Lock()
		owner, changed := c.owners[client], c.changed
		c.mu.Unlock()
		if owner == node {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("dstest: %s is owned by %q, not %q: %w", client, owner, node, ctx.Err())
		}
	}
}

// own makes a node the owner of a client, "" nobody. mu is held.
func (c *Cluster) own(client netip.Addr, node string) {
	if node == "" {
		delete(c.owners, client)
	} else {
		c.owners[client] = node
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// Restart makes a daemon forget its session, as if it had been restarted.
func (c *Cluster) Restart(name string) { c.daemons[name].end() }

// SetDown makes a daemon refuse to be attached to, or accept again. Its session
// ends.
func (c *Cluster) SetDown(name string, down bool) {
	d := c.daemons[name]
	c.mu.Lock()
	d.down = down
	c.mu.Unlock()
	if down {
		d.end()
	}
}

// Ask has a node's application hand a client off, as an operator would, and
// waits for its answer.
func (c *Cluster) Ask(ctx context.Context, client netip.Addr, from, to string) (*api.Message, error) {
	d := c.daemons[from]
	answer := make(chan *api.Message, 1)
	c.mu.Lock()
	c.lastID++
	id := c.lastID
	if d.asked == nil {
		d.asked = make(map[uint64]chan<- *api.Message)
	}
	d.asked[id] = answer
	c.mu.Unlock()
	d.send(&api.Message{Kind: api.Asked, ID: id, Client: client, To: to})
	select {
	case m := <-answer:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// relay is the contact: clients' packets into the tunnel to their owner, and
// those of the nodes out of it.
func (c *Cluster) relay(b []byte) {
	p, err := wire.ParsePacket(b)
	if err != nil {
		return
	}
	if p.Protocol != wire.IPv6 || p.Dst != contact {
		c.mu.Lock()
		d := c.daemons[c.owners[p.Src]]
		if d == nil {
			d = c.daemons[c.first]
		}
		c.mu.Unlock()
		if out, err := wire.AppendTunnel(nil, contact, d.careOf, b); err == nil {
			c.port.Write(out)
		}
		return
	}
	inner, err := p.Inner()
	if err != nil {
		return
	}
	c.inspect(p.Src, inner)
	c.port.Write(inner)
}

// end is a client's end of a stream from a node.
type end struct {
	client netip.Addr
	port   uint16
}

// inspect looks at a packet that a node sends to a client. Once a node has sent a
// FIN, it has nothing left of the connection when that is acknowledged, and answers
// with a reset what the client had sent before: one that has a sequence number up
// to the FIN's, all of which the client has got. That is no fault.
func (c *Cluster) inspect(from netip.Addr, b []byte) {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10 // RFC 9293 section 3.1
	p, err := wire.ParsePacket(b)
	if err != nil || p.Protocol != wire.TCP || len(p.Payload) < 20 {
		return
	}
	client, t := p.Destination(), p.Payload
	flags, seq := t[13], binary.BigEndian.Uint32(t[4:])
	e := end{client, binary.BigEndian.Uint16(t[2:])}
	c.mu.Lock()
	owner := c.daemons[c.owners[client]]
	switch {
	case flags&syn != 0:
		delete(c.ends, e)
	case flags&fin != 0:
		c.ends[e] = seq + uint32(len(t)-int(t[12]>>4)*4) + 1
	}
	behind, over := c.ends[e]
	c.mu.Unlock()
	if owner != nil && owner.careOf != from {
		c.seen.fault(fmt.Sprintf("%s is owned by %s, and %s sends to it", client, owner.name, from))
	}
	if flags&rst != 0 && (flags&ack != 0 || !over || int32(seq-behind) > 0) {
		c.seen.fault(fmt.Sprintf("%s gets a reset from %s: to port %d, flags %#x, sequence number %d; ended %t, at %d",
			client, from, e.port, flags, seq, over, behind))
	}
}

// Faults are the packets that should not have been: to a client from a node that
// does not own it, or a reset.
func (c *Cluster) Faults() []string { return c.seen.list() }

type watch struct {
	mu    sync.Mutex
	found []string
}

func (w *watch) fault(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) < 100 {
		w.found = append(w.found, s)
	}
}

func (w *watch) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.found)
}

// device is a node's link. Closing it leaves the port for the next.
type device struct {
	tun.Device
	daemon *daemon
}

// Write looks at what goes straight to clients.
func (d device) Write(p []byte) (int, error) {
	if q, err := wire.ParsePacket(p); err == nil && q.Home == Server {
		d.daemon.cluster.inspect(q.Src, p)
	}
	return d.Device.Write(p)
}
