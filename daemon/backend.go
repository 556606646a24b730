package daemon

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/member"
	"github.com/distributed-servers/ds/daemon/server"
)

// A Node is the backend of its API: the methods of this file and of session.go.
var _ server.Backend = (*Node)(nil)

func (n *Node) service(dsa netip.Addr) (*service, error) {
	if s := n.byHome[dsa]; s != nil {
		return s, nil
	}
	return nil, api.Errorf(api.ErrNotFound, "ds status lists those that are", "this node does not belong to a distributed server %s", dsa)
}

// owned is a client that this node owns.
func (n *Node) owned(dsa, client netip.Addr) (*service, member.Client, error) {
	s, err := n.service(dsa)
	if err != nil {
		return nil, member.Client{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.member.Client(client)
	if ok {
		return s, c, nil
	}
	if owner, known := s.member.Owner(client); known {
		return nil, c, api.Errorf(api.ErrConflict, "ask there", "node %s has client %s", owner, client)
	}
	contact, _ := s.member.Contact()
	return nil, c, api.Errorf(api.ErrNotFound, "the contact, "+contact.Name+", knows the owners of all clients", "this node does not know client %s", client)
}

// Status implements server.Backend.
func (n *Node) Status(ctx context.Context) (*api.Status, error) {
	servers, err := n.Servers(ctx)
	if err != nil {
		return nil, err
	}
	st := &api.Status{
		Role: api.RoleNode, Version: n.version, API: api.Version, PID: os.Getpid(), Started: n.begin,
		Node: n.cfg.Node.Name, Address: n.cfg.Node.Address, Servers: servers, Counters: n.counters(),
	}
	for name, addr := range *n.peers.Load() {
		p := api.Peer{Node: name, Address: addr}
		if v, ok := n.reached.Load(name); ok {
			r := v.(reach)
			p.Connected, p.Since, p.Error = r.connected, r.since, r.err
		}
		st.Peers = append(st.Peers, p)
	}
	slices.SortFunc(st.Peers, func(a, b api.Peer) int { return compare(a.Node, b.Node) })
	return st, nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// counters are of what all services share.
func (n *Node) counters() map[string]uint64 {
	f, s := n.filter.Stats(), n.sender.Stats()
	return map[string]uint64{
		"queue_packets": f.Packets, "queue_dropped": f.Dropped, "queue_overruns": f.Overruns, "queue_reopened": f.Reopened,
		"queue_full": f.QueueFull, "sent": s.Sent, "sent_octets": s.Octets, "send_too_big": s.TooBig,
		"send_unreachable": s.Unreachable, "send_full": s.Full, "send_denied": s.Denied, "send_failed": s.Failed,
	}
}

// Servers implements server.Backend.
func (n *Node) Servers(context.Context) ([]api.Server, error) {
	var all []api.Server
	for _, s := range n.services {
		all = append(all, s.status())
	}
	return all, nil
}

func (s *service) status() api.Server {
	counters := map[string]uint64{
		"relayed": s.counts.relayed.Load(), "unknown": s.counts.unknown.Load(), "refused": s.counts.refused.Load(),
	}
	s.n.countKernel(s.home, counters) // asks the kernel: not while handoffs wait
	s.mu.Lock()
	defer s.mu.Unlock()
	until, registered := s.member.Registered()
	v := api.Server{
		Address: s.home, CareOf: s.careOf, HomeAgent: s.cfg.HomeAgent, Contact: s.contact(), Local: s.member.IsContact(),
		TUN: s.tun, MTU: s.cfg.MTU, Queues: s.cfg.Queues,
		Counters: counters,
	}
	if registered {
		v.Registered = s.n.begin.Add(until)
	}
	if a := s.session; a != nil {
		v.Application = &api.Application{
			Program: a.hello.Program, PID: a.who.PID, UID: a.who.UID, Attached: a.since, AcceptsHandoffs: s.member.Accepts(),
		}
	}
	v.Clients, v.Optimised = s.member.Count()
	s.relaying.Lock()
	if s.relay != nil {
		v.Relayed = s.relay.Stats().Clients
	}
	s.relaying.Unlock()
	return v
}

// contact is the contact as the member knows it. mu is held.
func (s *service) contact() api.Contact {
	c, _ := s.member.Contact()
	v := api.Contact{Server: s.home, Node: c.Name, Epoch: c.Epoch, Address: (*s.n.peers.Load())[c.Name]}
	if c.Name == s.n.cfg.Node.Name {
		v.Address = s.n.cfg.Node.Address
	}
	return v
}

// Nodes implements server.Backend.
func (n *Node) Nodes(_ context.Context, dsa netip.Addr) ([]api.NodeInfo, error) {
	s, err := n.service(dsa)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := []api.NodeInfo{s.local()}
	contact, _ := s.member.Contact()
	for name, hello := range s.member.Peers() {
		v := api.NodeInfo{Node: name, CareOf: s.cfg.Nodes[name], Address: (*n.peers.Load())[name], Contact: name == contact.Name}
		if hello != nil {
			v.Connected, v.Attached, v.AcceptsHandoffs, v.Draining, v.Clients = true, hello.Attached, hello.Accepts, hello.Draining, hello.Clients
		}
		nodes = append(nodes, v)
	}
	slices.SortFunc(nodes, func(a, b api.NodeInfo) int { return compare(a.Node, b.Node) })
	return nodes, nil
}

// local is this node. mu is held.
func (s *service) local() api.NodeInfo {
	clients, _ := s.member.Count()
	v := api.NodeInfo{
		Node: s.n.cfg.Node.Name, CareOf: s.careOf, Address: s.n.cfg.Node.Address,
		Local: true, Contact: s.member.IsContact(), Connected: true, Attached: s.session != nil, Clients: clients,
	}
	v.AcceptsHandoffs, v.Draining = s.member.Accepts(), s.member.Draining()
	return v
}

// LocalNode implements server.Backend.
func (n *Node) LocalNode(_ context.Context, dsa netip.Addr) (*api.NodeInfo, error) {
	s, err := n.service(dsa)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.local()
	return &v, nil
}

// Clients implements server.Backend: those of this node, and at the contact
// those of all.
func (n *Node) Clients(_ context.Context, dsa netip.Addr) ([]api.ClientInfo, error) {
	s, err := n.service(dsa)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []api.ClientInfo
	for _, c := range s.member.Clients() {
		all = append(all, s.client(c))
	}
	for addr, o := range s.member.Owners() {
		if o.Name != n.cfg.Node.Name {
			all = append(all, api.ClientInfo{Server: s.home, Client: addr, Owner: o.Name, Epoch: o.Epoch})
		}
	}
	slices.SortFunc(all, func(a, b api.ClientInfo) int { return a.Client.Compare(b.Client) })
	return all, nil
}

// client is one of this node.
func (s *service) client(c member.Client) api.ClientInfo {
	v := api.ClientInfo{
		Server: s.home, Client: c.Client, Owner: s.n.cfg.Node.Name, Local: true, Epoch: c.Epoch, Mode: api.Relayed,
		State: c.State.String(), Connections: c.Connections, Since: s.n.begin.Add(c.Since),
	}
	if c.Bound {
		v.Mode = api.Optimised
	}
	if c.Moving != "" {
		v.Handoff = c.Stage + ", to " + c.Moving
	}
	return v
}

// Client implements server.Backend.
func (n *Node) Client(_ context.Context, dsa, client netip.Addr) (*api.ClientInfo, error) {
	s, c, err := n.owned(dsa, client)
	if err != nil {
		return nil, err
	}
	v := s.client(c)
	v.Binding = &api.ClientBinding{CareOf: s.careOf, Sequence: c.Sequence}
	if c.Binding > 0 {
		v.Binding.Expires = time.Now().Add(c.Binding)
	}
	return &v, nil
}

// Sequence implements server.Backend.
func (n *Node) Sequence(_ context.Context, dsa, client netip.Addr) (*api.Sequence, error) {
	_, c, err := n.owned(dsa, client)
	if err != nil {
		return nil, err
	}
	return &api.Sequence{Client: client, Sequence: c.Sequence, Known: c.Binding > 0}, nil
}

// Optimise implements server.Backend.
func (n *Node) Optimise(_ context.Context, dsa, client netip.Addr) error {
	s, _, err := n.owned(dsa, client)
	if err == nil {
		s.step(member.Optimise{Client: client})
	}
	return err
}

// DeleteBinding implements server.Backend.
func (n *Node) DeleteBinding(_ context.Context, dsa, client netip.Addr) error {
	s, _, err := n.owned(dsa, client)
	if err == nil {
		s.step(member.DeleteBinding{Client: client})
	}
	return err
}

// Handoff implements server.Backend.
func (n *Node) Handoff(ctx context.Context, dsa, client netip.Addr, to string) (*api.Handoff, error) {
	s, _, err := n.owned(dsa, client)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	a, err := s.command(ctx.Done(), func(id uint64) member.Input { return member.HandOff{ID: id, Client: client, To: to} })
	if err != nil {
		return nil, err
	}
	if a.Err != nil {
		s.mu.Lock()
		_, here := s.member.Client(client)
		s.mu.Unlock()
		if !here {
			return nil, api.Errorf(api.ErrConflict, "ask there", "%s has been given to %s, and comes back to %s if that has not taken it: %v", client, to, n.cfg.Node.Name, a.Err)
		}
		return nil, api.Errorf(api.ErrConflict, "", "%s stays at %s: %v", client, n.cfg.Node.Name, a.Err)
	}
	v := &api.Handoff{
		Server: dsa, Client: client, From: n.cfg.Node.Name, To: to, Mode: api.Relayed,
		Connections: a.Connections, Took: api.Seconds(time.Since(begin)),
	}
	if a.Optimised {
		v.Mode = api.Optimised
	}
	return v, nil
}

// SetContact implements server.Backend.
func (n *Node) SetContact(ctx context.Context, dsa netip.Addr, node string) (*api.Contact, error) {
	return n.takeOver(ctx, dsa, node, false)
}

// TakeOver implements server.Backend.
func (n *Node) TakeOver(ctx context.Context, dsa netip.Addr, force bool) (*api.Contact, error) {
	return n.takeOver(ctx, dsa, n.cfg.Node.Name, force)
}

func (n *Node) takeOver(ctx context.Context, dsa netip.Addr, node string, force bool) (*api.Contact, error) {
	s, err := n.service(dsa)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	was, _ := s.member.Contact()
	s.mu.Unlock()
	a, err := s.command(ctx.Done(), func(id uint64) member.Input { return member.Takeover{ID: id, To: node, Force: force} })
	if err != nil {
		return nil, err
	}
	if a.Err != nil {
		return nil, api.Errorf(api.ErrConflict, "", "%v", a.Err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.contact()
	v.Previous = was.Name
	for name, hello := range s.member.Peers() {
		t := api.Told{Node: name}
		if hello == nil {
			t.Error = "not connected; it hears of it when it is back"
		}
		v.Told = append(v.Told, t)
	}
	return &v, nil
}
