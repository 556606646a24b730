package stack_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/stack"
)

// holds are the two kinds of hold over one connection.
var holds = map[string]func(n node, c *stack.Conn) (*stack.Hold, error){
	"conn":   func(n node, c *stack.Conn) (*stack.Hold, error) { return n.HoldConn(c.Tuple()) },
	"client": func(n node, c *stack.Conn) (*stack.Hold, error) { return n.HoldClient(c.Tuple().Remote.Addr()) },
}

func mustHold(t testing.TB, h *stack.Hold, err error) *stack.Hold {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHoldInbound: what arrives waits, and comes out whole.
func TestHoldInbound(t *testing.T) {
	for kind, hold := range holds {
		t.Run(kind, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
				client, server := newNodes(t, nil)
				c, s := connect(t, client.Stack, server.Stack, addr)
				pingPong(t, c, s)
				h, err := hold(server, s)
				h = mustHold(t, h, err)
				_, before := client.dev.counts()
				segments := server.Netstack().Stats().TCP.ValidSegmentsReceived.Value()
				mustSend(t, c, 0, 10_000)
				client.dev.waitSent(t, "the last octet", before, func(p []byte) bool {
					return hasData(p) && segmentOf(p).Flags().Contains(header.TCPFlagPsh)
				})
				server.dev.settle(t)
				if n := server.Netstack().Stats().TCP.ValidSegmentsReceived.Value(); n != segments {
					t.Errorf("%d segments reached TCP in spite of the hold", n-segments)
				}
				h.Release()
				mustReceive(t, s, 0, 10_000)
				if in, out := h.Dropped(); in+out != 0 {
					t.Errorf("dropped %d and %d", in, out)
				}
				pingPong(t, c, s)
			})
		})
	}
}

// TestHoldOutbound: what would leave waits too.
func TestHoldOutbound(t *testing.T) {
	for kind, hold := range holds {
		t.Run(kind, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
				client, server := newNodes(t, nil)
				c, s := connect(t, client.Stack, server.Stack, addr)
				pingPong(t, c, s)
				quiet(t, client, server)
				h, err := hold(server, s)
				h = mustHold(t, h, err)
				_, before := server.dev.counts()
				mustSend(t, s, 0, 10_000) // Write sends on this goroutine
				if out := server.dev.sent(before); slices.ContainsFunc(out, hasData) {
					t.Errorf("%d packets left in spite of the hold", len(out))
				}
				h.Release()
				if out := server.dev.sent(before); !slices.ContainsFunc(out, hasData) {
					t.Error("Release returned before what was kept had left")
				}
				mustReceive(t, c, 0, 10_000)
				pingPong(t, c, s)
			})
		})
	}
}

// TestHoldOrder: packets come out in the order in which they came.
func TestHoldOrder(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c, s)
	quiet(t, client, server)
	h, err := server.HoldConn(s.Tuple())
	h = mustHold(t, h, err)
	before, _ := server.dev.counts()
	_, sent := client.dev.counts()
	mustSend(t, c, 0, 14_000)
	client.dev.waitSent(t, "all", sent, func([]byte) bool {
		n := 0
		for _, p := range client.dev.out[sent:] {
			n += len(segmentOf(p).Payload())
		}
		return n >= 14_000
	})
	server.dev.settle(t)
	late := h.Forward(nil, 0)
	arrived := server.dev.received(before)
	if !slices.EqualFunc(late, arrived, bytes.Equal) {
		t.Errorf("%d packets kept, %d had arrived, or in another order", len(late), len(arrived))
	}
	// Nobody has lost them: they can still be delivered.
	for _, p := range late {
		server.Inject(p)
	}
	mustReceive(t, s, 0, 14_000)
}

// TestHoldCopy: what is copied is what is kept, as much as the copier takes, and
// Forward gives out the rest.
func TestHoldCopy(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c, s)
	quiet(t, client, server)
	h, err := server.HoldClient(client6)
	h = mustHold(t, h, err)
	before, _ := server.dev.counts()
	var copied [][]byte
	for i := range 3 { // before Copy; after it; too many
		from, _ := server.dev.counts()
		mustSend(t, c, 1000*i, 1000)
		server.dev.wait(t, "data", func() bool { return slices.ContainsFunc(server.dev.in[from:], hasData) })
		server.dev.settle(t)
		if i == 0 {
			h.Copy(func(p []byte) bool {
				if len(copied) == 2 {
					return false
				}
				copied = append(copied, slices.Clone(p))
				return true
			})
		}
	}
	late := h.Forward(nil, time.Hour)
	if arrived := server.dev.received(before); !slices.EqualFunc(append(copied, late...), arrived, bytes.Equal) || len(late) == 0 {
		t.Errorf("%d packets copied and %d later, %d had arrived, or in another order", len(copied), len(late), len(arrived))
	}
	h2, err := server.HoldClient(client6)
	h2 = mustHold(t, h2, err)
	h2.Release(append(copied, late...)...)
	mustReceive(t, s, 0, 3000)
}

