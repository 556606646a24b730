package daemon

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/forward"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
	"github.com/distributed-servers/ds/tun"
)

// service is a distributed server on this node: its member, and what belongs to
// it outside.
type service struct {
	n      *Node
	cfg    config.Server
	home   netip.Addr
	careOf netip.Addr
	tun    string // name of the interface

	mu      sync.Mutex // of the member, and the order of what it says
	member  *member.Member
	records *records // nil: not open yet
	timer   *time.Timer
	session *session // nil: no application is attached
	words   words    // of the one that is, or was last
	device  *tun.TUN // nil: the application that is attached has the only descriptors
	waiting map[uint64]chan member.Answer
	jobs    map[uint64]*jobReports // by command
	lastID  uint64

	entrance entrance  // of the kernel's tunnel for what the application sends
	external *external // nil: the tunnel to the home agent is this daemon's

	relaying sync.Mutex
	relay    *relay.Relay // nil: this node has never been the contact

	counts counts
}

// counts are of a service.
type counts struct {
	relayed, unknown, refused atomic.Uint64
}

// interfaceName is that of a service's TUN, the same after every start.
func interfaceName(dsa netip.Addr) string {
	h := fnv.New32a()
	a := dsa.As16()
	h.Write(a[:])
	return fmt.Sprintf("ds%08x", h.Sum32())
}

// openDevice opens the TUN, unless an application that was attached before this
// daemon was started still has it.
func (s *service) openDevice() (err error) {
	s.device, err = tun.Open(tun.Config{
		Name: s.tun, MTU: s.cfg.MTU, Queues: s.cfg.Queues, Offload: *s.cfg.Offload,
		Routes: []netip.Prefix{netip.PrefixFrom(s.careOf, 128), netip.PrefixFrom(s.home, 128)},
		Alias:  "dsco " + s.home.String(),
	})
	return err
}

// step gives the member inputs and does what it says. Of those that have come
// together what is to be done is done together: one write to a file, a socket or
// another node, whatever number of messages it is.
func (s *service) step(in ...member.Input) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stepLocked(in...)
}

func (s *service) stepLocked(in ...member.Input) {
	if s.records.mend(s.n.now()) {
		in = append([]member.Input{member.Recorded{}}, in...)
	}
	out := s.member.Step(s.n.now(), in...)
	if len(out.Record) > 0 {
		var kept member.Recorded
		known := s.records.torn
		if err := s.records.add(out.Record); err != nil {
			s.records.again = s.n.now() + mendTime // the member hears of the room after the lack of it
			kept.Why = err.Error()
			if !known {
				s.n.log.Error("a handoff is not recorded", "server", s.home, "err", err)
				s.publish(api.Event{Kind: api.EventFault, Detail: err.Error()})
			}
		}
		defer s.stepLocked(kept)
	}
	if out.Save != nil {
		if err := s.n.state.save(s.home, *out.Save); err != nil {
			s.n.log.Error("the contact's epoch is not saved", "server", s.home, "err", err)
			s.publish(api.Event{Kind: api.EventFault, Detail: err.Error()})
		}
	}
	s.outward(s.n.sender.Send)(out.Send...)
	s.tellRelay(&out)
	for _, m := range out.App {
		if m.Config != nil {
			s.enter()
			m.Config.KernelTunnel = s.entrance.into.IsValid()
		}
	}
	s.session.send(out.App...)
	s.n.toPeers(out.Peers)
	s.member.Recycle(out)
	for _, e := range out.Events {
		s.publish(api.Event{Kind: e.Kind, Client: e.Client, Node: e.Node, Epoch: e.Epoch, Detail: e.Detail})
	}
	for _, a := range out.Answers {
		if c := s.waiting[a.ID]; c != nil {
			delete(s.waiting, a.ID)
			c <- a
		}
	}
	for _, r := range out.Reports {
		if j := s.jobs[r.ID]; j != nil {
			j.put(r)
		}
	}
	if at, ok := s.member.NextDeadline(); ok {
		s.timer.Reset(max(0, at-s.n.now()))
	} else {
		s.timer.Stop()
	}
}

func (s *service) publish(e api.Event) {
	e.Server = s.home
	s.n.events.Publish(e)
	if level := logLevel(e); s.n.log.Enabled(context.Background(), level) {
		s.n.log.Log(context.Background(), level, string(e.Kind), "server", e.Server, "client", e.Client, "node", e.Node, "detail", e.Detail)
	}
}

