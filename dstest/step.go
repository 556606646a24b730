package dstest

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/distributed-servers/ds/daemon/api"
)

// message is one to an application.
type message struct {
	to *daemon
	m  *api.Message
}

// step is what the daemons do about a message of an application. mu is held.
func (c *Cluster) step(d *daemon, m *api.Message) (out []message) {
	switch m.Kind {
	case api.Hello:
		d.accepts = m.AcceptsHandoffs
	case api.Owned:
		c.own(m.Client, d.name)
		if c.Optimise {
			out = append(out, message{d, &api.Message{Kind: api.Bound, Client: m.Client}})
		}
	case api.Gone:
		if c.owners[m.Client] == d.name {
			c.own(m.Client, "")
		}
	case api.Answered:
		if ch := d.asked[m.ID]; ch != nil {
			delete(d.asked, m.ID)
			ch <- m
		}
	case api.Prepare:
		out = append(out, message{d, c.prepare(d, m)})
	case api.Transfer:
		out = c.transfer(d, m)
	case api.Late:
		if h := c.find(d, m.ID); h != nil && h.offered != 0 && (h.done == nil || h.done.Error == "") {
			out = append(out, message{h.to, &api.Message{Kind: api.Late, Client: h.client, Packets: m.Packets}})
		}
	case api.Accepted:
		h := c.handoffs[m.ID]
		switch {
		case h == nil || h.to != d || h.done != nil || h.taken:
		case m.Error != "":
			out = c.callOff(h, m.Error)
		default:
			h.taken = true
			c.own(h.client, d.name)
			c.bind(h.client, d)
			out = append(out, message{d, &api.Message{Kind: api.Activate, ID: h.offered, Optimised: c.Optimise}})
		}
	case api.Activated:
		if h := c.handoffs[m.ID]; h != nil && h.to == d && h.done == nil {
			out = c.decide(h, "")
		}
	case api.Abort:
		h := c.find(d, m.ID)
		switch {
		case h == nil || h.taken || h.done != nil:
		case h.offered == 0:
			c.forget(h)
		default:
			out = c.callOff(h, "the donor has called it off")
		}
	}
	return out
}

// transfer offers what a donor has given away. mu is held.
func (c *Cluster) transfer(d *daemon, m *api.Message) []message {
	h := c.find(d, m.ID)
	if h == nil {
		return []message{{d, &api.Message{Kind: api.Done, ID: m.ID, Error: "it was not prepared"}}}
	}
	if h.done != nil {
		return []message{{d, h.done}}
	}
	c.lastID++
	h.offered = c.lastID
	c.handoffs[h.offered] = h
	return []message{{h.to, &api.Message{
		Kind: api.Offer, ID: h.offered, Client: h.client, From: d.name, Snapshot: m.Snapshot, State: m.State,
	}}}
}

// bind is the Binding Update of a client's new owner, if the client knows Mobile
// IPv6. mu is held.
func (c *Cluster) bind(client netip.Addr, owner *daemon) {
	if cl := c.clients[client]; cl != nil && c.Optimise {
		cl.dev.bind(owner.careOf)
	}
}

// decide ends a handoff: it is over with an error or without. mu is held.
func (c *Cluster) decide(h *handoff, failure string) []message {
	h.done = &api.Message{Kind: api.Done, ID: h.id, Error: failure} // also for when it is back, if it is away or does not get it
	if failure == "" {
		h.done.CareOf = h.to.careOf
	} else {
		c.own(h.client, h.from.name)
		c.bind(h.client, h.from)
	}
	return []message{{h.from, h.done}}
}

// callOff decides a handoff that the target has not taken, and never will. mu is
// held.
func (c *Cluster) callOff(h *handoff, why string) []message {
	out := c.decide(h, why)
	if h.offered != 0 {
		out = append(out, message{h.to, &api.Message{Kind: api.Forget, ID: h.offered}})
	}
	return out
}

// resolve is what the daemons do about handoffs that were not decided when an
// application was lost that is back now. mu is held.
func (c *Cluster) resolve(d *daemon, hello *api.Message) (out []message) {
	seen := make(map[*handoff]bool)
	for _, h := range c.handoffs {
		if seen[h] || h.from != d && h.to != d {
			continue
		}
		seen[h] = true
		switch {
		case h.from == d && !hello.HasTUN: // another process: nobody waits for the answer
			c.forget(h)
		case h.from == d && h.done != nil:
			out = append(out, message{d, h.done})
		case h.to == d && h.taken && h.done == nil:
			failure := ""
			if hello.HasTUN && !slices.Contains(hello.Resume, h.client) {
				failure = "the target never heard that it has the client"
			}
			out = append(out, c.decide(h, failure)...)
		}
	}
	return out
}

func (c *Cluster) prepare(d *daemon, m *api.Message) *api.Message {
	refuse := func(format string, args ...any) *api.Message {
		return &api.Message{Kind: api.Prepared, ID: m.ID, Error: fmt.Sprintf(format, args...)}
	}
	to := c.daemons[m.To]
	switch {
	case to == nil:
		return refuse("there is no node %s", m.To)
	case to == d:
		return refuse("%s is this node itself", m.To)
	case to.session == nil || !to.accepts:
		return refuse("no application at %s accepts handoffs", m.To)
	case c.owners[m.Client] != d.name:
		return refuse("%s is not a client of %s", m.Client, d.name)
	}
	for _, h := range c.handoffs {
		if h.from == d && h.client == m.Client {
			c.forget(h) // it knows how that one ended
		}
	}
	h := &handoff{client: m.Client, from: d, to: to, id: m.ID}
	c.lastID++
	c.handoffs[c.lastID] = h // so that find finds it; Transfer gives it the target's ID
	return &api.Message{Kind: api.Prepared, ID: m.ID, Handoff: c.lastID, Optimised: c.Optimise}
}

// find returns a handoff by the donor's ID.
func (c *Cluster) find(d *daemon, id uint64) *handoff {
	for _, h := range c.handoffs {
		if h.from == d && h.id == id {
			return h
		}
	}
	return nil
}

func (c *Cluster) forget(h *handoff) {
	for id, o := range c.handoffs {
		if o == h {
			delete(c.handoffs, id)
		}
	}
}

// detached is what the daemons do when an application's session ends: what the
// target has not taken comes to nothing. mu is held.
func (c *Cluster) detached(d *daemon) (out []message) {
	seen := make(map[*handoff]bool)
	for _, h := range c.handoffs {
		if seen[h] || h.taken || h.done != nil || h.from != d && h.to != d {
			continue
		}
		seen[h] = true
		if h.offered == 0 {
			// Perhaps the donor has sent a Transfer that never came, or will.
			h.done = &api.Message{Kind: api.Done, ID: h.id, Error: "the handoff had ended before the client was given away"}
			continue
		}
		out = append(out, c.callOff(h, "an application was lost before the target had taken the client")...)
	}
	return out
}
