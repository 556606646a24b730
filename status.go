package ds

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// Daemon is what [Node.Status], [Node.Clients] and [Node.Watch] ask: the part of a
// daemon's API that every user of its machine may read. [*api.Client] has it.
type Daemon interface {
	Nodes(ctx context.Context, server netip.Addr) ([]api.NodeInfo, error)
	Clients(ctx context.Context, server netip.Addr) ([]api.ClientInfo, error)
	Watch(ctx context.Context, o api.WatchOptions) iter.Seq2[api.Event, error]
}

// Status is how a node is doing, and its distributed server.
type Status struct {
	Server netip.Addr `json:"server"` // the distributed server address
	Node   string     `json:"node"`   // this node's name

	// Attached: there is a daemon. Without one connections live on, but nothing can
	// be handed off, and Contact is as it was.
	Attached bool `json:"attached"`

	Clients int    `json:"clients"` // those with connections in this process
	Contact string `json:"contact"` // the node that new clients come to

	// Nodes are all of them, this one too, as the daemon sees them: who can be
	// reached, who takes clients, how many each has. Nil without a daemon.
	Nodes []api.NodeInfo `json:"nodes,omitempty"`
}

// Status tells how the node is doing. That the daemon is away is no error; that it
// does not answer is.
func (n *Node) Status(ctx context.Context) (*Status, error) {
	if _, err := n.start(ctx); err != nil {
		return nil, err
	}
	n.mu.Lock()
	s := &Status{Server: n.config.Addr, Node: n.config.Node, Contact: n.config.Contact, Attached: n.session != nil}
	n.mu.Unlock()
	s.Clients = len(n.clients.here())
	if n.daemon == nil || !s.Attached {
		return s, nil
	}
	var err error
	if s.Nodes, err = n.daemon.Nodes(ctx, s.Server); err != nil {
		return nil, fmt.Errorf("ds: status: %w", err)
	}
	return s, nil
}

// Clients are those of the distributed server that the daemon of this node knows:
// the ones that this node has and, at the contact, all others, with the node that has
// each. The error is that of the daemon's API.
func (n *Node) Clients(ctx context.Context) ([]api.ClientInfo, error) {
	if err := n.ask(ctx); err != nil {
		return nil, err
	}
	all, err := n.daemon.Clients(ctx, n.server())
	if err != nil {
		return nil, fmt.Errorf("ds: clients: %w", err)
	}
	return all, nil
}

// Watch gives what happens to the distributed server, as the daemon of this node
// sees it: clients that come and go, handoffs, nodes that come and go, a new contact
// (package daemon/api has the kinds of events). It begins with what happens next, and
// outlives the daemon: what was lost, because the daemon has ended or this reader is
// slow, is replaced by one event of kind [api.EventMissed]. The last is an error: that
// of ctx, [ErrClosed], or what the daemon's API refuses with.
func (n *Node) Watch(ctx context.Context) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		if err := n.ask(ctx); err != nil {
			yield(api.Event{}, err)
			return
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(n.life, func() { cancel(ErrClosed) })()
		server := n.server()
		err := n.watch(ctx, func(e api.Event) bool {
			return e.Server.IsValid() && e.Server != server || yield(e, nil)
		})
		if err != nil {
			yield(api.Event{}, fmt.Errorf("ds: watch: %w", err))
		}
	}
}

// watch goes from stream to stream. It returns nil if yield does not want any more.
func (n *Node) watch(ctx context.Context, yield func(api.Event) bool) error {
	o := api.WatchOptions{Since: api.FromNow}
	var last api.Event // to find the place again; Seq 0: there is none
	lost := false      // a stream was, and nothing has come since
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		anew := false
		for e, err := range n.daemon.Watch(ctx, o) {
			if err != nil {
				if final := (*api.Error)(nil); errors.As(err, &final) && !errors.Is(err, api.ErrBusy) {
					return err
				}
				break
			}
			wait = firstRetry
			if lost && last.Seq != 0 {
				lost = false
				if e.Seq == last.Seq && e.Time.Equal(last.Time) {
					continue // it goes on
				}
				last, anew = api.Event{}, true // this daemon counts from 1
				break
			}
			if lost {
				lost = false
				if !yield(api.Event{Kind: api.EventMissed, Time: e.Time, Detail: "the daemon was lost"}) {
					return nil
				}
			}
			if last, o.Since = e, e.Seq-1; e.Kind == api.EventMissed {
				last, o.Since = api.Event{}, e.Seq
			}
			if !yield(e) {
				return nil
			}
		}
		if last.Seq == 0 && (anew || o.Since == api.FromNow) {
			o.Since = 0
		}
		lost = true
		if anew {
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// ask tells whether there is a daemon to be asked.
func (n *Node) ask(ctx context.Context) error {
	if _, err := n.start(ctx); err != nil {
		return err
	}
	if n.daemon == nil {
		return fmt.Errorf("ds: %w: Node.Attach has given no Daemon", errors.ErrUnsupported)
	}
	return nil
}

// server is the distributed server address.
func (n *Node) server() netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.config.Addr
}
