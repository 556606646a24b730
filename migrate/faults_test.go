package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/distributed-servers/ds/internal/lab"
	"github.com/distributed-servers/ds/migrate"
	"github.com/distributed-servers/ds/migrate/snapshot"
	"github.com/distributed-servers/ds/stack"
)

// pair is both ends of a connection, and how far they have come.
type pair struct {
	client, server *stack.Conn
	octets         int64
}

func (w *world) pair() *pair {
	w.t.Helper()
	p := new(pair)
	p.client, p.server = w.connect(w.service)
	p.talk(w.t)
	return p
}

// talk sends some octets each way and waits until all are acknowledged.
func (p *pair) talk(t testing.TB) {
	t.Helper()
	const n = 4000
	for _, c := range []*stack.Conn{p.client, p.server} {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := exchange(p.client, p.server, p.octets, n); err != nil {
		t.Fatalf("from the client: %v", err)
	}
	if err := exchange(p.server, p.client, p.octets, n); err != nil {
		t.Fatalf("from the service: %v", err)
	}
	p.octets += n
	for _, c := range []*stack.Conn{p.client, p.server} {
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		waitAcked(t, c)
	}
}

// waitAcked waits until all that was written is acknowledged.
func waitAcked(t testing.TB, c *stack.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d := migrate.NewDonor(c)
	if err := d.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
}

// extra adds a stack beside the world's nodes, reached by nobody.
func (w *world) extra(addrs ...netip.Addr) *stack.Stack {
	return w.stack(w.net.Attach("extra", 1500), stack.Config{Addrs: addrs})
}

// frozen freezes and exports a connection.
func frozen(t testing.TB, d *migrate.Donor) (snap []byte) {
	t.Helper()
	if err := d.Freeze(); err != nil {
		t.Fatal(err)
	}
	snap, err := d.Export(nil)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// wantErr checks that an error is the named one and says of what and why.
func wantErr(t testing.TB, err, want error, text ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v: want %v", err, want)
	}
	for _, s := range append(text, "migrate: ", want.Error()) {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the error %q does not name %q", err, s)
		}
	}
}

// soon fails the test, with all stacks, if f hangs.
func soon(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		b := make([]byte, 1<<20)
		t.Fatalf("%s hangs:\n%s", what, b[:runtime.Stack(b, true)])
	}
}

