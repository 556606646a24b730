package ds

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

const (
	// grace is for how long stragglers are forwarded.
	grace = time.Minute

	// While a freeze waits for the end of a handshake, it looks at first and at last
	// after so long.
	firstHandshake = time.Millisecond
	lastHandshake  = 50 * time.Millisecond
)

// Limits, variables for tests.
var (
	// A handshake in progress cannot be handed off. So long a freeze waits for its end.
	handshakeTime = 5 * time.Second

	// newTime is when what begins connections is no straggler any more.
	newTime = time.Second

	// maxTransfer is what a message has room for, in octets, and all together that are on
	// their way: who comes later waits, since too much for the daemon would end the session.
	maxTransfer = api.MaxMessage - 1<<20
)

// handoff is one of a client, seen from the donor.
type handoff struct {
	node    *Node
	id      uint64
	name    uint64 // what the nodes call it
	client  netip.Addr
	to      string
	state   func(net.Conn) ([]byte, error)
	only    *stack.Conn // whose handler hands it off, nil: all that there are
	session Session
	report  *Report

	donor    *migrate.Donor
	resting  []*stack.Conn // asked to come to rest
	frozen   time.Time
	snapshot []byte
	states   [][]byte

	answer   chan answer   // of the daemon
	came     phase         // how far it had come when transfer gave up waiting
	released time.Duration // how long release took
	copied   int           // how many packets late has sent
	decided  chan struct{} // closed when the answer to Transfer has taken effect
	moved    bool          // that it was well; known then
	verdict  answer        // the same in full

	// Under Node.mu.
	want  api.Kind // of the answer that is waited for, 0: none
	phase phase
}

// phase is how far a handoff has come, as far as it matters to who may end it.
type phase uint8

const (
	open      phase = iota // can be undone
	committed              // Transfer is on its way: only its answer can end this
	settled                // the answer is there
)

type answer struct {
	m   *api.Message
	err error
}

// reply gives an answer to the one that waits, or will. Node.mu is held.
func (h *handoff) reply(a answer) {
	h.want = 0
	select {
	case h.answer <- a:
	default: // there is one that it has not looked at
	}
}

// Handoff hands a client with all its connections to another node, by name. A
// client that has none at the moment is handed off too, as long as the daemon
// takes it for this node's: its next connection goes to the other node.
//
// If state is not nil it is called for each connection that the application has,
// after the freeze; what it returns, at most [MaxState] octets, arrives with the
// connection. The handler of the connection must be at rest then, as the
// package's documentation explains. Handoff waits for that, and fails with
// [ErrRestless] if it takes too long.
//
// The error is a [*HandoffError]: it says whether the client is served here as
// before. When ctx ends, a handoff that has not come to its transfer is undone; one
// that has is called off if the target has not taken the client yet, and otherwise
// goes on: which of the two shows later.
func (n *Node) Handoff(ctx context.Context, client netip.Addr, to string, state func(net.Conn) ([]byte, error)) (*Report, error) {
	return n.handOff(ctx, &handoff{client: client.Unmap(), to: to, state: state})
}

func (n *Node) handOff(ctx context.Context, h *handoff) (*Report, error) {
	h.node, h.answer, h.decided = n, make(chan answer, 1), make(chan struct{})
	if before, err := h.begin(ctx); err != nil {
		return nil, &HandoffError{Stage: StagePrepare, Client: h.client, To: h.to, Committed: before != nil, Err: err, of: before}
	}
	defer n.wg.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(n.life, func() { cancel(ErrClosed) })()
	stage, err := h.run(ctx)
	if err == nil {
		return h.report, nil
	}
	if h.came == open {
		h.undo(true)
	}
	failure := &HandoffError{Stage: stage, Client: h.client, To: h.to, Committed: h.came == committed, Err: err}
	if failure.Committed {
		failure.of = h
	}
	return nil, failure
}

// begin enters the handoff, if nothing speaks against it from the outset. With
// ErrUnknown comes the one before that is in doubt.
func (h *handoff) begin(ctx context.Context) (before *handoff, err error) {
	n := h.node
	s, err := n.start(ctx)
	if err != nil {
		return nil, err
	}
	if err := migrate.Check(); err != nil { // once; it takes some milliseconds
		return nil, err
	}
	if h.only != nil {
		if err := h.alone(s.ConnsOf(h.client)); err != nil {
			return nil, err
		}
	}
	_, ok := n.clients.claim(h.client)
	n.mu.Lock()
	defer n.mu.Unlock()
	if !ok {
		if before := n.doubtful[h.client]; before != nil {
			return before, ErrUnknown
		}
		return nil, ErrBusy
	}
	switch {
	case n.closed:
		err = ErrClosed
	case n.session == nil:
		err = ErrDetached
	case h.to == n.config.Node:
		err = ErrSelf
	default:
		n.lastID++
		h.id, h.session = n.lastID, n.session
		h.report = &Report{Client: h.client, From: n.config.Node, To: h.to, Stages: make([]StageTime, 0, 7)}
		h.donor = migrate.NewClientDonor(s, h.client)
		h.donor.AllowEmpty() // the daemon knows whether the client is ours
		n.leaving[h.id] = h
		n.wg.Add(1)
		return nil, nil
	}
	n.clients.settle(h.client, unchanged)
	return nil, err
}

