package dstest

import (
	"fmt"
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
		h := c.find(d, m.ID)
		if h == nil || h.done != nil {
			out = append(out, message{d, &api.Message{Kind: api.Imported, ID: m.ID, Error: "the target is gone"}})
			break
		}
		c.lastID++
		h.offered = c.lastID
		c.handoffs[h.offered] = h
		out = append(out, message{h.to, &api.Message{
			Kind: api.Offer, ID: h.offered, Client: h.client, From: d.name, Snapshot: m.Snapshot, State: m.State,
		}})
	case api.Accepted:
		if h := c.handoffs[m.ID]; h != nil && h.to == d && h.done == nil {
			out = append(out, message{h.from, &api.Message{Kind: api.Imported, ID: h.id, Error: m.Error}})
		}
	case api.Commit:
		h := c.find(d, m.ID)
		if h == nil {
			c.lastID++
			h = &handoff{client: m.Client, from: d, id: m.ID}
			c.handoffs[c.lastID] = h
			h.done = &api.Message{Kind: api.Done, ID: m.ID, Error: "it was not prepared"}
		}
		if h.done != nil {
			out = append(out, message{d, h.done})
			break
		}
		h.committed = true
		c.own(h.client, h.to.name)
		out = append(out, message{h.to, &api.Message{Kind: api.Activate, ID: h.offered, Optimised: c.Optimise}})
	case api.Activated:
		h := c.handoffs[m.ID]
		if h == nil || h.to != d || h.done != nil {
			break
		}
		out = append(out, c.decide(h, m.Error)...)
	case api.Abort:
		if h := c.find(d, m.ID); h != nil && !h.committed {
			c.forget(h)
			if h.offered != 0 {
				out = append(out, message{h.to, &api.Message{Kind: api.Forget, ID: h.offered}})
			}
		}
	}
	return out
}

// decide ends a handoff that was committed: it is over with an error or without.
func (c *Cluster) decide(h *handoff, failure string) []message {
	done := &api.Message{Kind: api.Done, ID: h.id}
	if failure != "" {
		c.own(h.client, h.from.name)
		done.Error = failure
	} else {
		done.CareOf = h.to.careOf
		if cl := c.clients[h.client]; cl != nil && c.Optimise {
			cl.dev.bind(h.to.careOf)
		}
	}
	h.done = done // also for when it is back, if it is away or does not get it
	return []message{{h.from, done}}
}

// resolve is what the daemons do about handoffs that were committed when an
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
		case h.to == d && h.committed && h.done == nil:
			failure := ""
			if hello.HasTUN && !slices.Contains(hello.Resume, h.client) {
				failure = "the target never heard of the commit"
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

// detached is what the daemons do when an application's session ends: what is
// not committed comes to nothing. mu is held.
func (c *Cluster) detached(d *daemon) (out []message) {
	seen := make(map[*handoff]bool)
	for _, h := range c.handoffs {
		if seen[h] || h.committed || h.done != nil || h.from != d && h.to != d {
			continue
		}
		seen[h] = true
		// Perhaps the donor has sent a commit that never came, or will.
		h.done = &api.Message{Kind: api.Done, ID: h.id, Error: "the handoff had ended before it was committed"}
		switch {
		case h.offered == 0:
		case h.from == d:
			out = append(out, message{h.to, &api.Message{Kind: api.Forget, ID: h.offered}})
		default:
			out = append(out, message{h.from, &api.Message{Kind: api.Imported, ID: h.id, Error: "the target is gone"}})
		}
	}
	return out
}