// TestFaultImport: what the target cannot take, it refuses by name, and the
// connection goes on at the donor.
func TestFaultImport(t *testing.T) {
	type attempt func(t *testing.T, w *world, p *pair, snap []byte)
	for _, f := range []struct {
		name string
		try  attempt
	}{
		{"truncated", func(t *testing.T, w *world, p *pair, snap []byte) {
			for _, n := range []int{0, 1, 3, 4, 5, 6, 7, 8, 11, 12, 30, len(snap) / 2, len(snap) - 1} {
				_, err := migrate.Import(w.node[1], snap[:n])
				wantErr(t, err, migrate.ErrFormat, "import snapshot")
			}
		}},
		{"mutated", func(t *testing.T, w *world, p *pair, snap []byte) {
			x := rand.New(rand.NewPCG(*flagSeed, 1))
			accepted := 0
			for i := range 400 {
				m := slices.Clone(snap)
				for range 1 + x.IntN(3) {
					m[x.IntN(len(m))] ^= byte(1 + x.IntN(255))
				}
				target, err := migrate.Import(w.node[1], m)
				if err != nil {
					if !strings.HasPrefix(err.Error(), "migrate: import ") {
						t.Errorf("seed %d, attempt %d: %v", *flagSeed, i, err)
					}
					continue
				}
				accepted++
				if err := target.Discard(); err != nil {
					t.Fatalf("seed %d, attempt %d: %v", *flagSeed, i, err)
				}
			}
			if accepted == 0 || accepted == 400 {
				t.Errorf("seed %d: %d of 400 mutants were accepted", *flagSeed, accepted)
			}
		}},
		{"oversized garbage", func(t *testing.T, w *world, p *pair, snap []byte) {
			garbage := make([]byte, 8<<20)
			x := rand.NewChaCha8([32]byte{byte(*flagSeed)})
			x.Read(garbage)
			head := slices.Concat(snap[:8], garbage)
			for _, b := range [][]byte{garbage, head, slices.Concat(snap, garbage)} {
				before := allocated()
				_, err := migrate.Import(w.node[1], b)
				wantErr(t, err, migrate.ErrFormat, "import snapshot")
				if n := allocated() - before; n > 1<<20 {
					t.Errorf("refusing it took %d octets", n)
				}
			}
		}},
		{"future version", func(t *testing.T, w *world, p *pair, snap []byte) {
			m := slices.Clone(snap)
			m[4], m[5] = 9, 9
			_, err := migrate.Import(w.node[1], m)
			wantErr(t, err, migrate.ErrVersion, "version 9", "import snapshot")
		}},
		{"address missing", func(t *testing.T, w *world, p *pair, snap []byte) {
			s := w.extra(netip.MustParseAddr("fd00:7::7"))
			defer s.Close()
			_, err := migrate.Import(s, snap)
			wantErr(t, err, migrate.ErrNoAddress, service6.String(), p.server.Tuple().String())
		}},
		{"wrong family", func(t *testing.T, w *world, p *pair, snap []byte) {
			s := w.extra(service4)
			defer s.Close()
			_, err := migrate.Import(s, snap)
			wantErr(t, err, migrate.ErrNoAddress, service6.String(), p.server.Tuple().String())
		}},
		{"no route", func(t *testing.T, w *world, p *pair, snap []byte) {
			s := w.extra(service6)
			defer s.Close()
			s.Netstack().SetRouteTable(nil)
			_, err := migrate.Import(s, snap)
			wantErr(t, err, migrate.ErrNoRoute, client6.String(), p.server.Tuple().String())
		}},
		{"target closed", func(t *testing.T, w *world, p *pair, snap []byte) {
			w.node[1].Close()
			_, err := migrate.Import(w.node[1], snap)
			wantErr(t, err, stack.ErrClosed, "import")
		}},
		{"twice", func(t *testing.T, w *world, p *pair, snap []byte) {
			first, err := migrate.Import(w.node[1], snap)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				_, err = migrate.Import(w.node[1], snap)
				wantErr(t, err, migrate.ErrBusy, p.server.Tuple().String())
			}
			if err := first.Discard(); err != nil {
				t.Fatal(err)
			}
			again, err := migrate.Import(w.node[1], snap)
			if err != nil {
				t.Fatalf("after Discard: %v", err)
			}
			if err := again.Discard(); err != nil {
				t.Fatal(err)
			}
		}},
		{"where it came from", func(t *testing.T, w *world, p *pair, snap []byte) {
			_, err := migrate.Import(w.node[0], snap)
			wantErr(t, err, migrate.ErrBusy, p.server.Tuple().String())
		}},
		{"target closed before Activate", func(t *testing.T, w *world, p *pair, snap []byte) {
			target, err := migrate.Import(w.node[1], snap)
			if err != nil {
				t.Fatal(err)
			}
			soon(t, "Close", func() { w.node[1].Close() })
			soon(t, "Activate", func() { _, err = target.Activate() })
			wantErr(t, err, stack.ErrClosed, "activate")
			wantErr(t, target.Discard(), migrate.ErrOrder, "discard")
		}},
		{"target closed before Discard", func(t *testing.T, w *world, p *pair, snap []byte) {
			target, err := migrate.Import(w.node[1], snap)
			if err != nil {
				t.Fatal(err)
			}
			soon(t, "Close", func() { w.node[1].Close() })
			soon(t, "Discard", func() { err = target.Discard() })
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"target discarded", func(t *testing.T, w *world, p *pair, snap []byte) {
			target, err := migrate.Import(w.node[1], snap)
			if err != nil {
				t.Fatal(err)
			}
			if err := target.Discard(); err != nil {
				t.Fatal(err)
			}
			_, err = target.Activate()
			wantErr(t, err, migrate.ErrOrder, "activate")
			wantErr(t, target.Discard(), migrate.ErrOrder, "discard")
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t, options{})
			p := w.pair()
			before := w.tally()
			d := migrate.NewDonor(p.server)
			snap := frozen(t, d)
			f.try(t, w, p, snap)
			if err := d.Thaw(); err != nil {
				t.Fatal(err)
			}
			p.talk(t)
			if !w.node[1].Closed() {
				w.wantTally(t, before)
				if n, err := w.move(p.server); err != nil { // it can still be moved
					t.Error(err)
				} else {
					p.server = n
					p.talk(t)
				}
			}
			w.watch.check(t)
		})
	}
}

// TestFaultInUse: the target has the four-tuple.
func TestFaultInUse(t *testing.T) {
	t.Run("moved there", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		d := migrate.NewDonor(p.server)
		snap := frozen(t, d)
		target, err := migrate.Import(w.node[1], snap)
		if err != nil {
			t.Fatal(err)
		}
		w.route(1)
		if _, err := d.Discard(nil, 0); err != nil {
			t.Fatal(err)
		}
		conns, err := target.Activate()
		if err != nil {
			t.Fatal(err)
		}
		p.server = conns[0]
		p.talk(t)
		before := w.tally()
		_, err = migrate.Import(w.node[1], snap)
		wantErr(t, err, migrate.ErrInUse, p.server.Tuple().String())
		p.talk(t)
		w.wantTally(t, before)
		w.watch.check(t)
	})
	t.Run("dialled", func(t *testing.T) {
		w := newWorld(t, options{})
		l, err := w.client.Listen("tcp", ":7")
		if err != nil {
			t.Fatal(err)
		}
		w.route(1)
		p := new(pair)
		if p.server, err = w.node[1].Dial("tcp", netip.AddrPortFrom(client6, 7).String()); err != nil {
			t.Fatal(err)
		}
		if p.client, err = l.AcceptConn(); err != nil {
			t.Fatal(err)
		}
		p.talk(t)
		snap := w.snapshotOf(migrate.NewDonor(p.server))
		before := w.tally()
		_, err = migrate.Import(w.node[1], snap)
		wantErr(t, err, migrate.ErrInUse, p.server.Tuple().String())
		p.talk(t)
		w.wantTally(t, before)
		w.watch.check(t)
	})
}

