package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/mobility/node"
	"github.com/distributed-servers/ds/mobility/relay"
)

// How long is waited.
const (
	prepareTime   = 3 * time.Second       // for the client's answers before a handoff
	handshakeTime = 10 * time.Millisecond // before a freeze is tried again
	handshakes    = 500                   // so often
	grace         = time.Minute           // for stragglers
)

// Preparation is what the target of a handoff has of a client beforehand.
type Preparation int

// Preparations.
const (
	Ahead     Preparation = iota // everything: the Binding Update goes out at once
	HomeToken                    // the donor's home keygen token: a care-of test comes first
	Nothing                      // nothing but the sequence number: the whole return routability procedure
)

func (p Preparation) String() string {
	return [...]string{"ahead", "home token", "nothing"}[p]
}

// Report tells of a handoff. Times are the simulation's.
type Report struct {
	Client   netip.Addr
	From, To string

	Ready     bool          // the target had all tokens
	Begin     time.Duration // of the preparation
	Freeze    time.Duration
	Commit    time.Duration
	Activate  time.Duration
	Bytes     int  // of the snapshot
	Optimised bool // the target sent a Binding Update at once
}

// Handoff moves a client from its owner to another node. It lets simulated time
// pass.
func (s *System) Handoff(p *lab.Proc, client netip.Addr, to *Node, prepare Preparation) (Report, error) {
	from := s.owners[client]
	if from == nil {
		return Report{}, fmt.Errorf("cluster: hand off %s: nobody owns it", client)
	}
	r := Report{Client: client, From: from.Name, To: to.Name, Begin: p.Now()}
	fail := func(stage string, err error) (Report, error) {
		return r, fmt.Errorf("cluster: hand off %s from %s to %s: %s: %w", client, from.Name, to.Name, stage, err)
	}

	// Prepare. Whatever comes of it, the handoff goes on: a client without
	// Mobile IPv6 is relayed.
	if prepare == Ahead {
		grant, _ := from.Mobile.Grant(client, p.Now())
		s.message(p, from, to, client, 100, "prepare")
		r.Ready = to.await(p, client, node.Prepare{Client: client, Grant: grant}, node.Ready, node.Unsupported) == node.Ready
		s.message(p, to, from, client, 50, "ready")
	}

	// Freeze and export.
	donor := migrate.NewClientDonor(from.Stack, client)
	err := donor.Freeze()
	for try := 1; errors.Is(err, migrate.ErrHandshake) && try < handshakes; try++ {
		p.Sleep(handshakeTime)
		err = donor.Freeze()
	}
	if err != nil {
		to.program.step(node.Abandon{Client: client})
		return fail("freeze", err)
	}
	r.Freeze = p.Now()
	snap, err := donor.Export(nil)
	if err != nil {
		to.program.step(node.Abandon{Client: client})
		return fail("export", errors.Join(err, donor.Thaw()))
	}
	r.Bytes = len(snap)
	var sessions []*serverSession // what the application has to say of each
	for _, c := range donor.Conns() {
		sessions = append(sessions, from.sessions[c])
	}
	s.message(p, from, to, client, len(snap), "snapshot")

	// Import: silent, and out of reach.
	target, err := migrate.Import(to.Stack, snap)
	if err != nil {
		to.program.step(node.Abandon{Client: client})
		s.message(p, to, from, client, 50, "refused")
		return fail("import", errors.Join(err, donor.Thaw()))
	}
	s.message(p, to, from, client, 50, "imported")

	// Commit: the point of no return.
	r.Commit = p.Now()
	grant, _ := from.Mobile.Grant(client, p.Now())
	if prepare == Nothing {
		grant = node.Grant{Sequence: grant.Sequence, Binding: grant.Binding}
	}
	from.program.step(node.Abandon{Client: client})
	late, err := donor.Discard(func(b []byte) { from.Stack.Tunnel(to.CareOf, b) }, grace)
	if err != nil {
		return fail("discard", err)
	}
	from.Stack.Leave(client, grace)
	s.owners[client] = nil // nobody may send
	s.epochs[client]++
	epoch := s.epochs[client]
	octets := 100
	for _, b := range late {
		octets += len(b)
	}
	s.message(p, from, to, client, octets, "commit")

	// Activate and bind: the Binding Update first, then the data.
	s.owners[client] = to
	to.program.step(node.Bind{Client: client, Grant: grant})
	r.Optimised = to.Stack.Bound(client)
	conns, err := target.Activate(late...)
	if err != nil {
		return fail("activate", err)
	}
	r.Activate = p.Now()
	for i, c := range conns {
		if c != nil && sessions[i] != nil {
			to.start(c, sessions[i])
		} else if c != nil {
			to.start(c, newServerSession())
		}
	}
	s.tellContact(to, relay.SetOwner{Client: client, Owner: to.CareOf, Epoch: epoch})
	return r, nil
}

// tellContact tells the contact who owns a client.
func (s *System) tellContact(from *Node, in relay.SetOwner) {
	s.Sim.Go("tell contact", func(p *lab.Proc) {
		s.message(p, from, s.contact, in.Client, 50, "owner")
		if s.contact.relay != nil {
			s.contact.relay.Step(p.Now(), in)
		}
	})
}

// await gives the machine an input and waits for one of its answers, 0 if
// there is none in time.
func (n *Node) await(p *lab.Proc, client netip.Addr, in node.Input, kinds ...node.Kind) node.Kind {
	delete(n.said, client)
	n.program.step(in)
	n.system.Sim.After(0, func() {}) // the machine's deadline may have changed
	var got node.Kind
	p.WaitFor(prepareTime, func() bool {
		for _, k := range kinds {
			if e, ok := n.said[client]; ok && e.Kind == k {
				got = k
				return true
			}
		}
		return false
	})
	return got
}

// Via tells which way packets from a node to a client take: "direct", or
// through whom.
func (n *Node) Via(client netip.Addr) string {
	switch {
	case n.Stack.Bound(client):
		return "direct"
	case n == n.system.contact:
		return "home agent"
	}
	return "contact and home agent"
}