// logLevel is how much an event matters in the log. What happens to clients that
// come, go and move may be thousands of lines a second, which ds watch shows better.
func logLevel(e api.Event) slog.Level {
	switch {
	case e.Kind == api.EventFault || e.Kind == api.EventHandoffFailed:
		return slog.LevelWarn
	case e.Client.IsValid():
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// tellRelay brings the relay what the member has for it.
func (s *service) tellRelay(out *member.Output) {
	if !out.NewRelay && len(out.Relay) == 0 {
		return
	}
	s.relaying.Lock()
	defer s.relaying.Unlock()
	change := forward.Change{Reset: out.NewRelay}
	if out.NewRelay {
		r, err := relay.New(relay.Config{
			Home: s.home, CareOf: s.n.cfg.Node.Address, HomeAgent: s.cfg.HomeAgent, DirectReturn: s.cfg.DirectReturn,
		})
		if err != nil {
			s.n.log.Error("no relay", "server", s.home, "err", err)
			return
		}
		s.relay = r
	}
	for _, in := range out.Relay {
		if s.relay.Step(s.n.now(), in).Dropped == relay.None {
			tellKernel(&change, in)
		}
	}
	s.n.changeKernel(s.home, change)
}

// fromTunnel takes a packet that has come to the daemon's address in a tunnel:
// from the home agent, from an application, or from another daemon. What is to be
// sent is added to the batch, which copies it. p may be changed.
func (s *service) fromTunnel(p []byte, send func(...[]byte)) {
	send = s.outward(send)
	s.relaying.Lock()
	if s.relay == nil {
		s.relaying.Unlock()
		if isSignalling(p[wire.HeaderLen:]) {
			s.step(member.Received{Packet: p})
		} else {
			s.counts.refused.Add(1)
		}
		return
	}
	out := s.relay.Step(s.n.now(), relay.Received{Packet: p})
	switch {
	case len(out.Send) > 0:
		s.counts.relayed.Add(1)
		send(out.Send...)
	case len(out.Local) == 0:
		s.counts.refused.Add(1)
	}
	local := slices.Clone(out.Local)
	s.relaying.Unlock()
	for _, p := range local {
		s.keep(p, send)
	}
}

// keep takes what the relay leaves to this node: signalling, and packets of
// clients of whom nothing is known.
func (s *service) keep(p []byte, send func(...[]byte)) {
	if isSignalling(p[wire.HeaderLen:]) {
		s.step(member.Received{Packet: p})
		return
	}
	s.counts.unknown.Add(1)
	s.mu.Lock()
	to, ok := s.member.Unknown(s.n.now(), p[wire.HeaderLen:])
	s.mu.Unlock()
	if !ok {
		return
	}
	from, dst := s.n.cfg.Node.Address.As16(), to.As16()
	copy(p[8:24], from[:])
	copy(p[24:40], dst[:])
	send(p)
}

// isSignalling tells whether a packet is for the machines rather than for an
// application: a mobility header, or an ICMPv6 error about one.
func isSignalling(inner []byte) bool {
	switch wire.Protocol(inner[6]) {
	case wire.TCP, wire.UDP:
		return false
	}
	p, err := wire.ParsePacket(inner)
	if err != nil {
		return false
	}
	switch p.Protocol {
	case wire.Mobility:
		return true
	case wire.ICMPv6:
		m, err := wire.ParseICMP(&p)
		if err != nil {
			return false
		}
		e, ok := m.(*wire.ICMPError)
		return ok && len(e.Quoted) > wire.HeaderLen && wire.Protocol(e.Quoted[6]) == wire.Mobility
	}
	return false
}

// command gives the member an input that it answers.
func (s *service) command(done <-chan struct{}, input func(id uint64) member.Input) (member.Answer, error) {
	c := make(chan member.Answer, 1)
	s.mu.Lock()
	s.lastID++
	id := s.lastID
	s.waiting[id] = c
	s.stepLocked(input(id))
	s.mu.Unlock()
	select {
	case a := <-c:
		return a, nil
	case <-done:
		s.mu.Lock()
		delete(s.waiting, id)
		s.mu.Unlock()
		return member.Answer{}, api.Errorf(api.ErrTimeout, "look at the events (ds watch) for how it ends", "no answer in time")
	}
}
