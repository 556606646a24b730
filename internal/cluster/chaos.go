package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/mobility/relay"
)

// Chaos is a run in which much goes wrong, all of it drawn from the seed: links
// lose, double and overtake packets, are down for a while, the home agent
// crashes and comes back without its memory, and clients are handed to and fro
// meanwhile. It returns what should not have been, or nil:
//
//   - every octet arrives, once, where it belongs; no connection is reset
//   - a node sends for none but its own clients
//   - when all is quiet, client, owner and contact agree who the owner is
//
// What it takes is limited by simulated time, so a run that hangs is a failure
// too. The hash is that of the run.
//
// tap, if not nil, is told of every packet.
func Chaos(seed uint64, tap func(lab.Event)) (hash uint64, err error) {
	r := rand.New(rand.NewPCG(seed, 0xc4a05))
	upTo := func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d) + 1)) }
	s, err := New(Config{
		Seed:        seed,
		Nodes:       2 + r.IntN(2),
		ClientDelay: upTo(40 * time.Millisecond),
		NodeDelay:   upTo(time.Millisecond),
		AgentDelay:  upTo(5 * time.Millisecond),
	})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if tap != nil {
		s.Sim.Tap(tap)
	}
	resets := 0
	var downloads []*Download
	s.Sim.Tap(func(e lab.Event) {
		// A late duplicate of a last acknowledgement is answered with a reset,
		// as it should be (RFC 9293 section 3.10.7.1); nobody is hurt.
		if e.Verdict == lab.Sent && IsReset(e.Packet) && s.alive(e.Packet, downloads) {
			resets++
		}
	})
	for range 1 + r.IntN(3) {
		if _, err := s.AddClient(r.IntN(4) > 0); err != nil {
			return 0, err
		}
	}
	s.Sim.Run(2 * time.Second) // the contact registers
	const trouble = 4 * time.Second

	// Links, for the time of trouble.
	hosts := []*lab.Host{s.Agent}
	for _, n := range s.Nodes {
		hosts = append(hosts, n.Host)
	}
	for _, c := range s.Clients {
		hosts = append(hosts, c.Host)
	}
	var names []string
	for _, h := range hosts {
		names = append(names, h.Name())
		if r.IntN(2) == 0 {
			up, down := s.impaired(h, r), s.impaired(h, r)
			h.Port().SetImpair(up, down)
		}
	}
	for range r.IntN(3) { // a piece of the network is cut off, one way or both
		a, b := names[r.IntN(len(names))], names[r.IntN(len(names))]
		both, at, d := r.IntN(2) == 0, s.Sim.Now()+upTo(trouble), upTo(1500*time.Millisecond)
		s.Sim.At(at, func() {
			cut := s.Net.Block
			if both {
				cut = s.Net.Partition
			}
			s.Sim.After(d, cut([]string{a}, []string{b}))
		})
	}
	var failed []error
	if r.IntN(4) == 0 {
		at, d := s.Sim.Now()+upTo(trouble), upTo(2*time.Second)
		s.Sim.At(at, func() {
			s.Agent.Crash()
			s.Sim.After(d, func() {
				if err := s.Agent.Restart(); err != nil {
					failed = append(failed, err)
				}
			})
		})
	}
	s.Sim.After(trouble, func() {
		for _, h := range hosts {
			delay(h, s.delayOf(h))
		}
	})

	// Transfers and handoffs.
	handing := 0
	for _, c := range s.Clients {
		for range 1 + r.IntN(2) {
			t := Transfer{Down: r.Int64N(40 << 10), Up: r.Int64N(20 << 10)}
			if r.IntN(2) == 0 {
				t.Chunk, t.Every = 1+r.IntN(2000), upTo(200*time.Millisecond)
				t.Down = min(t.Down, int64(t.Chunk)*30)
			}
			s.Sim.After(upTo(trouble/2), func() { downloads = append(downloads, c.Start(t)) })
			handing++ // to be started, too
			s.Sim.After(trouble/2, func() { handing-- })
		}
		handing++
		order := make([]int, 1+r.IntN(4))
		how, pause := make([]Preparation, len(order)), make([]time.Duration, len(order))
		for i := range order {
			order[i], how[i], pause[i] = r.IntN(len(s.Nodes)), Preparation(r.IntN(3)), upTo(1500*time.Millisecond)
		}
		s.Sim.Go("operator of "+c.Name, func(p *lab.Proc) {
			defer func() { handing-- }()
			for i, to := range order {
				p.Sleep(pause[i])
				owner := s.owners[c.Addr]
				if owner == nil || owner == s.Nodes[to] || len(owner.Stack.ConnsOf(c.Addr)) == 0 {
					continue
				}
				_, err := s.Handoff(p, c.Addr, s.Nodes[to], how[i])
				switch {
				case errors.Is(err, migrate.ErrEnded): // the client has gone
				case errors.Is(err, migrate.ErrHandshake): // cut off in the middle of it
				case err != nil:
					failed = append(failed, err)
				}
			}
		})
	}
	over := s.Sim.RunUntil(20*time.Minute, func() bool {
		for _, d := range downloads {
			if !d.Done {
				return false
			}
		}
		return handing == 0
	})
	s.Sim.Run(2 * time.Minute) // bindings converge
	if !over {
		failed = append(failed, errors.New("cluster: not over after 20 minutes"))
	}
	for i, d := range downloads {
		if d.Err != nil {
			failed = append(failed, fmt.Errorf("cluster: transfer %d: %w", i, d.Err))
		}
	}
	if resets > 0 {
		failed = append(failed, fmt.Errorf("cluster: %d resets", resets))
	}
	failed = append(failed, s.problems...)
	failed = append(failed, s.diverged()...)
	return s.Sim.Hash(), errors.Join(failed...)
}

