package migrate_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/seqnum"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// FuzzImport: a mutated snapshot is either refused or yields endpoints that
// cannot harm their stack. What is accepted is activated and tortured by its
// peer, by its application and by time: nothing panics, nothing hangs, the
// memory is bounded, and another connection of the same stack goes on.
func FuzzImport(f *testing.F) {
	if err := migrate.Check(); err != nil {
		f.Skip(err)
	}
	for i, s := range fuzzSeeds(f) {
		for j := range uint64(seedInputs) {
			f.Add(s.snap, uint64(i)<<8+j)
		}
	}
	f.Fuzz(func(t *testing.T, snap []byte, seed uint64) {
		if seed%4 != 0 {
			if snap = mutant(snap, seed); snap == nil {
				return
			}
		} else if _, err := snapshot.Parse(snap); err != nil {
			return // there is a fuzz test for this
		}
		tortureSnapshot(t, snap, seed)
	})
}

// mutant changes some fields of a snapshot to values that pass the checks. It
// gives nil if it finds none.
func mutant(snap []byte, seed uint64) []byte {
	x := rand.New(rand.NewPCG(seed, 5))
	s, err := snapshot.Parse(snap)
	if err != nil || len(s.Conns) == 0 {
		return nil
	}
	good := snap
	for range 1 + x.IntN(24) {
		// One at a time, so that one that is refused does not hide the others.
		s, err := snapshot.Parse(good)
		if err != nil {
			return nil
		}
		mutate(x, reflect.ValueOf(&s.Conns[x.IntN(len(s.Conns))]).Elem())
		next, err := snapshot.Append(nil, s)
		if err != nil {
			continue
		}
		if _, err := snapshot.Parse(next); err == nil {
			good = next
		}
	}
	return good
}

// mutate changes one thing at or below v.
func mutate(x *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[netip.AddrPort]() {
			return // elsewhere nobody tortures it
		}
		mutate(x, v.Field(x.IntN(v.NumField())))
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Float64:
		v.SetFloat([]float64{0, 1e-300, 0.5, 1, 1 << 24, x.Float64() * 1000}[x.IntN(6)])
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(value(x, uint64(v.Int()))))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(value(x, v.Uint()))
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(make([]byte, x.IntN(200)))
			return
		}
		n := v.Len()
		switch y := x.IntN(4); {
		case y == 0 && n > 0: // drop one
			i := x.IntN(n)
			v.Set(reflect.AppendSlice(v.Slice3(0, i, i), v.Slice(i+1, n)))
		case y == 1 || n == 0: // one more, like another
			e := reflect.New(v.Type().Elem()).Elem()
			if n > 0 {
				e.Set(v.Index(x.IntN(n)))
			}
			if mutate(x, e); e.Kind() == reflect.Slice && e.Len() == 0 && e.Type().Elem().Kind() == reflect.Uint8 {
				e.SetBytes(make([]byte, 1+x.IntN(100)))
			}
			v.Set(reflect.Append(v, e))
		default:
			mutate(x, v.Index(x.IntN(n)))
		}
	}
}

// value is near old, at a bound, or anything.
func value(x *rand.Rand, old uint64) uint64 {
	switch x.IntN(6) {
	case 0:
		return uint64(x.IntN(3))
	case 1:
		return old + uint64(x.IntN(5)) - 2
	case 2:
		return old + uint64(x.IntN(4000)) - 2000
	case 3:
		return 1<<x.IntN(63) - uint64(x.IntN(2))
	case 4:
		return uint64(x.Uint32())
	}
	return x.Uint64N(1 << (1 + x.IntN(62)))
}

// TestTortureSeeds is FuzzImport with nothing mutated, and more of each.
func TestTortureSeeds(t *testing.T) {
	for _, s := range fuzzSeeds(t) {
		t.Run(s.name, func(t *testing.T) {
			for seed := range uint64(8) {
				if !tortureSnapshot(t, s.snap, *flagSeed<<32+seed) {
					t.Fatalf("seed %d: the snapshot of a real connection was refused", *flagSeed<<32+seed)
				}
			}
		})
	}
}

type fuzzSeed struct {
	name string
	snap []byte
}

