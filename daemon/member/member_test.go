package member

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/distributed-servers/ds/daemon/api"
)

// begin is a world with applications everywhere and some clients at a.
func begin(t *testing.T, seed uint64, clients int) *world {
	w := newWorld(t, seed)
	for _, n := range names {
		w.members[n].attach()
	}
	w.run(5 * time.Second)
	for i := range clients {
		w.addClient(i, i%2 == 0, "a")
	}
	w.run(30 * time.Second) // until those that cannot are known not to
	w.settled()
	return w
}

// handOff does one by command, and returns its answer.
func (w *world) handOff(client netip.Addr, to string) Answer {
	w.t.Helper()
	h := w.members[w.owner(client)]
	h.step(HandOff{ID: w.seq + 1<<40, Client: client, To: to})
	id := w.seq + 1<<40
	for range 1000 {
		for known, a := range h.answers {
			if known >= 1<<40 {
				delete(h.answers, known)
				return a
			}
		}
		w.run(time.Millisecond)
	}
	w.fail("no answer to %d", id)
	return Answer{}
}

func TestHandoff(t *testing.T) {
	w := begin(t, 1, 2)
	for _, to := range []string{"b", "c", "b", "a", "c"} {
		for i := range 2 {
			if a := w.handOff(clientAddr(i), to); a.Err != nil {
				w.fail("to %s: %v", to, a.Err)
			}
			w.run(100 * time.Millisecond)
			w.settled()
		}
	}
	if late := w.members["a"].app.late + w.members["b"].app.late + w.members["c"].app.late; late != 10 {
		w.fail("%d packets have come to the targets, not 10", late)
	}
}

