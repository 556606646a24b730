package member

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// restart kills a daemon and starts it anew, with what it has kept. Its
// application lives on, hears what was on the way to it, or not, and attaches
// again.
func (h *host) restart() {
	w, a := h.w, h.app
	w.logf("%s's daemon is started anew", h.name)
	for _, other := range names {
		if other != h.name {
			w.disconnect(h.name, other, w.delay())
		}
	}
	h.boot()
	if a != nil && a.session%2 == 1 {
		session := a.session
		w.after(w.delay(), func() {
			if h.app == a && a.session == session {
				a.detached()
				w.after(w.delay(), h.attach)
			}
		})
	}
}

// detached calls off what can be called off.
func (a *app) detached() {
	a.session++
	for _, id := range slices.Sorted(maps.Keys(a.coming)) {
		a.miss(id)
	}
	for _, id := range slices.Sorted(maps.Keys(a.moving)) {
		if mv := a.moving[id]; !mv.given {
			a.thaw(mv.client)
			a.end(id, mv.client, "the daemon has gone")
		}
	}
}

// doubts are what it has given away and not heard the end of.
func (a *app) doubts() (all []api.Doubt) {
	for _, id := range slices.Sorted(maps.Keys(a.moving)) {
		mv := a.moving[id]
		if !mv.given {
			continue
		}
		all = append(all, api.Doubt{ID: id, Handoff: mv.handoff, Client: mv.client, To: mv.to})
	}
	return all
}

// crash ends an application with its connections, and starts another one.
func (h *host) crash() {
	h.w.logf("%s's application ends", h.name)
	h.step(AppGone{Lost: true})
	h.app = nil
	h.w.after(h.w.delay(), h.attach)
}

// certain is what must be true when all is quiet: no handoff is under way, and
// no application is in doubt.
func (w *world) certain() {
	w.t.Helper()
	for _, n := range names {
		h := w.members[n]
		if len(h.m.outgoing)+len(h.m.bySession)+len(h.m.incoming)+len(h.m.coming)+len(h.m.offers) != 0 {
			w.fail("%s is not done with a handoff", n)
		}
		if len(h.m.records.of)+len(h.m.donated)+len(h.m.over) != 0 {
			w.fail("%s remembers %v and %v, about which nobody will ask", n, h.m.records.of, h.m.donated)
		}
		if len(h.app.moving)+len(h.app.coming)+len(h.app.frozen) != 0 {
			w.fail("%s's application is not done with handoffs: %+v, coming %v, frozen %v", n, h.app.moving, h.app.coming, h.app.frozen)
		}
	}
}

// Each daemon is started anew at each moment of a handoff, with the connection
// between the two lost before or not. Whatever comes of it, one node has the
// client in the end, and nobody is in doubt.
func TestRestartDuringHandoff(t *testing.T) {
	ends := make(map[string]int)
	for _, who := range []string{"a", "b"} {
		for _, cut := range []bool{false, true} {
			for at := time.Duration(0); at < 5*time.Millisecond; at += 100 * time.Microsecond {
				w := begin(t, uint64(at), 2)
				c := clientAddr(0)
				w.members["a"].app.handOff(c, "b", 0)
				w.run(at)
				if cut {
					w.disconnect("a", "b", 300*time.Microsecond)
					w.run(200 * time.Microsecond)
				}
				w.members[who].restart()
				w.run(time.Minute)
				w.settled()
				w.certain()
				ends[w.owner(c)]++
			}
		}
	}
	if ends["a"] == 0 || ends["b"] == 0 {
		t.Errorf("all of one kind: %v", ends)
	}
}