// TestReleaseFirst: what is given to Release comes before what was kept.
func TestReleaseFirst(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c, s)
	h, err := server.HoldConn(s.Tuple())
	h = mustHold(t, h, err)
	before, _ := server.dev.counts()
	mustSend(t, c, 0, 1000)
	server.dev.wait(t, "data", func() bool { return slices.ContainsFunc(server.dev.in[before:], hasData) })
	server.dev.settle(t)
	late := h.Forward(nil, time.Hour)
	h2, err := server.HoldConn(s.Tuple())
	h2 = mustHold(t, h2, err)
	before, _ = server.dev.counts()
	mustSend(t, c, 1000, 1000)
	server.dev.wait(t, "more data", func() bool { return slices.ContainsFunc(server.dev.in[before:], hasData) })
	server.dev.settle(t)
	h2.Release(late...)
	mustReceive(t, s, 0, 2000)
	// In order, so that nothing was ever out of order.
	if n := server.Netstack().Stats().TCP.SegmentsAckedWithDSACK.Value(); n != 0 {
		t.Errorf("%d duplicates", n)
	}
}

// TestReleaseOrderOutbound: what the netstack had sent during the hold leaves
// before what it sends because of Release.
func TestReleaseOrderOutbound(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c, s)
	quiet(t, client, server)
	h, err := server.HoldClient(client6)
	h = mustHold(t, h, err)
	_, before := server.dev.counts()
	mustSend(t, s, 0, 100) // kept
	// A connection that nobody listens for is refused at once, on the
	// goroutine that delivers.
	server.Inject(syn(netip.AddrPortFrom(client6, 999), netip.AddrPortFrom(server6, 9)))
	h.Release()
	out := server.dev.sent(before)
	data, reset := slices.IndexFunc(out, hasData), slices.IndexFunc(out, isReset)
	if data < 0 || reset < 0 {
		t.Fatalf("data is %d, reset %d of %d packets", data, reset, len(out))
	}
	if reset < data {
		t.Error("the answer to a packet that Release delivered left before what was kept")
	}
}

// TestHoldLimit: a hold that is full drops the newest, counts, and TCP gets
// over it.
func TestHoldLimit(t *testing.T) {
	const limit = 8 << 10
	client, server := newNodes(t, func(_, s *stack.Config) { s.HoldLimit = limit })
	c, s := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c, s)
	quiet(t, client, server)
	h, err := server.HoldConn(s.Tuple())
	h = mustHold(t, h, err)
	const n = 100_000
	mustSend(t, s, 0, n) // outbound: the window, in segments of 1440 or so
	if in, out := h.Dropped(); in != 0 || out == 0 {
		t.Errorf("outbound: dropped %d inbound, %d outbound", in, out)
	}
	_, outBefore := h.Dropped()
	errs := make(chan error, 1)
	go func() { _, err := send(c, 0, n); errs <- err }()
	// The client's window is worth more than the limit.
	server.dev.wait(t, "a full hold", func() bool { in, _ := h.Dropped(); return in > 0 })
	h.Release()
	if _, out := h.Dropped(); out < outBefore {
		t.Errorf("counted back from %d to %d", outBefore, out)
	}
	mustReceive(t, s, 0, n)
	mustReceive(t, c, 0, n)
	if err := result(t, "the writer", errs); err != nil {
		t.Error(err)
	}
}