// TestFaultSmallerMTU: the target's link carries less. The connection goes on,
// in smaller segments.
func TestFaultSmallerMTU(t *testing.T) {
	const mtu = 1280
	w := newWorld(t, options{mtu: [2]int{1500, mtu}})
	p := w.pair()
	var mu sync.Mutex
	largest := map[string]int{}
	w.net.Tap(func(e lab.Event) {
		mu.Lock()
		defer mu.Unlock()
		largest[e.From] = max(largest[e.From], len(e.Packet))
	})
	w.deaf(true) // what is in flight is in large segments
	if err := send(p.server, p.octets, 20_000); err != nil {
		t.Fatal(err)
	}
	n, err := w.move(p.server)
	if err != nil {
		t.Fatal(err)
	}
	p.server = n
	w.deaf(false)
	if err := receive(p.client, p.octets, 20_000); err != nil {
		t.Fatal(err)
	}
	if err := exchange(p.server, p.client, 0, 200_000); err != nil {
		t.Fatal(err)
	}
	if err := exchange(p.client, p.server, 0, 200_000); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if largest["b"] > mtu || largest["b"] < mtu-100 {
		t.Errorf("the largest packet had %d octets: want at most %d, and not much less", largest["b"], mtu)
	}
	w.watch.check(t)
}

// TestFaultNoListener: nobody at the target would accept the connection.
func TestFaultNoListener(t *testing.T) {
	w := newWorld(t, options{})
	l, err := w.node[0].Listen("tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	p := new(pair)
	if p.client, err = w.client.Dial("tcp", netip.AddrPortFrom(service6, 443).String()); err != nil {
		t.Fatal(err)
	}
	d := migrate.NewClientDonor(w.node[0], client6)
	eventually(t, "the end of the handshake", func() bool {
		if err = d.Freeze(); err != nil && !errors.Is(err, migrate.ErrHandshake) && !errors.Is(err, migrate.ErrEnded) {
			t.Fatal(err)
		}
		return err == nil
	})
	tuple := d.Conns()[0].Tuple().String()
	snap, err := d.Export(nil)
	if err != nil {
		t.Fatal(err)
	}
	before := w.tally()
	_, err = migrate.Import(w.node[1], snap)
	wantErr(t, err, migrate.ErrNoListener, tuple)
	w.wantTally(t, before)
	if _, err := w.node[1].Listen("tcp", ":80"); err != nil { // one at another port does not help
		t.Fatal(err)
	}
	_, err = migrate.Import(w.node[1], snap)
	wantErr(t, err, migrate.ErrNoListener, tuple)

	// One that closes before Activate resets the connection, as it would have
	// without a move: do not. The donor goes on instead.
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
	if p.server, err = l.AcceptConn(); err != nil {
		t.Fatal(err)
	}
	p.talk(t)
	w.watch.check(t)
}

// TestFaultDonorClosed: the donor's stack is closed while connections are
// frozen. They belong to the donor, which gets rid of them.
func TestFaultDonorClosed(t *testing.T) {
	for _, name := range []string{"Thaw", "Discard"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{})
			p := w.pair()
			d := migrate.NewDonor(p.server)
			snap := frozen(t, d)
			read := make(chan error, 1)
			go func() {
				_, err := p.server.Read(make([]byte, 1))
				read <- err
			}()
			soon(t, "Close", func() { w.node[0].Close() })
			if name == "Thaw" {
				soon(t, "Thaw", func() { d.Thaw() }) // an error or none: there is nothing to save
			} else {
				target, err := migrate.Import(w.node[1], snap)
				if err != nil {
					t.Fatal(err)
				}
				w.route(1)
				var late [][]byte
				soon(t, "Discard", func() { late, err = d.Discard(w.node[1].Inject, time.Minute) })
				if err != nil {
					t.Fatal(err)
				}
				conns, err := target.Activate(late...)
				if err != nil {
					t.Fatal(err)
				}
				pp := &pair{p.client, conns[0], p.octets}
				pp.talk(t)
				w.watch.check(t)
			}
			soon(t, "the waiting Read", func() {
				if err := <-read; err == nil || err == io.EOF {
					t.Errorf("the read ended with %v", err)
				}
			})
		})
	}
}

