package ds_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

var (
	soakHandoffs = flag.Int("soak.handoffs", 0, "how many handoffs TestSoak begins; 0: 3000, or 260 with the race detector, or 200 with -short")
	soakSeed     = flag.Uint64("soak.seed", 0, "the seed of TestSoak; 0: 1")
)

// soak is a run with much going wrong, and how it went.
type soak struct {
	*world
	calm atomic.Bool

	mu   sync.Mutex
	rand *rand.Rand

	begun, moved, here, doubtful, cancelled atomic.Int64 // handoffs
	cuts, lost, breaks, ends, delays        atomic.Int64
	takeovers                               atomic.Int64
	replaced                                atomic.Int64 // twice the applications: when it begins, and when it is done
	anew                                    atomic.Int64 // connections after those that have ended with them
	takingOver, replacing                   sync.Mutex

	begins     sync.RWMutex // held while a connection begins
	connecting atomic.Int64 // how many do

	programs sync.RWMutex // of world.nodes
}

func (s *soak) String() string {
	return fmt.Sprintf("%d handoffs: %d moved, %d failed with the client where it was, %d in doubt at first; %d were cancelled; %d messages of sessions were never sent and %d lost, and their daemons started anew, as were %d between two messages to others; %d connections between daemons broke, %d messages took longer; %d takeovers; %d applications were started anew, and %d clients connected anew after that",
		s.begun.Load(), s.moved.Load(), s.here.Load(), s.doubtful.Load(), s.cancelled.Load(), s.cuts.Load(), s.lost.Load(), s.ends.Load(), s.breaks.Load(), s.delays.Load(), s.takeovers.Load(), s.replaced.Load()/2, s.anew.Load())
}

// draw is a number below n that the seed gives.
func (s *soak) draw(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rand.IntN(n)
}

// late makes a message take longer, now and then.
func (s *soak) late() {
	if s.draw(20) == 0 {
		s.delays.Add(1)
		time.Sleep(time.Duration(s.draw(2000)) * time.Microsecond)
	}
}

// Clients with streams in both directions are handed to random nodes, and called
// off now and then, while any message may be the last one of a daemon, before it is
// sent or after, or of the connection between two of them, and takes its time, while
// the contact changes, and applications end, with their daemons or without, after which
// clients whose connections may have ended with them connect anew. Nobody else loses an
// octet or is reset, nobody has one doubled, no two nodes may send to a client or do, no
// place of a stream is sent with different octets, what a Handoff says of its client is
// so, and in the end every client is served by one node and nothing is in doubt.
//
// These are package ds with its netstacks, daemons' machines, relay, home agent and
// clients; only the kernel, the sockets and TLS are not there. The seed decides what
// goes wrong and how often, not the order in which goroutines run: it repeats the
// plan of a run, not each packet. `make check` begins 260 of these handoffs, under
// the race detector, and `make soak` 50 000 without. Far more handoffs go through the machines of the
// daemons alone, where a seed is a run (daemon/member, TestSoak).
func TestSoak(t *testing.T) {
	total := *soakHandoffs
	switch {
	case total > 0:
	case testing.Short():
		total = 200
	case raceDetector:
		total = 260
	default:
		total = 3000
	}
	seed := max(1, *soakSeed)
	for _, optimise := range []bool{false, true} {
		name := "relayed"
		if optimise {
			name = "optimised"
		}
		t.Run(name, func(t *testing.T) { soakSeeded(t, seed, optimise, total/2) })
		if t.Failed() {
			t.Fatalf("once more: go test -run 'TestSoak$' -soak.seed=%d -soak.handoffs=%d .", seed, total)
		}
	}
}

