package cluster

import (
	"fmt"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/internal/ladder"
)

func newSystem(t testing.TB, cfg Config) *System {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func addClient(t testing.TB, s *System, mobile bool) *Client {
	t.Helper()
	c, err := s.AddClient(mobile)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func noProblems(t testing.TB, s *System) {
	t.Helper()
	for _, err := range s.Problems() {
		t.Errorf("seed %d: %v", s.cfg.Seed, err)
	}
}

// A client's transfer goes on while the client is handed from node to node and
// back, with Mobile IPv6 and without.
func TestHandoff(t *testing.T) {
	for _, mobile := range []bool{true, false} {
		t.Run(fmt.Sprintf("mobile=%t", mobile), func(t *testing.T) {
			s := newSystem(t, Config{Seed: 1, ClientDelay: 10 * time.Millisecond, NodeDelay: 100 * time.Microsecond, AgentDelay: time.Millisecond})
			s.Sim.Tap(func(e lab.Event) {
				if testing.Verbose() {
					t.Log(e, ladder.Describe(e.Packet))
				}
			})
			c := addClient(t, s, mobile)
			s.Sim.Run(3 * time.Second)
			d := c.Start(Transfer{Down: 300 << 10, Up: 100 << 10, Chunk: 500, Every: 10 * time.Millisecond})
			s.Sim.Run(time.Second)
			var reports []Report
			s.Sim.Go("operator", func(p *lab.Proc) {
				for _, i := range []int{1, 2, 0} {
					r, err := s.Handoff(p, c.Addr, s.Nodes[i], Ahead)
					if err != nil {
						t.Error(err)
					}
					reports = append(reports, r)
					p.Sleep(time.Second)
				}
			})
			if !s.Sim.RunUntil(time.Minute, func() bool { return d.Done && len(reports) == 3 }) {
				t.Errorf("not over: %d of %d octets, %d handoffs", d.got.Offset, d.Down, len(reports))
			}
			if d.Err != nil {
				t.Error(d.Err)
			}
			for _, r := range reports {
				gap, at := d.Gap(r.Freeze, r.Activate+time.Second)
				t.Logf("%+v: gap %v at %v", r, gap, at)
				if r.Optimised != mobile {
					t.Errorf("optimised: %t", r.Optimised)
				}
			}
			noProblems(t, s)
		})
	}
}
