package node

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/distributed-servers/ds/mobility/wire"
)

func number(i int) netip.Addr {
	a := [16]byte{0x20, 1, 0xd, 0xb8, 0, 0xc}
	binary.BigEndian.PutUint32(a[12:], uint32(i+1))
	return netip.AddrFrom16(a)
}

// prepared is a node at which clients are prepared, with all tokens.
func prepared(b *testing.B, clients int) (*Node, Grant) {
	cfg := config(addrA, 1)
	cfg.MaxClients = clients
	n := newNode(b, cfg)
	n.Step(0, SetContact{addrB})
	g := Grant{HomeNonce: 1, Remaining: MaxTokenLifetime, Sequence: 9}
	for i := range clients {
		a := number(i)
		out := n.Step(0, Prepare{a, g})
		coti, err := wire.ParsePacket(out.Send[0])
		if err != nil {
			b.Fatal(err)
		}
		m, err := wire.ParseMobility(&coti)
		if err != nil {
			b.Fatal(err)
		}
		cot := &wire.CareOfTest{Cookie: m.(*wire.CareOfTestInit).Cookie, NonceIndex: 1}
		n.Step(0, Received{mobility(a, addrA, netip.Addr{}, cot)})
		if n.State(a) != Prepared {
			b.Fatalf("state %v", n.State(a))
		}
	}
	return n, g
}

// From Bind to the Binding Update, with tokens at hand.
func BenchmarkBind(b *testing.B) {
	const clients = 10000
	n, g := prepared(b, clients)
	list := make([]netip.Addr, clients)
	for i := range list {
		list[i] = number(i)
	}
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		if i == clients {
			// Again with all of them, a second later that no limit is in the way.
			b.StopTimer()
			i = 0
			n, g = prepared(b, clients)
			b.StartTimer()
		}
		out := n.Step(0, Bind{list[i], g})
		if len(out.Send) != 1 || len(out.Events) != 1 {
			b.Fatalf("%d packets, %d events", len(out.Send), len(out.Events))
		}
		i++
	}
}

// The steps of a refresh: a request, a Home Test, a Care-of Test, an
// acknowledgement come in; two tests and a Binding Update go out. The time of
// the peer, which makes the answers, is not counted; nothing allocates.
func BenchmarkRefresh(b *testing.B) {
	cfg := config(addrA, 1)
	n := newNode(b, cfg)
	var (
		now, spent time.Duration
		mh, in     []byte
		inner      []byte
		token      wire.Token
		key        = wire.NewBindingKey(token, token)
		hoti       wire.HomeTestInit
		coti       wire.CareOfTestInit
		bu         wire.BindingUpdate
		hot        = wire.HomeTest{NonceIndex: 1}
		cot        = wire.CareOfTest{NonceIndex: 1}
		ba         wire.BindingAck
		brr        wire.BindingRefreshRequest
	)
	step := func(in Input) Output {
		start := time.Now()
		out := n.Step(now, in)
		spent += time.Since(start)
		return out
	}
	packet := func(dst, routing netip.Addr) []byte {
		p := wire.Packet{Src: addrC, Dst: dst, Routing: routing, Protocol: wire.Mobility, Payload: mh}
		in, _ = p.Append(in[:0])
		return in
	}
	// finish answers the tests in out, and the Binding Update that follows.
	finish := func(out Output) {
		if len(out.Send) != 2 {
			b.Fatalf("%d packets", len(out.Send))
		}
		for _, raw := range out.Send {
			p, _ := wire.ParsePacket(raw)
			if p.Protocol == wire.IPv6 {
				raw, _ = p.Inner()
				p, _ = wire.ParsePacket(raw)
				if wire.Decode(&p, &hoti) != nil {
					b.Fatal("no HoTI")
				}
			} else if wire.Decode(&p, &coti) != nil {
				b.Fatal("no CoTI")
			}
		}
		hot.Cookie, cot.Cookie = hoti.Cookie, coti.Cookie
		mh = hot.Append(mh[:0], addrC, addrHome)
		inner = append(inner[:0], packet(addrHome, netip.Addr{})...)
		in, _ = wire.AppendTunnel(in[:0], addrB, addrA, inner)
		step(Received{in})
		mh = cot.Append(mh[:0], addrC, addrA)
		out = step(Received{packet(addrA, netip.Addr{})})
		p, _ := wire.ParsePacket(out.Send[0])
		if wire.Decode(&p, &bu) != nil {
			b.Fatal("no Binding Update")
		}
		ba = wire.BindingAck{Sequence: bu.Sequence, Lifetime: bu.Lifetime}
		mh = key.Sign(mh[:0], &ba, addrC, addrHome, addrA, addrC)
		if out = step(Received{packet(addrA, addrHome)}); len(out.Events) == 0 {
			b.Fatal("not confirmed")
		}
	}
	step(SetContact{addrB})
	finish(step(Optimise{addrC}))
	spent = 0
	b.ReportAllocs()
	for b.Loop() {
		now += 2 * time.Second
		mh = brr.Append(mh[:0], addrC, addrHome)
		finish(step(Received{packet(addrA, addrHome)}))
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "ns-node/op")
}

// What a client takes, in each state, with a hundred thousand of them.
func BenchmarkMemory(b *testing.B) {
	const clients = 100000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		before := heap()
		n, g := prepared(b, clients)
		after := heap()
		b.ReportMetric(float64(after-before)/clients, "B/prepared")
		for i := range clients {
			n.Step(0, Bind{number(i), g})
		}
		b.ReportMetric(float64(heap()-before)/clients, "B/bound")
		runtime.KeepAlive(n)
	}
}