// TestFaultOrder calls the methods of a donor in every order, up to three of
// them, and compares with a model of which ones are allowed.
func TestFaultOrder(t *testing.T) {
	type model struct {
		state   string
		drained bool
	}
	type method struct {
		name string
		call func(d *migrate.Donor) error
		// next gives the state after it, or false.
		next func(m model) (model, bool)
	}
	in := func(m model, states ...string) bool { return slices.Contains(states, m.state) }
	methods := []method{
		{"drain", func(d *migrate.Donor) error { return d.Drain(context.Background()) },
			func(m model) (model, bool) { return model{m.state, true}, in(m, "not frozen") }},
		{"freeze", (*migrate.Donor).Freeze,
			func(m model) (model, bool) { return model{"frozen", m.drained}, in(m, "not frozen") }},
		{"export", func(d *migrate.Donor) error { _, err := d.Export(nil); return err },
			func(m model) (model, bool) { return model{"exported", m.drained}, in(m, "frozen", "exported") }},
		{"thaw", (*migrate.Donor).Thaw,
			func(m model) (model, bool) {
				return model{"not frozen", false}, in(m, "frozen", "exported") || in(m, "not frozen") && m.drained
			}},
		{"copy", func(d *migrate.Donor) error { return d.Copy(func([]byte) bool { return true }) },
			func(m model) (model, bool) { return m, in(m, "exported") }},
		{"discard", func(d *migrate.Donor) error { _, err := d.Discard(nil, 0); return err },
			func(m model) (model, bool) { return model{"done", false}, in(m, "exported") }},
	}
	w := newWorld(t, options{})
	for _, client := range []bool{false, true} {
		var p *pair
		for i := range 7 * 7 * 7 {
			var seq []method
			for _, j := range []int{i % 7, i / 7 % 7, i / 49} {
				if j < len(methods) {
					seq = append(seq, methods[j])
				}
			}
			if p == nil {
				p = w.pair()
			}
			d := migrate.NewDonor(p.server)
			name := p.server.Tuple().String()
			if client {
				d = migrate.NewClientDonor(w.node[0], client6)
				name = client6.String()
			}
			m := model{state: "not frozen"}
			path := ""
			for _, x := range seq {
				path += " " + x.name
				next, allowed := x.next(m)
				err := x.call(d)
				if allowed {
					if err != nil {
						t.Fatalf("%s: %v", path, err)
					}
					m = next
					continue
				}
				if err == nil {
					t.Fatalf("%s: was allowed", path)
				}
				wantErr(t, err, migrate.ErrOrder, x.name, name, m.state)
			}
			if m.state == "done" {
				// Gone without successor: the client's end is of no use any more.
				w.watch.off.Store(true)
				if err := errors.Join(p.client.SetLinger(0), p.client.Close()); err != nil {
					t.Fatal(err)
				}
				w.watch.off.Store(false)
				p = nil
				continue
			}
			if m.state != "not frozen" || m.drained {
				if err := d.Thaw(); err != nil {
					t.Fatalf("%s: %v", path, err)
				}
			}
			if i%7 == 0 {
				p.talk(t)
			}
		}
		if p != nil {
			p.talk(t)
			w.watch.off.Store(true)
			if err := errors.Join(p.server.SetLinger(0), p.server.Close()); err != nil {
				t.Fatal(err)
			}
			w.watch.off.Store(false)
		}
	}
	w.watch.check(t)
}

// TestFaultFreeze: connections that cannot be frozen are left alone.
func TestFaultFreeze(t *testing.T) {
	t.Run("ended", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		if err := p.client.Close(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, p.server)
		if err := p.server.Close(); err != nil {
			t.Fatal(err)
		}
		waitState(t, p.server, tcp.StateClose)
		wantErr(t, migrate.NewDonor(p.server).Freeze(), migrate.ErrEnded, p.server.Tuple().String())
		wantErr(t, migrate.NewClientDonor(w.node[0], client6).Freeze(), migrate.ErrEnded, client6.String())
		p = w.pair()
		p.talk(t)
		w.watch.check(t)
	})
	t.Run("reset by the client", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		w.watch.off.Store(true)
		if err := errors.Join(p.client.SetLinger(0), p.client.Close()); err != nil {
			t.Fatal(err)
		}
		waitState(t, p.server, tcp.StateError)
		wantErr(t, migrate.NewDonor(p.server).Freeze(), migrate.ErrEnded, p.server.Tuple().String())
		wantErr(t, migrate.NewClientDonor(w.node[0], client6).Freeze(), migrate.ErrEnded, client6.String())
	})
	t.Run("unknown client", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		wantErr(t, migrate.NewClientDonor(w.node[0], client4).Freeze(), migrate.ErrEnded, client4.String())
		wantErr(t, migrate.NewClientDonor(w.node[1], client6).Freeze(), migrate.ErrEnded, client6.String())
		p.talk(t)
		w.watch.check(t)
	})
	t.Run("same stack", func(t *testing.T) {
		w := newWorld(t, options{})
		l, err := w.node[0].Listen("tcp", "[fd00:2::1]:443")
		if err != nil {
			t.Fatal(err)
		}
		p := new(pair)
		if p.client, err = w.node[0].Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if p.server, err = l.AcceptConn(); err != nil {
			t.Fatal(err)
		}
		p.talk(t)
		before := w.tally()
		wantErr(t, migrate.NewDonor(p.server).Freeze(), migrate.ErrLocal, p.server.Tuple().String())
		wantErr(t, migrate.NewDonor(p.client).Freeze(), migrate.ErrLocal, p.client.Tuple().String())
		wantErr(t, migrate.NewClientDonor(w.node[0], service6).Freeze(), migrate.ErrLocal, service6.String())
		p.talk(t)
		w.wantTally(t, before)
		w.watch.check(t)
	})
	t.Run("handshake", func(t *testing.T) {
		clock := faketime.NewManualClock()
		w := newWorld(t, options{clock: clock})
		l, err := w.client.Listen("tcp", ":7")
		if err != nil {
			t.Fatal(err)
		}
		w.deaf(true)
		p := new(pair)
		dialled := make(chan error)
		go func() {
			var err error
			p.server, err = w.node[0].Dial("tcp", netip.AddrPortFrom(client6, 7).String())
			dialled <- err
		}()
		var dialling []*stack.Conn
		eventually(t, "SYN_SENT", func() bool {
			dialling = w.node[0].ConnsOf(client6)
			return len(dialling) == 1
		})
		c := dialling[0]
		wantErr(t, migrate.NewDonor(c).Freeze(), migrate.ErrHandshake, c.Tuple().String())
		wantErr(t, migrate.NewClientDonor(w.node[0], client6).Freeze(), migrate.ErrHandshake, c.Tuple().String())
		w.deaf(false)
		clock.Advance(2 * time.Second)
		if err := <-dialled; err != nil {
			t.Fatal(err)
		}
		if p.client, err = l.AcceptConn(); err != nil {
			t.Fatal(err)
		}
		p.talk(t)
		w.watch.check(t)
	})
	t.Run("dialled during the freeze", func(t *testing.T) {
		w := newWorld(t, options{})
		p, q := w.pair(), new(pair)
		l, err := w.client.Listen("tcp", ":7")
		if err != nil {
			t.Fatal(err)
		}
		dialled := make(chan error)
		undo := migrate.SetStopped(func() {
			go func() {
				var err error
				q.server, err = w.node[0].Dial("tcp", netip.AddrPortFrom(client6, 7).String())
				dialled <- err
			}()
			eventually(t, "SYN_SENT", func() bool {
				return slices.ContainsFunc(w.node[0].ConnsOf(client6), func(c *stack.Conn) bool {
					return c.Endpoint().EndpointState() == tcp.StateSynSent
				})
			})
		})
		defer undo()
		wantErr(t, migrate.NewClientDonor(w.node[0], client6).Freeze(), migrate.ErrHandshake, client6.String())
		if err := <-dialled; err != nil {
			t.Fatal(err)
		}
		if q.client, err = l.AcceptConn(); err != nil {
			t.Fatal(err)
		}
		p.talk(t)
		q.talk(t)
		w.watch.check(t)
	})
	t.Run("busy", func(t *testing.T) {
		w := newWorld(t, options{})
		p, q := w.pair(), w.pair()
		one, other, all := migrate.NewDonor(p.server), migrate.NewDonor(q.server), migrate.NewClientDonor(w.node[0], client6)
		if err := one.Freeze(); err != nil {
			t.Fatal(err)
		}
		wantErr(t, migrate.NewDonor(p.server).Freeze(), migrate.ErrBusy, p.server.Tuple().String())
		wantErr(t, all.Freeze(), migrate.ErrBusy, p.server.Tuple().String())
		if err := other.Freeze(); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(one.Thaw(), other.Thaw(), all.Freeze()); err != nil {
			t.Fatal(err)
		}
		wantErr(t, one.Freeze(), migrate.ErrBusy, client6.String())
		if err := all.Thaw(); err != nil {
			t.Fatal(err)
		}
		p.talk(t)
		q.talk(t)
		w.watch.check(t)
	})
}

