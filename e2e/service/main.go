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
	"os/signal"
	"sync"
	"syscall"
)

func main() {
	log.SetFlags(log.Lmicroseconds)
	log.SetPrefix("service: ")
	plain := flag.String("plain", "", "serve on the kernel's sockets at this `address`, without dsco")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s := &service{name: "plain", listen: func(port string) (net.Listener, error) {
		return net.Listen("tcp", net.JoinHostPort(*plain, port))
	}}
	if err := s.run(ctx); err != nil {
		log.Fatal(err)
	}
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
		defer context.AfterFunc(ctx, func() { l.Close() })()
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
