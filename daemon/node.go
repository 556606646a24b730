package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/config"
	"github.com/distributed-servers/ds/daemon/filter"
	"github.com/distributed-servers/ds/daemon/forward"
	"github.com/distributed-servers/ds/daemon/host"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/daemon/peer"
	"github.com/distributed-servers/ds/daemon/rawip"
	"github.com/distributed-servers/ds/daemon/server"
	"github.com/distributed-servers/ds/internal/awake"
	"github.com/distributed-servers/ds/internal/killpoint"
	"github.com/distributed-servers/ds/mobility/relay"
	"github.com/distributed-servers/ds/mobility/wire"
	"golang.org/x/sys/unix"
)

// Node is the node's role.
type Node struct {
	// Ready, if not nil, is called once by Run, when everything is up.
	Ready func()

	cfg     *config.Config
	log     *slog.Logger
	begin   time.Time
	state   state
	events  server.Events
	version string

	services []*service
	byHome   map[netip.Addr]*service
	byCareOf map[netip.Addr]*service

	host   *host.Host // set by Run
	sender *rawip.Sender
	mesh   *peer.Mesh
	meshed chan struct{} // closed when mesh is set
	filter *filter.Filter
	kernel atomic.Pointer[forward.Node] // nil: the kernel does not forward what is in tunnels
	awake  *awake.Keeper

	identity credentials
	peers    atomic.Pointer[map[string]netip.Addr] // other nodes' daemons

	reloading sync.Mutex // of what follows, and the order in which nodes change
	current   *config.Config

	external bool           // a server's tunnel is somebody else's, and so is its registration
	running  sync.WaitGroup // readers of such tunnels

	admitted atomic.Pointer[map[netip.Addr]users]
	reached  sync.Map // node name to reach
}

// users may attach to a server.
type users struct{ uids, gids []uint32 }

// reach is whether a node's daemon is connected, since when, and why not.
type reach struct {
	connected bool
	since     time.Time
	err       string
}

// NewNode returns the role for a configuration that is complete. Nothing is
// changed before Run.
func NewNode(cfg *config.Config, log *slog.Logger) (*Node, error) {
	if cfg.Node == nil {
		return nil, errors.New("daemon: the configuration has no table [node]")
	}
	n := &Node{
		cfg: cfg, log: log, begin: time.Now(), state: state{cfg.Node.State}, meshed: make(chan struct{}),
		byHome: make(map[netip.Addr]*service), byCareOf: make(map[netip.Addr]*service),
	}
	if err := n.admit(cfg); err != nil {
		return nil, err
	}
	n.current = cfg
	n.peers.Store(&cfg.Node.Peers)
	return n, nil
}

// now is the machines' time.
func (n *Node) now() time.Duration { return time.Since(n.begin) }

