package homeagent

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
)

func homeOf(i int) netip.Addr {
	a := home.As16()
	a[8] = 1
	binary.BigEndian.PutUint32(a[12:], uint32(i))
	return netip.AddrFrom16(a)
}

// crowd is a home agent with n bindings, all to coa1, on a virtual link.
// Benchmarks that leave it as it is share it: a million take seconds to make.
func crowd(b *testing.B, n int) *scene {
	if shared == nil || len(shared.m.homes) != n {
		shared = newCrowd(b, n)
		runtime.GC()
	}
	shared.TB = b
	return shared
}

var shared *scene

func newCrowd(b *testing.B, n int) *scene {
	s := newScene(b, virtual, func(cfg *Config) {
		cfg.Keys = make(map[netip.Addr]Credential, n)
		for i := range n {
			cfg.Keys[homeOf(i)] = Credential{spi, secret}
		}
	})
	for i := range n {
		// As if a Binding Update had been accepted, which takes its time.
		h := s.m.homes[homeOf(i).As16()]
		s.m.register(h, &request{source: coa1, careOf: coa1, sequence: 1, lifetime: maxLifetime})
		s.m.reset()
	}
	return s
}

var crowds = []int{1, 1000, 1000000}

// spread picks among n as if at random, so that nothing stays in the cache.
func spread(i, n int) int { return int(uint64(i) * 2654435761 % uint64(n)) }

func BenchmarkTunnelIn(b *testing.B) {
	for _, n := range crowds {
		b.Run(fmt.Sprintf("bindings=%d", n), func(b *testing.B) {
			s := crowd(b, n)
			p := s.echo(cn, home, 1400)
			b.ReportAllocs()
			b.SetBytes(int64(len(p)))
			b.ResetTimer()
			for i := range b.N {
				a := homeOf(spread(i, n)).As16()
				copy(p[24:40], a[:])
				if out := s.m.Step(s.now, Received{p}); len(out.Send) != 1 {
					b.Fatal("not tunnelled")
				}
			}
		})
	}
}

func BenchmarkTunnelOut(b *testing.B) {
	for _, n := range crowds {
		b.Run(fmt.Sprintf("bindings=%d", n), func(b *testing.B) {
			s := crowd(b, n)
			p := s.tunnelled(coa1, s.echo(home, cn, 1400))
			b.ReportAllocs()
			b.SetBytes(int64(len(p)))
			b.ResetTimer()
			for i := range b.N {
				a := homeOf(spread(i, n)).As16()
				copy(p[40+8:40+24], a[:])
				if out := s.m.Step(s.now, Received{p}); len(out.Send) != 1 {
					b.Fatal("not forwarded")
				}
			}
		})
	}
}

// A Binding Update of a mobile node that has a binding, and the answer.
func BenchmarkBindingUpdate(b *testing.B) {
	for _, n := range crowds {
		b.Run(fmt.Sprintf("bindings=%d", n), func(b *testing.B) {
			s := crowd(b, n)
			h := s.m.homes[homeOf(0).As16()]
			u := seq(2, long)
			u.home = homeOf(0)
			p := s.packet(u)
			h.stamp = s.stamp
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				h.sequence, h.stamp = 1, h.stamp-1 // as before it
				if out := s.m.Step(s.now, Received{p}); len(out.Send) != 1 || len(out.Changes) != 1 {
					b.Fatal("not accepted")
				}
			}
		})
	}
}

// One that is forged costs this much, and has no answer most of the time.
func BenchmarkForgedUpdate(b *testing.B) {
	s := crowd(b, 1000)
	u := seq(2, long)
	u.home, u.key = homeOf(0), secret2
	p := s.packet(u)
	b.ReportAllocs()
	for range b.N {
		s.m.Step(s.now, Received{p})
	}
}

// Expiry of all bindings at the same time, for each of them.
func BenchmarkExpire(b *testing.B) {
	s := newCrowd(b, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	s.now += maxLifetime * 2
	for s.m.due.Len() > 0 {
		s.m.Step(s.now, Tick{})
	}
}

// BenchmarkMemory states what a home address costs, with its key and binding.
func BenchmarkMemory(b *testing.B) {
	const n = 1000000
	shared = nil
	for range b.N {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := newCrowd(b, n)
		s.cfg.Keys = nil
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "octets/binding")
		runtime.KeepAlive(s)
	}
	b.ReportMetric(0, "ns/op")
}
