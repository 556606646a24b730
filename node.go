package ds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/stack"
)

// Defaults of [Node].
const (
	DefaultSocket   = api.NodeSocket
	DefaultPatience = time.Second
)

// Node is this process as a node of a distributed server. The zero value is
// ready: it attaches to the daemon of this machine when it is first used. Its
// fields are set before that and not changed afterwards; its methods may be
// called from several goroutines. It must not be copied.
type Node struct {
	// Socket of the daemon. Default [DefaultSocket].
	Socket string

	// Addr is the distributed server address. Default: the one that this user
	// may attach to, if there is only one.
	Addr netip.Addr

	// Program is the name by which operators know the application. Default: the
	// last element of os.Args[0].
	Program string

	// State gives the application's state of a connection, in handoffs that an
	// operator asks for. See [Node.Handoff].
	State func(net.Conn) ([]byte, error)

	// MoveInWrite says that a connection is at rest also while a Write waits
	// that has taken nothing yet: the state tells how much was written.
	// Otherwise only a Read that waits counts. Write in pieces of
	// [stack.MaxWhole] octets or less: those are taken all or none, and hold no
	// handoff up, however slowly the client reads.
	MoveInWrite bool

	// Patience is how long a handoff with state waits for handlers to come to
	// rest, and how long it lets the state function work. Default
	// [DefaultPatience].
	Patience time.Duration

	// Logger gets what nobody else is told: a daemon that went away and came
	// back, handoffs by an operator. Default [slog.Default].
	Logger *slog.Logger

	// Attach replaces the daemon at Socket, for tests and for programs that
	// bring a daemon of their own. See package dstest.
	Attach func(ctx context.Context, hello *api.Message) (*Attachment, error)

	starting   sync.Mutex // held while the node is being started
	announcing sync.Mutex // held while the daemon is told whether handoffs are accepted
	clients    clients
	wg         sync.WaitGroup

	// transferring is held for reading until it is known whether a Transfer has gone out,
	// and for writing to tell a daemon which have: what it is told is in doubt it decides.
	transferring sync.RWMutex

	room *semaphore.Weighted // octets of Transfers that may be under way

	contact atomic.Bool // this node is

	orders chan order   // for who waits for one
	idle   atomic.Int32 // how many do

	// Set by start.
	stack  *stack.Stack
	daemon Daemon          // nil: there is none to ask
	life   context.Context // ended by Close
	end    context.CancelFunc

	mu        sync.Mutex
	closed    bool
	started   bool
	config    api.SessionConfig
	session   Session        // nil: detached
	decisions *api.Decisions // of session
	announced bool           // the daemon was told that handoffs are accepted
	arrivals  *HandoffListener
	lastID    uint64
	leaving   map[uint64]*handoff
	doubtful  map[netip.Addr]*handoff // those of leaving that the daemon was lost over
	arriving  map[uint64]*arrival
	stranded  map[netip.Addr]*arrival // whose daemon was lost before it could decide
	missed    []api.Missed            // those of arriving that were not activated, the latest

	away map[netip.Addr]*stack.Hold // clients of an application before this one; of run's goroutine
}

// Listen accepts TCP connections of clients from their beginning. network is
// "tcp" or "tcp6"; address is "host:port" with a literal host, or without host
// for the distributed server address. Each connection is a [Conn].
func (n *Node) Listen(network, address string) (net.Listener, error) {
	s, err := n.start(context.Background())
	if err != nil {
		return nil, err
	}
	l, err := s.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return listener{l, n}, nil
}

// Dial connects to address from the distributed server address. Its form is that
// of [net.Dialer.DialContext]; what it returns is a [Conn].
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	s, err := n.start(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return Conn{c, n}, nil
}