// TestFaultRace: of donors that freeze the same connection at the same time,
// exactly one does.
func TestFaultRace(t *testing.T) {
	for _, r := range []struct {
		name   string
		donors func(w *world, c *stack.Conn) []*migrate.Donor
	}{
		{"one connection", func(w *world, c *stack.Conn) []*migrate.Donor {
			return []*migrate.Donor{migrate.NewDonor(c), migrate.NewDonor(c), migrate.NewDonor(c)}
		}},
		{"the client and one of its connections", func(w *world, c *stack.Conn) []*migrate.Donor {
			return []*migrate.Donor{migrate.NewDonor(c), migrate.NewClientDonor(w.node[0], client6)}
		}},
		{"the client", func(w *world, c *stack.Conn) []*migrate.Donor {
			return []*migrate.Donor{migrate.NewClientDonor(w.node[0], client6), migrate.NewClientDonor(w.node[0], client6)}
		}},
	} {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(t, options{})
			p, q := w.pair(), w.pair()
			before := w.tally()
			for range 300 {
				donors := r.donors(w, p.server)
				errs := make([]error, len(donors))
				var start, done sync.WaitGroup
				start.Add(1)
				for i, d := range donors {
					done.Go(func() {
						start.Wait()
						errs[i] = d.Freeze()
					})
				}
				start.Done()
				done.Wait()
				won := 0
				for i, err := range errs {
					if err == nil {
						won++
						if err := donors[i].Thaw(); err != nil {
							t.Fatal(err)
						}
						continue
					}
					wantErr(t, err, migrate.ErrBusy, client6.String())
				}
				if won != 1 {
					t.Fatalf("%d donors have frozen it: %v", won, errs)
				}
			}
			p.talk(t)
			q.talk(t)
			w.wantTally(t, before)
			w.watch.check(t)
		})
	}
}