// run goes through the stages. It returns the one that failed, and why.
func (h *handoff) run(ctx context.Context) (Stage, error) {
	begin := time.Now() // of a stage, which is the end of the one before: together they are the whole time
	for _, s := range [...]struct {
		stage Stage
		do    func(context.Context) error
	}{
		{StagePrepare, h.prepare},
		{StageDrain, h.drain},
		{StageFreeze, h.freeze},
		{StageExport, h.export},
		// ━━━ Point of no return: once Transfer is sent, only the daemon can say
		// who has the client. ━━━
		{StageTransfer, h.transfer},
	} {
		if err := s.do(ctx); err != nil {
			return s.stage, err
		}
		now := time.Now()
		h.lap(s.stage, now.Sub(begin))
		begin = now
	}
	h.report.Stages[len(h.report.Stages)-1].Duration -= h.released
	h.lap(StageRelease, h.released)
	return "", nil
}

func (h *handoff) lap(s Stage, took time.Duration) {
	h.report.Stages = append(h.report.Stages, StageTime{s, took})
}

// ask sends a message and waits for the answer to it.
func (h *handoff) ask(ctx context.Context, want api.Kind, m *api.Message) (*api.Message, error) {
	if err := h.say(want, m); err != nil {
		return nil, err
	}
	if m.Kind == api.Transfer {
		h.donor.Copy(h.late) // unless it is over already
	}
	select {
	case a := <-h.answer:
		return a.m, a.failure()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// say sends a message to which want is the answer.
func (h *handoff) say(want api.Kind, m *api.Message) error {
	n := h.node
	if m.Kind == api.Transfer {
		n.transferring.RLock()
		defer n.transferring.RUnlock()
	}
	n.mu.Lock()
	if n.session != h.session { // gone, perhaps for another
		n.mu.Unlock()
		return ErrDetached
	}
	h.want = want
	if m.Kind == api.Transfer {
		h.phase = committed
	}
	n.mu.Unlock()
	m.ID, m.Client = h.id, h.client
	err := h.session.Send(m)
	if err == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	h.want = 0
	if h.phase == committed { // or another session has brought the answer already
		h.phase = open // it did not go out whole
		delete(n.doubtful, h.client)
	}
	return fmt.Errorf("%w: %w", ErrDetached, err)
}

// failure is why it is no success.
func (a answer) failure() error {
	if a.err == nil && a.m.Error != "" {
		return fmt.Errorf("%w: %s", ErrRefused, a.m.Error)
	}
	return a.err
}

// prepare asks for the consent of the target, and has the redirection made
// ready.
func (h *handoff) prepare(ctx context.Context) error {
	h.node.tellClient(h.client, true) // the daemon must know whom it is about
	m, err := h.ask(ctx, api.Prepared, &api.Message{Kind: api.Prepare, To: h.to})
	if err == nil {
		h.name, h.report.Optimised = m.Handoff, m.Optimised
	}
	return err
}

// freeze stops the connections, as soon as no handshake is in the way. Until then
// their handlers go on.
func (h *handoff) freeze(ctx context.Context) error {
	giveUp := time.Now().Add(handshakeTime)
	for wait := firstHandshake; ; wait = min(2*wait, lastHandshake) {
		h.frozen = time.Now()
		err := h.donor.Freeze()
		if err == nil {
			switch {
			case h.only != nil:
				return h.alone(h.donor.Served())
			case h.state == nil || h.allAtRest():
				return nil
			}
			// Somebody was accepted meanwhile.
			if err = h.donor.Thaw(); err == nil {
				err = h.drain(ctx)
			}
			if err != nil {
				return err
			}
			continue
		}
		if !errors.Is(err, migrate.ErrHandshake) || time.Until(giveUp) < wait {
			return err
		}
		if wait == firstHandshake {
			h.node.logger().Debug("ds: a handoff waits", "client", h.client, "error", err)
		}
		h.endRest() // the other connections do not wait for it
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
		if err := h.drain(ctx); err != nil {
			return err
		}
	}
}

// export describes the connections, and has the application describe what it
// knows of them.
func (h *handoff) export(ctx context.Context) (err error) {
	if h.snapshot, err = h.donor.Export(nil); err != nil {
		return err
	}
	served := h.donor.Served()
	h.report.Connections, h.report.Snapshot = len(served), len(h.snapshot)
	if h.state == nil {
		return nil
	}
	if h.states, err = h.describe(ctx, served); err != nil {
		return err
	}
	for _, s := range h.states {
		h.report.State += len(s)
	}
	return nil
}

// transfer gives the client away. Until the answer is there, nobody here makes a
// sound; see answered for what it brings about.
func (h *handoff) transfer(ctx context.Context) error {
	if n := h.report.Snapshot + h.report.State; n > maxTransfer {
		return fmt.Errorf("%d octets of connections and state, more than the %d that can be sent at once", n, maxTransfer)
	}
	room := int64(h.report.Snapshot + h.report.State)
	if h.node.room.Acquire(ctx, room) != nil {
		return fmt.Errorf("other handoffs were on their way: %w", context.Cause(ctx))
	}
	defer h.node.room.Release(room)
	m, err := h.ask(ctx, api.Done, &api.Message{
		Kind: api.Transfer, Snapshot: h.snapshot, State: h.states, Connections: h.report.Connections,
	})
	h.snapshot, h.states = nil, nil
	n := h.node
	n.mu.Lock()
	h.came = h.phase
	n.mu.Unlock()
	switch {
	case m == nil && h.came == settled: // it came after all
		<-h.decided // h.answer may still have had that the daemon was lost
		err = h.verdict.failure()
	case h.came == committed: // nobody waits any more
		h.session.Send(&api.Message{Kind: api.Abort, ID: h.id, Client: h.client})
	}
	return err
}

// maxLate is how many packets are sent after the connections that they are for.
// They are for who waits for an answer; of a bulk transfer the rest is forwarded
// afterwards, at less cost.
const maxLate = 16

// late sends a packet after the connections that it is for.
func (h *handoff) late(p []byte) bool {
	if h.copied == maxLate {
		return false
	}
	h.copied++
	h.session.Send(&api.Message{Kind: api.Late, ID: h.id, Client: h.client, Packets: [][]byte{slices.Clone(p)}})
	return true
}

// answered takes an answer of the daemon. What the answer to Transfer means is
// done here and now, whether or not anybody waits for it any more.
func (n *Node) answered(m *api.Message) {
	n.mu.Lock()
	h := n.leaving[m.ID]
	if h == nil || m.Kind != h.want && !(m.Kind == api.Done && h.phase == committed) {
		n.mu.Unlock()
		return // given up meanwhile
	}
	if m.Kind != api.Done {
		h.reply(answer{m: m})
		n.mu.Unlock()
		return
	}
	delete(n.doubtful, h.client)
	h.phase = settled
	n.mu.Unlock()
	if m.Error == "" {
		h.release(m.CareOf, m.Ago)
		h.moved = true
	} else {
		h.undo(false)
	}
	h.verdict = answer{m: m}
	close(h.decided)
	n.mu.Lock()
	h.reply(answer{m: m})
	n.mu.Unlock()
}

// release drops the copies of what lives elsewhere now, and sends after it what
// still comes here.
func (h *handoff) release(careOf netip.Addr, ago time.Duration) {
	begin := time.Now()
	h.report.Gap = max(0, begin.Sub(h.frozen)-ago)
	s := h.node.stack
	forward := func(p []byte) { s.Tunnel(careOf, p) }
	late, err := h.donor.Discard(forward, grace)
	if err != nil { // it is exported, so this cannot be
		h.node.logger().Error("ds: handed off, but not let go", "client", h.client, "error", err)
	}
	s.Leave(h.client, grace)
	h.node.answerNew(s, h.client)
	for _, p := range late {
		forward(p)
	}
	h.endRest() // of those that have ended meanwhile
	h.end(theirs)
	h.released = time.Since(begin)
}

// undo lets the client go on here.
func (h *handoff) undo(abort bool) {
	err := h.donor.Thaw()
	if err != nil && !errors.Is(err, migrate.ErrOrder) { // it was not frozen
		h.node.logger().Error("ds: handoff not undone", "client", h.client, "error", err)
	}
	h.endRest()
	if abort {
		h.session.Send(&api.Message{Kind: api.Abort, ID: h.id, Client: h.client})
	}
	h.end(unchanged)
}

// end is the last that is done about the handoff.
func (h *handoff) end(told func(bool) bool) {
	n := h.node
	n.mu.Lock()
	delete(n.leaving, h.id)
	n.mu.Unlock()
	n.clients.settle(h.client, told)
}
