package ds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/tun"
)

// Session is the application's end of a session with a daemon; package
// daemon/api has the messages.
type Session interface {
	// Send sends messages, in their order. It may be called at any time from any
	// goroutine. An error means that they did not all go out whole, and ends the session.
	Send(all ...*api.Message) error
	// Receive waits for the next message. One goroutine calls it.
	Receive() (*api.Message, error)
	// Ready tells that goroutine whether the next message is there.
	Ready() bool
	// Close ends the session: Receive and Send return.
	Close() error
}

// Attachment is what a daemon gives an application that attaches.
type Attachment struct {
	Session Session
	Config  api.SessionConfig
	Device  tun.Device // nil if the application has it: api.Message.HasTUN
	Daemon  Daemon     // of the first attachment; nil: there is nobody to ask

	// Decisions about what the daemon offers in this session. Without them no client
	// can be handed off to this node. The Node closes them.
	Decisions *api.Decisions
}

// How long it takes until the next try to attach again.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// attach says hello to the daemon.
func (n *Node) attach(ctx context.Context, hello *api.Message) (*Attachment, error) {
	hello.Kind = api.Hello
	hello.Program = n.program()
	hello.TellsMissed, hello.TakesAway = true, true
	if n.Attach != nil {
		return n.Attach(ctx, hello)
	}
	return n.attachSocket(ctx, hello)
}

// attached returns the session, nil if there is none.
func (n *Node) attached() Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.session
}

// run reads what the daemon says, on this one goroutine, and attaches again
// when the daemon goes away, until the Node is closed.
func (n *Node) run(s *unhurried) {
	for {
		err := n.receive(s)
		s.Close()
		n.detached(err)
		if s = n.attachAgain(); s == nil {
			return
		}
	}
}

func (n *Node) receive(s *unhurried) error {
	var replies []*api.Message // to messages that have come together
	for {
		m, err := s.Receive()
		if err == nil {
			switch r := n.dispatch(s, m); {
			case r == nil:
			case r.Kind == api.Activated:
				s.Later(r)
			default:
				replies = append(replies, r)
			}
			if len(replies) < maxReplies && s.Ready() {
				continue
			}
		}
		if len(replies) > 0 {
			s.Send(replies...)
			clear(replies)
			replies = replies[:0]
		}
		if err != nil {
			return err
		}
	}
}

// maxReplies is how many wait for each other. To rebuild a client's connections may
// take some tens of microseconds.
const maxReplies = 16

// unhurried is a session in which messages go together. Those that many goroutines send
// at the same time do; and some can wait, for the next that cannot, or a
// moment. That a client has gone live is one, for what the daemons do then wants the
// processors that the client's handlers need to answer it, and nobody waits for that.
type unhurried struct {
	Session
	several func() bool // handoffs are under way, whose messages may go together

	mu      sync.Mutex
	leaving []*api.Message // with whoever came first of those that send them
	waiting []*api.Message
	since   []time.Time // they wait
	timer   *time.Timer
}

// several tells whether there is more than one handoff.
func (n *Node) several() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.leaving)+len(n.arriving) > 1
}

// moment is how long they wait: it takes a handler less to answer, and a client is
// thought to be with its donor still for no longer than that.
const moment = time.Millisecond

func newUnhurried(s Session, several func() bool) *unhurried {
	u := &unhurried{Session: s, several: several}
	u.timer = time.AfterFunc(time.Hour, u.sendWaiting)
	u.timer.Stop()
	return u
}

// Later sends a message with the next, or after a moment.
func (u *unhurried) Later(m *api.Message) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting, u.since = append(u.waiting, m), append(u.since, time.Now())
	switch len(u.waiting) {
	case 1:
		u.timer.Reset(moment)
	case maxReplies:
		u.sendLocked()
	}
}

func (u *unhurried) sendWaiting() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sendLocked()
}