// TestFaultStraggler: a connection has moved away, and its packets still come
// here and are forwarded. Nothing that fails here for it may end that: netstack
// would answer with a reset.
func TestFaultStraggler(t *testing.T) {
	for _, f := range []struct {
		name string
		try  func(t *testing.T, w *world, old *stack.Conn, snap []byte)
	}{
		{"nothing", func(t *testing.T, w *world, old *stack.Conn, snap []byte) {}},
		{"freeze of the moved connection", func(t *testing.T, w *world, old *stack.Conn, snap []byte) {
			wantErr(t, migrate.NewDonor(old).Freeze(), migrate.ErrMoved, old.Tuple().String())
		}},
		{"freeze of its client", func(t *testing.T, w *world, old *stack.Conn, snap []byte) {
			wantErr(t, migrate.NewClientDonor(w.node[0], client6).Freeze(), migrate.ErrEnded, client6.String())
		}},
		{"drain of the moved connection", func(t *testing.T, w *world, old *stack.Conn, snap []byte) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			migrate.NewDonor(old).Drain(ctx) // whatever it says
		}},
		{"return discarded", func(t *testing.T, w *world, old *stack.Conn, snap []byte) {
			target, err := migrate.Import(w.node[0], snap)
			if err != nil {
				t.Fatal(err)
			}
			if err := target.Discard(); err != nil {
				t.Fatal(err)
			}
		}},
		{"return refused", func(t *testing.T, w *world, old *stack.Conn, snap []byte) {
			s, err := snapshot.Parse(snap)
			if err != nil {
				t.Fatal(err)
			}
			s.Conns[0].Unaccepted = true
			if snap, err = snapshot.Append(nil, s); err != nil {
				t.Fatal(err)
			}
			_, err = migrate.Import(w.node[0], snap)
			wantErr(t, err, migrate.ErrNoListener, old.Tuple().String())
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			w := newWorld(t, options{})
			p := w.pair()
			old := p.server
			n, err := w.move(p.server)
			if err != nil {
				t.Fatal(err)
			}
			p.server = n
			w.route(0) // the network has not heard: everything still goes to the old node
			p.talk(t)
			snap := w.snapshotOf(migrate.NewDonor(p.server))
			f.try(t, w, old, snap)
			if err := p.client.SetWriteDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if err := send(p.client, p.octets, 1000); err != nil {
				t.Fatal(err)
			}
			if err := p.server.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if err := receive(p.server, p.octets, 1000); err != nil {
				t.Errorf("the straggler was not forwarded: %v", err)
			}
			w.watch.check(t)
		})
	}
}

// appCalls are what an application may be doing; all can block.
var appCalls = []struct {
	name string
	call func(c *stack.Conn) error
	read bool // it waits for octets that do not come
}{
	{"Read", func(c *stack.Conn) error { _, err := c.Read(make([]byte, 1)); return err }, true},
	{"Write", func(c *stack.Conn) error { _, err := c.Write([]byte{1}); return err }, false},
	{"CloseWrite", (*stack.Conn).CloseWrite, false},
	{"CloseRead", (*stack.Conn).CloseRead, false},
	{"SetNoDelay", func(c *stack.Conn) error { return c.SetNoDelay(true) }, false},
	{"SetKeepAlive", func(c *stack.Conn) error { return c.SetKeepAlive(true) }, false},
	{"SetKeepAlivePeriod", func(c *stack.Conn) error { return c.SetKeepAlivePeriod(time.Minute) }, false},
	{"SetUserTimeout", func(c *stack.Conn) error { return c.SetUserTimeout(time.Minute) }, false},
	{"SetLinger", func(c *stack.Conn) error { return c.SetLinger(-1) }, false},
	{"SetReadBuffer", func(c *stack.Conn) error { return c.SetReadBuffer(1 << 20) }, false},
	{"SetWriteBuffer", func(c *stack.Conn) error { return c.SetWriteBuffer(1 << 20) }, false},
}

// TestFaultApplication: calls on a connection in every stage of its move.
func TestFaultApplication(t *testing.T) {
	for _, a := range appCalls {
		t.Run(a.name, func(t *testing.T) {
			for _, stage := range []string{"frozen", "exported"} {
				t.Run(stage, func(t *testing.T) {
					w := newWorld(t, options{})
					p := w.pair()
					d := migrate.NewDonor(p.server)
					stop := func() {
						t.Helper()
						err := d.Freeze()
						if err == nil && stage == "exported" {
							_, err = d.Export(nil)
						}
						if err != nil {
							t.Fatal(err)
						}
					}
					begin := func() chan error {
						errs := make(chan error, 1)
						go func() { errs <- a.call(p.server) }()
						return errs
					}
					wait := func(what string, errs chan error) (err error) {
						t.Helper()
						soon(t, what, func() { err = <-errs })
						return err
					}

					// A deadline ends the wait, one that comes later and one that
					// has passed already; setting it does not wait.
					stop()
					errs := begin()
					for range 100 {
						runtime.Gosched()
					}
					if err := p.server.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
						t.Fatal(err)
					}
					if err := wait("a call with a deadline", errs); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("with a deadline: %v", err)
					}
					if err := wait("a call behind its deadline", begin()); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("behind the deadline: %v", err)
					}
					if err := errors.Join(p.server.SetReadDeadline(time.Time{}), p.server.SetWriteDeadline(time.Time{})); err != nil {
						t.Fatal(err)
					}

					// Thaw ends the wait.
					errs = begin()
					for range 100 {
						runtime.Gosched()
					}
					select {
					case err := <-errs:
						t.Fatalf("did not wait for Thaw: %v", err)
					default:
					}
					if err := d.Thaw(); err != nil {
						t.Fatal(err)
					}
					if a.read {
						if _, err := p.client.Write([]byte{7}); err != nil {
							t.Fatal(err)
						}
					}
					if err := wait("a call after Thaw", errs); err != nil {
						t.Fatalf("after Thaw: %v", err)
					}
					w.watch.check(t)

					// Discard ends the wait, for good.
					w = newWorld(t, options{})
					p = w.pair()
					d = migrate.NewDonor(p.server)
					before := begin // one from before the freeze, if it blocks at all
					var early chan error
					if a.read {
						early = before()
					}
					stop()
					errs = begin()
					for range 100 {
						runtime.Gosched()
					}
					snap, err := d.Export(nil)
					if err != nil {
						t.Fatal(err)
					}
					target, err := migrate.Import(w.node[1], snap)
					if err != nil {
						t.Fatal(err)
					}
					w.route(1)
					late, err := d.Discard(w.node[1].Inject, time.Minute)
					if err != nil {
						t.Fatal(err)
					}
					results := []error{wait("a call after Discard", errs), wait("a later call", begin())}
					if early != nil {
						results = append(results, wait("a call from before Freeze", early))
					}
					results = append(results, p.server.Close(), p.server.SetDeadline(time.Time{}), p.server.SetReadDeadline(time.Time{}), p.server.SetWriteDeadline(time.Now()))
					for i, err := range results {
						var op *net.OpError
						if !errors.Is(err, migrate.ErrMoved) || !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) {
							t.Errorf("result %d after Discard: %v", i, err)
						}
					}
					conns, err := target.Activate(late...)
					if err != nil {
						t.Fatal(err)
					}
					p.server = conns[0]
					p.talk(t)
					w.watch.check(t)
				})
			}
		})
	}
}

