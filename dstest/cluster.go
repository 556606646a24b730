package dstest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/mobility/wire"
)

const mtu = 1500

// Addresses of the cluster. Clients may have any other.
var (
	Server    = netip.MustParseAddr("2001:db8:d::1") // the distributed server address
	homeAgent = netip.MustParseAddr("2001:db8:d::ff")
	daemons   = netip.MustParseAddr("2001:db8:c::")   // those of the daemons come behind it
	careOf    = netip.MustParseAddr("2001:db8:c:1::") // and care-of addresses
)

// speed is by how much the clock of daemons, home agent and clients' bindings is
// faster than others: RFC 6275 has a node bind a client three times a second at
// most, and tests are not that patient. What is waited for takes its time all the
// same: timeouts of the daemons are longer by as much.
const speed = 100

// Cluster is a distributed server. Make one with [New].
type Cluster struct {
	// Optimise says that clients know Mobile IPv6: once a node has a client, its
	// packets go straight. Otherwise they are relayed.
	Optimise bool

	// Intercept, if not nil, sees each message of a session before it is delivered:
	// one of the application of a node, or for it. If it returns an error the
	// daemon ends in place of the delivery, and is started again. It may change the
	// message. The first message each way, which attaches, is not shown.
	Intercept func(node string, m *api.Message) error

	// Between, if not nil, sees the kind of each message between the daemons of two
	// nodes before it is sent. If it returns [ErrLost] their connection breaks, and
	// the message is lost; with another error the sender's daemon ends before it
	// sends, and is started again. These fields are set before the first Node.
	Between func(from, to, kind string) error

	net   *lab.Net
	agent *agent
	seen  watch
	begin time.Time
	used  atomic.Bool // there is a Node: the fields above do not change any more

	mu       sync.Mutex
	daemons  map[string]*daemon
	links    map[[2]string]*link
	changed  chan struct{} // closed when somebody waits and something has happened
	waiting  bool
	clients  map[netip.Addr]*Client
	commands map[uint64]chan member.Answer
	lastID   uint64
	closed   bool
}

// New returns a cluster with nodes of these names. New clients come to the first,
// which is the contact.
func New(names ...string) *Cluster {
	c := &Cluster{
		net:      lab.New(1, nil),
		begin:    time.Now(),
		daemons:  make(map[string]*daemon),
		links:    make(map[[2]string]*link),
		changed:  make(chan struct{}),
		clients:  make(map[netip.Addr]*Client),
		commands: make(map[uint64]chan member.Answer),
	}
	c.seen.init()
	c.agent = newAgent(c)
	addrs := make(map[string]member.Addrs)
	a := member.Addrs{Daemon: daemons, CareOf: careOf}
	for _, name := range names {
		a.Daemon, a.CareOf = a.Daemon.Next(), a.CareOf.Next()
		addrs[name] = a
	}
	for _, name := range names {
		c.daemons[name] = newDaemon(c, name, names[0], addrs)
	}
	for i, name := range names {
		for _, other := range names[:i] {
			c.links[pair(name, other)] = new(link)
		}
	}
	c.mu.Lock()
	for _, name := range names {
		c.bootLocked(c.daemons[name])
	}
	c.mu.Unlock()
	c.await(context.Background(), func() bool { return c.daemons[names[0]].registered() })
	return c
}

// now is the time of the daemons, home agent and clients.
func (c *Cluster) now() time.Duration { return time.Second + speed*time.Since(c.begin) }

// Close ends the clients and the network. Nodes are closed before.
func (c *Cluster) Close() {
	c.mu.Lock()
	c.closed = true
	clients := slices.Collect(maps.Values(c.clients))
	var running []*process
	for _, d := range c.daemons {
		running = append(running, d.process)
		c.killLocked(d)
	}
	c.mu.Unlock()
	for _, p := range running {
		if p != nil {
			<-p.ended
		}
	}
	for _, cl := range clients {
		cl.stack.Close()
		cl.stop()
	}
	c.agent.stop()
	c.net.Close()
}

// Address is the server's with a port, to be dialled.
func (c *Cluster) Address(port uint16) string { return netip.AddrPortFrom(Server, port).String() }

// Node returns a new Node that will attach to the daemon of this name. One that
// was attached before is replaced, as if its process had ended.
func (c *Cluster) Node(name string) *ds.Node {
	c.used.Store(true)
	a := &application{daemon: c.daemons[name]}
	return &ds.Node{Program: "test", Attach: func(_ context.Context, hello *api.Message) (*ds.Attachment, error) {
		return a.attach(hello)
	}}
}

// First makes a node the contact, and so the one that new clients come to.
func (c *Cluster) First(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.TakeOver(ctx, name); err != nil {
		panic(fmt.Sprintf("dstest: %s does not become the contact: %v", name, err))
	}
}

// TakeOver does so, too, while daemons end. With an error the node may be the contact
// all the same.
func (c *Cluster) TakeOver(ctx context.Context, name string) error {
	a, err := c.command(ctx, name, func(id uint64) member.Input { return member.Takeover{ID: id, To: name, Force: true} })
	return errors.Join(err, a.Err)
}

// Contact is the node that all daemons take for the contact, and that is registered at the
// home agent: "" as long as there is none.
func (c *Cluster) Contact() (name string) {
	for _, d := range c.daemons {
		is, registered := "", false
		d.ask(func(m *member.Member) {
			var contact member.Contact
			contact, registered = m.Contact()
			is = contact.Name
		})
		if is == "" || name != "" && is != name || is == d.name && !registered {
			return ""
		}
		name = is
	}
	return name
}

