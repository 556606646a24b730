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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distributed-servers/ds"
	"github.com/distributed-servers/ds/daemon/api"
	"github.com/distributed-servers/ds/dstest"
)

var (
	soakHandoffs = flag.Int("soak.handoffs", 0, "how many handoffs TestSoak begins; 0: 3000, or 400 with the race detector, or 200 with -short")
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
	takingOver                              sync.Mutex
}

func (s *soak) String() string {
	return fmt.Sprintf("%d handoffs: %d moved, %d failed with the client where it was, %d in doubt at first; %d were cancelled; %d messages of sessions were never sent and %d lost, and their daemons started anew, as were %d between two messages to others; %d connections between daemons broke, %d messages took longer; %d takeovers",
		s.begun.Load(), s.moved.Load(), s.here.Load(), s.doubtful.Load(), s.cancelled.Load(), s.cuts.Load(), s.lost.Load(), s.ends.Load(), s.breaks.Load(), s.delays.Load(), s.takeovers.Load())
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
// sent or after, or of the connection between two of them, and takes its time, and
// while the contact changes. Nobody loses or doubles an octet, nobody is reset, no two nodes may send to a
// client or do, no place of a stream is sent with different octets, what a Handoff
// says of its client is so, and in the end every client is served by one node and
// nothing is in doubt.
//
// These are package ds with its netstacks, daemons' machines, relay, home agent and
// clients; only the kernel, the sockets and TLS are not there. The seed decides what
// goes wrong and how often, not the order in which goroutines run: it repeats the
// plan of a run, not each packet. `make check` begins 400 of these handoffs, under
// the race detector, and `make soak` 50 000 without. Far more handoffs go through the machines of the
// daemons alone, where a seed is a run (daemon/member, TestSoak).
func TestSoak(t *testing.T) {
	total := *soakHandoffs
	switch {
	case total > 0:
	case testing.Short():
		total = 200
	case raceDetector:
		total = 400
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
	var streams []*stream
	for i := range clients {
		st := s.dial(clientAddr(i + 1))
		st.ping(t)
		s.awaitOwner(clientAddr(i+1), "a")
		streams = append(streams, st.run())
	}
	s.calm.Store(false)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for at := "a"; at != "" && s.begun.Load() < int64(handoffs); {
				at = s.handoff(clientAddr(i+1), at)
				s.takeOver()
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
	for _, st := range streams {
		st.finish(t)
	}
	took := time.Since(begin)
	for i := range clients {
		s.awaitOwner(clientAddr(i+1), "")
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
func (s *soak) handoff(client netip.Addr, at string) string {
	others := map[string][]string{"a": {"b", "c"}, "b": {"a", "c"}, "c": {"a", "b"}}[at]
	to := others[s.draw(2)]
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if s.draw(10) == 0 {
		timer := time.AfterFunc(time.Duration(s.draw(3000))*time.Microsecond, cancel)
		defer timer.Stop()
	}
	s.awaitOwner(client, at) // its daemon may have been started anew
	s.begun.Add(1)
	n := s.nodes[at]
	r, err := n.Handoff(ctx, client, to, n.state)
	var he *ds.HandoffError
	switch {
	case err == nil:
		s.moved.Add(1)
		if r.Connections != 1 {
			s.t.Errorf("%s: %s", client, r)
			return ""
		}
		return to
	case !errors.As(err, &he) || he.Client != client || he.To != to:
		s.t.Errorf("%s: got %v", client, err)
		return ""
	case he.Stage == ds.StagePrepare && errors.Is(err, ds.ErrDetached):
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
	case oerr != nil:
		s.t.Errorf("%s: nobody knows what has become of it: %v, after %v", client, oerr, err)
		return ""
	case moved:
		return to
	}
	for n.has(client) == 0 { // it may have come just now
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
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.cluster.TakeOver(ctx, name); err == nil { // no daemon has ended meanwhile that knew of it
		s.takeovers.Add(1)
	}
}

// has is how many sessions of a client a node serves.
func (n *node) has(client netip.Addr) (sessions int) {
	n.sessions.Range(func(c, _ any) bool {
		if c.(interface{ RemoteAddr() net.Addr }).RemoteAddr().(*net.TCPAddr).AddrPort().Addr() == client {
			sessions++
		}
		return true
	})
	return sessions
}
