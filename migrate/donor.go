package migrate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	gstack "gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/distributed-servers/ds/migrate/internal/gvtcp"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// Donor gives connections away. Its methods may be called from several
// goroutines; those that make no sense in its state fail with [ErrOrder] and
// do nothing.
//
//	          Drain
//	           ┌─┐
//	           ▼ │       Freeze          Export             Discard
//	NewDonor ► idle ─────────────► frozen ──────► exported ─────────► done
//	             ▲                   │              │
//	             └───────── Thaw ────┴──────────────┘
type Donor struct {
	stack *stack.Stack
	// What it gives: one connection, a client's, or with neither all there are.
	conn   *stack.Conn
	client netip.Addr
	empty  bool // there need be none

	mu     sync.Mutex
	state  donorState
	hold   stack.Hold
	conns  []donated
	inline [1]donated // backs conns: most clients have one
	// packets are segments that listeners had, in front of what the hold has.
	packets [][]byte
	drained []*stack.Conn // whose writes are blocked since Drain
	copied  int           // how many of packets Copy has given away
}

type donorState uint8

const (
	donorIdle donorState = iota
	donorFrozen
	donorExported
	donorDone
)

func (s donorState) String() string {
	return [...]string{"not frozen", "frozen", "exported", "done"}[s]
}

// donated is a connection being given away.
type donated struct {
	conn    *stack.Conn
	frozen  gvtcp.Frozen
	stopped bool // frozen holds it
	// listener is where the connection waited to be accepted, nil if an
	// application has it.
	listener *stack.Listener
	orphan   bool // the application has closed it; known since Export
}

// NewDonor prepares to give away one connection. Other connections of the same
// client stay; it is the caller's business that the client's packets are
// routed to both.
func NewDonor(c *stack.Conn) *Donor { return &Donor{stack: c.Stack(), conn: c} }

// NewClientDonor prepares to give away all connections of a client: all or
// none, including those that the application has closed or not yet accepted.
func NewClientDonor(s *stack.Stack, client netip.Addr) *Donor {
	return &Donor{stack: s, client: client.Unmap()}
}

// NewStackDonor prepares to give away everything a stack has, all or nothing,
// as for the successor of a whole process: the connections of all clients, and
// even connection requests that the stack has received but not looked at.
func NewStackDonor(s *stack.Stack) *Donor { return &Donor{stack: s} }

// AllowEmpty makes Freeze succeed also when there is no connection: a client that
// has none at the moment, or whose last one has just ended, moves like any other,
// and what it sends meanwhile is held and forwarded. It is called before Freeze.
func (d *Donor) AllowEmpty() { d.empty = true }

func (d *Donor) String() string {
	switch {
	case d.conn != nil:
		return d.conn.Tuple().String()
	case d.client.IsValid():
		return "client " + d.client.String()
	}
	return "everything"
}

// candidates are the connections that it gives, as far as they are listed.
func (d *Donor) candidates() []*stack.Conn {
	switch {
	case d.conn != nil:
		return []*stack.Conn{d.conn}
	case d.client.IsValid():
		return d.stack.ConnsOf(d.client)
	}
	return d.stack.Conns()
}

func (d *Donor) expect(op string, want ...donorState) error {
	for _, s := range want {
		if d.state == s {
			return nil
		}
	}
	return failed(op, d, fmt.Errorf("%w: it is %s", ErrOrder, d.state))
}

// Drain waits until everything the application has written was sent and
// acknowledged, so that a snapshot taken then is small; the application's
// writes wait from here on. After an error (that of ctx, as a rule), writes go
// on; otherwise they wait until Thaw or Discard. Drain is optional.
func (d *Donor) Drain(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.expect("drain", donorIdle); err != nil {
		return err
	}
	if err := Check(); err != nil {
		return err
	}
	conns := d.candidates()
	for _, c := range conns {
		c.BlockWrites(true)
	}
	for _, c := range conns {
		err := drain(ctx, c)
		if errors.Is(err, ErrEnded) && d.conn == nil {
			continue // the others count
		}
		if err != nil {
			for _, c := range conns {
				c.BlockWrites(false)
			}
			return failed("drain", d, err)
		}
	}
	d.drained = conns
	return nil
}