// fuzzSeeds are snapshots of real connections in several states. Time stands
// still while they are made, so that nothing lost is sent again.
func fuzzSeeds(tb testing.TB) []fuzzSeed {
	var seeds []fuzzSeed
	one := func(name string, o options, act func(w seedWorld, c, s *stack.Conn)) {
		w := newSeedWorld(tb, o)
		c, s := w.connect(w.service)
		if err := errors.Join(exchange(c, s, 0, 600), exchange(s, c, 0, 600)); err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
		w.settle()
		act(w, c, s)
		w.settle()
		seeds = append(seeds, fuzzSeed{name, w.snapshotOf(migrate.NewDonor(s))})
	}
	must := func(err error) {
		if err != nil {
			tb.Helper()
			tb.Fatal(err)
		}
	}
	cut := func(w seedWorld) { w.net.Unroute(prefix(client6)); w.net.Unroute(prefix(client4)) }
	mend := func(w seedWorld) { w.net.Route(prefix(client6), w.clientP); w.net.Route(prefix(client4), w.clientP) }

	one("idle", options{}, func(w seedWorld, c, s *stack.Conn) {})
	one("IPv4", options{service: service4}, func(w seedWorld, c, s *stack.Conn) { must(send(c, 600, 90)) })
	one("unsent", options{}, func(w seedWorld, c, s *stack.Conn) { cut(w); must(send(s, 600, 20<<10)) })
	one("unsent, reno", options{cc: [2]string{"reno", "reno"}}, func(w seedWorld, c, s *stack.Conn) {
		cut(w)
		must(send(s, 600, 18<<10))
	})
	one("unread", options{}, func(w seedWorld, c, s *stack.Conn) { must(send(c, 600, 3000)) })
	one("out of order", options{}, func(w seedWorld, c, s *stack.Conn) {
		must(c.SetNoDelay(true))
		for i := range int64(5) {
			if i%2 == 0 {
				for _, a := range anywhere {
					w.net.Unroute(prefix(a))
				}
			} else {
				w.route(0)
			}
			must(send(c, 600+100*i, 100))
		}
		w.route(0)
	})
	one("SACKed", options{}, func(w seedWorld, c, s *stack.Conn) {
		for i := range int64(5) {
			if i%2 == 0 {
				cut(w)
			} else {
				mend(w)
			}
			must(send(s, 600+100*i, 100))
			w.settle()
		}
		cut(w)
	})
	one("recovering", options{}, func(w seedWorld, c, s *stack.Conn) {
		cut(w)
		must(send(s, 600, 100))
		mend(w)
		for i := range int64(6) {
			must(send(s, 700+100*i, 100))
			w.settle()
			if i == 2 {
				cut(w)
				w.clock.Advance(50 * time.Millisecond)
			}
		}
	})
	one("timed out", options{}, func(w seedWorld, c, s *stack.Conn) {
		cut(w)
		must(send(s, 600, 5000))
		w.clock.Advance(3 * time.Second)
	})
	one("zero window", options{}, func(w seedWorld, c, s *stack.Conn) {
		must(c.SetReadBuffer(4096))
		for range 40 {
			s.Endpoint().Write(&zeros{500}, tcpip.WriteOptions{})
			w.settle()
		}
		w.clock.Advance(2 * time.Second)
	})
	one("FIN_WAIT_1", options{}, func(w seedWorld, c, s *stack.Conn) {
		cut(w)
		must(send(s, 600, 700))
		must(s.CloseWrite())
	})
	one("FIN_WAIT_2", options{}, func(w seedWorld, c, s *stack.Conn) { must(s.CloseWrite()) })
	one("FIN_WAIT_2 orphan", options{}, func(w seedWorld, c, s *stack.Conn) { must(s.Close()) })
	one("CLOSE_WAIT", options{}, func(w seedWorld, c, s *stack.Conn) {
		must(send(c, 600, 200))
		must(c.CloseWrite())
	})
	one("LAST_ACK", options{}, func(w seedWorld, c, s *stack.Conn) {
		must(c.CloseWrite())
		w.settle()
		cut(w)
		must(send(s, 600, 200))
		must(s.Close())
	})
	one("CLOSING", options{}, func(w seedWorld, c, s *stack.Conn) {
		cut(w)
		must(s.CloseWrite())
		w.settle()
		must(c.CloseWrite())
	})
	one("TIME_WAIT", options{}, func(w seedWorld, c, s *stack.Conn) {
		must(s.CloseWrite())
		w.settle()
		must(c.CloseWrite())
	})
	one("options", options{}, func(w seedWorld, c, s *stack.Conn) {
		must(s.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 20 * time.Second, Interval: 5 * time.Second, Count: 4}))
		must(s.SetNoDelay(false))
		must(s.SetUserTimeout(time.Minute))
		must(s.SetLinger(3))
		must(s.SetReadBuffer(30000))
		must(s.SetWriteBuffer(20000))
		s.Endpoint().SocketOptions().SetCorkOption(true)
		must(send(s, 600, 50))
	})
	for _, c := range []struct {
		name string
		set  tcpip.SettableTransportProtocolOption
	}{
		{"no SACK", new(tcpip.TCPSACKEnabled)},
		{"RACK", recovery(tcpip.TCPRACKLossDetection)},
	} {
		w := newSeedWorld(tb, options{})
		w.set(c.set)
		cl, s := w.connect(service6)
		must(exchange(cl, s, 0, 600))
		cut(w)
		must(send(s, 0, 4000))
		must(send(cl, 600, 100))
		w.settle()
		seeds = append(seeds, fuzzSeed{c.name, w.snapshotOf(migrate.NewDonor(s))})
	}

	// All connections of a client, one of them not accepted.
	w := newSeedWorld(tb, options{})
	c, s := w.connect(service6)
	must(exchange(c, s, 0, 100))
	l, err := w.node[0].Listen("tcp", "[fd00:2::1]:443")
	must(err)
	waiting, err := w.client.Dial("tcp", "[fd00:2::1]:443")
	must(err)
	must(send(waiting, 0, 50))
	w.settle()
	seeds = append(seeds, fuzzSeed{"client", w.snapshotOf(migrate.NewClientDonor(w.node[0], client6))})
	l.Close()

	// Segments that the donor had not looked at.
	parsed, err := snapshot.Parse(seeds[0].snap)
	must(err)
	r := &parsed.Conns[0]
	p := liarOf(r)
	for i := range 3 {
		r.Unprocessed = append(r.Unprocessed, p.packet(p.rcvNxt+uint32(i)*50, p.una, header.TCPFlagAck|header.TCPFlagPsh, 500, nil, make([]byte, 50)))
	}
	unprocessed, err := snapshot.Append(nil, parsed)
	must(err)
	return append(seeds, fuzzSeed{"unprocessed", unprocessed})
}