// A client that goes on being bound needs one packet of the new owner: the
// Binding Update.
func TestPreparedHandoffBindsAtOnce(t *testing.T) {
	w := begin(t, 1, 1)
	if a := w.handOff(clientAddr(0), "b"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	var kinds []string
	for _, e := range w.members["b"].events {
		if e.Client == clientAddr(0) {
			kinds = append(kinds, string(e.Kind))
		}
	}
	if got := fmt.Sprint(kinds); got != "[bound taken-over]" {
		w.fail("b: %s", got)
	}
}

func TestRefusals(t *testing.T) {
	w := begin(t, 1, 1)
	c := clientAddr(0)
	for to, want := range map[string]string{
		"a": "node a has the client already",
		"x": `there is no node "x"; there are a, b, c`,
	} {
		if a := w.handOff(c, to); a.Err == nil || a.Err.Error() != want {
			t.Errorf("to %s: %v", to, a.Err)
		}
	}
	w.members["b"].app.refuses = "full"
	if a := w.handOff(c, "b"); a.Err == nil || a.Err.Error() != "node b refuses: full" {
		t.Errorf("to b, which refuses: %v", a.Err)
	}
	for accepts, want := range map[bool]string{ // it says so again while it is attached
		false: "node b refuses: the application takes no clients from other nodes",
		true:  "node b refuses: full",
	} {
		w.members["b"].step(App{Message: &api.Message{Kind: api.Hello, Program: "test", AcceptsHandoffs: accepts}})
		if a := w.handOff(c, "b"); a.Err == nil || a.Err.Error() != want {
			t.Errorf("to b, which accepts handoffs: %v: %v", accepts, a.Err)
		}
	}
	w.run(time.Second)
	w.settled()
	w.members["b"].step(AppGone{Lost: true})
	if a := w.handOff(c, "b"); a.Err == nil || a.Err.Error() != "node b refuses: no application is attached" {
		t.Errorf("to b, which has no application: %v", a.Err)
	}
	w.disconnect("a", "b", time.Minute)
	w.run(time.Second)
	if a := w.handOff(c, "b"); a.Err == nil || a.Err.Error() != "node b is not connected" {
		t.Errorf("to b, which is not connected: %v", a.Err)
	}
	const stranger = "its certificate is of another cluster"
	for _, why := range []string{"dial tcp: connection refused", stranger} { // the latest counts
		w.members["a"].step(Unreached{"b", why})
		w.members["a"].step(Unreached{"x", why}) // no member
	}
	w.members["a"].step(Unreached{"c", stranger}) // which is connected
	if a := w.handOff(c, "b"); a.Err == nil || a.Err.Error() != "node b is not connected: "+stranger {
		t.Errorf("to b, which is of another cluster: %v", a.Err)
	}
	if a := w.command("a", Command{ID: 8, Node: "b", Job: drain}); a.Err == nil || a.Err.Error() != "node b is not connected: "+stranger {
		t.Errorf("an order for b: %v", a.Err)
	}
	if why := w.members["a"].m.why; len(why) != 1 {
		t.Errorf("why nodes are not connected: %v", why)
	}
	w.members["a"].step(HandOff{ID: 7, Client: clientAddr(9), To: "b"})
	if a := w.members["a"].answers[7]; a.Err == nil || !strings.Contains(a.Err.Error(), "does not know client") {
		t.Errorf("of an unknown client: %v", a.Err)
	}
	w.settled()
}

func TestTakeover(t *testing.T) {
	w := begin(t, 1, 4)
	if a := w.handOff(clientAddr(0), "b"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	for i, to := range []string{"b", "c", "a"} {
		h := w.members[to]
		h.step(Takeover{ID: uint64(i + 1)})
		w.run(2 * time.Second)
		if a, ok := h.answers[uint64(i+1)]; !ok || a.Err != nil {
			w.fail("takeover by %s: %v, %v", to, ok, a.Err)
		}
		w.settled()
	}
	// By word of another node.
	w.members["a"].step(Takeover{ID: 9, To: "c"})
	w.run(2 * time.Second)
	if a, ok := w.members["a"].answers[9]; !ok || a.Err != nil {
		w.fail("takeover by c: %v, %v", ok, a.Err)
	}
	w.settled()
}

func TestTakeoverOfADeadContact(t *testing.T) {
	w := begin(t, 1, 2)
	if a := w.handOff(clientAddr(0), "b"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	if a := w.handOff(clientAddr(1), "c"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	w.disconnect("a", "b", time.Hour)
	w.disconnect("a", "c", time.Hour)
	w.run(time.Second)
	b := w.members["b"]
	b.step(Takeover{ID: 1})
	if a := b.answers[1]; a.Err == nil || !strings.Contains(a.Err.Error(), "the contact a is not connected: if it does not run any more, take over with --force") {
		t.Fatalf("without force: %v", a.Err)
	}
	b.step(Takeover{ID: 2, Force: true})
	w.run(2 * time.Second)
	if a, ok := b.answers[2]; !ok || a.Err != nil {
		w.fail("%v, %v", ok, a.Err)
	}
	if name, _ := b.m.Owner(clientAddr(1)); name != "c" {
		w.fail("the new contact thinks that %q owns %s", name, clientAddr(1))
	}
	// It is back, and learns that it is not the contact any more.
	w.run(time.Hour)
	w.settled()
}

// Two nodes that cannot hear each other take over at once.
func TestTakeoverTwice(t *testing.T) {
	w := begin(t, 1, 2)
	w.disconnect("b", "c", time.Minute)
	w.disconnect("a", "b", time.Minute)
	w.disconnect("a", "c", time.Minute)
	w.run(time.Second)
	w.members["b"].step(Takeover{ID: 1, Force: true})
	w.run(time.Second)
	w.members["c"].step(Takeover{ID: 1, Force: true})
	w.run(2 * time.Minute)
	w.settled()
}

// A daemon that is started anew has forgotten everything but who was the
// contact. Its application tells it the rest, and goes on as if nothing had been.
func TestRestart(t *testing.T) {
	w := begin(t, 1, 4)
	for i := range 2 {
		if a := w.handOff(clientAddr(i), "b"); a.Err != nil {
			w.fail("%v", a.Err)
		}
	}
	for _, n := range []string{"b", "a"} {
		h := w.members[n]
		for _, other := range names {
			if other != n {
				w.disconnect(n, other, 100*time.Millisecond)
			}
		}
		h.boot()
		w.run(50 * time.Millisecond)
		h.attach()
		w.run(30 * time.Second)
		w.settled()
	}
	if a := w.handOff(clientAddr(0), "c"); a.Err != nil {
		w.fail("%v", a.Err)
	}
	w.run(time.Second)
	w.settled()
}

// A contact that was killed, and whose place was taken, believes at its next start
// that it still is the contact. It must not get the home agent's packets.
func TestKilledContactComesBack(t *testing.T) {
	for _, late := range []time.Duration{0, 5 * time.Second} { // the others hear of it
		w := begin(t, 1, 2)
		if a := w.handOff(clientAddr(1), "c"); a.Err != nil {
			w.fail("%v", a.Err)
		}
		for _, n := range []string{"b", "c"} {
			w.disconnect("a", n, time.Second+late)
		}
		w.run(10 * time.Millisecond)
		w.members["b"].step(Takeover{ID: 1, Force: true})
		w.run(500 * time.Millisecond)
		a := w.members["a"]
		a.boot() // with what it has saved: that it is the contact
		a.attach()
		w.run(30 * time.Second)
		w.settled()
		if c, registered := w.members["b"].m.Contact(); c.Name != "b" || !registered {
			w.fail("b follows %+v, registered: %v", c, registered)
		}
	}
}

// A client that has gone is forgotten everywhere, with its binding.
func TestIdle(t *testing.T) {
	w := begin(t, 1, 2)
	for i := range 2 {
		if a := w.handOff(clientAddr(i), "b"); a.Err != nil {
			w.fail("%v", a.Err)
		}
		c := clientAddr(i)
		b := w.members["b"]
		delete(b.app.live, c)
		b.step(App{gone(c)})
	}
	w.run(2 * time.Minute)
	for _, n := range names {
		for i := range 2 {
			if name, known := w.members[n].m.Owner(clientAddr(i)); known {
				w.fail("%s thinks that %s owns %s", n, name, clientAddr(i))
			}
		}
	}
	if careOf, ok := w.clients[clientAddr(0)].c.Lookup(clientAddr(0), home.Addr()); ok {
		w.fail("the client still has a binding with %s", careOf)
	}
}

// Chaos: clients go to and fro while messages are late and connections between
// members break at any moment. A seed that fails replays.
func TestChaos(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 30
	}
	var done, not int
	defer func() {
		t.Logf("%d handoffs, and %d that did not come about", done, not)
		if done < 5*seeds || not < seeds {
			t.Error("too few of one kind to mean anything")
		}
	}()
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := begin(t, uint64(seed), 4)
			defer func() {
				for _, l := range w.log {
					if strings.HasSuffix(l, `ends ""`) {
						done++
					} else if strings.Contains(l, " ends ") {
						not++
					}
				}
			}()
			w.lossy = true
			for range 30 {
				c := clientAddr(w.rand.IntN(4))
				to := names[w.rand.IntN(3)]
				if owner := w.owner(c); owner != "" && owner != to && len(w.members[owner].app.moving) == 0 {
					w.members[owner].app.handOff(c, to, 0)
				}
				w.run(time.Duration(w.rand.IntN(5000)) * time.Microsecond)
				switch w.rand.IntN(6) {
				case 0:
					i := w.rand.IntN(3)
					w.disconnect(names[i], names[(i+1)%3], time.Duration(w.rand.IntN(20))*time.Millisecond)
				case 1:
					if w.rand.IntN(3) == 0 {
						w.members[names[w.rand.IntN(3)]].step(Takeover{ID: 1})
					}
				}
				w.oneOwner()
			}
			w.lossy = false
			w.run(25 * time.Minute)
			w.settled()
		})
	}
}