// The client has gone on from the target, whose daemon has been started anew,
// when the donor's connection to it is back. It still knows that the client came.
func TestRestartOfTargetThatHandedOn(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	w.members["a"].app.handOff(c, "b", 0)
	for w.owner(c) != "b" {
		w.run(10 * time.Microsecond)
	}
	w.disconnect("a", "b", time.Minute) // Done is lost
	w.run(time.Second)
	if a := w.handOff(c, "c"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	w.members["b"].restart()
	w.run(2 * time.Minute)
	w.settled()
	w.certain()
	if owner := w.owner(c); owner != "c" {
		w.fail("%s has the client", owner)
	}
	if n := len(w.members["b"].m.records.of); n != 0 {
		w.fail("b still remembers %d handoffs", n)
	}
}

// The daemon of a donor is started anew while its application is in doubt about
// a Transfer that never arrived.
func TestRestartOfDonorInDoubt(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	a := w.members["a"]
	a.app.handOff(c, "b", 0)
	for a.m.handoffs() == nil || a.m.handoffs()[0].stage != transferring {
		w.run(10 * time.Microsecond)
	}
	w.disconnect("a", "b", time.Second) // Transfer is lost
	a.restart()
	w.run(100 * time.Millisecond)
	if owner := w.owner(c); owner != "" {
		w.fail("%s has the client before it can be known", owner)
	}
	w.run(time.Minute)
	w.settled()
	w.certain()
	if why := a.app.ended[c]; w.owner(c) != "a" || !strings.Contains(why, "node b") {
		w.fail("%s has the client: %q", w.owner(c), why)
	}
}

// An application that ends in doubt leaves nothing behind: neither does the next
// one hear of its handoff, nor does its daemon keep a client that nobody has.
func TestCrashOfDonorInDoubt(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	a := w.members["a"]
	a.app.handOff(c, "b", 0)
	for a.m.handoffs() == nil || a.m.handoffs()[0].stage != transferring {
		w.run(10 * time.Microsecond)
	}
	w.disconnect("a", "b", time.Second)
	a.crash()
	w.run(10 * time.Minute)
	w.oneOwner()
	w.certain()
	for _, n := range names {
		if _, owns := w.members[n].m.Client(c); owns {
			w.fail("%s owns what nobody has", n)
		}
	}
}

// A new application is told with its welcome which clients the one before has given away,
// as long as it is not known to have been in vain, whether the daemon has ended, too, or
// not and whether the two nodes can reach each other or not.
func TestAway(t *testing.T) {
	for _, daemon := range []bool{false, true} {
		for _, apart := range []bool{false, true} {
			for _, late := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 3 * time.Second} {
				t.Run(fmt.Sprintf("daemon %t, apart %t, after %v", daemon, apart, late), func(t *testing.T) { testAway(t, daemon, apart, late) })
			}
		}
	}
}

func testAway(t *testing.T, daemon, apart bool, late time.Duration) {
	w := begin(t, 1, 2)
	c := clientAddr(0)
	a := w.members["a"]
	if answer := w.handOff(clientAddr(1), "c"); answer.Err != nil { // which is over
		w.fail("%v", answer.Err)
	}
	a.app.handOff(c, "b", 0)
	for a.m.handoffs() == nil || a.m.handoffs()[0].stage != transferring {
		w.run(10 * time.Microsecond)
	}
	if apart {
		w.disconnect("a", "b", time.Minute)
	}
	w.run(late)
	w.lose(a.app)
	a.app = nil
	if daemon {
		a.restart()
	} else {
		a.step(AppGone{Lost: true})
	}
	a.attach()
	w.run(2 * sessionDelay)
	told := make(map[netip.Addr]netip.Addr)
	for _, away := range a.app.config.Away {
		told[away.Client] = away.CareOf
	}
	// A daemon that was started anew has forgotten what was over a second before.
	want := make(map[netip.Addr]netip.Addr)
	if !daemon || late < passTime {
		want[clientAddr(1)] = addrs["c"].CareOf
	}
	if !daemon || late < passTime || apart {
		want[c] = addrs["b"].CareOf
	}
	if !maps.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	w.run(2 * time.Minute)
	w.oneOwner()
	if _, away := a.app.left[c]; w.owner(c) == "" && away {
		t.Error("nobody has it, and it is not answered")
	}
	w.certain()
	w.run(2 * awayTime)
	if away, left := a.m.awayNow(); len(away)+len(left) > 0 {
		t.Error("still away:", away, left)
	}
}

