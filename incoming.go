package ds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// maxArrivals is how many clients wait for Accept before more are refused.
const maxArrivals = 4096

// Incoming is a client that another node has handed off to this one. It is
// served here now.
type Incoming struct {
	Client netip.Addr
	From   string // the node

	// Conns are its connections, each a [Conn], in no particular order, State what the
	// application there had to say of each; nil if nothing. Connections that it
	// had not accepted yet are not among them: they come to a listener.
	Conns []net.Conn
	State [][]byte
}

// HandoffListener accepts clients that other nodes hand off to this one.
type HandoffListener struct {
	node *Node

	mu     sync.Mutex
	more   sync.Cond // arrived or closed has changed
	closed bool
	ready  []*Incoming
}

// ListenHandoff makes this node one that clients may be handed off to, and
// accepts them. There can be one HandoffListener at a time.
//
// Connections that no application had accepted yet need a listener of their
// port, or the client is refused.
func (n *Node) ListenHandoff() (*HandoffListener, error) {
	if err := migrate.Check(); err != nil {
		return nil, fmt.Errorf("ds: listen for handoffs: %w", err)
	}
	l := &HandoffListener{node: n}
	l.more.L = &l.mu
	n.mu.Lock()
	if n.arrivals != nil {
		n.mu.Unlock()
		return nil, errors.New("ds: listen for handoffs: there is a HandoffListener; close it first")
	}
	n.arrivals = l
	n.mu.Unlock()
	if _, err := n.start(context.Background()); err != nil {
		l.Close()
		return nil, err
	}
	n.announce()
	return l, nil
}

// announce tells the daemon whether handoffs are accepted, if that has changed
// since it was told last.
func (n *Node) announce() {
	n.announcing.Lock() // so that the last word is the latest
	defer n.announcing.Unlock()
	n.mu.Lock()
	session, accepts := n.session, n.arrivals != nil
	changed := accepts != n.announced
	n.announced = accepts
	n.mu.Unlock()
	if session != nil && changed {
		session.Send(&api.Message{Kind: api.Hello, Program: n.program(), AcceptsHandoffs: accepts, HasTUN: true})
	}
}

// Accept waits for the next client.
func (l *HandoffListener) Accept() (*Incoming, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.ready) == 0 && !l.closed {
		l.more.Wait()
	}
	if l.closed {
		return nil, fmt.Errorf("ds: accept: %w", net.ErrClosed)
	}
	in := l.ready[0]
	l.ready[0] = nil
	l.ready = l.ready[1:]
	return in, nil
}

// Close ends it. Clients that nobody has accepted are reset, as those of a
// [net.Listener] are.
func (l *HandoffListener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return fmt.Errorf("ds: close: %w", net.ErrClosed)
	}
	l.closed = true
	ready := l.ready
	l.ready = nil
	l.more.Broadcast()
	l.mu.Unlock()
	l.node.mu.Lock()
	if l.node.arrivals == l {
		l.node.arrivals = nil
	}
	l.node.mu.Unlock()
	l.node.announce()
	for _, in := range ready {
		in.reset()
	}
	return nil
}

// takes tells whether one more client may come, or why not.
func (l *HandoffListener) takes() error {
	if l == nil {
		return errors.New("the application accepts no handoffs")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return errors.New("the application accepts no handoffs any more")
	case len(l.ready) >= maxArrivals:
		return errors.New("the application is slow to accept handoffs")
	}
	return nil
}

// deliver gives a client to Accept.
func (l *HandoffListener) deliver(in *Incoming) {
	if len(in.Conns) == 0 {
		return // all closed, or for the listeners
	}
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.ready = append(l.ready, in)
		l.more.Signal()
	}
	l.mu.Unlock()
	if closed {
		in.reset()
	}
}

func (in *Incoming) reset() {
	for _, c := range in.Conns {
		if c, ok := c.(interface{ SetLinger(sec int) error }); ok {
			c.SetLinger(0)
		}
		c.Close()
	}
}

