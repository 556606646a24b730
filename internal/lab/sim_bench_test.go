package lab_test

import (
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
)

// BenchmarkRun is one whole small run: hosts, networks and stacks are made,
// some two hundred packets go from end to end, all is closed.
func BenchmarkRun(b *testing.B) {
	b.ReportAllocs()
	var events, seed uint64
	for b.Loop() {
		seed++
		events += runEcho(b, seed%50+1, 2, 20000, nil).events
	}
	b.ReportMetric(float64(events)/float64(b.N), "events/op")
}

// BenchmarkIdle is what a simulated second costs in which little happens: a
// tick of each of four hosts.
func BenchmarkIdle(b *testing.B) {
	s := lab.NewSim(1)
	defer s.Close()
	n := s.NewNet("net")
	for _, name := range []string{"a", "b", "c", "d"} {
		h := addStack(b, s, name, n, service)
		h.Go("tick", func(p *lab.Proc) {
			for {
				p.Sleep(time.Second)
			}
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		s.Run(time.Second)
	}
}
