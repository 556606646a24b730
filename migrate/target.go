package migrate

import (
	"fmt"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/distributed-servers/ds/migrate/internal/gvtcp"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// Target receives connections. Its methods may be called from several
// goroutines; once one of Activate and Discard was called, both fail with
// [ErrOrder].
//
//	Import ──► imported ──Activate──► live
//	               │
//	               └──Discard──► gone
type Target struct {
	stack *stack.Stack
	name  name

	mu    sync.Mutex
	done  bool
	holds []*stack.Hold
	conns []received
	// backing for the common case of one connection
	oneHold [1]*stack.Hold
	oneConn [1]received
}

// name is a fmt.Stringer for messages.
type name string

func (n name) String() string { return string(n) }

// received is a connection being received.
type received struct {
	conn     *stack.Conn
	restored *gvtcp.Restored
	record   *snapshot.Conn
	listener *stack.Listener // where it waits to be accepted
}

// Import rebuilds the connections of a snapshot: silent, and out of reach of
// both their peers, whose packets are held from now on, and the application.
// It rebuilds all or none. It keeps no reference to snap.
//
// The error can be [ErrFormat], [ErrVersion], [ErrNoAddress], [ErrNoRoute],
// [ErrInUse], [ErrNoListener] or [ErrBusy].
func Import(s *stack.Stack, snap []byte) (*Target, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	return importSnapshot(s, snap)
}

func importSnapshot(s *stack.Stack, b []byte) (*Target, error) {
	if s.Closed() {
		return nil, failed("import", name("snapshot"), stack.ErrClosed)
	}
	snap, err := snapshot.Parse(b)
	if err != nil {
		return nil, failed("import", name("snapshot"), err)
	}
	t := &Target{stack: s}
	t.holds, t.conns = t.oneHold[:0], t.oneConn[:0]
	if err := t.build(snap); err != nil {
		t.drop()
		return nil, failed("import", t.of(snap), err)
	}
	return t, nil
}

func (t *Target) of(snap *snapshot.Snapshot) fmt.Stringer {
	if snap.Client.IsValid() {
		return name("client " + snap.Client.String())
	}
	return name(fmt.Sprintf("%d connections", len(snap.Conns)))
}

func (t *Target) build(snap *snapshot.Snapshot) error {
	if snap.Client.IsValid() {
		if err := t.hold(t.stack.HoldClient(snap.Client)); err != nil {
			return err
		}
	}
	for i := range snap.Conns {
		c := &snap.Conns[i]
		tuple := stack.Tuple{Local: c.Local, Remote: c.Remote}
		if !snap.Client.IsValid() {
			if err := t.hold(t.stack.HoldConn(tuple)); err != nil {
				return err
			}
		}
		r := received{record: c}
		if c.Unaccepted {
			if r.listener = t.stack.ListenerFor(c.Local); r.listener == nil {
				return fmt.Errorf("%w: %s", ErrNoListener, c.Local)
			}
		}
		r.conn = t.stack.Restored(tuple)
		var err error
		if r.restored, err = gvtcp.Restore(t.stack.Netstack(), r.conn.Queue(), c); err != nil {
			return err
		}
		t.conns = append(t.conns, r)
		for j := range c.Unprocessed { // they are injected after the snapshot's octets are gone
			c.Unprocessed[j] = append([]byte(nil), c.Unprocessed[j]...)
		}
	}
	return nil
}

func (t *Target) hold(h *stack.Hold, err error) error {
	if err != nil {
		return err
	}
	t.holds = append(t.holds, h)
	return nil
}

// Len is the number of connections.
func (t *Target) Len() int { return len(t.conns) }

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
	if t.done {
		return nil, failed("activate", name("target"), fmt.Errorf("%w: it was activated or discarded before", ErrOrder))
	}
	if t.stack.Closed() {
		t.done = true
		t.drop()
		return nil, failed("activate", name("target"), stack.ErrClosed)
	}
	t.done = true
	out := make([]*stack.Conn, len(t.conns))
	var first [][]byte
	for i, r := range t.conns {
		r.conn.Attach(r.restored.Endpoint(), r.record.Orphan)
		if err := r.restored.Activate(); err != nil {
			// The tuple was reserved since Import: cannot be.
			r.conn.Detach()
			r.restored.Discard()
			t.conns = t.conns[i+1:]
			t.drop()
			return out, failed("activate", r.conn.Tuple(), err)
		}
		first = append(first, r.record.Unprocessed...)
		r.conn.Resume()
		switch {
		case r.record.Orphan:
		case r.listener != nil:
			if err := r.listener.Deliver(r.conn); err != nil {
				r.conn.Endpoint().Abort() // closed meanwhile: its connections are reset
			}
		default:
			out[i] = r.conn
		}
	}
	first = append(first, late...)
	for i, h := range t.holds {
		if i == 0 {
			h.Release(first...)
		} else {
			h.Release()
		}
	}
	t.holds, t.conns = nil, nil
	return out, nil
}

// Discard gives the connections up with nothing on the wire: the move failed,
// and they go on at the donor. Packets that have arrived here are dropped.
func (t *Target) Discard() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return failed("discard", name("target"), fmt.Errorf("%w: it was activated or discarded before", ErrOrder))
	}
	t.done = true
	t.drop()
	return nil
}

func (t *Target) drop() {
	for _, r := range t.conns {
		r.restored.Discard()
	}
	for _, h := range t.holds {
		h.Forward(nil, 0)
	}
	t.holds, t.conns = nil, nil
}

func addrOf(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}
