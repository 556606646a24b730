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
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/header"
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
		for j := range uint64(4) {
			f.Add(s.snap, uint64(i)<<8+j)
		}
	}
	f.Fuzz(func(t *testing.T, snap []byte, seed uint64) { tortureSnapshot(t, snap, seed) })
}

// TestTortureSeeds is FuzzImport with nothing mutated, and more of each.
func TestTortureSeeds(t *testing.T) {
	for _, s := range fuzzSeeds(t) {
		t.Run(s.name, func(t *testing.T) {
			for seed := range uint64(20) {
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
	one := func(name string, o options, act func(w *world, c, s *stack.Conn)) {
		o.clock = faketime.NewManualClock()
		w := newWorld(tb, o)
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
	cut := func(w *world) { w.net.Unroute(prefix(client6)); w.net.Unroute(prefix(client4)) }
	mend := func(w *world) { w.net.Route(prefix(client6), w.clientP); w.net.Route(prefix(client4), w.clientP) }

	one("idle", options{}, func(w *world, c, s *stack.Conn) {})
	one("IPv4", options{service: service4}, func(w *world, c, s *stack.Conn) { must(send(c, 600, 90)) })
	one("unsent", options{}, func(w *world, c, s *stack.Conn) { cut(w); must(send(s, 600, 20<<10)) })
	one("unsent, reno", options{cc: [2]string{"reno", "reno"}}, func(w *world, c, s *stack.Conn) {
		cut(w)
		must(send(s, 600, 18<<10))
	})
	one("unread", options{}, func(w *world, c, s *stack.Conn) { must(send(c, 600, 3000)) })
	one("out of order", options{}, func(w *world, c, s *stack.Conn) {
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
	one("SACKed", options{}, func(w *world, c, s *stack.Conn) {
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
	one("recovering", options{}, func(w *world, c, s *stack.Conn) {
		cut(w)
		must(send(s, 600, 100))
		mend(w)
		for i := range int64(6) {
			must(send(s, 700+100*i, 100))
			w.settle()
			if i == 2 {
				cut(w)
				w.clock().Advance(50 * time.Millisecond)
			}
		}
	})
	one("timed out", options{}, func(w *world, c, s *stack.Conn) {
		cut(w)
		must(send(s, 600, 5000))
		w.clock().Advance(3 * time.Second)
	})
	one("zero window", options{}, func(w *world, c, s *stack.Conn) {
		must(c.SetReadBuffer(4096))
		must(s.SetWriteDeadline(time.Unix(1, 0)))
		for i := range int64(40) {
			s.Endpoint().Write(pieceOf(600+500*i, 500), tcpip.WriteOptions{})
			w.settle()
		}
		w.clock().Advance(2 * time.Second)
	})
	one("FIN_WAIT_1", options{}, func(w *world, c, s *stack.Conn) {
		cut(w)
		must(send(s, 600, 700))
		must(s.CloseWrite())
	})
	one("FIN_WAIT_2", options{}, func(w *world, c, s *stack.Conn) { must(s.CloseWrite()) })
	one("FIN_WAIT_2 orphan", options{}, func(w *world, c, s *stack.Conn) { must(s.Close()) })
	one("CLOSE_WAIT", options{}, func(w *world, c, s *stack.Conn) {
		must(send(c, 600, 200))
		must(c.CloseWrite())
	})
	one("LAST_ACK", options{}, func(w *world, c, s *stack.Conn) {
		must(c.CloseWrite())
		w.settle()
		cut(w)
		must(send(s, 600, 200))
		must(s.Close())
	})
	one("CLOSING", options{}, func(w *world, c, s *stack.Conn) {
		cut(w)
		must(s.CloseWrite())
		w.settle()
		must(c.CloseWrite())
	})
	one("TIME_WAIT", options{}, func(w *world, c, s *stack.Conn) {
		must(s.CloseWrite())
		w.settle()
		must(c.CloseWrite())
	})
	one("options", options{}, func(w *world, c, s *stack.Conn) {
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
		{"no RACK", new(tcpip.TCPRecovery)},
	} {
		w := newWorld(tb, options{clock: faketime.NewManualClock()})
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
	w := newWorld(tb, options{clock: faketime.NewManualClock()})
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
	p := peerOf(r)
	for i := range 3 {
		r.Unprocessed = append(r.Unprocessed, p.packet(p.rcvNxt+uint32(i)*50, p.una, header.TCPFlagAck|header.TCPFlagPsh, 500, nil, make([]byte, 50)))
	}
	unprocessed, err := snapshot.Append(nil, parsed)
	must(err)
	return append(seeds, fuzzSeed{"unprocessed", unprocessed})
}

// clock is the manual clock that the world was made with.
func (w *world) clock() *faketime.ManualClock {
	return w.node[0].Netstack().Clock().(interface{ Advance(time.Duration) }).(*faketime.ManualClock)
}

// settle returns when no stack has anything left to do at this instant.
func (w *world) settle() { settle(w.netstacks()...) }

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