// seedWorld is a world in which time stands still.
type seedWorld struct {
	*world
	clock *faketime.ManualClock
}

func newSeedWorld(tb testing.TB, o options) seedWorld {
	clock := faketime.NewManualClock()
	o.clock = clock
	return seedWorld{newWorld(tb, o), clock}
}

// settle returns when no stack has anything left to do at this instant.
func (w seedWorld) settle() {
	w.t.Helper()
	stacks := []*stack.Stack{w.client, w.node[0], w.node[1]}
	eventually(w.t, "rest", func() bool {
		return atRest(stacks, func() uint64 { return w.net.Stats().Delivered })
	})
}

// atRest tells whether stacks have received as many packets as were sent to
// them, and have looked at all.
func atRest(stacks []*stack.Stack, sent func() uint64) bool {
	n := sent()
	all := func() (sum uint64) {
		for _, s := range stacks {
			sum += received(s)
		}
		return sum
	}
	if all() != n {
		return false
	}
	for _, s := range stacks {
		quiesce(s)
	}
	return all() == n && sent() == n // nothing was answered
}

func received(s *stack.Stack) uint64 { return s.Netstack().Stats().IP.PacketsReceived.Value() }

// quiesce returns when the packets that a stack has received were looked at. IP
// counts a packet before TCP has it in a queue: so first the reader comes to its end.
func quiesce(s *stack.Stack) {
	if err := s.Pause(); err != nil {
		panic(err)
	}
	s.Netstack().Pause()
	s.Netstack().Resume()
	if err := s.Resume(); err != nil {
		panic(err)
	}
}

// snapshotOf freezes, exports and thaws.
func (w *world) snapshotOf(d *migrate.Donor) []byte {
	w.t.Helper()
	if err := d.Freeze(); err != nil {
		w.t.Fatal(err)
	}
	snap, err := d.Export(nil)
	if err = errors.Join(err, d.Thaw()); err != nil {
		w.t.Fatal(err)
	}
	return snap
}

// liar is the other end of a connection that was rebuilt: it knows what a
// network's observer would, and lies.
type liar struct {
	local, remote netip.AddrPort // as the stack sees them
	ts            bool

	mu               sync.Mutex
	una, nxt, rcvNxt uint32 // of the stack
	tsVal            uint32
	sent             int // packets the stack has sent
}

func liarOf(c *snapshot.Conn) *liar {
	return &liar{local: c.Local, remote: c.Remote, ts: c.Timestamps,
		una: c.Send.Una, nxt: c.Send.Nxt, rcvNxt: c.Receive.Nxt, tsVal: c.TSVal}
}