// TestHoldBounded: what is kept, with its overhead, stays under the limit,
// and the oldest are what is kept.
func TestHoldBounded(t *testing.T) {
	const limit = 10_000
	_, server := newNodes(t, func(_, s *stack.Config) { s.HoldLimit = limit })
	at := stack.Tuple{Local: netip.AddrPortFrom(server6, 80), Remote: netip.AddrPortFrom(client6, 1)}
	h, err := server.HoldConn(at)
	h = mustHold(t, h, err)
	r := rand.New(rand.NewPCG(1, 1))
	var all [][]byte
	for range 1000 {
		p := append(syn(at.Remote, at.Local), make([]byte, r.IntN(200))...)
		p[44]++ // not that it matters
		all = append(all, p)
		server.Inject(p)
	}
	dropped, _ := h.Dropped()
	late := h.Forward(nil, 0)
	size := 0
	for _, p := range late {
		size += len(p)
	}
	if size > limit || size < limit/4 || len(late)+int(dropped) != len(all) {
		t.Errorf("kept %d packets, %d octets of %d, and dropped %d of %d", len(late), size, limit, dropped, len(all))
	}
	for i, p := range late[:min(10, len(late))] {
		if !bytes.Equal(p, all[i]) {
			t.Errorf("packet %d is not the one that came first", i)
		}
	}
}

// TestHoldICMP: an error about a held connection waits, too.
func TestHoldICMP(t *testing.T) {
	for kind, hold := range holds {
		t.Run(kind, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
				client, server := newNodes(t, nil)
				c, s := connect(t, client.Stack, server.Stack, addr)
				_, before := server.dev.counts()
				mustSend(t, s, 0, 4000)
				mustReceive(t, c, 0, 4000)
				full := func(p []byte) bool { return len(p) > 1280 && hasData(p) }
				server.dev.waitSent(t, "a full packet", before, full)
				out := server.dev.sent(before)
				h, err := hold(server, s)
				h = mustHold(t, h, err)
				stats := server.Netstack().Stats()
				seen := func() uint64 {
					return stats.ICMP.V6.PacketsReceived.PacketTooBig.Value() + stats.ICMP.V4.PacketsReceived.DstUnreachable.Value()
				}
				server.Inject(tooBig(out[slices.IndexFunc(out, full)], 1280))
				if n := seen(); n != 0 {
					t.Errorf("%d errors reached the stack in spite of the hold", n)
				}
				h.Release()
				if n := seen(); n != 1 {
					t.Errorf("%d errors reached the stack after Release: want 1", n)
				}
				// The error is handled on this goroutine, or the segment that
				// follows waits for it: what is sent from now on is smaller.
				_, before = server.dev.counts()
				mustSend(t, s, 4000, 8000)
				mustReceive(t, c, 4000, 8000)
				for _, p := range server.dev.sent(before) {
					if len(p) > 1280 {
						t.Errorf("a packet of %d octets after Packet Too Big said 1280", len(p))
					}
				}
			})
		})
	}
	// An error about another connection passes.
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	c2, s2 := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c2, s2)
	_, before := server.dev.counts()
	mustSend(t, s, 0, 100)
	mustReceive(t, c, 0, 100)
	out := server.dev.sent(before)
	h, err := server.HoldConn(s2.Tuple())
	h = mustHold(t, h, err)
	server.Inject(tooBig(out[slices.IndexFunc(out, hasData)], 1280))
	if n := server.Netstack().Stats().ICMP.V6.PacketsReceived.PacketTooBig.Value(); n != 1 {
		t.Errorf("%d errors about another connection: want 1", n)
	}
	h.Release()
}

// TestHoldOthersPass: a hold is about one connection, or one client.
func TestHoldOthersPass(t *testing.T) {
	client, server := newNodes(t, nil)
	c1, s1 := connect(t, client.Stack, server.Stack, server6)
	c2, s2 := connect(t, client.Stack, server.Stack, server6)
	c4, s4 := connect(t, client.Stack, server.Stack, server4)
	h, err := server.HoldConn(s1.Tuple())
	h = mustHold(t, h, err)
	pingPong(t, c2, s2)
	pingPong(t, c4, s4)
	h.Release()
	h, err = server.HoldClient(client6)
	h = mustHold(t, h, err)
	pingPong(t, c4, s4) // the same node, but another client
	// New connections of the client wait, too.
	l, err := server.Listen("tcp", "[fd00:2::1]:81")
	if err != nil {
		t.Fatal(err)
	}
	type dialled struct {
		c   *stack.Conn
		err error
	}
	ch := make(chan dialled, 1)
	_, before := client.dev.counts()
	_, answers := server.dev.counts()
	go func() { c, err := client.Dial("tcp", "[fd00:2::1]:81"); ch <- dialled{c, err} }()
	client.dev.waitSent(t, "SYN", before, hasFlag(header.TCPFlagSyn))
	server.dev.settle(t)
	if slices.ContainsFunc(server.dev.sent(answers), hasFlag(header.TCPFlagSyn)) {
		t.Error("a held client's SYN was answered")
	}
	h.Release()
	s, err := l.AcceptConn()
	if err != nil {
		t.Fatal(err)
	}
	d := result(t, "Dial", ch)
	if d.err != nil {
		t.Fatal(d.err)
	}
	pingPong(t, d.c, s)
	pingPong(t, c1, s1)
}

