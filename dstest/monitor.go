package dstest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
)

// monitor is what a node's daemon tells of itself, as the API of a real one.
type monitor struct{ *daemon }

var _ ds.Daemon = monitor{}

// look looks at the machine, unless the daemon is down.
func (d monitor) look(f func(*process)) error {
	p := d.running.Load()
	if p == nil {
		return fmt.Errorf("%w: that of %s is down", api.ErrNotRunning, d.name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
	return nil
}

func (d monitor) Nodes(context.Context, netip.Addr) (nodes []api.NodeInfo, err error) {
	d.cluster.mu.Lock()
	attached := d.app != nil && d.app.session != nil
	d.cluster.mu.Unlock()
	err = d.look(func(p *process) {
		m := p.member
		contact, _ := m.Contact()
		clients, _ := m.Count()
		nodes = append(nodes, api.NodeInfo{
			Node: d.name, Local: true, Connected: true, Attached: attached, AcceptsHandoffs: m.Accepts(), Draining: m.Draining(), Clients: clients,
		})
		for name, hello := range m.Peers() {
			v := api.NodeInfo{Node: name}
			if hello != nil {
				v.Connected, v.Attached, v.AcceptsHandoffs, v.Draining, v.Clients = true, hello.Attached, hello.Accepts, hello.Draining, hello.Clients
			}
			nodes = append(nodes, v)
		}
		for i := range nodes {
			v := &nodes[i]
			v.Contact, v.CareOf, v.Address = v.Node == contact.Name, d.addrs[v.Node].CareOf, d.addrs[v.Node].Daemon
		}
	})
	slices.SortFunc(nodes, func(a, b api.NodeInfo) int { return cmp.Compare(a.Node, b.Node) })
	return nodes, err
}

func (d monitor) Clients(context.Context, netip.Addr) (clients []api.ClientInfo, err error) {
	err = d.look(func(p *process) {
		for _, c := range p.member.Clients() {
			v := api.ClientInfo{
				Server: Server, Client: c.Client, Owner: d.name, Local: true, Epoch: c.Epoch, Mode: api.Relayed, State: c.State.String(),
				Connections: c.Connections,
			}
			if c.Bound {
				v.Mode = api.Optimised
			}
			if c.Moving != "" {
				v.Handoff = c.Stage + ", to " + c.Moving
			}
			clients = append(clients, v)
		}
		for addr, o := range p.member.Owners() {
			if o.Name != d.name {
				clients = append(clients, api.ClientInfo{Server: Server, Client: addr, Owner: o.Name, Epoch: o.Epoch})
			}
		}
	})
	slices.SortFunc(clients, func(a, b api.ClientInfo) int { return a.Client.Compare(b.Client) })
	return clients, err
}

var (
	errEnded  = errors.New("dstest: the daemon has ended")
	errEnough = errors.New("dstest: the reader has enough")
)

func (d monitor) Watch(ctx context.Context, o api.WatchOptions) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		p := d.running.Load()
		if p == nil {
			yield(api.Event{}, fmt.Errorf("%w: that of %s is down", api.ErrNotRunning, d.name))
			return
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go func() {
			select {
			case <-p.ended:
				cancel(errEnded)
			case <-ctx.Done():
			}
		}()
		err := p.events.Watch(ctx, o, time.Hour, func(events []api.Event) error {
			for _, e := range events {
				if !yield(e, nil) {
					return errEnough
				}
			}
			return nil
		})
		if !errors.Is(err, errEnough) {
			yield(api.Event{}, err)
		}
	}
}
