package httpmove

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/distributed-servers/ds"
)

// Server is an [http.Server] whose connections move. Fields are set before it
// serves.
type Server struct {
	// Node whose clients are served. It is the program's to close.
	Node *ds.Node

	// Addr to listen at, for ListenAndServe. Default ":80".
	Addr string

	// Handler of requests. Default [http.DefaultServeMux].
	Handler http.Handler

	// HTTP has further settings: time-outs, MaxHeaderBytes, ErrorLog, hooks. Its
	// Addr and Handler are not used, nor is what concerns TLS and HTTP/2. Times
	// begin anew when a connection moves. Default: those of [http.Server].
	HTTP *http.Server

	// Buffer is how many octets of a connection TCP may keep, each way: they
	// travel with it. Default: what package stack finds best for throughput,
	// up to some megabytes.
	Buffer int

	once    sync.Once
	http    *http.Server
	arrived *arrived
	conns   sync.Map // of net.Conn: *conn

	mu       sync.Mutex
	handoffs *ds.HandoffListener
	closed   bool
}

// ListenAndServe serves the node's clients, those that begin here and those that
// other nodes hand off to it, until Shutdown or Close: then it returns
// [http.ErrServerClosed]. It sets the node's State and calls its ListenHandoff;
// a program with more than HTTP on a node does that itself, and uses
// [Server.Serve], [Server.State] and [Server.Resume].
func (s *Server) ListenAndServe() error {
	s.Node.State = s.State
	handoffs, err := s.Node.ListenHandoff()
	if err != nil {
		return err
	}
	s.mu.Lock()
	closed := s.closed
	s.handoffs = handoffs
	s.mu.Unlock()
	defer s.endHandoffs()
	if closed {
		return http.ErrServerClosed
	}
	addr := s.Addr
	if addr == "" {
		addr = ":80"
	}
	l, err := s.Node.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer l.Close()
	go s.acceptHandoffs(handoffs)
	return s.Serve(l)
}

func (s *Server) endHandoffs() {
	s.mu.Lock()
	l := s.handoffs
	s.handoffs, s.closed = nil, true
	s.mu.Unlock()
	if l != nil {
		l.Close()
	}
}

func (s *Server) acceptHandoffs(l *ds.HandoffListener) {
	for in, err := l.Accept(); err == nil; in, err = l.Accept() {
		for i, c := range in.Conns {
			if err := s.Resume(c, in.State[i]); err != nil {
				s.logf("%s from %s: reset: %v", in.Client, in.From, err)
			}
		}
	}
}

// Serve serves the connections that a listener of the node accepts, until the
// listener or the server is closed. The error is never nil.
func (s *Server) Serve(l net.Listener) error {
	s.init()
	return s.http.Serve(&listener{l, s})
}

// Resume serves a connection that has begun on another node, whose State said so
// much of it. If it fails, the connection is reset.
func (s *Server) Resume(nc net.Conn, state []byte) error {
	s.init()
	c, err := s.wrap(nc)
	if err != nil {
		return err
	}
	r, err := parseRecord(state)
	if err != nil {
		c.reset()
		return fmt.Errorf("httpmove: resume %s: %w", nc.RemoteAddr(), err)
	}
	c.restore(r)
	if !r.idle() {
		s.arrived.add(c)
		return nil
	}
	go func() {
		if err := c.idle(s.idleTimeout()); err != nil {
			c.Close()
			return
		}
		s.arrived.add(c)
	}()
	return nil
}

// State tells what another node needs to know of a connection that this server
// serves, to Resume it. It is for [ds.Node.State] and [ds.Node.Handoff].
func (s *Server) State(nc net.Conn) ([]byte, error) {
	v, ok := s.conns.Load(nc)
	if !ok {
		return nil, errors.New("httpmove: no connection of this server")
	}
	r, err := v.(*conn).snapshot()
	if err != nil {
		return nil, err
	}
	return r.append()
}

// Move hands a client off to another node. See [ds.Node.Handoff].
func (s *Server) Move(ctx context.Context, client netip.Addr, to string) (*ds.Report, error) {
	return s.Node.Handoff(ctx, client, to, s.State)
}

// Shutdown is that of [http.Server]: it ends the listeners, and the connections as
// they become idle. To keep those, move their clients first.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.endHandoffs()
	return s.http.Shutdown(ctx)
}

// Close is that of [http.Server].
func (s *Server) Close() error {
	s.init()
	s.endHandoffs()
	return s.http.Close()
}