// TestErrHeld: nobody can hold what somebody holds.
func TestErrHeld(t *testing.T) {
	_, server := newNodes(t, nil)
	at := func(a netip.Addr, port uint16) stack.Tuple {
		return stack.Tuple{Local: netip.AddrPortFrom(server6, 80), Remote: netip.AddrPortFrom(a, port)}
	}
	other := netip.MustParseAddr("fd00:1::2")
	refused := func(what string, h *stack.Hold, err error) {
		t.Helper()
		if h != nil || !errors.Is(err, stack.ErrHeld) {
			t.Errorf("%s: %v, %v: want ErrHeld", what, h, err)
		}
	}
	conn, err := server.HoldConn(at(client6, 1))
	conn = mustHold(t, conn, err)
	h, err := server.HoldConn(at(client6, 1))
	refused("the same connection", h, err)
	h, err = server.HoldClient(client6)
	refused("its client", h, err)
	h, err = server.HoldConn(at(client6, 2))
	mustHold(t, h, err).Release()
	h, err = server.HoldClient(other)
	mustHold(t, h, err).Release()

	conn.Release()
	conn.Release() // does nothing
	c, err := server.HoldClient(client6)
	c = mustHold(t, c, err)
	h, err = server.HoldClient(client6)
	refused("the same client", h, err)
	h, err = server.HoldConn(at(client6, 1))
	refused("a connection of the client", h, err)
	conn.Release() // nor does that: it is over
	if late := conn.Forward(nil, time.Hour); late != nil {
		t.Errorf("Forward after Release: %d packets", len(late))
	}
	h, err = server.HoldConn(at(client6, 1))
	refused("a connection of the client, after the Release of an old hold", h, err)
	c.Release()
	h, err = server.HoldConn(at(client6, 1))
	mustHold(t, h, err).Release()

	for name, want := range map[*stack.Hold]string{conn: "[fd00:2::1]:80–[fd00:1::1]:1", c: "client fd00:1::1"} {
		if got := name.String(); got != want {
			t.Errorf("String() = %q: want %q", got, want)
		}
	}
}

// TestErrHeldKeepsMoved: a hold that is refused changes nothing, so moved
// connections stay moved.
func TestErrHeldKeepsMoved(t *testing.T) {
	_, server := newNodes(t, nil)
	at := func(port uint16) stack.Tuple {
		return stack.Tuple{Local: netip.AddrPortFrom(server6, 80), Remote: netip.AddrPortFrom(client6, port)}
	}
	forwarded := 0
	const moved = 30
	for port := range uint16(moved) {
		h, err := server.HoldConn(at(port + 1))
		mustHold(t, h, err).Forward(func([]byte) { forwarded++ }, time.Hour)
	}
	held, err := server.HoldConn(at(1000))
	held = mustHold(t, held, err)
	if _, err := server.HoldClient(client6); !errors.Is(err, stack.ErrHeld) {
		t.Fatalf("HoldClient: %v: want ErrHeld", err)
	}
	for port := range uint16(moved) {
		server.Inject(syn(at(port+1).Remote, at(port+1).Local))
	}
	if forwarded != moved {
		t.Errorf("%d of %d moved connections are still forwarded after a hold that was refused", forwarded, moved)
	}
	held.Release()
}

