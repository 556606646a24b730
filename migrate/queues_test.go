package migrate_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// TestStoryOutOfOrder moves a receiver with a hole in its sequence space, and a
// sender that knows which of its segments have arrived. Neither makes the other
// side send again what had arrived.
func TestStoryOutOfOrder(t *testing.T) {
	const segments, size = 10, 10 * 1400
	for _, service := range []netip.Addr{service6, service4} {
		for _, fromClient := range []bool{true, false} {
			name := family(service) + map[bool]string{true: " at the receiver", false: " at the sender"}[fromClient]
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, options{service: service})
				c, s := w.connect(service)
				// The window is wide, and segments are full.
				if err := errors.Join(exchange(c, s, 0, 200_000), exchange(s, c, 0, 200_000)); err != nil {
					t.Fatal(err)
				}
				var hole uint32
				var seen, again atomic.Int64
				var edge uint32 // behind what was sent
				var mend atomic.Bool
				lose := func(client bool, h header.TCP) bool {
					if client != fromClient || len(h) == int(h.DataOffset()) {
						return false
					}
					n, at := seen.Add(1), h.SequenceNumber()
					if n == 3 {
						hole = at
					}
					lost := n >= 3 && at == hole
					switch end := at + uint32(len(h)-int(h.DataOffset())); {
					case n == 1 || int32(end-edge) > 0:
						edge = end
					case !lost:
						again.Add(1)
					}
					return lost && !mend.Load()
				}
				w.watch.lose.Store(&lose)
				from, to := c, s
				if !fromClient {
					from, to = s, c
				}
				if err := send(from, 0, size); err != nil {
					t.Fatal(err)
				}
				holds := func() bool {
					r := look(t, to).Receive
					n := 0
					for _, g := range r.OutOfOrder {
						n += snapshot.Len(g.Data)
					}
					return n > size/2
				}
				eventually(t, "a hole", holds)
				if !fromClient {
					eventually(t, "a scoreboard", func() bool { return len(look(t, s).Send.SACKed) > 0 })
				}
				for range 20 {
					s = w.must(s)
				}
				if fromClient {
					to = s
					if !holds() {
						t.Fatal("the out-of-order segments are gone")
					}
				} else if b := look(t, s).Send; len(b.SACKed) == 0 && b.Nxt != b.Una {
					t.Fatal("the scoreboard is gone")
				}
				mend.Store(true)
				if err := receive(to, 0, size); err != nil {
					t.Fatal(err)
				}
				// The lost segment is sent again, as often as its timer fires; perhaps
				// another as a probe. A sender that had forgotten would send all of them.
				if again := again.Load(); again > segments/2 {
					t.Errorf("%d segments sent again that had arrived", again)
				}
				w.watch.check(t)
			})
		}
	}
}

// TestStoryParallel has many connections and, for each, a mover of its own, so
// that at any time some are on one node and some on the other. Packets go to
// the first node, which forwards those of connections that have left.
func TestStoryParallel(t *testing.T) {
	w := newWorld(t, options{})
	const conns, size = 24, 1 << 20
	var wg sync.WaitGroup
	var moves atomic.Int64
	var ends [conns][2]*stack.Conn
	for i := range ends { // before there is traffic that a handshake would have to wait behind
		ends[i][0], ends[i][1] = w.connect(service6)
	}
	for i, e := range ends {
		wg.Add(1)
		go func() {
			defer wg.Done()
			at := 0 // this connection's node
			x := newTransfer(w, e[0], e[1], size, 32<<10)
			x.rand = rand.New(rand.NewPCG(w.seed, uint64(i)))
			x.moveTo = func(d *migrate.Donor) ([]*stack.Conn, error) {
				to := w.node[1-at]
				out, err := pass(d, to)
				if err == nil {
					at = 1 - at
				}
				return out, err
			}
			n, err := x.run()
			moves.Add(int64(n))
			if err != nil {
				t.Errorf("connection %d, after %d moves: %v", i, n, err)
			}
		}()
	}
	wg.Wait()
	t.Logf("%d connections, %d moves", conns, moves.Load())
	if moves.Load() < conns {
		t.Errorf("moved only %d times", moves.Load())
	}
	w.watch.check(t)
}

