package relay

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/distributed-servers/ds/mobility/wire"
)

// many is a Relay with n clients of two nodes.
func many(b *testing.B, n int) *Relay {
	r := newRelay(b)
	nodes := []netip.Addr{node2, node3}
	for i := range n {
		r.Step(0, SetOwner{clientNumber(i), nodes[i%2], 1})
	}
	return r
}

var counts = []int{1_000, 10_000, 100_000, 1_000_000}

// A packet on its way to or from a node allocates nothing, and neither does a change
// of owner.
func TestNoAllocations(t *testing.T) {
	r := newRelay(t)
	r.Step(0, SetOwner{client, node2, 1})
	request := tunnel(t, homeAgent, contact, data(t, client, home, 1300))
	own := tunnel(t, homeAgent, contact, data(t, clientNumber(1), home, 1300))
	answer := tunnel(t, node2, contact, data(t, home, client, 1300))
	stray := tunnel(t, stranger, contact, data(t, home, client, 1300))
	var epoch uint64
	// What is behind an interface allocates there, which is the caller's concern.
	inputs := map[string]Input{
		"to a node": Received{request}, "to this node": Received{own}, "from a node": Received{answer}, "from a stranger": Received{stray},
	}
	for name, in := range inputs {
		if n := testing.AllocsPerRun(1000, func() { r.Step(0, in) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	nodes := []netip.Addr{node2, node3}
	if n := testing.AllocsPerRun(1000, func() { epoch++; r.setOwner(SetOwner{client, nodes[epoch%2], epoch}) }); n != 0 {
		t.Errorf("a change of owner: %v allocations", n)
	}
}

// BenchmarkFromAgent: a packet of one of n clients, each time another, to its
// owner.
func BenchmarkFromAgent(b *testing.B) {
	for _, n := range counts {
		for _, size := range []int{64, 1300} {
			b.Run(fmt.Sprintf("clients=%d/octets=%d", n, size), func(b *testing.B) {
				r := many(b, n)
				packet := tunnel(b, homeAgent, contact, data(b, client, home, size))
				b.SetBytes(int64(len(packet)))
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					from := clientNumber(int(uint32(i) * 2654435761 % uint32(n))).As16()
					copy(packet[wire.HeaderLen+8:], from[:])
					if out := r.Step(0, Received{packet}); len(out.Send) != 1 {
						b.Fatal(out.Dropped)
					}
				}
			})
		}
	}
}

// BenchmarkFromNode: an answer to the home agent, or straight out.
func BenchmarkFromNode(b *testing.B) {
	for _, direct := range []bool{false, true} {
		b.Run(fmt.Sprintf("direct=%v", direct), func(b *testing.B) {
			r := newRelay(b, func(c *Config) { c.DirectReturn = direct })
			packet := tunnel(b, node2, contact, data(b, home, client, 1300))
			b.SetBytes(int64(len(packet)))
			b.ReportAllocs()
			for b.Loop() {
				if out := r.Step(0, Received{packet}); len(out.Send) != 1 {
					b.Fatal(out.Dropped)
				}
			}
		})
	}
}

// BenchmarkHomeTest: a node's question and its answer, with the checksums.
func BenchmarkHomeTest(b *testing.B) {
	r := many(b, 1_000_000)
	question := tunnel(b, node3, contact, mobility(b, home, clientNumber(0), &wire.HomeTestInit{}))
	answer := tunnel(b, homeAgent, contact, mobility(b, clientNumber(0), home, &wire.HomeTest{}))
	b.ReportAllocs()
	for b.Loop() {
		r.Step(0, Received{question})
		if out := r.Step(0, Received{answer}); len(out.Send) != 1 {
			b.Fatal(out.Dropped)
		}
	}
}

// BenchmarkLocal: a packet of the contact's own client.
func BenchmarkLocal(b *testing.B) {
	r := many(b, 1_000_000)
	packet := tunnel(b, homeAgent, contact, data(b, client, home, 1300))
	b.ReportAllocs()
	for b.Loop() {
		if out := r.Step(0, Received{packet}); len(out.Local) != 1 {
			b.Fatal(out.Dropped)
		}
	}
}

// BenchmarkSetOwner: a client goes to and fro among a million.
func BenchmarkSetOwner(b *testing.B) {
	r := many(b, 1_000_000)
	nodes := []netip.Addr{node2, node3}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.Step(0, SetOwner{clientNumber(i % 1_000_000), nodes[i%2], uint64(i)})
	}
}

// BenchmarkMemory: octets for each of a million clients.
func BenchmarkMemory(b *testing.B) {
	for _, n := range counts {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				r := many(b, n)
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/client")
				runtime.KeepAlive(r)
			}
		})
	}
}