// Owner is the node that has a client's connections as far as the daemons know, ""
// if none has: because there are none, or because they are on their way.
func (c *Cluster) Owner(client netip.Addr) string {
	for name, d := range c.daemons {
		if d.serves(client) {
			return name
		}
	}
	return ""
}

// AwaitOwner waits until a node has a client, or with "" until none has.
func (c *Cluster) AwaitOwner(ctx context.Context, client netip.Addr, node string) error {
	if err := c.await(ctx, func() bool { return c.Owner(client) == node }); err != nil {
		return fmt.Errorf("dstest: %s is owned by %q, not %q: %w", client, c.Owner(client), node, err)
	}
	return nil
}

// AwaitBound waits until a client's packets go straight to a node.
func (c *Cluster) AwaitBound(ctx context.Context, client netip.Addr, node string) error {
	d := c.daemons[node]
	cl := c.Client(client)
	err := c.await(ctx, func() bool { return cl.bound() == d.self.CareOf && d.bound(client) })
	if err != nil {
		return fmt.Errorf("dstest: the packets of %s do not go to %s: %w", client, node, err)
	}
	return nil
}

// await waits until something is true that changes when a daemon has done
// something.
func (c *Cluster) await(ctx context.Context, what func() bool) error {
	for {
		c.mu.Lock()
		c.waiting = true
		changed := c.changed
		c.mu.Unlock()
		if what() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// happened wakes those who wait.
func (c *Cluster) happened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting {
		c.waiting = false
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// Restart ends a node's daemon, as kill -9 would, and starts it again with what it
// has recorded. Its application attaches again.
func (c *Cluster) Restart(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restartLocked(c.daemons[name])
}

// End ends a node's application, as kill -9 would, and with it, if told so, its daemon,
// which is started again. The next [Cluster.Node] attaches in place of it.
func (c *Cluster) End(name string, daemon bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.daemons[name]
	if a := d.app; a != nil {
		d.app = nil
		d.closeTUN()
		c.seen.ended(a, true)
		if daemon {
			c.killLocked(d) // before it can find out
		}
		if a.session != nil {
			a.session.endLocked()
		} else if d.process != nil {
			d.process.put(item{in: member.AppGone{Lost: true}})
		}
	}
	if daemon {
		c.restartLocked(d)
	}
}

// SetDown ends a node's daemon, or starts it again.
func (c *Cluster) SetDown(name string, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.daemons[name]
	switch {
	case down:
		c.killLocked(d)
	case d.process == nil:
		c.bootLocked(d)
	}
}

// SetApart breaks the connection between the daemons of two nodes, or lets them
// have one again.
func (c *Cluster) SetApart(a, b string, apart bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.links[pair(a, b)]
	l.apart = apart
	c.breakLocked(a, b)
	c.joinLocked(a, b)
}

// Ask has a node's application hand a client off, as an operator would, and
// waits for its answer.
func (c *Cluster) Ask(ctx context.Context, client netip.Addr, from, to string) (*api.Message, error) {
	a, err := c.command(ctx, from, func(id uint64) member.Input { return member.HandOff{ID: id, Client: client, To: to} })
	if err != nil {
		return nil, err
	}
	m := &api.Message{Kind: api.Answered, Client: client, To: to, Optimised: a.Optimised, Connections: a.Connections}
	if a.Err != nil {
		m.Error = a.Err.Error()
	}
	return m, nil
}

// command gives a daemon an input that it answers.
func (c *Cluster) command(ctx context.Context, node string, input func(id uint64) member.Input) (member.Answer, error) {
	answer := make(chan member.Answer, 1)
	c.mu.Lock()
	c.lastID++
	id := c.lastID
	c.commands[id] = answer
	p := c.daemons[node].process
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.commands, id)
	}()
	if p == nil {
		return member.Answer{}, fmt.Errorf("dstest: the daemon of %s is down", node)
	}
	p.put(item{in: input(id)})
	select {
	case a := <-answer:
		return a, nil
	case <-p.ended:
		return member.Answer{}, fmt.Errorf("dstest: the daemon of %s has ended", node)
	case <-ctx.Done():
		return member.Answer{}, ctx.Err()
	}
}

func (c *Cluster) answered(a member.Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer := c.commands[a.ID]; answer != nil {
		delete(c.commands, a.ID)
		answer <- a
	}
}

// Faults are the packets that should not have been: to a client from a node that
// may not send to it, resets, and such as repeat a part of a stream with other
// octets.
func (c *Cluster) Faults() []string { return c.seen.list() }

// Lost tells whether a connection of one of the clients may have ended with an
// application that was replaced: that it had, or that it had given away without its
// being known who has it. One that lives on at another node is not lost any more.
func (c *Cluster) Lost(conn net.Conn) bool {
	local, remote := conn.LocalAddr().(*net.TCPAddr), conn.RemoteAddr().(*net.TCPAddr)
	return c.seen.lost(local.AddrPort(), uint16(remote.Port))
}

// Settled tells whether no handoff is under way, as far as the daemons know: nor
// has been decided without the donor's knowing of it. Otherwise it says what is
// not settled.
func (c *Cluster) Settled() error {
	for _, name := range slices.Sorted(maps.Keys(c.daemons)) {
		if n := c.daemons[name].unsettled(); n != 0 {
			return fmt.Errorf("dstest: the daemon of %s has %d handoffs that are not settled", name, n)
		}
	}
	return nil
}

// key is what nodes and home agent share.
var key = wire.SharedKey("a secret of the cluster alone")

const spi = 256
