package demo

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/dstest"
	"github.com/distributed-servers/ds/internal/movable"
)

// servicePort is where the nodes serve HTTP.
const servicePort = 80

// runMemory has everything in this process: for each client a distributed server
// of its own, since all clients of one are optimised, or none.
func runMemory(ctx context.Context, o *Options) (_ *Result, err error) {
	w := &world{}
	var servers []*memoryServer
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.Close())
		}
	}()
	w.problems = func() (all []string) {
		for _, s := range servers {
			all = append(all, s.cluster.Faults()...)
		}
		return all
	}
	for i, redirect := range []string{"optimised", "relayed"} {
		s, err := newMemoryServer(redirect == "optimised")
		if s != nil {
			servers = append(servers, s)
		}
		if err != nil {
			return nil, err
		}
		w.address = s.cluster.Address(servicePort)
		addr := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 0xc1 + byte(i), 15: 2})
		remote := s.cluster.Client(addr)
		w.hosts = append(w.hosts, &host{
			name: "client " + addr.String(), redirect: redirect,
			dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				return remote.Dial(ctx, address)
			},
			ready: func(context.Context) error { return nil },
			handoff: func(ctx context.Context, from, to int) (*move, error) {
				return handoff(ctx, s.nodes[from], addr, nodes[to])
			},
			resets: func() (int, error) { return 0, nil }, // the client is told
		})
	}
	return w.run(ctx, o)
}

// memoryServer is a distributed server in this process.
type memoryServer struct {
	cluster *dstest.Cluster
	nodes   []*ds.Node
	end     context.CancelFunc
	serving sync.WaitGroup
}

func newMemoryServer(optimise bool) (*memoryServer, error) {
	s := &memoryServer{cluster: dstest.New(nodes[:]...)}
	s.cluster.Optimise = optimise
	var ctx context.Context
	ctx, s.end = context.WithCancel(context.Background())
	for _, name := range nodes {
		node := s.cluster.Node(name)
		node.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		s.nodes = append(s.nodes, node)
		up := make(chan error, 1)
		app := &movable.Server{Logger: node.Logger, Buffers: buffers, Ready: func(string) { up <- nil }}
		s.serving.Go(func() {
			if err := app.ServeNode(ctx, node); err != nil {
				up <- err
			}
		})
		if err := <-up; err != nil {
			return s, err
		}
	}
	return s, nil
}

// Close ends it.
func (s *memoryServer) Close() error {
	s.end()
	s.serving.Wait()
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.Close())
	}
	s.cluster.Close()
	return errors.Join(errs...)
}
