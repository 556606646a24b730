package rawip_test

import (
	"testing"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/netns/topology"
)

// The benchmarks need a network of their own:
//
//	DS_NETNS=outside unshare -n go test ./daemon/rawip -run '^$' -bench .
//
// Both hosts are of the same kernel: what sending costs has the receiver's side
// of the link in it.

func hosts(b *testing.B) (x, y *topology.Host) {
	b.Helper()
	if !netns.Inside() {
		b.Skip("not in a network of its own")
	}
	return two(b)
}

func BenchmarkSend(b *testing.B) {
	a, _ := hosts(b)
	s := sender(b, a)
	batch := s.NewBatch()
	p := outer(addrA, addrB, inner(1380))
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		batch.Add(p)
	}
	batch.Flush()
	if s.Stats().Sent == 0 {
		b.Fatalf("%+v", s.Stats())
	}
}

func BenchmarkTunnel(b *testing.B) {
	ha, hb := hosts(b)
	s, tn := sender(b, ha), tunnel(b, hb, addrB)
	batch := make([][]byte, 64)
	for i := range batch {
		batch[i] = outer(addrA, addrB, inner(1380))
	}
	b.SetBytes(int64(len(batch[0])))
	b.ReportAllocs()
	for n := 0; n < b.N; {
		s.Send(batch...)
		for got := 0; got < len(batch); {
			packets, err := tn.ReadBatch()
			if err != nil {
				b.Fatal(err)
			}
			got += len(packets)
		}
		n += len(batch)
	}
}
