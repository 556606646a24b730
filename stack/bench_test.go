package stack_test

import (
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/stack"
)

// BenchmarkLossy is bulk TCP from server to client over a path that loses or
// reorders packets, 10 ms there and back, with each loss detection and each
// congestion control. tuneTCP chooses by it.
func BenchmarkLossy(b *testing.B) {
	for _, path := range []struct {
		name string
		lab.Impair
	}{
		{"clean", lab.Impair{}},
		{"loss0.1%", lab.Impair{Loss: 0.001}},
		{"loss1%", lab.Impair{Loss: 0.01}},
		{"reorder1%", lab.Impair{Reorder: 0.01}},
	} {
		for _, rack := range []bool{true, false} {
			for _, cc := range []string{"cubic", "reno"} {
				b.Run(fmt.Sprintf("%s/rack=%v/%s", path.name, rack, cc), func(b *testing.B) {
					benchmarkLossy(b, path.Impair, rack, cc, 0)
				})
			}
		}
	}
}

// BenchmarkLossySuper is the same with super-packets, of which single segments
// are lost. The segments that a super-packet has are chosen by it.
func BenchmarkLossySuper(b *testing.B) {
	for _, loss := range []float64{0, 0.0001, 0.001, 0.01} {
		for _, segments := range []int{0, stack.SuperSegments, 24, stack.OffloadSegments} {
			b.Run(fmt.Sprintf("loss=%v%%/segments=%d", 100*loss, segments), func(b *testing.B) {
				benchmarkLossy(b, lab.Impair{Loss: loss}, false, "cubic", segments)
			})
		}
	}
}

func benchmarkLossy(b *testing.B, impair lab.Impair, rack bool, cc string, segments int) {
	const size = 8 << 20 // each time on a new connection, on the same seed's losses
	var total time.Duration
	var retransmits uint64
	for i := 0; b.Loop(); i++ {
		net := lab.New(uint64(i+1), nil)
		impair.Delay = 5 * time.Millisecond
		start := func(name string, addr netip.Addr) *stack.Stack {
			p := net.Attach(name, 1500)
			net.Route(netip.PrefixFrom(addr, addr.BitLen()), p)
			s, err := stack.New(stack.Config{Device: p, Addrs: []netip.Addr{addr}, CongestionControl: cc})
			if err != nil {
				b.Fatal(err)
			}
			if rack {
				on := tcpip.TCPRACKLossDetection
				if err := s.Netstack().SetTransportProtocolOption(tcp.ProtocolNumber, &on); err != nil {
					b.Fatal(err)
				}
			}
			if name == "server" {
				p.SetImpair(impair, lab.Impair{Delay: 5 * time.Millisecond})
				s.SetSuperSegments(segments)
			}
			return s
		}
		client, server := start("client", client6), start("server", server6)
		c, s := connect(b, client, server, server6)
		done := make(chan error, 1)
		begin := time.Now()
		go func() { _, err := send(s, 0, size); done <- err }()
		if _, err := io.CopyN(io.Discard, c, size); err != nil {
			b.Fatal(err)
		}
		total += time.Since(begin)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		retransmits += server.Netstack().Stats().TCP.Retransmits.Value()
		client.Close()
		server.Close()
		net.Close()
	}
	b.ReportMetric(float64(b.N)*size/total.Seconds()/1e6, "MB/s")
	b.ReportMetric(float64(retransmits)/float64(b.N), "retransmits/op")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFilter is what a packet costs on its way through the filter while
// something else is held.
func BenchmarkFilter(b *testing.B) {
	for _, held := range []bool{false, true} {
		b.Run(fmt.Sprintf("held=%v", held), func(b *testing.B) {
			_, server := newPair(b)
			if held {
				if _, err := server.HoldConn(stack.Tuple{Local: netip.AddrPortFrom(server6, 80), Remote: netip.AddrPortFrom(client6, 1)}); err != nil {
					b.Fatal(err)
				}
			}
			p := syn(netip.AddrPortFrom(client6, 2), netip.AddrPortFrom(server6, 80))
			p[53] = 4 // RST: nobody answers
			b.ReportAllocs()
			for b.Loop() {
				server.Inject(p)
			}
		})
	}
}
