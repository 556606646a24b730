package kernelro_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/distributed-servers/ds/internal/kernelro"
	"github.com/distributed-servers/ds/internal/probe"
	"github.com/distributed-servers/ds/mobility/correspondent"
	"github.com/distributed-servers/ds/mobility/wire"
)

func TestMain(m *testing.M) {
	probe.Main()
	os.Exit(m.Run())
}

var (
	local  = netip.MustParseAddr("2001:db8:1::cc")
	home   = netip.MustParseAddr("2001:db8:4::1")
	careOf = netip.MustParseAddr("2001:db8:a::1")
	other  = netip.MustParseAddr("2001:db8:b::1")
)

// machine is a correspondent with a binding of home.
func machine(t *testing.T) *correspondent.Correspondent {
	t.Helper()
	m, err := correspondent.New(correspondent.Config{
		Local: func(a netip.Addr) bool { return a == local },
		Rand:  rand.NewChaCha8([32]byte{1}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(src, homeOption netip.Addr, mh []byte) wire.Message {
		t.Helper()
		b, err := (&wire.Packet{Src: src, Dst: local, Home: homeOption, Protocol: wire.Mobility, Payload: mh}).Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		out := m.Step(0, correspondent.Received{Packet: b})
		if len(out.Send) != 1 {
			t.Fatalf("%d answers", len(out.Send))
		}
		p, err := wire.ParsePacket(out.Send[0])
		if err != nil {
			t.Fatal(err)
		}
		answer, err := wire.ParseMobility(&p)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	hot := ask(home, netip.Addr{}, (&wire.HomeTestInit{}).Append(nil, home, local)).(*wire.HomeTest)
	cot := ask(careOf, netip.Addr{}, (&wire.CareOfTestInit{}).Append(nil, careOf, local)).(*wire.CareOfTest)
	key := wire.NewBindingKey(hot.Token, cot.Token)
	bu := wire.BindingUpdate{
		Sequence: 1, Ack: true, Lifetime: 420 * time.Second,
		HasNonces: true, HomeNonce: hot.NonceIndex, CareOfNonce: cot.NonceIndex,
	}
	ba := ask(careOf, home, key.Sign(nil, &bu, home, local, careOf, local)).(*wire.BindingAck)
	if ba.Status != wire.Accepted {
		t.Fatalf("binding refused: %v", ba.Status)
	}
	return m
}

// What the programs change, they change as the machine does, to the octet; and what
// the machine treats in another way they do not touch.
func TestLikeTheMachine(t *testing.T) {
	probe.Skip(t, probe.BPF)
	k, err := kernelro.New(16)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.Bind(local, home, kernelro.Binding{CareOf: careOf, MTU: 1500, Until: kernelro.Now() + time.Hour}); err != nil {
		t.Fatal(err)
	}
	out, in, err := k.Programs()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer in.Close()
	m := machine(t)

	const rounds = 20_000
	r := rand.New(rand.NewPCG(1, 2))
	changed := map[*ebpf.Program]int{}
	for range rounds {
		prog, sent := in, r.IntN(2) == 0
		if sent {
			prog = out
		}
		p := packet(t, r, sent)
		got := run(t, prog, p)
		if got == nil {
			t.Fatalf("dropped: %x", p)
		}
		if bytes.Equal(got, p) {
			continue
		}
		changed[prog]++
		got = got[:40+binary.BigEndian.Uint16(got[4:])] // what lies behind a packet stays there
		var want [][]byte
		if sent {
			want = m.Step(time.Second, correspondent.Transmit{Packet: bytes.Clone(p)}).Send
		} else {
			o := m.Step(time.Second, correspondent.Received{Packet: bytes.Clone(p)})
			if want = o.Deliver; len(o.Send) > 0 {
				t.Fatalf("the machine answers %x", p)
			}
		}
		if len(want) != 1 || !bytes.Equal(got, want[0]) {
			t.Fatalf("of        %x\nthe kernel made\n          %x\nthe machine\n          %x", p, got, want)
		}
	}
	o, i := k.Packets()
	t.Logf("%d of %d packets changed on their way out, %d on their way in", o, rounds, i)
	if int(o) != changed[out] || int(i) != changed[in] || o < rounds/50 || i < rounds/50 {
		t.Errorf("%d and %d were counted", o, i)
	}
}

// packet is one that the programs change, or nearly.
func packet(t *testing.T, r *rand.Rand, sent bool) []byte {
	t.Helper()
	any := func(of ...netip.Addr) netip.Addr { return of[r.IntN(len(of))] }
	src, dst := careOf, local
	if sent {
		src, dst = local, home
	}
	p := wire.Packet{
		Src: any(src, src, src, other), Dst: any(dst, dst, dst, careOf),
		TrafficClass: byte(r.IntN(256)), FlowLabel: r.Uint32N(1 << 20), HopLimit: byte(1 + r.IntN(255)),
		Protocol: []wire.Protocol{wire.TCP, wire.UDP, wire.ICMPv6, wire.Mobility, wire.NoNext}[r.IntN(5)],
		Payload:  make([]byte, r.IntN(200)),
	}
	for i := range p.Payload {
		p.Payload[i] = byte(r.Uint32())
	}
	if p.Src == careOf && r.IntN(4) > 0 {
		p.Home = any(home, home, home, other)
	}
	b, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	// One octet of the headers is another, now and then, or the packet ends early.
	switch r.IntN(4) {
	case 0:
		b[r.IntN(min(len(b), 72))] ^= 1 << r.IntN(8)
	case 1:
		b[r.IntN(min(len(b), 72))] = byte(r.Uint32())
	}
	return b
}

// run gives what a program makes of a packet; nil: it drops it.
func run(t *testing.T, prog *ebpf.Program, p []byte) []byte {
	t.Helper()
	frame := append(make([]byte, 12, 14+len(p)), 0x86, 0xdd)
	frame = append(frame, p...)
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	action, err := prog.Run(&opts)
	if err != nil {
		t.Fatal(err)
	}
	if action != 0 {
		return nil
	}
	return opts.DataOut[14:]
}

// A binding is over when its time is, whether the table still has it or not; and when
// it was used is known.
func TestUntil(t *testing.T) {
	probe.Skip(t, probe.BPF)
	k, err := kernelro.New(16)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	out, in, err := k.Programs()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer in.Close()
	p, err := (&wire.Packet{Src: local, Dst: home, Protocol: wire.UDP, Payload: make([]byte, 8)}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	bind := func(until time.Duration) {
		t.Helper()
		if err := k.Bind(local, home, kernelro.Binding{CareOf: careOf, MTU: 1500, Until: until}); err != nil {
			t.Fatal(err)
		}
	}
	changes := func() bool { return !bytes.Equal(run(t, out, p), p) }

	if changes() {
		t.Error("changed without a binding")
	}
	bind(kernelro.Now())
	if changes() {
		t.Error("changed after the end")
	}
	if _, ok := k.Used(local, home); ok {
		t.Error("used")
	}
	before := kernelro.Now()
	bind(before + time.Hour)
	if !changes() {
		t.Error("not changed")
	}
	if at, ok := k.Used(local, home); !ok || at < before || at > kernelro.Now() {
		t.Errorf("used at %v, %v; it was after %v", at, ok, before)
	}
	if err := k.Unbind(local, home); err != nil {
		t.Fatal(err)
	}
	if err := k.Unbind(local, home); err != nil {
		t.Error(err)
	}
	if changes() {
		t.Error("changed after the binding")
	}
	if binary.BigEndian.Uint16(p[4:]) != 8 {
		t.Error("the packet itself has changed")
	}
}
