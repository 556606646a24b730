package migrate

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/distributed-servers/ds/migrate/internal/gvtcp"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// Target receives connections. Its methods may be called from several
// goroutines; once one of Activate, Discard and Return was called, all fail with
// [ErrOrder].
//
//	Expect ──► expecting ──Import──► imported ──Activate──► live
//	               │                     │
//	               └──Discard, Return────┴──► gone
//
// The function [Import] does both at once, for connections that nobody sends to before.
type Target struct {
	stack *stack.Stack

	mu     sync.Mutex
	done   bool
	client netip.Addr
	holds  []stack.Hold // those begun
	conns  []received   // those rebuilt
	out    []*stack.Conn
	first  [][]byte // what the donor had received but not looked at

	// Backing of these for one connection, which is what most clients have.
	oneHold [1]stack.Hold
	oneConn [1]received
	oneOut  [1]*stack.Conn
}

// name is a fmt.Stringer for messages.
type name string

func (n name) String() string { return string(n) }

// received is a connection being received.
type received struct {
	conn     *stack.Conn
	restored gvtcp.Restored
	orphan   bool
	listener *stack.Listener // where it waits to be accepted
}

// Expect holds what a client sends, from now on: its connections are to be imported, and
// it may hear of this node before they are.
//
// The error can be [ErrBusy] or [stack.ErrClosed].
func Expect(s *stack.Stack, client netip.Addr) (*Target, error) {
	t := &Target{stack: s, client: client}
	if s.Closed() {
		return nil, failed("expect", t, stack.ErrClosed)
	}
	t.holds = t.oneHold[:0]
	if err := t.hold(stack.Tuple{Remote: netip.AddrPortFrom(client, 0)}); err != nil {
		return nil, failed("expect", t, err)
	}
	return t, nil
}

// Import rebuilds the connections of a snapshot: silent, and out of reach of
// both their peers, whose packets are held from now on, and the application.
// It rebuilds all or none. It keeps no reference to snap.
//
// The error can be [ErrFormat], [ErrVersion], [ErrNoAddress], [ErrNoRoute],
// [ErrInUse], [ErrTooLarge], [ErrNoListener] or [ErrBusy].
func Import(s *stack.Stack, snap []byte) (*Target, error) {
	t := &Target{stack: s}
	if err := t.Import(snap); err != nil {
		return nil, err
	}
	return t, nil
}

// Import is [Import] for a client that is expected. After an error it still is. A
// snapshot of somebody else's connections is [ErrFormat].
func (t *Target) Import(snap []byte) error {
	if err := Check(); err != nil {
		return err
	}
	return t.importSnapshot(snap)
}

func (t *Target) importSnapshot(b []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.done || t.out != nil:
		return failed("import", t, fmt.Errorf("%w: it was imported or discarded before", ErrOrder))
	case t.stack.Closed():
		return failed("import", name("snapshot"), stack.ErrClosed)
	}
	snap := scratch.Get().(*snapshot.Snapshot)
	defer recycle(snap)
	if err := snap.Parse(b); err != nil {
		return failed("import", name("snapshot"), err)
	}
	expected := len(t.holds)
	switch {
	case expected == 0:
		t.client = snap.Client
	case snap.Client != t.client:
		return failed("import", t, fmt.Errorf("%w: of %s", ErrFormat, of(snap)))
	}
	t.conns, t.out = t.oneConn[:0], t.oneOut[:]
	if n := len(snap.Conns); n != 1 {
		t.conns = make([]received, 0, n)
		t.out = make([]*stack.Conn, n)
	}
	if expected == 0 {
		if t.holds = t.oneHold[:0]; len(snap.Conns) != 1 {
			t.holds = make([]stack.Hold, 0, max(len(snap.Conns), 1))
		}
	}
	if err := t.build(snap.Conns); err != nil {
		err = failed("import", t, err)
		t.discardConns()
		dropHolds(t.holds[expected:])
		t.holds, t.out = t.holds[:expected], nil
		return err
	}
	return nil
}

// of says whose connections a snapshot has.
func of(s *snapshot.Snapshot) string {
	if s.Client.IsValid() {
		return "client " + s.Client.String()
	}
	return fmt.Sprintf("%d connection(s)", len(s.Conns))
}

// String names what is received.
func (t *Target) String() string {
	if t.client.IsValid() {
		return "client " + t.client.String()
	}
	return fmt.Sprintf("%d connection(s)", len(t.out))
}

