package filter

import (
	"flag"
	"log/slog"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/distributed-servers/ds/internal/netns"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/wire"
)

// BenchmarkQueue is what a packet costs through the queue and back: forwarded
// without a rule (none), accepted, and replaced; and accepted without the library
// (bare). The time of the processor, the
// kernel's and ours, counts on a machine where others run too: cpu-ns/op. It runs
// in a network of its own, in another process whose figures are shown.
func BenchmarkQueue(b *testing.B) {
	if !ownBenchmark(b) {
		return
	}
	s := newScene(b)
	small := mobility(b, wire.Packet{Src: away, Dst: careOf}, &wire.BindingAck{})
	large := build(b, wire.Packet{Src: away, Dst: careOf, Protocol: wire.Mobility, Payload: make([]byte, 1440)})
	for _, bm := range []struct {
		name   string
		packet []byte
		v      func(Packet) Verdict
		rules  Rules
	}{
		{"none/64", small, accepting, Rules{}},
		{"accept/64", small, accepting, nodeRules},
		{"replace/64", small, func(p Packet) Verdict { return Replace(p.Payload) }, nodeRules},
		{"accept/1480", large, accepting, nodeRules},
		{"replace/1480", large, func(p Packet) Verdict { return Replace(p.Payload) }, nodeRules},
	} {
		forward(b, bm.name, s, bm.packet, bm.rules, bm.v)
	}
	b.Run("bare/64", func(b *testing.B) {
		if err := install(7846, nodeRules); err != nil {
			b.Fatal(err)
		}
		stop := acceptBare(b)
		defer stop()
		roundTrips(b, s, small)
	})
}

// BenchmarkOthers is what the rules cost a packet that is not their concern, and
// is forwarded.
func BenchmarkOthers(b *testing.B) {
	if !ownBenchmark(b) {
		return
	}
	s := newScene(b)
	servers := []NodeServer{{Address: other, CareOf: other, TUN: "dsco0"}, {Address: other, CareOf: other, TUN: "dsco1"}}
	for _, bm := range []struct {
		name  string
		rules Rules
	}{
		{"none", Rules{}},
		{"node", NodeRules(here, servers)},
		{"correspondent", CorrespondentRules(nil)},
		{"none-again", Rules{}},
	} {
		forward(b, bm.name, s, udp(b, away, careOf, "1"), bm.rules, accepting)
	}
}

// ownBenchmark reports whether the process is inside a network of its own, and
// runs the benchmark in another that is.
func ownBenchmark(b *testing.B) bool {
	if netns.Inside() {
		return true
	}
	probe.Skip(b, probe.NFQueue, probe.Program("ip6tables-restore"))
	cmd := netns.Reexec(b.Context(), nil, "-test.run=^$", "-test.bench=^"+b.Name()+"$", "-test.benchmem",
		"-test.benchtime="+flag.Lookup("test.benchtime").Value.String())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	b.Skip("ran in a network of its own; figures above")
	return false
}

// forward sends packets through the kernel.
func forward(b *testing.B, name string, s *scene, packet []byte, rules Rules, v func(Packet) Verdict) {
	b.Run(name, func(b *testing.B) {
		f, err := Open(Config{Queue: 7846, Rules: rules, Logger: slog.New(slog.DiscardHandler), Handler: v})
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		roundTrips(b, s, packet)
	})
}

// roundTrips sends packets and waits for them, some at a time.
func roundTrips(b *testing.B, s *scene, packet []byte) {
	const batch = 64
	arrived := 0
	b.ResetTimer()
	start := processorTime(b)
	for i := range b.N {
		s.net.send(packet)
		if i%batch == batch-1 || i == b.N-1 {
			for ; arrived <= i; arrived++ {
				s.tun.receive(is(packet))
			}
		}
	}
	b.ReportMetric(float64(processorTime(b)-start)/float64(b.N), "cpu-ns/op")
}

func processorTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
