package dstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/daemon/member"
)

// ErrLost, from [Cluster.Intercept], loses a message of an application on its way:
// the daemon ends before it looks at it. Any other error says that the message was
// never sent. See also [Cluster.Between].
var ErrLost = errors.New("dstest: lost on the way")

// application is a process with a Node, as its daemon knows it.
type application struct {
	daemon *daemon

	gone    bool     // it has ended. Under watch.mu
	session *session // nil: it is not attached. Under Cluster.mu
}

// session is an application's end. Messages pass in their frames, so that they
// are what a real session lets pass.
type session struct {
	app       *application
	process   *process
	decisions *api.Decisions

	mu     sync.Mutex
	more   sync.Cond
	frames [][]byte
	closed bool
}

func (a *application) attach(hello *api.Message) (*ds.Attachment, error) {
	d := a.daemon
	c := d.cluster
	c.mu.Lock()
	p := d.process
	switch {
	case p == nil:
		c.mu.Unlock()
		return nil, errors.New("dstest: the daemon is down")
	case hello.HasTUN && d.app != a:
		c.mu.Unlock()
		return nil, errors.New("dstest: another application has taken the place of this one")
	}
	if before := d.app; before != nil && before.session != nil {
		before.session.endLocked()
	}
	if hello.HasTUN {
		c.seen.resumed(d.name, hello)
	}
	s := &session{app: a, process: p, decisions: api.NewDecisions()}
	s.more.L = &s.mu
	at := &ds.Attachment{Session: s, Decisions: s.decisions.OtherEnd(), Daemon: monitor{d}}
	if !hello.HasTUN {
		if before := d.app; before != nil && before != a {
			c.seen.ended(before, true)
		}
		at.Device = device{d.openTUN(), a}
	}
	d.app, a.session = a, s
	p.put(item{in: member.App{Message: hello}, session: s, hello: true})
	c.mu.Unlock()
	welcome, err := s.next()
	if err != nil {
		return nil, errors.New("dstest: the daemon has ended")
	}
	at.Config = *welcome.Config
	return at, nil
}

// closed is that the application has closed its device. If it is attached, its
// session says so.
func (a *application) closed() {
	d := a.daemon
	c := d.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.app != a || a.session != nil {
		return
	}
	d.app = nil
	c.seen.ended(a, false)
	if d.process != nil { // it has been waiting for the application to come back
		d.process.put(item{in: member.AppGone{Lost: true}})
	}
}

// endLocked ends an application's session, and with it what it had as far as the
// daemon is concerned. Cluster.mu is held.
func (s *session) endLocked() {
	if s.app.session == s {
		s.app.session = nil
		s.process.put(item{in: member.AppGone{Lost: true}, session: s})
	}
	s.end()
}

// crash ends the daemon that a session is with, and starts it again.
func (s *session) crash() {
	c := s.app.daemon.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.app.daemon.process == s.process {
		c.restartLocked(s.app.daemon)
	}
}

// Send implements ds.Session.
func (s *session) Send(all ...*api.Message) error {
	for _, m := range all {
		if err := s.send(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) send(m *api.Message) (err error) {
	frame, err := api.AppendMessage(nil, m)
	if err != nil {
		return err
	}
	if m, err = api.ReadMessage(bytes.NewReader(frame)); err != nil {
		return err
	}
	if s.isClosed() {
		return net.ErrClosed
	}
	d := s.app.daemon
	c := d.cluster
	taken := c.seen.sent(s, m)
	if c.Intercept != nil {
		if err := c.Intercept(d.name, m); err != nil {
			s.crash()
			if errors.Is(err, ErrLost) {
				return nil
			}
			c.seen.back(taken)
			return err
		}
	}
	if s.isClosed() { // Intercept had the daemon end: the message is on its way to nobody
		return nil
	}
	s.process.put(item{in: member.App{Message: m}, session: s})
	return nil
}

func (s *session) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Receive implements ds.Session.
func (s *session) Receive() (*api.Message, error) {
	m, err := s.next()
	if err != nil {
		return nil, err
	}
	d := s.app.daemon
	if f := d.cluster.Intercept; f != nil {
		if err := f(d.name, m); err != nil {
			s.crash()
		}
		if s.isClosed() {
			return nil, io.EOF
		}
	}
	d.cluster.seen.received(s.app, m)
	return m, nil
}

// Ready implements ds.Session.
func (s *session) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.frames) > 0 && !s.closed
}

func (s *session) next() (*api.Message, error) {
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
	c := s.app.daemon.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := s.app.daemon; d.app == s.app && s.app.session == s {
		d.app = nil
		c.seen.ended(s.app, false)
	}
	s.endLocked()
	return nil
}

func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.more.Broadcast()
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