// TestFaultClose: the application closes while the connection is frozen.
func TestFaultClose(t *testing.T) {
	closed := func(t *testing.T, p *pair) {
		t.Helper()
		if err := p.server.Close(); err != nil {
			t.Fatal(err)
		}
		_, rerr := p.server.Read(make([]byte, 1))
		_, werr := p.server.Write([]byte{1})
		for _, err := range []error{rerr, werr, p.server.Close(), p.server.CloseWrite(), p.server.SetDeadline(time.Time{})} {
			if !errors.Is(err, net.ErrClosed) || errors.Is(err, migrate.ErrMoved) {
				t.Errorf("after Close: %v", err)
			}
		}
	}
	t.Run("Thaw", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		d := migrate.NewDonor(p.server)
		frozen(t, d)
		read := make(chan error, 1)
		go func() {
			_, err := p.server.Read(make([]byte, 1))
			read <- err
		}()
		closed(t, p)
		soon(t, "the waiting Read", func() {
			if err := <-read; !errors.Is(err, net.ErrClosed) {
				t.Errorf("the waiting Read: %v", err)
			}
		})
		if err := d.Thaw(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, p.client)
		if err := p.client.Close(); err != nil {
			t.Fatal(err)
		}
		waitState(t, p.server, tcp.StateTimeWait)
		w.watch.check(t)
	})
	t.Run("Discard", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		d := migrate.NewDonor(p.server)
		snap := frozen(t, d)
		closed(t, p)
		target, err := migrate.Import(w.node[1], snap)
		if err != nil {
			t.Fatal(err)
		}
		w.route(1)
		late, err := d.Discard(w.node[1].Inject, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		conns, err := target.Activate(late...)
		if err != nil {
			t.Fatal(err)
		}
		p.server = conns[0]
		p.talk(t)
		w.watch.check(t)
	})
	t.Run("before Freeze", func(t *testing.T) { // with octets left to send
		w := newWorld(t, options{})
		p := w.pair()
		w.deaf(true)
		if err := errors.Join(send(p.server, p.octets, 3000), p.server.Close()); err != nil {
			t.Fatal(err)
		}
		d := migrate.NewClientDonor(w.node[0], client6)
		frozen(t, d)
		w.deaf(false)
		if err := d.Thaw(); err != nil {
			t.Fatal(err)
		}
		if err := receive(p.client, p.octets, 3000); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, p.client)
		w.watch.check(t)
	})
}