// An application is started anew with its daemon, while a handoff from it is in doubt, of
// which it knows no more than that the client is away. The daemon is started anew once
// more, and again when it has cleared that up, and does so all the same: the target has the
// client, or nobody has. Or the client is back meanwhile, and the contact is not told
// otherwise.
func TestAwayInDoubt(t *testing.T) {
	for _, tt := range []struct{ owner, end string }{{"c", "c"}, {"", ""}, {"", "b"}} {
		t.Run(fmt.Sprintf("%q then %q", tt.owner, tt.end), func(t *testing.T) {
			w := begin(t, 1, 1)
			c := clientAddr(0)
			donor := w.members["b"]
			if answer := w.handOff(c, "b"); answer.Err != nil {
				w.fail("%v", answer.Err)
			}
			donor.app.handOff(c, "c", 0)
			for len(donor.m.handoffs()) == 0 || donor.m.handoffs()[0].stage != transferring || w.owner(c) != tt.owner {
				w.run(10 * time.Microsecond)
			}
			w.disconnect("b", "c", time.Minute)
			w.lose(donor.app)
			donor.app = nil
			donor.restart()
			donor.attach()
			w.run(2 * sessionDelay)
			if _, away := donor.app.left[c]; !away {
				t.Fatal("it is not away")
			}
			back := tt.owner != tt.end
			if back {
				donor.app.live[c] = true
				delete(donor.app.left, c)
				donor.step(App{&api.Message{Kind: api.Owned, Client: c, Connections: 1}})
			} else {
				donor.restart()
			}
			w.run(2 * time.Second)
			w.connect("b", "c")
			for len(donor.m.outgoing) > 0 {
				w.run(10 * time.Microsecond)
			}
			if !back {
				donor.restart()
				donor.app.detached() // before it hears of that
				w.after(w.delay(), donor.attach)
			}
			w.run(3 * time.Second)
			if _, away := donor.app.left[c]; away != (tt.owner != "") {
				t.Errorf("away is %t", away)
			}
			to := tt.end
			if to == "" {
				to = "b" // which may answer
			}
			w.expect("a", 0, ack, to)
			if left := donor.m.Unsettled() + w.members["c"].m.Unsettled(); left > 0 {
				t.Errorf("%d are not settled", left)
			}
			w.certain()
		})
	}
}

// An application has given a client away when its daemon had given the handoff up, ends
// before it hears of that, and the daemon before and after. The application that comes next
// is told that the client is away, and in the end that it is not: the daemon has recorded the
// doubt.
func TestAwayInDoubtAnew(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	donor := w.members["b"]
	if answer := w.handOff(c, "b"); answer.Err != nil {
		w.fail("%v", answer.Err)
	}
	donor.app.handOff(c, "c", 0)
	for !donor.app.frozen[c] {
		w.run(10 * time.Microsecond)
	}
	w.disconnect("b", "c", time.Minute)
	donor.step(PeerDown{"c"})
	if len(donor.m.outgoing) != 0 {
		t.Fatal("it is under way")
	}
	donor.restart()
	for len(donor.m.outgoing) == 0 {
		w.run(10 * time.Microsecond)
	}
	w.lose(donor.app)
	donor.app = nil
	donor.step(AppGone{Lost: true})
	donor.attach()
	w.run(2 * sessionDelay)
	if _, away := donor.app.left[c]; !away {
		t.Fatal("it is not away")
	}
	w.connect("b", "c")
	for len(donor.m.outgoing) > 0 {
		w.run(10 * time.Microsecond)
	}
	donor.restart()
	donor.app.detached() // before it hears of that
	w.after(w.delay(), donor.attach)
	w.run(3 * time.Second)
	if _, away := donor.app.left[c]; away {
		t.Error("nobody has it, and it is away")
	}
	w.certain()
}