// see learns from a packet of the stack.
func (p *liar) see(b []byte) {
	h := tcpHeader(b)
	if h == nil || h.SourcePort() != p.local.Port() || h.DestinationPort() != p.remote.Port() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent++
	end := h.SequenceNumber() + uint32(len(h)-int(h.DataOffset()))
	if h.Flags().Contains(header.TCPFlagFin) {
		end++
	}
	if int32(end-p.nxt) > 0 {
		p.nxt = end
	}
	if h.Flags().Contains(header.TCPFlagAck) {
		p.rcvNxt = h.AckNumber()
	}
	if o := header.ParseTCPOptions(h.Options()); o.TS {
		p.tsVal = o.TSVal
	}
}

// packet is a TCP segment from the peer.
func (p *liar) packet(seq, ack uint32, flags header.TCPFlags, wnd uint16, sack []header.SACKBlock, data []byte) []byte {
	var opts [header.TCPOptionsMaximumSize]byte
	n := 0
	if p.ts {
		n += header.EncodeNOP(opts[n:])
		n += header.EncodeNOP(opts[n:])
		n += header.EncodeTSOption(0x10000000+seq, p.tsVal, opts[n:])
	}
	if len(sack) > 0 {
		sack = sack[:min(len(sack), 3)]
		n += header.EncodeNOP(opts[n:])
		n += header.EncodeNOP(opts[n:])
		n += header.EncodeSACKBlocks(sack, opts[n:])
	}
	h := header.TCP(make([]byte, header.TCPMinimumSize+n+len(data)))
	copy(h[header.TCPMinimumSize:], opts[:n])
	copy(h[header.TCPMinimumSize+n:], data)
	h.Encode(&header.TCPFields{
		SrcPort: p.remote.Port(), DstPort: p.local.Port(),
		SeqNum: seq, AckNum: ack, Flags: flags, WindowSize: wnd,
		DataOffset: uint8(header.TCPMinimumSize + n),
	})
	src, dst := addressOf(p.remote.Addr()), addressOf(p.local.Addr())
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(h)))
	h.SetChecksum(^h.CalculateChecksum(checksum.Checksum(h.Payload(), sum)))
	return ipPacket(src, dst, uint8(header.TCPProtocolNumber), h)
}

// tooBig is an ICMP error about a segment that the stack may have sent.
func (p *liar) tooBig(mtu uint32) []byte {
	back := &liar{local: p.remote, remote: p.local}
	quoted := back.packet(p.una, p.rcvNxt, header.TCPFlagAck, 100, nil, make([]byte, 100))
	src, dst := addressOf(p.remote.Addr()), addressOf(p.local.Addr())
	if p.local.Addr().Is4() {
		h := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+len(quoted)))
		h.SetType(header.ICMPv4DstUnreachable)
		h.SetCode(header.ICMPv4FragmentationNeeded)
		h.SetMTU(uint16(mtu))
		copy(h[header.ICMPv4MinimumSize:], quoted)
		h.SetChecksum(header.ICMPv4Checksum(h[:header.ICMPv4MinimumSize], checksum.Checksum(quoted, 0)))
		return ipPacket(src, dst, uint8(header.ICMPv4ProtocolNumber), h)
	}
	h := header.ICMPv6(make([]byte, header.ICMPv6PacketTooBigMinimumSize+len(quoted)))
	h.SetType(header.ICMPv6PacketTooBig)
	h.SetMTU(mtu)
	copy(h[header.ICMPv6PacketTooBigMinimumSize:], quoted)
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: src, Dst: dst}))
	return ipPacket(src, dst, uint8(header.ICMPv6ProtocolNumber), h)
}

func ipPacket(src, dst tcpip.Address, proto uint8, payload []byte) []byte {
	if src.Len() == 4 {
		b := header.IPv4(make([]byte, header.IPv4MinimumSize+len(payload)))
		b.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: proto, SrcAddr: src, DstAddr: dst})
		b.SetChecksum(^b.CalculateChecksum())
		copy(b[header.IPv4MinimumSize:], payload)
		return b
	}
	b := header.IPv6(make([]byte, header.IPv6MinimumSize+len(payload)))
	b.Encode(&header.IPv6Fields{PayloadLength: uint16(len(payload)), TransportProtocol: tcpip.TransportProtocolNumber(proto), HopLimit: 64, SrcAddr: src, DstAddr: dst})
	copy(b[header.IPv6MinimumSize:], payload)
	return b
}