// TestFaultDrain: waiting for acknowledgements, and what can come between.
func TestFaultDrain(t *testing.T) {
	const size = 3 << 20
	t.Run("acknowledged", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		errs := make(chan error, 2)
		go func() { errs <- send(p.server, 0, size) }()
		if err := receive(p.client, 0, 1000); err != nil {
			t.Fatal(err)
		}
		// The application goes on writing until Drain stops it.
		d := migrate.NewDonor(p.server)
		drained := make(chan error, 1)
		go func() { drained <- d.Drain(context.Background()) }()
		received := make(chan error, 1)
		go func() { received <- receive(p.client, 1000, size-1000) }()
		if err := <-drained; err != nil {
			t.Fatal(err)
		}
		snap := frozen(t, d)
		s, err := snapshot.Parse(snap)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(s.Conns[0].Send.Queue); n != 0 {
			t.Errorf("%d segments are left to send", n)
		}
		if err := d.Thaw(); err != nil { // and writes go on
			t.Fatal(err)
		}
		if err := errors.Join(<-errs, <-received); err != nil {
			t.Fatal(err)
		}
		p.talk(t)
		w.watch.check(t)
	})
	t.Run("given up", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		w.deaf(true)
		if err := send(p.server, 0, 1000); err != nil {
			t.Fatal(err)
		}
		d := migrate.NewDonor(p.server)
		for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			if want == context.Canceled {
				cancel()
				ctx, cancel = context.WithCancel(context.Background())
				cancel()
			}
			wantErr(t, d.Drain(ctx), want, "drain", p.server.Tuple().String())
			cancel()
		}
		w.deaf(false)
		if err := errors.Join(send(p.server, 1000, 1000), receive(p.client, 0, 2000)); err != nil {
			t.Fatal(err)
		}
		p.talk(t)
		w.watch.check(t)
	})
	t.Run("reset by the client", func(t *testing.T) {
		w := newWorld(t, options{})
		p := w.pair()
		w.watch.off.Store(true)
		errs := make(chan error, 1)
		go func() { errs <- send(p.server, 0, size) }()
		if err := receive(p.client, 0, 1000); err != nil {
			t.Fatal(err)
		}
		d := migrate.NewDonor(p.server)
		drained := make(chan error, 1)
		go func() { drained <- d.Drain(context.Background()) }()
		if err := errors.Join(p.client.SetLinger(0), p.client.Close()); err != nil {
			t.Fatal(err)
		}
		soon(t, "Drain", func() { <-drained }) // with or without an error: it has ended
		waitState(t, p.server, tcp.StateError) // the reset may come after the last acknowledgement
		wantErr(t, d.Freeze(), migrate.ErrEnded, p.server.Tuple().String())
		d.Thaw() // writes go on, and fail
		soon(t, "the writer", func() {
			if err := <-errs; err == nil {
				t.Error("the writer has succeeded")
			}
		})
	})
	t.Run("client", func(t *testing.T) {
		w := newWorld(t, options{})
		var ps []*pair
		for range 8 {
			ps = append(ps, w.pair())
		}
		w.deaf(true)
		for _, p := range ps {
			if err := send(p.server, p.octets, 5000); err != nil {
				t.Fatal(err)
			}
		}
		d := migrate.NewClientDonor(w.node[0], client6)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		wantErr(t, d.Drain(ctx), context.Canceled, client6.String())
		w.deaf(false)
		if err := d.Drain(context.Background()); err != nil {
			t.Fatal(err)
		}
		conns, err := w.moveDonor(d)
		if err != nil {
			t.Fatal(err)
		}
		if len(conns) != len(ps) {
			t.Fatalf("%d connections have moved: want %d", len(conns), len(ps))
		}
		moved := map[netip.AddrPort]*stack.Conn{}
		for _, c := range conns {
			moved[c.Tuple().Remote] = c
		}
		for _, p := range ps {
			if _, err := p.server.Write([]byte{1}); !errors.Is(err, migrate.ErrMoved) {
				t.Errorf("write after the move: %v", err)
			}
			if p.server = moved[p.server.Tuple().Remote]; p.server == nil {
				t.Fatal("a connection is missing")
			}
			if err := receive(p.client, p.octets, 5000); err != nil {
				t.Fatal(err)
			}
			p.talk(t)
		}
		w.watch.check(t)
	})
}

// TestFaultLongFreeze: while connections are frozen for minutes, none of their
// timers fires, and no goroutine waits for their locks.
func TestFaultLongFreeze(t *testing.T) {
	clock := faketime.NewManualClock()
	w := newWorld(t, options{clock: clock})
	var ps []*pair
	for range 20 {
		ps = append(ps, w.pair())
	}
	// Timers of each kind: retransmission and probe, keepalive, user timeout,
	// the peer's window closed, FIN_WAIT_2 of an orphan, TIME_WAIT.
	for i, p := range ps {
		var err error
		switch i % 4 {
		case 0, 1:
			err = p.server.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2})
		case 2:
			err = p.server.Close()
		case 3:
			if err = p.server.CloseWrite(); err == nil {
				wantEnd(t, p.client)
				err = p.client.CloseWrite()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range ps {
		switch i % 4 {
		case 2:
			waitState(t, p.server, tcp.StateFinWait2)
		case 3:
			waitState(t, p.server, tcp.StateTimeWait)
			waitState(t, p.client, tcp.StateClose)
		}
	}
	clock.Advance(10 * time.Millisecond) // past what is late from the handshakes
	w.deaf(true)
	for i, p := range ps {
		if i%4 == 0 {
			if err := send(p.server, p.octets, 5000); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := w.tally()
	sent := w.watch.count()
	d := migrate.NewClientDonor(w.node[0], client6)
	snap := frozen(t, d)
	if n := len(d.Conns()); n != len(ps) {
		t.Fatalf("%d connections are frozen: want %d", n, len(ps))
	}
	goroutines := runtime.NumGoroutine()
	for range 60 {
		soon(t, "the clock", func() { clock.Advance(10 * time.Second) })
		if n := runtime.NumGoroutine(); n > goroutines {
			eventually(t, fmt.Sprintf("%d goroutines instead of %d", n, goroutines), func() bool { return runtime.NumGoroutine() <= goroutines })
		}
	}
	if n := w.watch.count(); n != sent {
		t.Errorf("%d packets were sent meanwhile", n-sent)
	}
	again, err := d.Export(nil)
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != string(snap) {
		t.Error("the snapshot changes while time passes")
	}
	w.deaf(false)
	if err := d.Thaw(); err != nil {
		t.Fatal(err)
	}
	clock.Advance(time.Second) // retransmissions
	for i, p := range ps {
		switch i % 4 {
		case 0:
			if err := receive(p.client, p.octets, 5000); err != nil {
				t.Fatal(err)
			}
			fallthrough
		case 1:
			p.talk(t)
		case 2:
			if s := p.server.Endpoint().EndpointState(); s != tcp.StateFinWait2 {
				t.Errorf("FIN_WAIT_2 has become %v", s)
			}
		case 3:
			if s := p.server.Endpoint().EndpointState(); s != tcp.StateTimeWait {
				t.Errorf("TIME_WAIT has become %v", s)
			}
		}
	}
	w.wantTally(t, before)
	w.watch.mu.Lock()
	defer w.watch.mu.Unlock()
	if n := len(w.watch.resets); n != 0 {
		t.Errorf("%d resets", n)
	}
}