// arrival is a handoff seen from the target, until it is decided.
type arrival struct {
	client netip.Addr
	from   string
	careOf netip.Addr // of from
	target *migrate.Target
	to     *HandoffListener
	expire *time.Timer // once stranded

	// As of the offer.
	offered bool
	word    int
	states  [][]byte
	err     error // why its connections could not be rebuilt
}

// strandTime is how long an arrival is kept whose daemon was lost.
const strandTime = 30 * time.Second

// strandTimeLeft is how long it is kept when the daemon is back, which tells the donor as
// soon as that asks. By then the client may have gone from there, and begin anew here.
var strandTimeLeft = 5 * time.Second // for tests

// strandLocked keeps an arrival whose daemon was lost. No word to activate it has
// come, and none will; but there may have been one, so that the client's packets
// come here until its donor has it back. To hold them for a while is better than
// to send them there: the donor may not have been told, and would hold them too.
func (n *Node) strandLocked(a *arrival) {
	n.missLocked(a)
	n.stranded[a.client] = a
	a.expire = time.AfterFunc(strandTime, func() { n.unstrand(a.client) })
}

// unstrand drops a stranded arrival, if there is one.
func (n *Node) unstrand(client netip.Addr) {
	n.mu.Lock()
	a := n.stranded[client]
	delete(n.stranded, client)
	n.mu.Unlock()
	if a != nil {
		a.expire.Stop()
		n.drop(a)
	}
}

// expect lets a client come that another node is about to hand off: from now on what it
// sends is held. It returns the answer.
func (n *Node) expect(m *api.Message) *api.Message {
	reply := &api.Message{Kind: api.Expected, ID: m.ID, Client: m.Client}
	a, err := n.arrival(m)
	if err != nil {
		reply.Error = err.Error()
		return reply
	}
	n.mu.Lock()
	n.arriving[m.ID] = a
	n.mu.Unlock()
	return reply
}

func (n *Node) arrival(m *api.Message) (*arrival, error) {
	n.mu.Lock()
	l, doubtful, twice := n.arrivals, n.doubtful[m.Client], n.arriving[m.ID] != nil
	n.mu.Unlock()
	if err := l.takes(); err != nil {
		return nil, err
	}
	if twice {
		return nil, fmt.Errorf("handoff %d was announced before", m.ID)
	}
	if doubtful != nil {
		// That somebody can hand the client off is the answer to our Transfer: it
		// had left.
		n.answered(&api.Message{Kind: api.Done, ID: doubtful.id})
	}
	n.unstrand(m.Client) // it is elsewhere, or could not be handed off
	here, ok := n.clients.claim(m.Client)
	var err error
	switch {
	case !ok:
		return nil, ErrBusy
	case here:
		err = errors.New("the client has connections here")
	default:
		a := &arrival{client: m.Client, from: m.From, careOf: m.CareOf, to: l}
		if a.target, err = migrate.Expect(n.stack, m.Client); err == nil {
			return a, nil
		}
	}
	n.clients.settle(m.Client, unchanged)
	return nil, err
}

// offered rebuilds the connections of a client that is expected, silent. Whether it
// could the answer to Activate tells, which comes at once.
func (n *Node) offered(m *api.Message) {
	n.mu.Lock()
	a := n.arriving[m.ID]
	n.mu.Unlock()
	if a == nil {
		return
	}
	a.offered, a.word, a.states = true, m.Word, m.State
	if a.err = a.to.takes(); a.err == nil {
		a.err = a.build(m.Snapshot)
	}
}

func (a *arrival) build(snapshot []byte) error {
	if err := a.target.Import(snapshot); err != nil {
		return err
	}
	if len(a.states) != 0 && len(a.states) != a.target.Len() {
		return fmt.Errorf("the state of %d connections, and a snapshot of %d", len(a.states), a.target.Len())
	}
	return nil
}