func soakSeeded(t *testing.T, seed uint64, optimise bool, handoffs int) {
	const clients = 4
	s := &soak{rand: rand.New(rand.NewPCG(seed, 0))}
	s.calm.Store(true)
	s.world = newWorld(t, func(c *dstest.Cluster) {
		c.Optimise = optimise
		c.Intercept = s.intercept
		c.Between = s.between
	}, "a", "b", "c")
	var streams [clients]*stream
	for i := range clients {
		st := s.dial(clientAddr(i + 1))
		st.ping(t)
		s.awaitOwner(clientAddr(i+1), "a")
		streams[i] = st.run()
	}
	s.calm.Store(false)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			// How many applications were replaced before it was looked where the client is.
			for at, replaced := "a", s.replaced.Load(); at != "" && s.begun.Load() < int64(handoffs); {
				to := s.handoff(streams[i], clientAddr(i+1), at, replaced)
				before := replaced
				replaced = s.replaced.Load()
				streams[i], at = s.served(streams[i], clientAddr(i+1))
				if to != "" && to != at && before%2 == 0 && before == s.replaced.Load() {
					t.Errorf("%s: a handoff says that it is at %s, and it is at %s", clientAddr(i+1), to, at)
				}
				s.takeOver()
				s.replace()
			}
		})
	}
	over := make(chan struct{})
	go func() { wg.Wait(); close(over) }()
	begin, progress := time.Now(), time.NewTicker(10*time.Second)
	defer progress.Stop()
	for done := false; !done; {
		select {
		case <-over:
			done = true
		case <-progress.C:
			t.Logf("%v: %s", time.Since(begin).Round(time.Second), s)
		}
	}
	s.calm.Store(true)
	for i, st := range streams {
		st, _ = s.served(st, clientAddr(i+1))
		st.finish(t)
	}
	took := time.Since(begin)
	if s.anew.Load() == 0 { // a node may not have heard that a client has given up what was on its way there
		for i := range clients {
			s.awaitOwner(clientAddr(i+1), "")
		}
	}
	for end := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
		err := s.cluster.Settled()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Error(err)
			break
		}
	}
	s.noFaults()
	t.Logf("seed %d, %v: %s", seed, took.Round(time.Millisecond), s)
}

func (s *soak) intercept(_ string, m *api.Message) error {
	if s.calm.Load() || m.Kind == api.Hello {
		return nil
	}
	s.late()
	if s.connecting.Load() > 0 {
		return nil
	}
	switch s.draw(200) {
	case 0, 1:
		s.cuts.Add(1)
		return errCut
	case 2, 3:
		s.lost.Add(1)
		return dstest.ErrLost
	}
	return nil
}

func (s *soak) between(_, _, _ string) error {
	if s.calm.Load() {
		return nil
	}
	s.late()
	if s.connecting.Load() > 0 {
		return nil
	}
	switch s.draw(200) {
	case 0, 1, 2:
		s.breaks.Add(1)
		return dstest.ErrLost
	case 3:
		s.ends.Add(1)
		return errCut
	}
	return nil
}

// handoff hands a client on that a node has, and returns who has it then, as the
// Handoff says; the next one is to find that it is so. "" ends it.
func (s *soak) handoff(st *stream, client netip.Addr, at string, replaced int64) string {
	others := map[string][]string{"a": {"b", "c"}, "b": {"a", "c"}, "c": {"a", "b"}}[at]
	to := others[s.draw(2)]
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if s.draw(10) == 0 {
		timer := time.AfterFunc(time.Duration(s.draw(3000))*time.Microsecond, cancel)
		defer timer.Stop()
	}
	s.begun.Add(1)
	n := s.program(at)
	r, err := n.Handoff(ctx, client, to, n.state)
	var he *ds.HandoffError
	switch {
	case s.program(at) != n: // it has ended
		return ""
	case err == nil:
		s.moved.Add(1)
		// One that it gave up may live on, if the reset did not arrive.
		if r.Connections != 1 && (r.Connections == 0 || !st.anew) && !s.cluster.Lost(st.Conn) {
			s.t.Errorf("%s: %s", client, r)
			return ""
		}
		return to
	case !errors.As(err, &he) || he.Client != client || he.To != to:
		s.t.Errorf("%s: got %v", client, err)
		return ""
	case he.Stage == ds.StagePrepare && (errors.Is(err, ds.ErrDetached) || strings.Contains(err.Error(), "does not own the client")):
		s.begun.Add(-1) // it is not attached again yet
		runtime.Gosched()
		return at
	case errors.Is(err, ds.ErrBusy) || errors.Is(err, ds.ErrUnknown):
		s.t.Errorf("%s: nobody else hands it on, and: %v", client, err)
		return ""
	}
	if errors.Is(err, context.Canceled) {
		s.cancelled.Add(1)
	}
	if he.Committed {
		s.doubtful.Add(1)
	} else {
		s.here.Add(1)
	}
	ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	moved, oerr := he.Outcome(ctx)
	switch {
	case s.program(at) != n:
		return ""
	case oerr != nil:
		s.t.Errorf("%s: nobody knows what has become of it: %v, after %v", client, oerr, err)
		return ""
	case moved:
		return to
	}
	for !n.has(st) && s.replaced.Load() == replaced { // it may have come just now
		if ctx.Err() != nil {
			s.t.Errorf("%s: it is not at %s: %v", client, at, err)
			return ""
		}
		runtime.Gosched()
	}
	return at
}

