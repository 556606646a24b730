package stack_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/stack"
	"github.com/distributed-servers/ds/tun"
	"github.com/distributed-servers/ds/tun/tuntest"
)

// superWorld is a client and a server whose devices offload segmentation and
// checksums, as TUN interfaces do, with a kernel between:
//
//	client ── super-packets ── kernel ── super-packets ── server
//
// The kernel plays what is between, by hand: correspondent and home agent, and a
// wire that takes nothing but packets that fit it, with whole checksums.
type superWorld struct {
	t              testing.TB
	mode           string // plain, bound: by a binding; tunnel: through the home agent
	client, server *stack.Stack
	cd, sd         *tuntest.OffloadEnd

	mu         sync.Mutex
	wire       bool   // super-packets are cut up on the way
	super, cut [2]int // super-packets and others with data, to the server and from it
	queues     map[int]int
}

const superMTU = 1500

func newSuperWorld(t testing.TB, mode string, queues int) *superWorld {
	t.Helper()
	return newSuperWorldClock(t, mode, queues, nil)
}

// newSuperWorldClock has the client go by a clock, nil: the one on the wall.
func newSuperWorldClock(t testing.TB, mode string, queues int, clock tcpip.Clock) *superWorld {
	t.Helper()
	w := &superWorld{t: t, mode: mode, queues: make(map[int]int)}
	w.cd = tuntest.NewOffloadEnd("client", superMTU, 1, nil)
	w.sd = tuntest.NewOffloadEnd("server", superMTU, queues, nil)
	w.cd.Out = func(_ int, p tuntest.Packet) { w.toServer(p) }
	w.sd.Out = w.toClient
	start := func(cfg stack.Config) *stack.Stack {
		s, err := stack.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	cfg := stack.Config{Device: w.sd, Addrs: []netip.Addr{server6, server4}}
	if mode != "plain" {
		cfg.Mobile = &stack.Mobile{Home: server6, CareOf: careOf[0], Via: homeAgent, Peers: []netip.Addr{careOf[1]}}
	}
	w.server = start(cfg)
	w.client = start(stack.Config{Device: w.cd, Addrs: []netip.Addr{client6, client4}, Clock: clock})
	if mode == "bound" {
		w.server.Bind(client6)
	}
	return w
}

// count notes a packet, and returns what it becomes on its way.
func (w *superWorld) count(direction int, p tuntest.Packet) []tuntest.Packet {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.Offload.SegmentSize != 0 {
		w.super[direction]++
	} else if len(p.Data) > 1000 {
		w.cut[direction]++
	}
	segments, err := p.Wire()
	if err != nil {
		w.t.Error(err)
	}
	var cut []tuntest.Packet
	for _, q := range segments {
		if len(q) > superMTU {
			w.t.Errorf("a packet of %d octets on a link with an MTU of %d: %+v", len(q), superMTU, p.Offload)
		}
		cut = append(cut, tuntest.Packet{Data: q})
	}
	if w.wire {
		return cut
	}
	return []tuntest.Packet{p}
}

func (w *superWorld) toServer(p tuntest.Packet) {
	if w.mode == "bound" && p.Data[0]>>4 == 6 {
		p.Data = routing2(p.Data, careOf[0])
		p.Offload.SumAt += 24
		p.Offload.HeaderSize += 24
	}
	for _, p := range w.count(0, p) {
		if w.mode == "tunnel" && p.Data[0]>>4 == 6 {
			segments, _ := p.Wire() // nobody tunnels super-packets
			for _, q := range segments {
				w.sd.Deliver(0, tuntest.Packet{Data: packet6(homeAgent, careOf[0], 41, q)})
			}
			continue
		}
		w.mu.Lock()
		q := 0
		for key, n := range w.queues { // the flow's queue is the one it was last written to
			if key == int(binary.BigEndian.Uint16(ports(p.Data)[0:])) {
				q = n
			}
		}
		w.mu.Unlock()
		w.sd.Deliver(q, p)
	}
}

// ports are those of a packet, the source's first.
func ports(p []byte) []byte {
	at := 40
	switch {
	case p[0]>>4 == 4:
		at = 20
	case p[6] != 6:
		at = 64
	}
	return p[at : at+4]
}

func (w *superWorld) toClient(queue int, p tuntest.Packet) {
	w.mu.Lock()
	w.queues[int(binary.BigEndian.Uint16(ports(p.Data)[2:]))] = queue
	w.mu.Unlock()
	for _, p := range w.count(1, p) {
		switch {
		case p.Data[0]>>4 == 4 || w.mode == "plain":
		case w.mode == "bound":
			// The Home Address option (RFC 6275 §6.3).
			if p.Data[6] != 60 || p.Data[46] != 201 {
				w.t.Errorf("no Home Address option in %x", p.Data[:64])
				return
			}
			q := packet6(server6, client6, p.Data[40], p.Data[64:])
			copy(q, p.Data[:4])
			p.Data = q
			if p.Offload.Partial {
				p.Offload.SumAt -= 24
				p.Offload.HeaderSize -= 24
			}
		case p.Data[6] != 41 || p.Offload != (tun.Offload{}):
			w.t.Errorf("not a packet in a tunnel: %x, %+v", p.Data[:40], p.Offload)
			return
		default:
			p.Data = p.Data[40:]
			if !sumRight(p.Data) {
				w.t.Error("a wrong checksum in the tunnel")
			}
		}
		w.cd.Deliver(0, p)
	}
}

// sumRight tells whether a TCP packet's checksum is.
func sumRight(p []byte) bool {
	at, addresses := 40, p[8:40]
	if p[0]>>4 == 4 {
		at, addresses = 20, p[12:20]
	}
	return checksum.Checksum(p[at:], checksum.Combine(checksum.Checksum(addresses, 6), uint16(len(p)-at))) == 0xffff
}

// bulk moves octets both ways at once.
func bulk(t testing.TB, c, s *stack.Conn, n int) {
	t.Helper()
	done := make(chan error, 4)
	for _, d := range []struct{ from, to *stack.Conn }{{c, s}, {s, c}} {
		go func() { _, err := send(d.from, 0, n); done <- err }()
		go func() { done <- receive(d.to, 0, n) }()
	}
	for range 4 {
		if err := result(t, "the octets", done); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSuperPackets: they go whole both ways, and every octet arrives, whoever cuts
// them up.
func TestSuperPackets(t *testing.T) {
	const n = 1 << 20
	for _, mode := range []string{"plain", "bound", "tunnel"} {
		for _, wire := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/wire=%v", mode, wire), func(t *testing.T) {
				bothFamilies(t, func(t *testing.T, addr, _ netip.Addr) {
					w := newSuperWorld(t, mode, 1)
					w.wire = wire
					c, s := connect(t, w.client, w.server, addr)
					bulk(t, c, s, n)
					w.mu.Lock()
					defer w.mu.Unlock()
					tunnelled := mode == "tunnel" && addr.Is6()
					switch {
					case w.super[0] == 0:
						t.Error("no super-packet to the server")
					case tunnelled == (w.super[1] != 0):
						t.Errorf("%d super-packets from the server", w.super[1])
					case !tunnelled && w.cut[1]*superMTU > n/2: // how many go alone is up to the windows
						t.Errorf("more than half of the octets from the server in %d full packets, and %d super-packets", w.cut[1], w.super[1])
					}
					for _, x := range []*stack.Stack{w.client, w.server} {
						st := x.Netstack().Stats().TCP
						if st.ChecksumErrors.Value() != 0 || st.ResetsSent.Value() != 0 {
							t.Errorf("%d wrong checksums, %d resets", st.ChecksumErrors.Value(), st.ResetsSent.Value())
						}
					}
					if w.sd.Drops()+w.cd.Drops() != 0 {
						t.Errorf("dropped %d and %d", w.sd.Drops(), w.cd.Drops())
					}
				})
			})
		}
	}
}

