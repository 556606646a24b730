// Command service is the application of the end-to-end tests (internal/movable):
// it serves HTTP, lines and the Redis serialization protocol on a distributed
// server address, and its clients can be handed off in the middle of anything.
//
// After SIGUSR1 it logs what its node says of itself: Status and Clients each time, as
// one line of JSON each, and from the first time on what Watch gives.
//
// With -plain it serves on a kernel socket of this host instead, which is what
// the tests compare with.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/internal/movable"
)

func main() {
	log.SetFlags(log.Lmicroseconds)
	log.SetPrefix("service: ")
	slog.SetLogLoggerLevel(slog.LevelDebug) // the reports of handoffs
	plain := flag.String("plain", "", "serve on the kernel's sockets at this `address`, without dsco")
	socket := flag.String("socket", "", "`path` of dsco's socket")
	addr := flag.String("addr", "", "the distributed server `address`, if this user may attach to several")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	s := new(movable.Server)
	var err error
	if *plain != "" {
		s.Ready = func(name string) { log.Printf("ready on %s", name) }
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
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	s.Ready = func(name string) {
		go tell(ctx, node, asked)
		log.Printf("ready on %s", name)
	}
	return errors.Join(s.ServeNode(ctx, node), node.Close())
}

// tell logs what the node says of itself, when it is asked for.
func tell(ctx context.Context, node *ds.Node, asked <-chan os.Signal) {
	var watch sync.Once
	for range asked {
		watch.Do(func() {
			go func() {
				for e, err := range node.Watch(ctx) {
					say("event", e, err)
				}
			}()
		})
		status, err := node.Status(ctx)
		say("status", status, err)
		clients, err := node.Clients(ctx)
		say("clients", clients, err)
	}
}

func say(what string, v any, err error) {
	b, wrong := json.Marshal(v)
	if err = errors.Join(err, wrong); err != nil {
		log.Printf("%s: %v", what, err)
		return
	}
	log.Printf("%s %s", what, b)
}