func (t *Target) build(records []snapshot.Conn) error {
	switch {
	case len(t.holds) > 0: // expected
	case t.client.IsValid():
		if err := t.hold(stack.Tuple{Remote: netip.AddrPortFrom(t.client, 0)}); err != nil {
			return err
		}
	case len(records) == 0: // a stack donor that had nothing but packets
		if err := t.hold(stack.Tuple{}); err != nil {
			return err
		}
	}
	for i := range records {
		c := &records[i]
		tuple := stack.Tuple{Local: c.Local, Remote: c.Remote}
		if !t.client.IsValid() {
			if err := t.hold(tuple); err != nil {
				return err
			}
		}
		home := new(gvtcp.Home)
		t.stack.Restored(&home.Conn, tuple)
		t.conns = append(t.conns, received{conn: &home.Conn, orphan: c.Orphan})
		r := &t.conns[i]
		err := r.restored.Restore(t.stack.Netstack(), home, c)
		if err == nil && c.Unaccepted {
			if r.listener = t.stack.ListenerFor(c.Local); r.listener == nil {
				r.restored.Discard()
				err = fmt.Errorf("%w: %s", ErrNoListener, c.Local)
			}
		}
		if err != nil {
			t.conns = t.conns[:i]
			return fmt.Errorf("%s: %w", tuple, err)
		}
		for _, p := range c.Unprocessed {
			// They will be delivered past the filter, so they must not be
			// about anybody else.
			if of, ok := stack.InboundTuple(p); !ok || of != tuple {
				return fmt.Errorf("%w: %s: an unprocessed packet of another connection", ErrFormat, tuple)
			}
			t.first = append(t.first, slices.Clone(p))
		}
	}
	return nil
}

func (t *Target) hold(tuple stack.Tuple) error {
	n := len(t.holds)
	t.holds = append(t.holds, stack.Hold{})
	if err := t.stack.StartHold(&t.holds[n], tuple); err != nil {
		t.holds = t.holds[:n]
		return err
	}
	return nil
}

// Return gives the connections up with nothing on the wire, as Discard does, for a client
// that may have heard of this node: the packets that have arrived, which it returns, and
// those that do so until grace is over are the donor's. forward gets the latter, as
// that of [Donor.Discard].
func (t *Target) Return(forward func(packet []byte), grace time.Duration) (late [][]byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return nil, failed("return", t, fmt.Errorf("%w: it was activated or discarded before", ErrOrder))
	}
	t.done = true
	t.discardConns()
	for i := range t.holds {
		late = append(late, t.holds[i].Forward(forward, grace)...)
	}
	t.holds = nil
	return late, nil
}

// Client is the client all of whose connections they are, the zero value if the
// donor was none of a client.
func (t *Target) Client() netip.Addr { return t.client }

// Len is the number of connections.
func (t *Target) Len() int { return len(t.out) }

// Activate makes the connections live and processes, in order, the packets
// that the donor had not looked at yet, those in late (what [Donor.Discard]
// returned), and those that have arrived here since Import. Nobody else may
// have the connections any more.
//
// It returns the connections in the order of [Donor.Conns], with nil for those
// that no application has: closed ones end by themselves, and ones not yet
// accepted go to their listener's Accept.
func (t *Target) Activate(late ...[]byte) ([]*stack.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.done:
		return nil, failed("activate", t, fmt.Errorf("%w: it was activated or discarded before", ErrOrder))
	case t.out == nil:
		return nil, failed("activate", t, fmt.Errorf("%w: nothing was imported", ErrOrder))
	case t.stack.Closed():
		t.done = true
		t.drop()
		return nil, failed("activate", t, stack.ErrClosed)
	}
	t.done = true
	out := t.out
	for i := range t.conns {
		r := &t.conns[i]
		r.conn.Attach(r.restored.Endpoint(), r.orphan)
		if err := r.restored.Activate(); err != nil {
			// The tuple was reserved since Import: cannot be.
			r.conn.Detach()
			r.restored.Discard()
			t.conns = t.conns[i+1:]
			t.drop()
			return out, failed("activate", r.conn.Tuple(), err)
		}
		r.conn.Resume()
		if t.stack.Closed() { // since we looked: it does not know of this one
			r.conn.Endpoint().Abort()
		}
		switch {
		case r.orphan:
		case r.listener != nil:
			if err := r.listener.Deliver(r.conn); err != nil {
				r.conn.Endpoint().Abort() // closed meanwhile: its connections are reset
			}
		default:
			out[i] = r.conn
		}
	}
	first := append(t.first, late...)
	for i := range t.holds {
		t.holds[i].Release(first...)
		first = nil
	}
	t.holds, t.conns, t.first = nil, nil, nil
	return out, nil
}

// Discard gives the connections up with nothing on the wire: the move failed,
// and they go on at the donor. Packets that have arrived here are dropped.
func (t *Target) Discard() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return failed("discard", t, fmt.Errorf("%w: it was activated or discarded before", ErrOrder))
	}
	t.done = true
	t.drop()
	return nil
}

func (t *Target) drop() {
	t.discardConns()
	dropHolds(t.holds)
	t.holds = nil
}

func (t *Target) discardConns() {
	for i := range t.conns {
		t.conns[i].restored.Discard()
	}
	t.conns, t.first = nil, nil
}

func dropHolds(holds []stack.Hold) {
	for i := range holds {
		holds[i].Drop()
	}
}