func addressOf(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

// watchdog ends the process, with all stacks, if the test hangs.
func watchdog(what string) (stop func()) {
	t := time.AfterFunc(60*time.Second, func() {
		debug.SetTraceback("all")
		panic("hangs: " + what)
	})
	return func() { t.Stop() }
}

// The rack is a node with the connections to be tortured, whose peers are the
// test itself, and one healthy connection to a control.
//
//	control ── lab ── node ── (nobody)
var control = netip.MustParseAddr("fd00:9::9")

// rackBuffer is the node's Config.MaxBuffer: little, so that what is unbounded
// shows.
const rackBuffer = 128 << 10

type rack struct {
	t     testing.TB
	clock *faketime.ManualClock
	node  *stack.Stack
	rand  *rand.Rand
	// The healthy connection.
	here, there *stack.Conn
	octets      int64

	arrived  [2]atomic.Uint64 // packets that the network brought to the node, to the control
	injected uint64           // packets that the node got otherwise

	peers map[stack.Tuple]*liar
}

func newRack(t testing.TB, seed uint64) *rack {
	r := &rack{t: t, clock: faketime.NewManualClock(), rand: rand.New(rand.NewPCG(seed, 99)), peers: map[stack.Tuple]*liar{}}
	clock := skewed{r.clock, 5*time.Hour + 4321}
	n := lab.New(seed, r.clock)
	cp, np := n.Attach("control", 1500), n.Attach("node", 1500)
	n.Route(prefix(control), cp)
	for _, a := range anywhere {
		n.Route(prefix(a), np)
	}
	n.Tap(func(e lab.Event) {
		if e.Verdict != lab.Delivered && e.Verdict != lab.NoRoute {
			return
		}
		switch {
		case e.To == "node":
			r.arrived[0].Add(1)
		case e.To == "control":
			r.arrived[1].Add(1)
		}
		if e.From != "node" {
			return
		}
		for _, p := range r.peers {
			p.see(e.Packet)
		}
	})
	var err error
	if r.node, err = stack.New(stack.Config{Device: np, Addrs: anywhere, Clock: clock, MaxBuffer: rackBuffer, HoldLimit: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	c, err := stack.New(stack.Config{Device: cp, Addrs: []netip.Addr{control}, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.node.Close()
		c.Close()
		n.Close()
	})
	l, err := r.node.Listen("tcp", "[fd00:2::1]:7")
	if err != nil {
		t.Fatal(err)
	}
	if r.there, err = c.DialContext(context.Background(), "tcp", "[fd00:2::1]:7"); err != nil {
		t.Fatal(err)
	}
	if r.here, err = l.AcceptConn(); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"[::]:443", "0.0.0.0:443"} { // for connections not yet accepted
		if _, err := r.node.Listen(map[bool]string{true: "tcp6", false: "tcp4"}[port[0] == '['], port); err != nil {
			t.Fatal(err)
		}
	}
	r.healthy("before")
	return r
}

// healthy checks that the other connection works, both ways.
func (r *rack) healthy(when string) {
	r.t.Helper()
	const n = 3000
	if err := errors.Join(exchange(r.here, r.there, r.octets, n), exchange(r.there, r.here, r.octets, n)); err != nil {
		r.t.Fatalf("the healthy connection %s: %v", when, err)
	}
	r.octets += n
	r.settle() // no timer may be running when the clock is turned
}

// settle returns when the healthy connection has nothing left to do.
func (r *rack) settle() {
	r.t.Helper()
	stacks := []*stack.Stack{r.node, r.there.Stack()}
	eventually(r.t, "rest", func() bool {
		return atRest(stacks, func() uint64 { return r.arrived[0].Load() + r.arrived[1].Load() + r.injected })
	})
}

// past notes that the node was given packets past the network.
func (r *rack) past() {
	quiesce(r.node)
	r.injected = received(r.node) - r.arrived[0].Load()
}

// inject delivers a packet and waits until it was looked at.
func (r *rack) inject(b []byte) {
	r.node.Inject(b)
	r.past()
}

// allocated is how many octets the process has allocated so far.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// tortureSnapshot tells whether the snapshot was accepted.
func tortureSnapshot(t testing.TB, snap []byte, seed uint64) (accepted bool) {
	defer watchdog(fmt.Sprintf("seed %d, snapshot %x", seed, snap))()
	r := newRack(t, seed)
	start := allocated()
	target, err := migrate.Import(r.node, snap)
	if n := allocated() - start; n > 1<<20+64*uint64(len(snap)) {
		t.Errorf("importing %d octets took %d", len(snap), n)
	}
	if err != nil {
		for _, known := range []error{migrate.ErrFormat, migrate.ErrVersion, migrate.ErrNoAddress, migrate.ErrNoRoute, migrate.ErrInUse, migrate.ErrNoListener, migrate.ErrBusy} {
			if errors.Is(err, known) {
				r.healthy("after a refusal")
				return false
			}
		}
		t.Fatalf("unknown error: %v", err)
	}
	parsed, err := snapshot.Parse(snap)
	if err != nil {
		t.Fatalf("imported but not parsed: %v", err)
	}
	if r.rand.IntN(16) == 0 {
		if err := target.Discard(); err != nil {
			t.Fatal(err)
		}
		r.healthy("after Discard")
		return true
	}
	for i := range parsed.Conns {
		c := &parsed.Conns[i]
		r.peers[stack.Tuple{Local: c.Local, Remote: c.Remote}] = liarOf(c)
	}
	if _, err := target.Activate(); err != nil {
		t.Fatalf("activate: %v", err)
	}
	r.past()
	r.healthy("after Activate")
	for i := range parsed.Conns[:min(len(parsed.Conns), 4)] {
		c := &parsed.Conns[i]
		r.torture(stack.Tuple{Local: c.Local, Remote: c.Remote}, snapshot.Len(c.Receive.Unread))
	}
	r.healthy("after the torture")
	if err := r.node.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	return true
}

// conn finds a connection, nil if it has ended.
func (r *rack) conn(tuple stack.Tuple) *stack.Conn {
	for _, c := range r.node.ConnsOf(tuple.Remote.Addr()) {
		if c.Tuple() == tuple {
			return c
		}
	}
	return nil
}

// torture treats a connection badly for a while.
func (r *rack) torture(tuple stack.Tuple, unread int) {
	c, p := r.conn(tuple), r.peers[tuple]
	if c == nil {
		return
	}
	var steps []string
	failed := r.t.Failed()
	defer func() {
		if r.t.Failed() && !failed {
			r.t.Logf("%s: %s", tuple, steps)
		}
	}()
	step := func(format string, args ...any) { steps = append(steps, fmt.Sprintf(format, args...)) }
	for range 40 {
		switch x := r.rand.IntN(20); x {
		case 0, 1, 2, 3, 4, 5, 6:
			b := r.segment(p)
			h := tcpHeader(b)
			step("%v seq %d ack %d wnd %d len %d", h.Flags(), h.SequenceNumber(), h.AckNumber(), h.WindowSize(), len(h)-int(h.DataOffset()))
			r.inject(b)
		case 7:
			mtu := []uint32{1, 68, 100, 576, 1280, 1400, 70000}[r.rand.IntN(7)]
			step("too big %d", mtu)
			r.inject(p.tooBig(mtu))
		case 8:
			step("acknowledge all")
			r.inject(p.packet(p.rcvNxt, p.nxt, header.TCPFlagAck, uint16(r.rand.Uint32()), nil, nil))
		case 9, 10:
			step("read")
			r.read(c, 1+r.rand.IntN(8<<10))
		case 11, 12:
			n := 1 + r.rand.IntN(20<<10)
			step("write %d", n)
			r.write(c, n)
		case 13:
			step("option")
			r.option(c)
		case 14:
			if r.rand.IntN(4) == 0 {
				step("end")
				r.end(c)
			}
		default:
			d := []time.Duration{0, time.Millisecond, 30 * time.Millisecond, 250 * time.Millisecond, 3 * time.Second, 20 * time.Second, 2 * time.Minute}[r.rand.IntN(7)]
			step("wait %v", d)
			r.clock.Advance(d)
			quiesce(r.node)
		}
	}
	step("floods")
	if n := r.write(c, 64*rackBuffer); n > 4*rackBuffer {
		r.t.Errorf("%s: %d octets fit into the send buffer, which shall have at most %d", tuple, n, rackBuffer)
	}
	for range 60 {
		r.inject(p.packet(p.rcvNxt, p.nxt, header.TCPFlagAck, 1000, nil, make([]byte, 40<<10)))
	}
	if n, err := c.Endpoint().GetSockOptInt(tcpip.ReceiveQueueSizeOption); err == nil && n > unread+4*rackBuffer {
		r.t.Errorf("%s: %d octets fit into the receive buffer, which shall have at most %d", tuple, n, rackBuffer)
	}
	step("close")
	c.SetLinger(-1)
	c.Close()
	for range 20 {
		r.clock.Advance(2 * time.Minute)
		quiesce(r.node)
	}
}

// segment is one that could be the peer's next, or nearly so.
func (r *rack) segment(p *liar) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := r.rand
	flight := p.nxt - p.una
	seq := p.rcvNxt
	switch x.IntN(6) {
	case 0:
		seq += uint32(x.IntN(3000))
	case 1:
		seq -= uint32(x.IntN(300))
	}
	ack := p.una + x.Uint32N(flight+1)
	switch x.IntN(8) {
	case 0:
		ack += uint32(x.IntN(1000))
	case 1:
		ack -= uint32(x.IntN(1000))
	case 2, 3:
		ack = p.una // a duplicate
	}
	flags := header.TCPFlagAck
	switch x.IntN(30) {
	case 0:
		flags |= header.TCPFlagRst
	case 1:
		flags |= header.TCPFlagSyn
	case 2, 3, 4:
		flags |= header.TCPFlagFin
	case 5:
		flags |= header.TCPFlagUrg
	}
	wnd := uint16(x.Uint32())
	switch x.IntN(4) {
	case 0:
		wnd = 0
	case 1:
		wnd = uint16(x.IntN(20))
	}
	var sack []header.SACKBlock
	if x.IntN(2) == 0 {
		for range x.IntN(4) {
			start := ack + 1 + x.Uint32N(flight+2000)
			sack = append(sack, header.SACKBlock{Start: seqnum.Value(start), End: seqnum.Value(start + 1 + x.Uint32N(2000))})
			if x.IntN(3) == 0 { // the end of what is in flight
				sack[len(sack)-1].End = seqnum.Value(p.nxt)
			}
		}
	}
	var data []byte
	if x.IntN(3) > 0 {
		data = make([]byte, x.IntN(1400))
	}
	if int32(ack-p.una) > 0 && int32(ack-p.nxt) <= 0 {
		defer func() { p.una = ack }()
	}
	return p.packet(seq, ack, flags, wnd, sack, data)
}

func (r *rack) read(c *stack.Conn, n int) {
	w := tcpip.SliceWriter(make([]byte, n))
	if res, err := c.Endpoint().Read(&w, tcpip.ReadOptions{}); err == nil {
		c.Endpoint().ModerateRecvBuf(res.Count)
	}
}

// write returns how much was taken.
func (r *rack) write(c *stack.Conn, n int) (taken int) {
	for taken < n {
		m, err := c.Endpoint().Write(&zeros{min(n-taken, 64<<10)}, tcpip.WriteOptions{})
		taken += int(m)
		if err != nil || m == 0 {
			break
		}
	}
	return taken
}

// zeros is a tcpip.Payloader.
type zeros struct{ left int }

func (z *zeros) Len() int { return z.left }

func (z *zeros) Read(b []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), z.left)
	clear(b[:n])
	z.left -= n
	return n, nil
}

