package migrate_test

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/ports"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// tally is what a move must leave as it was.
type tally struct {
	goroutines int
	dangling   int
	nodes      [2]nodeTally
}

type nodeTally struct {
	registered, cleanup    int
	established, connected uint64
	clients                int
}

func (w *world) tally() (n tally) {
	n.goroutines = runtime.NumGoroutine()
	n.dangling = len(tcpip.GetDanglingEndpoints())
	for i, s := range w.node {
		ns := s.Netstack()
		n.nodes[i] = nodeTally{
			registered:  len(ns.RegisteredEndpoints()),
			cleanup:     len(ns.CleanupEndpoints()),
			established: ns.Stats().TCP.CurrentEstablished.Value(),
			connected:   ns.Stats().TCP.CurrentConnected.Value(),
			clients:     len(s.Clients()),
		}
	}
	return n
}

// wantTally waits until nothing is left over. Goroutines may be fewer.
func (w *world) wantTally(t testing.TB, want tally) {
	t.Helper()
	var got tally
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); runtime.Gosched() {
		got = w.tally()
		if got.goroutines <= want.goroutines {
			got.goroutines = want.goroutines
		}
		if got == want {
			return
		}
	}
	t.Errorf("left over:\n%+v\nwant\n%+v", got, want)
}

// heap is how many octets are in use.
func heap() int64 {
	var m runtime.MemStats
	for range 3 { // pools and finalizers
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// wantHeap checks that n rounds have cost no more than a little.
func wantHeap(t testing.TB, before int64, n int) {
	t.Helper()
	const allowed = 1 << 20
	grown := heap() - before
	t.Logf("the heap has grown by %d octets in %d rounds", grown, n)
	if grown > allowed {
		t.Errorf("the heap has grown by %d octets in %d rounds", grown, n)
	}
}

// TestLeak: after thousands of moves, of moves given up at each stage, and of
// refusals, everything is as before.
func TestLeak(t *testing.T) {
	const rounds = 2000
	for _, l := range []struct {
		name  string
		round func(t *testing.T, w *world, p *pair)
	}{
		{"moves", func(t *testing.T, w *world, p *pair) {
			n, err := w.move(p.server)
			if err != nil {
				t.Fatal(err)
			}
			p.server = n
		}},
		{"moves of the client", func(t *testing.T, w *world, p *pair) {
			conns, err := w.moveClient(client6)
			if err != nil {
				t.Fatal(err)
			}
			p.server = conns[0]
		}},
		{"thawed", func(t *testing.T, w *world, p *pair) {
			d := migrate.NewDonor(p.server)
			if err := errors.Join(d.Freeze(), d.Thaw()); err != nil {
				t.Fatal(err)
			}
		}},
		{"imported and discarded", func(t *testing.T, w *world, p *pair) {
			d := migrate.NewDonor(p.server)
			snap := frozen(t, d)
			target, err := migrate.Import(w.node[1], snap)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(target.Discard(), d.Thaw()); err != nil {
				t.Fatal(err)
			}
		}},
		{"refused: no listener", func(t *testing.T, w *world, p *pair) {
			d := migrate.NewClientDonor(w.node[0], client6)
			refuse(t, w, d, migrate.ErrNoListener, func(s *snapshot.Snapshot) {
				s.Conns[len(s.Conns)-1].Unaccepted = true
			})
		}},
		{"refused: no address", func(t *testing.T, w *world, p *pair) {
			d := migrate.NewDonor(p.server)
			refuse(t, w, d, migrate.ErrNoAddress, func(s *snapshot.Snapshot) {
				s.Conns[0].Local = netip.MustParseAddrPort("[fd00:77::1]:443")
			})
		}},
		{"refused: damaged", func(t *testing.T, w *world, p *pair) {
			d := migrate.NewDonor(p.server)
			snap := frozen(t, d)
			if _, err := migrate.Import(w.node[1], snap[:len(snap)-3]); !errors.Is(err, migrate.ErrFormat) {
				t.Fatal(err)
			}
			if err := d.Thaw(); err != nil {
				t.Fatal(err)
			}
		}},
		{"refused: in use", func(t *testing.T, w *world, p *pair) {
			snap := w.snapshotOf(migrate.NewDonor(p.server))
			if _, err := migrate.Import(w.node[0], snap); !errors.Is(err, migrate.ErrInUse) {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(l.name, func(t *testing.T) {
			w := newWorld(t, options{})
			p := w.pair()
			// Octets everywhere: unread, unsent and out of reach.
			w.watch.off.Store(true)
			if err := send(p.client, p.octets, 20_000); err != nil {
				t.Fatal(err)
			}
			waitUnread(t, p.server, 20_000)
			w.deaf(true)
			if err := send(p.server, p.octets, 20_000); err != nil {
				t.Fatal(err)
			}
			for range 20 { // pools, maps and slices have grown
				l.round(t, w, p)
			}
			if w.at != 0 {
				t.Fatal("not back")
			}
			before, octets := w.tally(), heap()
			for range rounds {
				l.round(t, w, p)
			}
			w.wantTally(t, before) // and what was being cleaned up does not count
			wantHeap(t, octets, rounds)
			w.deaf(false)
			if err := errors.Join(receive(p.client, p.octets, 20_000), receive(p.server, p.octets, 20_000)); err != nil {
				t.Fatal(err)
			}
			p.octets += 20_000
			w.watch.off.Store(false)
			w.watch.forget()
			p.talk(t)
			w.watch.check(t)
			w.wantFree(t, p)
		})
	}
}

func refuse(t *testing.T, w *world, d *migrate.Donor, want error, change func(*snapshot.Snapshot)) {
	t.Helper()
	s, err := snapshot.Parse(frozen(t, d))
	if err != nil {
		t.Fatal(err)
	}
	change(s)
	snap, err := snapshot.Append(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := migrate.Import(w.node[1], snap); !errors.Is(err, want) {
		t.Fatalf("got error %v: want %v", err, want)
	}
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
}

// wantFree closes a connection and checks that neither node keeps anything of
// it, so that its port and its very tuple can be used again.
func (w *world) wantFree(t testing.TB, p *pair) {
	t.Helper()
	tuple := p.server.Tuple()
	w.watch.off.Store(true)
	// Resets, to have no TIME_WAIT on either side.
	if err := errors.Join(p.client.SetLinger(0), p.client.Close()); err != nil {
		t.Fatal(err)
	}
	for i, n := range w.node {
		ns := n.Netstack()
		eventually(t, fmt.Sprintf("node %d: the end", i), func() bool { return len(n.Clients()) == 0 && len(ns.RegisteredEndpoints()) == 0 })
		eventually(t, fmt.Sprintf("node %d: the end of the clean-up", i), func() bool { return len(ns.CleanupEndpoints()) == 0 })
		eventually(t, fmt.Sprintf("node %d: none established", i), func() bool { return ns.Stats().TCP.CurrentEstablished.Value() == 0 })
		eventually(t, fmt.Sprintf("node %d: none connected", i), func() bool { return ns.Stats().TCP.CurrentConnected.Value() == 0 })
		w.wantTuple(t, i, tuple)
	}
}

// wantTuple checks that a node has not reserved a tuple, nor its port.
func (w *world) wantTuple(t testing.TB, node int, tuple stack.Tuple) {
	t.Helper()
	w.route(node)
	ns := w.node[node].Netstack()
	proto := ipv6.ProtocolNumber
	if tuple.Local.Addr().Is4() {
		proto = ipv4.ProtocolNumber
	}
	r := ports.Reservation{
		Networks: []tcpip.NetworkProtocolNumber{proto}, Transport: tcp.ProtocolNumber,
		Addr: addressOf(tuple.Local.Addr()), Port: tuple.Local.Port(),
		Dest: tcpip.FullAddress{Addr: addressOf(tuple.Remote.Addr()), Port: tuple.Remote.Port()},
	}
	eventually(t, fmt.Sprintf("node %d: %s is free", node, tuple), func() bool { return ns.ReserveTuple(r) })
	ns.ReleasePort(r)
	l, err := w.node[node].Listen("tcp", tuple.Local.String())
	if err != nil {
		t.Errorf("node %d: %v", node, err)
		return
	}
	l.Close()
}

// TestLeakClient moves hundreds of connections of one client at once, there and
// back, and closes them, twice: what the first time leaves are tables of their
// size, what the second adds is a leak.
func TestLeakClient(t *testing.T) {
	const conns = 500
	w := newWorld(t, options{})
	w.watch.off.Store(true)
	leakClient(t, w, conns)
	octets := heap()
	leakClient(t, w, conns)
	wantHeap(t, octets, conns)
}

func leakClient(t *testing.T, w *world, conns int) {
	empty := w.tally()
	l, err := w.node[0].Listen("tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	var cs []*stack.Conn
	for range conns {
		c, err := w.client.Dial("tcp", netip.AddrPortFrom(service6, 443).String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.AcceptConn(); err != nil {
			t.Fatal(err)
		}
		cs = append(cs, c)
	}
	l.Close()
	before := w.tally()
	for range 4 {
		out, err := w.moveClient(client6)
		if err != nil {
			t.Fatal(err)
		}
		if len(out) != conns {
			t.Fatalf("%d connections have moved", len(out))
		}
	}
	w.wantTally(t, before)
	for i, c := range w.node[0].ConnsOf(client6) {
		if _, err := c.Write(fmt.Appendf(nil, "%05d", i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cs {
		if _, err := c.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
			t.Fatal(err)
		}
	}
	w.wantTally(t, empty)
}