// drain waits for one connection's send buffer to run empty, woken by netstack.
func drain(ctx context.Context, c *stack.Conn) error {
	entry, ch := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	c.Queue().EventRegister(&entry)
	defer c.Queue().EventUnregister(&entry)
	b := gvtcp.BeginDrain(c.Endpoint())
	defer b.End()
	for !b.Empty() {
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch c.Endpoint().EndpointState() {
	case tcp.StateClose, tcp.StateError:
		return ErrEnded
	}
	return nil
}

// release lets writes go on that Drain has blocked.
func (d *Donor) release() {
	for _, c := range d.drained {
		c.BlockWrites(false)
	}
	d.drained = nil
}

// stopped is called when the connections that were found are stopped: for tests.
var stopped = func() {}

// Freeze stops the connections: their packets are held at the link, the
// application's calls wait, their timers stand still. It stops all or none.
// The error can be [ErrHandshake], [ErrEnded], [ErrBusy] or [ErrMoved].
func (d *Donor) Freeze() error {
	if err := Check(); err != nil {
		return err
	}
	return d.freeze()
}

func (d *Donor) freeze() (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.expect("freeze", donorIdle); err != nil {
		return err
	}
	d.hold = stack.Hold{}
	if err := d.stack.StartHold(&d.hold, d.tuple()); err != nil {
		return failed("freeze", d, err)
	}
	// Nothing comes in any more. What is in already: in the listeners' queues,
	// which must not be left to them, and in the connections'.
	d.conns = d.inline[:0]
	if err = d.collect(); err == nil {
		err = d.stop()
	}
	if err == nil {
		stopped()
		d.stack.Settled(func() {
			if err = d.dialled(); err == nil {
				d.hold.Flush()
			}
		})
	}
	if err != nil {
		d.undo()
		return failed("freeze", d, err)
	}
	d.state = donorFrozen
	return nil
}

// collect finds the connections, and takes what listeners have of them.
func (d *Donor) collect() error {
	match := func(id gstack.TransportEndpointID) bool {
		t := stack.TupleOf(id)
		switch {
		case d.conn != nil:
			return t == d.conn.Tuple()
		case d.client.IsValid():
			return t.Remote.Addr() == d.client
		}
		return true
	}
	for _, l := range d.stack.Listeners() {
		t := gvtcp.Take(l.Endpoint(), match)
		if t.Handshakes > 0 {
			return fmt.Errorf("%w: %d at listener %s", ErrHandshake, t.Handshakes, l.Addr())
		}
		d.packets = append(d.packets, t.Packets...)
		for _, ep := range t.Ready {
			d.add(d.stack.Adopt(ep, gvtcp.Queue(ep)), l)
		}
	}
	if d.conn != nil {
		d.add(d.conn, d.conn.Withdraw())
		return nil
	}
	var known map[*stack.Conn]bool // taken from a listener, and listed since
	if len(d.conns) > 0 {
		known = make(map[*stack.Conn]bool, len(d.conns))
	}
	for i := range d.conns {
		known[d.conns[i].conn] = true
	}
	var conns []*stack.Conn
	d.stack.Settled(func() { conns = d.candidates() }) // those that are just being accepted, too
	for _, c := range conns {
		if !known[c] {
			d.add(c, c.Withdraw())
		}
	}
	return nil
}

// add notes a connection, and the listener of which it was taken. Inlined it would make
// collect's frame three times as large, and with it the stacks of those who freeze.
//
//go:noinline
func (d *Donor) add(c *stack.Conn, l *stack.Listener) {
	d.conns = append(d.conns, donated{conn: c, listener: l})
}

// stop freezes the connections collected. Of a client's, those that have ended
// meanwhile do not count.
func (d *Donor) stop() error {
	stopped := 0
	for i := range d.conns {
		c := &d.conns[i]
		if d.stack.HasAddr(c.conn.Tuple().Remote.Addr()) {
			return fmt.Errorf("%s: %w", c.conn.Tuple(), ErrLocal)
		}
		err := c.conn.Suspend()
		if err == nil {
			if err = c.frozen.Freeze(d.stack.Netstack(), c.conn.Endpoint()); err != nil {
				c.conn.Resume()
			}
		}
		switch {
		case err == nil:
			c.stopped = true
			stopped++
		case errors.Is(err, ErrEnded) && d.conn == nil:
		default:
			return fmt.Errorf("%s: %w", c.conn.Tuple(), err)
		}
	}
	if stopped == 0 && len(d.packets) == 0 && !d.empty {
		return ErrEnded
	}
	if stopped < len(d.conns) {
		d.conns = slices.DeleteFunc(d.conns, func(c donated) bool {
			if !c.stopped && c.listener != nil {
				c.listener.Deliver(c.conn) // for Accept to find out
			}
			return !c.stopped
		})
	}
	return nil
}

// dialled fails if a connection was dialled since the connections were collected: its
// SYN must not go out, for the answer would not find it here.
func (d *Donor) dialled() error {
	for _, c := range d.candidates() {
		if c.Endpoint().EndpointState() == tcp.StateSynSent {
			return fmt.Errorf("%s: %w", c.Tuple(), ErrHandshake)
		}
	}
	return nil
}

// tuple is what to hold.
func (d *Donor) tuple() stack.Tuple {
	switch {
	case d.conn != nil:
		return d.conn.Tuple()
	case d.client.IsValid():
		return stack.Tuple{Remote: netip.AddrPortFrom(d.client, 0)}
	}
	return stack.Tuple{}
}

// undo lets everything go on where it was.
func (d *Donor) undo() error {
	var errs []error
	for i := range d.conns {
		c := &d.conns[i]
		if c.stopped {
			if err := c.frozen.Thaw(); err != nil {
				// Only a stack being closed refuses; nothing is left to save.
				c.frozen.Discard()
				errs = append(errs, fmt.Errorf("%s: %w", c.conn.Tuple(), err))
			} else if d.stack.Closed() { // meanwhile, without these
				c.conn.Endpoint().Abort()
			}
			c.conn.Resume()
		}
		if c.listener != nil {
			if err := c.listener.Deliver(c.conn); err != nil {
				c.conn.Endpoint().Abort() // as the listener's Close would have
			}
		}
	}
	d.hold.Undo(d.packets...)
	d.reset()
	return errors.Join(errs...)
}

func (d *Donor) reset() {
	clear(d.conns)
	d.conns, d.packets, d.copied = nil, nil, 0
}

// scratch keeps snapshots in their parsed form between uses: a record has more
// than a thousand octets, which few connections need all of.
var scratch = sync.Pool{New: func() any { return &snapshot.Snapshot{Conns: make([]snapshot.Conn, 0, 1)} }}

// recycle gives a snapshot back to scratch.
func recycle(s *snapshot.Snapshot) {
	for i := range s.Conns {
		s.Conns[i].Reset() // its octets belong to somebody else
	}
	scratch.Put(s)
}

// Conns returns the frozen connections, in the order of the snapshot and of
// what [Target.Activate] returns. Those without an application are among them.
func (d *Donor) Conns() []*stack.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	cs := make([]*stack.Conn, len(d.conns))
	for i, c := range d.conns {
		cs[i] = c.conn
	}
	return cs
}