// That nobody has a client is not said of a later handoff: it has connected anew since, here
// or elsewhere and come here, and gone on, before application and daemon end once more.
func TestAwayElsewhere(t *testing.T) {
	for _, daemon := range []bool{false, true} { // ends the first time, too
		w := begin(t, 1, 1)
		c := clientAddr(0)
		a, donor := w.members["a"], w.members["b"]
		anew := func(daemon bool) {
			w.lose(donor.app)
			donor.app = nil
			if daemon {
				donor.restart()
			} else {
				donor.step(AppGone{Lost: true})
			}
			donor.attach()
		}
		move := func(from *host, to string) {
			from.app.handOff(c, to, 0)
			for w.owner(c) != to || len(from.m.outgoing) > 0 {
				w.run(10 * time.Microsecond)
			}
		}
		move(a, "b")
		w.members["c"].app.fails = "not today"
		donor.app.handOff(c, "c", 0)
		for len(donor.m.handoffs()) == 0 || donor.m.handoffs()[0].stage != transferring {
			w.run(10 * time.Microsecond)
		}
		anew(daemon)
		for donor.m.awaiting || len(donor.m.outgoing) > 0 {
			w.run(10 * time.Microsecond)
		}
		w.members["c"].app.fails = ""
		begins := donor
		if daemon {
			begins = a
		}
		begins.app.live[c] = true
		begins.step(App{&api.Message{Kind: api.Owned, Client: c, Connections: 1}})
		if daemon {
			move(a, "b")
		}
		move(donor, "c")
		anew(true)
		w.run(time.Second)
		if left := donor.app.left[c]; left.to != "c" {
			t.Errorf("daemon %t: sent on to %q", daemon, left.to)
		}
		w.run(3 * time.Second)
		w.certain()
	}
}

// That nobody has a client is not said of the next handoff of it either, which is under way:
// the contact sends here what is to go on to where that leads.
func TestAwayAgain(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	a, donor := w.members["a"], w.members["b"]
	if answer := w.handOff(c, "b"); answer.Err != nil {
		w.fail("%v", answer.Err)
	}
	donor.app.handOff(c, "c", 0)
	for !donor.app.frozen[c] {
		w.run(10 * time.Microsecond)
	}
	w.disconnect("b", "c", time.Minute)
	w.lose(donor.app)
	donor.app = nil
	donor.restart()
	donor.attach()
	w.run(time.Second)
	a.app.live[c] = true
	a.step(App{&api.Message{Kind: api.Owned, Client: c, Connections: 1}})
	if answer := w.handOff(c, "b"); answer.Err != nil {
		w.fail("%v", answer.Err)
	}
	a.app.hangs = api.Offer
	donor.app.handOff(c, "a", 0)
	for !donor.app.frozen[c] {
		w.run(10 * time.Microsecond)
	}
	w.run(10 * time.Millisecond)
	if len(donor.m.outgoing) != 2 {
		t.Fatalf("%d handoffs are under way", len(donor.m.outgoing))
	}
	w.reconnected("b", "c")
	if len(donor.m.outgoing) != 1 {
		t.Fatalf("%d handoffs are under way", len(donor.m.outgoing))
	}
	w.expect("a", 0, ack, "b")
	a.app.goOn()
	w.run(3 * time.Second)
	w.expect("a", 0, ack, "a")
	w.certain()
}

// move hands a client off, and waits until the target has it, and no longer.
func (w *world) move(c netip.Addr, from, to string) {
	w.members[from].app.handOff(c, to, 0)
	for w.owner(c) != to {
		w.run(10 * time.Microsecond)
	}
}

// A client is back before it is known how the handoff has ended with which it left. Then
// application and daemon end: the next application answers it, and does not send it to where it
// was, from where it would come back.
func TestAwayAndBack(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	donor := w.members["b"]
	w.move(c, "a", "b")
	w.run(time.Second)
	w.move(c, "b", "c")
	w.disconnect("b", "c", time.Minute)
	w.run(10 * time.Millisecond)
	w.move(c, "c", "a")
	w.run(10 * time.Millisecond)
	w.move(c, "a", "b")
	w.run(10 * time.Millisecond)
	if len(donor.m.outgoing) != 1 {
		t.Fatalf("%d handoffs are under way", len(donor.m.outgoing))
	}
	w.lose(donor.app)
	donor.app = nil
	donor.restart()
	donor.attach()
	w.run(10 * time.Millisecond)
	w.connect("b", "c")
	w.run(3 * time.Second)
	if left, away := donor.app.left[c]; away {
		t.Errorf("sent on to %q", left.to)
	}
	w.certain()
}