func (r *rack) option(c *stack.Conn) {
	o := c.Endpoint().SocketOptions()
	on := r.rand.IntN(2) == 0
	switch r.rand.IntN(7) {
	case 0:
		o.SetDelayOption(on)
	case 1:
		o.SetCorkOption(on)
	case 2:
		o.SetKeepAlive(on)
	case 3:
		o.SetReceiveBufferSize(int64(r.rand.IntN(rackBuffer)), true)
	case 4:
		o.SetSendBufferSize(int64(r.rand.IntN(rackBuffer)), true)
	case 5:
		u := tcpip.TCPUserTimeoutOption(r.rand.IntN(int(time.Minute)))
		c.Endpoint().SetSockOpt(&u)
	case 6:
		c.Endpoint().SetSockOptInt(tcpip.MaxSegOption, 200+r.rand.IntN(2000))
	}
}

func (r *rack) end(c *stack.Conn) {
	switch r.rand.IntN(4) {
	case 0:
		c.Endpoint().Shutdown(tcpip.ShutdownRead)
	case 1:
		c.Endpoint().Shutdown(tcpip.ShutdownWrite)
	case 2:
		c.Endpoint().Shutdown(tcpip.ShutdownWrite | tcpip.ShutdownRead)
	case 3:
		c.Close()
	}
}

