package dstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/internal/lab"
)

// daemon is one node's. All daemons decide together, under Cluster.mu.
type daemon struct {
	cluster *Cluster
	name    string
	careOf  netip.Addr
	port    *lab.Port

	// Under Cluster.mu.
	session *session // nil: nobody is attached
	accepts bool
	down    bool
	used    bool // somebody was attached
	asked   map[uint64]chan<- *api.Message
}

// handoff is one between two nodes, known by the ID that the target sees.
type handoff struct {
	client   netip.Addr
	from, to *daemon
	id       uint64       // at the donor
	offered  uint64       // at the target, 0: not yet
	taken    bool         // the target has rebuilt the connections, and may be live
	done     *api.Message // the answer to Transfer, if the donor could not be told
}

// ErrLost, from Cluster.Intercept, loses a message of an application on its way
// when the session ends, while any other error says that it was never sent.
var ErrLost = errors.New("dstest: lost on the way")

// session is an application's end. Messages pass in their frames, so that they
// are what a real session lets pass.
type session struct {
	daemon *daemon

	mu     sync.Mutex
	more   sync.Cond
	frames [][]byte
	closed bool
}

func (d *daemon) attach(hello *api.Message) (*ds.Attachment, error) {
	c := d.cluster
	c.mu.Lock()
	if d.down {
		c.mu.Unlock()
		return nil, errors.New("dstest: the daemon is down")
	}
	before := d.session
	c.mu.Unlock()
	if before != nil {
		before.Close()
	}
	s := &session{daemon: d}
	s.more.L = &s.mu
	c.mu.Lock()
	d.session, d.accepts = s, hello.AcceptsHandoffs
	for client, owner := range c.owners {
		if owner == d.name && !slices.Contains(hello.Resume, client) {
			c.own(client, "")
		}
	}
	for _, client := range hello.Resume {
		c.own(client, d.name)
	}
	a := &ds.Attachment{Session: s, Config: api.SessionConfig{
		Addr: Server, CareOf: d.careOf, Via: contact,
		Node: d.name, MTU: mtu, Queues: 1, TUN: "tun-" + d.name, Contact: c.first,
	}}
	for _, o := range c.daemons {
		if o != d {
			a.Config.Peers = append(a.Config.Peers, o.careOf)
			a.Config.Nodes = append(a.Config.Nodes, o.name)
		}
	}
	slices.Sort(a.Config.Nodes)
	out := c.resolve(d, hello)
	for _, client := range hello.Resume {
		if c.Optimise {
			out = append(out, message{d, &api.Message{Kind: api.Bound, Client: client}})
		}
	}
	if !hello.HasTUN {
		if d.used {
			d.port = c.net.Restart(d.port)
		}
		d.used = true
		a.Device = device{d.port, d}
	}
	c.mu.Unlock()
	for _, o := range out {
		o.to.send(o.m)
	}
	return a, nil
}

// end ends the session, if there is one.
func (d *daemon) end() {
	d.cluster.mu.Lock()
	s := d.session
	d.cluster.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// Send implements ds.Session: the daemon acts in its caller's goroutine.
func (s *session) Send(m *api.Message) error {
	frame, err := api.AppendMessage(nil, m)
	if err != nil {
		return err
	}
	c := s.daemon.cluster
	if m, err = api.ReadMessage(bytes.NewReader(frame)); err != nil {
		return err
	}
	if s.isClosed() {
		return net.ErrClosed
	}
	if c.Intercept != nil {
		if err := c.Intercept(s.daemon.name, m); err != nil {
			s.Close()
			if errors.Is(err, ErrLost) {
				return nil
			}
			return err
		}
	}
	c.mu.Lock()
	if s.daemon.session != s {
		c.mu.Unlock()
		return net.ErrClosed
	}
	out := c.step(s.daemon, m)
	c.mu.Unlock()
	for _, o := range out {
		o.to.send(o.m)
	}
	return nil
}

func (s *session) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Receive implements ds.Session.
func (s *session) Receive() (*api.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.frames) == 0 && !s.closed {
		s.more.Wait()
	}
	if s.closed {
		return nil, io.EOF
	}
	frame := s.frames[0]
	s.frames[0] = nil
	s.frames = s.frames[1:]
	return api.ReadMessage(bytes.NewReader(frame))
}

// Close implements ds.Session.
func (s *session) Close() error {
	c := s.daemon.cluster
	var out []message
	c.mu.Lock()
	if s.daemon.session == s {
		s.daemon.session = nil
		out = c.detached(s.daemon)
	}
	c.mu.Unlock()
	s.mu.Lock()
	s.closed = true
	s.more.Broadcast()
	s.mu.Unlock()
	for _, o := range out {
		o.to.send(o.m)
	}
	return nil
}

// send gives a message to the application.
func (d *daemon) send(m *api.Message) {
	c := d.cluster
	c.mu.Lock()
	s := d.session
	c.mu.Unlock()
	if s == nil {
		return
	}
	if c.Intercept != nil {
		if err := c.Intercept(d.name, m); err != nil {
			s.Close()
			return
		}
	}
	s.push(m)
}

// push queues a message for Receive.
func (s *session) push(m *api.Message) {
	frame, err := api.AppendMessage(nil, m)
	if err != nil {
		panic(fmt.Sprintf("dstest: %s: %v", m.Kind, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames = append(s.frames, frame)
	s.more.Signal()
}
