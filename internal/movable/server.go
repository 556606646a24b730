package movable

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/distributed-servers/ds"
)

// Ports are what is served where: all protocols there are.
var Ports = map[string]string{"http": "80", "line": "7", "resp": "6379"}

// patience is how long a handoff waits until sessions are at rest: on a machine with
// much else to do, one may not have the processor for a while.
const patience = 10 * time.Second

// Server serves the protocols of [Ports]. Fields are set before it serves.
type Server struct {
	// Logger gets what goes wrong with single connections. Default
	// [slog.Default].
	Logger *slog.Logger

	// Buffers is, if it is not 0, how many octets of each connection TCP may keep,
	// each way: those travel in a handoff.
	Buffers int

	// Ready is called with the name of the node, once it listens.
	Ready func(name string)

	name     string   // of this node
	sessions sync.Map // of net.Conn: *session
}

// ServeNode serves the clients of a node, from wherever they come, until the
// context ends. The node must not be in use; its State, MoveInWrite and Patience
// are set here, and the caller closes it.
func (s *Server) ServeNode(ctx context.Context, node *ds.Node) (err error) {
	node.State, node.MoveInWrite, node.Patience = s.state, true, patience
	arrivals, err := node.ListenHandoff()
	if err != nil {
		return err
	}
	if s.name, err = node.Name(ctx); err != nil {
		return errors.Join(err, arrivals.Close())
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer arrivals.Close()
	wg.Go(func() { s.arrive(arrivals) })
	return s.serve(ctx, func(port string) (net.Listener, error) { return node.Listen("tcp", ":"+port) })
}

// ServeHost serves at an address of this host, on the kernel's sockets, until
// the context ends.
func (s *Server) ServeHost(ctx context.Context, addr string) error {
	s.name = "plain"
	return s.serve(ctx, func(port string) (net.Listener, error) {
		return net.Listen("tcp", net.JoinHostPort(addr, port))
	})
}

func (s *Server) serve(ctx context.Context, listen func(port string) (net.Listener, error)) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for protocol, port := range Ports {
		l, err := listen(port)
		if err != nil {
			return fmt.Errorf("movable: listen for %s: %w", protocol, err)
		}
		defer l.Close()
		wg.Go(func() { s.accept(l, protocol) })
	}
	if s.Ready != nil {
		s.Ready(s.name)
	}
	<-ctx.Done()
	return nil
}

func (s *Server) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}

func (s *Server) accept(l net.Listener, protocol string) {
	for {
		c, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.logger().Error("movable: accept", "protocol", protocol, "error", err)
			}
			return
		}
		go s.run(c, newSession(protocol, s.name))
	}
}

// arrive takes the clients that other nodes hand off to this one.
func (s *Server) arrive(arrivals *ds.HandoffListener) {
	for {
		in, err := arrivals.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.logger().Error("movable: accept handoffs", "error", err)
			}
			return
		}
		for i, c := range in.Conns {
			session, err := load(in.State[i], s.name)
			if err != nil {
				s.logger().Error("movable: arrival", "client", c.RemoteAddr(), "from", in.From, "error", err)
				c.Close()
				continue
			}
			go s.run(c, session)
		}
	}
}

// state is what this application knows of a connection that is at rest.
func (s *Server) state(c net.Conn) ([]byte, error) {
	v, ok := s.sessions.Load(c)
	if !ok {
		return nil, errors.New("movable: a connection without a session")
	}
	return v.(*session).save()
}

// run serves a connection until it ends here.
func (s *Server) run(c net.Conn, session *session) {
	if b, ok := c.(interface {
		SetReadBuffer(octets int) error
		SetWriteBuffer(octets int) error
	}); ok && s.Buffers > 0 {
		// They fail if the connection has ended, as Read will.
		b.SetReadBuffer(s.Buffers)
		b.SetWriteBuffer(s.Buffers)
	}
	s.sessions.Store(c, session)
	err := session.serve(c)
	s.sessions.Delete(c)
	if err != nil && !errors.Is(err, net.ErrClosed) { // moved is closed, too
		s.logger().Warn("movable: connection", "client", c.RemoteAddr(), "error", err)
		c.Close()
	}
}