var flagMutants = flag.Uint64("mutants", 150, "how many mutated snapshots TestTortureMutants tries")

// TestTortureMutants is FuzzImport without a fuzzer, for a given seed.
func TestTortureMutants(t *testing.T) {
	seeds := fuzzSeeds(t)
	for i := range *flagMutants {
		seed := *flagSeed<<32 + i
		s := seeds[i%uint64(len(seeds))]
		t.Run(fmt.Sprintf("%s/%d", s.name, seed), func(t *testing.T) {
			if m := mutant(s.snap, seed); m != nil {
				tortureSnapshot(t, m, seed)
			}
		})
	}
}

// TestFaultForever: no snapshot leaves a stack with a connection that nobody
// can close and that does not end by itself, with its peer gone silent.
func TestFaultForever(t *testing.T) {
	const century = snapshot.Timer(99 * 365 * 24 * time.Hour)
	for _, f := range []struct {
		name, seed string
		change     func(c *snapshot.Conn)
	}{
		{"unchanged LAST_ACK", "LAST_ACK", func(c *snapshot.Conn) {}},
		{"unchanged FIN_WAIT_2", "FIN_WAIT_2 orphan", func(c *snapshot.Conn) {}},
		{"unchanged TIME_WAIT", "TIME_WAIT", func(c *snapshot.Conn) {}},
		{"unchanged zero window", "zero window", func(c *snapshot.Conn) {}},
		{"FIN_WAIT_2 of an orphan without timer", "FIN_WAIT_2 orphan", func(c *snapshot.Conn) { c.FinWait2Timer = 0 }},
		{"FIN_WAIT_2 for a century", "FIN_WAIT_2 orphan", func(c *snapshot.Conn) { c.FinWait2Timer = century }},
		{"FIN_WAIT_2 time of a century", "FIN_WAIT_1", func(c *snapshot.Conn) { c.Options.FinWait2Time = time.Duration(century) }},
		{"TIME_WAIT for a century", "TIME_WAIT", func(c *snapshot.Conn) { c.TimeWaitTimer = century }},
		{"orphan in ESTABLISHED", "idle", func(c *snapshot.Conn) { c.Orphan = true }},
		{"orphan in CLOSE_WAIT", "CLOSE_WAIT", func(c *snapshot.Conn) { c.Orphan = true }},
		{"FIN_WAIT_1 without timers", "FIN_WAIT_1", func(c *snapshot.Conn) { c.Send.RetransmitTimer, c.Send.ProbeTimer = 0, 0 }},
		{"LAST_ACK without timers", "LAST_ACK", func(c *snapshot.Conn) { c.Send.RetransmitTimer, c.Send.ProbeTimer = 0, 0 }},
		{"LAST_ACK, retransmission in a century", "LAST_ACK", func(c *snapshot.Conn) { c.Send.RetransmitTimer, c.Send.ProbeTimer = century, 0 }},
		{"LAST_ACK without a FIN", "LAST_ACK", func(c *snapshot.Conn) {
			c.Send.Queue, c.Send.Next, c.Send.Nxt = nil, 0, c.Send.Una
			c.Send.SACKed = nil
		}},
		{"LAST_ACK with no window", "LAST_ACK", func(c *snapshot.Conn) { c.Send.Cwnd, c.Send.Outstanding = 1, 1<<20 }},
	} {
		t.Run(f.name, func(t *testing.T) {
			r := newRack(t, *flagSeed)
			snap := slices.Clone(fuzzSeedNamed(t, f.seed))
			s, err := snapshot.Parse(snap)
			if err != nil {
				t.Fatal(err)
			}
			f.change(&s.Conns[0])
			if snap, err = snapshot.Append(nil, s); err != nil {
				t.Log(err)
				return // refused
			}
			target, err := migrate.Import(r.node, snap)
			if err != nil {
				t.Log(err)
				return
			}
			tuple := stack.Tuple{Local: s.Conns[0].Local, Remote: s.Conns[0].Remote}
			r.peers[tuple] = liarOf(&s.Conns[0])
			if _, err := target.Activate(); err != nil {
				t.Fatal(err)
			}
			r.past()
			p := r.peers[tuple]
			if strings.HasPrefix(f.name, "FIN_WAIT_2 time") {
				r.inject(p.packet(p.rcvNxt, p.nxt, header.TCPFlagAck, 1000, nil, nil)) // and then nothing any more
			}
			if c := r.conn(tuple); c != nil {
				c.Close()
			}
			for range 60 {
				r.clock.Advance(2 * time.Minute)
				quiesce(r.node)
			}
			if c := r.conn(tuple); c != nil {
				t.Errorf("after two hours of silence it is still there, in state %v", tcp.EndpointState(c.Endpoint().State()))
			}
		})
	}
}

func fuzzSeedNamed(t testing.TB, name string) []byte {
	for _, s := range fuzzSeeds(t) {
		if s.name == name {
			return s.snap
		}
	}
	t.Fatalf("no seed %q", name)
	return nil
}

func recovery(r tcpip.TCPRecovery) *tcpip.TCPRecovery { return &r }
