package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/stack"
)

// half is one end of a connection that sends and checks size octets each way;
// it is the application's state, which survives a move of the connection.
type half struct {
	id, size       int
	sent, received int
}

var errWrongOctets = errors.New("wrong octets")

// step sends and receives what can be without waiting.
func (h *half) step(c lab.Conn) (progress bool, err error) {
	b, want := make([]byte, 1000), make([]byte, 1000)
	for h.sent < h.size {
		chunk := b[:min(len(b), h.size-h.sent)]
		pattern(chunk, h.id, h.sent)
		n, err := c.TryWrite(chunk)
		h.sent += n
		progress = progress || n > 0
		if err != nil && !errors.Is(err, syscall.EAGAIN) {
			return progress, err
		}
		if n < len(chunk) {
			break
		}
	}
	for h.received < h.size {
		n, err := c.TryRead(b[:min(len(b), h.size-h.received)])
		pattern(want[:n], h.id, h.received)
		if !bytes.Equal(b[:n], want[:n]) {
			return true, errWrongOctets
		}
		h.received += n
		progress = progress || n > 0
		if err != nil && !errors.Is(err, syscall.EAGAIN) {
			return progress, err
		}
		if n == 0 {
			break
		}
	}
	return progress, nil
}

func (h *half) done() bool { return h.sent == h.size && h.received == h.size }

// runMoves has the connections of a client moved back and forth between two
// nodes while they carry data over a bad path.
func runMoves(t *testing.T, seed uint64, conns, size int) outcome {
	t.Helper()
	s := lab.NewSim(seed)
	defer s.Close()
	n := s.NewNet("net")
	c := addStack(t, s, "client", n, client)
	nodes := []*lab.Host{addStack(t, s, "b", n, service), addStack(t, s, "a", n, service)}
	c.Port().SetImpair(
		lab.Impair{Loss: .02, Duplicate: .02, Delay: 5 * time.Millisecond, Bandwidth: 2e6},
		lab.Impair{Loss: .02, Reorder: .02, Delay: 5 * time.Millisecond, Bandwidth: 2e6})

	states := make(map[stack.Tuple]*half)
	ends := make([]*half, conns)
	run := func(p *lab.Proc, c *stack.Conn, h *half) {
		for !h.done() {
			var err error
			p.Wait(func() (progress bool) {
				progress, err = h.step(c)
				return progress || err != nil
			})
			if errors.Is(err, stack.ErrMoved) {
				return
			}
			if err != nil {
				t.Errorf("seed %d, %v: connection %d: %v", seed, p.Now(), h.id, err)
				return
			}
		}
	}
	for _, node := range nodes {
		l, err := tcpOf(node).Listen("tcp", "[fd00:5::1]:7")
		if err != nil {
			t.Fatal(err)
		}
		node.Go("accept", func(p *lab.Proc) {
			for {
				conn := accept(p, l)
				h := &half{id: int(conn.Tuple().Remote.Port()), size: size}
				states[conn.Tuple()] = h
				node.Go("server", func(p *lab.Proc) { run(p, conn, h) })
			}
		})
	}
	for i := range conns {
		c.Go(fmt.Sprint("client ", i), func(p *lab.Proc) {
			conn, err := tcpOf(c).TryDial("tcp", "[fd00:5::1]:7")
			if err != nil {
				t.Error(err)
				return
			}
			p.Wait(func() bool { return connected(conn) })
			ends[i] = &half{id: int(conn.Tuple().Local.Port()), size: size}
			run(p, conn, ends[i])
		})
	}

	moves := 0
	s.Go("mover", func(p *lab.Proc) {
		n.Route(netip.PrefixFrom(service, 128), nodes[0].Port())
		for {
			p.Sleep(37 * time.Millisecond)
			from, to := nodes[0], nodes[1]
			if len(tcpOf(from).ConnsOf(client)) == 0 {
				continue
			}
			d := migrate.NewClientDonor(tcpOf(from), client)
			if err := d.Freeze(); err != nil {
				if !errors.Is(err, migrate.ErrHandshake) {
					t.Errorf("seed %d: %v", seed, err)
				}
				continue
			}
			snap, err := d.Export(nil)
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
				return
			}
			p.Sleep(3 * time.Millisecond) // it travels
			target, err := migrate.Import(tcpOf(to), snap)
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
				return
			}
			n.Route(netip.PrefixFrom(service, 128), to.Port())
			late, err := d.Discard(tcpOf(to).Inject, time.Minute)
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
				return
			}
			moved, err := target.Activate(late...)
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
				return
			}
			for _, conn := range moved {
				if h := states[conn.Tuple()]; h != nil {
					to.Go("server", func(p *lab.Proc) { run(p, conn, h) })
				}
			}
			nodes[0], nodes[1] = to, from
			moves++
		}
	})
	done := func() bool {
		for _, e := range ends {
			if e == nil || !e.done() {
				return false
			}
		}
		return true
	}
	if !s.RunUntil(5*time.Minute, done) {
		t.Errorf("seed %d: not done after %v and %d moves", seed, s.Now(), moves)
	}
	t.Logf("seed %d: %x, %d events, %d moves, %v", seed, s.Hash(), s.Events(), moves, s.Now())
	return outcome{s.Hash(), s.Events(), s.Now()}
}

// Moves of connections repeat too.
func TestSameSeedSameMoves(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for seed := uint64(2); seed <= 4; seed++ {
		var first outcome
		for i, procs := range []int{1, 2, 4} {
			runtime.GOMAXPROCS(procs)
			got := runMoves(t, seed, 4, 60_000)
			if i == 0 {
				first = got
			} else if got != first {
				t.Errorf("seed %d, %d processors: %+v, want %+v", seed, procs, got, first)
			}
		}
	}
}
