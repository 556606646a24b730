package correspondent

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/correspondent"
)

// changed makes a change of a binding one of the routes; r.mu is held. Without
// its route a binding has half of its effect: what is sent to the mobile node
// goes by way of the home agent.
func (r *Role) changed(c correspondent.Change) {
	if !c.CareOf.IsValid() {
		r.log.Info("binding is gone", "home", c.Home, "address", c.Local)
		r.events.Publish(api.Event{Kind: api.EventUnbound, Server: c.Home, Client: c.Local})
		if err := r.routes.unbound(c.Local, c.Home); err != nil {
			r.log.Error("route stays", "home", c.Home, "address", c.Local, "error", err)
		}
		return
	}
	r.counts.bindings++
	r.log.Debug("binding", "home", c.Home, "address", c.Local, "care_of", c.CareOf)
	r.events.Publish(api.Event{Kind: api.EventBound, Server: c.Home, Client: c.Local, Detail: c.CareOf.String()})
	if err := r.routes.bound(c.Local, c.Home, c.CareOf, c.Until-time.Since(r.start)); err != nil {
		r.log.Error("no route; packets take the way of the home agent", "home", c.Home, "address", c.Local, "error", err)
	}
}

// Status is how the correspondent is doing: bindings in order, counters.
func (r *Role) Status(context.Context) (*api.Status, error) {
	s := &api.Status{Role: api.RoleCorrespondent, API: api.Version, PID: os.Getpid(), Started: r.start}
	queue, sender := r.filter.Stats(), r.sender.Stats()
	r.mu.Lock()
	defer r.mu.Unlock()
	for b := range r.machine.Bindings() {
		s.Bindings = append(s.Bindings, api.Binding{
			Home: b.Home, CareOf: b.CareOf, Peer: b.Local, Sequence: b.Sequence, Expires: r.start.Add(b.Until),
		})
	}
	slices.SortFunc(s.Bindings, func(a, b api.Binding) int {
		if c := a.Home.Compare(b.Home); c != 0 {
			return c
		}
		return a.Peer.Compare(b.Peer)
	})
	out, in := r.routes.kernel.packets()
	s.Counters = map[string]uint64{
		"binding_updates":    r.counts.bindings,
		"in_packets":         r.counts.in + in,
		"out_packets":        r.counts.out + out,
		"kernel_headers":     r.routes.kernel.running(),
		"kernel_in_packets":  in,
		"kernel_out_packets": out,
		"undelivered":        r.counts.undelivered,
		"sent_packets":       sender.Sent,
		"sent_octets":        sender.Octets,
		"send_too_big":       sender.TooBig,
		"send_unreachable":   sender.Unreachable,
		"send_failed":        sender.Failed + sender.Full + sender.Denied,
		"queue_packets":      queue.Packets,
		"queue_lost":         queue.Failed + queue.QueueFull + queue.BufferFull,
	}
	return s, nil
}
