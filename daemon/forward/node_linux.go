package forward

import (
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Node forwards what comes to a node in tunnels.
type Node struct {
	t      *table
	daemon netip.Addr

	mu      sync.Mutex
	servers map[netip.Addr]*relayed
}

// relayed is a server, and what the kernel's sets have of it.
type relayed struct {
	index   int
	relays  bool // there are sets of members and owners
	members []netip.Addr
	owners  map[[16]byte][16]byte
	senders []netip.Addr // nil: there is no set of them
}

func (r *relayed) setMembers() string { return fmt.Sprintf("members-%d", r.index) }
func (r *relayed) mapOwners() string  { return fmt.Sprintf("owners-%d", r.index) }
func (r *relayed) setSenders() string { return fmt.Sprintf("senders-%d", r.index) }
func (r *relayed) counter() string    { return fmt.Sprintf("relayed-%d", r.index) }
func (r *relayed) counterIn() string  { return fmt.Sprintf("delivered-%d", r.index) }

// OpenNode begins to forward for servers whose clients are told by [Node.Change].
// It needs CAP_NET_ADMIN and nftables. For [Exit] there must be a route, if a
// server has senders.
func OpenNode(c NodeConfig) (*Node, error) {
	t, err := openTable(tableName(c.Queue))
	if err != nil {
		return nil, err
	}
	n := &Node{t: t, daemon: c.Daemon, servers: make(map[netip.Addr]*relayed)}
	err = t.commit(func(b *batch) {
		b.begin()
		b.tunnelsOnly(Exit(c.Queue))
		for i, s := range c.Servers {
			r := &relayed{index: i, relays: s.HomeAgent.IsValid(), owners: make(map[[16]byte][16]byte), senders: s.Senders}
			n.servers[s.Home] = r
			if r.relays {
				b.relay(r, c.Daemon, s)
			}
		}
		// The contact's own clients are relayed first, and then leave the tunnel.
		for _, s := range c.Servers {
			if s.Senders != nil {
				b.decapsulate(n.servers[s.Home], s, Exit(c.Queue))
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// relay has the rules of package mobility/relay for what the kernel may send on.
func (b *batch) relay(r *relayed, daemon netip.Addr, s Server) {
	home := s.Home.AsSlice()
	b.set(r.setMembers(), 16, 0)
	b.set(r.mapOwners(), 16, 16)
	b.counter(r.counter())
	here := is(destination, daemon.AsSlice()...)
	readdress := all(write(source, daemon.AsSlice()...), write(hopLimit, tunnelHops))
	b.rule(chain, all(here,
		is(source, s.HomeAgent.AsSlice()...),
		is(innerDest, home...),
		usual(innerSrcFirst),
		one(load(innerSource, reg1), find(r.mapOwners(), reg1, reg2)),
		hop(innerHop),
		one(store(reg2, destination)),
		readdress,
		one(count(r.counter())))...)
	if s.DirectReturn {
		return
	}
	b.rule(chain, all(here,
		one(load(source, reg1), in(r.setMembers(), reg1)),
		is(innerSource, home...),
		usual(innerDestFirst),
		isNot(innerDest, home...),
		hop(innerHop),
		write(destination, s.HomeAgent.AsSlice()...),
		readdress,
		one(count(r.counter())))...)
}

// decapsulate has the rule of the shim of package stack for what comes in a tunnel
// to the care-of address.
func (b *batch) decapsulate(r *relayed, s Server, exit netip.Addr) {
	b.set(r.setSenders(), 16, 0)
	b.insert(r.setSenders(), addresses(s.Senders)...)
	b.counter(r.counterIn())
	b.rule(chain, all(
		is(destination, s.CareOf.AsSlice()...),
		one(load(source, reg1), in(r.setSenders(), reg1)),
		is(innerDest, s.Home.AsSlice()...),
		usual(innerSrcFirst),
		isNot(innerSource, s.Home.AsSlice()...),
		isNot(innerSource, s.CareOf.AsSlice()...),
		one(load(innerHop, reg1), compare(unix.NFT_CMP_GT, reg1, []byte{1})), // the kernel takes one
		uncongested(),
		write(destination, exit.AsSlice()...),
		one(count(r.counterIn())))...)
}

func addresses(list []netip.Addr) (e []element) {
	seen := make(map[netip.Addr]bool)
	for _, a := range list {
		if a.IsValid() && !seen[a] {
			e = append(e, element{key: a.AsSlice()})
		}
		seen[a] = true
	}
	return e
}

// maxOwners is how many owners a batch has: it must fit a socket's queue.
const maxOwners = 1024

// Change makes a change for the server with a home address. It has taken effect
// when it returns, at one instant unless it is about more than 1024 clients. After an
// error the kernel forwards nothing any more, for good.
func (n *Node) Change(home netip.Addr, c Change) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.servers[home]
	if r == nil {
		return nil
	}
	err := n.t.commit(func(b *batch) {
		if c.Senders != nil && r.senders != nil {
			b.remove(r.setSenders(), addresses(r.senders)...)
			b.insert(r.setSenders(), addresses(c.Senders)...)
			r.senders = c.Senders
		}
		if !r.relays {
			c.Owners = nil
			return
		}
		if c.Reset {
			b.clear(r.setMembers())
			b.clear(r.mapOwners())
			r.members = nil
			clear(r.owners)
		}
		if c.Members != nil {
			b.remove(r.setMembers(), addresses(r.members)...)
			b.insert(r.setMembers(), addresses(c.Members)...)
			r.members = c.Members
		}
		c.Owners = r.some(b, c.Owners)
	})
	for err == nil && len(c.Owners) > 0 {
		err = n.t.commit(func(b *batch) { c.Owners = r.some(b, c.Owners) })
	}
	return err
}

// some changes the owners of some clients, and returns the rest.
func (r *relayed) some(b *batch, owners []Owner) (rest []Owner) {
	n := min(len(owners), maxOwners)
	for _, o := range owners[:n] {
		r.change(b, o)
	}
	return owners[n:]
}

func (r *relayed) change(b *batch, o Owner) {
	client := o.Client.As16()
	before, known := r.owners[client]
	var now [16]byte
	if o.CareOf.IsValid() {
		now = o.CareOf.As16()
	}
	if before == now { // neither, or the same
		return
	}
	if known {
		b.remove(r.mapOwners(), element{key: client[:]})
		delete(r.owners, client)
	}
	if o.CareOf.IsValid() {
		b.insert(r.mapOwners(), element{client[:], now[:]})
		r.owners[client] = now
	}
}

// Counts are of a server by its home address, since OpenNode: what the kernel has
// sent on in another tunnel, and what it has taken out of one, for the application.
func (n *Node) Counts(home netip.Addr) (relayed, delivered Count, err error) {
	n.mu.Lock()
	r := n.servers[home]
	ends := r != nil && r.senders != nil
	n.mu.Unlock()
	if r == nil {
		return relayed, delivered, nil
	}
	if r.relays {
		relayed, err = n.t.counted(r.counter())
	}
	if err == nil && ends {
		delivered, err = n.t.counted(r.counterIn())
	}
	return relayed, delivered, err
}

// Close ends it: all packets are the daemon's. A second call does nothing.
func (n *Node) Close() error { return n.t.close() }