// Run is the node, until the context ends. What it has changed on the host is
// undone then, and after an error.
func (n *Node) Run(ctx context.Context) (err error) {
	var undo []func() error
	defer func() {
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
	}()
	cfg := n.cfg.Node
	if err := n.openIdentity(); err != nil {
		return err
	}

	// All that may be missing is told before anything is changed.
	if err := host.Require(host.IPv6, host.NetAdmin, host.NetRaw, host.TUN, filter.Usable(cfg.Queue)); err != nil {
		return err
	}
	h, err := host.Open(host.Config{State: cfg.State, Logger: n.log})
	if err != nil {
		return err
	}
	n.host = h
	undo = append(undo, h.Close)
	if n.sender, err = rawip.NewSender(); err != nil {
		return err
	}
	undo = append(undo, n.sender.Close)
	tunnel, err := rawip.Listen(cfg.Address)
	if err != nil {
		return err
	}
	undo = append(undo, tunnel.Close)
	undo = append(undo, func() error { n.running.Wait(); return nil }) // when the services are closed

	if err := h.Forward(); err != nil {
		return err
	}
	for _, c := range n.cfg.Servers {
		s, err := n.open(c, h)
		if err != nil {
			return err
		}
		undo = append(undo, s.close)
	}
	if n.filter, err = filter.Open(filter.Config{Queue: cfg.Queue, Rules: n.rules(), Handler: n.queued, Logger: n.log}); err != nil {
		return err
	}
	undo = append(undo, n.filter.Close)
	if *cfg.KernelTunnels {
		if k, err := n.openKernel(h); err != nil { // slower, no worse
			n.log.Info("tunnels go through this process: the kernel does not forward them", "cause", err)
		} else {
			n.kernel.Store(k)
			undo = append(undo, k.Close)
		}
	}
	if *cfg.StayAwake {
		if n.awake, err = awake.Open(); err != nil { // slower, no worse
			n.log.Info("processors may sleep in the middle of a handoff: this process may not ask for anything else", "cause", err)
		}
		undo = append(undo, n.awake.Close)
	}
	for _, s := range n.services {
		s.step(member.Start{})
		if s.device != nil { // no application was left when it was opened
			s.step(member.AppGone{Lost: true})
		}
	}
	if n.mesh, err = peer.Open(n.meshConfig()); err != nil {
		return err
	}
	close(n.meshed)
	undo = append(undo, n.identity.run(), n.mesh.Close)
	srv, err := server.New(server.Config{Socket: cfg.Socket, Group: cfg.Group, Backend: n, Events: &n.events, Logger: n.log})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	running.Go(func() { srv.Serve() })
	running.Go(func() { n.readTunnel(tunnel) })
	undo = append(undo, func() error {
		err := errors.Join(srv.Close(), tunnel.Close())
		running.Wait()
		return err
	})
	n.events.Publish(api.Event{Kind: api.EventStarted})
	if n.Ready != nil {
		n.Ready()
	}
	<-ctx.Done()
	n.events.Publish(api.Event{Kind: api.EventStopping})
	return nil
}

// open makes a service.
func (n *Node) open(c config.Server, h *host.Host) (s *service, err error) {
	home, careOf := c.Address.Addr(), c.Nodes[n.cfg.Node.Name]
	s = &service{
		n: n, cfg: c, home: home, careOf: careOf, tun: interfaceName(home), waiting: make(map[uint64]chan member.Answer), jobs: make(map[uint64]*jobReports),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	contact, ok, err := n.state.load(home)
	if err != nil {
		return s, err
	}
	if _, known := c.Nodes[contact.Name]; !ok || !known {
		contact = member.Contact{Name: c.Contact}
	}
	var key []byte
	if c.Tunnel != config.TunnelMIP6D { // otherwise it is not this daemon that registers
		if key, err = config.ReadKey(c.KeyFile); err != nil {
			return s, err
		}
	}
	var recs []member.Record
	if s.records, recs, err = n.state.openRecords(home); err != nil {
		return s, err
	}
	s.member, err = member.New(member.Config{
		Name: n.cfg.Node.Name, Home: c.Address, HomeAgent: c.HomeAgent, SPI: c.SPI, Key: wire.SharedKey(key),
		Nodes: n.nodesOf(n.cfg.Node.Peers, &c), Contact: contact, Records: recs, Words: &s.words, Epoch: n.begin, Rand: rand.Reader,
		Session:     api.SessionConfig{MTU: c.MTU, Queues: c.Queues, TUN: s.tun},
		IdleTimeout: time.Duration(c.IdleTimeout), RegisterTimeout: time.Duration(c.RegisterTimeout),
		External: c.Tunnel == config.TunnelMIP6D,
	})
	if err != nil {
		return s, err
	}
	s.timer = time.AfterFunc(time.Hour, func() { s.step(member.Tick{}) })
	s.timer.Stop()
	if err := s.openDevice(); errors.Is(err, unix.EBUSY) {
		n.log.Info("an application still has the interface; waiting for it to attach", "server", home, "interface", s.tun)
	} else if err != nil {
		return s, err
	}
	if c.Tunnel == config.TunnelMIP6D {
		if err := s.openExternal(len(n.services), h); err != nil {
			return s, err
		}
		n.external = true
		n.running.Go(func() { s.external.read(s) })
	}
	if err := h.AddProxy(n.cfg.Node.Interface, careOf); err != nil {
		return s, err
	}
	n.services = append(n.services, s)
	n.byHome[home], n.byCareOf[careOf] = s, s
	return s, nil
}

func (s *service) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.external != nil {
		errs = append(errs, s.external.close())
	}
	if s.device != nil {
		errs = append(errs, s.device.Close())
	}
	if s.records != nil {
		errs = append(errs, s.records.close())
	}
	return errors.Join(errs...)
}

