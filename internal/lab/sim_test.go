package lab_test

import (
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/distributed-servers/ds/internal/lab"
)

// echoWorld is a client that sends size octets each on several connections at
// once, over a bad path with two routers, to a server that sends them back.
//
//	client ── west ══ 10 ms, 1 MB/s, loss ══ east ── server
type echoWorld struct {
	*lab.Sim
	west, east     *lab.Net
	client, server *lab.Host
	done           int
	errors         []error
}

func newEchoWorld(t testing.TB, seed uint64, conns, size int) *echoWorld {
	t.Helper()
	w := &echoWorld{Sim: lab.NewSim(seed)}
	w.west, w.east = w.NewNet("west"), w.NewNet("east")
	onWest, onEast := lab.Join(w.west, w.east, "link", 1400)
	w.west.Route(any6, onWest)
	w.east.Route(any6, onEast)
	bad := lab.Impair{Loss: .02, Duplicate: .02, Reorder: .03, Delay: 10 * time.Millisecond, Jitter: time.Millisecond, Bandwidth: 1e6}
	onWest.SetImpair(lab.Impair{}, bad)
	onEast.SetImpair(lab.Impair{}, bad)
	w.client = addStack(t, w.Sim, "client", w.west, client)
	w.server = addStack(t, w.Sim, "server", w.east, service)

	listener, err := tcpOf(w.server).Listen("tcp", "[fd00:5::1]:7")
	if err != nil {
		t.Fatal(err)
	}
	w.server.Go("accept", func(p *lab.Proc) {
		for id := 0; ; id++ {
			e := accept(p, listener)
			w.server.Go(fmt.Sprint("echo ", id), func(p *lab.Proc) {
				s := p.Stream(e)
				b := make([]byte, 2000)
				for {
					n, err := s.Read(b)
					if err == io.EOF {
						break
					}
					if err == nil {
						_, err = s.Write(b[:n])
					}
					if err != nil {
						w.fail(err)
						break
					}
				}
				e.Close()
			})
		}
	})
	for id := range conns {
		w.client.Go(fmt.Sprint("client ", id), func(p *lab.Proc) {
			p.Sleep(time.Duration(id) * time.Millisecond)
			e, err := tcpOf(w.client).TryDial("tcp", "[fd00:5::1]:7")
			if err != nil {
				w.fail(err)
				return
			}
			p.Wait(func() bool { return connected(e) })
			writer := w.client.Go("writer", func(p *lab.Proc) {
				if err := put(p.Stream(e), id, size); err != nil {
					w.fail(err)
				}
				if err := e.CloseWrite(); err != nil {
					w.fail(err)
				}
			})
			if err := get(p.Stream(e), id, size); err != nil {
				w.fail(err)
			}
			p.Wait(writer.Done)
			e.Close()
			w.done++
		})
	}
	return w
}

func (w *echoWorld) fail(err error) { w.errors = append(w.errors, fmt.Errorf("%v: %w", w.Now(), err)) }

type outcome struct {
	hash, events uint64
	took         time.Duration
}

func runEcho(t testing.TB, seed uint64, conns, size int, tap func(lab.Event)) outcome {
	t.Helper()
	w := newEchoWorld(t, seed, conns, size)
	defer w.Close()
	if tap != nil {
		w.Tap(tap)
	}
	ended := w.RunUntil(10*time.Minute, func() bool { return w.done == conns })
	took := w.Now()
	w.Run(2 * time.Minute) // TIME_WAIT
	for _, err := range w.errors {
		t.Errorf("seed %d: %v", seed, err)
	}
	if !ended {
		t.Errorf("seed %d: %d of %d connections have ended", seed, w.done, conns)
	}
	return outcome{w.Hash(), w.Events(), took}
}

// The same seed gives the same run, octet for octet and nanosecond for
// nanosecond, however many processors there are.
func TestSameSeedSameRun(t *testing.T) {
	const conns, size = 4, 20000
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	seen := make(map[uint64]uint64)
	for seed := uint64(1); seed <= 4; seed++ {
		var first outcome
		var events []lab.Event
		for i, procs := range []int{1, 2, 5} {
			runtime.GOMAXPROCS(procs)
			var all []lab.Event
			got := runEcho(t, seed, conns, size, func(e lab.Event) { all = append(all, e) })
			if i == 0 {
				first, events = got, all
				t.Logf("seed %d: %x, %d events, %v", seed, got.hash, got.events, got.took)
				continue
			}
			if got != first {
				t.Errorf("seed %d, %d processors: %+v, want %+v", seed, procs, got, first)
				difference(t, events, all)
			}
		}
		if other, ok := seen[first.hash]; ok {
			t.Errorf("seeds %d and %d give the same run", seed, other)
		}
		seen[first.hash] = seed
	}
}

// Worlds do not know of one another: they run side by side.
func TestSideBySide(t *testing.T) {
	var got [4]outcome
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = runEcho(t, uint64(1+i%2), 2, 10000, nil) })
	}
	wg.Wait()
	if got[0] != got[2] || got[1] != got[3] || got[0] == got[1] {
		t.Errorf("got %+v", got)
	}
}

// An hour in which little happens is nothing.
func TestLongTime(t *testing.T) {
	w := newEchoWorld(t, 1, 1, 100)
	defer w.Close()
	w.client.Go("keepalive", func(p *lab.Proc) {
		e, err := tcpOf(w.client).TryDial("tcp", "[fd00:5::1]:7")
		if err != nil {
			t.Error(err)
			return
		}
		p.Wait(func() bool { return connected(e) })
		if err := e.SetKeepAlivePeriod(10 * time.Second); err != nil {
			t.Error(err)
		}
	})
	start := time.Now()
	w.Run(10_000 * time.Second)
	t.Logf("10000 s in %v, %d events", time.Since(start), w.Events())
	if w.Now() != 10_000*time.Second || w.Events() < 4*900 {
		t.Errorf("%v and %d events", w.Now(), w.Events())
	}
}

// difference shows where two runs part.
func difference(t testing.TB, a, b []lab.Event) {
	t.Helper()
	for i := range min(len(a), len(b)) {
		if a[i].String() != b[i].String() || string(a[i].Packet) != string(b[i].Packet) {
			for j := max(i-3, 0); j < min(i+3, len(a), len(b)); j++ {
				t.Logf("%d: %v | %v", j, a[j], b[j])
				t.Logf("%x\n%x", a[j].Packet[:min(100, len(a[j].Packet))], b[j].Packet[:min(100, len(b[j].Packet))])
			}
			return
		}
	}
	t.Logf("one ends at event %d, the other at %d", len(a), len(b))
}
