package homeagent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/mobility/homeagent"
)

// changed records a change of a binding; r.mu is held.
func (r *Role) changed(c homeagent.Change) {
	log := r.log.With("home", c.Home)
	before, served := r.homes[c.Home]
	if c.CareOf.IsValid() {
		r.counts.registrations++
		r.homes[c.Home] = home{careOf: c.CareOf, until: r.start.Add(c.Until)}
		if before.careOf != c.CareOf {
			log.Info("contact has registered", "care_of", c.CareOf, "before", before.careOf)
			r.events.Publish(api.Event{Kind: api.EventRegistered, Server: c.Home, Detail: c.CareOf.String()})
		}
		r.route(c.Home, true)
		r.kernel.bind(c.Home, c.CareOf, r.log)
		return
	}
	if !c.Status.OK() {
		r.counts.refusals++
		log.Warn("registration refused", "status", c.Status)
		r.events.Publish(api.Event{Kind: api.EventFault, Server: c.Home, Detail: fmt.Sprint("registration refused: ", c.Status)})
	}
	if !served {
		return
	}
	r.homes[c.Home] = home{}
	r.kernel.bind(c.Home, netip.Addr{}, r.log)
	if before.careOf.IsValid() {
		log.Info("contact is not registered any more", "care_of", before.careOf)
		r.events.Publish(api.Event{Kind: api.EventDeregistered, Server: c.Home, Detail: before.careOf.String()})
	}
	if r.link != nil && leaves(c.Status) {
		r.route(c.Home, false)
	}
}

func (r *Role) route(home netip.Addr, ours bool) {
	if err := r.routes.set(home, ours); err != nil {
		r.log.Error("route to home address", "home", home, "error", err)
	}
}

// Status is how the home agent is doing: home addresses in order, counters.
func (r *Role) Status(context.Context) (*api.Status, error) {
	s := &api.Status{
		Role: api.RoleHomeAgent, API: api.Version, PID: os.Getpid(),
		Started: r.start, Address: r.cfg.Address,
	}
	queue, tunnel, sender := r.filter.Stats(), r.tunnel.Stats(), r.sender.Stats()
	kernel := make(map[string]uint64)
	r.kernel.count(kernel, r.log) // asks the kernel: not while packets wait
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, h := range r.homes {
		s.Homes = append(s.Homes, api.Home{Address: a, CareOf: h.careOf, Expires: h.until})
	}
	slices.SortFunc(s.Homes, func(a, b api.Home) int { return a.Address.Compare(b.Address) })
	s.Counters = map[string]uint64{
		"kernel_tunnels":        r.kernel.running(),
		"registrations":         r.counts.registrations,
		"registrations_refused": r.counts.refusals,
		"to_home_packets":       r.counts.packets,
		"tunnel_in_packets":     tunnel.Packets,
		"tunnel_in_octets":      tunnel.Octets,
		"tunnel_in_malformed":   tunnel.Malformed,
		"sent_packets":          sender.Sent,
		"sent_octets":           sender.Octets,
		"send_too_big":          sender.TooBig,
		"send_unreachable":      sender.Unreachable,
		"send_failed":           sender.Failed + sender.Full + sender.Denied + r.counts.undelivered,
		"queue_packets":         queue.Packets,
		"queue_lost":            queue.Failed + queue.QueueFull + queue.BufferFull,
	}
	maps.Copy(s.Counters, kernel)
	return s, nil
}