// rules are those of the packet filter.
func (n *Node) rules() filter.Rules {
	var servers []filter.NodeServer
	for _, s := range n.services {
		fs := filter.NodeServer{Address: s.home, CareOf: s.careOf, TUN: s.tun}
		s.mu.Lock()
		for name, careOf := range s.cfg.Nodes {
			if name != n.cfg.Node.Name {
				fs.Peers = append(fs.Peers, careOf)
			}
		}
		s.mu.Unlock()
		slices.SortFunc(fs.Peers, netip.Addr.Compare)
		servers = append(servers, fs)
	}
	return filter.NodeRules(n.cfg.Node.Address, servers)
}

// queued decides on a packet from the Netfilter queue.
func (n *Node) queued(p filter.Packet) filter.Verdict {
	class := filter.Classify(filter.Node, p.Payload)
	if class == filter.Take || class == filter.Copy {
		n.signalling(slices.Clone(p.Payload))
	}
	switch {
	case class == filter.Take && n.external && netip.AddrFrom16([16]byte(p.Payload[24:40])) == n.cfg.Node.Address:
		return filter.Accept() // another's home registration, perhaps
	case class == filter.Take || class == filter.Discard:
		return filter.Drop()
	}
	return filter.Accept()
}

// signalling brings a packet to the machine that it is for. What comes to the
// daemon's address itself is about the home registration of one of the servers,
// or an error about a tunnel, which the relay that sent it knows.
func (n *Node) signalling(p []byte) {
	dst := netip.AddrFrom16([16]byte(p[24:40]))
	if s := n.byCareOf[dst]; s != nil {
		s.step(member.Received{Packet: p})
		return
	}
	for _, s := range n.services {
		s.step(member.Received{Packet: slices.Clone(p)})
		s.relaying.Lock()
		var out relay.Output
		if s.relay != nil {
			out = s.relay.Step(n.now(), relay.Received{Packet: p})
			s.outward(n.sender.Send)(out.Send...)
		}
		s.relaying.Unlock()
		if len(out.Send) == 0 {
			s.tellEntrance(p)
		}
	}
}

// readTunnel takes what comes in tunnels to the daemon's address. Which server it
// is for the inner header tells: one of its addresses is the server's.
func (n *Node) readTunnel(t *rawip.Tunnel) {
	batch := n.sender.NewBatch()
	for {
		packets, err := t.ReadBatch()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				n.log.Error("tunnels end", "err", err)
			}
			return
		}
		for _, p := range packets {
			if len(p) < 2*wire.HeaderLen || p[wire.HeaderLen]>>4 != 6 {
				continue
			}
			inner := p[wire.HeaderLen:]
			s := n.byHome[netip.AddrFrom16([16]byte(inner[24:40]))]
			if s == nil {
				s = n.byHome[netip.AddrFrom16([16]byte(inner[8:24]))]
			}
			switch {
			case s == nil:
			case s.external != nil && netip.AddrFrom16([16]byte(p[8:24])) == s.cfg.HomeAgent:
				// The kernel gives raw sockets what it takes out of its own tunnel
				// too.
			default:
				s.fromTunnel(p, batch.Add)
			}
		}
		batch.Flush()
	}
}

// awakeTime is how long processors stay awake after the last handoff has begun here: some
// times as long as one takes.
const awakeTime = 20 * time.Millisecond

