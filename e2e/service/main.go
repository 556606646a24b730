// Command service is the application of the end-to-end tests (internal/movable):
// it serves HTTP, lines and the Redis serialization protocol on a distributed
// server address, and its clients can be handed off in the middle of anything.
//
// With -plain it serves on a kernel socket of this host instead, which is what
// the tests compare with.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net/netip"
	"os/signal"
	"syscall"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/internal/movable"
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
	s := &movable.Server{Ready: func(name string) { log.Printf("ready on %s", name) }}
	var err error
	if *plain != "" {
		err = s.ServeHost(ctx, *plain)
	} else {
		err = serveNode(ctx, s, *socket, *addr)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serveNode serves on a distributed server address.
func serveNode(ctx context.Context, s *movable.Server, socket, addr string) (err error) {
	node := &ds.Node{Socket: socket}
	if addr != "" {
		if node.Addr, err = netip.ParseAddr(addr); err != nil {
			return err
		}
	}
	return errors.Join(s.ServeNode(ctx, node), node.Close())
}
