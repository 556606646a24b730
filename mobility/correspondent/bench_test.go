package correspondent

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

// one makes a step, which must send and deliver so many packets.
func one(b *testing.B, h *host, in Input, sent, delivered int) {
	out := h.c.Step(h.now, in)
	if len(out.Send) != sent || len(out.Deliver) != delivered {
		b.Fatalf("%d packets sent, %d delivered", len(out.Send), len(out.Deliver))
	}
}

func BenchmarkHomeTest(b *testing.B) {
	h := newHost(b, unlimited)
	p := h.mobile().hotiPacket()
	b.ReportAllocs()
	for b.Loop() {
		one(b, h, Received{p}, 1, 0)
	}
}

func BenchmarkCareOfTest(b *testing.B) {
	h := newHost(b, unlimited)
	p := h.mobile().cotiPacket()
	b.ReportAllocs()
	for b.Loop() {
		one(b, h, Received{p}, 1, 0)
	}
}

// updates are Binding Updates with sequence numbers that go on going up, round
// and round.
func (m *mobile) updates(n int, how func(i int) bu) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		m.sequence = uint16(i * (1 << 16 / n))
		b := how(i)
		b.again = true
		all[i] = m.updatePacket(b)
	}
	return all
}

func benchmarkUpdate(b *testing.B, bindings int, how func(i int) bu) {
	h := newHost(b, unlimited, func(cfg *Config) { cfg.MaxBindings = bindings + 1 })
	h.fill(bindings)
	m := h.mobile().rr()
	all := m.updates(1<<10, how)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		one(b, h, Received{all[i%len(all)]}, 1, 0)
	}
}

func BenchmarkBindingUpdate(b *testing.B) {
	for _, n := range []int{0, 1e6} {
		b.Run(fmt.Sprintf("bindings=%d", n), func(b *testing.B) {
			benchmarkUpdate(b, n, func(int) bu { return good })
		})
	}
	b.Run("binding and deleting", func(b *testing.B) {
		benchmarkUpdate(b, 0, func(i int) bu {
			if i%2 == 1 {
				return leave
			}
			return good
		})
	})
	b.Run("wrong authenticator", func(b *testing.B) {
		h := newHost(b, unlimited)
		m := h.mobile().rr()
		p := m.updatePacket(bu{mangle: func(mh []byte) []byte { mh[len(mh)-1]++; return mh }})
		b.ReportAllocs()
		for b.Loop() {
			one(b, h, Received{p}, 0, 0)
		}
	})
}

// fill makes n bindings as Binding Updates would.
func (h *host) fill(n int) {
	h.c.Step(h.now, Tick{})
	if index, nonce := h.c.nonces.current(h.now); nonce != nil {
		h.c.update = wire.BindingUpdate{Lifetime: 420 * time.Second, HasNonces: true, HomeNonce: index, CareOfNonce: index}
	}
	for i := range n {
		h.c.update.Sequence = uint16(i)
		h.c.out.Changes = h.c.out.Changes[:0]
		h.c.bind(0, nil, cn, numbered(0xaaaa, i), numbered(0xbbbb, i))
	}
}

func numbered(net uint16, i int) netip.Addr {
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	binary.BigEndian.PutUint16(a[4:], net)
	binary.BigEndian.PutUint32(a[10:], uint32(i)*2654435761)
	return netip.AddrFrom16(a)
}

var sizes = []int{1e3, 1e5, 1e6}

func BenchmarkLookup(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("bindings=%d", n), func(b *testing.B) {
			h := newHost(b, func(cfg *Config) { cfg.MaxBindings = n })
			h.fill(n)
			homes := make([]netip.Addr, min(n, 1<<16))
			for i := range homes {
				homes[i] = numbered(0xaaaa, i*(n/len(homes)))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok := h.c.Lookup(cn, homes[i%len(homes)]); !ok {
					b.Fatal("not found")
				}
			}
		})
	}
}

// BenchmarkData is what a packet of the data path costs.
func BenchmarkData(b *testing.B) {
	for _, payload := range []int{64, 1300} {
		segment := make([]byte, payload)
		for _, n := range sizes {
			h := newHost(b, unlimited, func(cfg *Config) { cfg.MaxBindings = n })
			h.fill(n)
			at := numbered(0xaaaa, n/2)
			in := build(b, wire.Packet{Src: numbered(0xbbbb, n/2), Dst: cn, Home: at, Protocol: wire.TCP, Payload: segment})
			out := build(b, wire.Packet{Src: cn, Dst: at, Protocol: wire.TCP, Payload: segment})
			b.Run(fmt.Sprintf("received/payload=%d/bindings=%d", payload, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					one(b, h, Received{in}, 0, 1)
				}
			})
			b.Run(fmt.Sprintf("transmit/payload=%d/bindings=%d", payload, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					one(b, h, Transmit{out}, 1, 0)
				}
			})
		}
	}
	h := newHost(b)
	h.fill(1000)
	in := build(b, wire.Packet{Src: router, Dst: cn, Protocol: wire.TCP, Payload: make([]byte, 64)})
	out := build(b, wire.Packet{Src: cn, Dst: router, Protocol: wire.TCP, Payload: make([]byte, 64)})
	b.Run("received/unbound", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			one(b, h, Received{in}, 0, 1)
		}
	})
	b.Run("transmit/unbound", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			one(b, h, Transmit{out}, 1, 0)
		}
	})
}

// BenchmarkMemory is what a binding takes, with its deadline.
func BenchmarkMemory(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("bindings=%d", n), func(b *testing.B) {
			var h *host
			var before, after runtime.MemStats
			for b.Loop() {
				h = nil
				runtime.GC()
				runtime.ReadMemStats(&before)
				h = newHost(b, func(cfg *Config) { cfg.MaxBindings = n })
				h.fill(n)
				runtime.GC()
				runtime.ReadMemStats(&after)
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/binding")
			runtime.KeepAlive(h)
		})
	}
}

// Handling a packet allocates nothing, once the buffers are there.
func TestNoAllocations(t *testing.T) {
	h := newHost(t, unlimited)
	m := h.mobile().rr()
	m.bind(good)
	updates := m.updates(1<<10, func(int) bu { return good })
	i := 0
	hoti, coti := m.hotiPacket(), m.cotiPacket()
	home1 := build(t, wire.Packet{Src: coa1, Dst: cn, Home: home, Protocol: wire.TCP, Payload: udp})
	nobody := build(t, wire.Packet{Src: coa2, Dst: cn, Home: home, Protocol: wire.TCP, Payload: udp})
	plain := build(t, wire.Packet{Src: router, Dst: cn, Protocol: wire.TCP, Payload: udp})
	out := build(t, wire.Packet{Src: cn, Dst: home, Protocol: wire.TCP, Payload: udp})
	for name, step := range map[string]func(){
		"HoTI":                      func() { h.c.Step(h.now, Received{hoti}) },
		"CoTI":                      func() { h.c.Step(h.now, Received{coti}) },
		"Binding Update":            func() { i++; h.c.Step(h.now, Received{updates[i%len(updates)]}) },
		"from the mobile node":      func() { h.c.Step(h.now, Received{home1}) },
		"answered by an error":      func() { h.c.Step(h.now, Received{nobody}) },
		"from another":              func() { h.c.Step(h.now, Received{plain}) },
		"to the mobile node":        func() { h.c.Step(h.now, Transmit{out}) },
		"a tick with nothing to do": func() { h.c.Step(h.now, Tick{}) },
	} {
		if n := testing.AllocsPerRun(1000, step); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
