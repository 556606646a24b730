package ds_test

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/dstest"
)

// BenchmarkHandoff hands an idle client back and forth between nodes of one
// process: what the application's side of a handoff costs, daemons and network
// nearly free. It reports the median gap.
func BenchmarkHandoff(b *testing.B) {
	for _, state := range []bool{false, true} {
		name := "bare"
		var f func(net.Conn) ([]byte, error)
		if state {
			name = "state"
			f = func(net.Conn) ([]byte, error) { return make([]byte, 16), nil }
		}
		b.Run(name, func(b *testing.B) {
			c := dstest.New("a", "b")
			defer c.Close()
			nodes := []*ds.Node{c.Node("a"), c.Node("b")}
			serve := func(c net.Conn) { c.Read(make([]byte, 1)) }
			for _, n := range nodes {
				defer n.Close()
				hl, err := n.ListenHandoff()
				if err != nil {
					b.Fatal(err)
				}
				go func() {
					for in, err := hl.Accept(); err == nil; in, err = hl.Accept() {
						go serve(in.Conns[0])
					}
				}()
			}
			l, err := nodes[0].Listen("tcp", ":7")
			if err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			if _, err := c.Client(client1).Dial(ctx, c.Address(7)); err != nil {
				b.Fatal(err)
			}
			conn, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			go serve(conn)
			var gaps []time.Duration
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r, err := nodes[i%2].Handoff(ctx, client1, []string{"b", "a"}[i%2], f)
				if err != nil {
					b.Fatal(err)
				}
				gaps = append(gaps, r.Gap)
			}
			slices.Sort(gaps)
			b.ReportMetric(float64(gaps[len(gaps)/2])/1e3, "gap-µs")
		})
	}
}