// TestForward: late packets are handed back, later ones handed on, and nobody
// answers, for the time of grace.
func TestForward(t *testing.T) {
	for kind, hold := range holds {
		t.Run(kind, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
				clock := faketime.NewManualClock()
				client, server := newNodes(t, func(c, s *stack.Config) {
					s.Clock = clock
					c.Clock = faketime.NewManualClock() // the client sends nothing again
				})
				l, err := server.Listen("tcp", netip.AddrPortFrom(addr, 443).String())
				if err != nil {
					t.Fatal(err)
				}
				c, err := client.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				s, err := l.AcceptConn()
				if err != nil {
					t.Fatal(err)
				}
				pingPong(t, c, s)
				quiet(t, client, server)

				h, err := hold(server, s)
				h = mustHold(t, h, err)
				before, sent := server.dev.counts()
				mustSend(t, c, 0, 100)
				server.dev.wait(t, "data", func() bool { return slices.ContainsFunc(server.dev.in[before:], hasData) })
				server.dev.settle(t)
				s.Detach()
				s.Endpoint().Abort() // as good as discarded: its reset is held
				var got [][]byte
				late := h.Forward(func(p []byte) { got = append(got, slices.Clone(p)) }, time.Second)
				if len(late) == 0 || !hasData(late[0]) {
					t.Fatalf("%d late packets", len(late))
				}

				stats := server.Netstack().Stats()
				received := stats.IP.PacketsReceived.Value()
				straggler := late[0]
				server.Inject(straggler)
				server.Inject(straggler)
				clock.Advance(time.Second - 1)
				server.Inject(straggler)
				if len(got) < 3 || !bytes.Equal(got[0], routed(straggler)) {
					t.Errorf("%d packets forwarded: want 3", len(got))
				}
				if n := stats.IP.PacketsReceived.Value(); n != received {
					t.Errorf("%d packets of a moved connection reached the stack", n-received)
				}
				if out := server.dev.sent(sent); slices.ContainsFunc(out, isReset) {
					t.Error("a reset for a connection that moved")
				}

				clock.Advance(1)
				n := len(got)
				server.Inject(straggler)
				server.dev.waitSent(t, "the reset when grace is over", sent, isReset)
				if len(got) != n {
					t.Error("forwarded after the grace")
				}
			})
		})
	}
}

// routed is a packet behind a router: with a hop less to go.
func routed(p []byte) []byte {
	p = slices.Clone(p)
	if p[0]>>4 == 6 {
		p[7]--
		return p
	}
	p[8]--
	h := header.IPv4(p)
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
	return p
}

// TestForwardLoop: nodes that each think the other has a client do not send its
// packets round for ever.
func TestForwardLoop(t *testing.T) {
	a, b := newNodes(t, nil)
	ha, err := a.HoldClient(client6)
	ha = mustHold(t, ha, err)
	hb, err := b.HoldClient(client6)
	hb = mustHold(t, hb, err)
	ha.Forward(b.Inject, time.Hour)
	rounds := 0
	hb.Forward(func(p []byte) { rounds++; a.Inject(p) }, time.Hour)
	p := make([]byte, 60)
	p[0], p[6], p[7] = 0x60, 6, 64
	copy(p[8:], client6.AsSlice())
	copy(p[24:], server6.AsSlice())
	a.Inject(p)
	if rounds < 10 || rounds > 64 {
		t.Errorf("the packet went round %d times", rounds)
	}
}

// TestForwardICMP: errors about a moved connection go where it is.
func TestForwardICMP(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	_, before := server.dev.counts()
	mustSend(t, s, 0, 100)
	mustReceive(t, c, 0, 100)
	out := server.dev.sent(before)
	h, err := server.HoldConn(s.Tuple())
	h = mustHold(t, h, err)
	var mu sync.Mutex // the client's acknowledgement may come meanwhile
	var got [][]byte
	h.Forward(func(p []byte) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, slices.Clone(p))
	}, time.Hour)
	e := tooBig(out[slices.IndexFunc(out, hasData)], 1280)
	server.Inject(e)
	mu.Lock()
	if !slices.ContainsFunc(got, func(p []byte) bool { return bytes.Equal(p, routed(e)) }) {
		t.Errorf("%d packets forwarded, the error not among them", len(got))
	}
	mu.Unlock()
	h.Release()
}

// TestForwardOutbound: what the moved connection's remains send is dropped.
func TestForwardOutbound(t *testing.T) {
	client, server := newNodes(t, nil)
	c, s := connect(t, client.Stack, server.Stack, server6)
	pingPong(t, c, s)
	quiet(t, client, server)
	h, err := server.HoldConn(s.Tuple())
	h = mustHold(t, h, err)
	_, before := server.dev.counts()
	mustSend(t, s, 0, 100)
	h.Forward(nil, time.Hour)
	mustSend(t, s, 100, 100)
	s.Endpoint().Abort()
	if out := server.dev.sent(before); len(out) != 0 {
		t.Errorf("%d packets left", len(out))
	}
}

// TestForwardNoGrace: without grace the filter ends at once.
func TestForwardNoGrace(t *testing.T) {
	_, server := newNodes(t, nil)
	at := stack.Tuple{Local: netip.AddrPortFrom(server6, 80), Remote: netip.AddrPortFrom(client6, 1)}
	for _, grace := range []time.Duration{0, -time.Second} {
		h, err := server.HoldConn(at)
		h = mustHold(t, h, err)
		forwarded := 0
		h.Forward(func([]byte) { forwarded++ }, grace)
		_, before := server.dev.counts()
		server.Inject(syn(at.Remote, at.Local))
		if out := server.dev.sent(before); forwarded != 0 || !slices.ContainsFunc(out, isReset) {
			t.Errorf("grace %v: %d forwarded, %d sent", grace, forwarded, len(out))
		}
	}
}