// activate makes an arrival this application's, if it can and the daemon has not
// overruled that. It returns the answer.
func (n *Node) activate(m *api.Message) *api.Message {
	reply := &api.Message{Kind: api.Activated, ID: m.ID, Client: m.Client}
	n.mu.Lock()
	a, decisions := n.arriving[m.ID], n.decisions
	n.mu.Unlock()
	switch {
	case a == nil || !a.offered:
		reply.Error = "there is no such handoff"
	case a.err != nil:
		reply.Error = a.err.Error()
	case !decisions.Take(a.word, m.ID):
		reply.Error = "the daemon has withdrawn it"
	}
	if reply.Error != "" {
		n.forget(m.ID)
		return reply
	}
	n.take(m.ID, false)
	if m.Optimised {
		n.stack.Bind(a.client) // first: what is sent goes out by the binding
	}
	delete(n.away, a.client) // it is answered here now
	conns, err := a.target.Activate()
	in := &Incoming{Client: a.client, From: a.from}
	for i, c := range conns {
		if c == nil {
			continue
		}
		in.Conns = append(in.Conns, Conn{c, n})
		var state []byte
		if len(a.states) != 0 {
			state = a.states[i]
		}
		in.State = append(in.State, state)
	}
	n.clients.settle(a.client, ours)
	if err != nil { // the stack is closed, or some connections are lost
		n.logger().Error("ds: handed off to this node, and lost", "client", a.client, "from", a.from, "error", err)
		in.reset()
		return reply
	}
	a.to.deliver(in)
	return reply
}

// late takes packets of a client that have come to the node that it comes from.
func (n *Node) late(m *api.Message) {
	n.mu.Lock()
	refused := m.ID != 0 && n.arriving[m.ID] == nil
	n.mu.Unlock()
	if refused {
		return // the client goes on there
	}
	for _, p := range m.Packets {
		if t, ok := stack.InboundTuple(p); ok && t.Remote.Addr() == m.Client {
			n.stack.Inject(p)
		}
	}
}

// forget drops an arrival that came to nothing.
func (n *Node) forget(id uint64) {
	if a := n.take(id, true); a != nil {
		n.drop(a)
	}
}

// take takes a handoff out of those that are to be decided. It notes whether it was
// missed.
func (n *Node) take(id uint64, missed bool) *arrival {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.arriving[id]
	delete(n.arriving, id)
	switch {
	case a == nil:
	case missed:
		n.missLocked(a)
	default: // one before counts no more: its donor has had the client again
		n.missed = slices.DeleteFunc(n.missed, func(o api.Missed) bool { return o == a.key() })
	}
	return a
}

// missLocked remembers an arrival that is not activated, for a daemon that cannot know.
func (n *Node) missLocked(a *arrival) {
	if n.missed = append(n.missed, a.key()); len(n.missed) > api.MaxMissed {
		n.missed = slices.Delete(n.missed, 0, 1)
	}
}

func (a *arrival) key() api.Missed { return api.Missed{Client: a.client, From: a.from} }

// drop ends an arrival whose client is its donor's. Once it was offered the client may
// have heard of this node: what it sends here is sent on. So it may when it is stranded,
// for the offer may have been lost with the daemon.
func (n *Node) drop(a *arrival) {
	defer n.clients.settle(a.client, unchanged)
	stranded := a.expire != nil
	if !a.offered && !stranded {
		a.target.Discard()
		return
	}
	forward := func(p []byte) { n.stack.Tunnel(a.careOf, p) }
	late, err := a.target.Return(forward, grace)
	if err != nil { // nobody else ends it
		n.logger().Error("ds: a client goes back", "client", a.client, "error", err)
	}
	n.answerNew(n.stack, a.client)
	if stranded {
		return // late is old, and what it would begin begins anew
	}
	for _, p := range late {
		forward(p)
	}
}