// alive tells whether a packet belongs to a transfer that is not over.
func (s *System) alive(b []byte, downloads []*Download) bool {
	p, err := innermost(b)
	if err != nil || len(p.Payload) < 4 {
		return false
	}
	for _, d := range downloads {
		if d.Conn == nil || d.Done {
			continue
		}
		client := netip.AddrPortFrom(p.Source(), binary.BigEndian.Uint16(p.Payload))
		if p.Source() == Home {
			client = netip.AddrPortFrom(p.Destination(), binary.BigEndian.Uint16(p.Payload[2:]))
		}
		if d.Conn.LocalAddr().(*net.TCPAddr).AddrPort() == client {
			return true
		}
	}
	return false
}

// impaired is a bad direction of a host's link.
func (s *System) impaired(h *lab.Host, r *rand.Rand) lab.Impair {
	return lab.Impair{
		Loss:      r.Float64() * .1,
		Duplicate: r.Float64() * .1,
		Reorder:   r.Float64() * .1,
		Delay:     s.delayOf(h),
		Jitter:    time.Duration(r.Int64N(int64(5 * time.Millisecond))),
	}
}

func (s *System) delayOf(h *lab.Host) time.Duration {
	switch {
	case h == s.Agent:
		return s.cfg.AgentDelay
	case h.Name()[0] == 'n':
		return s.cfg.NodeDelay
	}
	return s.cfg.ClientDelay
}

// diverged tells where client, owner and contact do not agree.
func (s *System) diverged() (errs []error) {
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("cluster: at the end: "+format, args...))
	}
	if until, ok := s.contact.Mobile.Registered(); !ok || until <= s.Sim.Now() {
		bad("the contact is not registered")
	}
	atContact := make(map[netip.Addr]relay.SetOwner)
	for c := range s.contact.relay.Clients() {
		atContact[c.Client] = c
	}
	for _, c := range s.Clients {
		owner := s.owners[c.Addr]
		if owner == nil {
			continue
		}
		if at, ok := atContact[c.Addr]; ok && at.Owner != owner.CareOf {
			bad("%s is owned by %s, and the contact thinks by %v", c.Name, owner.Name, at.Owner)
		} else if !ok && owner != s.contact {
			bad("%s is owned by %s, and the contact knows nothing of it", c.Name, owner.Name)
		}
		for _, n := range s.Nodes {
			if n != owner && n.Stack.Bound(c.Addr) {
				bad("%s still sends to %s by a binding, and %s owns it", n.Name, c.Name, owner.Name)
			}
		}
		if c.Correspondent == nil {
			if owner.Stack.Bound(c.Addr) {
				bad("%s sends to %s by a binding, which it cannot have", owner.Name, c.Name)
			}
			continue
		}
		careOf, ok := c.Correspondent.Lookup(c.Addr, Home)
		switch bound := owner.Stack.Bound(c.Addr); {
		case ok && careOf != owner.CareOf:
			bad("%s is owned by %s, and has a binding with %v", c.Name, owner.Name, careOf)
		case ok != bound:
			bad("%s has a binding: %t; %s uses it: %t (%v)", c.Name, ok, owner.Name, bound, owner.Mobile.State(c.Addr))
		}
	}
	return errs
}