// A client is back before it is known how the handoff has ended with which it left, and its
// application ends twice: the second time the client has left once more, and is sent on to where
// it is, not to where it was.
func TestAwayAndBackAndAway(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	b := w.members["b"]
	w.move(c, "a", "b")
	w.run(time.Second)
	w.move(c, "b", "c")
	w.disconnect("b", "c", time.Minute)
	w.run(10 * time.Millisecond)
	w.lose(b.app)
	b.crash() // in doubt
	w.run(10 * time.Millisecond)
	w.move(c, "c", "a")
	w.run(10 * time.Millisecond)
	w.move(c, "a", "b")
	w.run(10 * time.Millisecond)
	w.move(c, "b", "a")
	w.run(10 * time.Millisecond)
	if len(b.m.outgoing) != 1 {
		t.Fatalf("%d handoffs are under way", len(b.m.outgoing))
	}
	w.lose(b.app)
	b.crash()
	w.run(10 * time.Millisecond)
	if left := b.app.left[c]; left.to != "a" {
		t.Errorf("sent on to %q", left.to)
	}
	w.connect("b", "c")
	w.run(3 * time.Second)
	w.certain()
}

// A client is taken that has left a moment ago, and application and daemon end when that has
// been recorded, before they do more about it: the donor hears that they had it, and that
// it was where the donor is they have forgotten with what they recorded.
func TestAwayAndTaken(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	b := w.members["b"]
	for _, h := range []struct{ from, to string }{{"a", "b"}, {"b", "c"}} {
		w.members[h.from].app.handOff(c, h.to, 0)
		for w.owner(c) != h.to {
			w.run(10 * time.Microsecond)
		}
		w.run(10 * time.Millisecond)
	}
	b.disk = func(recs []Record) (int, string) {
		b.mute = b.mute || recs[0].State == Taken
		return len(recs), ""
	}
	w.members["c"].app.handOff(c, "b", 0)
	for !b.mute {
		w.run(10 * time.Microsecond)
	}
	b.disk = nil
	w.lose(b.app)
	b.app = nil
	b.restart()
	b.attach()
	w.run(10 * time.Millisecond)
	if left := w.members["c"].app.left[c]; left.to != "b" {
		t.Fatalf("c sends on to %q", left.to)
	}
	if left, away := b.app.left[c]; away {
		t.Errorf("sent on to %q", left.to)
	}
	w.run(3 * time.Second)
	w.certain()
}

// A target says late that it has had a client, which has been back here since, and gone on:
// that does not count when the application ends.
func TestAwayLate(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	donor := w.members["b"]
	w.move(c, "a", "b")
	w.run(time.Second)
	w.move(c, "b", "c")
	w.disconnect("b", "c", time.Minute)
	w.run(10 * time.Millisecond)
	w.move(c, "c", "a")
	w.run(10 * time.Millisecond)
	w.move(c, "a", "b")
	w.run(10 * time.Millisecond)
	w.move(c, "b", "a")
	w.run(10 * time.Millisecond)
	if len(donor.m.outgoing) != 1 {
		t.Fatalf("%d handoffs are under way", len(donor.m.outgoing))
	}
	w.reconnected("b", "c")
	if len(donor.m.donated) != 1 {
		t.Errorf("remembered are %v", donor.m.donated)
	}
	w.lose(donor.app)
	donor.app = nil
	donor.step(AppGone{Lost: true})
	donor.attach()
	w.run(time.Second)
	if left := donor.app.left[c]; left.to != "a" {
		t.Errorf("sent on to %q", left.to)
	}
	w.run(3 * time.Second)
	w.certain()
}