// Served is as Conns after Export, but with nil for the connections that no
// application has, those for which [Target.Activate] returns nil: closed ones,
// and ones not yet accepted.
func (d *Donor) Served() []*stack.Conn {
	cs := d.Conns()
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.conns {
		if d.conns[i].orphan || d.conns[i].listener != nil {
			cs[i] = nil
		}
	}
	return cs
}

// Export appends the snapshot of the frozen connections to b. It can be called
// again, with the same result. After an error the connections are still frozen.
func (d *Donor) Export(b []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.expect("export", donorFrozen, donorExported); err != nil {
		return b, err
	}
	snap := scratch.Get().(*snapshot.Snapshot)
	defer recycle(snap)
	snap.Client = d.client
	snap.Conns = slices.Grow(snap.Conns[:0], len(d.conns))[:len(d.conns)]
	for i := range d.conns {
		c, r := &d.conns[i], &snap.Conns[i]
		if err := c.frozen.Capture(r); err != nil {
			return b, failed("export", d, err)
		}
		r.Unaccepted = c.listener != nil
		c.orphan = r.Orphan
	}
	out, err := snapshot.Append(b, snap)
	if err != nil {
		return b, failed("export", d, err)
	}
	d.state = donorExported
	return out, nil
}

// Thaw undoes Freeze, and Drain. The connections go on as if no time had
// passed; packets that arrived meanwhile are processed now. A target that has
// imported the snapshot must not activate it.
func (d *Donor) Thaw() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state == donorIdle && d.drained != nil {
		d.release()
		return nil
	}
	if err := d.expect("thaw", donorFrozen, donorExported); err != nil {
		return err
	}
	err := d.undo()
	d.release()
	d.state = donorIdle
	if err != nil {
		return failed("thaw", d, err)
	}
	return nil
}

// Copy gives f the packets that have arrived since Freeze, and those to come until
// Thaw or Discard, or until f takes no more: for [stack.Stack.Inject] where the
// connections are imported, so that they are there when the connections go live.
// They are kept here too, for Thaw. f is called as [stack.Hold.Copy] says. The
// connections must have been exported.
func (d *Donor) Copy(f func(packet []byte) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.expect("copy", donorExported); err != nil {
		return err
	}
	for ; d.copied < len(d.packets); d.copied++ {
		if !f(d.packets[d.copied]) {
			return nil
		}
	}
	d.hold.Copy(f)
	return nil
}

// Discard gives the connections up: calls on them fail with [ErrMoved], and
// their copies here are dropped with nothing on the wire. It returns the
// packets that have arrived since Freeze, less those that Copy's function took, for
// [Target.Activate]; those that
// arrive from now on go to forward for the time of grace, as
// [stack.Hold.Forward] says. Only exported connections can be discarded.
func (d *Donor) Discard(forward func(packet []byte), grace time.Duration) (late [][]byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.expect("discard", donorExported); err != nil {
		return nil, err
	}
	late = append(d.packets[d.copied:], d.hold.Forward(forward, grace)...)
	for i := range d.conns {
		c := &d.conns[i]
		c.conn.Detach()
		c.frozen.Discard()
	}
	d.release()
	d.reset()
	d.state = donorDone
	return late, nil
}