// toPeers sends messages to other nodes, together what goes to the same one.
func (n *Node) toPeers(all []member.ToPeer) {
	if slices.ContainsFunc(all, func(p member.ToPeer) bool {
		return p.Message.Kind == member.Prepare || p.Message.Kind == member.Prepared
	}) {
		n.awake.For(awakeTime)
	}
	room := peerBuffers.Get().(*[]byte)
	buf := (*room)[:0]
	for len(all) > 0 {
		to := all[0].To
		var frames [][]byte
		var others []member.ToPeer
		for _, p := range all {
			if p.To != to {
				others = append(others, p)
				continue
			}
			killpoint.Here("peer send", p.Message.Kind)
			begin := len(buf)
			var err error
			if buf, err = p.Message.Append(buf); err != nil {
				n.log.Error("a message is not sent", "node", to, "kind", p.Message.Kind, "err", err)
				continue
			}
			frames = append(frames, buf[begin:])
		}
		if err := n.mesh.Send(to, frames...); err != nil && !errors.Is(err, peer.ErrNotConnected) {
			n.log.Error("messages are not sent", "node", to, "number", len(frames), "err", err)
		}
		for _, p := range all {
			if p.To == to {
				killpoint.Here("peer sent", p.Message.Kind)
			}
		}
		all = others
	}
	if cap(buf) <= maxPeerBuffer {
		*room = buf
		peerBuffers.Put(room)
	}
}

// peerBuffers are what messages to other nodes were written in, for those to come.
var peerBuffers = sync.Pool{New: func() any { return new([]byte) }}

const maxPeerBuffer = 64 << 10 // octets

// fromPeers is a Node as the mesh's handler.
type fromPeers Node

func (f *fromPeers) Up(name string) {
	n := (*Node)(f)
	<-n.meshed
	n.reached.Store(name, reach{connected: true, since: time.Now()})
	for _, s := range n.services {
		s.step(member.PeerUp{Name: name})
	}
	n.compareLists(name)
}

func (f *fromPeers) Down(name string, err error) {
	n := (*Node)(f)
	for _, s := range n.services {
		s.step(member.PeerDown{Name: name})
	}
	n.unreached(name, err)
	n.compareLists(name)
}

func (f *fromPeers) Received(name string, frames [][]byte) {
	n := (*Node)(f)
	room := peerMessages.Get().(*[]member.Message)
	if len(*room) < len(frames) {
		*room = make([]member.Message, len(frames))
	}
	messages := (*room)[:len(frames)]
	var in []member.Input // of one server, in a row
	var of *service
	for i, frame := range frames {
		m := &messages[i]
		if err := m.Read(frame); err != nil {
			n.log.Warn("a message of another node makes no sense", "node", name, "err", err)
			continue
		}
		killpoint.Here("peer received", m.Kind)
		s := n.byHome[m.Server]
		if s == nil {
			continue
		}
		if s != of && of != nil {
			of.step(in...)
			in = nil
		}
		of, in = s, append(in, member.Peer{From: name, Message: m})
	}
	if of != nil {
		of.step(in...)
	}
	clear(messages) // and what they refer to
	peerMessages.Put(room)
}

// peerMessages are what others have sent, for what they will.
var peerMessages = sync.Pool{New: func() any { return new([]member.Message) }}

// admit looks up who may attach to which server.
func (n *Node) admit(cfg *config.Config) error {
	all := make(map[netip.Addr]users)
	for _, s := range cfg.Servers {
		var u users
		for _, name := range s.Users {
			id, err := lookup(name, func(name string) (string, error) {
				found, err := user.Lookup(name)
				if err != nil {
					return "", err
				}
				return found.Uid, nil
			})
			if err != nil {
				return fmt.Errorf("daemon: server %s: users: %w", s.Address.Addr(), err)
			}
			u.uids = append(u.uids, id)
		}
		for _, name := range s.UserGroups {
			id, err := lookup(name, func(name string) (string, error) {
				found, err := user.LookupGroup(name)
				if err != nil {
					return "", err
				}
				return found.Gid, nil
			})
			if err != nil {
				return fmt.Errorf("daemon: server %s: user_groups: %w", s.Address.Addr(), err)
			}
			u.gids = append(u.gids, id)
		}
		all[s.Address.Addr()] = u
	}
	n.admitted.Store(&all)
	return nil
}

// lookup is the number of a user or group, by name or as it is.
func lookup(name string, find func(string) (string, error)) (uint32, error) {
	s := name
	if _, err := strconv.ParseUint(name, 10, 32); err != nil {
		if s, err = find(name); err != nil {
			return 0, err
		}
	}
	id, err := strconv.ParseUint(s, 10, 32)
	return uint32(id), err
}

func (s *service) users() users { return (*s.n.admitted.Load())[s.home] }