func (s *Server) init() {
	s.once.Do(func() {
		set := s.HTTP
		if set == nil {
			set = new(http.Server)
		}
		s.http = &http.Server{
			Handler:                      http.HandlerFunc(s.serveHTTP),
			DisableGeneralOptionsHandler: true, // it is in ours
			ReadTimeout:                  set.ReadTimeout,
			ReadHeaderTimeout:            set.ReadHeaderTimeout,
			WriteTimeout:                 set.WriteTimeout,
			IdleTimeout:                  set.IdleTimeout,
			MaxHeaderBytes:               set.MaxHeaderBytes,
			ErrorLog:                     set.ErrorLog,
			BaseContext:                  set.BaseContext,
			Protocols:                    new(http.Protocols),
			ConnState: func(nc net.Conn, state http.ConnState) {
				nc.(*conn).state(state)
				if set.ConnState != nil {
					set.ConnState(nc, state)
				}
			},
			ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
				if set.ConnContext != nil {
					ctx = set.ConnContext(ctx, nc)
				}
				return context.WithValue(ctx, connKey{}, nc)
			},
		}
		s.http.Protocols.SetHTTP1(true)
		s.arrived = newArrived()
		go s.http.Serve(s.arrived)
	})
}

func (s *Server) idleTimeout() (d time.Duration) {
	if s.HTTP == nil {
		return 0
	}
	if d = s.HTTP.IdleTimeout; d == 0 {
		d = s.HTTP.ReadTimeout
	}
	return d
}

func (s *Server) logf(format string, args ...any) {
	if s.HTTP != nil && s.HTTP.ErrorLog != nil {
		s.HTTP.ErrorLog.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}

// wrap makes a connection one of this server.
func (s *Server) wrap(nc net.Conn) (*conn, error) {
	t, ok := nc.(transport)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("httpmove: a %T cannot move: it is no connection of a ds.Node", nc)
	}
	if b, ok := nc.(interface {
		SetReadBuffer(octets int) error
		SetWriteBuffer(octets int) error
	}); ok && s.Buffer > 0 {
		b.SetReadBuffer(s.Buffer) // if these fail it has ended, as Read will say
		b.SetWriteBuffer(s.Buffer)
	}
	c := &conn{transport: t, server: s}
	s.conns.Store(nc, c)
	return c, nil
}

func (s *Server) forget(c *conn) { s.conns.Delete(c.transport) }

type connKey struct{}

// connOf is the connection that a request came on, nil if no Server serves it.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

// serveHTTP stands before the Handler.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := connOf(r)
	if err := c.begin(r); err != nil {
		c.abort(err)
		panic(http.ErrAbortHandler)
	}
	defer c.end()
	h := s.Handler
	switch {
	case r.Method == http.MethodOptions && r.RequestURI == "*":
		h = http.HandlerFunc(options)
	case h == nil:
		h = http.DefaultServeMux
	}
	h.ServeHTTP(w, r)
}

// options answers "OPTIONS *" as net/http does.
func options(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") }

// listener wraps what it accepts.
type listener struct {
	net.Listener
	server *Server
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.server.wrap(nc)
}

// arrived is the listener of connections that come from other nodes.
type arrived struct {
	mu     sync.Mutex
	more   sync.Cond
	conns  []*conn
	closed bool
}

func newArrived() *arrived {
	a := new(arrived)
	a.more.L = &a.mu
	return a
}

func (a *arrived) add(c *conn) {
	a.mu.Lock()
	closed := a.closed
	if !closed {
		a.conns = append(a.conns, c)
		a.more.Signal()
	}
	a.mu.Unlock()
	if closed {
		c.reset()
	}
}

func (a *arrived) Accept() (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.conns) == 0 && !a.closed {
		a.more.Wait()
	}
	if a.closed {
		return nil, net.ErrClosed
	}
	c := a.conns[0]
	a.conns = a.conns[1:]
	return c, nil
}

func (a *arrived) Close() error {
	a.mu.Lock()
	conns, closed := a.conns, a.closed
	a.conns, a.closed = nil, true
	a.more.Broadcast()
	a.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	for _, c := range conns {
		c.reset()
	}
	return nil
}

func (a *arrived) Addr() net.Addr { return arrivedAddr{} }

type arrivedAddr struct{}

func (arrivedAddr) Network() string { return "handoff" }
func (arrivedAddr) String() string  { return "other nodes" }