// An application counts as ended because it does not read, when it has given a client away,
// before or after its daemon has heard that the target has it. It goes on after all, and
// comes back, with the client in doubt: that is the target's.
func TestAwayStopped(t *testing.T) {
	for _, apart := range []bool{false, true} {
		w := begin(t, 1, 1)
		c := clientAddr(0)
		a := w.members["a"]
		a.restart() // or the daemon would refuse it
		w.run(time.Second)
		a.app.handOff(c, "b", 0)
		a.app.hangs = api.Done
		for w.owner(c) != "b" {
			w.run(10 * time.Microsecond)
		}
		if apart {
			w.disconnect("a", "b", time.Second)
		}
		w.run(100 * time.Millisecond)
		a.step(AppGone{Lost: true})
		w.run(5 * time.Second)
		a.app.hangs, a.app.unread = 0, nil
		a.app.detached()
		a.attach()
		w.run(time.Second)
		w.oneOwner()
		if owner := w.owner(c); owner != "b" || len(a.app.moving) > 0 {
			t.Errorf("%q has it, and %d handoffs are in doubt", owner, len(a.app.moving))
		}
		w.run(time.Minute)
		w.certain()
	}
}

// What was recorded of a handoff is kept for a second, whenever others have ended.
func TestAwayForASecond(t *testing.T) {
	w := begin(t, 1, 2)
	a := w.members["a"]
	for i, to := range []string{"b", "c"} {
		if answer := w.handOff(clientAddr(i), to); answer.Err != nil {
			w.fail("%v", answer.Err)
		}
		w.run(passTime * 3 / 4)
	}
	w.lose(a.app)
	a.app = nil
	a.restart()
	a.attach()
	w.run(2 * sessionDelay)
	if away := a.app.config.Away; len(away) != 1 || away[0].Client != clientAddr(1) {
		t.Errorf("away is %v", away)
	}
	w.run(2 * time.Minute)
	w.certain()
	if len(a.m.donated) > 0 {
		t.Errorf("still recorded: %v", a.m.donated)
	}
}

// A client comes back, and goes with application and daemon: it is not away.
func TestAwayNoMore(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	for _, h := range [...][2]string{{"a", "b"}, {"b", "a"}} {
		w.members[h[0]].app.handOff(c, h[1], 0)
		for w.owner(c) != h[1] {
			w.run(10 * time.Microsecond)
		}
		for w.members[h[0]].app.ended[c] == "" && len(w.members[h[0]].app.moving) > 0 {
			w.run(10 * time.Microsecond)
		}
	}
	a := w.members["a"]
	w.lose(a.app)
	a.app = nil
	a.restart()
	a.attach()
	w.run(2 * sessionDelay)
	if away := a.app.config.Away; len(away) > 0 {
		t.Errorf("away is %v", away)
	}
	w.run(2 * time.Minute)
	w.certain()
}

// Whatever is started anew or disconnected whenever: one node has each client in
// the end, and nobody is in doubt.
func TestChaosOfRestarts(t *testing.T) {
	seeds := 100
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := begin(t, uint64(seed), 2)
			for range 15 {
				for i := range 2 {
					c, to := clientAddr(i), names[w.rand.IntN(3)]
					if owner := w.owner(c); owner != "" && owner != to && w.members[owner].app.idle(c) {
						w.members[owner].app.handOff(c, to, 0)
					}
				}
				w.run(time.Duration(w.rand.IntN(3000)) * time.Microsecond)
				i := w.rand.IntN(3)
				switch w.rand.IntN(3) {
				case 0:
					w.disconnect(names[i], names[(i+1)%3], time.Duration(w.rand.IntN(10))*time.Millisecond)
				case 1:
					w.members[names[i]].restart()
				}
				w.oneOwner()
			}
			w.run(25 * time.Minute)
			w.settled()
			w.certain()
		})
	}
}

// idle tells whether a client is not on its way.
func (a *app) idle(c netip.Addr) bool {
	for _, mv := range a.moving {
		if mv.client == c {
			return false
		}
	}
	return a.session%2 == 1
}