// Name is what this node is called.
func (n *Node) Name(ctx context.Context) (string, error) {
	_, err := n.start(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.config.Node, err
}

// Others are the names of the other nodes, to hand clients off to. Those that an
// operator drains are not among them.
func (n *Node) Others(ctx context.Context) ([]string, error) {
	_, err := n.start(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.config.Nodes), err
}

// start attaches to the daemon and builds the stack, unless that has been done.
func (n *Node) start(ctx context.Context) (*stack.Stack, error) {
	n.starting.Lock()
	defer n.starting.Unlock()
	n.mu.Lock()
	started, closed, accepts := n.started, n.closed, n.arrivals != nil
	n.mu.Unlock()
	switch {
	case closed:
		return nil, fmt.Errorf("ds: %w", ErrClosed)
	case started:
		return n.stack, nil
	}
	n.clients.init()
	a, err := n.attach(ctx, &api.Message{AcceptsHandoffs: accepts})
	if err != nil {
		return nil, fmt.Errorf("ds: attach: %w", err)
	}
	if a.Device == nil {
		a.close()
		return nil, errors.New("ds: attach: the daemon gave no TUN")
	}
	n.contact.Store(a.Config.Contact == a.Config.Node)
	var away map[netip.Addr]*stack.Hold
	s, err := stack.New(stack.Config{
		Device: a.Device,
		Addrs:  []netip.Addr{a.Config.Addr},
		Mobile: &stack.Mobile{
			Home: a.Config.Addr, CareOf: a.Config.CareOf,
			Via: a.Config.Via, KernelTunnel: a.Config.KernelTunnel, Peers: a.Config.Peers,
		},
		Present: n.clients.present,
		Begin:   func(s *stack.Stack) { away = n.leaveAway(s, a.Config.Away, a.Config.Left) },
	})
	if err != nil {
		a.close()
		return nil, fmt.Errorf("ds: attach: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.life, n.end = context.WithCancel(context.Background())
	n.leaving = make(map[uint64]*handoff)
	n.room = semaphore.NewWeighted(int64(maxTransfer))
	n.orders = make(chan order)
	n.doubtful = make(map[netip.Addr]*handoff)
	n.arriving = make(map[uint64]*arrival)
	n.stranded = make(map[netip.Addr]*arrival)
	n.away = away
	n.stack, n.daemon, n.config, n.started = s, a.Daemon, a.Config, true
	session := newUnhurried(a.Session, n.several)
	n.session, n.decisions, n.announced = session, a.Decisions, accepts
	n.wg.Go(func() { n.run(session) })
	n.wg.Go(n.tellClients)
	return s, nil
}

// Close ends everything: the listeners, and what connections are still here,
// which are reset. Those that have left, or may have, are not touched. Handoffs
// that have not come to their transfer fail.
func (n *Node) Close() error {
	n.starting.Lock()
	defer n.starting.Unlock()
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	started, session, arrivals := n.started, n.session, n.arrivals
	n.mu.Unlock()
	if arrivals != nil {
		arrivals.Close()
	}
	if !started {
		return nil
	}
	n.end()
	n.clients.stop()
	if session != nil {
		session.Close() // fails handoffs
	}
	n.wg.Wait()
	n.mu.Lock()
	doubtful, stranded := n.doubtful, slices.Collect(maps.Keys(n.stranded))
	n.doubtful = nil
	n.mu.Unlock()
	for _, h := range doubtful {
		h.donor.Discard(nil, 0) // whoever has them now, they are not ours to reset
	}
	for _, client := range stranded {
		n.unstrand(client)
	}
	if c, ok := n.daemon.(*api.Client); ok {
		c.Close()
	}
	return n.stack.Close()
}

func (n *Node) logger() *slog.Logger {
	if n.Logger != nil {
		return n.Logger
	}
	return slog.Default()
}

func (n *Node) patience() time.Duration {
	if n.Patience > 0 {
		return n.Patience
	}
	return DefaultPatience
}

func (n *Node) program() string {
	if n.Program != "" {
		return n.Program
	}
	return filepath.Base(os.Args[0])
}