// TestForwardTwice: the last word counts, as to where and how long.
func TestForwardTwice(t *testing.T) {
	clock := faketime.NewManualClock()
	_, server := newNodes(t, func(_, s *stack.Config) { s.Clock = clock })
	at := stack.Tuple{Local: netip.AddrPortFrom(server6, 80), Remote: netip.AddrPortFrom(client6, 1)}
	h, err := server.HoldConn(at)
	h = mustHold(t, h, err)
	first, second := 0, 0
	h.Forward(func([]byte) { first++ }, time.Second)
	h.Forward(func([]byte) { second++ }, time.Minute)
	clock.Advance(2 * time.Second)
	server.Inject(syn(at.Remote, at.Local))
	if first != 0 || second != 1 {
		t.Errorf("forwarded %d and %d: want 0 and 1, for a minute", first, second)
	}
}

// TestHoldAgain: a hold replaces a moved filter of its connection or client.
func TestHoldAgain(t *testing.T) {
	_, server := newNodes(t, nil)
	at := stack.Tuple{Local: netip.AddrPortFrom(server6, 80), Remote: netip.AddrPortFrom(client6, 1)}
	p := syn(at.Remote, at.Local)
	conn := func() (*stack.Hold, error) { return server.HoldConn(at) }
	client := func() (*stack.Hold, error) { return server.HoldClient(client6) }
	for name, c := range map[string][2]func() (*stack.Hold, error){
		"conn after conn": {conn, conn}, "client after client": {client, client},
		"conn after client": {client, conn}, "client after conn": {conn, client},
	} {
		t.Run(name, func(t *testing.T) {
			old, err := c[0]()
			old = mustHold(t, old, err)
			forwarded := 0
			old.Forward(func([]byte) { forwarded++ }, time.Hour)
			server.Inject(p)
			again, err := c[1]()
			again = mustHold(t, again, err)
			server.Inject(p)
			old.Release() // is over
			server.Inject(p)
			if late := again.Forward(nil, 0); forwarded != 1 || len(late) != 2 {
				t.Errorf("forwarded %d, kept %d: want 1 and 2", forwarded, len(late))
			}
		})
	}
}

// TestHoldRaces: holds come and go while four connections are busy both ways,
// and every octet arrives.
func TestHoldRaces(t *testing.T) {
	client, server := newNodes(t, nil)
	const conns, size = 4, 1 << 20
	var streams, holders sync.WaitGroup
	errs := make(chan error, 4*conns)
	var servers []*stack.Conn
	for i := range conns {
		addr := server6
		if i%2 == 1 {
			addr = server4
		}
		c, s := connect(t, client.Stack, server.Stack, addr)
		servers = append(servers, s)
		for _, f := range []func() error{
			func() error { _, err := send(c, 0, size); return err },
			func() error { _, err := send(s, 9, size); return err },
			func() error { return receive(s, 0, size) },
			func() error { return receive(c, 9, size) },
		} {
			streams.Add(1)
			go func() {
				defer streams.Done()
				errs <- f()
			}()
		}
	}
	done := make(chan struct{})
	start := func(get func() (*stack.Hold, error)) {
		holders.Add(1)
		go func() {
			defer holders.Done()
			for {
				select {
				case <-done:
					return
				default:
				}
				h, err := get()
				if err == nil {
					runtime.Gosched()
					h.Release()
				} else if !errors.Is(err, stack.ErrHeld) {
					t.Error(err)
					return
				}
				runtime.Gosched()
			}
		}()
	}
	for _, s := range servers {
		start(func() (*stack.Hold, error) { return server.HoldConn(s.Tuple()) })
		peer := stack.Tuple{Local: s.Tuple().Remote, Remote: s.Tuple().Local}
		start(func() (*stack.Hold, error) { return client.HoldConn(peer) })
	}
	start(func() (*stack.Hold, error) { return server.HoldClient(client6) })
	start(func() (*stack.Hold, error) { return server.HoldClient(client4) })
	for range 4 * conns {
		if err := result(t, "a stream", errs); err != nil {
			t.Error(err)
		}
	}
	close(done)
	streams.Wait()
	holders.Wait()
}