// Send implements Session, but messages may go out after it has returned, and if others
// send at the same time the error may be kept from it: that the session has ended Receive
// tells, too, and who waits for an answer hears of that.
func (u *unhurried) Send(all ...*api.Message) error {
	for _, m := range all { // what is wrong with one must not be another's fault
		if err := m.Check(); err != nil {
			return err
		}
	}
	u.mu.Lock()
	first := len(u.leaving) == 0
	u.leaving = append(u.leaving, all...)
	u.mu.Unlock()
	if !first {
		return nil
	}
	// Whoever is ready to run may have something to send, or much else to do, which one
	// handoff alone does not wait for. A late packet comes with a lock of the stack held.
	if all[0].Kind != api.Late && u.several() {
		runtime.Gosched()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	together := u.leaving
	u.leaving = nil
	err := u.sendLocked(together...)
	if len(together) > len(all) {
		return nil // it may have been behind ours
	}
	return err
}

func (u *unhurried) sendLocked(all ...*api.Message) error {
	if len(u.waiting) > 0 {
		for i, m := range u.waiting {
			m.Ago = time.Since(u.since[i])
		}
		all = append(u.waiting, all...)
		u.waiting, u.since = nil, nil
		u.timer.Stop()
	}
	if len(all) == 0 {
		return nil
	}
	return u.Session.Send(all...)
}

// dispatch does what a message asks for, and returns the reply, if there is one. What
// cannot wait for anybody is done right here.
func (n *Node) dispatch(s Session, m *api.Message) (reply *api.Message) {
	switch m.Kind {
	case api.ConfigChanged:
		n.reconfigure(m.Config)
	case api.Bound:
		n.stack.Bind(m.Client)
	case api.Unbound:
		n.stack.Unbind(m.Client)
	case api.Asked:
		select {
		case n.orders <- order{s, m}:
		default: // all are busy
			n.wg.Go(func() { n.obey(order{s, m}) })
		}
	case api.Prepared:
		n.answered(m)
	case api.Done:
		n.answered(m)
		if m.Error == "" { // from now on nobody here would ask for it
			return &api.Message{Kind: api.Settled, ID: m.ID}
		}
	case api.Expect:
		return n.expect(m)
	case api.Offer:
		n.offered(m)
	case api.Late:
		n.late(m)
	case api.Activate:
		return n.activate(m)
	case api.Forget:
		n.forget(m.ID)
	case api.Nobodys:
		n.back(m.Client)
	default:
		n.logger().Warn("ds: unexpected message of the daemon", "kind", m.Kind)
	}
	return nil
}

// detached cleans up after a session: what could still be called off is called
// off.
func (n *Node) detached(cause error) {
	n.mu.Lock()
	n.session = nil
	n.decisions.Close()
	n.decisions = nil
	closed, arriving := n.closed, n.arriving
	n.arriving = make(map[uint64]*arrival)
	for _, a := range arriving {
		n.strandLocked(a)
	}
	for _, h := range n.leaving {
		if h.phase == committed {
			n.doubtful[h.client] = h
		}
		h.reply(answer{err: ErrDetached})
	}
	n.mu.Unlock()
	// The kernel's tunnel may go with the daemon.
	if err := n.stack.SetKernelTunnel(false); err != nil {
		n.logger().Error("ds: tunnel", "error", err)
	}
	if !closed {
		n.logger().Warn("ds: the daemon is gone; connections live on", "error", cause)
	}
}

// attachAgain tries until it succeeds, or returns nil when the Node is closed.
func (n *Node) attachAgain() *unhurried {
	said := ""
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		a, accepts, err := n.attachOnce()
		if err == nil {
			return n.resumed(a, accepts)
		}
		if text := err.Error(); text != said && n.life.Err() == nil {
			n.logger().Warn("ds: cannot attach again yet", "error", err)
			said = text
		}
		select {
		case <-n.life.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (n *Node) attachOnce() (a *Attachment, accepts bool, err error) {
	n.transferring.Lock()
	n.mu.Lock()
	accepts = n.arrivals != nil
	except, missed := maps.Clone(n.doubtful), slices.Clone(n.missed)
	n.mu.Unlock()
	n.transferring.Unlock()
	n.clients.telling.Lock() // word to the daemon before is out, or lost
	here := n.clients.resume(except)
	n.clients.telling.Unlock()
	hello := &api.Message{AcceptsHandoffs: accepts, HasTUN: true, Resume: here, Missed: missed}
	for _, h := range except {
		hello.Doubts = append(hello.Doubts, api.Doubt{ID: h.id, Handoff: h.name, Client: h.client, To: h.to})
	}
	a, err = n.attach(n.life, hello)
	if err != nil {
		return nil, false, err
	}
	n.mu.Lock()
	before := n.config
	n.mu.Unlock()
	if a.Device != nil {
		a.Device.Close() // we have it
		a.Device = nil
	}
	if c := a.Config; c.Addr != before.Addr || c.CareOf != before.CareOf || c.MTU != before.MTU {
		a.close()
		return nil, false, fmt.Errorf("the daemon now has address %s, care-of address %s, MTU %d instead of %s, %s, %d; restart this program",
			c.Addr, c.CareOf, c.MTU, before.Addr, before.CareOf, before.MTU)
	}
	return a, accepts, nil
}

// resumed goes on in a new session. It returns nil if the Node is closed.
func (n *Node) resumed(a *Attachment, accepts bool) *unhurried {
	n.reconfigure(&a.Config)
	// A daemon that was started anew may have forgotten bindings, and nobody
	// would renew them, those of clients that have no connection now included. It says which
	// it has; until then what comes by them is taken, and what is sent goes through the
	// tunnel.
	n.stack.LeaveAll(grace)
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		a.close()
		return nil
	}
	session := newUnhurried(a.Session, n.several)
	n.session, n.decisions, n.announced = session, a.Decisions, accepts
	for _, a := range n.stranded {
		a.expire.Reset(strandTimeLeft)
	}
	n.mu.Unlock()
	n.announce()
	n.clients.attached()
	n.logger().Info("ds: attached to the daemon again", "node", a.Config.Node)
	return session
}

// reconfigure applies what may change while there are connections.
func (n *Node) reconfigure(c *api.SessionConfig) {
	if c == nil {
		return
	}
	var err error
	n.mu.Lock()
	before := n.config
	n.config.Via, n.config.KernelTunnel, n.config.Peers = c.Via, c.KernelTunnel, slices.Clone(c.Peers)
	n.config.Nodes, n.config.Contact = slices.Clone(c.Nodes), c.Contact
	n.contact.Store(c.Contact == n.config.Node)
	n.mu.Unlock()
	if c.Via != before.Via {
		err = n.stack.SetVia(c.Via)
	}
	err = errors.Join(err, n.stack.SetKernelTunnel(c.KernelTunnel))
	if !slices.Equal(c.Peers, before.Peers) {
		err = errors.Join(err, n.stack.SetPeers(c.Peers))
	}
	if err != nil {
		n.logger().Error("ds: configuration of the daemon", "error", err)
	}
}

// order is a handoff that an operator wants.
type order struct {
	session Session // to answer in
	m       *api.Message
}

// maxIdle is how many goroutines that have carried out an order wait for another: their
// stacks have grown to what it takes.
const maxIdle = 64

// obey carries out an order, and then others.
func (n *Node) obey(o order) {
	for {
		n.asked(o.session, o.m)
		if n.idle.Add(1) > maxIdle {
			n.idle.Add(-1)
			return
		}
		select {
		case o = <-n.orders:
			n.idle.Add(-1)
		case <-n.life.Done():
			return
		}
	}
}

// asked hands a client off because an operator wants it.
func (n *Node) asked(s Session, m *api.Message) {
	r, err := n.Handoff(context.Background(), m.Client, m.To, n.State)
	reply := &api.Message{Kind: api.Answered, ID: m.ID, Client: m.Client, To: m.To}
	if err != nil {
		reply.Error = err.Error()
		n.logger().Warn("ds: handoff asked for by an operator", "error", err)
	} else {
		reply.Connections, reply.Optimised = r.Connections, r.Optimised
		n.logger().Debug("ds: handed off, as an operator asked", "report", r)
	}
	s.Send(reply)
}
