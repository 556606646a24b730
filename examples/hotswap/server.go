//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
)

// mode is what a server does with its connections: file or proxy.
type mode interface {
	// open returns the session of a new connection.
	open() session
	// restore returns the session that save has described in another
	// process, or an error. The files are its own in either case.
	restore(state []byte, files []*os.File) (session, error)
}

// session is the application's part of one connection. Where it stands is in
// values that can be written down, not on a goroutine's stack; that is what
// lets run end anywhere and start again, here or in another process.
type session interface {
	// run serves c until the connection ends, or until ctx does. Then it
	// returns os.ErrDeadlineExceeded or context.Canceled, and another run
	// goes on at the same octet.
	run(ctx context.Context, c *stack.Conn) error
	// save describes a session that does not run: opaque octets, and
	// descriptors, which stay the session's.
	save() (state []byte, files []syscall.Conn)
	// close frees what the session has beside the connection.
	close()
}

// past is a deadline that interrupts every call.
var past = time.Unix(1, 0)

// interruptible makes calls on the connections end with
// os.ErrDeadlineExceeded when ctx ends. They lose nothing: a Read that fails
// has taken no octet, a Write says how many it has taken. The caller must call
// release before anything else sets deadlines.
func interruptible(ctx context.Context, conns ...net.Conn) (release func()) {
	for _, c := range conns {
		c.SetDeadline(time.Time{})
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.SetDeadline(past)
		}
		close(done)
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

func interrupted(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.Canceled)
}

// device is a link whose descriptor can be given away.
type device interface {
	tun.Device
	Files() []*os.File
}

// server serves the connections of one stack. It is made standing still.
//
//	              resume                        handOver
//	newServer ► still ⇄ running ─► shutdown       │
//	              pause   │                       ▼
//	                      └───────────────────► handed over
type server struct {
	config
	mode     mode
	device   device
	stack    *stack.Stack
	listener *stack.Listener

	mu       sync.Mutex
	sessions map[*stack.Conn]*running // those that have not ended
	accept   chan struct{}            // closed when the accepting goroutine has ended
}

// config is what a server hands to its successor, which must do the same on
// the same link.
type config struct {
	Mode  string
	Addrs []netip.Addr
	Port  uint16
	MTU   int
}

// running is a session and the goroutine that runs it.
type running struct {
	session session
	cancel  context.CancelFunc
	done    chan struct{} // closed when the goroutine has ended
}

// newServer builds a server on dev, which it owns, that stands still: it
// listens, but reads no packet and accepts nothing until resume.
func newServer(cfg config, m mode, dev device) (*server, error) {
	s := &server{config: cfg, mode: m, device: dev, sessions: make(map[*stack.Conn]*running)}
	// stack.New starts reading. Of a link that another process still reads,
	// nothing must be read: the deadline ends the reader before its first
	// packet, and Pause makes that official.
	err := dev.SetReadDeadline(past)
	if err == nil {
		s.stack, err = stack.New(stack.Config{Device: dev, Addrs: cfg.Addrs})
	}
	if err != nil {
		dev.Close()
		return nil, err
	}
	if err = s.stack.Pause(); err == nil {
		s.listener, err = s.stack.Listen("tcp", fmt.Sprintf(":%d", cfg.Port))
	}
	if err != nil {
		s.stack.Close()
		return nil, err
	}
	return s, nil
}

// resume lets the sessions and the link go on.
func (s *server) resume() error {
	s.resumeSessions()
	return s.stack.Resume()
}

func (s *server) resumeSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, r := range s.sessions {
		s.start(c, r.session)
	}
	s.listener.SetDeadline(time.Time{})
	s.accept = make(chan struct{})
	go s.acceptAll(s.accept)
}

func (s *server) acceptAll(done chan<- struct{}) {
	defer close(done)
	for {
		c, err := s.listener.AcceptConn()
		if err != nil {
			return // the deadline of pauseSessions, or the end
		}
		s.mu.Lock()
		s.start(c, s.mode.open())
		s.mu.Unlock()
	}
}

// start runs a session on c. s.mu is held.
func (s *server) start(c *stack.Conn, se session) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{se, cancel, make(chan struct{})}
	s.sessions[c] = r
	go func() {
		defer close(r.done)
		defer cancel()
		err := se.run(ctx, c)
		if ctx.Err() != nil && interrupted(err) {
			return
		}
		s.mu.Lock()
		delete(s.sessions, c)
		s.mu.Unlock()
		if err != nil {
			// Reset, lest the client take what it has for everything.
			c.SetDeadline(time.Time{})
			c.SetLinger(0)
		}
		c.Close()
		se.close()
	}()
}

// pauseSessions makes all sessions stand still. New connections wait in the
// listener.
func (s *server) pauseSessions() {
	if s.accept != nil {
		s.listener.SetDeadline(past)
		<-s.accept
	}
	s.mu.Lock()
	rs := make([]*running, 0, len(s.sessions))
	for _, r := range s.sessions {
		rs = append(rs, r)
	}
	s.mu.Unlock()
	for _, r := range rs {
		r.cancel()
	}
	for _, r := range rs {
		<-r.done
	}
}

// handshakeWait bounds how long a swap waits for handshakes to finish, and
// handshakePoll is how long it reads on between tries.
var (
	handshakeWait = time.Second
	handshakePoll = 5 * time.Millisecond
)

// freeze makes the server stand still and freezes all of its connections, all
// or none. thaw undoes it.
func (s *server) freeze() (*migrate.Donor, error) {
	s.pauseSessions()
	giveUp := time.NewTimer(handshakeWait)
	defer giveUp.Stop()
	for {
		// First the link, so that no client comes to be while they are listed.
		if err := s.stack.Pause(); err != nil {
			s.resumeSessions()
			return nil, err
		}
		donor := migrate.NewStackDonor(s.stack)
		donor.AllowEmpty()
		err := donor.Freeze()
		if err == nil {
			return donor, nil
		}
		if !errors.Is(err, migrate.ErrHandshake) {
			return nil, errors.Join(err, s.resume())
		}
		// A handshake cannot move. Its last packet may be waiting at the link.
		if rerr := s.stack.Resume(); rerr != nil {
			s.resumeSessions()
			return nil, errors.Join(err, rerr)
		}
		select {
		case <-time.After(handshakePoll):
		case <-giveUp.C:
			s.resumeSessions()
			return nil, fmt.Errorf("not over after %v: %w", handshakeWait, err)
		}
	}
}

// thaw undoes freeze.
func (s *server) thaw(donor *migrate.Donor) error {
	return errors.Join(donor.Thaw(), s.resume())
}

// abandon frees everything without a word to anybody.
func (s *server) abandon() {
	s.device.Close() // first, so that the stack cannot reset anything
	s.stack.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, r := range s.sessions {
		r.session.close()
		delete(s.sessions, c)
	}
}

// shutdown accepts nothing more, lets the sessions finish for the time of
// grace, and resets the rest.
func (s *server) shutdown(grace time.Duration) error {
	s.listener.Close()
	over := time.NewTimer(grace)
	defer over.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting && s.busy() > 0; {
		select {
		case <-tick.C:
		case <-over.C:
			waiting = false
			slog.Warn("resetting connections", "connections", s.busy())
		}
	}
	return s.stack.Close()
}

// busy is how many connections are not just waiting for their time to be up.
func (s *server) busy() int {
	n := 0
	for _, c := range s.stack.Conns() {
		if c.Endpoint().EndpointState() != tcp.StateTimeWait {
			n++
		}
	}
	return n
}
