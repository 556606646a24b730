package member

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

var (
	soakHandoffs = flag.Int("soak.handoffs", 0, "how many handoffs TestSoak begins; 0: 98000, or 2000 with the race detector or -short")
	soakSeed     = flag.Uint64("soak.seed", 0, "the seed of the only run of TestSoak; 0: as many as it takes")
)

// soakRun is how many handoffs one seed begins.
const soakRun = 500

// soak is how runs went.
type soak struct {
	begun, moved, failed           int // handoffs; an application that ends never hears
	restarts, breaks, crashes, end int // of daemons, connections, applications; clients that have ended with theirs
	takeovers, full                int // disks that were full for a while
}

func (s *soak) String() string {
	return fmt.Sprintf("%d handoffs: %d moved, %d failed, %d whose application has ended; %d daemons and %d applications were started anew, %d connections broke, %d disks were full, %d takeovers; %d clients lost theirs with an application",
		s.begun, s.moved, s.failed, s.begun-s.moved-s.failed, s.restarts, s.crashes, s.breaks, s.full, s.takeovers, s.end)
}

// Clients are handed to random nodes, several at a time and called off now and
// then, while whatever can end does: connections between daemons, daemons (which
// have their records, unless their disks are full), applications (whose clients may end, no others);
// and nodes take over as the contact. No two applications may ever send for a client, what a
// client sends through the contact never comes to one that would reset it, and each
// run ends with every client served by one node, known to everybody who ought to
// know, and with no handoff in doubt.
//
// What it goes through is the machines of the daemons and of Mobile IPv6, as in
// real daemons, and applications that only pretend to have connections. It is the
// greater part of the handoffs of `make check` (98 000 of 100 260, without the race
// detector, which finds nothing in one goroutine; 2000 more with it) and of `make
// soak` (950 000 of a million); those of package ds's TestSoak have real connections.
func TestSoak(t *testing.T) {
	handoffs := *soakHandoffs
	switch {
	case handoffs > 0:
	case testing.Short() || raceDetector:
		handoffs = 2000
	default:
		handoffs = 98_000
	}
	var all soak
	begin, said := time.Now(), time.Now()
	first, seed := max(1, *soakSeed), uint64(0)
	if *soakSeed != 0 {
		handoffs = 1
	}
	for seed = first; all.begun < handoffs; seed++ {
		soakSeeded(t, seed, &all)
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			t.Logf("%d%%, %v: %s", 100*all.begun/handoffs, time.Since(begin).Round(time.Second), &all)
		}
	}
	t.Logf("seeds %d to %d, %v: %s", first, seed-1, time.Since(begin).Round(time.Millisecond), &all)
	if *soakSeed == 0 && (all.moved == 0 || all.failed == 0 || all.restarts == 0 || all.breaks == 0 || all.crashes == 0 || all.end == 0 || all.takeovers == 0 || all.full == 0) {
		t.Error("something did not happen")
	}
}

func soakSeeded(t *testing.T, seed uint64, all *soak) {
	const clients = 6
	w := begin(t, seed, clients)
	w.quiet = *soakSeed == 0
	w.doubled = seed%4 == 0 // which package peer does not do
	w.replay = fmt.Sprintf("go test ./daemon/member -run 'TestSoak$' -v -soak.seed=%d", seed)
	w.ended = func(why string) {
		if why == "" {
			all.moved++
		} else {
			all.failed++
		}
	}
	for begun := 0; begun < soakRun; {
		for _, n := range names {
			if a := w.members[n].app; a != nil {
				a.flaky = true
			}
		}
		clear(w.mayEnd)
		clear(w.forgotten)
		for range 25 {
			for i := range clients {
				c, to := clientAddr(i), names[w.rand.IntN(3)]
				if owner := w.owner(c); owner != "" && w.members[owner].app.idle(c) {
					w.members[owner].app.handOff(c, to, 0)
					begun++
					all.begun++
				}
			}
			w.run(time.Duration(w.rand.IntN(4000)) * time.Microsecond)
			w.noResets()
			h, other := w.members[names[w.rand.IntN(3)]], names[w.rand.IntN(3)]
			switch w.rand.IntN(12) {
			case 0, 1:
				if other != h.name {
					all.breaks++
					w.disconnect(h.name, other, time.Duration(w.rand.IntN(10))*time.Millisecond)
				}
			case 2, 3:
				all.restarts++
				h.restart()
			case 4:
				if w.rand.IntN(2) == 0 {
					all.takeovers++
					h.step(Takeover{ID: 1, To: other, Force: w.rand.IntN(2) == 0})
				}
			case 5:
				if h.app != nil && w.rand.IntN(4) == 0 {
					all.crashes++
					w.lose(h.app)
					h.crash()
				}
			case 6:
				if w.rand.IntN(4) == 0 {
					all.full++
					h.fill()
				}
			case 7, 8, 9:
				h.room()
			}
			w.oneOwner()
		}
		for _, n := range names {
			w.members[n].room()
		}
		w.run(25 * time.Minute)
		all.end += w.reconnect()
		w.settled()
		w.certain()
	}
}

// fill fills a disk: of what is written next it takes a part, or all, and says that it
// has not.
func (h *host) fill() {
	h.disk = func(recs []Record) (int, string) { return h.w.rand.IntN(len(recs) + 1), noRoom }
}

// room is that it has room again.
func (h *host) room() {
	if h.disk != nil {
		h.disk, h.kept = nil, slices.Clone(h.all)
		h.step(Recorded{})
	}
}

// lose notes whose connections may end with an application.
func (w *world) lose(a *app) {
	for _, of := range []map[netip.Addr]bool{a.live, a.frozen} {
		for c := range of {
			w.mayEnd[c] = true
		}
	}
	if a.h.disk != nil {
		for c := range a.left {
			w.forgotten[c] = true
		}
		for c := range a.frozen {
			w.forgotten[c] = true
		}
	}
	if a.session%2 == 1 && a.words == a.h.words && a.h.disk == nil {
		return // what it had not taken yet the daemon gives back, and remembers that
	}
	for _, o := range a.missed { // which may not be remembered
		w.mayEnd[o.Client] = w.mayEnd[o.Client] || a.h.disk != nil
	}
	for _, o := range a.coming {
		w.mayEnd[o.Client] = true
	}
	for _, n := range names { // and of those that are on their way to it, who knows
		if o := w.members[n].app; o != nil {
			for _, mv := range o.moving {
				if mv.to == a.h.name {
					w.mayEnd[mv.client] = true
				}
			}
		}
	}
}

// reconnect has clients that have lost their connections connect anew, where the
// contact relays them to, and returns how many there are.
func (w *world) reconnect() (n int) {
	for _, c := range slices.SortedFunc(maps.Keys(w.clients), netip.Addr.Compare) {
		if w.owner(c) != "" {
			continue
		}
		if !w.mayEnd[c] {
			w.fail("nobody serves %s, and no application that had it has ended", c)
		}
		n++
		for _, name := range names {
			if h := w.members[name]; h.m.IsContact() {
				if owner, known := h.m.Owner(c); known {
					h = w.members[owner]
				}
				h.app.live[c] = true
				h.step(App{&api.Message{Kind: api.Owned, Client: c, Connections: 1}})
			}
		}
	}
	w.run(time.Minute)
	return n
}