// TestStoryClient moves all connections of one client at once, again and
// again, while all of them stream; another client's stay where they are.
func TestStoryClient(t *testing.T) {
	for _, service := range []netip.Addr{service6, service4} {
		t.Run(family(service), func(t *testing.T) {
			w := newWorld(t, options{service: service})
			w.clientP.SetImpair(impairment, impairment)
			const conns, size = 30, 256 << 10
			sessions := make(map[stack.Tuple]*session)
			errs := make(chan error, conns)
			var transfers []*transfer
			for range conns { // before there is traffic that a handshake would have to wait behind
				c, s := w.connect(service)
				x := newTransfer(w, c, s, size, 0)
				x.stay = true
				sessions[s.Tuple()] = x.server
				transfers = append(transfers, x)
			}
			for _, x := range transfers {
				go func() {
					_, err := x.run()
					errs <- err
				}()
			}
			client := client6
			if service.Is4() {
				client = client4
			}
			moves := 0
			for done := 0; done < conns; {
				select {
				case err := <-errs:
					done++
					if err != nil {
						t.Fatal(err)
					}
					continue
				default:
				}
				out, err := w.moveClient(client)
				if errors.Is(err, migrate.ErrEnded) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				moves++
				for _, c := range out {
					if c != nil {
						sessions[c.Tuple()].moved(c, nil)
					}
				}
				// Let some octets pass.
				seen := w.watch.count()
				deadline := time.Now().Add(time.Second)
				eventually(t, "packets", func() bool { return w.watch.count() > seen+50 || time.Now().After(deadline) || len(errs) > 0 })
			}
			t.Logf("%d connections, moved %d times together", conns, moves)
			if moves < 5 {
				t.Errorf("moved only %d times", moves)
			}
			w.watch.check(t)
		})
	}
}

// TestStoryWrap lets both sequence spaces and the timestamp clock go past 2^32
// while the connection moves.
func TestStoryWrap(t *testing.T) {
	w := newWorld(t, options{})
	c, s := w.connect(service6)
	if err := errors.Join(exchange(c, s, 0, 10_000), exchange(s, c, 0, 10_000)); err != nil {
		t.Fatal(err)
	}
	// Both ends agree that they are elsewhere in sequence space and time.
	var cl, se *snapshot.Conn
	eventually(t, "the last acknowledgements", func() bool {
		cl, se = look(t, c), look(t, s)
		// Each has heard all that the other has said, window updates too.
		heard := func(c, by *snapshot.Conn) bool {
			advertised := c.Receive.Wnd >> c.Receive.WndScale << c.Receive.WndScale
			return c.Send.Una == c.Send.Nxt && len(c.Unprocessed) == 0 && by.Send.Wnd == advertised
		}
		return heard(cl, se) && heard(se, cl)
	})
	toWrap := func(v uint32, before uint32) uint32 { return -before - v }
	up, down := toWrap(cl.Send.Nxt, 1<<20), toWrap(se.Send.Nxt, 1<<20)
	clock := toWrap(se.TSVal, 100)
	c = w.rewrite(w.client, c, func(c *snapshot.Conn) { shiftSeq(c, up, down); c.TSRecent += clock })
	s = w.rewrite(w.node[0], s, func(c *snapshot.Conn) { shiftSeq(c, down, up); c.TSVal += clock })
	w.watch.forget()
	x := newTransfer(w, c, s, 8<<20, 16<<10)
	moves, err := x.run()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d moves", moves)
	w.watch.check(t)
}

