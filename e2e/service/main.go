// Command service is the application of the end-to-end tests: it serves HTTP,
// lines and the Redis serialization protocol on a distributed server address,
// and its clients can be handed off in the middle of anything.
//
// With -plain it serves on a kernel socket of this host instead, which is what
// the tests compare with.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/netip"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/distributed-servers/ds"
)

func main() {
	log.SetFlags(log.Lmicroseconds)
	log.SetPrefix("service: ")
	plain := flag.String("plain", "", "serve on the kernel's sockets at this `address`, without dsco")
	socket := flag.String("socket", "", "`path` of dsco's socket")
	addr := flag.String("addr", "", "the distributed server `address`, if this user may attach to several")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	if *plain != "" {
		err = serveAt(ctx, *plain)
	} else {
		err = serveNode(ctx, *socket, *addr)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serveAt serves on the kernel's sockets.
func serveAt(ctx context.Context, addr string) error {
	s := &service{name: "plain", listen: func(port string) (net.Listener, error) {
		return net.Listen("tcp", net.JoinHostPort(addr, port))
	}}
	return s.run(ctx)
}

// serveNode serves on a distributed server address.
func serveNode(ctx context.Context, socket, addr string) (err error) {
	// A client that reads slowly can keep a Write that has begun from its end.
	node := &ds.Node{Socket: socket, MoveInWrite: true, Patience: 10 * time.Second}
	if addr != "" {
		if node.Addr, err = netip.ParseAddr(addr); err != nil {
			return err
		}
	}
	s := &service{listen: func(port string) (net.Listener, error) { return node.Listen("tcp", ":"+port) }}
	node.State = s.state
	defer node.Close()
	arrivals, err := node.ListenHandoff()
	if err != nil {
		return err
	}
	if s.name, err = node.Name(ctx); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer arrivals.Close()
	wg.Go(func() { s.arrive(arrivals) })
	return s.run(ctx)
}

// ports are what is served where.
var ports = map[string]string{"http": "80", "line": "7", "resp": "6379"}

// service serves connections.
type service struct {
	name     string // of this node
	listen   func(port string) (net.Listener, error)
	sessions sync.Map // of net.Conn: *session
}

// run serves until the context ends.
func (s *service) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for protocol, port := range ports {
		l, err := s.listen(port)
		if err != nil {
			return fmt.Errorf("listen for %s: %w", protocol, err)
		}
		defer l.Close()
		wg.Go(func() { s.accept(l, protocol) })
	}
	log.Printf("ready on %s", s.name)
	<-ctx.Done()
	return nil
}

func (s *service) accept(l net.Listener, protocol string) {
	for {
		c, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				log.Printf("accept for %s: %v", protocol, err)
			}
			return
		}
		go s.serve(c, newSession(protocol, s.name))
	}
}

// arrive takes the clients that other nodes hand off to this one.
func (s *service) arrive(arrivals *ds.HandoffListener) {
	for {
		in, err := arrivals.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				log.Printf("accept handoffs: %v", err)
			}
			return
		}
		for i, c := range in.Conns {
			session, err := load(in.State[i], s.name)
			if err != nil {
				log.Printf("%s from %s: %v", c.RemoteAddr(), in.From, err)
				c.Close()
				continue
			}
			go s.serve(c, session)
		}
	}
}

// state is what this application knows of a connection that is at rest.
func (s *service) state(c net.Conn) ([]byte, error) {
	v, ok := s.sessions.Load(c)
	if !ok {
		return nil, errors.New("service: a connection without a session")
	}
	return v.(*session).save()
}

// serve serves a connection until it ends here.
func (s *service) serve(c net.Conn, session *session) {
	s.sessions.Store(c, session)
	err := session.serve(c)
	s.sessions.Delete(c)
	if err != nil && !errors.Is(err, net.ErrClosed) { // moved is closed, too
		log.Printf("%s: %v", c.RemoteAddr(), err)
		c.Close()
	}
}