// takeOver makes another node the contact, now and then.
func (s *soak) takeOver() {
	name := []string{"a", "b", "c"}[s.draw(3)]
	if s.draw(100) != 0 || !s.takingOver.TryLock() {
		return
	}
	defer s.takingOver.Unlock()
	if !s.begins.TryLock() {
		return
	}
	defer s.begins.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.cluster.TakeOver(ctx, name); err == nil { // no daemon has ended meanwhile that knew of it
		s.takeovers.Add(1)
	}
}

func (s *soak) program(name string) *node {
	s.programs.RLock()
	defer s.programs.RUnlock()
	return s.nodes[name]
}

// replace ends an application, now and then, and starts another, with its daemon or
// without.
func (s *soak) replace() {
	name := []string{"a", "b", "c"}[s.draw(3)]
	if s.draw(50) != 0 || !s.replacing.TryLock() {
		return
	}
	defer s.replacing.Unlock()
	if !s.begins.TryLock() {
		return
	}
	defer s.begins.Unlock()
	s.replaced.Add(1)
	before := s.program(name)
	s.cluster.End(name, s.draw(2) == 0)
	n, err := s.world.program(name)
	for end := time.Now().Add(time.Minute); err != nil; n, err = s.world.program(name) { // the daemon has ended meanwhile
		if time.Now().After(end) {
			s.t.Errorf("%s: no application starts: %v", name, err)
			n = before
			break
		}
		runtime.Gosched()
	}
	s.programs.Lock()
	s.nodes[name] = n
	s.programs.Unlock()
	s.replaced.Add(1) // whoever has seen neither the one nor the other has to look
	before.stop()
}

// served is the node that has a client. If its connection has ended with an application,
// or may have, the client connects anew.
func (s *soak) served(st *stream, client netip.Addr) (*stream, string) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); runtime.Gosched() {
		failed := st.failed.Load()
		if s.cluster.Lost(st.Conn) {
			st = s.connect(st, client)
		} else if failed {
			s.t.Errorf("%s: the connection on port %s has ended, and no application that had it", client, st.LocalAddr())
			break
		}
		if name := s.at(st, client); name != "" {
			return st, name
		}
	}
	s.t.Errorf("%s: nobody has it", client)
	return st, ""
}

// at is the node that has a client's stream, and whose daemon knows that; "": none.
func (s *soak) at(st *stream, client netip.Addr) string {
	if name := s.cluster.Owner(client); name != "" && s.program(name).has(st) {
		return name
	}
	return ""
}

// agreed tells whether all daemons and applications know who is the contact. When TakeOver
// has returned they may not yet, and without success it may still come about.
func (s *soak) agreed() bool {
	contact := s.cluster.Contact()
	for _, name := range []string{"a", "b", "c"} {
		if contact == "" || s.program(name).Contact() != contact {
			return false
		}
	}
	return true
}

// connect waits for a while whether a connection that may have ended with an application
// lives on, and connects anew. Nothing ends meanwhile, and the contact does not change: a
// handshake goes with the contact, and with the application, that it has begun with.
func (s *soak) connect(st *stream, client netip.Addr) *stream {
	for patience := time.Now().Add(time.Duration(s.draw(200)) * time.Millisecond); !st.failed.Load() && time.Now().Before(patience); runtime.Gosched() {
		if !s.cluster.Lost(st.Conn) {
			return st
		}
	}
	s.begins.RLock()
	defer s.begins.RUnlock()
	s.connecting.Add(1)
	defer s.connecting.Add(-1)
	if !st.end.Load() { // and has not tried before
		st.abandon()
	}
	s.anew.Add(1)
	end := time.Now().Add(time.Minute)
	for !s.agreed() {
		if time.Now().After(end) {
			s.t.Error("who is the contact is not agreed upon")
			return st
		}
		runtime.Gosched()
	}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		c, err := s.cluster.Client(client).Dial(ctx, s.cluster.Address(port))
		cancel()
		if err == nil {
			st = newStream(c)
			st.anew = true
			st.run()
			for s.at(st, client) == "" && time.Now().Before(end) {
				runtime.Gosched()
			}
			return st
		}
		if time.Now().After(end) {
			s.t.Errorf("%s: cannot connect anew: %v", client, err)
			return st
		}
	}
}

// has tells whether a node serves a stream.
func (n *node) has(st *stream) (does bool) {
	n.sessions.Range(func(c, _ any) bool {
		does = does || c.(net.Conn).RemoteAddr().String() == st.LocalAddr().String()
		return true
	})
	return does
}