// rewrite changes a connection of one stack by way of its snapshot.
func (w *world) rewrite(on *stack.Stack, c *stack.Conn, change func(*snapshot.Conn)) *stack.Conn {
	w.t.Helper()
	d := migrate.NewDonor(c)
	if err := d.Freeze(); err != nil {
		w.t.Fatal(err)
	}
	b, err := d.Export(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	snap, err := snapshot.Parse(b)
	if err != nil {
		w.t.Fatal(err)
	}
	change(&snap.Conns[0])
	if b, err = snapshot.Append(nil, snap); err != nil {
		w.t.Fatal(err)
	}
	late, err := d.Discard(nil, time.Minute)
	if err != nil {
		w.t.Fatal(err)
	}
	target, err := migrate.Import(on, b)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := target.Activate(late...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out[0]
}

// shiftSeq moves a connection in its two sequence spaces.
func shiftSeq(c *snapshot.Conn, send, receive uint32) {
	s, r := &c.Send, &c.Receive
	for _, p := range []*uint32{
		&s.Una, &s.Nxt, &s.RTTSeq, &s.Cubic.EndSeq, &s.MaxSACKed,
		&s.FastRecovery.First, &s.FastRecovery.Last, &s.FastRecovery.HighRxt, &s.FastRecovery.RescueRxt,
		&s.RACK.EndSeq, &s.RACK.FACK, &s.RACK.RTTSeq, &s.RACK.ProbeHighRxt,
	} {
		*p += send
	}
	for _, p := range []*uint32{&s.MaxSentAck, &r.Nxt, &r.WndUpdateAt, &r.Tuning.RTTSeq} {
		*p += receive
	}
	if len(s.SACKed)+len(r.Blocks)+len(r.OutOfOrder)+len(c.Unprocessed) > 0 {
		panic(fmt.Sprintf("not at rest: %+v", c))
	}
}

// TestStoryOptions compares everything about a connection before and after
// moves, with all options away from their defaults.
func TestStoryOptions(t *testing.T) {
	for _, service := range []netip.Addr{service6, service4} {
		t.Run(family(service), func(t *testing.T) {
			w := newWorld(t, options{service: service})
			c, s := w.connect(service)
			ep := s.Endpoint()
			for _, err := range []error{
				s.SetNoDelay(false), s.SetKeepAlivePeriod(7 * time.Minute), s.SetUserTimeout(5 * time.Minute),
				s.SetLinger(9), s.SetWriteBuffer(300_000), s.SetReadBuffer(400_000),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			linger2 := tcpip.TCPLingerTimeoutOption(11 * time.Second)
			if err := ep.SetSockOpt(&linger2); err != nil {
				t.Fatal(err)
			}
			for o, v := range map[tcpip.SockOptInt]int{
				tcpip.IPv4TOSOption: 0x28, tcpip.IPv6TrafficClassOption: 0x28,
				tcpip.IPv4TTLOption: 33, tcpip.IPv6HopLimitOption: 34,
				tcpip.KeepaliveCountOption: 4, tcpip.MTUDiscoverOption: int(tcpip.PMTUDiscoveryDo),
			} {
				if err := ep.SetSockOptInt(o, v); err != nil {
					t.Fatalf("option %v: %s", o, err)
				}
			}
			ep.SocketOptions().SetMark(77)
			for range 10 {
				if err := errors.Join(exchange(c, s, 0, 50_000), exchange(s, c, 0, 50_000)); err != nil {
					t.Fatal(err)
				}
			}
			settled(t, c, s)
			var info [2]tcpip.TCPInfoOption
			if err := s.Endpoint().GetSockOpt(&info[0]); err != nil {
				t.Fatal(err)
			}
			before := look(t, s)
			for range 5 {
				s = w.must(s)
			}
			after := look(t, s)
			if err := s.Endpoint().GetSockOpt(&info[1]); err != nil {
				t.Fatal(err)
			}
			if info[0] != info[1] {
				t.Errorf("TCP_INFO %+v, was %+v", info[1], info[0])
			}
			if a, b := before.Options, after.Options; a != b {
				t.Errorf("options %+v, were %+v", b, a)
			}
			before.TSVal = after.TSVal // time goes on between the moves
			before.Send.LastSend, before.Receive.LastAck, before.TSRecentAge = after.Send.LastSend, after.Receive.LastAck, after.TSRecentAge
			wantSame(t, before, after)
			w.watch.check(t)
		})
	}
}