// TestSuperQueues: with several queues, each has a reader, and connections spread
// over them.
func TestSuperQueues(t *testing.T) {
	w := newSuperWorld(t, "plain", 3)
	var group sync.WaitGroup
	for range 12 {
		c, s := connect(t, w.client, w.server, server6)
		group.Go(func() {
			sent := make(chan error, 1)
			go func() { _, err := send(c, 0, 300_000); sent <- err }()
			if err := receive(s, 0, 300_000); err != nil {
				t.Error(err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	used := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		used := map[int]bool{}
		for _, q := range w.queues {
			used[q] = true
		}
		return len(used)
	}
	// Which one a connection has is chance: in one of 40 runs twelve leave one out.
	connections := 12
	for ; used() != 3; connections++ {
		if connections == 200 {
			t.Fatalf("of 3 queues %d were used by %d connections", used(), connections)
		}
		c, s := connect(t, w.client, w.server, server6)
		pingPong(t, c, s)
	}
	if err := w.server.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := w.server.Resume(); err != nil {
		t.Fatal(err)
	}
	c, s := connect(t, w.client, w.server, server6)
	pingPong(t, c, s)
}

// checkPackets checks that packets are such as can be on the wire, and returns
// how many octets of payload they have.
func checkPackets(t *testing.T, packets [][]byte) (octets int) {
	t.Helper()
	for _, p := range packets {
		if len(p) > superMTU || !sumRight(p) {
			t.Errorf("a packet of %d octets, checksum right: %v", len(p), sumRight(p))
		}
		octets += len(segmentOf(p).Payload())
	}
	return octets
}

// TestSuperHold: what a hold keeps of super-packets, and what it forwards, are
// packets that any node can take.
func TestSuperHold(t *testing.T) {
	for _, mode := range []string{"plain", "bound"} {
		t.Run(mode, func(t *testing.T) {
			const n = 30_000
			// For the client no time passes: its congestion window stays wide, however
			// long it is kept from sending, and holds all n octets.
			w := newSuperWorldClock(t, mode, 1, faketime.NewManualClock())
			c, s := connect(t, w.client, w.server, server6)
			bulk(t, c, s, 200_000) // opens the windows

			// Inbound: kept, taken away, and delivered after all.
			h, err := w.server.HoldClient(client6)
			h = mustHold(t, h, err)
			w.mu.Lock()
			before := w.super[0]
			w.mu.Unlock()
			mustSend(t, c, 200_000, n)
			w.await(t, "a super-packet", func() bool { return w.super[0] > before })
			away := make(chan []byte, 1000)
			var kept [][]byte
			w.await(t, "all octets", func() bool {
				kept = append(kept, h.Kept()...)
				return checkPackets(t, kept) >= n
			})
			// From now on they go elsewhere at once.
			if late := h.Forward(func(p []byte) { away <- slices.Clone(p) }, time.Hour); len(late) != 0 {
				kept = append(kept, late...)
			}
			mustSend(t, c, 200_000+n, n)
			var forwarded [][]byte
			for checkPackets(t, forwarded) < n {
				forwarded = append(forwarded, result(t, "a forwarded packet", away))
			}
			back, err := w.server.HoldClient(client6)
			back = mustHold(t, back, err)
			back.Release(append(kept, forwarded...)...)
			mustReceive(t, s, 200_000, 2*n)

			// Outbound: kept, and sent.
			h, err = w.server.HoldConn(s.Tuple())
			h = mustHold(t, h, err)
			mustSend(t, s, 200_000, n)
			if kept := h.KeptOut(); checkPackets(t, kept) == 0 {
				t.Error("nothing kept")
			}
			h.Release()
			mustReceive(t, c, 200_000, n)
			pingPong(t, c, s)
		})
	}
}

// await polls for what goroutines of the stacks do.
func (w *superWorld) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		done := ok()
		w.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestOffloadChecksums: without the device's word every checksum is looked at, and
// with it none.
func TestOffloadChecksums(t *testing.T) {
	for _, c := range []struct {
		name    string
		offload tun.Offload
		damage  bool
		refused bool
	}{
		{"right", tun.Offload{}, false, false},
		{"wrong", tun.Offload{}, true, true},
		{"partial", tun.Offload{Partial: true, SumAt: 40, SumOffset: header.TCPChecksumOffset}, true, false},
		{"verified", tun.Offload{Verified: true}, true, false},
	} {
		d := tuntest.NewOffloadEnd("server", superMTU, 1, nil)
		answers := make(chan struct{}, 10)
		d.Out = func(_ int, p tuntest.Packet) {
			if segmentOf(p.Data) != nil {
				if !sumRight(p.Data) {
					t.Errorf("%s: answered with a wrong checksum", c.name)
				}
				answers <- struct{}{}
			}
		}
		s, err := stack.New(stack.Config{Device: d, Addrs: []netip.Addr{server6}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Listen("tcp", ":80"); err != nil {
			t.Fatal(err)
		}
		p := syn(netip.AddrPortFrom(client6, 9), netip.AddrPortFrom(server6, 80))
		if c.damage {
			p[56] ^= 0xff
		}
		d.Deliver(0, tuntest.Packet{Data: p, Offload: c.offload})
		st := s.Netstack().Stats().TCP
		if c.refused {
			for deadline := time.Now().Add(patience); st.ChecksumErrors.Value() == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s: taken", c.name)
				}
			}
			continue
		}
		result(t, c.name+": an answer", answers)
	}
}

// TestSmallParts: a segment of very many small writes has more parts than a
// device takes.
func TestSmallParts(t *testing.T) {
	for _, mode := range []string{"plain", "bound"} {
		w := newSuperWorld(t, mode, 1)
		c, s := connect(t, w.client, w.server, server6)
		bulk(t, c, s, 200_000)
		h, err := w.client.HoldConn(c.Tuple()) // no acknowledgements: writes gather
		h = mustHold(t, h, err)
		sent := make(chan error, 1)
		go func() {
			for i := range 20_000 {
				if i == 10_000 {
					h.Release()
				}
				b := make([]byte, 7)
				pattern(b, 200_000+7*i)
				if _, err := s.Write(b); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		mustReceive(t, c, 200_000, 140_000)
		if err := result(t, "the writes", sent); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkSuper is bulk TCP between two stacks whose super-packets go whole.
func BenchmarkSuper(b *testing.B) {
	for _, mode := range []string{"plain", "bound", "tunnel"} {
		b.Run(mode, func(b *testing.B) {
			const chunk = 1 << 20
			w := newSuperWorld(b, mode, 1)
			c, s := connect(b, w.client, w.server, server6)
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			b.ReportAllocs()
			done := make(chan error, 1)
			go func() {
				_, err := io.CopyN(io.Discard, c, int64(b.N)*chunk)
				done <- err
			}()
			for range b.N {
				if _, err := s.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
